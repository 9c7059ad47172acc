"""The log: each entry by what it is about, which makes it unique, and by its time, the newest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aetcd import rpc

from asyncsched.contract import Entry
from asyncsched.errors import StoreError
from asyncsched.stores.etcd._desk import Desk
from asyncsched.stores.etcd._keys import Keys, end_of
from asyncsched.stores.etcd._ops import Item

__all__ = ["Log", "add_entry"]

#: Entries that are read by one request, and that are looked at for crowded jobs by one call of prune.
_READ = 1_000
_SWEEP = 10_000
_ENCODER = msgspec.msgpack.Encoder()


class _Line(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of the key by time. New fields go to the end, with a default."""

    job_id: str
    fence: int
    kind: str
    fire_at: float
    at: float
    body: bytes


_DECODER = msgspec.msgpack.Decoder(_Line)


def add_entry(keys: Keys, item: Item, entry: Entry, there: dict[bytes, Any], written: set[bytes]) -> None:
    """Write *entry* with *item*, unless it is *there* already or in *written*."""
    key = keys.entry(entry)
    if key in there or key in written:
        return
    written.add(key)
    item.if_absent(key)
    at = keys.at(entry)
    # By both together the key by time is found again, and deleted with it.
    item.put(key, at)
    e = entry
    item.put(keys.time(key, at), _ENCODER.encode(_Line(e.job_id, e.fence, e.kind, e.fire_at, e.at, e.body)))


class Log:
    """The log of one store."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        #: Behind which key the next call of prune begins to look for crowded jobs.
        self._swept = b""

    # -- reading -------------------------------------------------------------------------------------------------------

    async def newest(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        keys = self._desk.keys
        start = keys.times if before is None else keys.behind(before)
        if job_id is not None:
            return await self._newest_of(job_id, kinds, limit, start)
        found: list[Entry] = []
        end = end_of(keys.times)
        while len(found) < limit:
            room = limit - len(found) if kinds is None else _READ
            answer = await self._range(start, end, min(room, _READ))
            found += [
                e for kv in answer.kvs if (e := _entry(kv.value)) and (kinds is None or e.kind in kinds)
            ]
            if not answer.more:
                break
            start = answer.kvs[-1].key + b"\0"
        return found[:limit]

    async def _newest_of(
        self, job_id: str, kinds: Sequence[str] | None, limit: int, start: bytes
    ) -> list[Entry]:
        keys = self._desk.keys
        places = sorted(keys.time(kv.key, kv.value) for kv in await self._all(keys.entries_of(job_id)))
        places = [place for place in places if place >= start]
        found: list[Entry] = []
        for at in range(0, len(places), _READ):
            values, _ = await self._desk.values(places[at : at + _READ])
            entries = [_entry(values[place].value) for place in places[at : at + _READ] if place in values]
            found += [e for e in entries if kinds is None or e.kind in kinds]
            if len(found) >= limit:
                break
        return found[:limit]

    async def _all(self, prefix: bytes) -> list[Any]:
        start, end = prefix, end_of(prefix)
        found: list[Any] = []
        while True:
            answer = await self._range(start, end, _SWEEP)
            found += answer.kvs
            if not answer.more:
                return found
            start = answer.kvs[-1].key + b"\0"

    async def _range(self, start: bytes, end: bytes, limit: int) -> Any:
        return await self._desk.line.range(rpc.RangeRequest(key=start, range_end=end, limit=limit))

    # -- pruning -------------------------------------------------------------------------------------------------------

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        if older_than_s is not None:
            pruned = await self._prune_older(self._desk.now() - older_than_s, limit)
        if per_job is not None and pruned < limit:
            pruned += await self._prune_crowded(per_job, limit - pruned)
        return pruned

    async def _prune_older(self, at: float, limit: int) -> int:
        keys = self._desk.keys
        answer = await self._range(keys.before(at), end_of(keys.times), min(limit, _SWEEP))
        return await self._drop(
            [(keys.entry(e), kv.key, kv.mod_revision) for kv in answer.kvs if (e := _entry(kv.value)).at < at]
        )

    async def _prune_crowded(self, per_job: int, limit: int) -> int:
        """Look at so many entries behind those that the call before has looked at; a job is looked at as a whole."""
        keys = self._desk.keys
        start, end = self._swept or keys.entries, end_of(keys.entries)
        found: list[Any] = []
        while True:
            answer = await self._range(start, end, _SWEEP)
            found += answer.kvs
            if not answer.more:
                self._swept = b""
                break
            start = answer.kvs[-1].key + b"\0"
            first, last = self._job_of(found[0].key), self._job_of(found[-1].key)
            if first != last:
                found = [kv for kv in found if self._job_of(kv.key) != last]
                self._swept = last
                break
        by_job: dict[bytes, list[Any]] = {}
        for kv in found:
            by_job.setdefault(self._job_of(kv.key), []).append(kv)
        crowded: list[tuple[bytes, bytes, int]] = []
        for job, entries in by_job.items():
            if len(entries) > per_job:
                entries.sort(key=_age, reverse=True)
                crowded += [
                    (kv.key, keys.time(kv.key, kv.value), kv.mod_revision) for kv in entries[per_job:]
                ]
            if len(crowded) >= limit:
                self._swept = job
                break
        return await self._drop(crowded[:limit])

    def _job_of(self, key: bytes) -> bytes:
        """What the keys of all entries of its job begin with."""
        at = len(self._desk.keys.entries)
        while True:
            at = key.index(b"\0", at)
            if key[at + 1 : at + 2] == b"\0":
                return key[: at + 2]
            at += 2

    async def _drop(self, entries: Sequence[tuple[bytes, bytes, int]]) -> int:
        """Delete entries: their keys, those by time, and when they were written. One that was pruned meanwhile and written anew
        stays."""
        items = []
        for key, place, revision in entries:
            item = Item("pruning the log")
            item.if_at(key, revision)
            item.delete(key)
            item.delete(place)
            items.append(item)
        return sum(1 for revision in await self._desk.apply(items) if revision)


def _entry(value: bytes) -> Entry:
    try:
        line = _DECODER.decode(value)
    except msgspec.MsgspecError as error:
        raise StoreError(f"an entry of the log that etcd keeps cannot be read: {error}") from error
    return Entry(line.job_id, line.fence, line.kind, line.fire_at, line.at, line.body)


def _age(kv: Any) -> tuple[bytes, bytes]:
    """When an entry was written, then the rest of the order."""
    return kv.value, kv.key
