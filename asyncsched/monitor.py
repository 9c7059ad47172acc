"""Health, rates and delays, computed from what the stores keep; and the instances that are alive."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from datetime import timedelta
from typing import Any, overload

import msgspec

from asyncsched.codec import decode_cursor, decode_definition, decode_run
from asyncsched.contract import Entry, Filter, JobStore, Record
from asyncsched.definition import RunForm
from asyncsched.desk import query_of
from asyncsched.engine import Engine
from asyncsched.errors import DefinitionError, SerializationError, UnknownStoreError
from asyncsched.health import FAILURES, Health, HealthRule, health_of, late_s
from asyncsched.ids import queue_mark
from asyncsched.instances import Instance, instance_from, instances_of
from asyncsched.model import Job, Outcome
from asyncsched.plan import synced
from asyncsched.registry import Task
from asyncsched.shelf import Query, Shelf
from asyncsched.summary import StoreSummary, Summary
from asyncsched.units import Duration, to_datetime, to_seconds
from asyncsched.version import VERSION

__all__ = ["Figures", "Monitor"]

_PAGE = 500
#: So many of the newest runs are looked at for figures, and so many of the records that are due first for those that are late.
MOST_RUNS = 10_000
_MOST_LOOKED = 2000
#: A summary counts no further.
_MOST_COUNTED = 100
#: What is put off for want of its task comes back within so many seconds.
_PUT_OFF_S = 40.0
#: Of one job that is due: is it behind?
_DUE = Filter(hold="")


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What became of some runs, and how long they took. Durations are seconds; what no run tells is None, never 0."""

    #: Those that succeeded, failed, timed out or were lost; cancelled ones count for nothing here.
    runs: int
    failed: int
    #: failed / runs.
    failure_rate: float | None
    #: Of the runs that ended by themselves: succeeded, failed or timed out.
    average_duration: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    longest: float | None
    #: There were more than 10,000 runs in the window: these are the newest.
    is_cut: bool = False


