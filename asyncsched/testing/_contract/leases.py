"""acquire, extend and release: named leases, for locks and limits."""

from __future__ import annotations

import asyncio

from asyncsched.contract import Lease
from asyncsched.testing._contract.trial import LEASE_S, NOW, Trial, job

__all__ = ["LeaseCases"]


class LeaseCases:
    """Named leases."""

    async def test_a_free_lease_is_taken(self, trial: Trial) -> None:
        lease = await _take(trial, "k", "me")
        assert lease.fence > 0
        assert lease == Lease("k", "me", lease.fence, NOW + LEASE_S)

    async def test_a_held_lease_is_refused_to_others(self, trial: Trial) -> None:
        await _take(trial, "k", "me")
        trial.now += LEASE_S - 1
        assert await trial.store.acquire(["k"], "other", LEASE_S) == {}

    async def test_an_own_lease_taken_again_is_renewed_under_its_fence(self, trial: Trial) -> None:
        first = await _take(trial, "k", "me")
        trial.now += 10
        assert await _take(trial, "k", "me") == first._replace(until=NOW + 10 + LEASE_S)

    async def test_an_expired_lease_is_taken_under_a_higher_fence(self, trial: Trial) -> None:
        first = await _take(trial, "k", "me")
        trial.now += LEASE_S
        assert (await _take(trial, "k", "other")).fence > first.fence

    async def test_a_released_lease_is_taken_under_a_higher_fence(self, trial: Trial) -> None:
        fences = []
        for holder in ("me", "other", "me"):
            lease = await _take(trial, "k", holder)
            fences.append(lease.fence)
            await trial.store.release([lease])
        assert fences == sorted(set(fences))

    async def test_leases_are_taken_in_one_batch_as_far_as_they_are_free(self, trial: Trial) -> None:
        await _take(trial, "limit/a/1", "other")
        keys = [f"limit/a/{i}" for i in range(4)]
        taken = await trial.store.acquire(keys, "me", LEASE_S)
        assert taken.keys() == {"limit/a/0", "limit/a/2", "limit/a/3"}
        assert {lease.holder for lease in taken.values()} == {"me"}

    async def test_keys_of_any_characters_are_told_apart(self, trial: Trial) -> None:
        for i, key in enumerate(("k", "K", "k ", "k/", "k:", "ḱ", "日本", "k" * 255)):
            assert (await _take(trial, key, f"holder {i}")).key == key

    async def test_a_lease_goes_to_one_of_many(self, trial: Trial) -> None:
        stores = [trial.store, await trial.client()]
        answers = await asyncio.gather(*(stores[i % 2].acquire(["k"], f"h{i}", LEASE_S) for i in range(10)))
        assert sum(len(taken) for taken in answers) == 1

    async def test_a_limited_acquire_takes_the_first_that_are_free_and_no_more(self, trial: Trial) -> None:
        keys = ["b", "c", "a", "d"]
        taken = await trial.store.acquire(keys, "me", LEASE_S, 2)
        assert {key: (lease.holder, lease.until) for key, lease in taken.items()} == {
            "b": ("me", NOW + LEASE_S),
            "c": ("me", NOW + LEASE_S),
        }
        assert (await trial.store.acquire(keys, "other", LEASE_S, 0)) == {}
        assert (await trial.store.acquire(keys, "other", LEASE_S, 9)).keys() == {"a", "d"}

    async def test_a_limited_acquire_looks_behind_what_others_hold(self, trial: Trial) -> None:
        keys = [f"limit/a/{i}" for i in range(4)]
        expired = await _take(trial, keys[2], "third")
        trial.now += LEASE_S / 2
        await trial.store.acquire(keys[:2], "other", LEASE_S)
        trial.now += LEASE_S / 2
        taken = await trial.store.acquire(keys, "me", LEASE_S, 1)
        assert taken.keys() == {keys[2]}
        assert taken[keys[2]].fence > expired.fence
        assert (await trial.store.acquire(keys, "fourth", LEASE_S, 2)).keys() == {keys[3]}
        assert await trial.store.acquire(keys, "fifth", LEASE_S, 1) == {}

    async def test_what_the_holder_has_already_counts_towards_the_limit_and_comes_first(
        self, trial: Trial
    ) -> None:
        first = await trial.store.acquire(["b", "d"], "me", LEASE_S)
        trial.now += 10
        again = await trial.store.acquire(["a", "b", "c", "d"], "me", LEASE_S, 2)
        assert again == {key: lease._replace(until=NOW + 10 + LEASE_S) for key, lease in first.items()}
        more = await trial.store.acquire(["a", "b", "c", "d"], "me", 2 * LEASE_S, 3)
        assert more.keys() == {"a", "b", "d"}
        trial.now += 1
        fewer = await trial.store.acquire(["d", "c", "b", "a"], "me", 2 * LEASE_S, 1)
        assert fewer == {"d": more["d"]._replace(until=trial.now + 2 * LEASE_S)}
        # What is beyond the limit stays as it is, and is not let go.
        assert await trial.store.extend([more["a"]], 1.0) == {"a": more["a"]}
        assert (await trial.store.acquire(["a", "b", "c", "d"], "other", LEASE_S)).keys() == {"c"}

    async def test_of_many_that_compete_for_the_last_of_some_leases_one_gets_it(self, trial: Trial) -> None:
        stores = [trial.store, await trial.client()]
        keys = [f"limit/a/{i}" for i in range(4)]
        await trial.store.acquire(keys, "before", LEASE_S, 3)
        answers = await asyncio.gather(*(stores[i % 2].acquire(keys, f"h{i}", LEASE_S, 1) for i in range(10)))
        assert sorted(len(taken) for taken in answers) == [0] * 9 + [1]

    async def test_many_that_compete_for_some_leases_get_one_each(self, trial: Trial) -> None:
        stores = [trial.store, await trial.client()]
        keys = [f"limit/a/{i}" for i in range(4)]
        answers = await asyncio.gather(
            *(stores[i % 2].acquire(keys[i % 4 :] + keys[: i % 4], f"h{i}", LEASE_S, 1) for i in range(8))
        )
        assert all(len(taken) <= 1 for taken in answers)
        assert sorted(key for taken in answers for key in taken) == keys

    async def test_an_extension_moves_the_end(self, trial: Trial) -> None:
        lease = await _take(trial, "k", "me")
        trial.now += 10
        extended = lease._replace(until=NOW + 10 + LEASE_S)
        assert await trial.store.extend([lease], LEASE_S) == {"k": extended}
        trial.now = NOW + LEASE_S
        assert await trial.store.acquire(["k"], "other", LEASE_S) == {}

    async def test_an_extension_never_shortens(self, trial: Trial) -> None:
        lease = await _take(trial, "k", "me")
        assert await trial.store.extend([lease], 1.0) == {"k": lease}
        trial.now += LEASE_S - 1
        assert await trial.store.acquire(["k"], "other", LEASE_S) == {}

    async def test_an_extension_needs_the_holder_and_the_fence(self, trial: Trial) -> None:
        lease = await _take(trial, "k", "me")
        forged = [
            lease._replace(holder="other"),
            lease._replace(fence=lease.fence + 1),
            lease._replace(key="none"),
        ]
        for wrong in forged:
            assert await trial.store.extend([wrong], 10 * LEASE_S) == {}
        trial.now += LEASE_S
        assert (await _take(trial, "k", "other")).fence > lease.fence

    async def test_a_lease_that_another_took_cannot_be_extended(self, trial: Trial) -> None:
        lost = await _take(trial, "k", "me")
        trial.now += LEASE_S
        taken = await _take(trial, "k", "other")
        assert await trial.store.extend([lost, taken], LEASE_S) == {"k": taken}

    async def test_a_lost_lease_hides_no_later_one_of_its_key(self, trial: Trial) -> None:
        lost = await _take(trial, "k", "me")
        trial.now += LEASE_S
        taken = await _take(trial, "k", "other")
        assert await trial.store.extend([taken, lost], LEASE_S) == {"k": taken}
        await trial.store.release([taken, lost])
        assert (await trial.store.acquire(["k"], "third", LEASE_S)).keys() == {"k"}

    async def test_a_lease_that_was_released_cannot_be_extended(self, trial: Trial) -> None:
        lease = await _take(trial, "k", "me")
        await trial.store.release([lease])
        assert await trial.store.extend([lease], LEASE_S) == {}
        await _take(trial, "k", "other")

    async def test_a_release_needs_the_holder_and_the_fence(self, trial: Trial) -> None:
        lease = await _take(trial, "k", "me")
        await trial.store.release([lease._replace(holder="other"), lease._replace(fence=lease.fence - 1)])
        assert await trial.store.acquire(["k"], "other", LEASE_S) == {}

    async def test_a_late_release_does_not_free_the_lease_of_a_successor(self, trial: Trial) -> None:
        lost = await _take(trial, "k", "me")
        trial.now += LEASE_S
        await _take(trial, "k", "other")
        await trial.store.release([lost])
        assert await trial.store.acquire(["k"], "third", LEASE_S) == {}

    async def test_one_lost_lease_does_not_stop_the_others(self, trial: Trial) -> None:
        keys = [f"{i}" for i in range(10)]
        taken = await trial.store.acquire(keys, "me", LEASE_S)
        await trial.store.release([taken["4"]])
        trial.now += 1
        extended = await trial.store.extend(list(taken.values()), LEASE_S)
        assert extended == {k: v._replace(until=NOW + 1 + LEASE_S) for k, v in taken.items() if k != "4"}
        await trial.store.release(list(taken.values()))
        assert len(await trial.store.acquire(keys, "other", LEASE_S)) == 10

    async def test_a_lease_that_ended_long_ago_is_taken_under_a_higher_fence(self, trial: Trial) -> None:
        first = await _take(trial, "k", "me")
        trial.now += 86_400
        # It may be forgotten here.
        assert await trial.store.prune(None, None, 100) == 0
        assert (await _take(trial, "k", "other")).fence > first.fence

    async def test_pruning_leaves_leases_that_are_held_alone(self, trial: Trial) -> None:
        lease = (await trial.store.acquire(["k"], "me", 86_400.0))["k"]
        trial.now += 43_200
        await trial.store.prune(1.0, 1, 100)
        assert await trial.store.acquire(["k"], "other", LEASE_S) == {}
        assert await trial.store.extend([lease], 1.0) == {"k": lease}

    async def test_a_lease_and_a_job_of_one_name_are_apart(self, trial: Trial) -> None:
        lease = await _take(trial, "a", "me")
        held = await trial.held(job("a"))
        await trial.store.release([lease])
        assert await trial.read("a") == held
        await trial.store.remove(["a"])
        assert (await _take(trial, "a", "other")).holder == "other"


async def _take(trial: Trial, key: str, holder: str) -> Lease:
    return (await trial.store.acquire([key], holder, LEASE_S))[key]
