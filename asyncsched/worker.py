"""The claim loop of one store: claim what is due, start it, settle what has ended, and sleep until the next wake time.

Two round trips for a batch, not for a run: one claims it, and one settles it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from msgspec.structs import replace

from asyncsched.alarm import AT_ONCE, NEVER, Alarm, Turns
from asyncsched.announce import Announcer
from asyncsched.codec import decode_cursor, decode_definition
from asyncsched.commits import Commits
from asyncsched.contract import Claimed, JobStore, Record, Settled, Settlement
from asyncsched.definition import Definition
from asyncsched.errors import DefinitionError, NewerFormatError
from asyncsched.events import Bus
from asyncsched.execution import Execution, Host
from asyncsched.flowwork import OUR_TASKS, FlowWork
from asyncsched.ids import queue_mark
from asyncsched.keeper import Keeper, trust_end
from asyncsched.ledger import Ledger
from asyncsched.limits import Limits
from asyncsched.link import Link
from asyncsched.news import News
from asyncsched.plan import MAX_CRASHES, Spread, Start, decide, due_of, is_quarantined
from asyncsched.registry import AnyTask
from asyncsched.rules import Rules, family_of, places_of
from asyncsched.settings import Settings
from asyncsched.settler import Item, Settler
from asyncsched.slots import Slots
from asyncsched.storeclock import StoreClock
from asyncsched.watch import Watch

__all__ = ["Worker"]

#: A worker that holds so many unwritten ends claims nothing more.
MAX_UNSETTLED = 1000
#: How often to look whether a queue was paused for all instances.
_QUEUE_LOOK_S = 5.0
#: How long a stop waits for a claim that is on its way.
_LAST_CLAIM_S = 5.0
_NONE: frozenset[str] = frozenset()


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
        self.watch = Watch(bus, alias, self.now, settings.health, host.rules)
        self._announcer = Announcer(bus, alias, self.now, self.watch)
        self._commits = Commits(store, alias, self._link, self._ledger)
        self._news = News(store, host.clock, self.held, self._link.failed, self._errand)
        #: End the run that a record names, if it is here.
        self.cancel = self._news.cancel
        self._flows = FlowWork(store, alias, self._link, bus, self.now, self.cancel, host.logger)
        self._bus = bus
        lives_here = not store.capabilities.shared and not store.capabilities.durable
        self._lease_s = math.inf if lives_here else settings.lease_s
        self._keeper: Keeper | None = None
        self._limits = Limits(
            self, store, self._link, self._ledger, self._announcer, self._lease_s, settings.lookahead_s,
            lambda item: self._close(item), self._errand,
        )  # fmt: skip
        self._settler = Settler(
            self, store, self._link, self._ledger, self._announcer, self._limits, self._lease_s, settings.pace_s
        )  # fmt: skip
        self._close = self._settler.close
        if not lives_here:
            self._keeper = Keeper(
                store, host.clock, self._lease_s, self.held, self._renewed, self._link.failed, self._news.look_at,
                self._limits.grants, self._limits.renew,
            )  # fmt: skip
        #: Of this worker alone, for ever: who claims under another's token is given what that one holds.
        self._name = f"{host.instance}:{secrets.token_hex(4)}"
        self._claims = 0
        self._spreads: list[tuple[Record, Definition, Start]] = []
        self._turns = Turns(self.now, settings.poll_s, settings.poll_jitter)
        self._look_again_at = -math.inf
        #: The queues that were looked at.
        self._looked_at: Mapping[str, int | None] | None = None
        self._is_draining = False
        self._is_cut = False
        self.is_claiming = False
        self._alarm = Alarm(host.clock, store_clock, settings.lookahead_s, settings.pace_s)
        #: Claim again as soon as may be.
        self.wake = self._alarm.wake
        #: Runs that committed in a transaction of the user's, and are not known to have done so yet; and workflows on the move.
        self._confirming = 0
        self._is_full = False
        self._observers: list[asyncio.Future[None]] = []
        self._waits = 0
        self._drains: list[asyncio.Future[None]] = []
        self._abandoned: set[asyncio.Task[None]] = set()
        self._beside: set[Execution] = set()

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        self._loop = asyncio.get_running_loop()
        end_hints = self._news.listen(self._alarm.hint, self._keeper)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._group = tasks
                tasks.create_task(self._settler.run(), name=f"asyncsched-settle-{self.alias}")
                if self._keeper is not None:
                    tasks.create_task(self._keeper.run(), name=f"asyncsched-keep-{self.alias}")
                await self._claim_for_ever()
        finally:
            end_hints()

    def end(self) -> None:
        """Its tasks are cancelled now, and that holds even where a driver loses it."""
        self._link.is_ending = True

    async def drain(self, timeout_s: float) -> list[str]:
        """Claim nothing more; let runs end for *timeout_s*, then cancel them, then give them up.

        Returns the ids of the runs that were abandoned.
        """
        self._is_draining = self._limits.is_draining = self._settler.is_hurried = True
        # What a claim that is on its way brings is handed back.
        await self._wait_until(lambda: not self.is_claiming, _LAST_CLAIM_S)
        for execution in list(self.held.values()):
            if execution.work is None and execution.end is None:
                self.hand_back(execution)
        if timeout_s > 0:
            await self._wait_until(lambda: not self._running(), timeout_s, can_be_cut=True)
        for execution in self._running():
            execution.cancel("shutdown")
        grace_s = max((e.policy("cancel_grace", 5.0) for e in self._running()), default=0.0)
        await self._wait_until(lambda: not self._running(), grace_s)
        return self.give_up()

    def give_up(self) -> list[str]:
        """Leave the runs that have not ended to others, and return their ids."""
        abandoned = self._running()
        for execution in abandoned:
            # Whatever ended the wait for them, they are made again.
            execution.cancel("shutdown")
            execution.abandon()
        return [f"{e.record.id}@{e.record.fence}" for e in abandoned]

    def go_on(self) -> None:
        """A drain was given up: claim again."""
        self._is_draining = self._limits.is_draining = self._settler.is_hurried = False
        self.wake()

    async def flush(self) -> None:
        """Return once every end has been written."""
        while len(self._settler) or self._confirming:
            await self._changed()

    def cut_drain(self) -> None:
        """Whoever waits for the drain, or is about to, has no more time."""
        self._is_cut = True
        for over in self._drains:
            _resolve(over)

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return sum(e.work is not None and e.end is None for e in self.held.values())

    @property
    def is_degraded(self) -> bool:
        """Whether its store does not answer."""
        return self._link.is_degraded

    def serves(self, record: Record) -> bool:
        """Whether a job would be run here now."""
        is_paused = self.is_paused or record.queue in self.paused_here | self.paused_for_all
        return not is_paused and record.queue in self._slots.queues and record.task in self._tasks

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(self._link.guard(work))

    def _running(self) -> list[Execution]:
        return [e for e in (*self.held.values(), *self._beside) if e.end is None]

    async def _wait_until(
        self, is_so: Callable[[], bool], timeout_s: float, *, can_be_cut: bool = False
    ) -> None:
        if is_so() or (can_be_cut and self._is_cut):
            return
        over = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(self._clock.monotonic() + timeout_s, lambda: _resolve(over))
        self._waits += 1
        if can_be_cut:
            self._drains.append(over)
        try:
            while not is_so() and not over.done():
                change = self._changed()
                await asyncio.wait([over, change], return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
        finally:
            timer.cancel()
            self._waits -= 1
            if can_be_cut:
                self._drains.remove(over)

    def _changed(self) -> asyncio.Future[None]:
        """Done when a run has ended or has been settled from now on."""
        future = asyncio.get_running_loop().create_future()
        self._observers.append(future)
        return future

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
            self._alarm.claiming()
            self.is_claiming = True
            try:
                while (
                    self._slots.queues is not self._looked_at
                    or self._clock.monotonic() >= self._look_again_at
                ):
                    await self._look_at_queues()
                wake = await self._turn()
            except Exception as error:
                # Refused for good, as far as the store can tell; it may be mended while this goes on.
                self._link.failed(error)
                wake = self.now() + self._settings.poll_s
            finally:
                self.is_claiming = False
            if self._waits:
                self._observe("")
            await self._alarm.sleep(wake)

    async def _look_at_queues(self) -> None:
        """Which queues are paused for all instances: said by a record of its own, read every few seconds."""
        self._look_again_at = self._clock.monotonic() + _QUEUE_LOOK_S
        queues = self._looked_at = self._slots.queues
        if not queues:
            return
        marks = {queue_mark(name): name for name in queues}
        found = await self._link.persist(lambda: self._store.get(list(marks)))
        self.paused_for_all = {marks[id] for id in found}
        # The answer may have taken longer than that.
        self._look_again_at = self._clock.monotonic() + _QUEUE_LOOK_S

    async def _turn(self) -> float:
        """Claim and start once; return the instant (the store's clock) to claim again at."""
        self._is_full = len(self._settler) >= MAX_UNSETTLED
        if self.is_paused or self._is_draining or self._is_full:
            return NEVER
        paused = self.paused_here | self.paused_for_all if self.paused_here or self.paused_for_all else _NONE
        groups = self._slots.groups(paused, self.wake)
        if not groups:
            return self.now() + _QUEUE_LOOK_S if self.paused_for_all else NEVER
        taken, is_full, next_wake, claimed_at = 0, False, NEVER, NEVER
        for queues, limit in groups:
            limit = min(limit, self._slots.free)
            if limit <= 0:
                is_full = True
                continue
            claimed = await self._claim(queues, limit)
            taken += len(claimed.records)
            is_full = is_full or len(claimed.records) >= limit
            if claimed.next_wake_at is not None and claimed.next_wake_at < next_wake:
                next_wake, claimed_at = claimed.next_wake_at, claimed.now
        if is_full:
            if self._slots.free > 0:
                return AT_ONCE
            self._slots.wait(self.wake)
            return NEVER
        return self._turns.next(taken, next_wake - self._settings.lookahead_s, claimed_at)

    async def _claim(self, queues: Sequence[str], limit: int) -> Claimed:
        self._claims += 1
        token = f"{self._name}.{self._claims}"
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
        if self._limits.asking:
            asked = {ask.record.id for ask in self._limits.asking}
            await self._limits.admit(claimed.now)
            if self._keeper is None:
                # Nobody renews what has begun: that it was to end again was told before it was held.
                await self._news.look_at([self.held[id] for id in asked if id in self.held])
        is_old = self._clock.monotonic() - first_asked_at > self._lease_s / 4
        if self._keeper is not None and claimed.records and is_old:
            self._keeper.notice(at_once=True)
        return claimed

    # -- starting ------------------------------------------------------------------------------------------------------

    def _take(self, record: Record, now: float, trusted_until: float) -> None:
        """Decide what a claimed record is to do, and have it done; whatever is wrong with it stays with it."""
        held = self.held.get(record.id)
        if held is not None and held.is_run_of(record):
            self._adopt(held, record, trusted_until)
            return
        if held is not None and held.end is None:
            self._set_aside(held)
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
            self.quarantine(record, error)
            return
        if isinstance(step, Spread):
            self._spreads.append((record, definition, step.start))
            return
        if not isinstance(step, Start):
            if step.spans and self._bus.subscriptions:
                self._announcer.skipped(record, definition, step.spans)
            self._close(self._ledger.of_decision(record, definition, step, now))
            return
        task = self._tasks.get(record.task) or OUR_TASKS.get(record.task)
        if task is None and self._flows.takes(record):
            self._errand(self._move_on(record, definition))
            return
        if task is None:
            self._hand_back(record, f"no task is registered as {record.task!r} in this instance")
            return
        if task.is_limited or rules.is_limited:
            try:
                self._limits.ask(record, definition, step, task, rules, trusted_until)
            except DefinitionError as error:
                self.quarantine(record, error)
            return
        self.begin(record, definition, step, task, rules, trusted_until, now)

    def begin(
        self,
        record: Record,
        definition: Definition,
        start: Start,
        task: AnyTask,
        rules: Rules,
        trusted_until: float,
        now: float,
    ) -> None:
        """Have it run, at once or when it is due."""
        following = start.following
        gives_way_at: float | None = None
        # One that has passed already waits behind this run, and cancels nothing.
        if rules.overlap == "cancel_running" and following is not None and now < following < math.inf:
            try:
                gives_way_at = due_of(definition.trigger, following, rules, (record.id, record.birth))
            except Exception as error:
                self.quarantine(record, error)
                return
        execution = self.held[record.id] = Execution(self, record, definition, start, task, trusted_until)
        if self._keeper is not None:
            self._keeper.notice()
        if gives_way_at is not None:
            execution.give_way_at(self._store_clock.instant(gives_way_at))
        self._slots.seat(execution, record.queue, lambda: self._await_due(execution, now))

    def _await_due(self, execution: Execution, now: float) -> None:
        if execution.start.due > now:
            execution.begin_at(self._store_clock.instant(execution.start.due), self._launch)
        else:
            self._launch(execution)

    async def _spread(self, now: float) -> None:
        """Give each overlapping job a child for its fire time, in a slot that is free. Only the holder of a job does so."""
        spreads, self._spreads = self._spreads, []
        slots = {
            record.id: family_of(record.id, places_of(self.host.rules(d.policies)))
            for record, d, _ in spreads
        }
        ids = [id for slots_of_job in slots.values() for id in slots_of_job]
        taken = await self._link.persist(lambda: self._store.get(ids))
        for record, definition, start in spreads:
            slot = next((id for id in slots[record.id] if id not in taken), None)
            try:
                settlement, spans = self._ledger.of_spread(record, definition, start, slot, now)
            except Exception as error:
                self.quarantine(record, error)
                continue
            if spans and self._bus.subscriptions:
                self._announcer.skipped(record, definition, spans)
            self._close(settlement)

    def _refuse_crasher(self, record: Record, max_crashes: int | None) -> None:
        limit = max_crashes or self.host.defaults.get("max_crashes") or MAX_CRASHES
        if is_quarantined(record.tries, limit):
            raise _Crashing(
                f"{record.tries - 1} claims in a row were lost: the job seems to kill its process, or to block its loop; "
                f"or else the store takes longer than a lease of {self._lease_s:g} s: give it lease="
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
        self._limits.adopt(held.record, record)
        # What was updated since then is not in its plan: the settlement is stale under this fence too.
        held.record = replace(
            held.record, fence=record.fence, holder=record.holder, tries=record.tries, prior=record.prior
        )
        held.trusted_until = trusted_until
        held.is_held_again = held.reason == "lost"

    def _set_aside(self, held: Execution) -> None:
        """Its job was removed and is there anew: what has begun may end, beside the next run."""
        self._let_go(held)
        if held.work is None:
            self.hand_back(held)
        else:
            self._beside.add(held)

    async def _move_on(self, record: Record, definition: Definition) -> None:
        """A record of a workflow: apart from all others, but as one of so many at a time."""
        self._slots.take(record.queue)
        self._confirming += 1
        try:
            self._close(await self._flows.settlement(record, definition))
        finally:
            self._confirming -= 1
            self._slots.give(record.queue)
            self._observe(record.id)

    def _hand_back(self, record: Record, reason: str) -> None:
        """Leave it for an instance that can run it, and look again later and later."""
        until, is_first = self._alarm.hand_back(record.id)
        if is_first:
            self.host.logger.warning("job %r is handed back: %s", record.id, reason)
        self._close(self._ledger.of_hand_back(record, until))
        if self._bus.subscriptions:
            self._announcer.handed_back(record, reason)

    def quarantine(self, record: Record, error: BaseException) -> None:
        """Keep a claimed record out of the way, with the reason in its log."""
        self.host.logger.error("job %r is quarantined: %s: %s", record.id, type(error).__name__, error)
        self._close(self._ledger.of_quarantine(record, error, self.now()))
        if self._bus.subscriptions:
            self._announcer.quarantined(record, f"{type(error).__name__}: {error}")

    # -- ending --------------------------------------------------------------------------------------------------------

    def run_ended(self, execution: Execution) -> None:
        """A run has ended: its slot is free, and its end is to be written."""
        self._slots.leave(execution, execution.record.queue)
        self._beside.discard(execution)
        if execution.is_abandoned and execution.work is not None:
            self._abandoned.add(execution.work)
            execution.work.add_done_callback(self._abandoned.discard)
        if execution.reason == "lost" and execution.committed is None and not execution.is_held_again:
            self.lost(execution)
        elif execution.committed is not None:
            self._confirming += 1
            self._errand(self._confirm(execution))
        else:
            self._close(execution)
        if self._waits:
            self._observe(execution.record.id)

    async def _confirm(self, execution: Execution) -> None:
        """Apart from all others: if the user's transaction is open still, only this waits for it."""
        try:
            ended = await self._commits.confirm(execution)
            if ended == "lost":
                self.lost(execution)
            elif ended == "committed":
                self._limits.let_go(execution.record)
                self.settled(execution, self._settler.settlement(execution), "done")
            else:
                await self._settler.settle([execution])
        except Exception as error:
            self._link.failed(error)
            self._close(execution)
        finally:
            self._confirming -= 1
            self._observe(execution.record.id)

    def hand_back(self, execution: Execution) -> None:
        """As if it had not been claimed."""
        execution.withdraw()
        self._let_go(execution)
        if execution.work is not None and self._bus.subscriptions:
            # Its start has been told.
            self._announcer.lost(execution)
        self._slots.leave(execution, execution.record.queue)
        self._close(self._ledger.of_hand_back(execution.record, execution.start.due))

    def _let_go(self, execution: Execution) -> None:
        """Unless its job's next run is held already."""
        id = execution.record.id
        if self.held.get(id) is execution:
            del self.held[id]

    def lost(self, execution: Execution) -> None:
        """Another has its job, so its end is not written."""
        record = execution.record
        self._limits.let_go(record)
        self._let_go(execution)
        self.host.logger.warning("run %s@%s lost its lease; its end is not written", record.id, record.fence)
        if self._bus.subscriptions:
            self._announcer.lost(execution)
        self._observe(record.id)

    def commit(self, execution: Execution, connection: object) -> AbstractAsyncContextManager[None]:
        return self._commits.commit(execution, connection)

    def written(self) -> None:
        """The settler is done with a batch."""
        if self._is_full and len(self._settler) < MAX_UNSETTLED:
            self.wake()
        if self._observers and not len(self._settler):
            self._observe("")

    def settled(self, item: Item, settlement: Settlement, answer: Settled) -> None:
        """The store has answered to what ended so."""
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
        if settlement.wake_at is not None:
            self._alarm.hint(settlement.wake_at)
        if self.on_settled or self._observers:
            self._observe(settlement.id)

    def _settled_otherwise(self, settlement: Settlement, answer: Settled) -> None:
        if answer == "lost":
            self.host.logger.warning(
                "the end of %s@%s was refused: another holds it", settlement.id, settlement.fence
            )
        elif answer == "stale":
            self.wake()


class _Crashing(Exception):
    """The job has killed too many of its runners."""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
