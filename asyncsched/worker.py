"""The claim loop of one store: claim what is due, start it, settle what has ended, and sleep until the next wake time.

Two round trips for a batch, not for a run: what ends while a settlement is on its way goes with the next one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from asyncsched.clock import Clock, Timer
from asyncsched.codec import decode_cursor, decode_definition, encode
from asyncsched.contract import Claimed, Entry, JobStore, Record, Settled, Settlement
from asyncsched.definition import Definition, RunForm, SpanForm
from asyncsched.errors import NewerFormatError, SerializationError, StoreError, StoreUnavailable
from asyncsched.events import (
    Bus,
    JobExhausted,
    JobHandedBack,
    JobQuarantined,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunLost,
    RunSkipped,
    RunStarted,
    RunSucceeded,
    RunTimedOut,
    StoreDegraded,
    StoreRecovered,
)
from asyncsched.execution import Execution, Host
from asyncsched.keeper import Keeper, trust_end
from asyncsched.model import Outcome, Retry
from asyncsched.plan import MAX_CRASHES, Span, Start, Step, decide, ended, is_quarantined
from asyncsched.registry import Task
from asyncsched.units import to_datetime

__all__ = ["Link", "Settings", "Slots", "Worker"]

T = TypeVar("T")

_FINISHED: dict[Outcome, type[RunFinished]] = {
    "succeeded": RunSucceeded,
    "failed": RunFailed,
    "timed_out": RunTimedOut,
    "cancelled": RunCancelled,
    "lost": RunLost,
}
#: Settlements in one call.
_BATCH = 500
#: A worker that holds so many unwritten ends claims nothing more.
_MAX_UNSETTLED = 1000
_EMPTY_BACKOFF = Retry(base=0.01, max_delay=1.0, spread=0.5)
_HAND_BACK = Retry(base=1.0, max_delay=30.0, spread=0.3)
_MAX_RESULT = 1 << 20
#: How often to look whether a queue was paused for all instances.
_QUEUE_LOOK_S = 5.0
_NONE: set[str] = set()


def queue_mark(queue: str) -> str:
    """The id of the record that says that *queue* is paused for all; ``#`` keeps it apart from jobs."""
    return f"#queue/{queue}"


@dataclass(slots=True, kw_only=True)
class Settings:
    """How a worker behaves; seconds throughout."""

    lease_s: float
    lookahead_s: float
    poll_s: float
    poll_jitter: float
    retry: Retry
    history: bool


@dataclass(slots=True)
class Slots:
    """How many runs may be under way at once: in this instance over all its stores, and in each limited queue."""

    free: int
    queues: Mapping[str, int | None]
    used: dict[str, int] = field(default_factory=dict)
    on_free: list[Callable[[], None]] = field(default_factory=list)
    turn: int = 0

    def groups(self, paused: Collection[str]) -> list[tuple[list[str], int]]:
        """What may be claimed: queues without a limit together, limited ones by themselves; their order rotates."""
        if self.free <= 0:
            return []
        names = [name for name in self.queues if name not in paused]
        if len(names) > 1:
            self.turn = (self.turn + 1) % len(names)
            names = names[self.turn :] + names[: self.turn]
        groups = []
        unlimited = [name for name in names if self.queues[name] is None]
        if unlimited:
            groups.append((unlimited, self.free))
        for name in names:
            limit = self.queues[name]
            if limit is not None and (room := min(self.free, limit - self.used.get(name, 0))) > 0:
                groups.append(([name], room))
        return groups

    def take(self, queue: str) -> None:
        self.free -= 1
        if self.queues.get(queue) is not None:
            self.used[queue] = self.used.get(queue, 0) + 1

    def give(self, queue: str) -> None:
        self.free += 1
        if self.queues.get(queue) is not None:
            self.used[queue] -= 1
        for callback in self.on_free:
            callback()


