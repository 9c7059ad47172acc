"""A scheduler lives as long as an aiohttp application, and its requests find it there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from asyncsched import DefinitionError, NoScheduler, Scheduler
from asyncsched.integrations.aiohttp import SCHEDULER, cleanup_ctx, get_scheduler

pytestmark = pytest.mark.anyio


async def show(request: web.Request) -> web.Response:
    try:
        scheduler = get_scheduler(request)
    except NoScheduler as error:
        return web.Response(text=str(error))
    return web.Response(text=f"{scheduler.id} {scheduler.state}")


def make_app(scheduler: Scheduler | None) -> web.Application:
    app = web.Application()
    app.router.add_get("/", show)
    if scheduler is not None:
        app.cleanup_ctx.append(cleanup_ctx(scheduler))
    return app


async def asked(app: web.Application, path: str = "/") -> str:
    async with TestClient(TestServer(app)) as client, client.get(path) as answer:
        return await answer.text()


async def test_the_scheduler_runs_while_the_application_does() -> None:
    scheduler = Scheduler(id="web")
    app = make_app(scheduler)
    assert await asked(app) == "web running"
    assert app[SCHEDULER] is scheduler
    assert scheduler.state == "stopped"


async def test_a_sub_application_finds_the_scheduler_of_the_one_above() -> None:
    app = make_app(Scheduler(id="web"))
    app.add_subapp("/inner", make_app(None))
    assert await asked(app, "/inner/") == "web running"


async def test_a_sub_application_may_have_its_own() -> None:
    app = make_app(Scheduler(id="web"))
    app.add_subapp("/inner", make_app(Scheduler(id="inner")))
    assert await asked(app, "/inner/") == "inner running"
    assert await asked_again(app) == "stopped"


async def asked_again(app: web.Application) -> str:
    return app[SCHEDULER].state


async def test_contexts_before_it_are_left_after_it() -> None:
    scheduler = Scheduler()
    told: list[str] = []

    async def own(app: web.Application) -> AsyncIterator[None]:
        told.append(scheduler.state)
        yield
        told.append(scheduler.state)

    app = web.Application()
    app.cleanup_ctx.extend([own, cleanup_ctx(scheduler), own])
    async with TestServer(app):
        pass
    assert told == ["stopped", "running", "running", "stopped"]


async def test_an_application_without_a_scheduler_says_how_to_attach_one() -> None:
    said = await asked(make_app(None))
    assert said.startswith(
        "no scheduler is attached to this application: app.cleanup_ctx.append(cleanup_ctx("
    )


@pytest.mark.parametrize("drain", [-1, timedelta(seconds=-1), "30"])
async def test_a_drain_that_cannot_be_is_refused_at_once(drain: Any) -> None:
    with pytest.raises(DefinitionError, match="drain must be"):
        cleanup_ctx(Scheduler(), drain=drain)
