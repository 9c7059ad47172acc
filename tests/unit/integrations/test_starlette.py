"""A scheduler lives as long as a Starlette application, between the application's own lifespans, and serves its requests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from asyncsched import AlreadyRunning, DefinitionError, NoScheduler, Scheduler
from asyncsched.integrations.starlette import attach, get_scheduler, lifespan


async def show_state(request: Request) -> JSONResponse:
    return JSONResponse([get_scheduler(request).id, get_scheduler(request).state])


async def show_lifespan_state(request: Request) -> JSONResponse:
    return JSONResponse(request.state._state)


async def tell_id(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(get_scheduler(socket).id)
    await socket.close()


ROUTES = [
    Route("/", show_state),
    Route("/state", show_lifespan_state),
    WebSocketRoute("/socket", tell_id),
]


def test_the_scheduler_runs_while_the_application_does() -> None:
    scheduler = Scheduler(id="web")
    with TestClient(Starlette(routes=ROUTES, lifespan=lifespan(scheduler))) as client:
        assert client.get("/").json() == ["web", "running"]
        with client.websocket_connect("/socket") as socket:
            assert socket.receive_text() == "web"
    assert scheduler.state == "stopped"


def test_an_application_may_be_started_again() -> None:
    app = Starlette(routes=ROUTES, lifespan=lifespan(Scheduler(id="web")))
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/").json() == ["web", "running"]


def test_lifespans_of_ones_own_go_around_the_scheduler_and_within() -> None:
    scheduler = Scheduler()
    told: list[tuple[str, str]] = []

    @asynccontextmanager
    async def around(app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        told.append(("around", scheduler.state))
        yield {"pool": "open", "from": "around"}
        told.append(("around", scheduler.state))

    @asynccontextmanager
    async def within(app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        told.append(("within", scheduler.state))
        yield {"from": "within"}
        told.append(("within", scheduler.state))

    app = Starlette(routes=ROUTES, lifespan=lifespan(scheduler, around=around, within=within))
    with TestClient(app) as client:
        assert client.get("/state").json() == {"pool": "open", "from": "within"}
    assert told == [
        ("around", "stopped"), ("within", "running"), ("within", "running"), ("around", "stopped"),
    ]  # fmt: skip


def test_a_lifespan_without_a_state_needs_no_server_that_keeps_one() -> None:
    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[None]:
        yield

    app = Starlette(routes=ROUTES, lifespan=lifespan(Scheduler(), around=own, within=own))
    with TestClient(app) as client:
        assert client.get("/state").json() == {}


def test_what_goes_around_is_left_when_the_scheduler_cannot_start() -> None:
    told = []

    @asynccontextmanager
    async def around(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            told.append("left")

    @asynccontextmanager
    async def fails(scheduler: Scheduler) -> AsyncIterator[None]:
        raise ConnectionError("no such database")
        yield

    app = Starlette(lifespan=lifespan(Scheduler(lifespan=fails), around=around))
    with pytest.raises(ConnectionError, match="no such database"), TestClient(app):
        pass
    assert told == ["left"]


def test_a_scheduler_stops_when_what_is_within_fails() -> None:
    scheduler = Scheduler()

    @asynccontextmanager
    async def within(app: Starlette) -> AsyncIterator[None]:
        raise ConnectionError("no such queue")
        yield

    app = Starlette(lifespan=lifespan(scheduler, within=within))
    with pytest.raises(ConnectionError, match="no such queue"), TestClient(app):
        pass
    assert scheduler.state == "stopped"


def test_a_scheduler_that_was_stopped_meanwhile_is_let_be() -> None:
    scheduler = Scheduler()

    async def stop(request: Request) -> JSONResponse:
        await get_scheduler(request).stop()
        return JSONResponse(scheduler.state)

    app = Starlette(routes=[Route("/stop", stop)], lifespan=lifespan(scheduler))
    with TestClient(app) as client:
        assert client.get("/stop").json() == "stopped"


@pytest.mark.anyio
async def test_a_server_that_cancels_the_lifespan_waits_for_no_job() -> None:
    scheduler = Scheduler()
    begun, never = asyncio.Event(), asyncio.Event()

    @scheduler.task(name="work")
    async def work() -> None:
        begun.set()
        await never.wait()

    async def serve() -> None:
        async with lifespan(scheduler, drain=3600)(Starlette()):
            await scheduler.enqueue(work)
            await never.wait()

    server = asyncio.get_running_loop().create_task(serve())
    await asyncio.wait_for(begun.wait(), 20)
    server.cancel()
    await asyncio.wait([server], timeout=20)
    assert server.cancelled()
    assert scheduler.state == "stopped"


@pytest.mark.anyio
async def test_one_scheduler_belongs_to_one_running_application() -> None:
    live = lifespan(Scheduler())
    async with live(Starlette()):
        with pytest.raises(AlreadyRunning):
            async with live(Starlette()):
                pass


def test_an_application_without_a_scheduler_says_how_to_attach_one() -> None:
    with (
        TestClient(Starlette(routes=ROUTES)) as client,
        pytest.raises(NoScheduler, match=r"no scheduler is attached .*lifespan=lifespan\(scheduler\)"),
    ):
        client.get("/")


def test_an_application_whose_lifespan_was_not_entered_says_so() -> None:
    client = TestClient(Starlette(routes=ROUTES, lifespan=lifespan(Scheduler())))
    with pytest.raises(NoScheduler, match="its lifespan was not entered: use a test client as a context"):
        client.get("/")


def test_a_mounted_application_has_the_scheduler_that_is_attached_to_it() -> None:
    scheduler, inner = Scheduler(id="web"), Starlette(routes=ROUTES)
    app = Starlette(routes=[Mount("/inner", inner)], lifespan=lifespan(scheduler))
    with TestClient(app) as client:
        with pytest.raises(NoScheduler, match=r"mounted in another one .*attach\(app, scheduler\)"):
            client.get("/inner/")
        attach(inner, scheduler)
        assert client.get("/inner/").json() == ["web", "running"]


async def forgotten(app: Starlette) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("name", ["around", "within"])
@pytest.mark.parametrize("given", [forgotten, "resources"])
def test_what_is_no_lifespan_is_refused_at_once(name: str, given: Any) -> None:
    with pytest.raises(DefinitionError, match=rf"{name} must be .*put @asynccontextmanager above it"):
        lifespan(Scheduler(), **{name: given})


@pytest.mark.parametrize("drain", [-1, timedelta(seconds=-1), "30"])
def test_a_drain_that_cannot_be_is_refused_at_once(drain: Any) -> None:
    with pytest.raises(DefinitionError, match="drain must be"):
        lifespan(Scheduler(), drain=drain)


@pytest.mark.parametrize("name", ["starlette", "fastapi", "litestar", "aiohttp"])
def test_a_framework_that_is_not_installed_is_named(name: str) -> None:
    script = f"import sys; sys.modules[{name!r}] = None; import asyncsched.integrations.{name}"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.stderr.splitlines()[-1] == (
        f"asyncsched.errors.MissingExtra: this integration needs {name}: pip install {name}"
    )
