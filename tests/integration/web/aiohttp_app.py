"""An aiohttp application with a scheduler: ``python -m tests.integration.web.aiohttp_app PORT``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

from aiohttp import web

from asyncsched.integrations.aiohttp import cleanup_ctx, get_scheduler, healthz
from tests.integration.web import jobs


async def add(request: web.Request) -> web.Response:
    file = request.query["file"]
    return web.json_response(await jobs.add(get_scheduler(request), request.match_info["id"], file))


async def show(request: web.Request) -> web.Response:
    return web.json_response(await jobs.outcome(get_scheduler(request), request.match_info["id"]))


async def resources(app: web.Application) -> AsyncIterator[None]:
    async with jobs.resources(app):
        yield


app = web.Application()
app.cleanup_ctx.append(resources)
app.cleanup_ctx.append(cleanup_ctx(jobs.scheduler, drain=jobs.DRAIN_S))
app.router.add_post("/jobs/{id}", add)
app.router.add_get("/jobs/{id}", show)
app.router.add_get("/healthz", healthz())

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
