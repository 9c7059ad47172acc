"""A scheduler in a FastAPI application: that of Starlette, and a dependency."""

from __future__ import annotations

from typing import Annotated

from asyncsched import MissingExtra, Scheduler

try:
    from fastapi import Depends
except ImportError as error:
    raise MissingExtra("this integration needs fastapi: pip install fastapi") from error

from asyncsched.integrations.starlette import attach, get_scheduler, healthz, lifespan

__all__ = ["SchedulerDep", "attach", "get_scheduler", "healthz", "lifespan"]

#: The scheduler as a parameter of an endpoint: ``async def f(scheduler: SchedulerDep)``.
SchedulerDep = Annotated[Scheduler, Depends(get_scheduler)]
