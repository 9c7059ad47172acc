"""The run that is under way, as its task and the middleware see it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Protocol

from asyncsched.clock import Clock, Timer
from asyncsched.errors import NoCurrentRun
from asyncsched.execution import CURRENT, Execution, Reason
from asyncsched.flows import CurrentWorkflow, workflow_of
from asyncsched.ids import base_id
from asyncsched.triggers import Within
from asyncsched.units import Duration, to_datetime, to_seconds

__all__ = ["CallNext", "CurrentRun", "Middleware", "current_run"]


class CurrentRun:
    """The run that is under way, as its task sees it."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None

    @property
    def id(self) -> str:
        """As that of :class:`Run`."""
        return f"{self._execution.record.id}@{self.fence}"

    @property
    def job_id(self) -> str:
        return base_id(self._execution.record.id)

    @property
    def name(self) -> str:
        """The job's name."""
        return self._execution.definition.name or self._execution.record.task

    @property
    def task(self) -> str:
        """The registered name of the task."""
        return self._execution.record.task

    @property
    def store(self) -> str:
        """The alias of the store that the job is kept in."""
        return self._execution.owner.alias

    @property
    def queue(self) -> str:
        return self._execution.record.queue

    @property
    def priority(self) -> int:
        return self._execution.record.priority

    @property
    def tags(self) -> tuple[str, ...]:
        return self._execution.definition.tags

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was annotated so far."""
        return dict(self._execution.annotations or {})

    @property
    def fire_time(self) -> datetime:
        """The nominal instant that the trigger named; retries keep it."""
        return to_datetime(self._execution.start.fire)

    @property
    def due_at(self) -> datetime:
        return to_datetime(self._execution.start.due)

    @property
    def started_at(self) -> datetime:
        return to_datetime(self._execution.started or self._execution.owner.now())

    @property
    def attempt(self) -> int:
        """1, 2, ... within one fire time."""
        return self._execution.start.attempt

    @property
    def fence(self) -> int:
        """Rises with each claim of this job: give it to whatever must refuse a predecessor that does not know it is one."""
        return self._execution.record.fence

    @property
    def instance(self) -> str:
        """The id of the scheduler that runs it."""
        return self._execution.host.instance

    @property
    def args(self) -> tuple[Any, ...]:
        return self._args()[0]

    @property
    def kwargs(self) -> Mapping[str, Any]:
        return self._args()[1]

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt at this fire time, and for no other."""
        execution = self._execution
        request = f"r{execution.start.request}" if execution.start.request else "s"
        id, birth, trigger = (
            base_id(execution.record.id),
            execution.record.birth,
            execution.definition.trigger,
        )
        if isinstance(trigger, Within) and trigger.birth and not execution.start.request:
            # It makes up for the run that the job itself would have made.
            id, birth = trigger.of, trigger.birth
        return f"{id}:{birth}:{request}:{round(execution.start.fire * 1e6)}"

    @property
    def backfill_of(self) -> str | None:
        """The id of the job to whose fire time this run belongs, where it is one of a backfill; else None."""
        trigger = self._execution.definition.trigger
        return trigger.of if isinstance(trigger, Within) else None

    @property
    def scheduler(self) -> Any:
        """The scheduler that runs it."""
        return self._execution.host.scheduler

    @property
    def workflow(self) -> CurrentWorkflow | None:
        """The workflow that it is a step of, and how the steps before it ended; None: it is no step."""
        return workflow_of(self._execution.definition, self._execution.host.load)

    @property
    def carried(self) -> Any:
        """What the last run carried over with ``Carry``; None when there is nothing."""
        carried = self._execution.start.cursor.carried
        return self._execution.host.load(carried) if carried else None

    @property
    def cancelled(self) -> bool:
        """Whether it has been asked to stop; a task in a thread should look at this now and then."""
        return self._execution.reason is not None

    @property
    def cancel_reason(self) -> Reason | None:
        """Why it was asked to stop: timeout, shutdown, lost, cancel, overlap or limit; None: it was not."""
        return self._execution.reason

    @property
    def abandoned(self) -> bool:
        """Whether it was given up, since it did not stop when it was asked to: what it still does counts for nothing."""
        return self._execution.is_abandoned

    @property
    def clock(self) -> Clock:
        """What the scheduler measures time by: ``await current_run().clock.sleep(5)`` follows a ManualClock in tests."""
        return self._execution.host.clock

    def now(self) -> datetime:
        """The clock of the store that keeps the job; every instant of the job is by it."""
        return to_datetime(self._execution.owner.now())

    def time_out_after(self, seconds: Duration) -> Timer:
        """Time the run out if it has not ended by then, as its own ``timeout`` would; cancel the timer to take that back."""
        execution, limit_s = self._execution, to_seconds(seconds, "seconds")
        when = execution.host.clock.monotonic() + limit_s
        return execution.host.clock.call_at(when, lambda: execution.time_out(limit_s))

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry job_id, task, attempt and fence."""
        extra = {"job_id": self.job_id, "task": self.task, "attempt": self.attempt, "fence": self.fence}
        return logging.LoggerAdapter(self._execution.host.logger, extra)

    @asynccontextmanager
    async def commit(self, connection: object, *, result: Any = None) -> AsyncIterator[None]:
        """Make the effect of the run and its completion one: both are in the transaction of *connection*, or neither is.

        ::

            async with pool.acquire() as connection, connection.transaction():
                async with current_run().commit(connection):
                    await connection.execute("INSERT ...")

        On leaving the block the run is settled as succeeded, with *result*, as the last write there. The transaction is the
        user's to commit; where none is open on *connection*, the block begins one and commits it. An exception within the block
        settles nothing. Raises LeaseLost, which rolls the transaction back, where another instance holds the job meanwhile.
        What comes after the commit should be short and must not fail: it cannot change how the run ended.

        *connection* belongs to the database that keeps the job: the driver's, or an AsyncConnection or AsyncSession of
        SQLAlchemy. Raises DefinitionError where the store is not in such a database, and for a second block in a run unless
        the transaction of the first one was rolled back.
        """
        execution = self._execution
        async with execution.owner.commit(execution, connection):
            execution.offered = result
            yield

    def annotate(self, **values: Any) -> None:
        """Add to the metadata that history keeps of this run."""
        execution = self._execution
        for key, value in values.items():
            execution.host.dump(value, f"annotate({key}=)")
        execution.annotations = {**(execution.annotations or {}), **values}

    def __repr__(self) -> str:
        return f"<CurrentRun {self.id} of {self.task}, attempt {self.attempt}>"

    def _args(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if self._arguments is None:
            self._arguments = self._execution.arguments()
        return self._arguments


class CallNext(Protocol):
    """The rest of the middleware and the task itself; returns the task's result."""

    def __call__(self, run: CurrentRun | None = None, /) -> Awaitable[Any]: ...


#: ``async def m(run, call_next)``: what surrounds the runs of a scheduler.
Middleware = Callable[[CurrentRun, CallNext], Awaitable[Any]]


def current_run() -> CurrentRun:
    """The run that this code is part of; raises NoCurrentRun outside of one."""
    execution = CURRENT.get(None)
    if execution is None:
        raise NoCurrentRun(
            "current_run() was called outside of a run; only a task that the scheduler runs has one"
        )
    run: CurrentRun = execution.facade()
    return run
