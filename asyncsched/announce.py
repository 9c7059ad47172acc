"""A worker's events. Each method costs nothing while nobody listens; the caller looks first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asyncsched.contract import Record, Settled
from asyncsched.definition import Definition
from asyncsched.events import (
    Bus,
    JobExhausted,
    JobHandedBack,
    JobLimited,
    JobQuarantined,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunLost,
    RunSkipped,
    RunStarted,
    RunSucceeded,
    RunTimedOut,
)
from asyncsched.execution import Execution
from asyncsched.ids import base_id
from asyncsched.model import Outcome
from asyncsched.plan import Span
from asyncsched.units import to_datetime
from asyncsched.watch import Watch

__all__ = ["Announcer"]

_FINISHED: dict[Outcome, type[RunFinished]] = {
    "succeeded": RunSucceeded,
    "failed": RunFailed,
    "timed_out": RunTimedOut,
    "cancelled": RunCancelled,
    "lost": RunLost,
}


class Announcer:
    """Tells a scheduler's listeners what a worker does."""

    def __init__(self, bus: Bus, alias: str, now: Callable[[], float], watch: Watch) -> None:
        self._bus = bus
        self._alias = alias
        self._now = now
        self._watch = watch

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens to anything."""
        return bool(self._bus.subscriptions)

    def started(self, execution: Execution) -> None:
        self._bus.emit(RunStarted(**self._run_fields(execution)))

    def settled(self, execution: Execution, answer: Settled) -> None:
        end = execution.end
        assert end is not None
        if answer == "lost":
            self.lost(execution)
            return
        if end.skip is not None:
            # RunSkipped has been told.
            return
        self._finished(execution, end.outcome)
        if end.outcome in ("failed", "timed_out") and end.retry_in is None and end.again_at is None:
            self._job(JobExhausted, execution.record, end.error, execution.definition)
        if answer in ("done", "stale"):
            self._watch.ended(execution.record, execution.definition, execution.start, end)

    def lost(self, execution: Execution) -> None:
        self._finished(execution, "lost")

    def skipped(self, record: Record, definition: Definition, spans: Sequence[Span]) -> None:
        for span in spans:
            self._bus.emit(
                RunSkipped(
                    **self._job_fields(record, definition),
                    fire_time=to_datetime(span.first),
                    reason=span.reason,
                    count=span.count,
                )
            )

    def handed_back(self, record: Record, reason: str) -> None:
        self._job(JobHandedBack, record, reason)

    def limited(self, record: Record, definition: Definition, limit: str, until: float | None) -> None:
        at = None if until is None else to_datetime(until)
        self._bus.emit(JobLimited(**self._job_fields(record, definition), limit=limit, until=at))

    def quarantined(self, record: Record, reason: str) -> None:
        self._job(JobQuarantined, record, reason)
        self._watch.quarantined(record, reason)

    def _finished(self, execution: Execution, outcome: Outcome) -> None:
        end = execution.end
        event = _FINISHED[outcome](
            **self._run_fields(execution),
            outcome=outcome,
            duration=0.0 if end is None else end.finished - end.started,
            error=None if end is None else end.error,
            result=execution.result,
        )
        self._bus.emit(event)

    def _job(
        self,
        kind: type[JobHandedBack | JobQuarantined | JobExhausted],
        record: Record,
        error: str | None,
        definition: Definition | None = None,
    ) -> None:
        self._bus.emit(kind(**self._job_fields(record, definition), error=error))

    def _run_fields(self, execution: Execution) -> dict[str, Any]:
        return self._job_fields(execution.record, execution.definition) | {
            "fire_time": to_datetime(execution.start.fire),
            "attempt": execution.start.attempt,
            "fence": execution.record.fence,
        }

    def _job_fields(self, record: Record, definition: Definition | None) -> dict[str, Any]:
        return {
            "at": to_datetime(self._now()),
            "store": self._alias,
            "job_id": base_id(record.id),
            "task": record.task,
            "name": record.task if definition is None or definition.name is None else definition.name,
            "queue": record.queue,
            "tags": () if definition is None else definition.tags,
        }