class Monitor:
    """``scheduler.monitor``: how jobs and instances are. It only reads, so a client can ask as well as a worker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # -- health --------------------------------------------------------------------------------------------------------

    @overload
    def health(
        self, job_id: str, *, rule: HealthRule | None = None, store: str | None = None
    ) -> Awaitable[Health]: ...

    @overload
    def health(
        self, job_id: None = None, *, rule: HealthRule | None = None, store: str | None = None, **filters: Any
    ) -> AsyncIterator[Health]: ...

    def health(
        self,
        job_id: str | None = None,
        *,
        rule: HealthRule | None = None,
        store: str | None = None,
        **filters: Any,
    ) -> Awaitable[Health] | AsyncIterator[Health]:
        """``await health("report")``: how that job is; raises JobLookupError. ``async for h in health()``: how each job is.

        By *rule*, or the scheduler's ``health=``. A job is *unhealthy* if it is quarantined, kept as failed, rests after
        failures, its last ``failures`` runs have failed, or it is overdue: due by its own schedule (jitter, retries and what
        was asked for included) for more than ``grace``, and neither running nor waiting for a limit. It is *degraded* if its
        last run failed, and *paused* if a user paused it or its queue.

        One job costs one query (two if it is overdue, and one more if its runs overlap, which are counted in the log). All jobs
        are read page by page, 500 in a query: that is for a report, not for every tick. *filters* are those of ``get_jobs``.
        """
        if rule is not None and not isinstance(rule, HealthRule):
            raise DefinitionError(f"health(rule=) takes a HealthRule, not {rule!r}")
        if job_id is None:
            return self._each_health(rule, store, filters)
        if filters:
            raise DefinitionError(f"health({job_id!r}) takes no filters: {', '.join(sorted(filters))}")
        return self._one_health(job_id, rule, store)

    async def _one_health(self, job_id: str, rule: HealthRule | None, store: str | None) -> Health:
        shelf, record = await self._engine.find(job_id, store)
        return await self._health_of(shelf, record, rule or self._engine.options.health, {})

    async def _each_health(
        self, rule: HealthRule | None, store: str | None, filters: dict[str, Any]
    ) -> AsyncIterator[Health]:
        unknown = set(filters) - set(Query.__struct_fields__)
        if unknown:
            known = ", ".join(Query.__struct_fields__)
            raise DefinitionError(f"unknown filter {', '.join(sorted(unknown))}; known: {known}")
        pauses: dict[str, bool] = {}
        for shelf in self._engine.some_shelves(store):
            async for record, _ in shelf.jobs(query_of(**filters)):
                yield await self._health_of(shelf, record, rule or self._engine.options.health, pauses)

    async def _health_of(
        self, shelf: Shelf, record: Record, rule: HealthRule, pauses: dict[str, bool]
    ) -> Health:
        """*pauses* remembers which queues are paused."""
        last = await self._outcomes(shelf.store, record, rule.failures)
        rules, now = self._engine.rules, self._now(shelf)
        health = health_of(record, shelf.alias, now, rules, rule, last=last)
        if health.reasons != ("overdue",):
            return health
        mark = queue_mark(record.queue)
        if mark not in pauses:
            pauses[mark] = bool(await shelf.store.get([mark]))
        return health_of(record, shelf.alias, now, rules, rule, last=last, is_queue_paused=pauses[mark])

    async def _outcomes(self, store: JobStore, record: Record, count: int) -> list[Outcome] | None:
        """The last outcomes of a job whose runs overlap: they are its children's, which leave nothing but the log."""
        try:
            if self._engine.rules(decode_definition(record.body).policies).overlap != "allow":
                return None
            found = await store.runs(record.id, ("run", "lost"), max(count, 20))
            return [decode_run(entry.body).outcome for entry in found]
        except SerializationError:
            return None

    # -- rates and durations -------------------------------------------------------------------------------------------

    async def figures(
        self,
        job_id: str | None = None,
        window: Duration | None = None,
        *,
        task: str | Task[..., Any] | None = None,
        store: str | None = None,
    ) -> Figures:
        """Rates and durations of the runs that ended within the last *window* (seconds or timedelta; None: all that the history
        keeps), of one job, of one task, or of all.

        Read from the log, 500 runs in a query and 10,000 at most; for a *task* all runs of the window are read, so ask for short
        windows. A job that is gone has the runs that the history keeps of it; one that nobody knows has none.
        """
        window_s = None if window is None else to_seconds(window, "window", positive=True)
        name = task.name if isinstance(task, Task) else task
        runs: list[RunForm] = []
        is_cut = False
        for shelf in self._engine.some_shelves(store):
            since = -math.inf if window_s is None else self._now(shelf) - window_s
            found, more = await _runs(shelf.store, job_id, since)
            is_cut = is_cut or more
            runs += (run for run in found if name is None or run.task == name)
        return _figures(runs, is_cut)

    async def failure_rate(
        self,
        job_id: str | None = None,
        window: Duration | None = None,
        *,
        task: str | Task[..., Any] | None = None,
        store: str | None = None,
    ) -> float | None:
        """Which share of the runs failed, timed out or was lost: 0 to 1, and None where there were no runs. See ``figures``."""
        return (await self.figures(job_id, window, task=task, store=store)).failure_rate

    async def average_duration(
        self,
        job_id: str | None = None,
        window: Duration | None = None,
        *,
        task: str | Task[..., Any] | None = None,
        store: str | None = None,
    ) -> float | None:
        """How many seconds a run took; None where there were no runs. See ``figures``."""
        return (await self.figures(job_id, window, task=task, store=store)).average_duration

    async def p95(
        self,
        job_id: str | None = None,
        window: Duration | None = None,
        *,
        task: str | Task[..., Any] | None = None,
        store: str | None = None,
    ) -> float | None:
        """Seconds within which 95 of 100 runs ended; None where there were no runs. See ``figures``."""
        return (await self.figures(job_id, window, task=task, store=store)).p95

    # -- delays --------------------------------------------------------------------------------------------------------

    async def lag(self, *, store: str | None = None, queue: str | None = None) -> timedelta:
        """How far behind the instances are: for how long the first of what is due has been so. Nothing if nothing is.

        What waits for a limit, is paused (or in a queue that is, for all instances) or is put off for want of its task does not
        count. One query for each store, for one record; one more if that is due, and a few where its queue is paused.
        """
        where = _DUE if queue is None else Filter(queue=queue, hold="")
        lags = [await self._lag_s(shelf, where) for shelf in self._engine.some_shelves(store)]
        return timedelta(seconds=max(lags, default=0.0))

    async def _lag_s(self, shelf: Shelf, where: Filter) -> float:
        pauses: dict[str, bool] = {}
        now = self._now(shelf)
        after: Record | None = None
        for size in (1, *[_PAGE] * (_MOST_LOOKED // _PAGE)):
            page = await shelf.store.page(where, size, after)
            due = [(r.wake_at, r.queue) for r in page if r.wake_at is not None and r.wake_at < now]
            await _look_at_queues(shelf.store, {queue for _, queue in due}, pauses)
            for wake_at, queue in due:
                if not pauses[queue]:
                    return now - wake_at
            if len(due) < size or where.queue is not None:
                break
            after = page[-1]
        return 0.0

    async def overdue(
        self,
        limit: int = 100,
        *,
        grace: Duration | None = None,
        store: str | None = None,
        queue: str | None = None,
    ) -> list[Job]:
        """Jobs that have been due for more than *grace* (of the scheduler's ``health=`` unless given), at most *limit* of each
        store, those first that wait for longest.

        Up to 2000 of what is due first are looked at, 500 in a query. Those in a queue that is paused for all instances are left
        out: nothing is expected of them.
        """
        _check_limit(limit)
        grace_s = self._engine.options.health.grace_s if grace is None else to_seconds(grace, "grace")
        found: list[tuple[float, Job]] = []
        for shelf in self._engine.some_shelves(store):
            found += await self._overdue(shelf, limit, grace_s, queue)
        found.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [job for _, job in found]

    async def _overdue(
        self, shelf: Shelf, limit: int, grace_s: float, queue: str | None
    ) -> list[tuple[float, Job]]:
        found: list[tuple[float, Job]] = []
        pauses: dict[str, bool] = {}
        now = self._now(shelf)
        after: Record | None = None
        for _ in range(_MOST_LOOKED // _PAGE):
            page = await shelf.store.page(Filter(queue=queue, hold=""), _PAGE, after)
            due = [r for r in page if r.wake_at is not None and r.wake_at <= now + _PUT_OFF_S]
            await _look_at_queues(shelf.store, {record.queue for record in due}, pauses)
            for record in due:
                if len(found) >= limit:
                    return found
                late = None if "#" in record.id or pauses[record.queue] else self._late_s(record, now)
                if late is not None and late > grace_s:
                    found.append((late, self._engine.composer.job(record, shelf.alias)))
            if len(due) < _PAGE:
                break
            after = page[-1]
        return found

    def _late_s(self, record: Record, now: float) -> float | None:
        try:
            definition = decode_definition(record.body)
            cursor = synced(definition, decode_cursor(record.cursor))
        except SerializationError:
            return None
        return late_s(record, definition, cursor, now, self._engine.rules(definition.policies))

    # -- instances -----------------------------------------------------------------------------------------------------

    async def instances(self, *, store: str | None = None, dead: bool = False) -> list[Instance]:
        """The instances that are alive, this one first, then by id: schedulers of all processes that use the store (of all
        stores, one row for each store that an instance uses).

        What they tell is as old as their last heartbeat; of this one it is fresh. With *dead* those are there too that were not
        seen for three of their heartbeats; they are forgotten after a day. One query for each store.
        """
        found: list[Instance] = []
        for shelf in self._engine.some_shelves(store):
            found += await self._instances(shelf)
        alive = [instance for instance in found if instance.is_alive or dead]
        return sorted(alive, key=lambda instance: (instance.id != self._engine.id, instance.id))

    async def _instances(self, shelf: Shelf) -> list[Instance]:
        now = self._now(shelf)
        found = await instances_of(shelf.store, shelf.alias, now)
        presence = self._engine.presences.get(shelf.alias)
        if presence is None:
            return found
        others = [instance for instance in found if instance.id != self._engine.id]
        return [instance_from(presence.record(), shelf.alias, now), *others]

    async def running(self, *, store: str | None = None) -> int:
        """How many runs are under way in all instances that are alive, as these told with their last heartbeats."""
        return sum(instance.running for instance in await self.instances(store=store))

    # -- all in all ----------------------------------------------------------------------------------------------------

    async def summary(self, *, timeout: Duration = 5, max_lag: Duration | None = None) -> Summary:
        """How this instance and its stores are, for a readiness check; it raises nothing, whatever is amiss.

        ``ok`` means that this scheduler takes calls (a paused one does), that its workers live, and that each of its stores
        answered within *timeout*; with *max_lag*, that what is due is not further behind, too. Jobs that are unhealthy are
        counted, and do not count: another instance would do no better with them. Five bounded queries for each store, and two
        more if something is due.
        """
        timeout_s = to_seconds(timeout, "timeout", positive=True)
        max_lag_s = None if max_lag is None else to_seconds(max_lag, "max_lag")
        engine = self._engine
        problems: list[str] = []
        stores: Sequence[StoreSummary] = ()
        if not engine.is_running:
            problems.append(f"the scheduler is {engine.state}")
        else:
            aliases = list(engine.shelves)
            looked = await asyncio.gather(*(self._summary_of(alias, timeout_s) for alias in aliases))
            stores = [found for found in looked if found is not None]
        for found in stores:
            if engine.is_failed(found.name):
                problems.append(f"the worker of store {found.name!r} has failed: it runs nothing")
            if not found.is_reached:
                problems.append(f"store {found.name!r} does not answer: {found.error}")
            elif max_lag_s is not None and found.lag > max_lag_s:
                problems.append(f"what is due in store {found.name!r} is {found.lag:.0f} s behind")
        return Summary(
            ok=not problems, problems=tuple(problems), state=engine.state, instance=engine.id, version=VERSION,
            at=to_datetime(engine.clock.time()), stores=tuple(stores),
        )  # fmt: skip

    async def _summary_of(self, alias: str, timeout_s: float) -> StoreSummary | None:
        try:
            return await asyncio.wait_for(self._look_at(alias), timeout_s)
        except UnknownStoreError:
            # It was removed meanwhile.
            return None
        except TimeoutError:
            return StoreSummary(name=alias, is_reached=False, error="TimeoutError")
        except Exception as error:
            # Whatever a store raises, it has not answered.
            return StoreSummary(name=alias, is_reached=False, error=type(error).__name__)

    async def _look_at(self, alias: str) -> StoreSummary:
        engine, shelf = self._engine, self._engine.shelf(alias)
        instances = [instance for instance in await self._instances(shelf) if instance.is_alive]
        overdue = await self._overdue(shelf, _MOST_COUNTED, engine.options.health.grace_s, None)
        skew = engine.store_clocks[alias].skew()
        return StoreSummary(
            name=alias,
            is_reached=True,
            lag=(await self.lag(store=alias)).total_seconds(),
            skew=skew.offset.total_seconds(),
            skew_error=skew.error.total_seconds(),
            instances=len(instances),
            workers=sum(not instance.is_client for instance in instances),
            running=sum(instance.running for instance in instances),
            overdue=len(overdue),
            quarantined=await _count(shelf.store, "quarantined"),
            failed=await _count(shelf.store, "failed"),
        )

    def _now(self, shelf: Shelf) -> float:
        return self._engine.store_clocks[shelf.alias].now()


async def _look_at_queues(store: JobStore, queues: set[str], pauses: dict[str, bool]) -> None:
    """Complete *pauses*: which of these queues are paused for all instances."""
    marks = {queue_mark(queue): queue for queue in sorted(queues - pauses.keys())}
    found = await store.get(list(marks)) if marks else {}
    pauses |= {queue: mark in found for mark, queue in marks.items()}


async def _count(store: JobStore, hold: str) -> int:
    return len(await store.page(Filter(hold=hold), _MOST_COUNTED))


async def _runs(store: JobStore, job_id: str | None, since: float) -> tuple[list[RunForm], bool]:
    """The runs that ended from *since* on, the newest first; and whether there are more than are read."""
    found: list[RunForm] = []
    last: Entry | None = None
    while entries := await store.runs(job_id, ("run", "lost"), _PAGE, last):
        for entry in entries:
            if entry.at < since:
                return found, False
            if len(found) >= MOST_RUNS:
                return found, True
            try:
                found.append(decode_run(entry.body))
            except SerializationError:
                # Written by a newer version.
                continue
        if len(entries) < _PAGE:
            break
        last = entries[-1]
    return found, False


def _figures(runs: Iterable[RunForm], is_cut: bool) -> Figures:
    counted = [run for run in runs if run.outcome != "cancelled"]
    failed = sum(run.outcome in FAILURES for run in counted)
    took = sorted(
        run.finished - run.started for run in counted if run.started is not None and run.finished is not None
    )
    return Figures(
        runs=len(counted),
        failed=failed,
        failure_rate=failed / len(counted) if counted else None,
        average_duration=math.fsum(took) / len(took) if took else None,
        p50=_percentile(took, 50),
        p95=_percentile(took, 95),
        p99=_percentile(took, 99),
        longest=took[-1] if took else None,
        is_cut=is_cut,
    )


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    """The least of them that *percent* of 100 do not exceed (the nearest rank); None of none."""
    if not ordered:
        return None
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def _check_limit(limit: int) -> None:
    if type(limit) is not int or limit < 0:
        raise DefinitionError(f"limit must be 0 or more, not {limit!r}")
