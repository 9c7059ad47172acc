"""``asyncsched jobs``: looking into a store."""

import asyncio
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from asyncsched import Scheduler, every, manual, once
from asyncsched.cli.app import State
from asyncsched.cli.show import one_line
from asyncsched.model import JobState
from tests.unit.cli.asking import Cli, ask_python, refusal

URL = "sqlite:///jobs.db"


async def greet(name: str) -> None:
    raise ValueError(f"nobody is called\n{name}")


async def wave() -> None: ...


@pytest.fixture
def filled(tmp_path: Path) -> None:
    """A store with a job in each state that rests."""
    asyncio.run(fill(tmp_path))


async def fill(tmp_path: Path) -> None:
    async with Scheduler(f"sqlite:///{tmp_path}/jobs.db", id="here") as scheduler:
        scheduler.register(greet, "greet")
        scheduler.register(wave, "wave")
        await scheduler.add_job("greet", once(), id="broken", args=["secret"])
        await scheduler.add_job("wave", every(hours=2), id="later", tags=["b"])
        await scheduler.add_job("wave", every(hours=1), id="soon", queue="mail", priority=7)
        await scheduler.add_job("wave", manual(), id="by hand")
        await scheduler.add_job("wave", every(hours=1), id="resting", paused=True)
        await scheduler.wait_job("broken", timeout=5)


def ids(answer: str) -> list[str]:
    return [job["id"] for job in json.loads(answer)]


@pytest.mark.usefixtures("filled")
def test_jobs_are_listed_by_next_fire_time_and_resting_ones_last(cli: Cli) -> None:
    answer = cli("jobs", "--store", URL)
    assert answer.returncode == 0
    head, *rows = answer.stdout.splitlines()
    assert head.split("  ")[0] == "id"
    assert [name for name in head.split("  ") if name][4:6] == ["next fire time (UTC)", "last run (UTC)"]
    assert [row[:7].strip() for row in rows[:2]] == ["soon", "later"]
    assert {row[:7].strip() for row in rows[2:]} == {"broken", "by hand", "resting"}
    [broken] = [row for row in rows if row.startswith("broken")]
    assert broken.split()[:6] == ["broken", "greet", "once", "after", "0s", "failed"]
    assert broken.endswith("ValueError: nobody is called secret")


@pytest.mark.usefixtures("filled")
def test_json_has_what_a_program_wants_to_know(cli: Cli) -> None:
    [job] = json.loads(cli("jobs", "--store", URL, "--json", "--queue", "mail").stdout)
    assert {
        name: job[name] for name in ("id", "task", "trigger", "state", "queue", "priority", "last_error")
    } == {
        "id": "soon",
        "task": "wave",
        "trigger": "@every 1h",
        "state": "scheduled",
        "queue": "mail",
        "priority": 7,
        "last_error": None,
    }
    assert datetime.fromisoformat(job["next_fire_time"]) > datetime.now(UTC)


@pytest.mark.usefixtures("filled")
def test_arguments_are_not_shown(cli: Cli) -> None:
    [job] = json.loads(cli("jobs", "--store", URL, "--json", "--task", "greet").stdout)
    assert "args" not in job
    assert "kwargs" not in job


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--queue", "mail"], {"soon"}),
        (["--task", "greet"], {"broken"}),
        (["--state", "paused"], {"resting"}),
        (["--state", "failed"], {"broken"}),
        (["--state", "scheduled", "--task", "wave", "--queue", "default"], {"later", "by hand"}),
        (["--state", "running"], set()),
    ],
)
def test_filters_choose(cli: Cli, filters: list[str], expected: set[str]) -> None:
    assert set(ids(cli("jobs", "--store", URL, "--json", *filters).stdout)) == expected


@pytest.mark.usefixtures("filled")
def test_a_limit_says_that_there_are_more(cli: Cli) -> None:
    answer = cli("jobs", "--store", URL, "--json", "--limit", "2")
    assert ids(answer.stdout) == ["soon", "later"]
    assert answer.stderr == "there are more than these 2; --limit shows more\n"
    assert cli("jobs", "--store", URL, "--json", "--limit", "5").stderr == ""


