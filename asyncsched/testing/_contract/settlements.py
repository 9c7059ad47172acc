"""settle: how a claim ends, and who may end it."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from asyncsched.contract import Record, Settlement
from asyncsched.testing._contract.trial import (
    LEASE_S,
    NOW,
    QUEUE,
    Trial,
    claim_of,
    entry,
    job,
    settlement,
    unlike,
    update_of,
)

__all__ = [
    "EntryCases",
    "HandBackCases",
    "RefusalCases",
    "SettleCases",
    "SpawnCases",
    "StaleCases",
    "UnparkCases",
]


class SettleCases:
    """done: the record moves on, or goes."""

    async def test_a_settlement_moves_the_record_and_lets_go(self, trial: Trial) -> None:
        held = await trial.held()
        answer = await trial.settle(settlement(held, wake_at=NOW + 60, cursor=b"next", hold="why"))
        moved = replace(
            held, wake_at=NOW + 60, cursor=b"next", hold="why", holder=None, settled=held.fence, tries=0
        )
        assert answer == "done"
        assert await trial.read("a") == moved

    async def test_a_settled_record_is_due_at_its_new_time(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.settle(settlement(held, wake_at=NOW + 60))
        trial.now += 59
        assert await trial.claim_ids() == []
        trial.now += 1
        assert await trial.claim_ids() == ["a"]

    async def test_a_settlement_can_leave_the_record_without_wake_at(self, trial: Trial) -> None:
        held = await trial.held()
        assert await trial.settle(settlement(held, wake_at=None, hold="quarantined")) == "done"
        record = await trial.read("a")
        assert (record.wake_at, record.hold, record.holder) == (None, "quarantined", None)
        assert (await trial.claim()).next_wake_at is None

    async def test_a_settlement_can_clear_the_hold(self, trial: Trial) -> None:
        held = await trial.held(job("a", hold="limit/key"))
        await trial.settle(settlement(held, wake_at=NOW, hold=None))
        assert (await trial.read("a")).hold is None

    async def test_a_settlement_can_delete_the_record(self, trial: Trial) -> None:
        held = await trial.held()
        assert await trial.settle(settlement(held, delete=True, wake_at=NOW)) == "done"
        assert await trial.store.get(["a"]) == {}
        assert (await trial.claim()).next_wake_at is None

    async def test_an_expired_lease_alone_refuses_no_settlement(self, trial: Trial) -> None:
        held = await trial.held()
        trial.now += 10 * LEASE_S
        assert await trial.settle(settlement(held, wake_at=trial.now + 5)) == "done"
        assert await trial.claim_ids() == []

    async def test_a_settlement_repeated_is_already_done(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.settle(settlement(held, wake_at=NOW + 5, cursor=b"once"))
        before = await trial.read("a")
        assert await trial.settle(settlement(held, wake_at=NOW + 9, cursor=b"twice", hold="why")) == "already"
        assert await trial.settle(settlement(held, delete=True)) == "already"
        assert await trial.read("a") == before

    async def test_a_settlement_repeated_under_a_successor_is_already_done(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.settle(settlement(held, wake_at=NOW))
        successor = await trial.claimed()
        assert await trial.settle(settlement(held, wake_at=NOW)) == "already"
        assert await trial.read("a") == successor

    async def test_a_settlement_repeated_once_its_record_is_parked_changes_nothing(
        self, trial: Trial
    ) -> None:
        held = await trial.held()
        first = settlement(held, wake_at=NOW, entries=[entry()], unpark=("k", 1))
        other = await trial.client()
        assert await other.settle([first]) == ["done"]
        [successor] = (await other.claim([QUEUE], "other", 1, LEASE_S)).records
        assert await other.settle([settlement(successor, wake_at=NOW + 9, hold="k")]) == ["done"]
        parked = await trial.read("a")
        assert await trial.settle(first) == "lost"
        assert await trial.read("a") == parked

    async def test_a_settlement_repeated_does_not_spawn_again(self, trial: Trial) -> None:
        moved = settlement(await trial.held(), wake_at=None, spawn=[job("child")], unpark=("k", 1))
        await trial.settle(moved)
        await trial.store.remove(["child"])
        parked = job("parked", hold="k", wake_at=NOW + 9)
        await trial.add(parked)
        assert await trial.settle(moved) == "already"
        assert await trial.store.get(["child", "parked"]) == {"parked": parked}

    async def test_a_delete_repeated_does_not_spawn_again(self, trial: Trial) -> None:
        deletion = settlement(await trial.held(), delete=True, spawn=[job("child")])
        assert await trial.settle(deletion) == "done"
        assert await trial.store.remove(["child"]) == {"child"}
        assert await trial.settle(deletion) == "gone"
        assert await trial.store.get(["a", "child"]) == {}

    async def test_answers_stand_in_the_order_given(self, trial: Trial) -> None:
        await trial.add(*(job(id) for id in ("done", "gone", "stale", "lost", "already", "deleted")))
        held = {r.id: r for r in (await trial.claim()).records}
        await trial.store.remove(["gone"])
        await trial.store.update(update_of(held["stale"]))
        await trial.store.update(update_of(held["lost"], revoke=True))
        await trial.settle(settlement(held["already"]))
        order = ["lost", "done", "gone", "stale", "already", "deleted"]
        answers = await trial.store.settle([settlement(held[id], delete=id == "deleted") for id in order])
        assert answers == ["lost", "done", "gone", "stale", "already", "done"]
        assert (await trial.store.get(order)).keys() == {"done", "stale", "lost", "already"}

    async def test_of_two_settlements_of_one_claim_in_one_batch_the_first_counts(self, trial: Trial) -> None:
        held = await trial.held()
        batch = [settlement(held, cursor=b"one"), settlement(held, cursor=b"two")]
        assert await trial.store.settle(batch) == ["done", "already"]
        assert (await trial.read("a")).cursor == b"one"

    async def test_a_thousand_claims_are_settled_at_once(self, trial: Trial) -> None:
        await trial.add(*(job(f"{i:03}") for i in range(1_000)))
        records = (await trial.claim(1_000)).records
        batch = [_mixed(i, r) for i, r in enumerate(records)]
        assert unlike(await trial.store.settle(batch), ["done"] * 1_000) == []
        left = await trial.store.get([r.id for r in records])
        assert unlike(sorted(left), [r.id for i, r in enumerate(records) if i % 2]) == []
        assert {r.wake_at for r in left.values()} == {NOW + 5}
        assert len(await trial.log()) == 1_000

    async def test_batches_in_opposite_orders_do_not_block_each_other(self, trial: Trial) -> None:
        stores = [trial.store, await trial.client()]
        await trial.add(*(job(f"{i:02}") for i in range(60)))
        for _ in range(5):
            records = (await trial.claim()).records
            claims = [claim_of(r) for r in records]
            await asyncio.gather(
                stores[0].renew(claims, 2 * LEASE_S), stores[1].renew(claims[::-1], 2 * LEASE_S)
            )
            batch = [settlement(r, wake_at=NOW, spawn=[job("child", wake_at=None)]) for r in records]
            answers = await asyncio.gather(stores[0].settle(batch), stores[1].settle(batch[::-1]))
            pairs = zip(answers[0], answers[1][::-1], strict=True)
            assert {tuple(sorted(pair)) for pair in pairs} == {("already", "done")}


class StaleCases:
    """stale: someone updated the record in mid-run."""

    async def test_an_update_in_mid_run_makes_the_settlement_stale(self, trial: Trial) -> None:
        held = await trial.held(job("a", hold="why"))
        updated = await trial.store.update(update_of(held, body=b"two"))
        assert updated is not None
        trial.now += 2
        assert await trial.settle(settlement(held, wake_at=NOW + 500, cursor=b"far", hold="other")) == "stale"
        expected = replace(updated, cursor=b"far", wake_at=NOW + 2, holder=None, settled=held.fence, tries=0)
        assert await trial.read("a") == expected

    async def test_a_stale_settlement_does_not_move_the_record(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held))
        await trial.settle(settlement(held, wake_at=None))
        assert (await trial.read("a")).wake_at == NOW
        assert await trial.claim_ids() == ["a"]

    async def test_a_stale_settlement_does_not_delete_the_record(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held))
        assert await trial.settle(settlement(held, delete=True, cursor=b"far")) == "stale"
        assert (await trial.read("a")).cursor == b"far"

    async def test_a_stale_settlement_keeps_its_entries_and_its_children(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held))
        await trial.settle(settlement(held, entries=[entry()], spawn=[job("child")]))
        assert await trial.log() == [entry()]
        assert await trial.read("child") == job("child")

    async def test_a_renewal_after_an_update_leaves_the_settlement_stale(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held))
        assert await trial.renew(held, 2 * LEASE_S) == 2
        assert await trial.settle(settlement(held, delete=True)) == "stale"
        assert (await trial.read("a")).version == 2

    async def test_a_stale_settlement_repeated_is_already_done(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held))
        assert await trial.settle(settlement(held)) == "stale"
        before = await trial.read("a")
        assert await trial.settle(settlement(held)) == "already"
        assert await trial.read("a") == before

    async def test_an_update_before_the_claim_makes_nothing_stale(self, trial: Trial) -> None:
        await trial.add(job("a"))
        await trial.store.update(update_of(job("a")))
        assert await trial.settle(settlement(await trial.claimed(), wake_at=NOW + 9)) == "done"


class RefusalCases:
    """lost: a successor, a revoke or a remove refuses, and then nothing is written."""

    async def test_a_zombie_cannot_settle(self, trial: Trial) -> None:
        zombie = await trial.held()
        trial.now += LEASE_S
        successor = await trial.claimed()
        assert await trial.settle(settlement(zombie, wake_at=NOW + 9, cursor=b"late")) == "lost"
        assert await trial.settle(settlement(zombie, delete=True)) == "lost"
        assert await trial.settle(settlement(zombie, hand_back=True, wake_at=NOW)) == "lost"
        assert await trial.read("a") == successor

    async def test_a_zombie_cannot_settle_after_its_successor_has(self, trial: Trial) -> None:
        zombie = await trial.held()
        trial.now += LEASE_S
        await trial.settle(settlement(await trial.claimed(), wake_at=NOW + 900))
        before = await trial.read("a")
        assert await trial.settle(settlement(zombie, wake_at=NOW)) == "lost"
        assert await trial.read("a") == before

    async def test_a_settlement_needs_the_fence(self, trial: Trial) -> None:
        await trial.add(job("a"))
        [first] = (await trial.claim(token="mine")).records
        await trial.settle(settlement(first, hand_back=True, wake_at=NOW))
        [second] = (await trial.claim(token="mine")).records
        assert await trial.settle(settlement(first, delete=True)) == "lost"
        assert await trial.settle(settlement(replace(second, fence=second.fence + 1), delete=True)) == "lost"
        assert await trial.read("a") == second

    async def test_a_settlement_needs_the_holder(self, trial: Trial) -> None:
        held = await trial.held()
        assert await trial.settle(settlement(replace(held, holder="another"), delete=True)) == "lost"
        assert await trial.read("a") == held

    async def test_a_revoked_claim_cannot_settle(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held, revoke=True))
        before = await trial.read("a")
        assert await trial.settle(settlement(held, delete=True, entries=[entry()])) == "lost"
        assert (await trial.read("a"), await trial.log()) == (before, [])

    async def test_a_lost_settlement_writes_nothing(self, trial: Trial) -> None:
        zombie = await trial.held()
        trial.now += LEASE_S
        successor = await trial.claimed()
        parked = job("parked", hold="k", wake_at=NOW + 900)
        await trial.add(parked)
        lost = settlement(zombie, cursor=b"late", entries=[entry()], spawn=[job("child")], unpark=("k", 1))
        assert await trial.settle(lost) == "lost"
        assert await trial.log() == []
        assert await trial.store.get(["a", "child", "parked"]) == {"a": successor, "parked": parked}

    async def test_a_settlement_of_a_removed_record_is_gone(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.remove(["a"])
        assert await trial.settle(settlement(held, wake_at=NOW, spawn=[job("child")])) == "gone"
        assert await trial.store.get(["a", "child"]) == {}

    async def test_what_is_gone_keeps_its_entries(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.remove(["a"])
        await trial.settle(settlement(held, delete=True, entries=[entry(), entry(kind="overlap")]))
        assert await trial.log() == [entry(), entry(kind="overlap")]

    async def test_one_refused_settlement_does_not_stop_the_others(self, trial: Trial) -> None:
        zombie = await trial.held(job("zombie"))
        trial.now += LEASE_S
        await trial.claimed()
        await trial.add(*(job(f"{i:02}") for i in range(20)))
        records = (await trial.claim()).records
        batch = [settlement(r, delete=True, entries=[entry(r.id)]) for r in records]
        batch.insert(10, settlement(zombie, delete=True, entries=[entry("zombie")]))
        assert await trial.store.settle(batch) == ["done"] * 10 + ["lost"] + ["done"] * 10
        assert sorted(e.job_id for e in await trial.log()) == [r.id for r in records]


class HandBackCases:
    """hand_back: as if it had not been claimed."""

    async def test_a_hand_back_keeps_progress_and_undoes_the_try(self, trial: Trial) -> None:
        held = await trial.held(job("a", hold="why"))
        back = settlement(held, hand_back=True, wake_at=NOW + 4, cursor=b"ignored", hold="ignored")
        assert await trial.settle(back) == "done"
        assert await trial.read("a") == replace(held, wake_at=NOW + 4, holder=None, tries=0)

    async def test_a_hand_back_does_not_count_as_a_settlement(self, trial: Trial) -> None:
        await trial.settle(settlement(await trial.held(), wake_at=NOW))
        before = await trial.read("a")
        held = await trial.claimed()
        await trial.settle(settlement(held, hand_back=True, wake_at=NOW))
        after = await trial.read("a")
        assert (after.settled, after.tries, after.fence) == (before.settled, 0, held.fence)

    async def test_a_hand_back_keeps_the_count_of_lost_claims(self, trial: Trial) -> None:
        await trial.held()
        trial.now += LEASE_S
        second = await trial.claimed()
        await trial.settle(settlement(second, hand_back=True, wake_at=trial.now))
        assert (await trial.read("a")).tries == 1
        assert (await trial.claimed()).tries == 2

    async def test_what_was_handed_back_is_due_at_the_given_time(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.settle(settlement(held, hand_back=True, wake_at=NOW + 4))
        assert (await trial.claim()).next_wake_at == NOW + 4
        trial.now += 4
        assert (await trial.claimed()).fence > held.fence

    async def test_a_stale_hand_back_keeps_progress_and_is_due_now(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held))
        assert (
            await trial.settle(settlement(held, hand_back=True, wake_at=NOW + 400, cursor=b"ignored"))
            == "stale"
        )
        record = await trial.read("a")
        assert (record.cursor, record.wake_at, record.tries, record.settled) == (b"cursor", NOW, 0, 0)


class EntryCases:
    """The log entries of a settlement."""

    async def test_entries_are_written_with_the_settlement(self, trial: Trial) -> None:
        entries = [entry(kind="run", body=b"\0ok"), entry(kind="coalesced", body=b"", fire_at=NOW - 3)]
        assert await trial.settle(settlement(await trial.held(), delete=True, entries=entries)) == "done"
        assert sorted(await trial.log(), key=lambda e: e.fire_at) == entries[::-1]

    async def test_an_entry_is_written_once(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.settle(
            settlement(held, wake_at=NOW, entries=[entry(body=b"first"), entry(body=b"second")])
        )
        again = settlement(await trial.claimed(), wake_at=NOW, entries=[entry(body=b"third", at=NOW + 5)])
        assert await trial.settle(again) == "done"
        assert await trial.log() == [entry(body=b"first")]

    async def test_entries_that_differ_in_any_part_of_the_key_are_all_kept(self, trial: Trial) -> None:
        entries = [entry(), entry("b"), entry(fence=2), entry(kind="lost"), entry(fire_at=NOW + 0.000001)]
        await trial.settle(settlement(await trial.held(), entries=entries))
        assert len(await trial.log()) == 5

    async def test_a_settlement_without_entries_writes_none(self, trial: Trial) -> None:
        await trial.settle(settlement(await trial.held(), delete=True))
        assert await trial.log() == []


class SpawnCases:
    """spawn: records that are added in the same step."""

    async def test_spawned_records_are_added_and_due(self, trial: Trial) -> None:
        children = [job("a#0"), job("a#1", queue="q", wake_at=NOW + 7)]
        assert await trial.settle(settlement(await trial.held(), delete=True, spawn=children)) == "done"
        assert await trial.store.get(["a#0", "a#1"]) == {r.id: r for r in children}
        assert await trial.claim_ids() == ["a#0"]

    async def test_a_spawn_leaves_existing_records_alone(self, trial: Trial) -> None:
        held = await trial.held()
        child = job("child", birth="own", wake_at=NOW + 50)
        await trial.add(child)
        answer = await trial.settle(
            settlement(held, spawn=[job("child", body=b"other"), job("b")], cursor=b"far")
        )
        assert (answer, await trial.read("child")) == ("done", child)
        assert ((await trial.read("a")).cursor, await trial.read("b")) == (b"far", job("b"))

    async def test_a_delete_may_be_followed_by_a_spawn_of_the_next_job(self, trial: Trial) -> None:
        batch = [settlement(await trial.held(), delete=True, spawn=[job(f"{i:03}") for i in range(100)])]
        assert await trial.store.settle(batch) == ["done"]
        assert len(await trial.claim_ids(1_000)) == 100


class UnparkCases:
    """unpark: records that waited for a limit."""

    async def test_the_earliest_parked_records_become_due(self, trial: Trial) -> None:
        held = await trial.held()
        parked = [
            job(id, hold="k", wake_at=NOW + at) for id, at in (("d", 40), ("c", 20), ("b", 20), ("e", 90))
        ]
        await trial.add(*parked)
        trial.now += 1
        assert await trial.settle(settlement(held, unpark=("k", 2))) == "done"
        found = await trial.store.get(["b", "c", "d", "e"])
        assert {id: (r.hold, r.wake_at) for id, r in found.items()} == {
            "b": (None, NOW + 1), "c": (None, NOW + 1), "d": ("k", NOW + 40), "e": ("k", NOW + 90)
        }  # fmt: skip
        assert await trial.claim_ids() == ["b", "c"]

    async def test_unparking_changes_only_hold_and_wake_at(self, trial: Trial) -> None:
        held = await trial.held()
        parked = job("b", hold="k", wake_at=None, queue="q", priority=2)
        await trial.add(parked)
        await trial.settle(settlement(held, unpark=("k", 5)))
        assert await trial.read("b") == replace(parked, hold=None, wake_at=NOW)

    async def test_what_never_wakes_is_unparked_last(self, trial: Trial) -> None:
        held = await trial.held()
        never = [job(id, hold="k", wake_at=None) for id in ("b", "c")]
        await trial.add(*never, job("d", hold="k", wake_at=NOW + 40))
        assert await trial.settle(settlement(held, unpark=("k", 2))) == "done"
        found = await trial.store.get(["b", "c", "d"])
        assert {id: (r.hold, r.wake_at) for id, r in found.items()} == {
            "b": (None, NOW), "c": ("k", None), "d": (None, NOW)
        }  # fmt: skip

    async def test_a_child_that_is_there_and_parked_is_unparked(self, trial: Trial) -> None:
        held = await trial.held()
        parked = job("b", hold="k", wake_at=NOW + 9)
        await trial.add(parked)
        ending = settlement(held, spawn=[job("b", birth="another")], unpark=("k", 1))
        assert await trial.settle(ending) == "done"
        assert await trial.read("b") == replace(parked, hold=None, wake_at=NOW)

    async def test_what_was_parked_since_is_unparked_beside_its_own_repeated_settlement(
        self, trial: Trial
    ) -> None:
        await trial.add(job("a"), job("b"))
        held = {r.id: r for r in (await trial.claim()).records}
        other = await trial.client()
        first = settlement(held["a"], wake_at=NOW, unpark=("k", 1))
        assert await other.settle([first]) == ["done"]
        [successor] = (await other.claim([QUEUE], "other", 1, LEASE_S)).records
        assert await other.settle([settlement(successor, wake_at=NOW + 9, hold="k")]) == ["done"]
        batch = [first, settlement(held["b"], unpark=("k", 1))]
        assert await trial.store.settle(batch) == ["lost", "done"]
        record = await trial.read("a")
        assert (record.hold, record.wake_at) == (None, NOW)

    async def test_unparking_leaves_other_holds_alone(self, trial: Trial) -> None:
        held = await trial.held()
        others = [
            job("b", hold="K", wake_at=NOW + 9),
            job("c", hold="paused", wake_at=None),
            job("d", wake_at=NOW + 9),
        ]
        await trial.add(*others)
        await trial.settle(settlement(held, unpark=("k", 5)))
        assert await trial.store.get(["b", "c", "d"]) == {r.id: r for r in others}

    async def test_unparking_leaves_held_records_alone(self, trial: Trial) -> None:
        await trial.add(job("a"), job("b", hold="k"))
        held = {r.id: r for r in (await trial.claim()).records}
        await trial.settle(settlement(held["a"], unpark=("k", 5)))
        assert await trial.read("b") == held["b"]


def _mixed(i: int, record: Record) -> Settlement:
    """Every second claim moves on, the others are deleted; each writes one entry."""
    return settlement(
        record, wake_at=NOW + 5, delete=i % 2 == 0, entries=[entry(record.id, fence=record.fence)]
    )
