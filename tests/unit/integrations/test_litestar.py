"""A scheduler lives as long as a Litestar application, inside of the application's lifespans, and is a dependency by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from litestar import Litestar, Request, get, websocket
from litestar.connection import ASGIConnection, WebSocket
from litestar.di import NamedDependency
from litestar.exceptions import ImproperlyConfiguredException
from litestar.handlers import BaseRouteHandler
from litestar.testing import TestClient

from asyncsched import DefinitionError, Scheduler
from asyncsched.integrations.litestar import SchedulerPlugin, get_scheduler


@get("/")
async def show(scheduler: NamedDependency[Scheduler]) -> str:
    return f"{scheduler.id} {scheduler.state}"


def asked_of_a_guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    connection.state.found = get_scheduler(connection).id


@get("/guarded", guards=[asked_of_a_guard])
async def guarded(request: Request[Any, Any, Any]) -> str:
    return str(request.state.found)


@websocket("/socket")
async def tell(socket: WebSocket[Any, Any, Any], scheduler: NamedDependency[Scheduler]) -> None:
    await socket.accept()
    await socket.send_text(scheduler.id)
    await socket.close()


def test_the_scheduler_runs_while_the_application_does_and_is_a_dependency() -> None:
    scheduler = Scheduler(id="web")
    app = Litestar([show, guarded, tell], plugins=[SchedulerPlugin(scheduler)])
    with TestClient(app) as client:
        assert client.get("/").text == "web running"
        assert client.get("/guarded").text == "web"
        with client.websocket_connect("/socket") as socket:
            assert socket.receive_text() == "web"
    assert scheduler.state == "stopped"


def test_the_dependency_has_the_name_that_it_is_given() -> None:
    @get("/")
    async def show(jobs: NamedDependency[Scheduler]) -> str:
        return jobs.id

    app = Litestar([show], plugins=[SchedulerPlugin(Scheduler(id="web"), dependency="jobs")])
    with TestClient(app) as client:
        assert client.get("/").text == "web"


def test_lifespans_of_the_application_go_around_and_its_hooks_find_the_scheduler_running() -> None:
    scheduler = Scheduler()
    told: list[tuple[str, str]] = []

    @asynccontextmanager
    async def around(app: Litestar) -> AsyncIterator[None]:
        told.append(("around", scheduler.state))
        yield
        told.append(("around", scheduler.state))

    async def on_startup() -> None:
        told.append(("on_startup", scheduler.state))

    async def on_shutdown() -> None:
        told.append(("on_shutdown", scheduler.state))

    app = Litestar(
        plugins=[SchedulerPlugin(scheduler)],
        lifespan=[around],
        on_startup=[on_startup],
        on_shutdown=[on_shutdown],
    )
    with TestClient(app):
        pass
    assert told == [
        ("around", "stopped"), ("on_startup", "running"), ("around", "stopped"), ("on_shutdown", "stopped"),
    ]  # fmt: skip


def test_an_application_without_a_scheduler_says_how_to_attach_one() -> None:
    with TestClient(Litestar([guarded], debug=True)) as client:
        answer = client.get("/guarded")
    assert answer.status_code == 500
    assert "no scheduler is attached to this application: give it plugins=[SchedulerPlugin(" in answer.text


def test_a_handler_that_wants_a_scheduler_where_there_is_none_is_refused_at_once() -> None:
    with pytest.raises(ImproperlyConfiguredException, match="dependency 'scheduler'"):
        Litestar([show])


def test_a_dependency_of_that_name_is_not_replaced_in_silence() -> None:
    with pytest.raises(DefinitionError, match=r"dependency 'scheduler' already: .*dependency=\.\.\."):
        Litestar(plugins=[SchedulerPlugin(Scheduler())], dependencies={"scheduler": show_nothing})


async def show_nothing() -> None: ...


@pytest.mark.parametrize("drain", [-1, timedelta(seconds=-1), "30"])
def test_a_drain_that_cannot_be_is_refused_at_once(drain: Any) -> None:
    with pytest.raises(DefinitionError, match="drain must be"):
        SchedulerPlugin(Scheduler(), drain=drain)
