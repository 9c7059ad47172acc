"""settle: one transaction for some dozen settlements, each of which stands in one of them as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from aiozk import protocol
from msgspec.structs import replace

from asyncsched.contract import Record, Settled, Settlement
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.zookeeper._ground import Ground
from asyncsched.stores.zookeeper._index import Group, Item, Scan, Sheet, Trims, commit, compact
from asyncsched.stores.zookeeper._jobs import BYTES, OPERATIONS, new_seen, pause
from asyncsched.stores.zookeeper._log import Log
from asyncsched.stores.zookeeper._rows import Row, Seen, check_size, place, read_nodes, read_rows
from asyncsched.stores.zookeeper._wire import Failed

__all__ = ["Settling"]

_ATTEMPTS = 15
#: What a server takes in one request, less the little that goes around it.
_LARGEST_REQUEST = 1_000_000
#: The first leaf of a tree has what never wakes, and no instant since 1827; this is where the second begins.
_BEHIND_NEVER = 1 << 30


class Settling:
    """settle of one namespace."""

    def __init__(self, ground: Ground, log: Log) -> None:
        self._ground = ground
        self._log = log

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: dict[int, Settled] = {}
        left = dict(enumerate(settlements))
        while left:
            # Of two settlements of one job the second meets what the first has made.
            first: dict[str, int] = {}
            for at, settlement in left.items():
                first.setdefault(settlement.id, at)
            turn = {at: left.pop(at) for at in first.values()}
            answers |= await _Turn(self._ground, self._log, turn).run()
        return [answers[at] for at in range(len(settlements))]


class _Plan(msgspec.Struct):
    """The operations of some settlements, and what follows once they are done."""

    group: Group
    answers: dict[int, Settled]
    earliest: float = math.inf
    ids: list[str] = []
    unparked: list[str] = []
    #: Where those were found.
    taken: list[tuple[Item, Sheet]] = []


class _Turn:
    """Settlements of different jobs."""

    def __init__(self, ground: Ground, log: Log, settlements: dict[int, Settlement]) -> None:
        self._ground = ground
        self._log = log
        self._left = settlements
        self._known: dict[str, Seen | None] = {}
        #: Jobs that are there, so that nothing is spawned in their place; and entries that are.
        self._there: set[str] = set()
        self._entries: set[str] = set()
        self._parked: dict[str, _Parked] = {}
        self._trims = Trims()
        self._is_trimming = True
        self._now = 0.0

    async def run(self) -> dict[int, Settled]:
        answers: dict[int, Settled] = {}
        ground = self._ground
        self._now = await ground.now()
        await ground.raise_floor(max((r.fence for s in self._left.values() for r in s.spawn), default=0))
        for attempt in range(_ATTEMPTS):
            await self._look()
            plans = await self._plans()
            for plan in plans:
                for at, answer in plan.answers.items():
                    if not plan.group.operations:
                        answers[at] = answer
                        del self._left[at]
            plans = [plan for plan in plans if plan.group.operations]
            outcomes = (
                await commit(ground.wire, ground.folders, [plan.group for plan in plans]) if plans else []
            )
            for plan, outcome in zip(plans, outcomes, strict=True):
                if isinstance(outcome, Failed):
                    await self._learn(plan, outcome)
                    continue
                self._done(plan, outcome)
                answers |= plan.answers
                for at in plan.answers:
                    del self._left[at]
            for parked in self._parked.values():
                for scan in parked.scans:
                    await compact(ground.wire, scan)
                    ground.clear(scan.empty)
            if not self._left:
                return answers
            self._parked.clear()
            self._trims = Trims()
            if attempt > 1:
                await pause(attempt)
        raise StoreUnavailable(f"{ground.wire.name}: these jobs are being written by others; try again")

    # -- what is there -------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """What this client does not know of the jobs, and whether the entries of those that are gone are written."""
        ground = self._ground
        for settlement in self._left.values():
            seen = ground.held.seen.get(settlement.id)
            if settlement.id not in self._known and seen is not None and _is_holder(seen.row, settlement):
                self._known[settlement.id] = seen
        unknown = [s.id for s in self._left.values() if s.id not in self._known]
        found = await read_rows(ground.wire, ground.paths, unknown)
        self._known.update((id, found.get(id)) for id in unknown)
        gone = [s for s in self._left.values() if self._known[s.id] is None]
        await self._look_for_entries([self._log.path(entry) for s in gone for entry in s.entries])

    async def _look_for_entries(self, paths: Sequence[str]) -> None:
        answers = await self._ground.wire.ask(list(map(self._ground.wire.exists, paths)))
        self._entries.update(
            path for path, answer in zip(paths, answers, strict=True) if not isinstance(answer, Exception)
        )

    async def _learn(self, plan: _Plan, outcome: Failed) -> None:
        """Why the group was refused, so that it is planned better the next time."""
        ground = self._ground
        kind, _ = plan.group.tags[outcome.index]
        settlements = [self._left[at] for at in plan.answers]
        if kind == "entry":
            await self._look_for_entries([self._log.path(e) for s in settlements for e in s.entries])
        elif kind in ("record", "node"):
            ids = [record.id for s in settlements for record in s.spawn]
            self._there |= (await read_rows(ground.wire, ground.paths, ids)).keys()
        elif kind == "trim":
            self._is_trimming = False
        elif kind != "parked":
            for settlement in settlements:
                self._known.pop(settlement.id, None)
                ground.held.seen.pop(settlement.id, None)

    # -- what to do ----------------------------------------------------------------------------------------------------

    async def _plans(self) -> list[_Plan]:
        plans: list[_Plan] = []
        # What one of them makes is there for those behind it; if it fails, they fail, too, and are planned anew.
        there, entries = set(self._there), set(self._entries)
        for at, settlement in self._left.items():
            plan = _Plan(Group(), {}, math.inf, [], [], [])
            plan.answers[at] = await self._plan(plan, settlement, there, entries)
            size = plan.group.size + _size_of_items(plan.group)
            if size > _LARGEST_REQUEST:
                raise StoreError(
                    f"the end of job {settlement.id!r} is too large for ZooKeeper: it has {size} bytes, and "
                    f"{_LARGEST_REQUEST} is the limit; let its runs return less"
                )
            plan.group.size = size
            last = plans[-1] if plans else None
            if (
                last is not None
                and len(last.group.operations) + len(plan.group.operations) <= OPERATIONS
                and last.group.size + size <= BYTES
            ):
                _join(last, plan)
            else:
                plans.append(plan)
        for plan in plans:
            self._seal(plan)
        return plans

    def _seal(self, plan: _Plan) -> None:
        group = plan.group
        if not group.operations:
            return
        group.seal(self._ground.wire)
        if plan.earliest < math.inf:
            self._ground.hint(group, plan.earliest)
        if plan.unparked and self._is_trimming:
            # What others of this call take leaves with them: this group may be done, and theirs refused.
            self._trims.apply(self._ground.wire, group, plan.taken)
            # If this group is refused, so are those behind it that have the same sheets.
            self._trims.confirm(self._trims.trimmed(plan.taken))

    async def _plan(self, plan: _Plan, s: Settlement, there: set[str], entries: set[str]) -> Settled:
        seen = self._known[s.id]
        if seen is None:
            self._log.add(plan.group, s.entries, entries)
            return "gone"
        row = seen.row
        if not _is_holder(row, s):
            return "already" if row.settled == s.fence else "lost"
        ground, group = self._ground, plan.group
        is_stale = row.version != s.version
        plan.ids.append(s.id)
        if s.delete and not is_stale:
            group.add("state", s.id, ground.wire.delete(seen.node, seen.version))
            group.add("folder", s.id, ground.wire.delete(seen.path))
            there.discard(s.id)
        else:
            released = _released(row, s, self._now if is_stale else s.wake_at, is_stale=is_stale)
            check_size(s.id, released.body, released.cursor)
            large = None if released.cursor == row.cursor else place(released)
            ground.add_change(group, seen, released, large)
            if released.wake_at is not None:
                plan.earliest = min(plan.earliest, released.wake_at)
        self._log.add(group, s.entries, entries)
        self._spawn(plan, s.spawn, there)
        if s.unpark is not None:
            await self._unpark(plan, *s.unpark)
        return "stale" if is_stale else "done"

    def _spawn(self, plan: _Plan, records: Sequence[Record], there: set[str]) -> None:
        for record in records:
            if record.id in there:
                if record.id not in self._there:
                    # Another of this call makes it: if that one fails this one does, too, and is planned anew.
                    path = self._ground.paths.job(record.id)
                    plan.group.add("made", record.id, protocol.CheckVersionRequest(path=path, version=-1))
                continue
            there.add(record.id)
            seen, large = new_seen(self._ground, record)
            self._ground.add_new(plan.group, seen, large)
            if record.wake_at is not None:
                plan.earliest = min(plan.earliest, record.wake_at)

    async def _unpark(self, plan: _Plan, hold: str, limit: int) -> None:
        parked = self._parked.get(hold)
        if parked is None:
            parked = self._parked[hold] = _Parked(self._ground, hold, self._trims)
        for seen, item, sheet in await parked.take(limit):
            plan.taken.append((item, sheet))
            row = replace(seen.row, hold=None, wake_at=self._now)
            self._ground.add_change(plan.group, seen, row, None)
            plan.group.tags[-1] = ("parked", seen.id)
            plan.unparked.append(seen.id)
            plan.earliest = min(plan.earliest, self._now)

    def _done(self, plan: _Plan, outcome: tuple[int, list[object]]) -> None:
        ground = self._ground
        ground.done(plan.group, outcome[1])
        for id in plan.ids:
            ground.held.let_go(id, outcome[0])
        for kind, of in plan.group.tags:
            # A retry of what failed beside it must not take these for its own.
            if kind == "entry":
                self._entries.add(of)
            elif kind == "record":
                self._there.add(of)
        if plan.earliest < math.inf:
            ground.hints.give(plan.earliest)


class _Parked:
    """The records with one hold, in order, as far as they are asked for."""

    def __init__(self, ground: Ground, hold: str, trims: Trims) -> None:
        self._ground = ground
        self._hold = hold
        self._trims = trims
        # What never wakes has the first key, and its turn last.
        self.scans = (
            Scan(ground.wire, [ground.paths.hold(hold)], start=_BEHIND_NEVER),
            Scan(ground.wire, [ground.paths.hold(hold)]),
        )
        self._given: set[str] = set()

    async def take(self, limit: int) -> list[tuple[Seen, Item, Sheet]]:
        """The next ones, up to *limit*, each with where it was found."""
        waking, never = self.scans
        taken: list[tuple[Seen, Item, Sheet]] = []
        await self._take(taken, limit, waking, 1 << 62)
        if len(taken) < limit and waking.has_earlier:
            await self._take(taken, limit, never, 0)
        return taken

    async def _take(
        self, taken: list[tuple[Seen, Item, Sheet]], limit: int, scan: Scan, horizon: int
    ) -> None:
        paths = self._ground.paths
        while len(taken) < limit:
            found = await scan.next(limit - len(taken), horizon)
            if not found:
                break
            nodes = [(item.id, paths.job(item.id), item.nonce) for item, _ in found]
            seen = await read_nodes(self._ground.wire, nodes)
            for at, (item, sheet) in enumerate(found):
                if len(taken) >= limit:
                    scan.unread(found[at:])
                    break
                one = seen.get(item.id)
                if one is not None and self._is_parked(one, item):
                    taken.append((one, item, sheet))
                    self._given.add(one.id)
                elif item.id not in self._given:
                    # What was given has its item until it is taken.
                    self._trims.drop(item, sheet)

    def _is_parked(self, seen: Seen, item: Item) -> bool:
        row = seen.row
        return (
            seen.nonce == item.nonce
            and row.hold == self._hold
            and row.holder is None
            and seen.key == item.key
            and seen.id not in self._given
        )


def _is_holder(row: Row, s: Settlement) -> bool:
    return row.fence == s.fence and row.holder == s.holder


def _released(row: Row, s: Settlement, wake_at: float | None, *, is_stale: bool) -> Row:
    if s.hand_back:
        return replace(row, wake_at=wake_at, holder=None, tries=max(row.tries - 1, 0))
    return replace(
        row,
        wake_at=wake_at,
        hold=row.hold if is_stale else s.hold,
        cursor=s.cursor,
        holder=None,
        settled=row.fence,
        tries=0,
        prior=None,
    )


def _size_of_items(group: Group) -> int:
    return sum(60 + len(i.id) + len(i.copy) for items in group.items.values() for i in items)


def _join(last: _Plan, plan: _Plan) -> None:
    """Do *plan* in the same transaction."""
    last.group.operations += plan.group.operations
    last.group.tags += plan.group.tags
    last.group.size += plan.group.size
    for root, items in plan.group.items.items():
        last.group.items.setdefault(root, []).extend(items)
    last.answers |= plan.answers
    last.earliest = min(last.earliest, plan.earliest)
    last.ids += plan.ids
    last.unparked += plan.unparked
    last.taken += plan.taken
