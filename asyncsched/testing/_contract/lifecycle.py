"""open, close, clone, namespaces, and what outlives a client."""

from __future__ import annotations

import asyncio

import pytest

from asyncsched.contract import JobStore
from asyncsched.testing._contract.trial import (
    EVERYTHING,
    LEASE_S,
    NOW,
    QUEUE,
    Trial,
    claim_of,
    entry,
    job,
    settlement,
)

__all__ = ["LifecycleCases"]


class LifecycleCases:
    """Clients come and go."""

    async def test_a_store_may_be_closed_twice(self, trial: Trial) -> None:
        await trial.add(job("a"))
        await trial.store.close()
        await trial.store.close()

    async def test_a_closed_store_can_be_opened_again(self, trial: Trial) -> None:
        await trial.store.close()
        await trial.store.open(now=trial.time)
        await trial.add(job("a"))
        assert await trial.claim_ids() == ["a"]

    async def test_a_namespace_can_be_opened_by_many_at_once(self, trial: Trial) -> None:
        stores = await asyncio.gather(*(trial.client_elsewhere() for _ in range(4)))
        await asyncio.gather(*(store.add([job(f"{i}")]) for i, store in enumerate(stores)))
        assert [r.id for r in await stores[0].page(EVERYTHING, 10)] == ["0", "1", "2", "3"]

    async def test_opening_another_client_keeps_what_is_there(self, trial: Trial) -> None:
        held = await trial.held()
        other = await trial.client()
        assert await other.get(["a"]) == {"a": held}

    async def test_what_one_client_writes_another_sees(self, trial: Trial) -> None:
        other = await trial.client()
        await trial.add(job("a"))
        assert await other.get(["a"]) == {"a": job("a")}
        [held] = (await other.claim([QUEUE], "other", 10, LEASE_S)).records
        assert await trial.read("a") == held
        assert await trial.renew(held) == 1
        assert await trial.settle(settlement(held, delete=True, entries=[entry()])) == "done"
        assert (await other.get(["a"]), await other.runs()) == ({}, [entry()])

    async def test_closing_one_client_leaves_the_others_at_work(self, trial: Trial) -> None:
        other = await trial.client()
        if other is trial.store:
            pytest.skip("the store has one client only")
        await other.close()
        await trial.add(job("a"))
        assert await trial.claim_ids() == ["a"]

    async def test_namespaces_are_apart(self, trial: Trial) -> None:
        elsewhere = await trial.client_elsewhere()
        held = await trial.held()
        [lease] = (await trial.store.acquire(["k"], "me", LEASE_S)).values()
        await trial.write_log(entry())
        assert await elsewhere.add([job("a", birth="another")]) == set()
        [other] = (await elsewhere.claim([QUEUE], "other", 10, LEASE_S)).records
        assert other.birth == "another"
        assert (await elsewhere.acquire(["k"], "other", LEASE_S)).keys() == {"k"}
        assert await elsewhere.runs() == []
        assert await elsewhere.remove(["a"]) == {"a"}
        assert await trial.read("a") == held
        assert await trial.store.extend([lease], LEASE_S) == {"k": lease}

    async def test_records_leases_and_the_log_are_durable(self, trial: Trial) -> None:
        _need_durable(trial.store)
        held = await trial.held()
        await trial.add(job("b", wake_at=None, hold="paused", body=b"\0", cursor=b""))
        [lease] = (await trial.store.acquire(["k"], "me", LEASE_S)).values()
        await trial.write_log(entry(body=b"\0"))
        await trial.reopen()
        assert await trial.store.page(EVERYTHING, 10) == [
            held,
            job("b", wake_at=None, hold="paused", body=b"\0", cursor=b""),
        ]
        assert await trial.log() == [entry(body=b"\0")]
        assert await trial.store.acquire(["k"], "other", LEASE_S) == {}
        assert await trial.store.extend([lease], LEASE_S) == {"k": lease}
        assert await trial.settle(settlement(held, delete=True)) == "done"

    async def test_a_claim_is_repeated_across_a_reopen(self, trial: Trial) -> None:
        _need_durable(trial.store)
        held = await trial.held()
        await trial.reopen()
        assert (await trial.claim(token=held.holder)).records == [held]

    async def test_fences_never_fall_across_close_and_reopen(self, trial: Trial) -> None:
        _need_durable(trial.store)
        fences = []
        for i in range(4):
            held = await trial.held(job("a", birth=f"birth {i}"))
            [lease] = (await trial.store.acquire(["k"], "me", LEASE_S)).values()
            fences += [held.fence, lease.fence]
            await trial.store.remove(["a"])
            await trial.store.release([lease])
            await trial.reopen()
        assert fences[::2] == sorted(set(fences[::2]))
        assert fences[1::2] == sorted(set(fences[1::2]))

    async def test_a_clone_works_in_an_event_loop_of_its_own(self, trial: Trial) -> None:
        clone = trial.store.clone()
        if clone is None:
            pytest.skip("the store cannot be reached from another event loop")
        held = await trial.held()

        async def renew() -> int | str:
            await clone.open(now=trial.time)
            try:
                return (await clone.renew([claim_of(held)], 2 * LEASE_S)).versions["a"]
            finally:
                await clone.close()

        assert await asyncio.to_thread(asyncio.run, renew()) == 1
        assert (await trial.read("a")).wake_at == NOW + 2 * LEASE_S

    async def test_a_cancelled_call_leaves_the_store_usable(self, trial: Trial) -> None:
        """The outcome of each cancelled call is unknown; it is repeated as it was, and then it counts once."""
        store = trial.store
        await _cancelled(store.add([job("a")]))
        assert await store.add([job("a")]) == set()
        await _cancelled(store.claim([QUEUE], "mine", 10, LEASE_S))
        [held] = (await trial.claim(token="mine")).records
        await _cancelled(store.renew([claim_of(held)], 2 * LEASE_S))
        assert await trial.renew(held, 2 * LEASE_S) == 1
        moved = settlement(held, wake_at=NOW, cursor=b"far", entries=[entry()])
        await _cancelled(store.settle([moved]))
        assert await trial.settle(moved) in ("done", "already")
        assert await trial.log() == [entry()]
        assert ((await trial.claimed()).cursor, await trial.claim_ids()) == (b"far", [])


def _need_durable(store: JobStore) -> None:
    if not store.capabilities.durable:
        pytest.skip("the store does not outlive its process")


async def _cancelled(call: object) -> None:
    """Begin *call*, and cancel it in the midst of it (or find that it was faster)."""
    assert asyncio.iscoroutine(call)
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or task.exception() is None