class Link:
    """The way to one store: repeats what did not get through, and makes its absence visible."""

    def __init__(self, alias: str, clock: Clock, retry: Retry, bus: Bus, logger: logging.Logger) -> None:
        self.alias = alias
        self.is_degraded = False
        self._clock = clock
        self._retry = retry
        self._bus = bus
        self._logger = logger

    async def persist(
        self, call: Callable[[], Awaitable[T]], on_repeat: Callable[[], None] | None = None
    ) -> T:
        """Repeat *call* until the store answers; a permanent refusal is raised."""
        failures = 0
        while True:
            try:
                answer = await call()
            except StoreUnavailable as error:
                failures += 1
                self.failed(error)
                await self._clock.sleep(self._pause_s(failures))
                if on_repeat is not None:
                    on_repeat()
                continue
            if self.is_degraded:
                self.recovered()
            return answer

    def failed(self, error: StoreError) -> None:
        if not self.is_degraded:
            self.is_degraded = True
            self._logger.warning("store %r is degraded: %s", self.alias, error)
            self._bus.emit(
                StoreDegraded(at=to_datetime(self._clock.time()), store=self.alias, error=str(error))
            )

    def recovered(self) -> None:
        if self.is_degraded:
            self.is_degraded = False
            self._logger.warning("store %r has recovered", self.alias)
            self._bus.emit(StoreRecovered(at=to_datetime(self._clock.time()), store=self.alias))

    def _pause_s(self, failures: int) -> float:
        delay = self._retry.delay(failures)
        return 10.0 if delay is None else delay.total_seconds()


