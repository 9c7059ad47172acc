"""Named leases: data with an end, decided by compare and set. A lease of the server's own deletes what a dead holder left behind.

The server's leases cannot decide who holds what: they have no fence, end by the server's own timer and not by the store's
clock, last longer after each change of leader, and take their keys with them, so that nothing would tell a late holder from a
stranger. They are attached with a time to live that is at least twice as long, as what sweeps up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from asyncsched.contract import Lease
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.etcd._desk import Desk, Floor, floor_of
from asyncsched.stores.etcd._expiry import Expiry
from asyncsched.stores.etcd._ops import Item

__all__ = ["Leases"]

#: Leases that are read and written by one request.
_MANY = 100
_KEPT_S = 60.0


class _Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    holder: str
    fence: int
    until: float


_DECODER = msgspec.msgpack.Decoder(_Row)
#: A lease as it is to be, the revision at which it was written last, and the floor that its fence stands on.
_Wanted = tuple[Lease, int, Floor]


class Leases:
    """The named leases of one store."""

    def __init__(self, desk: Desk, expiry: Expiry, *, sweeps: bool) -> None:
        self._desk = desk
        self._expiry = expiry
        #: Whether what has ended is deleted by the server; not where time is not the server's kind of it.
        self._sweeps = sweeps

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None
    ) -> dict[str, Lease]:
        unique = list(dict.fromkeys(keys))
        if limit is not None:
            return await self._acquire(unique, holder, lease_s, limit)
        taken: dict[str, Lease] = {}
        for piece in _pieces(unique):
            taken |= await self._acquire(piece, holder, lease_s, len(piece))
        return taken

    async def _acquire(self, keys: list[str], holder: str, lease_s: float, most: int) -> dict[str, Lease]:
        taken: dict[str, Lease] = {}
        left, turn = keys, 0
        while left and len(taken) < most:
            await self._desk.pause(turn)
            turn += 1
            now = self._desk.now()
            own: list[_Wanted] = []
            free: list[_Wanted] = []
            for piece in _pieces(left):
                there, revision, floor = await self._read(piece)
                for key in piece:
                    row, since = there.get(key, (None, 0))
                    if row is None or row.until <= now:
                        # A revision at which it was free: above all fences that it had, whether it is there still or not.
                        above = 0 if row is None else row.fence + 1
                        lease = Lease(key, holder, max(floor.fence + revision, above), now + lease_s)
                        free.append((lease, since, floor))
                    elif row.holder == holder:
                        own.append((Lease(key, holder, row.fence, now + lease_s), since, floor))
            if turn > 2:
                # Those who compete for the first that are free would meet again and again.
                random.shuffle(free)
            wanted = [*own, *free]
            asked = wanted[: most - len(taken)]
            done = await self._write(asked)
            taken |= {lease.key: lease for lease in done}
            if len(done) == len(asked):
                break
            left = [lease.key for lease, *_ in wanted if lease.key not in taken]
        return taken

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        held: dict[str, Lease] = {}
        for piece in _pieces(list(leases)):
            left, turn = piece, 0
            while left:
                await self._desk.pause(turn)
                turn += 1
                until = self._desk.now() + lease_s
                there, _, floor = await self._read([lease.key for lease in left])
                wanted = []
                for lease in left:
                    row, since = there.get(lease.key, (None, 0))
                    if row is None or row.holder != lease.holder or row.fence != lease.fence:
                        continue
                    wanted.append((lease._replace(until=max(until, row.until)), since, floor))
                done = {lease.key: lease for lease in await self._write(wanted)}
                held |= done
                left = [lease for lease, *_ in wanted if lease.key not in done]
        return held

    async def release(self, leases: Sequence[Lease]) -> None:
        for piece in _pieces(list(leases)):
            left, turn = piece, 0
            while left:
                await self._desk.pause(turn)
                turn += 1
                there, _, _ = await self._read([lease.key for lease in left])
                items, of_items = [], []
                for lease in left:
                    row, since = there.get(lease.key, (None, 0))
                    if row is not None and row.holder == lease.holder and row.fence == lease.fence:
                        item = self._item(lease.key, since)
                        item.delete(self._desk.keys.named_lease(lease.key))
                        items.append(item)
                        of_items.append(lease)
                done = await self._desk.apply(items)
                left = [lease for lease, revision in zip(of_items, done, strict=True) if not revision]

    # -- below ---------------------------------------------------------------------------------------------------------

    async def _read(self, keys: Sequence[str]) -> tuple[dict[str, tuple[_Row, int]], int, Floor]:
        names = {self._desk.keys.named_lease(key): key for key in keys}
        found, revision = await self._desk.values([self._desk.keys.fence, *names])
        floor = found.pop(self._desk.keys.fence, None)
        rows = {names[name]: (_decoded(kv.value), kv.mod_revision) for name, kv in found.items()}
        return rows, revision, floor_of([floor] if floor else [])

    async def _write(self, wanted: Sequence[_Wanted]) -> list[Lease]:
        if not wanted:
            return []
        # One that is extended by less than it has left ends when it did.
        longest_s = max(lease.until for lease, *_ in wanted) - self._desk.now()
        expiry = await self._expiry.lease_for(2 * longest_s + _KEPT_S) if self._sweeps else 0
        items = []
        for lease, since, floor in wanted:
            item = self._item(lease.key, since)
            item.if_at(self._desk.keys.fence, floor.revision)
            name = self._desk.keys.named_lease(lease.key)
            value = msgspec.msgpack.encode(_Row(lease.holder, lease.fence, lease.until))
            item.put(name, value, expiry)
            items.append(item)
        try:
            done = await self._desk.apply(items)
        except StoreUnavailable:
            # It may be that the server has ended that lease.
            self._expiry.forget()
            raise
        return [lease for (lease, *_), revision in zip(wanted, done, strict=True) if revision]

    def _item(self, key: str, since: int) -> Item:
        item = Item(f"the lease {key!r}")
        item.if_at(self._desk.keys.named_lease(key), since)
        return item


def _pieces(items: list[Any]) -> list[list[Any]]:
    return [items[at : at + _MANY] for at in range(0, len(items), _MANY)]


def _decoded(value: bytes) -> _Row:
    try:
        return _DECODER.decode(value)
    except msgspec.MsgspecError as error:
        raise StoreError(f"a lease that etcd keeps cannot be read: {error}") from error
