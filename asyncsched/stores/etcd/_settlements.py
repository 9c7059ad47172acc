"""Settling, and all else that changes a record by compare and set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from aetcd import rpc
from msgspec.structs import replace

from asyncsched.contract import Record, Settled, Settlement, Update
from asyncsched.stores.etcd._desk import TRIES, Desk
from asyncsched.stores.etcd._keys import Lane, digits, end_of
from asyncsched.stores.etcd._log import add_entry
from asyncsched.stores.etcd._ops import Item
from asyncsched.stores.etcd._rows import Kept, added, changed, decoded, removed

__all__ = ["Settlements"]

#: Records that one settlement lets go at the most: a transaction holds no more.
_MOST_UNPARKED = 100
#: So often is a line looked at anew that others have moved on; after that the end of a run counts for more than its line.
_PATIENT = TRIES - 3


class Settlements:
    """add, update, remove and settle of one store."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    # -- add, update, remove -------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        desk = self._desk
        if highest := max(record.fence for record in records):
            await desk.raise_floor(highest)
        items = [added(desk.keys, record) for record in records]
        done = await desk.apply(items)
        refused = [record for record, revision in zip(records, done, strict=True) if not revision]
        if not refused:
            return set()
        there, _ = await desk.rows(record.id for record in refused)
        return {
            record.id
            for record in refused
            if (k := there.get(record.id)) is not None and k.record.birth != record.birth
        }

    async def update(self, update: Update) -> Record | None:
        desk, u = self._desk, update
        turn = 0
        while True:
            await desk.pause(turn)
            turn += 1
            rows, _ = await desk.rows([u.id])
            old = rows.get(u.id)
            if old is None or old.record.version != u.version:
                return None
            [old] = await desk.whole([old])
            record = _updated(old.record, u, desk.now)
            item, new = changed(desk.keys, old, record, body=u.body)
            if record.holder is not None and _lane(record) != _lane(old.record):
                self._move_end(item, record)
            if record.holder is not None:
                item.wakes(-math.inf)
            [revision] = await desk.apply([item])
            if revision:
                self._noted(new._replace(revision=revision))
                return record

    def _move_end(self, item: Item, record: Record) -> None:
        """The end of its lease stands in another lane from now on."""
        keys = self._desk.keys
        assert record.wake_at is not None
        # Never the same key twice: whoever found an earlier one of no more use may be about to delete it.
        end = keys.lease_end(_lane(record), record.wake_at, f"of {record.fence} {record.version} {record.id}")
        item.put(end, msgspec.msgpack.encode([record.id]))
        item.takes(keys.lane(_lane(record)), digits(record.wake_at))

    def _noted(self, new: Kept) -> None:
        if new.record.holder is None:
            self._desk.forget(new.record.id, new.revision)
        elif new.record.id in self._desk.held:
            self._desk.remember(new, None)

    async def remove(self, ids: Sequence[str]) -> set[str]:
        desk = self._desk
        left = list(dict.fromkeys(ids))
        found: set[str] = set()
        turn = 0
        while left:
            await desk.pause(turn)
            turn += 1
            rows, _ = await desk.rows(left)
            done = await desk.apply([removed(desk.keys, old) for old in rows.values()])
            left = []
            for id, revision in zip(rows, done, strict=True):
                if revision:
                    found.add(id)
                    desk.forget(id, revision)
                else:
                    left.append(id)
        return found

    # -- settle --------------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        desk = self._desk
        answers: dict[int, Settled] = {}
        left = list(range(len(settlements)))
        cached = {
            s.id: k
            for s in settlements
            if (k := desk.held.get(s.id)) is not None and _is_ordinary(k.record, s)
        }
        turn = 0
        while left:
            await desk.pause(turn)
            now = desk.now()
            # Of two of one job the second comes after the first.
            first: dict[str, int] = {}
            for i in left:
                first.setdefault(settlements[i].id, i)
            these = [settlements[i] for i in first.values()]
            rows = dict(cached)
            unknown = [s.id for s in these if s.id not in cached]
            if unknown:
                rows |= (await desk.rows(unknown))[0]
            entries = await self._entries_there(these) if turn else {}
            parked = await self._parked(these)
            items, means = [], []
            for i, s in zip(first.values(), these, strict=True):
                answer = _answer(rows.get(s.id), s)
                if answer in ("already", "lost"):
                    answers[i] = answer
                    continue
                items.append(
                    self._item(rows.get(s.id), s, answer, now, entries, parked, is_last=turn > _PATIENT)
                )
                means.append((i, answer))
            for (i, answer), revision in zip(means, await desk.apply(items) if items else (), strict=True):
                if revision:
                    answers[i] = answer
                    desk.forget(settlements[i].id, revision)
            cached = {}
            left = [i for i in left if i not in answers]
            turn += 1
        return [answers[i] for i in range(len(settlements))]

    def _item(
        self,
        old: Kept | None,
        s: Settlement,
        answer: Settled,
        now: float,
        there: dict[bytes, Any],
        parked: dict[str, list[Kept]],
        *,
        is_last: bool,
    ) -> Item:
        """All that this settlement does."""
        keys = self._desk.keys
        if old is None:
            item = Item(f"settling job {s.id!r}")
            item.if_absent(keys.job(s.id))
        elif s.delete and answer == "done":
            item = removed(keys, old)
        else:
            record = _settled(old.record, s, now, is_stale=answer == "stale")
            item, _ = changed(keys, old, record, cursor=None if s.hand_back else s.cursor)
        item.name = f"settling job {s.id!r}"
        written: set[bytes] = set()
        for entry in s.entries:
            add_entry(keys, item, entry, there, written)
        if answer == "gone":
            return item
        there_already: set[str] = set()
        if s.unpark is not None:
            hold, limit = s.unpark
            # What is settled here is held, unless this is known to be so no more: then the whole item is refused.
            free = [k for k in parked[hold] if k.record.id != s.id][:limit]
            parked[hold] = [k for k in parked[hold] if k not in free]
            for k in free:
                there_already.add(k.record.id)
                if not is_last:
                    # If another has let it go, others stand first: they are looked for anew.
                    item.if_at(keys.job(k.record.id), k.revision)
                item.inside(changed(keys, k, replace(k.record, hold=None, wake_at=now))[0])
        for record in s.spawn:
            if record.id not in there_already:
                there_already.add(record.id)
                item.inside(added(keys, record))
        return item

    async def _entries_there(self, settlements: Iterable[Settlement]) -> dict[bytes, Any]:
        wanted = {self._desk.keys.entry(entry) for s in settlements for entry in s.entries}
        return (await self._desk.values(list(wanted)))[0] if wanted else {}

    async def _parked(self, settlements: Sequence[Settlement]) -> dict[str, list[Kept]]:
        """Of each hold that is to be let go, the records that stand first."""
        wanted: dict[str, int] = {}
        for s in settlements:
            if s.unpark is not None:
                hold, limit = s.unpark
                wanted[hold] = wanted.get(hold, 0) + min(limit, _MOST_UNPARKED)
        parked: dict[str, list[Kept]] = {}
        seen: set[str] = set()
        for hold, limit in wanted.items():
            key = self._desk.keys.hold(hold)
            found = await self._desk.line.range(rpc.RangeRequest(key=key, range_end=end_of(key), limit=limit))
            kept = [decoded(kv.value, kv.mod_revision) for kv in found.kvs]
            # One that went from one hold to another meanwhile: a transaction takes no key twice.
            parked[hold] = [k for k in kept if k.record.id not in seen]
            seen |= {k.record.id for k in kept}
        return parked


