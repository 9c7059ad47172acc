"""``asyncsched plan`` and ``asyncsched apply``: what a deploy does to the declared jobs, shown first, and done."""

import errno
import fcntl
import json
import os
import re
import select
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.unit.cli.asking import Cli, environment, refusal

APP = """
from asyncsched import Scheduler, cron, every

async def enter():
    raise RuntimeError("a lifespan was entered")

scheduler = Scheduler(
    "sqlite:///jobs.db", application="shop", revision=%(revision)d, gone="remove", lifespan=lambda scheduler: enter()
)
elsewhere = Scheduler()

async def work(word: str = "") -> None:
    raise RuntimeError("a job was run")

%(jobs)s
"""
JOB = 'scheduler.job(every(%d), id=%r, args=[%r])(scheduler.register(work, "work"))'


def write(folder: Path, revision: int, *jobs: tuple[int, str, str]) -> None:
    lines = "\n".join(JOB % job for job in jobs)
    (folder / f"app{revision}.py").write_text(APP % {"revision": revision, "jobs": lines})


@pytest.fixture(autouse=True)
def code(tmp_path: Path) -> None:
    """Two revisions of an application; the first is applied."""
    write(tmp_path, 1, (3600, "same", "x"), (3600, "faster", "hunter2"), (3600, "old", "x"))
    write(tmp_path, 2, (3600, "same", "x"), (1800, "faster", "sesame"), (3600, "new", "x"))


@pytest.fixture
def applied(cli: Cli) -> None:
    assert cli("apply", "app1:scheduler", "--yes").returncode == 0


def stored(cli: Cli) -> dict[str, str]:
    jobs = json.loads(cli("jobs", "--store", "sqlite:///jobs.db", "--json").stdout)
    return {job["id"]: job["trigger"] for job in jobs}


@pytest.mark.usefixtures("applied")
def test_plan_shows_the_difference_and_its_effect_and_changes_nothing(cli: Cli) -> None:
    before = stored(cli)
    answer = cli("plan", "app2:scheduler")
    assert (answer.returncode, answer.stderr) == (0, "")
    lines = [re.sub(r" from \S+", "", line) for line in answer.stdout.splitlines()]
    assert lines == [
        "application 'shop', revision 2 (stored: 1)",
        "+ new: added",
        "    fire times, next 24 h: 0 -> 24",
        "~ faster: changed",
        "    trigger: @every 1h -> @every 30m",
        "    args: changed",
        "    fire times, next 24 h: 24 -> 48",
        "- old: gone, removed",
        "    fire times, next 24 h: 24 -> 0",
        "= 1 unchanged",
    ]
    assert stored(cli) == before


@pytest.mark.usefixtures("applied")
def test_plan_is_json_for_programs(cli: Cli) -> None:
    told = json.loads(cli("plan", "app2:scheduler", "--json", "--hours", "2").stdout)
    assert {change["id"]: change["kind"] for change in told["changes"]} == {
        "new": "added",
        "faster": "changed",
        "old": "gone",
        "same": "unchanged",
    }
    faster = told["changes"][1]
    assert {field["name"]: field["new"] for field in faster["fields"]} == {
        "trigger": "@every 30m",
        "args": None,
    }
    assert faster["fire_times"]["after"]["count"] in (3, 4)
    assert len(faster["fire_times"]["after"]["first"]) == faster["fire_times"]["after"]["count"]
    assert (told["revision"], told["stored_revisions"], told["is_empty"]) == (2, {"default": 1}, False)


@pytest.mark.usefixtures("applied")
def test_secrets_are_shown_only_if_asked_for(cli: Cli) -> None:
    assert "hunter2" not in cli("plan", "app2:scheduler").stdout
    assert (
        "args: (('hunter2',), {}) -> (('sesame',), {})"
        in cli("plan", "app2:scheduler", "--show-arguments").stdout
    )


@pytest.mark.usefixtures("applied")
def test_the_exit_code_tells_of_changes_only_if_asked_to(cli: Cli) -> None:
    assert cli("plan", "app1:scheduler", "--detailed-exitcode").returncode == 0
    assert cli("plan", "app2:scheduler", "--detailed-exitcode").returncode == 3
    assert cli("plan", "app2:scheduler").returncode == 0
    assert cli("plan").returncode == 2


