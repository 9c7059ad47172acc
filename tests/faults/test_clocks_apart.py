"""Two processes whose clocks are four hours apart, on one server: all instants are the server's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from asyncsched import JobSpec, every, once
from tests.servers.running import SERVERS, Servers
from tests.support.campaign import Lags
from tests.support.faketime import with_clock
from tests.support.processes import Workers, client, workers
from tests.support.stores import url_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
LEASE_S = 2.5
JOBS = 100
SPAN_S = 5.0
RECURRING = 10
#: Longer than two leases: what the other takes for the end of one comes and goes.
LONG_S = 6.0
#: Of a machine that does much else; a clock that counted would make it hours.
LATE_S = 5.0


@pytest.mark.parametrize("kind", SERVERS)
async def test_clocks_that_are_hours_wrong_start_no_job_early_or_late_and_steal_no_lease(
    kind: str, stores: Sequence[str], servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    with workers(tmp_path, url_of(kind, tmp_path, servers)) as cluster:
        # Where the server tells nobody the time, the first to come sets the clock that all go by.
        async with client(cluster.url) as scheduler:
            skews_s = await start_workers(cluster)
            # Far enough away for an instance that hears no hints to have looked by then.
            first_at = round(time.time(), 6) + 4.0
            due = {f"job-{n}": round(first_at + n * SPAN_S / JOBS, 6) for n in range(JOBS)}
            specs = [JobSpec("work", once(at=moment(at)), id=id, args=[0.5]) for id, at in due.items()]
            specs += [
                JobSpec("work", once(at=moment(first_at)), id=f"long-{n}", args=[LONG_S]) for n in range(2)
            ]
            trigger = every(
                1.0, start=moment(first_at), anchor=moment(first_at), end=moment(first_at + SPAN_S)
            )
            # All of them, however late a machine that does much else may be.
            specs += [
                JobSpec("work", trigger, id=f"recurring-{n}", args=[0.0], policies={"catch_up": "all"})
                for n in range(RECURRING)
            ]
            await scheduler.add_jobs(specs)

            async def all_gone() -> bool:
                return not await scheduler.get_jobs(limit=1)

            await eventually(all_gone)
            runs = await scheduler.history.runs(limit=10_000)
            await cluster.stop()
    begun = [line for line in cluster.lines if line.event == "begun"]
    began_at = {(line.job_id, line.fire): line.at - skews_s[line.instance] for line in begun}
    lags = Lags.of(at - fire for (_, fire), at in began_at.items())
    earliest = min(at - fire for (_, fire), at in began_at.items())
    with capsys.disabled():
        print(f"\n{kind}, clocks apart: start lag {lags}, earliest {earliest * 1e3:.1f} ms")
    # Each once: nobody has taken over what the other held.
    assert len(began_at) == len(begun) == JOBS + 2 + RECURRING * 6
    assert {run.outcome for run in runs} == {"succeeded"}
    assert {line.instance for line in begun} == set(skews_s)
    # The clock is this machine's, read by several processes that wait for its two cores: some milliseconds of doubt.
    assert earliest > -0.005
    assert lags.longest < LATE_S


async def start_workers(cluster: Workers) -> dict[str, float]:
    """Two, whose clocks are wrong, once they have noticed; by name, by how much."""
    skews_s = {}
    for hours in (2, -2):
        worker = cluster.start(
            "--lease", str(LEASE_S), "--concurrency", "8", environment=with_clock(f"{hours:+}h")
        )
        skews_s[worker.name] = hours * HOUR_S
    await asyncio.gather(*(worker.ready() for worker in cluster.all))
    for worker in cluster.all:
        [ready] = worker.lines
        assert abs(ready.at - time.time() - skews_s[worker.name]) < 60, "the clock of the worker is not wrong"
        await eventually(lambda worker=worker: "clock" in worker.errors, what="the warning of the skew")
    return skews_s


def moment(instant: float) -> datetime:
    return datetime.fromtimestamp(instant, UTC)