class Worker:
    """Claims, starts and settles the jobs of one store."""

    def __init__(
        self,
        host: Host,
        alias: str,
        store: JobStore,
        slots: Slots,
        settings: Settings,
        tasks: Mapping[str, Task[..., Any]],
        bus: Bus,
    ) -> None:
        self.host = host
        self.alias = alias
        self.store = store
        self.slots = slots
        self.settings = settings
        self.tasks = tasks
        self.bus = bus
        self.link = Link(alias, host.clock, settings.retry, bus, host.logger)
        #: Executions by job id: under way, waiting for their instant, or their end not yet written.
        self.held: dict[str, Execution] = {}
        self.is_paused = False
        self.is_draining = False
        #: Queues that this instance leaves alone: by its own wish, or because they are paused for all.
        self.paused_here: set[str] = set()
        self.paused_for_all: set[str] = set()
        self._looked_at = -math.inf
        #: Called with the job id after each settlement.
        self.on_settled: list[Callable[[str], None]] = []
        self._clock = host.clock
        self._offset = host.clock.time() - host.clock.monotonic()
        self._lease_s = (
            math.inf if not store.capabilities.shared and not store.capabilities.durable else settings.lease_s
        )
        self._reads_host_clock = store.capabilities.clock == "host"
        self._best_trip = math.inf
        self._claims = 0
        self._empty = 0
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False
        self._hungry = False
        self._planned_wake = math.inf
        self._done: list[Execution | Settlement] = []
        self._settling = 0
        self._settle_event = asyncio.Event()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._observers: list[asyncio.Future[None]] = []
        self._drains: list[asyncio.Future[None]] = []
        self._handed: dict[str, int] = {}
        self._keeper: Keeper | None = None
        if self._lease_s < math.inf:
            self._keeper = Keeper(store, host.clock, self._lease_s, self.held, self._anchor, self.link.failed)
        slots.on_free.append(self._on_free)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        self._loop = asyncio.get_running_loop()
        end_hints = self.store.on_hint(self._on_hint)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._settle_for_ever(), name=f"asyncsched-settle-{self.alias}")
                if self._keeper is not None:
                    tasks.create_task(self._keeper.run(), name=f"asyncsched-keep-{self.alias}")
                await self._claim_for_ever()
        finally:
            end_hints()
            self.slots.on_free.remove(self._on_free)

    async def drain(self, timeout_s: float) -> list[str]:
        """Claim nothing more; let runs end for *timeout_s*, then cancel them, then give them up; write every end.

        Returns the ids of the runs that were abandoned.
        """
        self.is_draining = True
        for execution in list(self.held.values()):
            if execution.work is None and execution.end is None:
                self._hand_back(execution.record, 0.0)
                self._drop(execution)
        await self._wait_until_idle(timeout_s)
        for execution in self._running():
            execution.cancel("shutdown")
        grace = max((e.policy("cancel_grace", 5.0) for e in self._running()), default=0.0)
        if grace:
            await self._wait_until_idle(grace)
        abandoned = [f"{e.record.id}@{e.record.fence}" for e in self._running()]
        for execution in self._running():
            execution.abandon()
        return abandoned

    async def flush(self) -> None:
        """Return once every end has been written."""
        while self._done or self._settling:
            await self._changed()

    def lose_all(self) -> None:
        """Give up what could not be written: leases end by themselves, and the runs are made again."""
        for execution in list(self.held.values()):
            execution.cancel("lost")

    def _running(self) -> list[Execution]:
        return [e for e in self.held.values() if e.end is None]

    async def _wait_until_idle(self, timeout_s: float) -> None:
        if not self._running() or timeout_s <= 0:
            await asyncio.sleep(0)
            return
        over = self._loop.create_future()
        timer = self._clock.call_at(self._clock.monotonic() + timeout_s, lambda: _resolve(over))
        self._drains.append(over)
        try:
            while self._running() and not over.done():
                change = asyncio.ensure_future(self._changed())
                await asyncio.wait([over, change], return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
        finally:
            timer.cancel()
            self._drains.remove(over)

    def cut_drain(self) -> None:
        """Whoever waits for the drain has no more time."""
        for over in self._drains:
            _resolve(over)

    async def _changed(self) -> None:
        """Return when a run has ended or has been settled."""
        future = self._loop.create_future()
        self._observers.append(future)
        await future

    # -- claiming ------------------------------------------------------------------------------------------------------

    async def _claim_for_ever(self) -> None:
        while True:
            self._woken = False
            self._planned_wake = -math.inf
            try:
                await self._look_at_queues()
                wake = await self._turn()
            except StoreError as error:
                # Refused for good, as far as the store can tell; it may be mended while this goes on.
                self.link.failed(error)
                wake = self.now() + self.settings.poll_s
            self._planned_wake = wake
            if wake > 0:
                await self._sleep(wake)
            else:
                await asyncio.sleep(0)

    @property
    def paused_queues(self) -> set[str]:
        return self.paused_here | self.paused_for_all if self.paused_here or self.paused_for_all else _NONE

    async def _look_at_queues(self) -> None:
        """Which queues are paused for all instances: said by a record of its own, read every few seconds."""
        now = self._clock.monotonic()
        if now < self._looked_at + _QUEUE_LOOK_S or not self.slots.queues:
            return
        marks = {queue_mark(name): name for name in self.slots.queues}
        found = await self.store.get(list(marks))
        self._looked_at = now
        self.paused_for_all = {marks[id] for id in found}

    async def _turn(self) -> float:
        """Claim and start once; return the instant (the store's clock) to claim again at, 0 for at once."""
        if self.is_paused or self.is_draining or len(self._done) + self._settling >= _MAX_UNSETTLED:
            return math.inf
        groups = self.slots.groups(self.paused_queues)
        self._hungry = not groups
        if self._hungry:
            return math.inf
        taken, is_full, next_wake = 0, False, math.inf
        for queues, limit in groups:
            claimed = await self._claim(queues, min(limit, self.slots.free))
            taken += len(claimed.records)
            is_full = is_full or len(claimed.records) >= limit
            if claimed.next_wake_at is not None:
                next_wake = min(next_wake, claimed.next_wake_at)
        if is_full:
            self._hungry = self.slots.free <= 0
            return math.inf if self._hungry else 0.0
        return self._next_turn(taken, next_wake - self.settings.lookahead_s)

    def _next_turn(self, taken: int, next_wake: float) -> float:
        now = self.now()
        if taken or next_wake > now:
            self._empty = 0
        else:
            # Due, and not to be had: another instance is taking it, or it is locked.
            self._empty += 1
            pause = _EMPTY_BACKOFF.delay(self._empty)
            next_wake = now + (pause.total_seconds() if pause is not None else 1.0)
        poll = self.settings.poll_s * (1 + self.settings.poll_jitter * (2 * random.random() - 1))
        return min(next_wake, now + poll)

    async def _claim(self, queues: Sequence[str], limit: int) -> Claimed:
        self._claims += 1
        token = f"{self.host.instance}:{self._claims}"
        asked_at = self._clock.monotonic()
        repeats = 0

        def count() -> None:
            nonlocal repeats
            repeats += 1

        claimed = await self.link.persist(
            lambda: self.store.claim(queues, token, limit, self._lease_s, self.settings.lookahead_s), count
        )
        self._anchor(self._clock.monotonic() if repeats else asked_at, claimed.now)
        trusted_until = trust_end(asked_at, self._lease_s)
        for record in claimed.records:
            self._take(record, claimed.now, trusted_until)
        if self._keeper is not None and claimed.records:
            self._keeper.notice()
            if repeats:
                # The lease runs since the first try, whose reply was lost: make sure of it before relying on it.
                fresh = [self.held[r.id] for r in claimed.records if r.id in self.held]
                await self.link.persist(lambda: _renewed(self._keeper, fresh))
        return claimed

    def anchor(self, now: float) -> None:
        """The store's clock was just read as *now*."""
        self._offset = now - self._clock.monotonic()

    def _anchor(self, asked_at: float, store_now: float) -> None:
        """All instants are the store's; elapsed time since it was asked is measured on the monotonic clock.

        The shorter a round trip, the better it tells the server's clock: a long one is believed only when there was no
        better one for a while. The host's own clock is simply read.
        """
        answered_at = self._clock.monotonic()
        if self._reads_host_clock:
            self._offset = self._clock.time() - answered_at
            return
        trip = answered_at - asked_at
        self._best_trip *= 1.1
        if trip <= self._best_trip:
            self._best_trip = trip
            self._offset = store_now - (asked_at + answered_at) / 2

    def now(self) -> float:
        """The store's clock, as far as it is known here."""
        return self._clock.monotonic() + self._offset

    def wake(self) -> None:
        """Claim again as soon as may be."""
        self._woken = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _on_hint(self, wake_at: float | None) -> None:
        if (
            wake_at is None
            or wake_at - self.settings.lookahead_s < self._planned_wake
            or self._planned_wake < 0
        ):
            self.wake()

    def _on_free(self) -> None:
        if self._hungry:
            self._hungry = False
            self.wake()

    async def _sleep(self, until: float) -> None:
        if self._woken:
            await asyncio.sleep(0)
            return
        waiter = self._waiter = self._loop.create_future()
        timer: Timer | None = None
        if until < math.inf:
            # Half of the way to the server more: to be early would cost a claim.
            slack = 0.0 if self._reads_host_clock else self._best_trip / 2
            timer = self._clock.call_at(until - self._offset + slack, self.wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    # -- starting ------------------------------------------------------------------------------------------------------

    def _take(self, record: Record, now: float, trusted_until: float) -> None:
        """Decide what a claimed record is to do, and have it done; whatever is wrong with it stays with it."""
        held = self.held.get(record.id)
        if held is not None:
            self._adopt(held, record, trusted_until)
            return
        try:
            definition = decode_definition(record.body)
            cursor = decode_cursor(record.cursor)
            max_crashes = definition.policies.max_crashes or self.host.defaults.get(
                "max_crashes", MAX_CRASHES
            )
            if is_quarantined(record.tries, max_crashes):
                raise _Quarantine(
                    f"{record.tries - 1} claims in a row were lost: it seems to kill its process"
                )
            step = decide(definition, cursor, record.hold, now, self.settings.lookahead_s)
        except NewerFormatError as error:
            self._hand_back_unknown(record, str(error))
            return
        except Exception as error:
            self._quarantine(record, error)
            return
        if type(step) is not Start:
            assert isinstance(step, Step)
            self._close(self._settlement_of(record, definition, step, now, ()))
            return
        task = self.tasks.get(record.task)
        if task is None:
            self._hand_back_unknown(record, f"no task is registered as {record.task!r} in this instance")
            return
        execution = Execution(
            self.host, self.alias, record, definition, step, task, trusted_until, self.now, self._on_end
        )
        self.held[record.id] = execution
        self.slots.take(record.queue)
        if step.due > now:
            self._clock.call_at(step.due - self._offset, lambda: self._launch(execution))
        else:
            self._launch(execution)

    def _launch(self, execution: Execution) -> None:
        if execution.end is not None or execution.work is not None or execution.reason is not None:
            return
        if self.bus.subscriptions:
            self._emit_started(execution)
        execution.work = self._loop.create_task(execution.run())

    def _adopt(self, held: Execution, record: Record, trusted_until: float) -> None:
        """This instance was blocked past its lease and has claimed the job that it is still running: the attempt under way
        goes on under the new fence, and no second one starts beside it."""
        self.host.logger.warning(
            "the lease of run %s@%s ended while this instance was blocked; it goes on under fence %s",
            record.id, held.record.fence, record.fence,
        )  # fmt: skip
        held.record = record
        held.trusted_until = trusted_until

    def _hand_back_unknown(self, record: Record, reason: str) -> None:
        delay = _HAND_BACK.delay(min(record.tries + self._handed.get(record.id, 0), 10))
        self._handed[record.id] = self._handed.get(record.id, 0) + 1
        if len(self._handed) > 10_000:
            self._handed.clear()
        if self._handed.get(record.id) == 1:
            self.host.logger.warning("job %r is handed back: %s", record.id, reason)
        self._hand_back(record, 1.0 if delay is None else delay.total_seconds())
        if self.bus.subscriptions:
            self._emit_job(JobHandedBack, record, reason)

    def _hand_back(self, record: Record, delay_s: float) -> None:
        self._close(
            Settlement(
                id=record.id,
                fence=record.fence,
                holder=record.holder or "",
                version=record.version,
                wake_at=self.now() + delay_s,
                hand_back=True,
            )
        )

    def _quarantine(self, record: Record, error: BaseException) -> None:
        """Keep it as it is, out of the way, with the reason in its log."""
        detail = f"{type(error).__name__}: {error}"
        self.host.logger.error("job %r is quarantined: %s", record.id, detail)
        now = self.now()
        span = Span("quarantined", now, now, 1, False, detail[:2000])
        self._close(
            Settlement(
                id=record.id,
                fence=record.fence,
                holder=record.holder or "",
                version=record.version,
                cursor=record.cursor,
                wake_at=None,
                hold="quarantined",
                entries=self._entries(record, (span,), now),
            )
        )
        if self.bus.subscriptions:
            self._emit_job(JobQuarantined, record, detail)

    # -- ending --------------------------------------------------------------------------------------------------------

    def _on_end(self, execution: Execution) -> None:
        """A run has ended: its slot is free, and its end is to be written."""
        self.slots.give(execution.record.queue)
        if execution.abandoned and execution.work is not None:
            self._abandoned.add(execution.work)
            execution.work.add_done_callback(self._abandoned.discard)
        if execution.reason == "lost":
            self._lost(execution)
            return
        self._close(execution)
        if self._drains:
            self._observe(execution.record.id)

    def _drop(self, execution: Execution) -> None:
        """Forget an execution that has not begun."""
        self.held.pop(execution.record.id, None)
        self.slots.give(execution.record.queue)

    def _lost(self, execution: Execution) -> None:
        self.held.pop(execution.record.id, None)
        record = execution.record
        self.host.logger.warning(
            "run %s@%s of task %s lost its lease; its end is not written",
            record.id,
            record.fence,
            record.task,
        )
        if self.bus.subscriptions:
            self._emit_finished(execution, RunLost, "lost")
        self._observe(record.id)

    def _close(self, item: Execution | Settlement) -> None:
        self._done.append(item)
        if not self._settle_event.is_set():
            self._settle_event.set()

    async def _settle_for_ever(self) -> None:
        while True:
            await self._settle_event.wait()
            self._settle_event.clear()
            while self._done:
                batch, self._done = self._done[:_BATCH], self._done[_BATCH:]
                self._settling = len(batch)
                was_full = len(batch) + len(self._done) >= _MAX_UNSETTLED
                try:
                    await self._settle([(item, self._settlement(item)) for item in batch])
                finally:
                    self._settling = 0
                if was_full:
                    self.wake()

    async def _settle(self, batch: list[tuple[Execution | Settlement, Settlement]]) -> None:
        settlements = [settlement for _, settlement in batch]
        try:
            answers = await self.link.persist(lambda: self.store.settle(settlements))
        except StoreError as error:
            await self._bisect(batch, error)
            return
        for (item, settlement), answer in zip(batch, answers, strict=True):
            self._settled(item, settlement, answer)

    async def _bisect(
        self, batch: list[tuple[Execution | Settlement, Settlement]], error: StoreError
    ) -> None:
        """The store refuses something in the batch for good: find it, and settle it without what it cannot take."""
        if len(batch) > 1:
            half = len(batch) // 2
            await self._settle(batch[:half])
            await self._settle(batch[half:])
            return
        item, settlement = batch[0]
        self.host.logger.error(
            "the end of job %r cannot be written (%s): it is quarantined", settlement.id, error
        )
        bare = Settlement(
            id=settlement.id,
            fence=settlement.fence,
            holder=settlement.holder,
            version=settlement.version,
            cursor=item.record.cursor if isinstance(item, Execution) else settlement.cursor,
            hold="quarantined",
        )
        try:
            answers = await self.link.persist(lambda: self.store.settle([bare]))
        except StoreError:
            self.host.logger.critical(
                "job %r could not be settled at all; its lease will end by itself", settlement.id
            )
            answers = ["lost"]
        self._settled(item, bare, answers[0])

    def _settled(self, item: Execution | Settlement, settlement: Settlement, answer: Settled) -> None:
        if type(item) is Execution:
            if answer == "lost" and item.record.fence != settlement.fence:
                # It was adopted under a new fence while this settlement was on its way.
                self._close(item)
                return
            self.held.pop(settlement.id, None)
        if answer == "lost":
            self.host.logger.warning(
                "the end of %s@%s was refused: it is held by another", settlement.id, settlement.fence
            )
        wake_at = settlement.wake_at
        if wake_at is not None and wake_at < self._planned_wake:
            self._on_hint(wake_at)
        elif answer == "stale":
            self.wake()
        if self.bus.subscriptions and type(item) is Execution:
            self._emit_settled(item, settlement, answer)
        if self.on_settled or self._observers:
            self._observe(settlement.id)

    def _observe(self, job_id: str) -> None:
        observers, self._observers = self._observers, []
        for future in observers:
            _resolve(future)
        for callback in list(self.on_settled):
            callback(job_id)

    # -- settlements ---------------------------------------------------------------------------------------------------

    def _settlement(self, item: Execution | Settlement) -> Settlement:
        if type(item) is not Execution:
            assert isinstance(item, Settlement)
            return item
        end = item.end
        assert end is not None
        try:
            step = ended(item.definition, item.start, end)
        except Exception as error:
            # The trigger failed while it computed the next fire time.
            span = Span(
                "quarantined", end.finished, end.finished, 1, False, f"{type(error).__name__}: {error}"[:2000]
            )
            step = Step(item.start.cursor, None, "quarantined", spans=(*item.start.spans, span))
            self.host.logger.error("job %r is quarantined: its trigger failed: %r", item.record.id, error)
        entries: tuple[Entry, ...] = ()
        if self.settings.history:
            entries = (self._run_entry(item),)
        return self._settlement_of(item.record, item.definition, step, end.finished, entries)

    def _settlement_of(
        self, record: Record, definition: Definition, step: Step, now: float, entries: tuple[Entry, ...]
    ) -> Settlement:
        if step.spans or record.prior is not None:
            entries += self._entries(record, step.spans, now)
            if self.bus.subscriptions:
                self._emit_skipped(record, definition, step.spans)
        return Settlement(
            id=record.id,
            fence=record.fence,
            holder=record.holder or "",
            version=record.version,
            cursor=b"" if step.delete else encode(step.cursor),
            wake_at=step.wake_at,
            hold=step.hold,
            delete=step.delete,
            entries=entries,
        )

    def _run_entry(self, execution: Execution) -> Entry:
        record, start, end = execution.record, execution.start, execution.end
        assert end is not None
        result, metadata = b"", b""
        if execution.result is not None:
            result = self._stored_result(execution)
        if execution.annotations:
            metadata = self.host.dump(execution.annotations, "annotate()")
        form = RunForm(
            end.outcome,
            record.task,
            start.due,
            end.started,
            end.finished,
            start.attempt,
            self.host.instance,
            end.error,
            execution.traceback,
            result,
            metadata,
        )
        return Entry(record.id, record.fence, "run", start.fire, end.finished, encode(form))

    def _stored_result(self, execution: Execution) -> bytes:
        """A result that cannot be stored does not make a run fail; history says what is missing."""
        try:
            result = self.host.dump(execution.result, "result")
            if len(result) > _MAX_RESULT:
                raise SerializationError(
                    f"result: {len(result)} bytes are more than the {_MAX_RESULT} that history keeps"
                )
        except SerializationError as error:
            execution.annotations = {**(execution.annotations or {}), "result_error": str(error)}
            self.host.logger.warning("the result of job %r is not kept: %s", execution.record.id, error)
            return b""
        return result

    def _entries(self, record: Record, spans: Sequence[Span], now: float) -> tuple[Entry, ...]:
        """Log entries of decisions, and of the claim before this one where it was lost."""
        if not self.settings.history:
            return ()
        entries = [
            Entry(
                record.id,
                record.fence,
                span.reason,
                span.first,
                now,
                encode(SpanForm(span.last, span.count, span.more, span.detail)),
            )
            for span in spans
        ]
        if record.prior is not None:
            error = f"its lease ended without a settlement ({record.tries - 1} lost in a row)"
            lost = RunForm("lost", record.task, now, None, None, record.tries - 1, "", error)
            entries.append(Entry(record.id, record.prior, "lost", now, now, encode(lost)))
        return tuple(entries)

    # -- events --------------------------------------------------------------------------------------------------------

    def _emit_started(self, execution: Execution) -> None:
        self.bus.emit(RunStarted(**self._run_fields(execution)))

    def _emit_settled(self, execution: Execution, settlement: Settlement, answer: Settled) -> None:
        end = execution.end
        assert end is not None
        if answer == "lost":
            self._emit_finished(execution, RunLost, "lost")
            return
        self._emit_finished(execution, _FINISHED[end.outcome], end.outcome)
        if end.outcome in ("failed", "timed_out") and end.retry_in is None and end.again_at is None:
            self._emit_job(JobExhausted, execution.record, end.error, execution.definition)

    def _emit_finished(self, execution: Execution, kind: type[RunFinished], outcome: Outcome) -> None:
        end = execution.end
        self.bus.emit(
            kind(
                **self._run_fields(execution),
                outcome=outcome,
                duration=0.0 if end is None else end.finished - end.started,
                error=None if end is None else end.error,
                result=execution.result,
            )
        )

    def _emit_skipped(self, record: Record, definition: Definition, spans: Sequence[Span]) -> None:
        for span in spans:
            self.bus.emit(
                RunSkipped(
                    **self._job_fields(record, definition),
                    fire_time=to_datetime(span.first),
                    reason=span.reason,
                    count=span.count,
                )
            )

    def _emit_job(
        self,
        kind: type[JobHandedBack | JobQuarantined | JobExhausted],
        record: Record,
        error: str | None,
        definition: Definition | None = None,
    ) -> None:
        self.bus.emit(kind(**self._job_fields(record, definition), error=error))

    def _run_fields(self, execution: Execution) -> dict[str, Any]:
        return self._job_fields(execution.record, execution.definition) | {
            "fire_time": to_datetime(execution.start.fire),
            "attempt": execution.start.attempt,
            "fence": execution.record.fence,
        }

    def _job_fields(self, record: Record, definition: Definition | None) -> dict[str, Any]:
        return {
            "at": to_datetime(self.now()),
            "store": self.alias,
            "job_id": record.id,
            "task": record.task,
            "name": record.task if definition is None or definition.name is None else definition.name,
            "queue": record.queue,
            "tags": () if definition is None else definition.tags,
        }


class _Quarantine(Exception):
    """The job is to be kept out of the way."""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _renewed(keeper: Keeper | None, executions: list[Execution]) -> None:
    assert keeper is not None
    await keeper.renew(executions)
