"""Applications served as their users serve them: a server that is told to end lets its jobs end first, and several workers on
one store run each job once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncsched import Scheduler
from tests.servers.running import Servers
from tests.support.stores import url_of
from tests.support.waiting import eventually
from tests.support.web import FRAMEWORKS, WebServer

pytestmark = pytest.mark.anyio

WORKERS = 3
ONE_SHOTS = 60


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_server_that_is_told_to_end_lets_its_jobs_end_first(framework: str, tmp_path: Path) -> None:
    store, gate = f"sqlite:///{tmp_path}/jobs.db", tmp_path / "gate"
    async with WebServer(framework, tmp_path, store) as server:
        assert await server.ask("POST", "/jobs/report", file=str(gate)) == {"job": "report"}
        await eventually(lambda: server.count("begun"), timeout=60)
        assert await server.state("report") == "running"
        assert await server.state("other") == "unknown"
        health = await server.ask("GET", "/healthz")
        assert (health["ok"], health["stores"][0]["workers"], health["stores"][0]["is_reached"]) == (
            True,
            1,
            True,
        )
        gate.touch()
        await eventually(lambda: said(server, "report", "succeeded"), timeout=60)

        gate.unlink()
        await server.ask("POST", "/jobs/last", file=str(gate))
        await eventually(lambda: server.count("begun") == 2, timeout=60)
        server.tell_to_end()
        await eventually(lambda: server.count("draining"), timeout=60, what="the drain")
        gate.touch()
        await server.ended()
        assert [line.event for line in server.lines if line.event != "ticked"] == [
            "opened", "ready", "begun", "ended", "begun", "draining", "ended", "closed",
        ]  # fmt: skip
        assert server.lines[-1].event == "closed"
    async with Scheduler(store, queues=()) as client:
        [run] = await client.history.runs("last")
        assert (run.outcome, run.attempt, run.result) == ("succeeded", 1, str(gate))
        assert (await client.get_job("tick")).state == "scheduled"


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_job_that_outlasts_the_drain_is_cancelled_and_made_again_by_the_next_server(
    framework: str, tmp_path: Path
) -> None:
    store, gate = f"sqlite:///{tmp_path}/jobs.db", tmp_path / "gate"
    async with WebServer(framework, tmp_path, store, environment={"JOBS_DRAIN_S": "0.2"}) as server:
        await server.ask("POST", "/jobs/report", file=str(gate))
        await eventually(lambda: server.count("begun"), timeout=60)
        server.tell_to_end()
        await server.ended()
        assert server.count("ended") == 0
    gate.touch()
    async with WebServer(framework, tmp_path, store) as server:
        await eventually(lambda: said(server, "report", "succeeded"), timeout=60)
        server.tell_to_end()
        await server.ended()
    async with Scheduler(store, queues=()) as client:
        runs = await client.history.runs("report")
    assert [(run.outcome, run.attempt) for run in runs] == [("succeeded", 1), ("cancelled", 1)]


@pytest.mark.parametrize("kind", ["sqlite", "redis", "postgres"])
async def test_several_workers_of_a_server_run_each_job_once(
    kind: str, stores: Sequence[str], servers: Servers, tmp_path: Path
) -> None:
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    store, gate = url_of(kind, tmp_path, servers), tmp_path / "gate"
    workers = WebServer(
        "fastapi", tmp_path, store, "--workers", str(WORKERS), environment={"JOBS_CONCURRENCY": "4"}
    )
    async with workers as server:
        await eventually(lambda: server.count("ready") == WORKERS, timeout=60)
        for number in range(ONE_SHOTS):
            await server.ask("POST", f"/jobs/job-{number}", file=str(gate))
        # No run ends before all slots of all workers are taken, so each of them has its part.
        await eventually(lambda: server.count("begun") >= 3 * WORKERS, timeout=60)
        gate.touch()
        await eventually(lambda: server.count("ended") == ONE_SHOTS, timeout=60)
        await eventually(lambda: server.count("ticked") >= 10, timeout=60)
        server.tell_to_end()
        await server.ended()
    lines = [line for line in server.lines if line.event in ("begun", "ended", "ticked")]
    assert len({line.instance for line in lines if line.event == "begun"}) == WORKERS
    assert set(Counter((line.event, line.job_id, line.fire) for line in lines).values()) == {1}
    assert server.count("opened") == server.count("closed") == WORKERS
    async with Scheduler(store, queues=()) as client:
        runs = await client.history.runs(limit=1000)
        assert (await client.get_job("tick")).state == "scheduled"
    assert {run.outcome for run in runs} == {"succeeded"}
    assert Counter(run.job_id for run in runs if run.job_id != "tick") == Counter(
        f"job-{number}" for number in range(ONE_SHOTS)
    )


async def test_several_workers_with_a_memory_store_are_warned(tmp_path: Path) -> None:
    async with WebServer("fastapi", tmp_path, "memory://", "--workers", "2") as server:
        await eventually(lambda: server.count("ready") == 2, timeout=60)
        server.tell_to_end()
        await server.ended()
    assert "each of them runs every job" in server.output


async def said(server: WebServer, id: str, state: str) -> bool:
    return await server.state(id) == state
