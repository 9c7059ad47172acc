"""``asyncsched explain``: what a job waits for, and why it did not run."""

import asyncio
import json
from pathlib import Path

import pytest

from asyncsched import Scheduler, every
from tests.unit.cli.asking import Cli, refusal

URL = ("--store", "sqlite:///jobs.db")


async def wave() -> None: ...


@pytest.fixture(autouse=True)
def filled(tmp_path: Path) -> None:
    async def fill() -> None:
        async with Scheduler(f"sqlite:///{tmp_path}/jobs.db", id="here", queues=["default"]) as scheduler:
            scheduler.register(wave, "wave")
            await scheduler.add_job("wave", every(hours=1), id="hourly")
            await scheduler.add_job("wave", every(hours=1), id="resting", paused=True)
            await scheduler.add_job("wave", id="due", queue="nobody")

    asyncio.run(fill())


def test_it_says_what_a_job_waits_for_and_what_is_to_come(cli: Cli) -> None:
    first, *runs = cli("explain", "hourly", *URL, "-n", "3").stdout.splitlines()
    assert first.startswith("hourly (scheduled): it waits for 20")
    assert [run[:4] for run in runs] == ["  20"] * 3
    told = json.loads(cli("explain", "resting", *URL, "--json").stdout)
    assert (told["summary"], told["coming"]) == ("it is paused; resume_job() ends that", [])


def test_it_knows_nothing_of_tasks_and_says_nothing_of_them(cli: Cli) -> None:
    told = json.loads(cli("explain", "due", *URL, "--json").stdout)
    assert told["summary"].endswith("no instance that serves queue 'nobody' has claimed it yet")


def test_it_says_why_a_job_did_not_run(cli: Cli) -> None:
    assert cli("explain", "hourly", *URL, "--at", "2020-01-01").stdout.startswith("not_there_yet: ")
    told = json.loads(cli("explain", "hourly", *URL, "--at", "2099-01-01T00:00:00.5", "--json").stdout)
    assert told["kind"] == "no_fire_time"


def test_what_cannot_be_explained_is_refused(cli: Cli) -> None:
    assert "no job 'none'" in refusal(cli("explain", "none", *URL))
    assert "--at takes an instant" in refusal(cli("explain", "hourly", *URL, "--at", "soon"))
    assert "nothing to show" in refusal(cli("explain", "hourly", "--store", "memory://"))
    assert "there is no file" in refusal(cli("explain", "hourly", "--store", "sqlite:///none.db"))
