"""Named leases: one document each, which stays for a day after it was last held, so that its fences never fall."""

from __future__ import annotations

import random
from collections.abc import Sequence

from asyncsched.contract import Lease
from asyncsched.stores.mongodb._documents import Keys, literal
from asyncsched.stores.mongodb._server import Document, Names, Server
from asyncsched.stores.mongodb._time import ServerTime

__all__ = ["Leases"]

_PIECE = 200
_KEPT_S = 86_400.0
#: A lease that is made may be forgotten before it is taken, once.
_ATTEMPTS = 3
#: So often is looked for what is free still, where others are faster.
_TURNS = 10


class Leases:
    """The leases of one namespace."""

    def __init__(self, server: Server, names: Names, keys: Keys, time: ServerTime) -> None:
        self._server, self._names, self._keys, self._time = server, names, keys, time

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None
    ) -> dict[str, Lease]:
        if limit is not None:
            return await self._acquire_some(list(dict.fromkeys(keys)), holder, lease_s, limit)
        taken: dict[str, Lease] = {}
        for start in range(0, len(keys), _PIECE):
            piece = list(dict.fromkeys(keys[start : start + _PIECE]))
            await self._acquire(piece, holder, lease_s)
            for lease in await self._read(piece):
                if lease.holder == holder:
                    taken[lease.key] = lease
        return taken

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        kept: dict[str, Lease] = {}
        end = {"$add": [self._time.expression(), lease_s]}
        for start in range(0, len(leases), _PIECE):
            piece = leases[start : start + _PIECE]
            await self._update(piece, [{"$set": {"until": {"$max": ["$until", end]}}}])
            there = {lease.key: lease for lease in await self._read([lease.key for lease in piece])}
            for lease in piece:
                found = there.get(lease.key)
                if found is not None and (found.holder, found.fence) == (lease.holder, lease.fence):
                    kept[lease.key] = found
        return kept

    async def release(self, leases: Sequence[Lease]) -> None:
        free = {"holder": literal(None), "until": 0.0, "touched": self._time.expression()}
        for start in range(0, len(leases), _PIECE):
            await self._update(leases[start : start + _PIECE], [{"$set": free}])

    async def prune(self) -> None:
        """Forget those that nobody has held for a day: the server's clock gives the next one a higher fence all the same."""
        before = {"$lt": self._time.estimate() - _KEPT_S}
        which = {"_id": self._keys.all(), "touched": before, "until": before}
        await self._server.write({"delete": self._names.leases, "deletes": [{"q": which, "limit": 0}]})

    async def raise_fences(self, fence: int) -> None:
        """Have no later fence of a lease as low as *fence*; those that are made later begin with what the namespace says, and
        those that are held keep the fence that they were taken with."""
        update = {"q": {"_id": self._keys.all()}, "u": {"$max": {"lowest": fence}}, "multi": True}
        await self._server.write({"update": self._names.leases, "updates": [update]})

    # -- below ---------------------------------------------------------------------------------------------------------

    async def _acquire_some(
        self, keys: list[str], holder: str, lease_s: float, limit: int
    ) -> dict[str, Lease]:
        """Look, then take no more than is wanted: as often as another was faster with some of it."""
        taken: dict[str, Lease] = {}
        left = keys
        for attempt in range(_TURNS):
            if not left or len(taken) >= limit:
                break
            there = {lease.key: lease for lease in await self._read(left)}
            now = self._time.estimate()
            held = {key for key, lease in there.items() if lease.until > now}
            own = [key for key in left if key in held and there[key].holder == holder]
            free = [key for key in left if key not in held]
            if attempt > 1:
                # Those who compete for the first that are free would meet again and again.
                random.shuffle(free)
            asked = [*own, *free][: limit - len(taken)]
            new = await self.acquire(asked, holder, lease_s, None)
            taken |= new
            if len(new) == len(asked):
                break
            left = [key for key in left if key not in taken and (key not in held or key in own)]
        return taken

    async def _acquire(self, keys: Sequence[str], holder: str, lease_s: float) -> None:
        now = self._time.expression()
        is_free = {"$lte": ["$until", now]}
        is_own = {"$eq": ["$holder", literal(holder)]}
        is_taken = {"$or": [is_free, is_own]}
        above = [{"$add": ["$fence", 1]}, {"$add": [{"$ifNull": ["$lowest", 0]}, 1]}]
        change = {
            "holder": {"$cond": [is_free, literal(holder), "$holder"]},
            "fence": {"$cond": [is_free, {"$max": [*above, self._time.fence()]}, "$fence"]},
            "until": {"$cond": [is_taken, {"$add": [now, lease_s]}, "$until"]},
            "touched": {"$cond": [is_taken, now, "$touched"]},
        }
        which = {"_id": {"$in": [self._keys.of(key) for key in keys]}}
        update = {"q": which, "u": [{"$set": change}], "multi": True}
        for _ in range(_ATTEMPTS):
            answer = await self._server.write({"update": self._names.leases, "updates": [update]})
            if answer["n"] == len(keys):
                return
            # Some were never held. None of them is taken by being there.
            found = await self._server.rows({"find": self._names.jobs, "filter": {"_id": self._keys.own}})
            lowest = int(found[0].get("lowest", 0)) if found else 0
            free = {"holder": None, "fence": lowest, "until": 0.0, "touched": self._time.estimate()}
            documents = [{"_id": self._keys.of(key), **free} for key in keys]
            command: Document = {"insert": self._names.leases, "documents": documents, "ordered": False}
            await self._server.write(command, may_exist=True)

    async def _update(self, leases: Sequence[Lease], change: list[Document]) -> None:
        updates = [
            {"q": {"_id": self._keys.of(key), "holder": holder, "fence": fence}, "u": change}
            for key, holder, fence, _ in leases
        ]
        await self._server.write({"update": self._names.leases, "updates": updates, "ordered": False})

    async def _read(self, keys: Sequence[str]) -> list[Lease]:
        which = {"_id": {"$in": [self._keys.of(key) for key in keys]}}
        found = await self._server.rows({"find": self._names.leases, "filter": which})
        return [
            Lease(self._keys.name(d["_id"]) or "", d["holder"] or "", int(d["fence"]), d["until"])
            for d in found
        ]
