"""A call whose reply was lost is repeated as it was, and then counts once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import pytest
from msgspec.structs import replace

from asyncsched.contract import (
    Capabilities,
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
from asyncsched.errors import StoreUnavailable
from asyncsched.testing._contract.trial import (
    LEASE_S,
    NOW,
    QUEUE,
    Trial,
    claim_of,
    entry,
    job,
    settlement,
    update_of,
)

__all__ = ["LostReplies", "LostReplyCases"]

_T = TypeVar("_T")


class LostReplies:
    """A store over which replies are lost: each writing method does its work, but at its first call raises StoreUnavailable.

    Put it around a store to see whether a caller repeats what it must. ``lose()`` makes all methods begin anew.
    """

    def __init__(self, store: JobStore) -> None:
        self.capabilities: Capabilities = store.capabilities
        self._store = store
        self._replied: set[str] = set()

    def lose(self) -> None:
        """Lose the next reply of every method once more."""
        self._replied.clear()

    def _reply(self, method: str, value: _T) -> _T:
        if method in self._replied:
            return value
        self._replied.add(method)
        raise StoreUnavailable(f"the reply to {method}() was lost; repeat the call")

    # -- these write ---------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        return self._reply("add", await self._store.add(records))

    async def update(self, update: Update) -> Record | None:
        return self._reply("update", await self._store.update(update))

    async def remove(self, ids: Sequence[str]) -> set[str]:
        return self._reply("remove", await self._store.remove(ids))

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        return self._reply("claim", await self._store.claim(queues, token, limit, lease_s, ahead_s))

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        return self._reply("renew", await self._store.renew(claims, lease_s))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return self._reply("settle", await self._store.settle(settlements))

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        return self._reply("acquire", await self._store.acquire(keys, holder, lease_s, limit))

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        return self._reply("extend", await self._store.extend(leases, lease_s))

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._store.release(leases)
        self._reply("release", None)

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        return self._reply("prune", await self._store.prune(older_than_s, per_job, limit))

    # -- these do not --------------------------------------------------------------------------------------------------

    async def open(self, now: Callable[[], float] | None = None) -> None:
        await self._store.open(now)

    async def close(self) -> None:
        await self._store.close()

    def clone(self) -> JobStore | None:
        clone = self._store.clone()
        return None if clone is None else LostReplies(clone)

    async def now(self) -> float:
        return await self._store.now()

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        return await self._store.get(ids)

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await self._store.page(where, limit, after)

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        return self._store.on_hint(callback)

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        return await self._store.runs(job_id, kinds, limit, before)


class LostReplyCases:
    """Unknown outcomes are resolved by repeating."""

    async def test_an_add_whose_reply_was_lost_is_no_conflict(self, trial: Trial) -> None:
        store = LostReplies(trial.store)
        assert await _repeated(lambda: store.add([job("a"), job("b")])) == set()
        assert await store.get(["a", "b"]) == {"a": job("a"), "b": job("b")}

    async def test_an_update_whose_reply_was_lost_counts_once(self, trial: Trial) -> None:
        """The repeated one does not match any more: reading back tells the caller that it is his body that is there."""
        await trial.add(job("a"))
        store = LostReplies(trial.store)
        assert await _repeated(lambda: store.update(update_of(job("a"), body=b"two"))) is None
        assert await trial.read("a") == replace(job("a"), body=b"two", version=2)

    async def test_a_remove_whose_reply_was_lost_has_removed(self, trial: Trial) -> None:
        await trial.add(job("a"), job("b"))
        store = LostReplies(trial.store)
        assert await _repeated(lambda: store.remove(["a"])) == set()
        assert await store.get(["a", "b"]) == {"b": job("b")}

    async def test_a_claim_whose_reply_was_lost_costs_nothing(self, trial: Trial) -> None:
        await trial.add(*(job(f"{i}") for i in range(5)))
        store = LostReplies(trial.store)
        claimed = await _repeated(lambda: store.claim([QUEUE], "mine", 3, LEASE_S))
        assert sorted(r.id for r in claimed.records) == ["0", "1", "2"]
        assert {r.tries for r in claimed.records} == {1}
        assert {r.prior for r in claimed.records} == {None}
        assert await trial.claim_ids() == ["3", "4"]

    async def test_a_renewal_whose_reply_was_lost_has_renewed(self, trial: Trial) -> None:
        held = await trial.held()
        store = LostReplies(trial.store)
        renewal = await _repeated(lambda: store.renew([claim_of(held)], 2 * LEASE_S))
        assert renewal.versions == {"a": 1}
        assert await trial.read("a") == replace(held, wake_at=NOW + 2 * LEASE_S)

    async def test_a_settlement_whose_reply_was_lost_counts_once(self, trial: Trial) -> None:
        await trial.add(
            job("moved"),
            job("deleted"),
            job("back"),
            *(job(f"p{i}", hold="k", wake_at=NOW + 9) for i in "12"),
        )
        held = {r.id: r for r in (await trial.claim()).records}
        store = LostReplies(trial.store)
        batch = [
            settlement(
                held["moved"], wake_at=NOW + 5, cursor=b"far", entries=[entry("moved")], unpark=("k", 1)
            ),
            settlement(
                held["deleted"],
                delete=True,
                entries=[entry("deleted")],
                spawn=[job("child", wake_at=NOW + 5)],
            ),
            settlement(held["back"], hand_back=True, wake_at=NOW + 5),
        ]
        answers = await _repeated(lambda: store.settle(batch))
        assert answers[:2] == ["already", "gone"]
        assert sorted(e.job_id for e in await trial.log()) == ["deleted", "moved"]
        assert await store.get(["deleted", "child"]) == {"child": job("child", wake_at=NOW + 5)}
        assert ((await trial.read("moved")).cursor, (await trial.read("p2")).hold) == (b"far", "k")
        assert await trial.read("back") == replace(held["back"], holder=None, wake_at=NOW + 5, tries=0)

    async def test_a_stale_settlement_whose_reply_was_lost_counts_once(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held))
        store = LostReplies(trial.store)
        batch = [settlement(held, delete=True, cursor=b"far", entries=[entry()])]
        assert await _repeated(lambda: store.settle(batch)) == ["already"]
        assert ((await trial.read("a")).cursor, await trial.log()) == (b"far", [entry()])

    async def test_an_acquire_whose_reply_was_lost_has_the_lease(self, trial: Trial) -> None:
        store = LostReplies(trial.store)
        taken = await _repeated(lambda: store.acquire(["k", "l"], "me", LEASE_S))
        assert {(lease.key, lease.holder) for lease in taken.values()} == {("k", "me"), ("l", "me")}
        assert await trial.store.acquire(["k", "l"], "other", LEASE_S) == {}
        assert await trial.store.extend(list(taken.values()), LEASE_S) == taken

    async def test_an_extension_whose_reply_was_lost_has_extended(self, trial: Trial) -> None:
        [lease] = (await trial.store.acquire(["k"], "me", LEASE_S)).values()
        store = LostReplies(trial.store)
        extended = await _repeated(lambda: store.extend([lease], 2 * LEASE_S))
        assert extended == {"k": lease._replace(until=NOW + 2 * LEASE_S)}

    async def test_a_release_whose_reply_was_lost_has_released(self, trial: Trial) -> None:
        [lease] = (await trial.store.acquire(["k"], "me", LEASE_S)).values()
        store = LostReplies(trial.store)
        await _repeated(lambda: store.release([lease]))
        assert (await trial.store.acquire(["k"], "other", LEASE_S)).keys() == {"k"}


async def _repeated(call: Callable[[], Awaitable[_T]]) -> _T:
    """Call until a reply arrives; the first must have been lost."""
    with pytest.raises(StoreUnavailable):
        await call()
    return await call()
