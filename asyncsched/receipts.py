"""What ``enqueue`` and ``run_job`` give: the run that was asked for, and how it ended."""

from __future__ import annotations

import builtins
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from asyncsched.errors import (
    DefinitionError,
    JobNotRunning,
    RunLookupError,
    RunTimeout,
    SerializationError,
    TaskFailed,
)
from asyncsched.jobs import Standing
from asyncsched.model import Job, Run
from asyncsched.units import Duration

__all__ = ["Receipt"]


class _Calls(Protocol):
    """The scheduler's, as far as receipts need them."""

    @property
    def keeps_history(self) -> bool: ...

    async def wait_job(
        self,
        id: str,
        timeout: Duration | None = None,
        *,
        store: str | None = None,
        fire_time: datetime | None = None,
    ) -> Job | None: ...

    async def cancel_run(self, run_id: str, *, store: str | None = None) -> None: ...

    async def runs_at(self, job_id: str, fire_time: datetime, *, is_asked: bool = False) -> list[Run]: ...

    async def pause_job(self, id: str, *, store: str | None = None) -> Job: ...

    async def remove_job(self, id: str, missing_ok: bool = False, *, store: str | None = None) -> bool: ...

    async def standing(self, job_id: str, fire_time: datetime, *, store: str | None = None) -> Standing: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A run that was asked for. It can be had again, in another process too, by ``scheduler.receipt(job_id, fire_time)``."""

    job_id: str
    store: str
    task: str
    #: The fire time of the run, by which it is found in the history.
    fire_time: datetime = field(compare=False)
    _calls: _Calls = field(repr=False, compare=False)

    async def result(self, timeout: Duration | None = None) -> Any:
        """Wait for the run, its retries included, and return what the task did.

        If it failed, the task's error is raised: as it was where it is one of Python's own exceptions with a text, but not
        TimeoutError; RunTimeout for a run that took too long, else TaskFailed, which names the error. Raises TimeoutError after
        *timeout*, after which it may be called again; DefinitionError where history is off, which is where results are kept; and
        RunLookupError where the job was removed before it ran, or the history has forgotten its run (``retention=``).
        """
        if not self._calls.keeps_history:
            raise DefinitionError(
                f"the result of job {self.job_id!r} is not kept: this scheduler was made with history=False"
            )
        run = await self._ended(timeout)
        if run.outcome == "succeeded":
            return run.result
        raise _error_of(run)

    async def status(self) -> str:
        """``scheduled``, ``running``, or how the run ended (``succeeded``, ``failed``, ``timed_out``, ``cancelled``)."""
        _, status = await self._stands()
        return status

    async def cancel(self) -> bool:
        """End the run if it is under way, or see to it that it does not begin; False if it has ended already.

        A run of a recurring job that has not begun yet is not taken back, and neither is one that ``run_job`` asked for: cancel
        it once it runs.
        """
        standing, status = await self._stands()
        if standing is None or status not in ("running", "scheduled"):
            return False
        if standing.run_id is not None:
            with suppress(JobNotRunning, LookupError):
                await self._calls.cancel_run(standing.run_id, store=self.store)
                return True
        standing, status = await self._stands()
        if standing is None or status != "scheduled" or standing.is_asked_for or standing.job.trigger.recurs:
            return False
        with suppress(LookupError):
            # So that nobody begins it between the look and the removal.
            await self._calls.pause_job(self.job_id, store=self.store)
        standing, status = await self._stands()
        if standing is None or status not in ("running", "scheduled"):
            return False
        if standing.run_id is not None:
            with suppress(JobNotRunning, LookupError):
                await self._calls.cancel_run(standing.run_id, store=self.store)
                return True
            # It has ended meanwhile. What may be left of it is a further attempt, which the pause must not keep for ever.
            if await self.status() != "scheduled":
                return False
        return await self._calls.remove_job(self.job_id, missing_ok=True, store=self.store)

    async def _stands(self) -> tuple[Standing | None, str]:
        """What the store says, None where the job is gone; and the status."""
        standing: Standing | None = None
        with suppress(LookupError):
            # Before the history: what has ended since is there.
            standing = await self._calls.standing(self.job_id, self.fire_time, store=self.store)
        found = await self._runs()
        if found and (found[0].outcome == "succeeded" or standing is None or not standing.is_tried_again):
            return standing, str(found[0].outcome)
        if standing is None:
            return None, "removed"
        return standing, "scheduled" if standing.run_id is None else "running"

    async def _ended(self, timeout: Duration | None) -> Run:
        await self._calls.wait_job(self.job_id, timeout, store=self.store, fire_time=self.fire_time)
        found = await self._runs()
        if not found:
            raise RunLookupError(
                f"there is no run of job {self.job_id!r} for {self.fire_time.isoformat()}: the job was removed before, or the "
                "history has forgotten it (retention=)",
                job_id=self.job_id,
            )
        return found[0]

    async def _runs(self) -> list[Run]:
        """The attempts that have ended, the last one first; raises SerializationError where the history cannot tell how."""
        found = await self._calls.runs_at(self.job_id, self.fire_time, is_asked=True)
        if found and found[0].outcome is None:
            raise SerializationError(f"how run {found[0].id!r} has ended is not known: {found[0].error}")
        return found


def _error_of(run: Run) -> Exception:
    """Made of a name and a text only: nothing is imported, and no code but that of Python's own exceptions is run."""
    text = run.error or str(run.outcome)
    if run.outcome == "timed_out":
        return RunTimeout(text.removeprefix("RunTimeout: "), job_id=run.job_id, task=run.task)
    name, _, message = text.partition(": ")
    kind = getattr(builtins, name, None)
    # Told of a TimeoutError, whoever waits would think that the run goes on.
    if (
        run.outcome == "failed"
        and isinstance(kind, type)
        and issubclass(kind, Exception)
        and kind is not TimeoutError
    ):
        with suppress(TypeError):
            return kind(message)
    return TaskFailed(text, job_id=run.job_id, task=run.task, run=run)
