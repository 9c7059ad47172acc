"""Jobs in this process's memory: the reference model of the contract, and the fastest store.

One heap of (wake_at, id) for each lane. An entry of a heap is valid while the record still says so; stale ones are dropped
when they surface, and the heaps are rebuilt when more than half of them is stale. There is no ``await`` inside any method,
so each is atomic in its event loop.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from heapq import heapify, heappop, heappush
from itertools import chain, islice
from typing import Literal

from msgspec.structs import replace

from asyncsched.clock import host_time
from asyncsched.contract import (
    Capabilities,
    Claim,
    Claimed,
    Entry,
    Filter,
    Lease,
    Record,
    Renewal,
    Settled,
    Settlement,
    Update,
)
from asyncsched.errors import DefinitionError

__all__ = ["MemoryStore"]

_Lane = tuple[str, int]
_Heap = list[tuple[float, str]]
_PageKey = tuple[bool, float, str]

#: A named lease that ended so long ago is forgotten: nobody renews it any more.
_FORGOTTEN_S = 3600.0


class MemoryStore:
    """A job store that lives and dies with this process.

    Every process has its own: with several web workers each job runs once in each of them. Use a shared store then.
    """

    capabilities = Capabilities(
        durable=False, shared=False, clock="host", push_hints=True, linearizable=True, transactional_add=False
    )

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._lanes: dict[_Lane, _Heap] = {}
        self._lane_order: dict[tuple[str, ...], list[tuple[str, int, _Heap]]] = {}
        self._entries = 0
        self._fence = 0
        self._claims: dict[str, list[Record]] = {}
        self._parked = _Parked(self._records)
        self._leases: dict[str, Lease] = {}
        #: The leases that were taken, by key and fence, in the order in which they are to be looked at again.
        self._taken: deque[tuple[str, int]] = deque()
        self._log = _Log()
        self._listeners: list[Callable[[float | None], None]] = []
        self._now: Callable[[], float] = host_time

    @classmethod
    def from_url(cls, url: str) -> MemoryStore:
        """``memory://``, with nothing behind it: each store made so is a new, empty one."""
        if url.rstrip("/") != "memory:":
            raise DefinitionError(
                f"memory:// takes neither a path nor options, and {url!r} has some; write memory://"
            )
        return cls()

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._now = now

    async def close(self) -> None:
        """Nothing: it may serve another scheduler of this process, which goes on listening."""

    def clone(self) -> None:
        """Memory cannot be reached from another loop; it needs no renewal either, see the scheduler's leases."""

    async def now(self) -> float:
        return self._now()

    # -- records -------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken: set[str] = set()
        earliest = self._insert(records, taken)
        if earliest is not None:
            self._hint(earliest)
        return taken

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        found = ((id, self._records.get(id)) for id in ids)
        return {id: record for id, record in found if record is not None}

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        floor = None if after is None else _page_key(after)
        matching = (
            (key, record)
            for record in self._records.values()
            if _matches(record, where) and ((key := _page_key(record)) and (floor is None or key > floor))
        )
        return [record for _, record in sorted(matching, key=_first)[:limit]]

    async def update(self, update: Update) -> Record | None:
        record = self._records.get(update.id)
        if record is None or record.version != update.version:
            return None
        changed: dict[str, object] = {
            "body": update.body,
            "version": record.version + 1,
            "queue": update.queue,
            "priority": update.priority,
            "task": record.task if update.task is None else update.task,
        }
        if record.holder is None or update.revoke:
            changed |= {
                "hold": update.hold,
                "wake_at": self._now() if update.revoke else update.wake_at,
                "holder": None,
            }
        record = replace(record, **changed)
        self._records[record.id] = record
        if record.hold is not None:
            self._parked.add(record)
        if record.wake_at is not None and record.wake_at < math.inf:
            self._push(record.queue, record.priority, record.wake_at, record.id)
            self._shrink()
            if record.holder is None:
                self._hint(record.wake_at)
        if record.holder is not None:
            self._hint(None)
        return record

    async def remove(self, ids: Sequence[str]) -> set[str]:
        found = {id for id in ids if self._records.pop(id, None) is not None}
        self._shrink()
        return found

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        now = self._now()
        lanes = self._walk(queues)
        # What has expired meanwhile is claimed anew below, with all else that is due.
        taken = [r for r in self._still_held(token) if r.wake_at is not None and r.wake_at > now]
        until = now + lease_s
        if len(taken) < limit:
            for queue, priority, heap in lanes:
                self._claim_lane(taken, limit, queue, priority, heap, now, now + ahead_s, until, token)
                if len(taken) >= limit:
                    break
        if taken:
            self._remember(token, taken)
        return Claimed(taken, self._next_wake(lanes), now)

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        now = self._now()
        until = now + lease_s
        versions: dict[str, int | Literal["busy", "lost"]] = {}
        for id, fence, holder in claims:
            record = self._records.get(id)
            if record is None or record.fence != fence or record.holder != holder:
                versions[id] = "lost"
                continue
            versions[id] = record.version
            if record.wake_at is None or record.wake_at < until:
                self._records[id] = replace(record, wake_at=until)
                if until < math.inf:
                    self._push(record.queue, record.priority, until, id)
        self._shrink()
        return Renewal(versions, now)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: list[Settled] = []
        earliest = math.inf
        records = self._records
        for s in settlements:
            record = records.get(s.id)
            if record is None:
                answers.append("gone")
                self._log.extend(s.entries)
                continue
            if record.fence != s.fence or record.holder != s.holder:
                answers.append("already" if record.settled == s.fence else "lost")
                continue
            stale = record.version != s.version
            if s.delete and not stale:
                del records[s.id]
            else:
                wake_at = self._now() if stale else s.wake_at
                self._release(record, s, wake_at, record.hold if stale else s.hold)
                if wake_at is not None and wake_at < earliest:
                    earliest = wake_at
            if s.entries:
                self._log.extend(s.entries)
            if s.spawn:
                earliest = min(earliest, self._insert(s.spawn, set()) or earliest)
            if s.unpark is not None:
                earliest = min(earliest, self._unpark(*s.unpark) or earliest)
            answers.append("stale" if stale else "done")
        self._shrink()
        if earliest < math.inf:
            self._hint(earliest)
        return answers

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        self._listeners.append(callback)

        def end() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return end

    # -- named leases --------------------------------------------------------------------------------------------------

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        now = self._now()
        own: dict[str, int] = {}
        free: dict[str, int] = {}
        for key in keys:
            lease = self._leases.get(key)
            if lease is None or lease.until <= now:
                free[key] = 0
            elif lease.holder == holder:
                own[key] = lease.fence
        taken: dict[str, Lease] = {}
        for key, fence in islice(chain(own.items(), free.items()), limit):
            if not fence:
                fence = self._fence = self._fence + 1
                self._forget_leases(now - _FORGOTTEN_S)
                self._taken.append((key, fence))
            taken[key] = self._leases[key] = Lease(key, holder, fence, now + lease_s)
        return taken

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        until = self._now() + lease_s
        held = [lease for lease in leases if self._holds(lease)]
        for lease in held:
            if self._leases[lease.key].until < until:
                self._leases[lease.key] = lease._replace(until=until)
        return {lease.key: self._leases[lease.key] for lease in held}

    async def release(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            if self._holds(lease):
                del self._leases[lease.key]

    # -- the log -------------------------------------------------------------------------------------------------------

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        return self._log.newest(job_id, kinds, limit, before)

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        if older_than_s is not None:
            pruned = self._log.prune_older(self._now() - older_than_s, limit)
        if per_job is not None and pruned < limit:
            pruned += self._log.prune_crowded(per_job, limit - pruned)
        return pruned

    # -- below: the heaps ----------------------------------------------------------------------------------------------

    def _insert(self, records: Iterable[Record], taken: set[str]) -> float | None:
        """Add what is not there; put other births' ids into *taken*; return the earliest wake_at that came in."""
        earliest = math.inf
        known = self._records
        for record in records:
            id = record.id
            there = known.get(id)
            if there is not None:
                if there.birth != record.birth:
                    taken.add(id)
                continue
            known[id] = record
            if record.fence > self._fence:
                self._fence = record.fence
            wake_at = record.wake_at
            if record.hold is not None:
                self._parked.add(record)
            if wake_at is not None:
                self._push(record.queue, record.priority, wake_at, id)
                if wake_at < earliest:
                    earliest = wake_at
        return earliest if earliest < math.inf else None

    def _push(self, queue: str, priority: int, wake_at: float, id: str) -> None:
        heap = self._lanes.get((queue, priority))
        if heap is None:
            heap = self._lanes[queue, priority] = []
            self._lane_order.clear()
        heappush(heap, (wake_at, id))
        self._entries += 1

    def _walk(self, queues: Sequence[str]) -> list[tuple[str, int, _Heap]]:
        """The lanes of *queues*, high priority first, queues in the order given."""
        key = tuple(queues)
        lanes = self._lane_order.get(key)
        if lanes is None:
            if len(self._lane_order) > 1024:
                self._lane_order.clear()
            lanes = self._lane_order[key] = [
                (queue, priority, self._lanes[queue, priority])
                for priority in range(9, -1, -1)
                for queue in key
                if (queue, priority) in self._lanes
            ]
        return lanes

    def _claim_lane(
        self,
        taken: list[Record],
        limit: int,
        queue: str,
        priority: int,
        heap: _Heap,
        now: float,
        horizon: float,
        until: float,
        token: str,
    ) -> None:
        records = self._records
        fence = self._fence
        live: _Heap = []
        popped = 0
        room = limit - len(taken)
        while heap and room > 0 and heap[0][0] <= horizon:
            wake_at, id = item = heappop(heap)
            popped += 1
            r = records.get(id)
            if r is None or r.wake_at != wake_at or r.queue != queue or r.priority != priority:
                continue
            if r.holder is not None and wake_at > now:
                live.append(item)
                continue
            fence += 1
            prior = r.fence if r.holder is not None else r.prior
            # Positional, since this is the hottest line of the store: the order of Record's fields.
            r = records[id] = Record(
                id, r.birth, queue, priority, r.task, until, r.hold, r.body, r.cursor,
                r.version, fence, token, r.settled, r.tries + 1, prior,
            )  # fmt: skip
            if until < math.inf:
                live.append((until, id))
            taken.append(r)
            room -= 1
        self._fence = fence
        self._entries += len(live) - popped
        for item in live:
            heappush(heap, item)

    def _next_wake(self, lanes: list[tuple[str, int, _Heap]]) -> float | None:
        earliest = math.inf
        records = self._records
        for queue, priority, heap in lanes:
            while heap:
                wake_at, id = heap[0]
                r = records.get(id)
                if r is not None and r.wake_at == wake_at and r.queue == queue and r.priority == priority:
                    if wake_at < earliest:
                        earliest = wake_at
                    break
                heappop(heap)
                self._entries -= 1
        return earliest if earliest < math.inf else None

    def _shrink(self) -> None:
        """Rebuild the heaps once more than half of their entries is stale."""
        self._parked.shrink()
        if self._entries <= 2 * len(self._records) + 1024:
            return
        for heap in self._lanes.values():
            heap.clear()
        for r in self._records.values():
            if r.wake_at is not None and r.wake_at < math.inf:
                self._lanes.setdefault((r.queue, r.priority), []).append((r.wake_at, r.id))
        for heap in self._lanes.values():
            heapify(heap)
        self._lane_order.clear()
        self._entries = sum(map(len, self._lanes.values()))

    def _still_held(self, token: str) -> list[Record]:
        """What a claim of this token holds already; it is asked again when its reply was lost."""
        first = self._claims.get(token, ())
        current = (self._records.get(r.id) for r in first)
        return [r for r in current if r is not None and r.holder == token]

    def _remember(self, token: str, taken: list[Record]) -> None:
        """Keep the answers of claims that are held still, so that a repeated one is recognised without an index by holder.

        Each claim looks at the two oldest, which keeps the number bounded by twice what is held.
        """
        self._claims[token] = taken.copy()
        for _ in range(2):
            oldest = next(iter(self._claims))
            records = self._claims.pop(oldest)
            if any(
                (r := self._records.get(first.id)) is not None and r.holder == oldest for first in records
            ):
                self._claims[oldest] = records
            if not self._claims:
                return

    def _release(self, r: Record, s: Settlement, wake_at: float | None, hold: str | None) -> None:
        back = s.hand_back
        released = self._records[r.id] = Record(
            r.id, r.birth, r.queue, r.priority, r.task, wake_at,
            r.hold if back else hold, r.body, r.cursor if back else s.cursor, r.version, r.fence, None,
            r.settled if back else r.fence, max(r.tries - 1, 0) if back else 0, r.prior if back else None,
        )  # fmt: skip
        if released.hold is not None:
            self._parked.add(released)
        if wake_at is not None:
            self._push(r.queue, r.priority, wake_at, r.id)

    def _unpark(self, hold: str, limit: int) -> float | None:
        parked = self._parked.take(hold, limit)
        now = self._now()
        for r in parked:
            self._records[r.id] = replace(r, hold=None, wake_at=now)
            self._push(r.queue, r.priority, now, r.id)
        return now if parked else None

    def _forget_leases(self, before: float) -> None:
        """Look at two of the leases that were taken, which with each new one keeps their number bounded by what is held."""
        for _ in range(min(2, len(self._taken))):
            key, fence = self._taken.popleft()
            lease = self._leases.get(key)
            if lease is None or lease.fence != fence:
                continue
            if lease.until < before:
                del self._leases[key]
            else:
                self._taken.append((key, fence))

    def _holds(self, lease: Lease) -> bool:
        there = self._leases.get(lease.key)
        return there is not None and there.holder == lease.holder and there.fence == lease.fence

    def _hint(self, wake_at: float | None) -> None:
        for listener in tuple(self._listeners):  # One of them may end itself.
            listener(wake_at)


class _Parked:
    """What is held back, by its hold: heaps like those of the lanes. What is stale is dropped when it surfaces, or in one go."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._records = records
        self._heaps: dict[str, list[_PageKey]] = {}
        self._entries = 0

    def add(self, record: Record) -> None:
        """*record* has a hold now, or another wake time."""
        assert record.hold is not None
        heappush(self._heaps.setdefault(record.hold, []), _page_key(record))
        self._entries += 1
        self.shrink()

    def take(self, hold: str, limit: int) -> list[Record]:
        """The first *limit* that have that hold, in the order of pages, and are in nobody's hands; they are to lose it."""
        heap = self._heaps.get(hold, [])
        found: dict[str, Record] = {}
        while heap and len(found) < limit:
            key = heappop(heap)
            self._entries -= 1
            r = self._records.get(key[2])
            if r is not None and r.hold == hold and r.holder is None and _page_key(r) == key:
                found[r.id] = r
        if not heap:
            self._heaps.pop(hold, None)
        return list(found.values())

    def shrink(self) -> None:
        if self._entries <= 2 * len(self._records) + 1024:
            return
        self._heaps.clear()
        for r in self._records.values():
            if r.hold is not None:
                self._heaps.setdefault(r.hold, []).append(_page_key(r))
        for heap in self._heaps.values():
            heapify(heap)
        self._entries = sum(map(len, self._heaps.values()))


class _Log:
    """Entries by key, by job, and by time; an entry that was pruned leaves the list by time later, in one go."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, int, str, float], Entry] = {}
        self._by_job: dict[str, list[Entry]] = {}
        self._by_time: list[Entry] = []

    def extend(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            key = (entry.job_id, entry.fence, entry.kind, entry.fire_at)
            if key in self._by_key:
                continue
            # A copy: this very one may have been pruned, and still lie in the list by time.
            self._by_key[key] = entry = copy(entry)
            _insert_sorted(self._by_time, entry)
            of_job = self._by_job.get(entry.job_id)
            if of_job is None:
                self._by_job[entry.job_id] = [entry]
            else:
                _insert_sorted(of_job, entry)

    def newest(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        source = self._by_time if job_id is None else self._by_job.get(job_id, [])
        end = len(source) if before is None else bisect.bisect_left(source, _log_key(before), key=_log_key)
        found: list[Entry] = []
        for i in range(end - 1, -1, -1):
            if len(found) >= limit:
                break
            entry = source[i]
            if (kinds is None or entry.kind in kinds) and self._is_kept(entry):
                found.append(entry)
        return found

    def prune_older(self, at: float, limit: int) -> int:
        old: list[Entry] = []
        for entry in self._by_time:
            if entry.at >= at or len(old) >= limit:
                break
            if self._is_kept(entry):
                old.append(entry)
        return self._drop(old)

    def prune_crowded(self, per_job: int, limit: int) -> int:
        crowded: list[Entry] = []
        for entries in self._by_job.values():
            if len(entries) > per_job:
                crowded.extend(entries[: len(entries) - per_job][: limit - len(crowded)])
                if len(crowded) >= limit:
                    break
        return self._drop(crowded)

    def _drop(self, entries: list[Entry]) -> int:
        for entry in entries:
            del self._by_key[_entry_key(entry)]
            of_job = self._by_job[entry.job_id]
            of_job.remove(entry)
            if not of_job:
                del self._by_job[entry.job_id]
        if len(self._by_time) > 2 * len(self._by_key) + 1024 or not self._by_key:
            self._by_time = [entry for entry in self._by_time if self._is_kept(entry)]
        return len(entries)

    def _is_kept(self, entry: Entry) -> bool:
        """Whether it was not pruned; another of its key may have been written since."""
        return self._by_key.get(_entry_key(entry)) is entry


def _insert_sorted(entries: list[Entry], entry: Entry) -> None:
    if not entries or entries[-1].at < entry.at:
        entries.append(entry)
    else:
        bisect.insort(entries, entry, key=_log_key)


def _entry_key(entry: Entry) -> tuple[str, int, str, float]:
    return (entry.job_id, entry.fence, entry.kind, entry.fire_at)


def _log_key(entry: Entry) -> tuple[float, str, int, str, float]:
    return (entry.at, entry.job_id, entry.fence, entry.kind, entry.fire_at)


def _page_key(record: Record) -> _PageKey:
    return (record.wake_at is None, record.wake_at or 0.0, record.id)


def _first(pair: tuple[_PageKey, Record]) -> _PageKey:
    return pair[0]


def _matches(record: Record, where: Filter) -> bool:
    return (
        (where.queue is None or record.queue == where.queue)
        and (where.task is None or record.task == where.task)
        and (where.hold is None or (record.hold or "") == where.hold)
        and (where.id_prefix is None or record.id.startswith(where.id_prefix))
    )
