"""A namespace whose queues have a hash tag each, so that they may live on several servers of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from asyncsched.contract import Claim, Claimed, Entry, Filter, Record, Settled, Settlement, Update
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.redis._server import Server
from asyncsched.stores.redis._shard import Hints, Shard

__all__ = ["BUSY", "Spread"]

_T = TypeVar("_T")

#: In the place of a version: whether the claim is held still cannot be told at present.
BUSY = -2
#: So many claims are remembered with their queue; of others every queue is asked.
_REMEMBERED = 100_000


class Spread:
    """The jobs of all queues; *base* has what belongs to none."""

    def __init__(
        self, server: Server, namespace: str, hints: Hints, now: Callable[[], float | None], base: Shard
    ) -> None:
        self._server = server
        self._namespace = namespace
        self._hints = hints
        self._now = now
        self._base = base
        self._names = f"{{{namespace}}}:queues".encode()
        self._shards: dict[str, Shard] = {}
        self._registered: set[str] = set()
        #: (job, token) -> queue, of what this client has claimed.
        self._taken_from: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def erase(self) -> None:
        await _all(shard.erase() for shard in await self._known())
        await self._server.command("UNLINK", self._names, key=self._names)
        self._registered.clear()

    # -- records -------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        by_queue: dict[str, list[Record]] = {}
        for record in records:
            by_queue.setdefault(record.queue, []).append(record)
        await self._register(by_queue)
        # Named leases have their fences from the base.
        await self._base.raise_fence(records)
        taken = await _all(self._shard(queue).add(some) for queue, some in by_queue.items())
        return set().union(*taken)

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        if not ids:
            return {}
        found: dict[str, Record] = {}
        for some in await _all(shard.get(ids) for shard in await self._known()):
            found = some | found
        return found

    async def page(self, where: Filter, limit: int, after: Record | None) -> list[Record]:
        shards = await self._known() if where.queue is None else [self._shard(where.queue)]
        pages = await _all(shard.page(where, limit, after) for shard in shards)
        return sorted((record for page in pages for record in page), key=_page_key)[:limit]

    async def update(self, update: Update) -> Record | None:
        updated = await self._shard(update.queue).update(update)
        if updated is not None:
            return updated
        there = (await self.get([update.id])).get(update.id)
        if there is not None and there.queue != update.queue and there.version == update.version:
            raise StoreError(
                f"job {update.id!r} is in queue {there.queue!r} and cannot move to {update.queue!r}, since with spread=True "
                f"they may live on different servers: remove it, and add it to the other queue"
            )
        return None

    async def remove(self, ids: Sequence[str]) -> set[str]:
        if not ids:
            return set()
        return set().union(*await _all(shard.remove(ids) for shard in await self._known()))

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float
    ) -> Claimed:
        records: list[Record] = []
        next_wake_at: float | None = None
        now: float | None = None
        for queue in dict.fromkeys(queues):
            shard = self._shard(queue)
            try:
                claimed = await shard.claim((queue,), token, limit - len(records), lease_s, ahead_s)
            except StoreUnavailable:
                await self._hand_back(records, now)
                raise
            records += claimed.records
            for record in claimed.records:
                self._taken_from[record.id, token] = queue
            now = claimed.now if now is None else now
            if next_wake_at is None or (
                claimed.next_wake_at is not None and claimed.next_wake_at < next_wake_at
            ):
                next_wake_at = claimed.next_wake_at
            if shard.on_their_way:
                with contextlib.suppress(StoreUnavailable):  # The next claim tries again.
                    await self._deliver(shard)
        while len(self._taken_from) > _REMEMBERED:
            self._taken_from.popitem(last=False)
        if len(records) > limit:
            # A repeated claim: what the token holds of one queue comes on top of what has become due in those before.
            await self._hand_back(records[limit:], now)
            del records[limit:]
        if now is None:
            now = (await self._base.claim((), token, 0, lease_s, 0.0)).now
        return Claimed(records, next_wake_at, now)

    async def _hand_back(self, records: Sequence[Record], now: float | None) -> None:
        """What was taken before another server failed, or is too much: nobody learns of it, and it must not count as a claim that
        was lost."""
        with contextlib.suppress(StoreError):
            await self.settle([
                Settlement(r.id, r.fence, r.holder or "", r.version, wake_at=now, hand_back=True) for r in records
            ])  # fmt: skip

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> tuple[list[int], float]:
        answers = [-1] * len(claims)
        by_queue: dict[str, list[int]] = {}
        unknown: list[int] = []
        for i, claim in enumerate(claims):
            queue = self._taken_from.get((claim.id, claim.holder))
            (unknown if queue is None else by_queue.setdefault(queue, [])).append(i)
        if unknown:
            for shard in await self._known():
                by_queue.setdefault(shard.queue or "", []).extend(unknown)
        if not by_queue:
            return await self._base.renew(claims, lease_s)

        away: list[StoreUnavailable] = []
        unasked: list[int] = []
        times: list[float] = []

        async def renew(queue: str, places: list[int]) -> None:
            try:
                versions, now = await self._shard(queue).renew([claims[i] for i in places], lease_s)
            except StoreUnavailable as error:
                away.append(error)
                unasked.extend(places)
                return
            times.append(now)
            for i, version in zip(places, versions, strict=True):
                answers[i] = max(answers[i], version)

        await _all(renew(queue, places) for queue, places in by_queue.items())
        if not times:
            raise away[0]
        # The others are renewed all the same; of these nobody knows.
        for i in unasked:
            answers[i] = answers[i] if answers[i] >= 0 else BUSY
        return answers, times[0]

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: list[Settled] = ["lost"] * len(settlements)
        shards = await self._shards_of(settlements)
        by_shard: dict[Shard, list[int]] = {}
        for i, shard in enumerate(shards):
            by_shard.setdefault(shard, []).append(i)

        async def settle(shard: Shard, places: list[int]) -> None:
            some = [settlements[i] for i in places]
            for i, answer in zip(places, await shard.settle(some), strict=True):
                answers[i] = answer
            if any(record.queue != shard.queue for s in some for record in s.spawn):
                await self._deliver(shard)

        await _all(settle(shard, places) for shard, places in by_shard.items())
        for s, shard, answer in zip(settlements, shards, answers, strict=True):
            self._taken_from.pop((s.id, s.holder), None)
            if s.unpark is not None and answer in ("done", "stale"):
                await self._unpark(shard, *s.unpark)
        return answers

    async def _shards_of(self, settlements: Sequence[Settlement]) -> list[Shard]:
        """Where each is to be settled: where it was claimed; else where its claim, or at least its job, is found."""
        queues = [self._taken_from.get((s.id, s.holder)) for s in settlements]
        unknown = [s.id for s, queue in zip(settlements, queues, strict=True) if queue is None]
        if not unknown:
            return [self._shard(queue or "") for queue in queues]
        known = await self._known()
        found = list(zip(known, await _all(shard.get(unknown) for shard in known), strict=True))

        def look(s: Settlement) -> Shard:
            there = [(_nearness(s, records[s.id]), shard) for shard, records in found if s.id in records]
            return max(there, key=_first)[1] if there else self._base

        return [
            look(s) if queue is None else self._shard(queue)
            for s, queue in zip(settlements, queues, strict=True)
        ]

    async def _unpark(self, first: Shard, hold: str, limit: int) -> None:
        """In the queue of the settlement first, then in the others; what is missed here wakes by itself, later."""
        known = await self._known()
        for shard in [first, *(other for other in known if other is not first)]:
            if limit > 0 and shard.queue is not None:
                limit -= await shard.unpark(hold, limit)

    async def _deliver(self, shard: Shard) -> None:
        """Bring what was spawned for other queues there. It is kept where it came from until it has arrived."""
        sender = shard.queue or ""
        for queue, sent in (await shard.sent()).items():
            await self._register([queue])
            keys, there = [key for key, _ in sent], self._shard(queue)
            await there.arrive(sender, sent)
            await shard.forget_sent(keys)
            await there.forget_arrived(sender, keys)

    # -- the log -------------------------------------------------------------------------------------------------------

    async def runs(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        shards = [self._base, *await self._known()]
        logs = await _all(shard.runs(job_id, kinds, limit, before) for shard in shards)
        entries = {_log_key(entry): entry for log in logs for entry in log}
        return [entries[key] for key in sorted(entries, reverse=True)][:limit]

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        for shard in [self._base, *await self._known()]:
            if pruned < limit:
                pruned += await shard.prune(older_than_s, per_job, limit - pruned)
        return pruned

    # -- below ---------------------------------------------------------------------------------------------------------

    def _shard(self, queue: str) -> Shard:
        shard = self._shards.get(queue)
        if shard is None:
            tag = f"{self._namespace}|{queue}"
            shard = self._shards[queue] = Shard(self._server, tag, self._hints, self._now, queue)
        return shard

    async def _known(self) -> list[Shard]:
        """Every queue that has ever had a job, by any client."""
        found = await self._server.command("SMEMBERS", self._names, key=self._names)
        names = {name.decode() for name in found}
        lost = self._registered - names
        if lost:
            # The server may lose what it has acknowledged, and with it the way to their jobs.
            self._registered -= lost
            await self._register(lost)
        return [self._shard(name) for name in sorted(names | lost)]

    async def _register(self, queues: Iterable[str]) -> None:
        """Before a queue has its first job, all must be able to find it."""
        fresh = [queue for queue in queues if queue not in self._registered]
        if fresh:
            await self._server.command("SADD", self._names, *fresh, key=self._names)
            self._registered.update(fresh)


async def _all(calls: Iterable[Awaitable[_T]]) -> list[_T]:
    """The answers of calls made at once. All are awaited, also where one has failed: its error is raised then."""
    waiting = list(calls)
    if len(waiting) == 1:
        return [await waiting[0]]
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    found: list[_T] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        found.append(answer)
    return found


def _nearness(s: Settlement, record: Record) -> int:
    if (record.fence, record.holder) == (s.fence, s.holder):
        return 2
    return 1 if record.settled == s.fence else 0


def _first(pair: tuple[int, Shard]) -> int:
    return pair[0]


def _page_key(record: Record) -> tuple[bool, float, str]:
    return (record.wake_at is None, record.wake_at or 0.0, record.id)


def _log_key(entry: Entry) -> tuple[float, str, int, str, float]:
    return (entry.at, entry.job_id, entry.fence, entry.kind, entry.fire_at)
