"""Named leases: a node for each key, with its holder and end.

A released lease leaves its node behind for a while, so that the node's version never begins anew while somebody may still
compare it. The fence follows the transaction that the taking of the lease compared, or is the one that made the node.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import msgspec

from asyncsched.contract import Lease
from asyncsched.stores.zookeeper._ground import Ground, some
from asyncsched.stores.zookeeper._wire import Failed

__all__ = ["Leases"]

_ATTEMPTS = 8
#: Free nodes that were not written for so long are removed: longer than any call takes, and than a silent session lives.
_FREE_S = 3600.0
_TIDIED = 500


class _Kept(msgspec.Struct, array_like=True, gc=False):
    """What a node says."""

    holder: str | None
    until: float
    #: What is added to the transaction that made the node to make the fence; or the fence itself.
    floor: int
    fence: int = 0

    def fence_of(self, stat: Any) -> int:
        return self.fence or self.floor + int(stat.created_zxid)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class Leases:
    """The named leases of one namespace."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None
    ) -> dict[str, Lease]:
        ground = self._ground
        now = await ground.now()
        until = now + lease_s
        taken: dict[str, Lease] = {}
        left = list(dict.fromkeys(keys))
        most = len(left) if limit is None else limit
        for attempt in range(_ATTEMPTS):
            if not left or len(taken) >= most:
                break
            wanted = self._wanted(left, await self._read(left), holder, now, until)
            left = [key for key, *_ in wanted]
            if attempt > 1:
                # Those who compete for the first that are free would meet again and again.
                random.shuffle(wanted)
                wanted.sort(key=itemgetter(1))
            asked = wanted[: most - len(taken)]
            batches = [[ground.check_floor(), write] for *_, write in asked]
            outcomes = await ground.wire.multis(batches) if batches else []
            is_done = True
            for (key, _, fence, _), outcome in zip(asked, outcomes, strict=True):
                if isinstance(outcome, Failed):
                    is_done = False
                else:
                    taken[key] = Lease(key, holder, fence or ground.floor + outcome[0], until)
                    left.remove(key)
            if is_done:
                break
            await ground.read_floor()
        return taken

    def _wanted(
        self,
        keys: Sequence[str],
        nodes: Sequence[tuple[_Kept, Any] | None],
        holder: str,
        now: float,
        until: float,
    ) -> list[tuple[str, bool, int, Any]]:
        """What can be taken, the holder's own first: the key, whether it is free, its fence, and the write."""
        wanted = []
        for key, node in zip(keys, nodes, strict=True):
            if (found := self._taken(key, node, holder, now, until)) is not None:
                is_free = node is None or node[0].holder is None or node[0].until <= now
                wanted.append((key, is_free, *found))
        return sorted(wanted, key=itemgetter(1))

    def _taken(
        self, key: str, node: tuple[_Kept, Any] | None, holder: str, now: float, until: float
    ) -> tuple[int, Any] | None:
        """The fence (0: as the transaction will be) and the write that take a lease; None: it is another's."""
        wire, path, floor = self._ground.wire, self._ground.paths.lease(key), self._ground.floor
        if node is None:
            return 0, wire.create(path, _encode(_Kept(holder, until, floor)))
        kept, stat = node
        if kept.holder is None or kept.until <= now:
            # One more than what is compared: still no higher than what this write will be.
            fence = floor + stat.last_modified_zxid + 1
            return fence, wire.set_data(path, _encode(_Kept(holder, until, floor, fence)), stat.version)
        if kept.holder != holder:
            return None
        renewed = _Kept(holder, until, kept.floor, kept.fence)
        return kept.fence_of(stat), wire.set_data(path, _encode(renewed), stat.version)

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        until = await self._ground.now() + lease_s
        return await self._change(leases, until)

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._change(leases, None)

    async def _change(self, leases: Sequence[Lease], until: float | None) -> dict[str, Lease]:
        """Move the ends of those that are held still, or (None) free them; return those."""
        wire, held = self._ground.wire, dict[str, Lease]()
        left = list(dict.fromkeys(leases))
        for _ in range(_ATTEMPTS):
            if not left:
                break
            requests, asked = [], []
            for lease, node in zip(left, await self._read([lease.key for lease in left]), strict=True):
                if node is None:
                    continue
                kept, stat = node
                if kept.holder != lease.holder or kept.fence_of(stat) != lease.fence:
                    continue
                ends = kept.until if until is None else max(until, kept.until)
                held[lease.key] = lease._replace(until=ends)
                if until is None or ends > kept.until:
                    holder = None if until is None else lease.holder
                    kept = _Kept(holder, 0.0 if until is None else ends, kept.floor, kept.fence)
                    asked.append(lease)
                    requests.append(
                        wire.set_data(self._ground.paths.lease(lease.key), _encode(kept), stat.version)
                    )
            left = []
            for lease, answer in zip(asked, await wire.ask(requests), strict=True):
                if isinstance(answer, Exception):
                    left.append(lease)
                    del held[lease.key]
        return held

    async def _read(self, keys: Sequence[str]) -> list[tuple[_Kept, Any] | None]:
        wire, paths = self._ground.wire, self._ground.paths
        answers = await wire.ask([wire.sync(paths.leases), *(wire.get(paths.lease(key)) for key in keys)])
        return [None if isinstance(a, Exception) else (_decode(a.data), a.stat) for a in answers[1:]]

    async def tidy(self) -> None:
        """Remove the nodes of some leases that have been free for long."""
        wire, paths = self._ground.wire, self._ground.paths
        listed = await wire.ask_one(wire.children(paths.leases))
        names = [] if isinstance(listed, Exception) else some(listed.children, _TIDIED)
        answers = await wire.ask([wire.get(f"{paths.leases}/{name}") for name in names])
        now, old = await self._ground.now(), []
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, Exception):
                continue
            is_free = (kept := _decode(answer.data)).holder is None or kept.until + _FREE_S < now
            if is_free and answer.stat.modified / 1000 + _FREE_S < now:
                old.append(wire.delete(f"{paths.leases}/{name}", answer.stat.version))
        await wire.ask(old)