@pytest.mark.usefixtures("filled")
def test_looking_runs_and_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    def stored() -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as database, database:
            database.execute("UPDATE asyncsched_jobs SET wake_at = 1.0 WHERE id = 'soon'")
            return database.execute("SELECT * FROM asyncsched_jobs ORDER BY id").fetchall()

    before = stored()
    assert cli("jobs", "--store", URL).returncode == 0
    assert stored() == before


@pytest.mark.usefixtures("filled")
def test_no_match_is_no_error(cli: Cli) -> None:
    answer = cli("jobs", "--store", URL, "--queue", "nobody's")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "no job matches\n")


@pytest.mark.usefixtures("filled")
def test_a_job_that_cannot_be_read_hides_no_other(cli: Cli, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database, database:
        database.execute("UPDATE asyncsched_jobs SET body = x'ff00' WHERE id = 'later'")
    answer = cli("jobs", "--store", URL, "--json")
    assert answer.returncode == 0, answer.stderr
    assert set(ids(answer.stdout)) == {"soon", "later", "broken", "by hand", "resting"}


def test_a_file_that_is_not_there_is_refused_and_not_made(cli: Cli, tmp_path: Path) -> None:
    said = refusal(cli("jobs", "--store", "sqlite:///typo.db"))
    assert str(tmp_path / "typo.db") in said
    assert list(tmp_path.iterdir()) == []


def test_a_memory_store_is_refused_since_it_is_another_process_s(cli: Cli) -> None:
    assert "lives and dies with the process" in refusal(cli("jobs", "--store", "memory://"))


def test_what_is_no_store_is_one_clear_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(
        "milk and bread and a great many other things that are no database at all\n" * 20
    )
    assert "memory://" in refusal(cli("jobs", "--store", "jobs.db"))
    assert "no store serves gopher://" in refusal(cli("jobs", "--store", "gopher://jobs"))
    assert "no SQLite database" in refusal(cli("jobs", "--store", "sqlite:///notes.txt"))


def test_a_database_of_somebody_else_s_is_left_as_it_is(cli: Cli, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database:
        database.execute("CREATE TABLE customers (name)")
    for command in (["jobs"], ["explain", "a"], ["backfill", "a", "--from", "2026-01-01"]):
        assert "has no schema" in refusal(cli(*command, "--store", "sqlite:///shop.db?create_schema=true"))
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("customers",)]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://app:hun#ter2@db.example/app", "write / as %2F, ? as %3F and # as %23"),
        ("postgresql://app:hun/ter2@db.example/app", "write / as %2F, ? as %3F and # as %23"),
        ("redis://:hun?ter2@127.0.0.1:1/0", "write / as %2F, ? as %3F and # as %23"),
        ("redis://app:hunter2@[::1/0", "is no URL"),
        ("redis:app:hunter2@127.0.0.1", "is no store URL"),
        ("app:hunter2@127.0.0.1/app", "is no store URL"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_line_without_its_password(cli: Cli, url: str, said: str) -> None:
    line = refusal(cli("jobs", "--store", url))
    assert said in line
    assert "hun" not in line
    assert "ter2" not in line


@pytest.mark.usefixtures("filled")
def test_what_an_encoding_has_no_character_for_is_shown_as_its_number(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database, database:
        database.execute("UPDATE asyncsched_jobs SET id = 'zoë' WHERE id = 'soon'")
    answer = ask_python(tmp_path, "-m", "asyncsched", "jobs", "--store", URL, encoding="ascii")
    assert (answer.returncode, "zo\\xeb" in answer.stdout) == (0, True), answer.stderr


def test_every_state_of_a_job_can_be_asked_for() -> None:
    assert [state.value for state in State] == list(get_args(JobState))


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    assert one_line("a\x1b[31mb\r\n\tc\x07\u202e") == "a\\x1b[31mb c\\x07\\u202e"
