"""add, get, page, update and remove."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from asyncsched.contract import Claim, Filter, JobStore, Record
from asyncsched.errors import StoreError
from asyncsched.testing._contract.trial import (
    EVERYTHING,
    LEASE_S,
    NOW,
    Trial,
    job,
    settlement,
    unlike,
    update_of,
)

__all__ = ["AddCases", "PageCases", "RemoveCases", "UpdateCases"]

MEBIBYTE = 1024 * 1024
EVERY_BYTE = bytes(range(256))

#: Ids that a careless column type, key encoding or comparison takes for one another.
LIKE_IDS = (
    "a", "A", "a ", " a", "á", "a\u0301", "å", "a/b", "a//b", "a/", "/a", "a:b", "a.b", "a#0", "a%b", "a_b", "a*", "a?",
    "a\\b", "a'b", 'a"b', "a`b", "a\nb", "a\tb", "{a}", "[a]", "$a", "..", "ß", "ss", "SS", "\u0131", "i", "日本語",
    "\U0001f469\u200d\U0001f680", "\U0001f680",
)  # fmt: skip


class AddCases:
    """add and get."""

    async def test_an_added_record_is_kept_as_it_was(self, trial: Trial) -> None:
        record = job(
            "a", queue="q", priority=9, task="send", hold="paused", body=b"1", cursor=b"2", birth="b"
        )
        await trial.add(record)
        assert await trial.store.get(["a"]) == {"a": record}

    async def test_a_record_without_wake_at_or_hold_is_kept_as_it_was(self, trial: Trial) -> None:
        record = job("a", wake_at=None, hold=None, priority=0)
        await trial.add(record)
        assert await trial.read("a") == record

    async def test_get_gives_only_what_exists(self, trial: Trial) -> None:
        await trial.add(job("a"), job("b"), job("c"))
        assert (await trial.store.get(["a", "none", "c"])).keys() == {"a", "c"}

    async def test_an_own_add_repeated_is_no_conflict(self, trial: Trial) -> None:
        await trial.add(job("a"))
        assert await trial.store.add([job("a")]) == set()

    async def test_an_own_add_repeated_leaves_the_record_alone(self, trial: Trial) -> None:
        held = await trial.held(job("a"))
        await trial.store.add([job("a", body=b"other", wake_at=NOW + 5)])
        assert await trial.read("a") == held

    async def test_another_birth_is_a_conflict_and_leaves_the_record_alone(self, trial: Trial) -> None:
        await trial.add(job("a"))
        assert await trial.store.add([job("a", birth="another", body=b"other", wake_at=NOW + 5)]) == {"a"}
        assert await trial.read("a") == job("a")

    async def test_one_conflict_does_not_keep_the_others_out(self, trial: Trial) -> None:
        await trial.add(job("b"))
        assert await trial.store.add([job("a"), job("b", birth="another"), job("c")]) == {"b"}
        assert (await trial.store.get(["a", "b", "c"])).keys() == {"a", "b", "c"}

    async def test_of_two_concurrent_adds_of_one_id_one_is_a_conflict(self, trial: Trial) -> None:
        stores = [trial.store, await trial.client()]
        births = [f"birth {i}" for i in range(8)]
        answers = await asyncio.gather(
            *(stores[i % 2].add([job("a", birth=b)]) for i, b in enumerate(births))
        )
        [winner] = [birth for birth, taken in zip(births, answers, strict=True) if not taken]
        assert (await trial.read("a")).birth == winner

    async def test_ten_thousand_records_are_added_at_once(self, trial: Trial) -> None:
        records = [job(f"{i:05}", body=b"x" * (i % 50)) for i in range(10_000)]
        assert await trial.store.add(records) == set()
        found = await trial.store.get([r.id for r in records])
        assert unlike(sorted(found.items()), [(r.id, r) for r in records]) == []

    async def test_ids_of_any_characters_are_told_apart(self, trial: Trial) -> None:
        await trial.add(*(job(id, body=id.encode()) for id in LIKE_IDS))
        found = await trial.store.get(LIKE_IDS)
        assert {id: r.body for id, r in found.items()} == {id: id.encode() for id in LIKE_IDS}
        assert sorted(await trial.claim_ids()) == sorted(LIKE_IDS)
        assert await trial.store.remove(["a"]) == {"a"}
        assert len(await trial.store.page(EVERYTHING, 100)) == len(LIKE_IDS) - 1

    async def test_an_id_may_have_255_characters(self, trial: Trial) -> None:
        ids = ["x" * 255, "x" * 254 + "y", "/" * 255, "é" * 255, "\U0001f680" * 255]
        await trial.add(*map(job, ids))
        assert (await trial.store.get(ids)).keys() == set(ids)
        assert sorted(await trial.claim_ids()) == sorted(ids)

    async def test_the_microseconds_of_wake_at_survive(self, trial: Trial) -> None:
        wakes = {"a": 1_800_000_000.000001, "b": 1_800_000_000.123456, "c": 1_799_999_999.999999, "d": 1.5}
        await trial.add(*(job(id, wake_at=wake_at) for id, wake_at in wakes.items()))
        found = await trial.store.get(list(wakes))
        assert {id: f"{r.wake_at:.6f}" for id, r in found.items()} == {
            id: f"{at:.6f}" for id, at in wakes.items()
        }
        assert [r.id for r in await trial.store.page(EVERYTHING, 10)] == ["d", "c", "a", "b"]

    async def test_one_microsecond_too_early_is_not_due(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=1_800_000_000.000123))
        trial.now = 1_800_000_000.000122
        assert await trial.claim_ids() == []
        trial.now = 1_800_000_000.000123
        assert await trial.claim_ids() == ["a"]

    async def test_body_and_cursor_are_kept_byte_for_byte(self, trial: Trial) -> None:
        blobs = {
            "empty": b"",
            "nul": b"\0",
            "nuls": b"a\0\0b\0",
            "all": EVERY_BYTE,
            "text": "日本 \\x00 {}".encode(),
        }
        await trial.add(*(job(id, body=blob, cursor=blob[::-1]) for id, blob in blobs.items()))
        found = await trial.store.get(list(blobs))
        assert {id: (r.body, r.cursor) for id, r in found.items()} == {
            id: (b, b[::-1]) for id, b in blobs.items()
        }

    async def test_body_and_cursor_may_have_a_mebibyte(self, trial: Trial) -> None:
        """Or share what the store says is its bound."""
        bound = trial.store.capabilities.largest_record
        large = (EVERY_BYTE * 4096)[: MEBIBYTE if bound is None else bound // 2]
        held = await trial.held(job("a", body=large, cursor=large))
        assert (held.body, held.cursor) == (large, large)
        assert await trial.settle(settlement(held, cursor=large[::-1])) == "done"
        settled = await trial.read("a")
        assert (settled.body, settled.cursor) == (large, large[::-1])
        updated = await trial.store.update(update_of(settled, body=large[1:]))
        assert updated is not None
        assert updated.body == large[1:]

    async def test_a_record_over_the_bound_is_refused_with_its_size(self, trial: Trial) -> None:
        bound = trial.store.capabilities.largest_record
        if bound is None:
            pytest.skip("the store has no bound")
        too_large = job("a", body=b"x" * (bound + 1), cursor=b"")
        with pytest.raises(StoreError, match=rf"'a'.*{bound + 1}\D.*{bound}\D"):
            await trial.store.add([too_large, job("b")])
        held = await trial.held(job("c"))
        with pytest.raises(StoreError, match="'c'"):
            await trial.store.update(update_of(held, body=too_large.body))
        with pytest.raises(StoreError, match="'c'"):
            await trial.settle(settlement(held, cursor=too_large.body))
        assert await trial.read("c") == held

    async def test_an_empty_batch_is_no_error(self, trial: Trial) -> None:
        store = trial.store
        assert (await store.add([]), await store.get([]), await store.remove([])) == (set(), {}, set())
        assert ((await store.renew([], 1)).versions, await store.settle([])) == ({}, [])
        assert (await store.acquire([], "h", 1), await store.extend([], 1)) == ({}, {})
        await store.release([])
        claimed = await store.claim([], "t", 10, 1)
        assert (claimed.records, claimed.next_wake_at) == ([], None)


class PageCases:
    """page."""

    async def test_a_page_is_ordered_by_wake_at_then_id_with_never_last(self, trial: Trial) -> None:
        await trial.add(job("never b", wake_at=None), job("z", wake_at=NOW - 5), job("never a", wake_at=None))
        await trial.add(
            job("b"), job("B"), job("é"), job("a"), job("y", wake_at=NOW + 10_000), job("10"), job("9")
        )
        ids = [r.id for r in await trial.store.page(EVERYTHING, 100)]
        assert ids == ["z", "10", "9", "B", "a", "b", "é", "y", "never a", "never b"]

    async def test_a_page_has_no_more_than_its_limit(self, trial: Trial) -> None:
        await trial.add(*(job(f"{i}") for i in range(9)))
        assert [r.id for r in await trial.store.page(EVERYTHING, 4)] == ["0", "1", "2", "3"]

    async def test_pages_continue_strictly_behind_the_last_record(self, trial: Trial) -> None:
        wakes = [NOW, NOW, NOW, NOW + 1, NOW + 1, NOW + 1, NOW + 2, None, None, None, None]
        await trial.add(*(job(f"{i:02}", wake_at=wake_at) for i, wake_at in enumerate(wakes)))
        assert await _walk(trial.store, EVERYTHING, 2) == [f"{i:02}" for i in range(len(wakes))]

    async def test_a_page_continues_behind_a_record_that_was_removed(self, trial: Trial) -> None:
        await trial.add(*(job(f"{i}") for i in range(6)))
        first = await trial.store.page(EVERYTHING, 3)
        await trial.store.remove(["0", "2"])
        assert [r.id for r in await trial.store.page(EVERYTHING, 3, after=first[-1])] == ["3", "4", "5"]

    async def test_a_page_shows_whole_records_held_or_not(self, trial: Trial) -> None:
        held = await trial.held(job("a"))
        await trial.add(job("b", wake_at=NOW + 1_000))
        assert await trial.store.page(EVERYTHING, 10) == [held, job("b", wake_at=NOW + 1_000)]

    async def test_a_page_misses_nobody_while_leases_are_renewed(self, trial: Trial) -> None:
        await trial.add(*(job(f"held-{i}") for i in range(20)))
        held = (await trial.claim()).records
        await trial.add(*(job(f"free-{i}", wake_at=NOW + LEASE_S + i) for i in range(20)))
        other = await trial.client()

        async def renew() -> None:
            for turn in range(10):
                claims = [Claim(r.id, r.fence, r.holder or "") for r in held]
                await other.renew(claims, LEASE_S + 2 * turn)
                await asyncio.sleep(0)

        async def read() -> list[int]:
            return [len({r.id for r in await trial.store.page(EVERYTHING, 100)}) for _ in range(10)]

        _, counts = await asyncio.gather(renew(), read())
        assert counts == [40] * 10

    async def test_pages_are_filtered_by_queue(self, trial: Trial) -> None:
        await trial.add(job("a", queue="p"), job("b", queue="q"), job("c", queue="P"), job("d", queue="q"))
        assert await _walk(trial.store, Filter(queue="q"), 1) == ["b", "d"]

    async def test_pages_are_filtered_by_task(self, trial: Trial) -> None:
        await trial.add(job("a", task="t"), job("b", task="t.u"), job("c", task="T"), job("d", task="t"))
        assert await _walk(trial.store, Filter(task="t"), 1) == ["a", "d"]

    async def test_pages_are_filtered_by_hold(self, trial: Trial) -> None:
        await trial.add(job("a", hold="paused"), job("b"), job("c", hold="limit/1"), job("d", hold="paused"))
        assert await _walk(trial.store, Filter(hold="paused"), 1) == ["a", "d"]

    async def test_an_empty_hold_means_records_without_one(self, trial: Trial) -> None:
        await trial.add(job("a", hold="paused"), job("b"), job("c", hold="limit/1"), job("d", wake_at=None))
        assert await _walk(trial.store, Filter(hold=""), 1) == ["b", "d"]

    async def test_pages_are_filtered_by_id_prefix(self, trial: Trial) -> None:
        await trial.add(
            *map(job, ["mail", "mail/1", "mail/2", "mail0", "e-mail/1", "Mail/3", "mai", "mail/日"])
        )
        assert await _walk(trial.store, Filter(id_prefix="mail/"), 2) == ["mail/1", "mail/2", "mail/日"]

    async def test_an_id_prefix_is_taken_literally(self, trial: Trial) -> None:
        for prefix in (
            "%",
            "_",
            "a%",
            "a_",
            "*",
            "?",
            "[a]",
            "a\\",
            "^a",
            "é",
            "日",
            "'",
            "a.",
            "\U0001f680",
        ):
            await trial.store.add(
                [job(f"{prefix}1"), job("a1"), job("ab1"), job("e1"), job("b"), job("E\u03011")]
            )
            found = await trial.store.page(Filter(id_prefix=prefix), 100)
            assert [r.id for r in found] == [f"{prefix}1"], prefix

    async def test_filters_that_are_set_must_all_match(self, trial: Trial) -> None:
        where = Filter(queue="q", task="t", hold="paused", id_prefix="a")
        full = job("a0", queue="q", task="t", hold="paused")
        await trial.add(full, replace(full, id="a1", queue="p"), replace(full, id="a2", task="u"))
        await trial.add(
            replace(full, id="a3", hold=None), replace(full, id="b4"), replace(full, id="a5", wake_at=None)
        )
        assert await _walk(trial.store, where, 1) == ["a0", "a5"]


class UpdateCases:
    """update."""

    async def test_an_update_writes_the_body_and_raises_the_version(self, trial: Trial) -> None:
        await trial.add(job("a"))
        updated = await trial.store.update(update_of(job("a"), body=b"two"))
        assert updated == replace(job("a"), body=b"two", version=2)
        assert await trial.read("a") == updated

    async def test_an_update_of_another_version_is_refused(self, trial: Trial) -> None:
        await trial.add(job("a"))
        await trial.store.update(update_of(job("a"), body=b"two"))
        assert await trial.store.update(update_of(job("a"), body=b"late")) is None
        assert await trial.store.update(replace(update_of(job("a")), version=3)) is None
        assert (await trial.read("a")).body == b"two"

    async def test_an_update_of_nothing_is_refused(self, trial: Trial) -> None:
        assert await trial.store.update(update_of(job("a"))) is None
        assert await trial.store.get(["a"]) == {}

    async def test_of_concurrent_updates_of_one_version_one_is_taken(self, trial: Trial) -> None:
        await trial.add(job("a"))
        stores = [trial.store, await trial.client()]
        updates = [update_of(job("a"), body=b"%d" % i) for i in range(10)]
        answers = await asyncio.gather(*(stores[i % 2].update(u) for i, u in enumerate(updates)))
        [taken] = [answer for answer in answers if answer is not None]
        assert await trial.read("a") == taken
        assert taken.version == 2

    async def test_an_update_moves_an_unheld_record(self, trial: Trial) -> None:
        await trial.add(job("a"))
        update = replace(update_of(job("a")), queue="q", priority=8, wake_at=NOW + 7, hold="why")
        updated = await trial.store.update(update)
        assert updated is not None
        assert (updated.queue, updated.priority, updated.wake_at, updated.hold) == ("q", 8, NOW + 7, "why")
        trial.now += 7
        assert await trial.claim_ids() == []
        assert await trial.claim_ids(queues=["q"]) == ["a"]

    async def test_a_record_that_was_moved_often_is_claimed_at_its_last_time(self, trial: Trial) -> None:
        """However many of its former times an index still knows."""
        await trial.add(job("a", wake_at=NOW + 100))
        record = job("a")
        for wake_at in (NOW + 50, NOW + 10, NOW + 70, NOW + 5, NOW + 60):
            updated = await trial.store.update(replace(update_of(record), wake_at=wake_at))
            assert updated is not None
            record = updated
        trial.now = NOW + 59
        claimed = await trial.claim()
        assert (claimed.records, claimed.next_wake_at) == ([], NOW + 60)
        trial.now = NOW + 60
        assert await trial.claim_ids() == ["a"]
        assert await trial.claim_ids() == []

    async def test_an_update_can_take_the_wake_at_away(self, trial: Trial) -> None:
        await trial.add(job("a"))
        await trial.store.update(replace(update_of(job("a")), wake_at=None, hold="paused"))
        claimed = await trial.claim()
        assert (claimed.records, claimed.next_wake_at) == ([], None)

    async def test_an_update_of_a_held_record_leaves_wake_at_and_hold_to_its_holder(
        self, trial: Trial
    ) -> None:
        held = await trial.held()
        update = replace(update_of(held, body=b"two"), queue="q", priority=1, wake_at=None, hold="paused")
        expected = replace(held, body=b"two", queue="q", priority=1, version=2)
        assert await trial.store.update(update) == expected
        assert await trial.read("a") == expected

    async def test_a_held_record_that_was_given_another_lane_is_settled_and_claimed_there(
        self, trial: Trial
    ) -> None:
        held = await trial.held()
        assert await trial.store.update(replace(update_of(held), queue="q", priority=1)) is not None
        assert await trial.settle(settlement(held)) == "stale"
        assert (await trial.claim()).records == []
        claimed = await trial.claim(queues=["q"])
        assert [(r.id, r.queue, r.priority) for r in claimed.records] == [("a", "q", 1)]

    async def test_a_record_whose_lease_has_expired_is_held_for_an_update_too(self, trial: Trial) -> None:
        held = await trial.held()
        trial.now += LONG_S
        update = replace(update_of(held, body=b"two"), wake_at=None, hold="paused")
        assert await trial.store.update(update) == replace(held, body=b"two", version=2)

    async def test_an_update_writes_another_task_held_or_not(self, trial: Trial) -> None:
        await trial.add(job("a"))
        unheld = await trial.store.update(replace(update_of(job("a")), task="two"))
        assert unheld is not None
        held = await trial.claimed()
        updated = await trial.store.update(replace(update_of(held), task="three"))
        assert (unheld.task, held.task, updated) == (
            "two",
            "two",
            replace(held, task="three", body=b"new body", version=3),
        )
        assert [r.id for r in await trial.store.page(Filter(task="three"), 10)] == ["a"]

    async def test_an_update_without_a_task_leaves_the_task_alone(self, trial: Trial) -> None:
        await trial.add(job("a", task="one"))
        updated = await trial.store.update(update_of(job("a")))
        assert updated is not None
        assert updated.task == "one"

    async def test_an_update_leaves_progress_alone(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.settle(settlement(held, wake_at=NOW + 5, cursor=b"far"))
        before = await trial.read("a")
        updated = await trial.store.update(update_of(before, body=b"two"))
        assert updated is not None
        assert updated == replace(before, body=b"two", version=2)
        assert (updated.cursor, updated.fence, updated.settled) == (b"far", held.fence, held.fence)

    async def test_a_revoke_takes_the_record_from_its_holder(self, trial: Trial) -> None:
        held = await trial.held()
        revoked = await trial.store.update(update_of(held, revoke=True))
        assert revoked is not None
        assert (revoked.holder, revoked.version, revoked.fence) == (None, 2, held.fence)
        assert await trial.renew(held) == "lost"
        assert await trial.settle(settlement(held, cursor=b"late")) == "lost"
        assert (await trial.read("a")).cursor == b"cursor"

    async def test_a_revoked_record_is_due_now(self, trial: Trial) -> None:
        held = await trial.held()
        trial.now += 1
        revoked = await trial.store.update(replace(update_of(held, revoke=True), wake_at=NOW + 5_000))
        assert revoked is not None
        assert revoked.wake_at == NOW + 1
        assert (await trial.claimed()).fence > held.fence

    async def test_a_revoke_writes_what_a_held_record_would_refuse(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(replace(update_of(held, revoke=True), queue="q", priority=2, hold="why"))
        record = await trial.read("a")
        assert (record.queue, record.priority, record.hold) == ("q", 2, "why")
        assert await trial.claim_ids() == []
        assert await trial.claim_ids(queues=["q"]) == ["a"]


class RemoveCases:
    """remove."""

    async def test_remove_returns_what_it_found(self, trial: Trial) -> None:
        await trial.add(job("a"), job("b"), job("c"))
        assert await trial.store.remove(["a", "none", "c"]) == {"a", "c"}
        assert await trial.store.remove(["a"]) == set()
        assert (await trial.store.get(["a", "b", "c"])).keys() == {"b"}

    async def test_a_removed_record_is_neither_claimed_nor_planned(self, trial: Trial) -> None:
        await trial.add(job("a"), job("b", wake_at=NOW + 9))
        await trial.store.remove(["a", "b"])
        claimed = await trial.claim()
        assert (claimed.records, claimed.next_wake_at) == ([], None)

    async def test_a_held_record_can_be_removed_and_its_holder_finds_out(self, trial: Trial) -> None:
        held = await trial.held()
        assert await trial.store.remove(["a"]) == {"a"}
        assert await trial.renew(held) == "lost"
        assert await trial.settle(settlement(held, wake_at=NOW)) == "gone"
        assert await trial.store.get(["a"]) == {}

    async def test_a_ghost_of_a_removed_job_cannot_settle_or_renew_its_successor(self, trial: Trial) -> None:
        ghost = await trial.held()
        await trial.store.remove(["a"])
        await trial.add(job("a", birth="second"))
        assert await trial.settle(settlement(ghost, delete=True)) == "lost"
        successor = await trial.claimed()
        assert await trial.renew(ghost) == "lost"
        assert await trial.settle(settlement(ghost, delete=True)) == "lost"
        assert await trial.read("a") == successor

    async def test_fences_never_fall_across_remove_and_add(self, trial: Trial) -> None:
        fences = []
        for i in range(5):
            held = await trial.held(job("a", birth=f"birth {i}"))
            fences.append(held.fence)
            await trial.store.remove(["a"])
        assert fences[0] > 0
        assert fences == sorted(set(fences))


#: Longer than any lease of these cases.
LONG_S = 100_000.0


async def _walk(store: JobStore, where: Filter, limit: int) -> list[str]:
    """The ids of all pages, each asked for behind the last record of the one before."""
    ids: list[str] = []
    after: Record | None = None
    while (found := await store.page(where, limit, after)) and len(ids) < 1_000:
        assert len(found) <= limit
        ids += [r.id for r in found]
        after = found[-1]
    return ids
