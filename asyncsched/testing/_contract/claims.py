"""claim: what is due, in which order, for whom, and when to come back."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from asyncsched.contract import JobStore
from asyncsched.testing._contract.trial import LEASE_S, NOW, QUEUE, Trial, job, settlement, unlike, update_of

__all__ = ["ClaimCases", "NextWakeCases", "OrderCases", "RepeatedClaimCases"]

LIKE_QUEUES = ("a", "A", "a ", "a:5", "a/5", "a5", "a%", "a_", "á", "日")


class ClaimCases:
    """What a claim takes, and what it makes of it."""

    async def test_a_claim_takes_what_is_due(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=NOW - 3))
        [taken] = (await trial.claim(token="me", lease_s=20)).records
        assert taken.fence > 0
        assert taken == replace(job("a"), fence=taken.fence, holder="me", tries=1, wake_at=NOW + 20)
        assert await trial.read("a") == taken

    async def test_a_claim_tells_the_time_of_the_store(self, trial: Trial) -> None:
        trial.now += 12
        assert (await trial.claim()).now == NOW + 12
        assert await trial.store.now() == NOW + 12

    async def test_what_is_not_due_yet_is_not_claimed(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=NOW + 1))
        assert await trial.claim_ids() == []
        trial.now += 1
        assert await trial.claim_ids() == ["a"]

    async def test_a_record_without_wake_at_is_never_claimed(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=None))
        trial.now += 10_000_000
        assert await trial.claim_ids(ahead_s=10_000_000) == []

    async def test_a_hold_alone_does_not_keep_a_record_from_being_claimed(self, trial: Trial) -> None:
        held = await trial.held(job("a", hold="limit/key"))
        assert held.hold == "limit/key"

    async def test_a_claim_takes_no_more_than_its_limit(self, trial: Trial) -> None:
        await trial.add(*(job(f"{i}") for i in range(5)))
        assert len(await trial.claim_ids(3)) == 3
        assert len(await trial.claim_ids(3)) == 2
        assert len(await trial.claim_ids(3)) == 0

    async def test_only_the_asked_queues_are_claimed(self, trial: Trial) -> None:
        await trial.add(job("a", queue="p"), job("b", queue="q"), job("c", queue="r"))
        assert await trial.claim_ids(queues=["p", "r"]) == ["a", "c"]
        assert await trial.claim_ids(queues=["none"]) == []
        assert await trial.claim_ids(queues=[]) == []

    async def test_queues_of_similar_names_are_kept_apart(self, trial: Trial) -> None:
        await trial.add(*(job(f"{i}", queue=queue) for i, queue in enumerate(LIKE_QUEUES)))
        for i, queue in enumerate(LIKE_QUEUES):
            assert await trial.claim_ids(queues=[queue]) == [f"{i}"]

    async def test_a_live_lease_is_not_claimed(self, trial: Trial) -> None:
        await trial.held()
        trial.now += LEASE_S - 1
        assert await trial.claim_ids() == []

    async def test_an_expired_lease_is_claimed_under_a_higher_fence(self, trial: Trial) -> None:
        first = await trial.held()
        trial.now += LEASE_S
        second = await trial.claimed()
        assert second.fence > first.fence
        assert (second.holder != first.holder, second.wake_at) == (True, trial.now + LEASE_S)

    async def test_a_takeover_names_the_fence_that_was_lost(self, trial: Trial) -> None:
        first = await trial.held()
        trial.now += LEASE_S
        second = await trial.claimed()
        trial.now += LEASE_S
        third = await trial.claimed()
        assert [r.prior for r in (first, second, third)] == [None, first.fence, second.fence]
        assert await trial.read("a") == third

    async def test_no_prior_fence_is_named_once_the_record_was_let_go(self, trial: Trial) -> None:
        await trial.held()
        trial.now += LEASE_S
        second = await trial.claimed()
        assert second.prior is not None
        await trial.settle(settlement(second, wake_at=trial.now))
        third = await trial.claimed()
        assert third.prior is None
        await trial.store.update(update_of(third, revoke=True))
        assert (await trial.claimed()).prior is None

    async def test_a_hand_back_keeps_the_prior_fence_for_the_next_claim(self, trial: Trial) -> None:
        first = await trial.held()
        trial.now += LEASE_S
        second = await trial.claimed()
        await trial.settle(settlement(second, wake_at=trial.now, hand_back=True))
        third = await trial.claimed()
        assert (second.prior, third.prior) == (first.fence, first.fence)
        await trial.settle(settlement(third, wake_at=trial.now))
        assert (await trial.claimed()).prior is None

    async def test_an_update_keeps_the_prior_fence_for_the_next_claim(self, trial: Trial) -> None:
        first = await trial.held()
        trial.now += LEASE_S
        second = await trial.claimed()
        await trial.settle(settlement(second, wake_at=trial.now, hand_back=True))
        [there] = (await trial.store.get([second.id])).values()
        assert await trial.store.update(update_of(there)) is not None
        third = await trial.claimed()
        assert third.prior == first.fence
        assert await trial.store.update(update_of(third, revoke=True)) is not None
        assert (await trial.claimed()).prior == first.fence

    async def test_tries_count_the_claims_since_the_last_settlement(self, trial: Trial) -> None:
        held = await trial.held()
        tries = [held.tries]
        for _ in range(2):
            trial.now += LEASE_S
            held = await trial.claimed()
            tries.append(held.tries)
        await trial.settle(settlement(held, wake_at=trial.now))
        tries.append((await trial.claimed()).tries)
        assert tries == [1, 2, 3, 1]

    async def test_looking_ahead_takes_unheld_records_early(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=NOW + 2), job("b", wake_at=NOW + 3))
        [taken] = (await trial.claim(ahead_s=2.0)).records
        assert (taken.id, taken.wake_at) == ("a", NOW + LEASE_S)

    async def test_looking_ahead_never_takes_a_live_lease(self, trial: Trial) -> None:
        held = await trial.held()
        assert await trial.claim_ids(ahead_s=10 * LEASE_S) == []
        assert await trial.read("a") == held

    async def test_looking_ahead_takes_what_stands_behind_a_live_lease(self, trial: Trial) -> None:
        await trial.held()
        await trial.add(job("b", wake_at=NOW + LEASE_S + 5))
        assert await trial.claim_ids(1, ahead_s=2 * LEASE_S) == ["b"]

    async def test_each_record_is_claimed_exactly_once(self, trial: Trial) -> None:
        ids = [f"{i:05}" for i in range(10_000)]
        await trial.add(*(job(id, priority=i % 3) for i, id in enumerate(ids)))
        taken: list[str] = []

        async def work(store: JobStore) -> None:
            while found := (await store.claim([QUEUE], trial.token(), 250, LEASE_S)).records:
                taken.extend(r.id for r in found)

        async with asyncio.TaskGroup() as group:
            for store in (trial.store, await trial.client(), await trial.client()):
                group.create_task(work(store))
                group.create_task(work(store))
        await work(trial.store)
        assert unlike(sorted(taken), ids) == []

    async def test_an_expired_lease_is_taken_over_by_one_of_many(self, trial: Trial) -> None:
        await trial.held()
        trial.now += LEASE_S
        stores = [trial.store, await trial.client(), await trial.client()]
        claims = (stores[i % 3].claim([QUEUE], trial.token(), 10, LEASE_S) for i in range(12))
        taken = [r for claimed in await asyncio.gather(*claims) for r in claimed.records]
        assert taken == [await trial.read("a")]


class OrderCases:
    """Lanes are walked from the highest priority down, and each by (wake_at, id)."""

    async def test_the_highest_priority_goes_first(self, trial: Trial) -> None:
        await trial.add(*(job(f"{p}", priority=p, wake_at=NOW - 100 + p) for p in (3, 9, 0, 5)))
        assert await _one_by_one(trial) == ["9", "5", "3", "0"]

    async def test_a_lane_is_ordered_by_wake_at_then_id(self, trial: Trial) -> None:
        await trial.add(
            job("b"), job("c", wake_at=NOW - 9), job("é"), job("a"), job("d", wake_at=NOW - 4), job("B")
        )
        assert await _one_by_one(trial) == ["c", "d", "B", "a", "b", "é"]

    async def test_queues_are_served_in_the_order_given(self, trial: Trial) -> None:
        await trial.add(job("p", queue="p", wake_at=NOW - 50), job("q", queue="q"), job("r", queue="r"))
        assert await _one_by_one(trial, "q", "r", "p") == ["q", "r", "p"]

    async def test_priority_counts_before_the_order_of_queues(self, trial: Trial) -> None:
        await trial.add(job("p5", queue="p", priority=5), job("q7", queue="q", priority=7))
        await trial.add(job("q5", queue="q", priority=5), job("p7", queue="p", priority=7))
        assert await _one_by_one(trial, "p", "q") == ["p7", "q7", "p5", "q5"]

    async def test_one_claim_returns_its_records_in_that_order(self, trial: Trial) -> None:
        await trial.add(
            job("d", priority=1, wake_at=NOW - 90), job("c", queue="q"), job("b"), job("a", wake_at=NOW - 9)
        )
        await trial.add(job("e", priority=9, queue="q"))
        assert await trial.claim_ids(queues=[QUEUE, "q"]) == ["e", "a", "b", "c", "d"]

    async def test_a_record_stands_where_it_was_moved_to(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=NOW - 9), job("b", wake_at=NOW - 20))
        assert await trial.store.update(replace(update_of(job("a")), wake_at=NOW - 30)) is not None
        assert await trial.claim_ids() == ["a", "b"]

    async def test_an_expired_lease_stands_where_it_ended(self, trial: Trial) -> None:
        await trial.held(job("expired"))
        end = NOW + LEASE_S
        await trial.add(job("before", wake_at=end - 1), job("behind", wake_at=end + 1))
        trial.now = end + 2
        assert await _one_by_one(trial) == ["before", "expired", "behind"]


class NextWakeCases:
    """next_wake_at: when it is worth coming back."""

    async def test_next_wake_is_the_earliest_of_what_is_planned(self, trial: Trial) -> None:
        await trial.add(
            job("a", wake_at=NOW + 9, priority=9),
            job("b", wake_at=NOW + 4, priority=1),
            job("c", wake_at=NOW + 7),
        )
        assert (await trial.claim()).next_wake_at == NOW + 4

    async def test_next_wake_is_none_if_nothing_is_planned(self, trial: Trial) -> None:
        assert (await trial.claim()).next_wake_at is None

    async def test_next_wake_counts_the_leases_just_taken(self, trial: Trial) -> None:
        await trial.add(job("a"), job("b", wake_at=NOW + 50))
        assert (await trial.claim(lease_s=20)).next_wake_at == NOW + 20

    async def test_next_wake_counts_a_lease_that_ends_before_its_job_is_due(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=NOW + 40))
        assert (await trial.claim(lease_s=20, ahead_s=50)).next_wake_at == NOW + 20

    async def test_next_wake_counts_the_leases_of_others(self, trial: Trial) -> None:
        await trial.held()
        trial.now += 1
        assert (await trial.claim()).next_wake_at == NOW + LEASE_S

    async def test_next_wake_counts_what_is_due_beyond_the_limit(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=NOW - 3), job("b", wake_at=NOW - 2), job("c", wake_at=NOW - 1))
        assert (await trial.claim(2)).next_wake_at == NOW - 1

    async def test_next_wake_counts_what_is_due_behind_a_lease_that_is_over(self, trial: Trial) -> None:
        """However few records were asked for, and whoever knows that it is over."""
        held = await trial.held()
        assert await (await trial.client()).settle([settlement(held, wake_at=None)]) == ["done"]
        await trial.add(job("b", wake_at=NOW + LEASE_S + 1), job("c", wake_at=NOW + LEASE_S + 2))
        trial.now += LEASE_S + 3
        claimed = await trial.claim(1)
        assert [r.id for r in claimed.records] == ["b"]
        assert claimed.next_wake_at is not None
        assert claimed.next_wake_at <= trial.now

    async def test_next_wake_ignores_a_paused_overdue_record(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=NOW - 9), job("b", wake_at=None, hold="paused"))
        await trial.store.update(replace(update_of(job("a")), wake_at=None, hold="paused"))
        claimed = await trial.claim()
        assert (claimed.records, claimed.next_wake_at) == ([], None)

    async def test_next_wake_ignores_other_queues(self, trial: Trial) -> None:
        await trial.add(job("a", queue="p", wake_at=NOW + 1), job("b", queue="q", wake_at=NOW + 2))
        await trial.add(job("c", queue="r", wake_at=NOW + 3))
        assert (await trial.claim(queues=["r", "q"])).next_wake_at == NOW + 2

    async def test_next_wake_follows_renewals_settlements_and_updates(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.renew(held, 2 * LEASE_S)
        assert (await trial.claim()).next_wake_at == NOW + 2 * LEASE_S
        await trial.settle(settlement(held, wake_at=NOW + 9))
        assert (await trial.claim()).next_wake_at == NOW + 9
        await trial.store.update(replace(update_of(held), wake_at=NOW + 500))
        assert (await trial.claim()).next_wake_at == NOW + 500
        await trial.store.remove(["a"])
        assert (await trial.claim()).next_wake_at is None


class RepeatedClaimCases:
    """A claim whose reply was lost is repeated with its token."""

    async def test_a_repeated_claim_returns_what_its_token_holds(self, trial: Trial) -> None:
        await trial.add(job("a"), job("b", priority=9), job("c", wake_at=NOW - 5))
        first = await trial.claim(2, token="mine")
        again = await trial.claim(2, token="mine")
        assert sorted(r.id for r in again.records) == ["b", "c"]
        assert {r.id: r for r in again.records} == {r.id: r for r in first.records}
        assert (await trial.read("c")).tries == 1

    async def test_a_claim_is_repeated_through_another_client(self, trial: Trial) -> None:
        held = await trial.held()
        other = await trial.client()
        assert (await other.claim([QUEUE], str(held.holder), 10, LEASE_S)).records == [held]

    async def test_a_repeated_claim_takes_no_more_than_its_limit(self, trial: Trial) -> None:
        await trial.add(*(job(f"{i}") for i in range(10)))
        first = await trial.claim(4, token="mine")
        await trial.settle(settlement(first.records[0], delete=True))
        again = await trial.claim(4, token="mine")
        assert {r.id for r in first.records[1:]} <= {r.id for r in again.records}
        assert len(again.records) <= 4
        assert len((await trial.claim()).records) + len(again.records) == 9

    async def test_a_repeated_claim_leaves_out_what_was_let_go(self, trial: Trial) -> None:
        await trial.add(job("settled"), job("revoked"), job("removed"), job("kept"))
        first = {r.id: r for r in (await trial.claim(token="mine")).records}
        await trial.settle(settlement(first["settled"], wake_at=NOW + 5_000))
        revoke = replace(update_of(first["revoked"], revoke=True), queue="elsewhere")
        await trial.store.update(revoke)
        await trial.store.remove(["removed"])
        assert (await trial.claim(token="mine")).records == [first["kept"]]

    async def test_a_claim_repeated_after_its_lease_names_each_record_once(self, trial: Trial) -> None:
        await trial.add(job("a"), job("b"))
        await trial.claim(token="mine")
        trial.now += LEASE_S
        for _ in range(2):
            again = (await trial.claim(token="mine")).records
            assert sorted(r.id for r in again) == ["a", "b"]
            assert await trial.store.get(["a", "b"]) == {r.id: r for r in again}

    async def test_what_a_repeated_claim_returned_can_be_settled(self, trial: Trial) -> None:
        await trial.add(job("a"))
        await trial.claim(token="mine")
        [again] = (await trial.claim(token="mine")).records
        assert await trial.settle(settlement(again, delete=True)) == "done"

    async def test_a_token_returns_only_what_it_holds_itself(self, trial: Trial) -> None:
        await trial.add(job("a"), job("b"))
        first = (await trial.claim(1, token="mine")).records
        other = (await trial.claim(1, token="min")).records
        assert [r.id for r in first + other] == ["a", "b"]
        assert (await trial.claim(1, token="mine")).records == first


async def _one_by_one(trial: Trial, *queues: str) -> list[str]:
    """The ids in the order in which claims of one record each take them."""
    ids: list[str] = []
    while taken := await trial.claim_ids(1, queues=queues or [QUEUE]):
        ids += taken
    return ids
