"""A Starlette application with a scheduler: ``uvicorn tests.integration.web.starlette_app:app``."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asyncsched.integrations.starlette import get_scheduler, healthz, lifespan
from tests.integration.web import jobs


async def add(request: Request) -> JSONResponse:
    file = request.query_params["file"]
    return JSONResponse(await jobs.add(get_scheduler(request), request.path_params["id"], file))


async def show(request: Request) -> JSONResponse:
    return JSONResponse(await jobs.outcome(get_scheduler(request), request.path_params["id"]))


app = Starlette(
    routes=[
        Route("/jobs/{id}", add, methods=["POST"]),
        Route("/jobs/{id}", show),
        Route("/healthz", healthz()),
    ],
    lifespan=lifespan(jobs.scheduler, around=jobs.resources, drain=jobs.DRAIN_S),
)
