"""How the integrations are used and what their types come out as: read by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, assert_type

from aiohttp import web
from fastapi import Depends, FastAPI
from litestar import Litestar
from litestar.connection import ASGIConnection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.websockets import WebSocket

from asyncsched import Scheduler
from asyncsched.integrations import aiohttp as in_aiohttp
from asyncsched.integrations import litestar as in_litestar
from asyncsched.integrations.fastapi import SchedulerDep
from asyncsched.integrations.starlette import attach, get_scheduler, lifespan

scheduler = Scheduler()


@asynccontextmanager
async def with_state(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
    yield {"pool": "open"}


@asynccontextmanager
async def without_state(app: Starlette) -> AsyncIterator[None]:
    yield


async def not_decorated(app: Starlette) -> AsyncIterator[None]:
    yield


FastAPI(lifespan=lifespan(scheduler))
Starlette(lifespan=lifespan(scheduler, drain=timedelta(seconds=5)))
api = FastAPI(lifespan=lifespan(scheduler, around=with_state, within=without_state, drain=5))
attach(api, scheduler)
lifespan("scheduler")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
lifespan(scheduler, around=not_decorated)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def endpoint(
    first: SchedulerDep,
    second: Annotated[Scheduler, Depends(get_scheduler)],
    request: Request,
    socket: WebSocket,
) -> None:
    assert_type(first, Scheduler)
    assert_type(second, Scheduler)
    assert_type(get_scheduler(request), Scheduler)
    assert_type(get_scheduler(socket), Scheduler)


Litestar(plugins=[in_litestar.SchedulerPlugin(scheduler, dependency="jobs", drain=5)])


def guard(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    assert_type(in_litestar.get_scheduler(connection), Scheduler)


app = web.Application()
app.cleanup_ctx.append(in_aiohttp.cleanup_ctx(scheduler, drain=5))
assert_type(app[in_aiohttp.SCHEDULER], Scheduler)


async def handler(request: web.Request) -> web.Response:
    assert_type(in_aiohttp.get_scheduler(request), Scheduler)
    return web.Response()
