"""What stands first in line, read in windows.

etcd counts every key of the range that it is asked for, and every key that was there and is not forgotten yet, whatever the
limit. So what is asked for is bounded at both ends: from the lane's beginning, before which there is nothing, to a place that
an earlier reading has shown to be near. All that comes of a wrong guess is another request.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from aetcd import rpc

from asyncsched.contract import Record
from asyncsched.stores.etcd._desk import Desk, Floor, floor_of
from asyncsched.stores.etcd._keys import LEASE, Lane, digits, end_of, micros
from asyncsched.stores.etcd._ops import between, get, is_empty, is_value, put
from asyncsched.stores.etcd._rows import Kept, decoded

__all__ = ["Front", "Lanes", "LeaseEnd", "Look", "ends_at", "instant_of"]

#: Where all keys of a lane end.
_END = b"g"
#: A range of so many keys is divided by marks, which stand so far apart; so many keys are read for it.
_CROWD, _MARK_EVERY, _MARK_READ = 2_000, 256, 8_192
#: After so many keys of a lane were deleted, its beginning is moved behind them.
_SPENT = 1_000
#: How far ahead the next place is looked for first, and by how much farther each time.
_FIRST_SPAN_S, _WIDER = 1.0, 8.0
_LONGEST_SPAN_S = 1e7
#: Windows that one request looks through.
_WINDOWS = 3
_TOKEN_KEYS = 128
#: Queues whose lanes are listed by one request.
_QUEUES = 64


class LeaseEnd(NamedTuple):
    """The place in line of records that were claimed or renewed together."""

    key: bytes
    at: bytes
    ids: list[str]


class Front:
    """The beginning of one lane, as it was at one revision."""

    __slots__ = ("is_cut", "key", "lane", "leases", "place", "read_to", "rows")

    def __init__(self, lane: Lane, key: bytes, place: bytes) -> None:
        self.lane = lane
        #: What its keys begin with, and where it begins.
        self.key = key
        self.place = place
        self.rows: list[Kept] = []
        self.leases: list[LeaseEnd] = []
        #: Behind what was read, and whether there was more to read before the horizon.
        self.read_to = place
        self.is_cut = False

    def add(self, kvs: Sequence[Any]) -> None:
        for kv in kvs:
            place = kv.key[len(self.key) :]
            if place[16:17] == LEASE:
                self.leases.append(
                    LeaseEnd(kv.key, place[:16], msgspec.msgpack.decode(kv.value, type=list[str]))
                )
            else:
                self.rows.append(decoded(kv.value, kv.mod_revision))


class Look(NamedTuple):
    """What a claim sees."""

    fronts: list[Front]
    #: Ids that the token has claimed already.
    ids: list[str]
    #: Above which all fences are.
    floor: Floor
    #: The first place behind the horizon of each lane, where it was asked for.
    beyond: dict[Lane, Any]


class Beyond(NamedTuple):
    """The first keys behind a place, and whether there are no more."""

    kvs: Sequence[Any]
    is_all: bool = False


class Lanes:
    """What this instance knows of the lanes: nothing of it is relied on but as a guess of where to look."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._lanes: dict[str, list[Lane]] = {}
        self._places: dict[Lane, bytes] = {}
        self._marks: dict[Lane, list[bytes]] = {}
        self._next: dict[Lane, bytes] = {}
        self._gaps: dict[Lane, float] = {}
        self._spent: dict[Lane, int] = {}
        #: What stood first when the lane was looked at last.
        self._heads: dict[Lane, bytes] = {}
        self._was_full: set[Lane] = set()

    async def look(self, queues: Sequence[str], token: str, need: int, horizon: float) -> Look:
        """The first *need* and one more of each lane of *queues* up to the instant *horizon*, in the order of the lanes."""
        end = b"%016x" % (micros(horizon) + 1)
        first, others = queues[:_QUEUES], queues[_QUEUES:]
        for at in range(0, len(others), _QUEUES):
            await self._list(others[at : at + _QUEUES])
        known = self._in_order(queues)
        answer, of_lanes = await self._first_look(first, token, known, need, end)
        ids = _ids_of(answer.responses[0].response_range.kvs)
        floor = floor_of(answer.responses[1].response_range.kvs)
        self._learn(first, answer.responses[2 : 2 + len(first)])
        fronts: dict[Lane, Front] = {}
        beyond: dict[Lane, Any] = {}
        again: list[Front] = []
        for lane in self._in_order(queues):
            front = fronts[lane] = Front(lane, self._desk.keys.due(lane), self._places[lane])
            found = of_lanes.get(lane)
            if found is None or found[0] > front.place:
                again.append(front)
                continue
            self._fill(front, found[1], found[2], need, end)
            if found[3] is not None and front.read_to >= end:
                beyond[lane] = found[3]
            if not front.is_cut and front.read_to < end:
                again.append(front)
        if again:
            await self._desk.together([self._read_on(front, need, end) for front in again])
        return Look(list(fronts.values()), ids, floor, beyond)

    async def _first_look(
        self, queues: Sequence[str], token: str, known: Sequence[Lane], need: int, end: bytes
    ) -> tuple[Any, dict[Lane, tuple[bytes, Any, bytes, Any]]]:
        """One request for all that may be of interest; by lane: where it began, the answer, where it ended, what is next."""
        keys = self._desk.keys
        mine = keys.claim(token)
        ops = [between(mine, end_of(mine), _TOKEN_KEYS), get(keys.fence)]
        ops += [between(keys.lanes_of(queue), end_of(keys.lanes_of(queue)), 16) for queue in queues]
        asked: list[tuple[Lane, bytes, bytes, int, int | None]] = []
        for lane in known:
            if len(ops) > 120:
                break
            key, place = keys.due(lane), self._places[lane]
            bound = self._bound(lane, place, need, end)
            at, after = len(ops), None
            ops.append(between(key + place, key + bound, need + 1))
            if bound == end and lane not in self._was_full:
                after = len(ops)
                to = self._next.get(lane, _END)
                ops.append(between(key + end, key + max(to, end) + b"\0", 2))
            asked.append((lane, place, bound, at, after))
        answer = await self._desk.line.txn(rpc.TxnRequest(success=ops))
        parts = answer.responses
        return answer, {
            lane: (
                place,
                parts[at].response_range,
                bound,
                None if after is None else parts[after].response_range,
            )
            for lane, place, bound, at, after in asked
        }

    async def _read_on(self, front: Front, need: int, end: bytes) -> None:
        """Read more of a lane, until there is enough or its horizon is reached."""
        while not front.is_cut and front.read_to < end:
            start = front.read_to
            bound = self._bound(front.lane, start, need, end)
            found = await self._range(front.key, start, bound, need + 1)
            self._fill(front, found, bound, need, end)

    def _fill(self, front: Front, found: Any, bound: bytes, need: int, end: bytes) -> None:
        front.add(found.kvs)
        if found.more:
            front.read_to = found.kvs[-1].key[len(front.key) :] + b"\0"
        else:
            front.read_to = bound
        front.is_cut = front.read_to < end and len(front.rows) + len(front.leases) > need
        if front.is_cut:
            self._was_full.add(front.lane)
        else:
            self._was_full.discard(front.lane)
        if found.count > _CROWD and front.lane not in self._marks:
            self._marks[front.lane] = []

    async def more(self, front: Front, need: int, horizon: float) -> bool:
        """Read on where what was read is not to be had; False where the horizon is reached."""
        end = b"%016x" % (micros(horizon) + 1)
        if front.read_to >= end:
            return False
        front.is_cut = False
        count = len(front.rows) + len(front.leases)
        await self._read_on(front, count + need, end)
        return len(front.rows) + len(front.leases) > count

    async def _range(
        self, key: bytes, start: bytes, end: bytes, limit: int, *, keys_only: bool = False
    ) -> Any:
        request = rpc.RangeRequest(key=key + start, range_end=key + end, limit=limit, keys_only=keys_only)
        return await self._desk.line.range(request)

    # -- lanes ---------------------------------------------------------------------------------------------------------

    def _in_order(self, queues: Sequence[str]) -> list[Lane]:
        """High priority first, and queues as they were given."""
        lanes = [lane for queue in dict.fromkeys(queues) for lane in self._lanes.get(queue, ())]
        return sorted(lanes, key=lambda lane: -lane.priority)

    async def _list(self, queues: Sequence[str]) -> None:
        """Learn which lanes these have."""
        ops = [
            between(self._desk.keys.lanes_of(queue), end_of(self._desk.keys.lanes_of(queue)), 16)
            for queue in queues
        ]
        answer = await self._desk.line.txn(rpc.TxnRequest(success=ops))
        self._learn(queues, answer.responses)

    def _learn(self, queues: Sequence[str], parts: Sequence[Any]) -> None:
        for queue, part in zip(queues, parts, strict=True):
            prefix = len(self._desk.keys.lanes_of(queue))
            lanes = []
            for kv in part.response_range.kvs:
                lane = Lane(queue, 9 - int(kv.key[prefix:]))
                lanes.append(lane)
                self._places[lane] = kv.value
            self._lanes[queue] = lanes

    # -- where to look -------------------------------------------------------------------------------------------------

    def _bound(self, lane: Lane, start: bytes, need: int, end: bytes) -> bytes:
        """A place that is likely to be behind *need* keys, and not behind very many."""
        marks = self._marks.get(lane)
        if not marks:
            return end
        at = bisect.bisect_right(marks, max(start, self._heads.get(lane, b""))) + need // _MARK_EVERY + 1
        return min(marks[at], end) if at < len(marks) else end

    async def tidy(self, front: Front, taken: int, now: float) -> None:
        """Once in a while: move the beginning of the lane behind what is gone, and set marks in a crowd."""
        lane = front.lane
        first = min(
            [
                *(self._desk.keys.place(k.record)[len(front.key) :] for k in front.rows[:1]),
                *(e.at for e in front.leases),
            ],
            default=digits(now),
        )
        self._heads[lane] = first
        self._drop_marks(front)
        if self._marks.get(lane) == []:
            await self._set_marks(front)
        spent = self._spent[lane] = self._spent.get(lane, 0) + taken
        if spent < _SPENT:
            return
        self._spent[lane] = 0
        if first > front.place:
            key = self._desk.keys.lane(lane)
            compares = [is_value(key, front.place), is_empty(front.key + front.place, front.key + first)]
            await self._desk.line.txn(rpc.TxnRequest(compare=compares, success=[put(key, first)]))

    def _drop_marks(self, front: Front) -> None:
        marks = self._marks.get(front.lane)
        if marks and front.read_to > marks[-1]:
            del self._marks[front.lane]

    async def _set_marks(self, front: Front) -> None:
        found = await self._range(front.key, front.place, _END, _MARK_READ, keys_only=True)
        if found.count <= _CROWD:
            self._marks.pop(front.lane, None)
            return
        self._marks[front.lane] = [kv.key[len(front.key) :] for kv in found.kvs[_MARK_EVERY::_MARK_EVERY]]

    # -- the next wake time --------------------------------------------------------------------------------------------

    async def next_beyond(self, front: Front, first: Any, horizon: float) -> Beyond:
        """The first keys behind the horizon. *first*: what was read of them already."""
        start = b"%016x" % (micros(horizon) + 1)
        if first is not None:
            is_all = front.lane not in self._next and not first.more
            if first.kvs or is_all:
                return self._found(front, first.kvs, horizon, is_all=is_all)
            start = max(self._next.pop(front.lane, start), start)
        return await self._search(front, start, horizon)

    async def after(self, front: Front, key: bytes, horizon: float) -> Beyond:
        """The first keys behind *key*, which is of no use."""
        return await self._search(front, key[len(front.key) :] + b"\0", horizon)

    async def _search(self, front: Front, start: bytes, horizon: float) -> Beyond:
        """Up to where the next record was last; behind that in ever larger windows, so that what is far is not counted."""
        to = self._next.get(front.lane)
        if to is not None and to >= start:
            found = await self._range(front.key, start, to + b"\0", 2)
            if found.kvs:
                return self._found(front, found.kvs, horizon)
            start = to + b"\0"
        self._next.pop(front.lane, None)
        span = min(max(self._gaps.get(front.lane, _FIRST_SPAN_S), 0.001), _FIRST_SPAN_S * 60)
        base = max(horizon, instant_of(start))
        while start != _END:
            ops = []
            for _ in range(_WINDOWS):
                end = max(digits(base + span), start) if span < _LONGEST_SPAN_S else _END
                ops.append(between(front.key + start, front.key + end, 2))
                start, span = end, span * _WIDER
                if start == _END:
                    break
            answer = await self._desk.line.txn(rpc.TxnRequest(success=ops))
            parts = [part.response_range for part in answer.responses]
            kvs = [kv for part in parts for kv in part.kvs]
            if kvs:
                is_all = start == _END and not any(part.more for part in parts)
                return self._found(front, kvs, horizon, is_all=is_all)
        return Beyond((), is_all=True)

    def _found(self, front: Front, kvs: Sequence[Any], horizon: float, *, is_all: bool = False) -> Beyond:
        """Remember where the next record is; ends of leases, which are few, may stand before it."""
        for kv in kvs:
            place = kv.key[len(front.key) :]
            if place[16:17] != LEASE:
                self._next[front.lane] = place
                self._gaps[front.lane] = 4 * (instant_of(place) - horizon)
                break
        return Beyond(kvs, is_all)


def ends_at(record: Record, lane: Lane, end: LeaseEnd) -> bool:
    """Whether it is the lease of *record* that ends there."""
    return (
        record.holder is not None
        and record.wake_at is not None
        and digits(record.wake_at) == end.at
        and record.queue == lane.queue
        and record.priority == lane.priority
    )


def instant_of(place: bytes) -> float:
    """The time of a place in line, but for rounding."""
    return (int(place[:16], 16) - micros(0.0)) / 1e6 if len(place) >= 16 else -math.inf


def _ids_of(kvs: Sequence[Any]) -> list[str]:
    return [id for kv in kvs for id in msgspec.msgpack.decode(kv.value, type=list[str])]
