"""A FastAPI application with a scheduler: ``uvicorn tests.integration.web.fastapi_app:app``."""

from __future__ import annotations

from fastapi import FastAPI

from asyncsched.integrations.fastapi import SchedulerDep, healthz, lifespan
from tests.integration.web import jobs

app = FastAPI(lifespan=lifespan(jobs.scheduler, around=jobs.resources, drain=jobs.DRAIN_S))
app.add_api_route("/healthz", healthz())


@app.post("/jobs/{id}")
async def add(id: str, file: str, scheduler: SchedulerDep) -> dict[str, str]:
    return await jobs.add(scheduler, id, file)


@app.get("/jobs/{id}")
async def show(id: str, scheduler: SchedulerDep) -> dict[str, str]:
    return await jobs.outcome(scheduler, id)