# -- what becomes of a record: nothing but its own state and the request decides -----------------------------------------------


def _answer(old: Kept | None, s: Settlement) -> Settled:
    if old is None:
        return "gone"
    record = old.record
    if record.fence != s.fence or record.holder != s.holder:
        return "already" if record.settled == s.fence else "lost"
    return "stale" if record.version != s.version else "done"


def _is_ordinary(record: Record, s: Settlement) -> bool:
    return record.fence == s.fence and record.holder == s.holder and record.version == s.version


def _settled(r: Record, s: Settlement, now: float, *, is_stale: bool) -> Record:
    back = s.hand_back
    return Record(
        r.id, r.birth, r.queue, r.priority, r.task, now if is_stale else s.wake_at,
        r.hold if back or is_stale else s.hold, r.body, r.cursor if back else s.cursor, r.version, r.fence, None,
        r.settled if back else r.fence, max(r.tries - 1, 0) if back else 0, r.prior if back else None,
    )  # fmt: skip


def _updated(r: Record, u: Update, now: Any) -> Record:
    record = replace(
        r,
        body=u.body,
        version=r.version + 1,
        queue=u.queue,
        priority=u.priority,
        task=r.task if u.task is None else u.task,
    )
    if r.holder is not None and not u.revoke:
        return record
    wake_at = now() if u.revoke else u.wake_at
    return replace(record, hold=u.hold, wake_at=wake_at, holder=None)


def _lane(record: Record) -> Lane:
    return Lane(record.queue, record.priority)
