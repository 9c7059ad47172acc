"""Tells listeners which jobs become unhealthy and which recover. It costs nothing while nobody listens for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asyncsched.contract import Filter, JobStore, Record
from asyncsched.definition import Definition, Policies
from asyncsched.events import Bus, JobHealthy, JobUnhealthy
from asyncsched.health import FAILURES, Health, HealthRule, Reason, health_of
from asyncsched.ids import base_id, queue_mark
from asyncsched.plan import Ended, Start
from asyncsched.rules import Rules
from asyncsched.units import to_datetime

__all__ = ["Watch"]

#: Of the jobs that are due first, so many are looked at with each heartbeat; and so many of those that were told.
_LOOKED = 100
#: So many are remembered.
_TOLD = 1000
#: What is put off for want of its task comes back within so many seconds.
_PUT_OFF_S = 40.0


class Watch:
    """What one instance has told of the health of the jobs of one store."""

    def __init__(
        self,
        bus: Bus,
        alias: str,
        now: Callable[[], float],
        rule: HealthRule,
        rules: Callable[[Policies], Rules],
    ) -> None:
        self._bus = bus
        self._alias = alias
        self._now = now
        self._rule = rule
        self._rules = rules
        #: By job id: what was told last. The one that was looked at last stands last.
        self._told: dict[str, JobUnhealthy] = {}
        #: Of overlapping jobs, whose runs leave no count with the job: failures in a row, in this instance.
        self._rows: dict[str, int] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether anybody listens for this."""
        bus = self._bus
        return bool(bus.subscriptions) and (bus.wants(JobUnhealthy) or bus.wants(JobHealthy))

    # -- as runs end ---------------------------------------------------------------------------------------------------

    def ended(self, record: Record, definition: Definition, start: Start, end: Ended) -> None:
        """A run's end was written."""
        if end.again_at is not None or end.skip is not None:
            return
        is_child = "#" in record.id
        id = base_id(record.id)
        before = self._rows.get(id, 0) if is_child else start.cursor.tally.consecutive_failures
        if end.outcome == "succeeded":
            self._rows.pop(id, None)
            if (before >= self._rule.failures or id in self._told) and self.is_wanted:
                self._recovered(id, record, definition)
            return
        if end.outcome not in FAILURES:
            return
        after = before + 1
        if is_child:
            self._rows.pop(id, None)
            if len(self._rows) >= _TOLD:
                # The one that has failed least lately: it may be gone.
                del self._rows[next(iter(self._rows))]
            self._rows[id] = after
        reasons = self._reasons(definition, end, after, is_child)
        if reasons and self.is_wanted:
            self._unhealthy(id, record, definition, reasons, after, error=end.error)

    def quarantined(self, record: Record, error: str) -> None:
        """It was put out of the way."""
        if self.is_wanted:
            self._unhealthy(base_id(record.id), record, None, ("quarantined",), 0, error=error)

    def _reasons(
        self, definition: Definition, end: Ended, failures: int, is_child: bool
    ) -> tuple[Reason, ...]:
        found: list[Reason] = []
        is_exhausted = end.outcome != "lost" and end.retry_in is None and not is_child
        if is_exhausted and not definition.trigger.recurs and end.on_exhausted == "keep":
            found.append("failed")
        elif is_exhausted and (end.on_exhausted == "pause" or self._rests(definition, failures)):
            found.append("resting")
        if failures == self._rule.failures:
            found.append("failing")
        return tuple(found)

    def _rests(self, definition: Definition, failures: int) -> bool:
        limit = self._rules(definition.policies).pause_after_failures
        return limit is not None and failures >= limit and definition.trigger.recurs

    # -- as time passes ------------------------------------------------------------------------------------------------

    async def look(self, store: JobStore) -> None:
        """Look for jobs that are overdue, in one bounded query, and one for their queues; and in one more, whether what was told
        has passed."""
        if not self.is_wanted:
            return
        now = self._now()
        late: list[tuple[Record, Health]] = []
        for record in await store.page(Filter(hold=""), _LOOKED):
            if record.wake_at is None or record.wake_at > now + _PUT_OFF_S:
                break
            if "#" not in record.id and record.id not in self._told:
                health = self._health(record, now)
                if "overdue" in health.reasons:
                    late.append((record, health))
        marks = sorted({queue_mark(record.queue) for record, _ in late})
        paused = await store.get(marks) if marks else {}
        for record, health in late:
            if health.reasons != ("overdue",) or queue_mark(record.queue) not in paused:
                self._unhealthy(record.id, record, None, health.reasons, health.consecutive_failures, health)
        await self._look_again(store, now)

    async def _look_again(self, store: JobStore, now: float) -> None:
        ids = list(self._told)[:_LOOKED]
        if not ids:
            return
        there = await store.get(ids)
        for id in ids:
            told = self._told.pop(id, None)
            if told is None:
                # Its run has ended meanwhile.
                continue
            record = there.get(id)
            if record is None or not self._is_unhealthy(record, now):
                self._emit_healthy(told)
            else:
                self._told[id] = told

    def _is_unhealthy(self, record: Record, now: float) -> bool:
        if self._rows.get(record.id, 0) >= self._rule.failures:
            return True
        return self._health(record, now).is_unhealthy

    def _health(self, record: Record, now: float) -> Health:
        return health_of(record, self._alias, now, self._rules, self._rule)

    # -- telling -------------------------------------------------------------------------------------------------------

    def _unhealthy(
        self,
        id: str,
        record: Record,
        definition: Definition | None,
        reasons: Sequence[Reason],
        failures: int,
        health: Health | None = None,
        error: str | None = None,
    ) -> None:
        is_new = id not in self._told
        late_by = None if health is None or health.late_by is None else health.late_by.total_seconds()
        event = JobUnhealthy(
            **self._fields(id, record, definition),
            error=error if health is None else health.last_error,
            reasons=tuple(reasons),
            consecutive_failures=failures,
            late_by=late_by,
        )
        if is_new:
            if len(self._told) >= _TOLD:
                del self._told[next(iter(self._told))]
            self._told[id] = event
            self._bus.emit(event)

    def _recovered(self, id: str, record: Record, definition: Definition) -> None:
        self._told.pop(id, None)
        self._bus.emit(JobHealthy(**self._fields(id, record, definition)))

    def _emit_healthy(self, told: JobUnhealthy) -> None:
        self._bus.emit(
            JobHealthy(
                at=to_datetime(self._now()),
                store=told.store,
                job_id=told.job_id,
                task=told.task,
                name=told.name,
                queue=told.queue,
                tags=told.tags,
            )
        )

    def _fields(self, id: str, record: Record, definition: Definition | None) -> dict[str, Any]:
        return {
            "at": to_datetime(self._now()),
            "store": self._alias,
            "job_id": id,
            "task": record.task,
            "name": record.task if definition is None or definition.name is None else definition.name,
            "queue": record.queue,
            "tags": () if definition is None else definition.tags,
        }
