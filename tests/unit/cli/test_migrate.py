"""``asyncsched migrate``: jobs from one store to another."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from asyncsched import JobStore
from asyncsched.contract import Record
from asyncsched.stores.sqlite import SQLiteStore
from tests.unit.cli.asking import Cli, environment, refusal

FROM, TO = "sqlite:///from.db", "sqlite:///to.db"


@pytest.fixture(autouse=True)
def needs_sqlite(stores: tuple[str, ...]) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")


def at(file: Path, work: Callable[[JobStore], Awaitable[object]]) -> None:
    """Do *work* with the store in that *file*, which is made where it is missing."""

    async def go() -> None:
        store = SQLiteStore(str(file))
        await store.open()
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(go())


def record(id: str, birth: str = "birth", wake_at: float | None = 4e9) -> Record:
    return Record(id, birth, "default", 5, "app:work", wake_at, None, b"body", b"")


def add(file: Path, *records: Record) -> None:
    at(file, lambda store: store.add(records))


def test_jobs_are_copied_and_compared(cli: Cli, tmp_path: Path) -> None:
    add(tmp_path / "from.db", record("a"), record("b", wake_at=None))
    first = cli("migrate", "--from", FROM, "--to", TO, "--history")
    assert first.returncode == 0, first.stderr
    head, copied, *log = first.stdout.splitlines()
    digest = head.rpartition(" ")[2]
    assert head == f"jobs on the source: 2, digest {digest}"
    assert copied == f"of these on the target: 2, digest {digest}; copied now: 2"
    assert [line.partition(",")[0] for line in log] == [
        "history on the source: 0",
        "of this on the target: 0",
    ]
    assert first.stderr == ""
    again = json.loads(cli("migrate", "--from", FROM, "--to", TO, "--json").stdout)
    assert (again["is_well"], again["dry_run"], again["added"], again["same"]) == (True, False, 0, 2)
    assert again["digest"] == again["target_digest"] == digest


def test_a_dry_run_says_what_would_be_done_and_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    add(tmp_path / "from.db", record("a"), record("b"))
    answer = cli("migrate", "--from", FROM, "--to", TO, "--dry-run")
    assert answer.returncode == 0
    assert "to be copied: 2; on the target already: 0" in answer.stdout
    assert "the target is taken as empty" in answer.stderr
    assert not (tmp_path / "to.db").exists()
    add(tmp_path / "to.db", record("a"))
    answer = cli("migrate", "--from", FROM, "--to", TO, "--dry-run", "--json")
    found = json.loads(answer.stdout)
    assert (found["dry_run"], found["to_add"], found["same"]) == (True, 1, 1)
    with closing(sqlite3.connect(tmp_path / "to.db")) as target, target:
        assert target.execute("SELECT count(*) FROM asyncsched_jobs").fetchone() == (1,)
    target.close()


def test_a_source_without_jobs_is_remarked_on(cli: Cli, tmp_path: Path) -> None:
    add(tmp_path / "from.db")
    answer = cli("migrate", "--from", FROM, "--to", TO)
    assert (answer.returncode, answer.stderr.startswith("the source has no jobs")) == (0, True)


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_what_differs_is_named_and_the_exit_code_is_1(cli: Cli, tmp_path: Path, options: list[str]) -> None:
    add(tmp_path / "from.db", record("a"), record("b"), record("c"))
    add(tmp_path / "to.db", record("a", birth="another"), record("b", wake_at=5e9))
    answer = cli("migrate", "--from", FROM, "--to", TO, *options)
    assert answer.returncode == 1
    assert "on the target, but not as on the source: 1 ('b')" in answer.stderr
    assert "other jobs on the target, under the same ids: 1 ('a')" in answer.stderr


def test_jobs_held_by_instances_keep_it_from_beginning_unless_told(cli: Cli, tmp_path: Path) -> None:
    add(tmp_path / "from.db", record("held", wake_at=1.0), record("b"))
    at(tmp_path / "from.db", lambda store: store.claim(["default"], "token", 1, 600.0))
    said = refusal(cli("migrate", "--from", FROM, "--to", TO))
    assert "instances are alive on the source" in said
    assert "'held'" in said
    looked = cli("migrate", "--from", FROM, "--to", TO, "--dry-run")
    assert looked.returncode == 1
    assert "held by instances that are alive; stop those first: 1 ('held')" in looked.stderr
    told = cli("migrate", "--from", FROM, "--to", TO, "--while-running")
    assert told.returncode == 0
    assert "copied now: 2" in told.stdout


def test_what_is_no_pair_of_stores_is_refused(cli: Cli, tmp_path: Path) -> None:
    add(tmp_path / "from.db", record("a"))
    assert "name two stores" in refusal(cli("migrate", "--from", FROM, "--to", FROM))
    assert "it is the source itself" in refusal(
        cli("migrate", "--from", FROM, "--to", f"sqlite:///{tmp_path}/from.db")
    )
    assert "lives and dies" in refusal(cli("migrate", "--from", FROM, "--to", "memory://"))
    assert "there is no file" in refusal(cli("migrate", "--from", "sqlite:///nowhere.db", "--to", TO))
    assert not (tmp_path / "nowhere.db").exists()


def test_no_password_is_shown(cli: Cli, tmp_path: Path) -> None:
    add(tmp_path / "from.db", record("a"))
    for options in ([], ["--json"], ["--dry-run"]):
        answer = cli("migrate", "--from", FROM, "--to", "postgresql://app:hunter2@127.0.0.1:1/app", *options)
        assert answer.returncode == 1
        assert "hunter2" not in answer.stdout + answer.stderr


def test_a_terminal_is_shown_the_progress(tmp_path: Path) -> None:
    add(tmp_path / "from.db", *(record(f"job {i}") for i in range(500)))
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "asyncsched", "migrate", "--from", FROM, "--to", TO]
    env = {**environment(), "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=end, text=True, timeout=20, check=True
    )
    os.close(end)
    with open(terminal, "rb") as shown:
        seen = shown.read1(1_000_000).decode()
    assert "500/500" in seen
    assert {"reading", "copying", "comparing"} <= set(re.findall(r"[a-z]+", seen))
    assert "copied now: 500" in done.stdout


def test_what_was_interrupted_goes_on_when_it_is_run_again(cli: Cli, tmp_path: Path) -> None:
    add(tmp_path / "from.db", *(record(f"job {i}") for i in range(10_000)))
    add(tmp_path / "to.db")
    command = [sys.executable, "-m", "asyncsched", "migrate", "--from", FROM, "--to", TO]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        target = sqlite3.connect(tmp_path / "to.db")
        while process.poll() is None and target.execute("SELECT count(*) FROM asyncsched_jobs").fetchone() < (
            400,
        ):
            pass
        target.close()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (1, "")
    assert (
        errors
        == "asyncsched: interrupted: what was copied is kept, and the same command goes on from there\n"
    )
    answer = cli("migrate", "--from", FROM, "--to", TO)
    assert answer.returncode == 0, answer.stderr
    assert "of these on the target: 10000" in answer.stdout
