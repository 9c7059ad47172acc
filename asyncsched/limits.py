"""Limits over all instances: how many runs may be under way with a key or of a task, and how many may start in which time.

A *place* is a named lease (``limit/key/NAME/0``), so the count is that of live leases, and an instance that dies frees its
places by doing nothing. A claimed job that gets none is parked: settled with the limit as its hold, out of the way of all
others. The settlement of a run that had a place wakes the first in the line, and one more: who finds no place stays at the head
and looks by itself now and then, for whoever held the place may have died. All others sleep, however many they are.

A *bucket* is a hidden record that says until when tokens are given away. A job over its rate is settled with an instant of its
own, and starts at that.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from asyncsched.announce import Announcer
from asyncsched.buckets import Buckets
from asyncsched.codec import decode_cursor, decode_definition
from asyncsched.contract import Filter, JobStore, Lease, Record, Settled, Settlement, Update
from asyncsched.definition import Definition, Policies
from asyncsched.errors import SerializationError, StoreError, StoreUnavailable
from asyncsched.execution import Execution, Host
from asyncsched.ids import LIMITS, base_id, fitted, is_limit
from asyncsched.ledger import Ledger
from asyncsched.link import Link
from asyncsched.outlast import heeding
from asyncsched.plan import Start, put_off
from asyncsched.rates import Line, Rate, parse_rate
from asyncsched.registry import AnyTask
from asyncsched.rules import Rules

__all__ = ["Ask", "Limits", "limits_of", "sharers_of"]

#: A start that was given an instant keeps it for so long; after that too many of them may have come together.
_KEEPS_S = 1.0
#: How long a look at a place may keep it from others, at the worst.
_LOOK_S = 5.0
_LONGEST_LOOK_S = 30.0
#: So many are woken where a place may have become free: one who takes it, and one who stays at the head of the line.
_WAKES = 2
_MANY = 10_000
#: So many lines without a head are looked at in one go.
_LINES = 20
#: To find out who has the places.
_LOOKED_THROUGH = 1000

Pairs = Sequence[tuple[Execution | Settlement, Settlement]]
Answers = Sequence[Settled]


class Ask(msgspec.Struct, eq=False):
    """A claimed job that would start now, if its limits let it."""

    record: Record
    definition: Definition
    start: Start
    task: AnyTask
    rules: Rules
    trusted_until: float
    #: By name, so many places.
    limits: dict[str, int]
    rates: dict[str, Rate]
    #: When its rates let it start.
    at: float = 0.0
    #: Whether the instant that it was given has passed without it.
    is_late: bool = False
    #: The instant that is its own, because it has drawn for it, and whether a rate has not been asked yet.
    admitted: float | None = None
    owes: bool = False
    #: The limit that has no place for it.
    lacks: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        return (self.record.id, self.record.fence)


class Grant(NamedTuple):
    """The places of one run."""

    names: tuple[str, ...]
    leases: tuple[Lease, ...]


class Owner(Protocol):
    """The worker."""

    host: Host
    held: dict[str, Execution]

    def now(self) -> float:
        """The store's clock."""
        ...

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
        """Have it run."""
        ...

    def quarantine(self, record: Record, error: BaseException) -> None:
        """Keep a claimed record out of the way."""
        ...

    def serves(self, record: Record) -> bool:
        """Whether a job would be run here now."""
        ...


