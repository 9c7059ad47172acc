"""What lives as long as the scheduler, and the frameworks that it lives in."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient as AiohttpClient
from aiohttp.test_utils import TestServer as AiohttpServer
from fastapi import FastAPI
from fastapi.testclient import TestClient

from asyncsched import Scheduler, every
from asyncsched.testing import ManualClock

pytestmark = pytest.mark.anyio


async def test_the_schedulers_lifespan_is_entered_before_the_first_run_and_left_after_the_drain(
    clock: ManualClock,
) -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan(given: Scheduler) -> AsyncIterator[None]:
        assert given is scheduler
        steps.append("entered")
        yield
        steps.append("left")

    scheduler = Scheduler(clock=clock, lifespan=lifespan)

    @scheduler.job(every(60), run_on_start=True)
    async def work() -> None:
        steps.append("began")
        await clock.sleep(5)
        steps.append("ended")

    await scheduler.start()
    await clock.advance(1)
    stopping = asyncio.get_running_loop().create_task(scheduler.stop())
    await clock.advance(5)
    await stopping
    assert steps == ["entered", "began", "ended", "left"]


async def test_a_lifespan_that_cannot_be_entered_fails_the_start(clock: ManualClock) -> None:
    @asynccontextmanager
    async def lifespan(given: Scheduler) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    scheduler = Scheduler(clock=clock, lifespan=lifespan)
    with pytest.raises(RuntimeError, match="no database"):
        await scheduler.start()
    assert scheduler.state == "stopped"


@asynccontextmanager
async def unreachable(*_: object) -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield


async def test_a_start_that_waits_for_its_lifespan_can_be_given_up(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock, lifespan=unreachable)
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scheduler.start(), 0.05)
    assert scheduler.state == "stopped"


async def test_a_stop_waits_for_no_lifespan_that_is_still_being_entered(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="work", lifespan=unreachable)
    async def work() -> None: ...

    await scheduler.add_job("work", id="x")
    await clock.advance(1)
    assert [run.job_id for run in scheduler.running()] == ["x"]
    async with asyncio.timeout(10):
        await scheduler.stop(drain=0)
    assert scheduler.state == "stopped"


async def test_a_lifespan_that_was_not_entered_is_tried_again_whatever_it_raised(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    problems: list[BaseException] = [SystemExit("no settings"), ValueError("no database")]

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        if problems:
            raise problems.pop(0)
        yield

    @scheduler.task(name="work", lifespan=lifespan)
    async def work() -> None: ...

    await scheduler.add_job("work", every(10), id="x")
    await clock.advance(35)
    outcomes = [run.outcome for run in await scheduler.history.runs("x")]
    assert outcomes == ["succeeded", "failed", "failed"]


async def test_a_lifespan_may_hold_a_task_group_of_anyio(clock: ManualClock) -> None:
    @asynccontextmanager
    async def lifespan(given: Scheduler) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 600)
            yield
            group.cancel_scope.cancel()

    async with Scheduler(clock=clock, lifespan=lifespan) as scheduler:
        assert scheduler.is_running
    assert scheduler.state == "stopped"


async def test_a_lifespan_that_fails_on_its_way_out_does_not_hinder_the_stop(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def lifespan(given: Scheduler) -> AsyncIterator[None]:
        yield
        raise RuntimeError("broken on exit")

    async with Scheduler(clock=clock, lifespan=lifespan) as scheduler:
        pass
    assert scheduler.state == "stopped"
    assert "broken on exit" in caplog.text


def test_it_is_the_lifespan_of_a_fastapi_application() -> None:
    scheduler, ran = Scheduler(), threading.Event()

    @scheduler.task(name="ring")
    async def ring() -> None:
        ran.set()

    app = FastAPI(lifespan=scheduler.lifespan)

    @app.post("/ring")
    async def post() -> str:
        return (await scheduler.enqueue(ring)).job_id

    with TestClient(app) as client:
        assert scheduler.state == "running"
        assert client.post("/ring").status_code == 200
        assert ran.wait(10)
    assert scheduler.state == "stopped"


async def test_it_is_a_cleanup_context_of_an_aiohttp_application() -> None:
    scheduler, ran = Scheduler(), asyncio.Event()

    @scheduler.task(name="ring")
    async def ring() -> None:
        ran.set()

    async def post(request: web.Request) -> web.Response:
        return web.Response(text=(await scheduler.enqueue(ring)).job_id)

    app = web.Application()
    app.router.add_post("/ring", post)
    app.cleanup_ctx.append(scheduler.cleanup_ctx)
    async with AiohttpClient(AiohttpServer(app)) as client:
        assert scheduler.state == "running"
        assert (await client.post("/ring")).status == 200
        await asyncio.wait_for(ran.wait(), 10)
    assert scheduler.state == "stopped"
