"""acquire, extend and release: a document for each lease that is held."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from asyncsched.contract import Lease
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.firestore import _wire as wire
from asyncsched.stores.firestore._floor import Floor
from asyncsched.stores.firestore._names import LEASES, NEVER, to_seconds, to_us
from asyncsched.stores.firestore._server import Server, in_parallel, pause

__all__ = ["Leases"]

_PIECE = 400
#: A named lease that ended so long ago is forgotten: nobody renews it any more.
_FORGOTTEN_S = 3600.0
_TRIES = 8


class Leases:
    """The fence of a lease is the instant at which its document was made, or that of its last change, and a microsecond, where it
    was taken over: no later one can have a lower fence, though nothing is kept of a lease that was released."""

    def __init__(self, server: Server, floor: Floor) -> None:
        self._server = server
        self._floor = floor
        self._names = server.names

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None
    ) -> dict[str, Lease]:
        unique = list(dict.fromkeys(keys))
        if limit is not None:
            return await self._acquire(unique, holder, to_us(lease_s), limit)
        pieces = [unique[i : i + _PIECE] for i in range(0, len(unique), _PIECE)]
        answers = await in_parallel(
            [partial(self._acquire, piece, holder, to_us(lease_s), len(piece)) for piece in pieces]
        )
        return {key: lease for taken in answers for key, lease in taken.items()}

    async def _acquire(self, keys: Sequence[str], holder: str, lease_us: int, most: int) -> dict[str, Lease]:
        taken: dict[str, Lease] = {}
        left = {self._names.lease(key): key for key in keys}
        for attempt in range(_TRIES):
            if not left or len(taken) >= most:
                break
            await pause(attempt)
            there, now_us = await self._server.get([*left, self._floor.name])
            floor = self._floor.of(there)
            until_us = min(now_us + lease_us, NEVER - 1)
            wanted = self._wanted(left, there, holder, now_us, until_us, floor, is_late=attempt > 1)
            asked = wanted[: most - len(taken)]
            written: list[int | None] = []
            for i in range(0, len(asked), _PIECE):
                written += await self._server.batch([write for *_, write in asked[i : i + _PIECE]])
            for (name, fence, _), at_us in zip(asked, written, strict=True):
                if at_us is not None:
                    own = floor + at_us if fence is None else fence
                    taken[left[name]] = Lease(left[name], holder, own, to_seconds(until_us))
            if None not in written:
                break
            # Whoever was faster with the others has them, or lets them go: that is looked for once more.
            left = {name: left[name] for name, *_ in wanted if left[name] not in taken}
        return taken

    def _wanted(
        self,
        names: Iterable[str],
        there: Mapping[str, Any],
        holder: str,
        now_us: int,
        until_us: int,
        floor: int,
        *,
        is_late: bool,
    ) -> list[tuple[str, int | None, Any]]:
        """What can be taken, the holder's own first: the name, the fence (None: as the write will be) and the write."""
        own: list[tuple[str, int | None, Any]] = []
        free: list[tuple[str, int | None, Any]] = []
        for name in names:
            document = there.get(name)
            fence: int | None = None
            if document is None:
                made: dict[str, wire.Value] = {
                    "holder": holder,
                    "until": until_us,
                    "fence": None,
                    "floor": floor,
                }
                free.append((name, None, wire.creation(name, made)))
                continue
            changed_us = wire.microseconds(document.update_time)
            is_free = document.fields["until"].integer_value <= now_us
            if is_free:
                fence = floor + changed_us + 1
            elif wire.value_of(document, "holder") == holder:
                fence = _fence(document)
            else:
                continue
            fields: dict[str, wire.Value] = {"holder": holder, "until": until_us, "fence": fence}
            (free if is_free else own).append((name, fence, wire.update(name, fields, changed_us)))
        if is_late:
            # Those who compete for the first that are free would meet again and again.
            random.shuffle(free)
        return own + free

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        unique = list(dict.fromkeys(leases))
        pieces = [unique[i : i + _PIECE] for i in range(0, len(unique), _PIECE)]
        answers = await in_parallel([partial(self._extend, piece, to_us(lease_s)) for piece in pieces])
        return {key: lease for kept in answers for key, lease in kept.items()}

    async def _extend(self, leases: Sequence[Lease], lease_us: int) -> dict[str, Lease]:
        kept: dict[str, Lease] = {}
        left = list(leases)
        for attempt in range(_TRIES):
            await pause(attempt)
            there, now_us = await self._server.get([*{self._names.lease(lease.key) for lease in left}])
            until_us = min(now_us + lease_us, NEVER - 1)
            writes: list[Any] = []
            extended: list[Lease] = []
            for lease in left:
                name = self._names.lease(lease.key)
                document = there.get(name)
                if document is None or not _holds(document, lease):
                    continue
                ends_us = document.fields["until"].integer_value
                if ends_us >= until_us:
                    kept[lease.key] = lease._replace(until=to_seconds(ends_us))
                    continue
                extended.append(lease)
                writes.append(wire.update(name, {"until": until_us}, wire.microseconds(document.update_time)))
            if not writes:
                return kept
            written = await self._server.batch(writes)
            left = []
            for lease, at_us in zip(extended, written, strict=True):
                if at_us is None:
                    left.append(lease)
                else:
                    kept[lease.key] = lease._replace(until=to_seconds(until_us))
            if not left:
                return kept
        raise StoreUnavailable(f"lease {left[0].key!r} changed again and again while it was extended")

    async def forget(self, limit: int) -> None:
        """Delete those that ended long ago, unless another takes one meanwhile."""
        before_us = await self._server.now_us() - to_us(_FORGOTTEN_S)
        found, _ = await self._server.query(
            wire.query(LEASES, [("until", "<", before_us)], ["until", "__name__"], limit, fields=["until"])
        )
        old = [wire.deletion(d.name, wire.microseconds(d.update_time)) for d in found]
        await in_parallel(
            [partial(self._server.batch, old[i : i + _PIECE]) for i in range(0, len(old), _PIECE)]
        )

    async def release(self, leases: Sequence[Lease]) -> None:
        unique = list(dict.fromkeys(leases))
        pieces = [unique[i : i + _PIECE] for i in range(0, len(unique), _PIECE)]
        await in_parallel([partial(self._release, piece) for piece in pieces])

    async def _release(self, leases: Sequence[Lease]) -> None:
        left = list(leases)
        for attempt in range(_TRIES):
            await pause(attempt)
            there, _ = await self._server.get([*{self._names.lease(lease.key) for lease in left}])
            left = [lease for lease in left if _holds(there.get(self._names.lease(lease.key)), lease)]
            if not left:
                return
            names = [self._names.lease(lease.key) for lease in left]
            written = await self._server.batch(
                [wire.deletion(name, wire.microseconds(there[name].update_time)) for name in names]
            )
            left = [lease for lease, at_us in zip(left, written, strict=True) if at_us is None]
            if not left:
                return
        raise StoreUnavailable(f"lease {left[0].key!r} changed again and again while it was released")


def _fence(document: Any) -> int:
    fence = wire.value_of(document, "fence")
    if fence is not None:
        return int(fence)
    return int(wire.value_of(document, "floor") or 0) + wire.microseconds(document.create_time)


def _holds(document: Any | None, lease: Lease) -> bool:
    return (
        document is not None
        and wire.value_of(document, "holder") == lease.holder
        and _fence(document) == lease.fence
    )