class Limits:
    """The limits of one worker's jobs."""

    def __init__(
        self,
        owner: Owner,
        store: JobStore,
        link: Link,
        ledger: Ledger,
        announcer: Announcer,
        lease_s: float,
        lookahead_s: float,
        close: Callable[[Settlement], None],
        errand: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        #: Claimed, and not decided yet.
        self.asking: list[Ask] = []
        #: By job id and fence of the run.
        self.grants: dict[tuple[str, int], Grant] = {}
        #: Whether anything here has been limited yet; until then nothing needs to be looked at.
        self.is_used = False
        #: Nothing begins any more.
        self.is_draining = False
        self._owner = owner
        #: Has it settled, and has it done apart.
        self._close = close
        self._errand = errand
        self._store = store
        self._link = link
        self._ledger = ledger
        self._announcer = announcer
        self._lease_s = lease_s
        self._lookahead_s = lookahead_s
        self._buckets = Buckets(store, link, owner.host.clock)
        self._look_s = min(lease_s, _LONGEST_LOOK_S)
        self._line = Line(self._look_s, random.random)
        self._is_watching = False
        self._sizes: dict[str, int] = {}
        #: Holders are never used again, not even by an instance that is given the same id.
        self._name = f"{owner.host.instance}/{secrets.token_hex(4)}"
        self._holders = 0
        #: Second limits of runs that have left: their lines are moved on after the settlement.
        self._others: Counter[str] = Counter()

    def ask(
        self,
        record: Record,
        definition: Definition,
        start: Start,
        task: AnyTask,
        rules: Rules,
        trusted_until: float,
    ) -> None:
        """Put the question; ``admit`` answers all of them together."""
        self.is_used = True
        limits, rates = limits_of(task, rules), _rates_of(task, rules)
        self.asking.append(Ask(record, definition, start, task, rules, trusted_until, limits, rates))

    async def admit(self, now: float) -> None:
        """Begin what may begin, and settle the others; raises StoreError where the store refuses for good."""
        asking, self.asking = self.asking, []
        asking.sort(key=_turn)
        try:
            await self._decide(asking, now)
        except StoreError:
            for ask in asking:
                self._close(self._ledger.of_hand_back(ask.record, now + 1.0))
            raise
        horizon = now + self._lookahead_s
        for ask in asking:
            if ask.lacks is not None:
                self._park(ask, now)
            elif ask.at > horizon or (ask.limits and ask.key not in self.grants):
                # Whoever may start after all, and asked for no place, comes back for one.
                self._delay(ask, now)
            elif self.is_draining:
                self._close(self._ledger.of_hand_back(ask.record, now))
            else:
                self._begin(ask, now)
        if self._buckets.is_sweep_due():
            self._errand(self._buckets.sweep(now))

    def _begin(self, ask: Ask, now: float) -> None:
        # An instant that its rate gave it, and that is still to come.
        start = replace(ask.start, due=ask.at) if ask.at > now else ask.start
        self._owner.begin(
            ask.record, ask.definition, start, ask.task, ask.rules, ask.trusted_until, self._owner.now()
        )

    async def _decide(self, asking: Sequence[Ask], now: float) -> None:
        """Rates are looked at first, so that nobody takes a place who has to wait; drawn from last, so that nobody draws who has
        no place."""
        horizon = now + self._lookahead_s
        drawing = {ask.key: rates for ask in asking if (rates := _drawn_by(ask, now, horizon))}
        earliest = {ask.key: ask.at for ask in asking}
        if drawing:
            await self._buckets.read({name for rates in drawing.values() for name in rates})
            for ask in asking:
                if ask.key in drawing:
                    ask.at = self._buckets.peek(drawing[ask.key], ask.at, ask.is_late, horizon)
        await self._take_places([ask for ask in asking if ask.limits and ask.at <= horizon])
        drawers = [ask for ask in asking if ask.key in drawing and ask.lacks is None]
        if drawers:
            # Whoever has a place goes first.
            drawers.sort(key=lambda ask: ask.at > horizon)
            wishes = [(drawing[ask.key], earliest[ask.key], ask.is_late) for ask in drawers]
            for ask, given in zip(drawers, await self._buckets.draw(wishes, horizon), strict=True):
                ask.at = given.at
                ask.admitted = given.at if given.drawn or ask.owes else None
                ask.owes = ask.admitted is not None and given.drawn < len(drawing[ask.key])

    # -- places --------------------------------------------------------------------------------------------------------

    async def _take_places(self, asking: Sequence[Ask]) -> None:
        """Each that asks gets a place of all its limits, or none of any."""
        if not asking:
            return
        free = await self._acquire(asking)
        for ask in asking:
            found = {name: _place(free.get(name, ()), size) for name, size in ask.limits.items()}
            ask.lacks = next((name for name, lease in found.items() if lease is None), None)
            if ask.lacks is None:
                leases = tuple(lease for lease in found.values() if lease is not None)
                for name, lease in zip(found, leases, strict=True):
                    free[name].remove(lease)
                    self._line.leave(LIMITS + name, ask.record.id)
                self.grants[ask.key] = Grant(tuple(found), leases)
        left = {name: leases for name, leases in free.items() if leases}
        if left:
            await self._link.persist(
                lambda: self._store.release([one for some in left.values() for one in some])
            )
            # Meanwhile somebody else may have missed them.
            self._errand(self._wake({name: len(leases) for name, leases in left.items()}))

    async def _acquire(self, asking: Sequence[Ask]) -> dict[str, list[Lease]]:
        """So many places of each limit as are wanted and free: one call for all that are wanted whole, else one for each."""
        wanted = Counter(name for ask in asking for name in ask.limits)
        sizes: dict[str, int] = {}
        for ask in asking:
            for name, size in ask.limits.items():
                sizes[name] = max(size, sizes.get(name, 0))
        if len(self._sizes) > _MANY:
            self._sizes.clear()
        self._sizes |= sizes
        holder = self._holder()
        whole = [
            place for name, size in sizes.items() if wanted[name] >= size for place in _places(name, size)
        ]
        calls = [self._ask_for(whole, holder, None)] if whole else []
        calls += [
            self._ask_for(_places(name, size), holder, wanted[name])
            for name, size in sizes.items()
            if wanted[name] < size
        ]
        found: dict[str, list[Lease]] = {name: [] for name in sizes}
        refused: BaseException | None = None
        for taken in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(taken, BaseException):
                refused = taken
                continue
            for lease in taken.values():
                found[lease.key.removeprefix(LIMITS).rpartition("/")[0]].append(lease)
        if refused is not None:
            await self._link.persist(
                lambda: self._store.release([one for some in found.values() for one in some])
            )
            raise refused
        return found

    async def _ask_for(self, places: Sequence[str], holder: str, limit: int | None) -> dict[str, Lease]:
        return await self._link.persist(lambda: self._store.acquire(places, holder, self._lease_s, limit))

    def _holder(self) -> str:
        self._holders += 1
        return f"{self._name}:{self._holders}"

    async def renew(self) -> None:
        """Keep the places of all runs; a run that has lost one is cancelled. Raises StoreError."""
        if not self.grants:
            return
        asked = dict(self.grants)
        leases = [lease for grant in asked.values() for lease in grant.leases]
        kept = await self._store.extend(leases, self._lease_s)
        for key, grant in asked.items():
            lost = [lease for lease in grant.leases if lease.key not in kept]
            if lost and self.grants.get(key) is grant:
                await self._take_back(key, grant, lost)

    async def _take_back(self, key: tuple[str, int], grant: Grant, lost: Sequence[Lease]) -> None:
        taken = await self._store.acquire([lease.key for lease in lost], lost[0].holder, self._lease_s)
        if self.grants.get(key) is not grant:
            # The run has left meanwhile, and nobody would free them.
            await self._store.release(list(taken.values()))
            return
        leases = tuple(taken.get(lease.key, lease) for lease in grant.leases)
        self.grants[key] = Grant(grant.names, leases)
        id, fence = key
        if len(taken) == len(lost):
            self._owner.host.logger.warning(
                "run %s@%s had lost its place under a limit, and has it back", id, fence
            )
            return
        execution = self._owner.held.get(id)
        if execution is not None and execution.record.fence == fence and execution.end is None:
            self._owner.host.logger.error(
                "run %s@%s is cancelled: it lost its place under the limit %s to another",
                id,
                fence,
                grant.names[0],
            )
            execution.cancel("limit")

    def adopt(self, held: Record, record: Record) -> None:
        """The run goes on under another fence."""
        grant = self.grants.pop((held.id, held.fence), None)
        if grant is not None:
            self.grants[record.id, record.fence] = grant

    # -- leaving -------------------------------------------------------------------------------------------------------

    async def leave(self, pairs: Pairs) -> Pairs:
        """Free the places of runs that are about to be settled; their settlements move the lines on."""
        leaving = [(at, (s.id, s.fence)) for at, (_, s) in enumerate(pairs) if (s.id, s.fence) in self.grants]
        if not leaving:
            return pairs
        try:
            await self._store.release([lease for _, key in leaving for lease in self.grants[key].leases])
        except StoreUnavailable:
            raise
        except StoreError as error:
            # They end by themselves; that is no reason not to write how the runs ended.
            self._link.failed(error)
        changed = list(pairs)
        seen: set[str] = set()
        for at, key in leaving:
            grant = self.grants.pop(key, None)
            if grant is None:
                # Its run goes on under another fence, under which it will be settled.
                continue
            item, settlement = changed[at]
            hold = LIMITS + grant.names[0]
            wakes = 1 if hold in seen else _WAKES
            seen.add(hold)
            changed[at] = (item, replace(settlement, unpark=(hold, wakes)))
            self._others.update(grant.names[1:])
        # Who is parked in the same call can be woken by it.
        changed.sort(key=lambda pair: pair[1].unpark is not None)
        return changed

    def settled(self, pairs: Pairs, answers: Answers) -> None:
        """Look again where somebody was parked while a place became free, and where a line was not moved on."""
        unmoved, self._others = self._others, Counter()
        parked: set[str] = set()
        for (_, settlement), answer in zip(pairs, answers, strict=True):
            if settlement.unpark is not None:
                if answer in ("lost", "gone"):
                    unmoved[settlement.unpark[0].removeprefix(LIMITS)] += 1
            elif settlement.hold is not None and is_limit(settlement.hold) and answer == "done":
                parked.add(settlement.hold.removeprefix(LIMITS))
        # No store says that a settlement wakes one that was parked in the same call.
        parked = {name for name in parked if not self._has_all(name)}
        if parked or unmoved:
            self._errand(self._look(parked, unmoved))

    def let_go(self, record: Record) -> None:
        """A run has left without a settlement of its own here."""
        grant = self.grants.pop((record.id, record.fence), None)
        if grant is not None:
            self._errand(self._release(grant))

    async def _release(self, grant: Grant) -> None:
        try:
            await self._store.release(grant.leases)
        except StoreError:
            return
        await self._wake(Counter(grant.names))

    def _has_all(self, name: str) -> bool:
        """Whether all places are taken by runs of this worker, whose settlements will move the line on."""
        return sum(name in grant.names for grant in self.grants.values()) >= self._sizes.get(name, 1)

    async def _look(self, parked: Iterable[str], unmoved: Counter[str]) -> None:
        """A place that became free between the look at it and the parking was missed: nobody would be woken for it."""
        try:
            for name in parked:
                places = _places(name, self._sizes.get(name, 1))
                free = await self._store.acquire(places, self._holder(), _LOOK_S, 1)
                if free:
                    await self._store.release(list(free.values()))
                    unmoved[name] += 1
        except StoreError:
            # The head of the line looks by itself.
            return
        await self._wake(unmoved)

    async def _wake(self, places: Mapping[str, int]) -> None:
        """Have the first of these lines ask again: one for each place that may be free, and one who stays at the head."""
        try:
            for name, count in places.items():
                for record in await self._store.page(Filter(hold=LIMITS + name), count - 1 + _WAKES):
                    if record.holder is None:
                        await self._store.update(_woken(record, self._owner.now()))
        except StoreError:
            return

    async def _watch(self) -> None:
        """See to it that lines in which some sleep have a head. All who were woken may be unable to come: their queue is paused,
        or served by nobody any more."""
        try:
            while self._line.has_sleepers():
                await self._owner.host.clock.sleep(self._look_s)
                lines = self._line.headless(self._owner.now())
                for hold in random.sample(lines, min(_LINES, len(lines))):
                    with contextlib.suppress(StoreError):
                        await heeding(self._lead(hold))
        finally:
            self._is_watching = False

    async def _lead(self, hold: str) -> None:
        """Have one in a line come that this instance would run, unless there is one who is about to."""
        ids = self._line.known(hold)
        found = await self._store.get(ids)
        for id in ids:
            if id not in found or found[id].hold != hold:
                self._line.leave(hold, id)
        coming = [
            (record.wake_at, record)
            for record in found.values()
            if record.hold == hold and record.wake_at is not None and self._owner.serves(record)
        ]
        if not coming:
            return
        wake_at, first = min(coming, key=lambda one: one[0])
        now = self._owner.now()
        if first.holder is not None or wake_at <= now + 2 * self._look_s:
            self._line.led(hold, first.id, wake_at)
        else:
            await self._store.update(_woken(first, now))

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _park(self, ask: Ask, now: float) -> None:
        assert ask.lacks is not None
        hold = LIMITS + ask.lacks
        cursor = ask.start.cursor
        is_woken = ask.record.hold != hold
        wake_at, waits = self._line.place(hold, ask.record.id, now, cursor.waits, is_woken=is_woken)
        ask.admitted, ask.owes = cursor.admitted, cursor.owes
        self._settle(ask, now, ask.start.due, round(wake_at, 6), hold, waits=waits)
        if not self._is_watching:
            self._is_watching = True
            self._errand(self._watch())
        if cursor.waits == 0 and self._announcer.is_heard:
            self._announcer.limited(ask.record, ask.definition, ask.lacks, None)

    def _delay(self, ask: Ask, now: float) -> None:
        at = round(ask.at, 6)
        is_new = ask.start.cursor.admitted is None or ask.is_late
        if ask.start.cursor.waits and ask.limits:
            self._pass_on(ask)
        ask.admitted = None if ask.admitted is None else at
        self._settle(ask, now, at, at, None, waits=0)
        if is_new and self._announcer.is_heard:
            self._announcer.limited(ask.record, ask.definition, next(iter(ask.rates)), at)

    def _pass_on(self, ask: Ask) -> None:
        """It was woken for a place that it does not take now: the next in line may."""
        for name in ask.limits:
            self._line.leave(LIMITS + name, ask.record.id)
        lines = [name for name in ask.limits if self._line.known(LIMITS + name)]
        if lines:
            self._errand(self._wake(dict.fromkeys(lines, 0)))

    def _settle(
        self,
        ask: Ask,
        now: float,
        until: float,
        wake_at: float,
        hold: str | None,
        *,
        waits: int,
    ) -> None:
        record = ask.record
        before = decode_cursor(record.cursor)
        key = (record.id, record.birth)
        try:
            step = put_off(ask.definition, before, ask.start, until, now, ask.rules, key)
        except Exception as error:
            # Its trigger, say: that job stays alone with it.
            self._owner.quarantine(record, error)
            return
        cursor = replace(step.cursor, admitted=ask.admitted, waits=waits, owes=ask.owes)
        if step.spans and self._announcer.is_heard:
            self._announcer.skipped(record, ask.definition, step.spans)
        step = replace(step, cursor=cursor, wake_at=wake_at, hold=hold)
        self._close(self._ledger.of_step(record, step, now))


def limits_of(task: AnyTask | None, rules: Rules) -> dict[str, int]:
    """The limits under which a job runs, by name: so many places."""
    found: dict[str, int] = {}
    if rules.concurrency_key is not None:
        found[f"key/{rules.concurrency_key}"] = rules.concurrency_limit or 1
    if task is not None and task.max_concurrency is not None:
        found[f"task/{fitted(task.name)}"] = task.max_concurrency
    return found


async def sharers_of(
    store: JobStore, name: str, tasks: Mapping[str, AnyTask], rules: Callable[[Policies], Rules]
) -> list[str]:
    """The ids of jobs that run under a limit, as far as they are among those whose leases end first."""
    found: list[str] = []
    for record in await store.page(Filter(), _LOOKED_THROUGH):
        if record.holder is None:
            continue
        with contextlib.suppress(SerializationError):
            policies = decode_definition(record.body).policies
            if name in limits_of(tasks.get(record.task), rules(policies)):
                found.append(base_id(record.id))
    return found


def _rates_of(task: AnyTask, rules: Rules) -> dict[str, Rate]:
    """The rates at which a job starts, by the name of the bucket."""
    found: dict[str, Rate] = {}
    of_task = f"task/{fitted(task.name)}"
    if rules.rate_limit is not None:
        name = of_task if rules.concurrency_key is None else f"key/{rules.concurrency_key}"
        found[name] = parse_rate(rules.rate_limit)
    if task.rate_limit is not None:
        found.setdefault(of_task, parse_rate(task.rate_limit))
    return found


def _drawn_by(ask: Ask, now: float, horizon: float) -> dict[str, Rate]:
    """The rates that are to give *ask* an instant; when it may start for all others is noted in it."""
    cursor = ask.start.cursor
    ask.at = max(ask.start.due, now)
    if not ask.rates or cursor.admitted is None:
        return ask.rates
    ask.is_late = cursor.admitted < now - _KEEPS_S
    if ask.is_late:
        return ask.rates
    ask.at, ask.admitted, ask.owes = max(ask.at, cursor.admitted), cursor.admitted, cursor.owes
    if not ask.owes or ask.at > horizon:
        return {}
    # The first of them has given it the instant that has come.
    return {name: ask.rates[name] for name in sorted(ask.rates)[1:]} or ask.rates


def _turn(ask: Ask) -> tuple[int, float, str]:
    """Higher priority first, then who has waited longest."""
    return (-ask.record.priority, ask.start.due, ask.record.id)


def _places(name: str, size: int) -> list[str]:
    return [f"{LIMITS}{name}/{n}" for n in range(size)]


def _place(free: Sequence[Lease], size: int) -> Lease | None:
    """One of these that is a place of a limit of this size; another job may see a larger one."""
    return next((lease for lease in free if int(lease.key.rpartition("/")[2]) < size), None)


def _woken(record: Record, now: float) -> Update:
    return Update(
        id=record.id,
        version=record.version,
        body=record.body,
        queue=record.queue,
        priority=record.priority,
        wake_at=now,
        hold=None,
    )
