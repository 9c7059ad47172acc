"""Pages: records by (wake_at, id), those that never wake last. Read from all lanes, so they are for people and not for claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aetcd import rpc

from asyncsched.contract import Filter, Record
from asyncsched.stores.etcd._desk import Desk
from asyncsched.stores.etcd._keys import Lane, digits, end_of
from asyncsched.stores.etcd._lanes import Front, LeaseEnd, ends_at
from asyncsched.stores.etcd._rows import Kept, decoded

__all__ = ["Pages"]

_READ = 500
#: Where no more ids than these begin with the wanted prefix, all of them are read.
_FEW = 2_000

_Key = tuple[bool, float, str]


class Pages:
    """page() of one store."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, where: Filter, limit: int, after: Record | None) -> list[Record]:
        request = rpc.RangeRequest(key=self._desk.keys.meta, count_only=True)
        revision = (await self._desk.line.range(request)).header.revision
        return await _Page(self._desk, revision).read(where, limit, after)


class _Page:
    """One page, all of it as at one revision: what is renewed or moved meanwhile is in one place of it."""

    def __init__(self, desk: Desk, revision: int) -> None:
        self._desk = desk
        self._revision = revision

    async def read(self, where: Filter, limit: int, after: Record | None) -> list[Record]:
        floor = None if after is None else page_key(after)
        if where.id_prefix:
            of_prefix = await self._with_prefix(where.id_prefix)
            if of_prefix is not None:
                return await self._shown(of_prefix, where, limit, floor)
        found: list[Kept] = []
        if floor is None or not floor[0]:
            lanes = await self._lanes(where.queue)
            calls = [self._of_lane(lane, where, limit, floor) for lane in lanes]
            for of_lane in await self._desk.together(calls) if calls else ():
                found += of_lane
        if len(found) < limit:
            found += await self._never(where, limit - len(found), floor)
        return await self._shown(found, where, limit, floor)

    async def _shown(
        self, found: Sequence[Kept], where: Filter, limit: int, floor: _Key | None
    ) -> list[Record]:
        unique = {k.record.id: k for k in found if _is_wanted(k, where, floor)}
        ordered = sorted(unique.values(), key=lambda k: page_key(k.record))[:limit]
        return [k.record for k in await self._desk.whole(ordered, self._revision)]

    async def _with_prefix(self, prefix: str) -> list[Kept] | None:
        """All records whose ids begin so; None where they are too many for that."""
        start = self._desk.keys.job(prefix)
        found = await self._range(start, end_of(start), _FEW)
        return None if found.more else [decoded(kv.value, kv.mod_revision) for kv in found.kvs]

    async def _lanes(self, queue: str | None) -> list[Lane]:
        keys = self._desk.keys
        prefix = keys.lanes if queue is None else keys.lanes_of(queue)
        found = await self._range(prefix, end_of(prefix), 0)
        return [keys.lane_named(kv.key) for kv in found.kvs]

    async def _of_lane(self, lane: Lane, where: Filter, limit: int, floor: _Key | None) -> list[Kept]:
        """The first records of a lane that are wanted."""
        key = self._desk.keys.due(lane)
        start = key if floor is None else key + digits(floor[1])
        found: list[Kept] = []
        while True:
            answer = await self._range(start, end_of(key), _READ)
            front = Front(lane, key, b"")
            front.add(answer.kvs)
            rows = front.rows + await self._held(lane, front.leases)
            found += [k for k in rows if _is_wanted(k, where, floor)]
            if not answer.more or len(found) >= limit:
                return found
            start = answer.kvs[-1].key + b"\0"

    async def _held(self, lane: Lane, ends: Sequence[LeaseEnd]) -> list[Kept]:
        if not ends:
            return []
        rows, _ = await self._desk.rows((id for end in ends for id in end.ids), self._revision)
        of_ends = ((end, rows.get(id)) for end in ends for id in end.ids)
        return [k for end, k in of_ends if k is not None and ends_at(k.record, lane, end)]

    async def _never(self, where: Filter, limit: int, floor: _Key | None) -> list[Kept]:
        keys = self._desk.keys
        start = keys.never
        if floor is not None and floor[0]:
            start += floor[2].encode() + b"\0"
        found: list[Kept] = []
        while True:
            answer = await self._range(start, end_of(keys.never), _READ)
            rows = [decoded(kv.value, kv.mod_revision) for kv in answer.kvs]
            found += [k for k in rows if _is_wanted(k, where, floor)]
            if not answer.more or len(found) >= limit:
                return found
            start = answer.kvs[-1].key + b"\0"

    async def _range(self, start: bytes, end: bytes, limit: int) -> Any:
        request = rpc.RangeRequest(key=start, range_end=end, limit=limit, revision=self._revision)
        return await self._desk.line.range(request)


def page_key(record: Record) -> _Key:
    return (record.wake_at is None, record.wake_at or 0.0, record.id)


def _is_wanted(kept: Kept, where: Filter, floor: _Key | None) -> bool:
    record = kept.record
    return (
        (floor is None or page_key(record) > floor)
        and (where.queue is None or record.queue == where.queue)
        and (where.task is None or record.task == where.task)
        and (where.hold is None or (record.hold or "") == where.hold)
        and (where.id_prefix is None or record.id.startswith(where.id_prefix))
    )
