"""The claim loop of one store: claim what is due, start it, settle what has ended, and sleep until the next wake time.

Two round trips for a batch, not for a run: what ends while a settlement is on its way goes with the next one.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from asyncsched.announce import Announcer
from asyncsched.clock import Timer
from asyncsched.codec import decode_cursor, decode_definition
from asyncsched.commits import Commits
from asyncsched.contract import Claim, Claimed, JobStore, Record, Settled, Settlement
from asyncsched.definition import Definition
from asyncsched.errors import NewerFormatError, StoreError
from asyncsched.events import Bus
from asyncsched.execution import Execution, Host
from asyncsched.keeper import Keeper, trust_end
from asyncsched.ledger import Ledger
from asyncsched.link import Link
from asyncsched.model import Retry
from asyncsched.plan import MAX_CRASHES, Spread, Start, decide, due_of, is_quarantined
from asyncsched.registry import AnyTask
from asyncsched.rules import family_of
from asyncsched.slots import Slots
from asyncsched.storeclock import StoreClock

__all__ = ["Settings", "Worker", "queue_mark"]

#: Settlements in one call.
_BATCH = 500
#: A worker that holds so many unwritten ends claims nothing more.
MAX_UNSETTLED = 1000
#: How often to look whether a queue was paused for all instances.
_QUEUE_LOOK_S = 5.0
#: How long a stop waits for a claim that is on its way.
_LAST_CLAIM_S = 5.0
#: The shortest sleep.
_NAP_S = 0.0002
_EMPTY_BACKOFF = Retry(base=0.01, max_delay=1.0, spread=0.5)
_HAND_BACK = Retry(base=1.0, max_delay=30.0, spread=0.3)
_MAX_HANDED = 10_000
#: Claim again at once, and: nothing is planned.
_AT_ONCE, _NEVER = -math.inf, math.inf
_NONE: frozenset[str] = frozenset()

Item = Execution | Settlement
Pairs = Sequence[tuple[Item, Settlement]]


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
    keeps_history: bool


class Worker:
    """Claims, starts and settles the jobs of one store."""

    def __init__(
        self,
        host: Host,
        alias: str,
        store: JobStore,
        slots: Slots,
        settings: Settings,
        tasks: Mapping[str, AnyTask],
        bus: Bus,
        store_clock: StoreClock,
    ) -> None:
        self.host = host
        self.alias = alias
        #: Executions by job id: under way, waiting for their instant, or their end not yet written.
        self.held: dict[str, Execution] = {}
        self.is_paused = False
        #: Queues that this instance leaves alone: by its own wish, or because they are paused for all.
        self.paused_here: set[str] = set()
        self.paused_for_all: set[str] = set()
        #: Called with the job id after each settlement.
        self.on_settled: list[Callable[[str], None]] = []
        #: The store's clock.
        self.now = store_clock.now
        self._store = store
        self._store_clock = store_clock
        self._slots = slots
        self._settings = settings
        self._tasks = tasks
        self._clock = host.clock
        self._link = Link(alias, host.clock, settings.retry, bus, host.logger)
        self._ledger = Ledger(host, settings.keeps_history)
        self._announcer = Announcer(bus, alias, self.now)
        self._commits = Commits(store, alias, self._link, self._ledger)
        self._bus = bus
        lives_here = not store.capabilities.shared and not store.capabilities.durable
        self._lease_s = math.inf if lives_here else settings.lease_s
        self._keeper: Keeper | None = None
        if not lives_here:
            self._keeper = Keeper(
                store, host.clock, self._lease_s, self.held, self._renewed, self._link.failed
            )
        self._claims = 0
        self._spreads: list[tuple[Record, Definition, Start]] = []
        self._empty = 0
        self._handed: dict[str, int] = {}
        self._look_again_at = -math.inf
        self._is_draining = False
        self._is_claiming = False
        self._waiter: asyncio.Future[None] | None = None
        self._is_woken = False
        self._planned_wake = _AT_ONCE
        self._done: list[Item] = []
        self._settling = 0
        #: Runs that committed in a transaction of the user's, and are not known to have done so yet.
        self._confirming = 0
        self._is_full = False
        self._settle_event = asyncio.Event()
        self._observers: list[asyncio.Future[None]] = []
        self._waits = 0
        self._drains: list[asyncio.Future[None]] = []
        self._abandoned: set[asyncio.Task[None]] = set()

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        self._loop = asyncio.get_running_loop()
        end_hints = self._store.on_hint(self._on_hint)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._group = tasks
                tasks.create_task(self._settle_for_ever(), name=f"asyncsched-settle-{self.alias}")
                if self._keeper is not None:
                    tasks.create_task(self._keeper.run(), name=f"asyncsched-keep-{self.alias}")
                await self._claim_for_ever()
        finally:
            end_hints()

    async def drain(self, timeout_s: float) -> list[str]:
        """Claim nothing more; let runs end for *timeout_s*, then cancel them, then give them up.

        Returns the ids of the runs that were abandoned.
        """
        self._is_draining = True
        # What a claim that is on its way brings is handed back.
        await self._wait_until(lambda: not self._is_claiming, _LAST_CLAIM_S)
        for execution in list(self.held.values()):
            if execution.work is None and execution.end is None:
                self.hand_back(execution)
        if timeout_s > 0:
            await self._wait_until(self._is_idle, timeout_s, can_be_cut=True)
        for execution in self._running():
            execution.cancel("shutdown")
        grace_s = max((e.policy("cancel_grace", 5.0) for e in self._running()), default=0.0)
        await self._wait_until(self._is_idle, grace_s)
        abandoned = self._running()
        for execution in abandoned:
            execution.abandon()
        return [f"{e.record.id}@{e.record.fence}" for e in abandoned]

    async def flush(self) -> None:
        """Return once every end has been written."""
        while self._done or self._settling or self._confirming:
            await self._changed()

    def cut_drain(self) -> None:
        """Whoever waits for the drain has no more time."""
        for over in self._drains:
            _resolve(over)

    def _running(self) -> list[Execution]:
        return [e for e in self.held.values() if e.end is None]

    def _is_idle(self) -> bool:
        return not self._running()

    async def _wait_until(
        self, is_so: Callable[[], bool], timeout_s: float, *, can_be_cut: bool = False
    ) -> None:
        if is_so():
            return
        over = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(self._clock.monotonic() + timeout_s, lambda: _resolve(over))
        self._waits += 1
        if can_be_cut:
            self._drains.append(over)
        try:
            while not is_so() and not over.done():
                change = asyncio.ensure_future(self._changed())
                await asyncio.wait([over, change], return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
        finally:
            timer.cancel()
            self._waits -= 1
            if can_be_cut:
                self._drains.remove(over)

    async def _changed(self) -> None:
        """Return when a run has ended or has been settled."""
        future = asyncio.get_running_loop().create_future()
        self._observers.append(future)
        await future

    def _observe(self, job_id: str) -> None:
        observers, self._observers = self._observers, []
        for future in observers:
            _resolve(future)
        for callback in list(self.on_settled):
            callback(job_id)

    def _renewed(self, asked_at: float, store_now: float) -> None:
        self._link.recovered()
        self._store_clock.read(asked_at, store_now)

    # -- claiming ------------------------------------------------------------------------------------------------------

    async def _claim_for_ever(self) -> None:
        while True:
            self._is_woken = False
            self._planned_wake = _AT_ONCE
            self._is_claiming = True
            try:
                if self._clock.monotonic() >= self._look_again_at:
                    await self._look_at_queues()
                wake = await self._turn()
            except StoreError as error:
                # Refused for good, as far as the store can tell; it may be mended while this goes on.
                self._link.failed(error)
                wake = self.now() + self._settings.poll_s
            finally:
                self._is_claiming = False
            if self._waits:
                self._observe("")
            # Nothing that becomes due is of interest to a worker that cannot claim.
            self._planned_wake = _AT_ONCE if wake == _NEVER else wake
            if wake == _AT_ONCE or self._is_woken:
                await asyncio.sleep(0)
            else:
                await self._sleep(wake)

    async def _look_at_queues(self) -> None:
        """Which queues are paused for all instances: said by a record of its own, read every few seconds."""
        self._look_again_at = self._clock.monotonic() + _QUEUE_LOOK_S
        if not self._slots.queues:
            return
        marks = {queue_mark(name): name for name in self._slots.queues}
        found = await self._link.persist(lambda: self._store.get(list(marks)))
        self.paused_for_all = {marks[id] for id in found}

    async def _turn(self) -> float:
        """Claim and start once; return the instant (the store's clock) to claim again at."""
        self._is_full = self._unsettled >= MAX_UNSETTLED
        if self.is_paused or self._is_draining or self._is_full:
            return _NEVER
        paused = self.paused_here | self.paused_for_all if self.paused_here or self.paused_for_all else _NONE
        groups = self._slots.groups(paused, self.wake)
        if not groups:
            return self.now() + _QUEUE_LOOK_S if self.paused_for_all else _NEVER
        taken, is_full, next_wake = 0, False, _NEVER
        for queues, limit in groups:
            limit = min(limit, self._slots.free)
            if limit <= 0:
                is_full = True
                continue
            claimed = await self._claim(queues, limit)
            taken += len(claimed.records)
            is_full = is_full or len(claimed.records) >= limit
            if claimed.next_wake_at is not None and claimed.next_wake_at < next_wake:
                next_wake = claimed.next_wake_at
        if is_full:
            if self._slots.free > 0:
                return _AT_ONCE
            self._slots.wait(self.wake)
            return _NEVER
        return self._next_turn(taken, next_wake - self._settings.lookahead_s)

    def _next_turn(self, taken: int, next_wake: float) -> float:
        now = self.now()
        if taken or next_wake > now:
            self._empty = 0
        else:
            # Due, and not to be had: another instance is taking it, or it is locked.
            self._empty += 1
            pause = _EMPTY_BACKOFF.delay(self._empty)
            next_wake = now + (1.0 if pause is None else pause.total_seconds())
        poll_s = self._settings.poll_s
        if next_wake < now + poll_s / 2:
            return next_wake
        return min(next_wake, now + poll_s * (1 + self._settings.poll_jitter * (2 * random.random() - 1)))

    @property
    def _unsettled(self) -> int:
        return len(self._done) + self._settling

    async def _claim(self, queues: Sequence[str], limit: int) -> Claimed:
        self._claims += 1
        token = f"{self.host.instance}:{self._claims}"
        lookahead_s = self._settings.lookahead_s
        asked_at = first_asked_at = self._clock.monotonic()

        def ask() -> Awaitable[Claimed]:
            nonlocal asked_at
            asked_at = self._clock.monotonic()
            return self._store.claim(queues, token, limit, self._lease_s, lookahead_s)

        claimed = await self._link.persist(ask)
        self._store_clock.read(asked_at, claimed.now)
        # A repeated claim gives what the first one took, whose lease has been running since.
        trusted_until = trust_end(first_asked_at, self._lease_s)
        for record in claimed.records:
            self._take(record, claimed.now, trusted_until)
        if self._spreads:
            await self._spread(claimed.now)
        if self._keeper is not None and claimed.records:
            self._keeper.notice(
                at_once=asked_at != first_asked_at and asked_at - first_asked_at > self._lease_s / 4
            )
        return claimed

    def wake(self) -> None:
        """Claim again as soon as may be."""
        self._is_woken = True
        if self._waiter is not None:
            _resolve(self._waiter)

    def _on_hint(self, wake_at: float | None) -> None:
        """While a claim is on its way whatever comes counts; while asleep, what comes before the planned wake."""
        if self._waiter is None:
            self._is_woken = True
        elif wake_at is None or wake_at - self._settings.lookahead_s < self._planned_wake:
            self.wake()

    async def _sleep(self, until: float) -> None:
        waiter = self._waiter = self._loop.create_future()
        timer: Timer | None = None
        if until < math.inf:
            # Half of the way to the server more: to be early would cost a claim.
            when = until - self._store_clock.offset + self._store_clock.slack_s
            # And never less than a nap: jobs due within microseconds of each other are one turn, not many.
            nap = self._clock.monotonic() + _NAP_S
            timer = self._clock.call_at(max(when, nap), self.wake)
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
        if held is not None and _is_of_same_run(held.record, record):
            self._adopt(held, record, trusted_until)
            return
        if self._is_draining:
            self._close(self._ledger.of_hand_back(record, now))
            return
        try:
            definition = decode_definition(record.body)
            cursor = decode_cursor(record.cursor)
            if record.tries > 1:
                self._refuse_crasher(record, definition.policies.max_crashes)
            rules = self.host.rules(definition.policies)
            key = (record.id, record.birth)
            step = decide(definition, cursor, record.hold, now, self._settings.lookahead_s, rules, key)
        except NewerFormatError as error:
            self._hand_back(record, str(error))
            return
        except Exception as error:
            self._quarantine(record, error)
            return
        if isinstance(step, Spread):
            self._spreads.append((record, definition, step.start))
            return
        if not isinstance(step, Start):
            if step.spans and self._bus.subscriptions:
                self._announcer.skipped(record, definition, step.spans)
            self._close(self._ledger.of_step(record, step, now))
            return
        task = self._tasks.get(record.task)
        if task is None:
            self._hand_back(record, f"no task is registered as {record.task!r} in this instance")
            return
        execution = self.held[record.id] = Execution(self, record, definition, step, task, trusted_until)
        self._slots.take(record.queue)
        if rules.overlap == "cancel_running" and step.following is not None and step.following < math.inf:
            execution.give_way_at(
                due_of(definition.trigger, step.following, rules, key) - self._store_clock.offset
            )
        if step.due > now:
            self._clock.call_at(step.due - self._store_clock.offset, lambda: self._launch(execution))
        else:
            self._launch(execution)

    async def _spread(self, now: float) -> None:
        """Give each overlapping job a child for its fire time, in a slot that is free. Only the holder of a job does so."""
        spreads, self._spreads = self._spreads, []
        slots = {record.id: family_of(record.id, self.host.rules(d.policies)) for record, d, _ in spreads}
        ids = [id for slots_of_job in slots.values() for id in slots_of_job]
        taken = await self._link.persist(lambda: self._store.get(ids))
        for record, definition, start in spreads:
            slot = next((id for id in slots[record.id] if id not in taken), None)
            settlement, spans = self._ledger.of_spread(record, definition, start, slot, now)
            if spans and self._bus.subscriptions:
                self._announcer.skipped(record, definition, spans)
            self._close(settlement)

    def _refuse_crasher(self, record: Record, max_crashes: int | None) -> None:
        limit = max_crashes or self.host.defaults.get("max_crashes") or MAX_CRASHES
        if is_quarantined(record.tries, limit):
            raise _Crashing(
                f"{record.tries - 1} claims in a row were lost: the job seems to kill its process"
            )

    def _launch(self, execution: Execution) -> None:
        if execution.end is not None or execution.work is not None or execution.reason is not None:
            return
        if self._bus.subscriptions:
            self._announcer.started(execution)
        execution.work = self._loop.create_task(execution.run(), name=execution.record.id)

    def _adopt(self, held: Execution, record: Record, trusted_until: float) -> None:
        """This instance was blocked past its lease and has claimed the job that it is still running: the attempt under way
        goes on under the new fence, and no second one starts beside it."""
        self.host.logger.warning(
            "the lease of run %s@%s ended while this instance was blocked; it goes on under fence %s",
            record.id, held.record.fence, record.fence,
        )  # fmt: skip
        held.record = record
        held.trusted_until = trusted_until

    def _hand_back(self, record: Record, reason: str) -> None:
        """Leave it for an instance that can run it, and look again later and later."""
        if len(self._handed) > _MAX_HANDED:
            self._handed.clear()
        times = self._handed[record.id] = self._handed.get(record.id, 0) + 1
        if times == 1:
            self.host.logger.warning("job %r is handed back: %s", record.id, reason)
        delay = _HAND_BACK.delay(times)
        self._close(
            self._ledger.of_hand_back(record, self.now() + (30.0 if delay is None else delay.total_seconds()))
        )
        if self._bus.subscriptions:
            self._announcer.handed_back(record, reason)

    def _quarantine(self, record: Record, error: BaseException) -> None:
        self.host.logger.error("job %r is quarantined: %s: %s", record.id, type(error).__name__, error)
        self._close(self._ledger.of_quarantine(record, error, self.now()))
        if self._bus.subscriptions:
            self._announcer.quarantined(record, f"{type(error).__name__}: {error}")

    # -- ending --------------------------------------------------------------------------------------------------------

    def run_ended(self, execution: Execution) -> None:
        """A run has ended: its slot is free, and its end is to be written."""
        self._slots.give(execution.record.queue)
        if execution.is_abandoned and execution.work is not None:
            self._abandoned.add(execution.work)
            execution.work.add_done_callback(self._abandoned.discard)
        if execution.reason == "lost":
            self._lose(execution)
        elif execution.committed is not None:
            self._confirming += 1
            self._group.create_task(self._confirm(execution))
        else:
            self._close(execution)
        if self._waits:
            self._observe(execution.record.id)

    async def _confirm(self, execution: Execution) -> None:
        """Apart from all others: if the user's transaction is open still, only this waits for it."""
        try:
            ended = await self._commits.confirm(execution)
            if ended == "lost":
                self._lose(execution)
            elif ended == "committed":
                self._settled(execution, self._settlement(execution), "done")
            else:
                await self._settle([(execution, self._settlement(execution))])
        except StoreError as error:
            self._link.failed(error)
            self._close(execution)
        finally:
            self._confirming -= 1
            self._observe(execution.record.id)

    def hand_back(self, execution: Execution) -> None:
        """As if it had not been claimed."""
        self._let_go(execution)
        if execution.work is not None and self._bus.subscriptions:
            # Its start has been told.
            self._announcer.lost(execution)
        self._slots.give(execution.record.queue)
        self._close(self._ledger.of_hand_back(execution.record, execution.start.due))

    def _let_go(self, execution: Execution) -> None:
        """Unless its job's next run is held already."""
        id = execution.record.id
        if self.held.get(id) is execution:
            del self.held[id]

    def _lose(self, execution: Execution) -> None:
        record = execution.record
        self._let_go(execution)
        self.host.logger.warning("run %s@%s lost its lease; its end is not written", record.id, record.fence)
        if self._bus.subscriptions:
            self._announcer.lost(execution)

    def _close(self, item: Item) -> None:
        self._done.append(item)
        if len(self._done) == 1:
            self._settle_event.set()

    async def _settle_for_ever(self) -> None:
        while True:
            await self._settle_event.wait()
            self._settle_event.clear()
            while self._done:
                batch, self._done = self._done[:_BATCH], self._done[_BATCH:]
                self._settling = len(batch)
                try:
                    await self._settle([(item, self._settlement(item)) for item in batch])
                finally:
                    self._settling = 0
                if self._is_full and self._unsettled < MAX_UNSETTLED:
                    self.wake()
            if self._observers:
                self._observe("")

    async def _without_zombies(self, pairs: Pairs) -> Pairs:
        """A run that ended after the trust in its lease is written only if the store says that it is held still: a successor may
        have run the job and deleted it, and then nothing there would refuse this one."""
        now = self._clock.monotonic()
        doubtful = [item for item, _ in pairs if isinstance(item, Execution) and item.trusted_until <= now]
        if not doubtful:
            return pairs
        claims = [Claim(e.record.id, e.record.fence, e.record.holder or "") for e in doubtful]
        versions = (await self._store.renew(claims, self._lease_s)).versions
        # One that was adopted meanwhile stays: it is refused under the old fence, and written under the new one.
        lost = [
            execution
            for execution, claim in zip(doubtful, claims, strict=True)
            if versions.get(claim.id, "lost") == "lost" and execution.record.fence == claim.fence
        ]
        for execution in lost:
            self._lose(execution)
            self._observe(execution.record.id)
        return [pair for pair in pairs if pair[0] not in lost]

    def _settlement(self, item: Item) -> Settlement:
        if type(item) is Settlement:
            return item
        assert isinstance(item, Execution)
        assert item.end is not None
        settlement, spans = self._ledger.of_run(item, item.end)
        if spans and self._bus.subscriptions:
            self._announcer.skipped(item.record, item.definition, spans)
        return settlement

    async def _settle(self, pairs: Pairs) -> None:
        async def write() -> list[Settled]:
            nonlocal pairs
            if self._keeper is not None:
                pairs = await self._without_zombies(pairs)
            return await self._store.settle([settlement for _, settlement in pairs])

        try:
            answers = await self._link.persist(write)
        except StoreError as error:
            await self._bisect(pairs, error)
            return
        for (item, settlement), answer in zip(pairs, answers, strict=True):
            self._settled(item, settlement, answer)

    def commit(self, execution: Execution, connection: object) -> AbstractAsyncContextManager[None]:
        return self._commits.commit(execution, connection)

    async def _bisect(self, pairs: Pairs, error: StoreError) -> None:
        """The store refuses something in the batch for good: find it, and settle it without what it cannot take."""
        if len(pairs) > 1:
            half = len(pairs) // 2
            await self._settle(pairs[:half])
            await self._settle(pairs[half:])
            return
        item, refused = pairs[0]
        self.host.logger.error(
            "the end of job %r cannot be written (%s): it is quarantined", refused.id, error
        )
        execution = item if isinstance(item, Execution) else None
        for bare in self._ledger.of_poison(execution, refused, error):
            try:
                [answer] = await self._link.persist(partial(self._store.settle, [bare]))
            except StoreError:
                continue
            if execution is not None and self._bus.subscriptions:
                self._announcer.quarantined(execution.record, str(error))
            self._settled(item, bare, answer)
            return
        self.host.logger.critical(
            "job %r could not be settled at all; its lease will end by itself", refused.id
        )
        self._settled(item, refused, "lost")

    def _settled(self, item: Item, settlement: Settlement, answer: Settled) -> None:
        if type(item) is Execution:
            if answer == "lost" and item.record.fence != settlement.fence:
                # It was adopted under a new fence while this settlement was on its way.
                self._close(item)
                return
            self._let_go(item)
            if self._bus.subscriptions:
                self._announcer.settled(item, answer)
        if answer != "done":
            self._settled_otherwise(settlement, answer)
        wake_at = settlement.wake_at
        if wake_at is not None and wake_at < self._planned_wake:
            self._on_hint(wake_at)
        if self.on_settled or self._observers:
            self._observe(settlement.id)

    def _settled_otherwise(self, settlement: Settlement, answer: Settled) -> None:
        if answer == "lost":
            self.host.logger.warning(
                "the end of %s@%s was refused: another holds it", settlement.id, settlement.fence
            )
        elif answer == "stale":
            self.wake()


def _is_of_same_run(held: Record, claimed: Record) -> bool:
    """Whether a job that was claimed while this instance holds it is in the run that is held: not if that was settled, and its
    answer was lost or is on its way, and not if the job was removed and added again."""
    return claimed.settled < held.fence and claimed.birth == held.birth


class _Crashing(Exception):
    """The job has killed too many of its runners."""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
