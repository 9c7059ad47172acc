"""``asyncsched backfill``: fire times of the past are run after the event."""

import asyncio
import json
from pathlib import Path

import pytest

from asyncsched import Scheduler, manual
from tests.unit.cli.asking import Cli, refusal

URL = ("--store", "sqlite:///jobs.db")
RANGE = ("--from", "2026-03-01", "--to", "2026-03-02T00:00+01:00")


async def wave() -> None: ...


@pytest.fixture(autouse=True)
def filled(tmp_path: Path) -> None:
    async def fill() -> None:
        async with Scheduler(f"sqlite:///{tmp_path}/jobs.db", id="here") as scheduler:
            scheduler.register(wave, "wave")
            await scheduler.add_job("wave", "@hourly", id="hourly")
            await scheduler.add_job("wave", manual(), id="by-hand")

    asyncio.run(fill())


def jobs_of(tmp_path: Path) -> list[str]:
    async def ask() -> list[str]:
        async with Scheduler(f"sqlite:///{tmp_path}/jobs.db", queues=()) as client:
            return sorted(job.id for job in await client.get_jobs(tags=["backfill"]))

    return asyncio.run(ask())


def test_a_dry_run_counts_and_adds_nothing(cli: Cli, tmp_path: Path) -> None:
    answer = cli("backfill", "hourly", *URL, *RANGE, "--dry-run")
    assert answer.stdout.startswith(
        "23 fire times of hourly would run, from 2026-03-01T00:00:00+00:00 to 2026-03-01T23:00:00"
    )
    assert "is not known: the history does not reach further back" in answer.stderr
    assert jobs_of(tmp_path) == []


def test_it_adds_the_jobs_that_run_the_range(cli: Cli, tmp_path: Path) -> None:
    told = json.loads(
        cli("backfill", "hourly", *URL, *RANGE, "--rate", "10/minute", "--parallel", "2", "--json").stdout
    )
    assert (told["job_id"], told["count"], told["left_out"]) == ("hourly", 23, 0)
    assert told["jobs"] == [f"{told['id']}/1", f"{told['id']}/2"] == jobs_of(tmp_path)
    assert "is stored already" in refusal(cli("backfill", "hourly", *URL, *RANGE, "--parallel", "2"))
    assert (
        cli("backfill", "hourly", *URL, "--from", "2026-03-05", "--to", "2026-03-06")
        .stdout.splitlines()[1]
        .startswith("  hourly/")
    )


def test_what_cannot_be_filled_is_refused(cli: Cli) -> None:
    assert "no job 'none'" in refusal(cli("backfill", "none", *URL, *RANGE))
    assert "names no times to fill" in refusal(cli("backfill", "by-hand", *URL, *RANGE))
    assert "--from takes an instant" in refusal(cli("backfill", "hourly", *URL, "--from", "soon"))
    assert "ends now at the latest" in refusal(
        cli("backfill", "hourly", *URL, "--from", "2026-03-01", "--to", "2099-01-01")
    )
    assert "rate must say" in refusal(cli("backfill", "hourly", *URL, *RANGE, "--rate", "fast"))
    assert "say limit=" in refusal(cli("backfill", "hourly", *URL, *RANGE, "--limit", "5"))
