"""A Litestar application with a scheduler: ``uvicorn tests.integration.web.litestar_app:app``."""

from __future__ import annotations

from litestar import Litestar, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from asyncsched import Scheduler
from asyncsched.integrations.litestar import SchedulerPlugin, healthz
from tests.integration.web import jobs


@post("/jobs/{id:str}")
async def add(
    id: FromPath[str], file: FromQuery[str], scheduler: NamedDependency[Scheduler]
) -> dict[str, str]:
    return await jobs.add(scheduler, id, file)


@get("/jobs/{id:str}")
async def show(id: FromPath[str], scheduler: NamedDependency[Scheduler]) -> dict[str, str]:
    return await jobs.outcome(scheduler, id)


app = Litestar(
    [add, show, healthz()],
    lifespan=[jobs.resources],
    plugins=[SchedulerPlugin(jobs.scheduler, drain=jobs.DRAIN_S)],
)
