"""A store with faults, around any other: away, slow, with lost replies, or refusing one item for good."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from asyncsched.contract import (
    Claim,
    Claimed,
    Entry,
    Filter,
    JobStore,
    Lease,
    Record,
    Renewal,
    Settled,
    Settlement,
    Update,
)
from asyncsched.errors import StoreError, StoreUnavailable

__all__ = ["Faults", "FaultyStore"]

T = TypeVar("T")

EVERYTHING = frozenset(
    name for name, member in vars(JobStore).items() if inspect.iscoroutinefunction(member) and name != "close"
)


@dataclass(slots=True)
class Faults:
    """What is wrong at present, and what was asked so far; shared by a store and its clones."""

    #: Calls of each method, whatever became of them.
    calls: Counter[str] = field(default_factory=Counter)
    #: Methods that do not get through to the store.
    away: set[str] = field(default_factory=set)
    #: How many of the next calls are performed, and their replies lost.
    lost: Counter[str] = field(default_factory=Counter)
    #: Which other calls lose their replies: asked once for each call that the store has performed.
    loses: Callable[[str], bool] = lambda _method: False
    #: Seconds that each call of a method takes longer.
    delay_s: dict[str, float] = field(default_factory=dict)
    #: Settlements that are refused for good, and their whole batch with them.
    is_poison: Callable[[Settlement], bool] = lambda _settlement: False
    #: Methods that are refused for good, so many times.
    refused: Counter[str] = field(default_factory=Counter)
    #: Methods that raise what no store may raise, so many times.
    broken: Counter[str] = field(default_factory=Counter)
    #: Claims get nothing, though something is due: as where other transactions have locked it all.
    is_withholding: bool = False
    #: Hints are swallowed.
    is_mute: bool = False
    #: The number of settlements in each settle call, and of records in each claim that brought some.
    settled: list[int] = field(default_factory=list)
    claimed: list[int] = field(default_factory=list)

    def go_away(self, methods: Iterable[str] = EVERYTHING) -> None:
        self.away |= set(methods)

    def come_back(self) -> None:
        self.away.clear()


class FaultyStore:
    """*store* with *faults*."""

    def __init__(self, store: JobStore, faults: Faults | None = None) -> None:
        self.inner = store
        self.capabilities = store.capabilities
        self.faults = faults if faults is not None else Faults()

    async def _through(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        faults = self.faults
        faults.calls[method] += 1
        if method in faults.delay_s:
            await asyncio.sleep(faults.delay_s[method])
        if method in faults.away:
            raise StoreUnavailable(f"{method}() does not get through")
        if faults.refused[method] > 0:
            faults.refused[method] -= 1
            raise StoreError(f"{method}() is refused")
        if faults.broken[method] > 0:
            faults.broken[method] -= 1
            raise ValueError(f"{method}() forgot something")
        answer = await call()
        if faults.lost[method] > 0 or faults.loses(method):
            faults.lost[method] -= faults.lost[method] > 0
            raise StoreUnavailable(f"the reply to {method}() was lost")
        return answer

    async def open(self, now: Callable[[], float] | None = None) -> None:
        await self._through("open", lambda: self.inner.open(now))

    async def close(self) -> None:
        await self.inner.close()

    def clone(self) -> JobStore | None:
        clone = self.inner.clone()
        return None if clone is None else FaultyStore(clone, self.faults)

    async def now(self) -> float:
        return await self._through("now", self.inner.now)

    async def add(self, records: Sequence[Record]) -> set[str]:
        return await self._through("add", lambda: self.inner.add(records))

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        return await self._through("get", lambda: self.inner.get(ids))

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await self._through("page", lambda: self.inner.page(where, limit, after))

    async def update(self, update: Update) -> Record | None:
        return await self._through("update", lambda: self.inner.update(update))

    async def remove(self, ids: Sequence[str]) -> set[str]:
        return await self._through("remove", lambda: self.inner.remove(ids))

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        if self.faults.is_withholding:
            limit = 0
        claimed = await self._through(
            "claim", lambda: self.inner.claim(queues, token, limit, lease_s, ahead_s)
        )
        if self.faults.is_withholding:
            return Claimed([], claimed.now, claimed.now)
        if claimed.records:
            self.faults.claimed.append(len(claimed.records))
        return claimed

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        return await self._through("renew", lambda: self.inner.renew(claims, lease_s))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        self.faults.settled.append(len(settlements))
        return await self._through("settle", lambda: self._settle(settlements))

    async def _settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        for settlement in settlements:
            if self.faults.is_poison(settlement):
                raise StoreError(f"the settlement of {settlement.id!r} is refused")
        return await self.inner.settle(settlements)

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        return self.inner.on_hint(lambda wake_at: None if self.faults.is_mute else callback(wake_at))

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        return await self._through("acquire", lambda: self.inner.acquire(keys, holder, lease_s, limit))

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        return await self._through("extend", lambda: self.inner.extend(leases, lease_s))

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._through("release", lambda: self.inner.release(leases))

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        return await self._through("runs", lambda: self.inner.runs(job_id, kinds, limit, before))

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        return await self._through("prune", lambda: self.inner.prune(older_than_s, per_job, limit))