@pytest.mark.usefixtures("applied")
def test_apply_makes_it_so_and_says_so(cli: Cli) -> None:
    answer = cli("apply", "app2:scheduler", "-y")
    assert (answer.returncode, answer.stderr) == (0, "applied\n")
    assert answer.stdout.startswith("application 'shop', revision 2 (stored: 1)\n+ new: added\n")
    assert stored(cli) == {"same": "@every 1h", "faster": "@every 30m", "new": "@every 1h"}
    again = cli("apply", "app2:scheduler")
    assert (again.returncode, again.stdout.splitlines()[0]) == (
        0,
        "application 'shop', revision 2: no changes",
    )


@pytest.mark.usefixtures("applied")
def test_apply_without_any_input_applies_nothing(cli: Cli, tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m asyncsched apply app2:scheduler <&-"
    answer = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=20, check=False
    )  # fmt: skip
    assert answer.returncode == 1
    assert answer.stderr == "asyncsched: nobody is there to be asked: give --yes to apply these changes\n"


@pytest.mark.usefixtures("applied")
def test_apply_asks_and_where_nobody_answers_applies_nothing(cli: Cli) -> None:
    before = stored(cli)
    answer = cli("apply", "app2:scheduler")
    assert answer.returncode == 1
    assert "give --yes" in answer.stderr
    assert stored(cli) == before


@pytest.mark.usefixtures("applied")
@pytest.mark.parametrize(
    ("keys", "expected", "said"),
    [(b"n\n", 1, "nothing was applied"), (b"y\n", 0, "applied"), (b"\x03", 1, "Aborted")],
    ids=["no", "yes", "Ctrl-C"],
)
def test_apply_does_what_is_answered(cli: Cli, tmp_path: Path, keys: bytes, expected: int, said: str) -> None:
    before = stored(cli)
    told, exit_code = converse(tmp_path, ["apply", "app2:scheduler"], b"[y/N]", keys)
    assert (exit_code, said in told) == (expected, True), told
    assert (stored(cli) == before) == (expected != 0)


def converse(folder: Path, command: list[str], question: bytes, keys: bytes) -> tuple[str, int]:
    """What the command prints on a terminal on which *keys* are pressed at the question, and its exit code."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncsched", *command],
        cwd=folder,
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # So that Ctrl-C goes to it: the terminal becomes its own.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    printed = b""
    try:
        while select.select([ours], [], [], 20.0)[0]:
            printed += (new := os.read(ours, 4096))
            if question in printed and keys:
                os.write(ours, keys)
                keys = b""
            if not new:
                break
    except OSError as error:
        # So a terminal ends whose other side is closed.
        if error.errno != errno.EIO:
            raise
    finally:
        os.close(ours)
        if keys:
            process.kill()
    return printed.decode(), process.wait(20)


def test_an_older_revision_changes_nothing_unless_as_a_rollback(cli: Cli) -> None:
    cli("apply", "app2:scheduler", "--yes")
    answer = cli("plan", "app1:scheduler")
    assert answer.stdout.splitlines()[0] == "application 'shop', revision 1 (stored: 2): no changes"
    assert "! faster: left, revision 2 was applied" in answer.stdout
    assert cli("apply", "app1:scheduler", "--yes").returncode == 0
    assert "new" in stored(cli)
    assert cli("apply", "app1:scheduler", "--yes", "--rollback").returncode == 0
    assert stored(cli) == {"same": "@every 1h", "faster": "@every 1h", "old": "@every 1h"}


@pytest.mark.usefixtures("applied")
def test_another_store_may_stand_in_for_the_default_one(cli: Cli, tmp_path: Path) -> None:
    cli("apply", "app1:scheduler", "--yes", "--store", "sqlite:///copy.db")
    assert (tmp_path / "copy.db").exists()
    assert "= 3 unchanged" in cli("plan", "app1:scheduler", "--store", "sqlite:///copy.db").stdout


def test_what_cannot_be_planned_is_refused(cli: Cli) -> None:
    assert "there is no file" in refusal(cli("plan", "app1:scheduler", "--store", "sqlite:///none.db"))
    assert "nothing to compare with" in refusal(cli("plan", "app1:elsewhere"))
    assert "no module 'none'" in refusal(cli("plan", "none:scheduler"))
