"""Health checks over HTTP: ready or not, alive, and no more told than is asked for; the same in each framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fastapi import FastAPI
from litestar import Litestar
from starlette.applications import Starlette
from starlette.routing import Route

from asyncsched import DefinitionError, MemoryStore, Scheduler
from asyncsched.integrations import aiohttp, fastapi, litestar, starlette
from tests.support.faulty import FaultyStore

pytestmark = pytest.mark.anyio

Answer = tuple[int, dict[str, Any]]


async def of_asgi(app: Any, path: str) -> Answer:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.get(path)
        assert answer.headers["cache-control"] == "no-store"
        return answer.status_code, answer.json()


async def of_starlette(scheduler: Scheduler, path: str, **options: Any) -> Answer:
    app = Starlette(routes=[Route(path, starlette.healthz(**options))])
    starlette.attach(app, scheduler)
    return await of_asgi(app, path)


async def of_fastapi(scheduler: Scheduler, path: str, **options: Any) -> Answer:
    app = FastAPI()
    app.add_api_route(path, fastapi.healthz(**options))
    fastapi.attach(app, scheduler)
    return await of_asgi(app, path)


async def of_litestar(scheduler: Scheduler, path: str, **options: Any) -> Answer:
    plugin = litestar.SchedulerPlugin(scheduler)
    return await of_asgi(Litestar([litestar.healthz(path, **options)], plugins=[plugin]), path)


async def of_aiohttp(scheduler: Scheduler, path: str, **options: Any) -> Answer:
    app = web.Application()
    app[aiohttp.SCHEDULER] = scheduler
    app.router.add_get(path, aiohttp.healthz(**options))
    async with TestClient(TestServer(app)) as client, client.get(path) as answer:
        assert answer.headers["cache-control"] == "no-store"
        return answer.status, await answer.json()


FRAMEWORKS = [of_starlette, of_fastapi, of_litestar, of_aiohttp]
Ask = Callable[..., Any]


@pytest.mark.parametrize("ask", FRAMEWORKS)
async def test_a_scheduler_in_order_is_ready(ask: Ask) -> None:
    async with Scheduler(id="web") as scheduler:
        status, shown = await ask(scheduler, "/healthz")
    assert (status, shown["ok"], shown["instance"], shown["problems"]) == (200, True, "web", [])
    assert [store["name"] for store in shown["stores"]] == ["default"]


@pytest.mark.parametrize("ask", FRAMEWORKS)
async def test_one_whose_store_is_away_is_not_ready_and_alive(ask: Ask) -> None:
    store = FaultyStore(MemoryStore())
    async with Scheduler(store) as scheduler:
        store.faults.go_away()
        status, shown = await ask(scheduler, "/healthz")
        assert (status, shown["ok"]) == (503, False)
        assert await ask(scheduler, "/healthz", details=False) == (503, {"ok": False})
        assert await ask(scheduler, "/livez", live=True) == (200, {"ok": True})
        store.faults.come_back()


@pytest.mark.parametrize("ask", FRAMEWORKS)
async def test_one_that_is_stopped_is_not_ready(ask: Ask) -> None:
    status, shown = await ask(Scheduler(), "/healthz", timeout=1, max_lag=60)
    assert (status, shown["state"]) == (503, "stopped")


@pytest.mark.parametrize("make", [starlette.healthz, litestar.healthz, aiohttp.healthz])
@pytest.mark.parametrize("options", [{"timeout": 0}, {"max_lag": -1}])
async def test_what_is_no_duration_is_refused_when_the_check_is_made(
    make: Callable[..., Any], options: dict[str, Any]
) -> None:
    with pytest.raises(DefinitionError):
        make(**options)
