"""runs and prune: the log of what ran and of what was decided."""

from __future__ import annotations

from collections.abc import Sequence

from asyncsched.contract import Entry
from asyncsched.testing._contract.trial import NOW, Trial, entry, job, settlement

__all__ = ["LogCases", "PruneCases"]


class LogCases:
    """runs."""

    async def test_the_log_is_read_newest_first(self, trial: Trial) -> None:
        ats = [NOW - 5, NOW - 50, NOW, NOW - 7, NOW - 6.5]
        await trial.write_log(*(entry(fence=i, at=at) for i, at in enumerate(ats)))
        assert [e.at for e in await trial.log()] == sorted(ats, reverse=True)

    async def test_entries_of_one_instant_stand_in_the_reverse_order_of_their_keys(
        self, trial: Trial
    ) -> None:
        entries = [
            entry("a", fence=2, kind="run", fire_at=NOW),
            entry("a", fence=10, kind="misfire", fire_at=NOW),
            entry("a", fence=10, kind="run", fire_at=NOW - 8),
            entry("a", fence=10, kind="run", fire_at=NOW),
            entry("b", fence=1, kind="run", fire_at=NOW),
        ]
        await trial.write_log(entries[3], entries[0], entries[4], entries[2], entries[1])
        assert await trial.log() == entries[::-1]

    async def test_log_entries_are_kept_byte_for_byte(self, trial: Trial) -> None:
        entries = [
            entry("é/%", kind="catch_up_limit", body=bytes(range(256)), at=NOW + 0.000001),
            entry("b", body=b"", fence=2**40, fire_at=NOW - 0.123456),
        ]
        await trial.write_log(*entries)
        assert await trial.log() == entries

    async def test_the_log_can_be_read_page_by_page(self, trial: Trial) -> None:
        entries = [entry(f"{i % 3}", fence=i, at=NOW - i // 4) for i in range(20)]
        await trial.write_log(*entries)
        whole = await trial.log()
        assert await _walk(trial, 3) == whole
        assert len(whole) == 20

    async def test_a_page_of_the_log_continues_behind_an_entry_that_was_pruned(self, trial: Trial) -> None:
        await trial.write_log(*(entry(fence=i, at=NOW - i) for i in range(6)))
        first = await trial.store.runs(limit=3)
        await trial.store.prune(1.5, None, 100)
        await trial.write_log(entry(fence=99, at=NOW - 2.5))
        assert [e.fence for e in await trial.store.runs(limit=3, before=first[-1])] == [99]

    async def test_the_log_of_one_job(self, trial: Trial) -> None:
        await trial.write_log(*(entry(id, fence=i, at=NOW - i) for i, id in enumerate("abcAab")))
        assert [e.fence for e in await trial.store.runs("a")] == [0, 4]
        assert await _walk(trial, 1, job_id="b") == [
            entry("b", fence=1, at=NOW - 1),
            entry("b", fence=5, at=NOW - 5),
        ]
        assert await trial.store.runs("none") == []

    async def test_the_log_of_some_kinds(self, trial: Trial) -> None:
        kinds = ["run", "misfire", "run", "lost", "overlap", "run"]
        await trial.write_log(*(entry(kind=kind, fence=i, at=NOW - i) for i, kind in enumerate(kinds)))
        assert [e.fence for e in await trial.store.runs(kinds=["run"])] == [0, 2, 5]
        assert [e.fence for e in await _walk(trial, 1, kinds=["lost", "misfire"])] == [1, 3]
        assert await trial.store.runs(kinds=["none"]) == []

    async def test_the_log_of_one_job_behind_an_entry_of_another(self, trial: Trial) -> None:
        ats = {2: NOW - 2, 1: NOW - 1, 0: NOW}
        await trial.write_log(*(entry(id, fence=i, at=at) for i, at in ats.items() for id in "abc"))
        before = entry("b", fence=1, at=NOW - 1)
        assert [e.fence for e in await trial.store.runs("a", before=before)] == [1, 2]
        assert [e.fence for e in await trial.store.runs("c", before=before)] == [2]

    async def test_the_limit_counts_what_matches(self, trial: Trial) -> None:
        await trial.write_log(*(entry(f"{i % 2}", fence=i, at=NOW - i, kind=f"{i % 3}") for i in range(30)))
        found = await trial.store.runs("0", ["0"], 2)
        assert [e.fence for e in found] == [0, 6]
        assert [e.fence for e in await trial.store.runs("0", ["0"], 2, found[-1])] == [12, 18]

    async def test_the_log_outlives_its_job(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.settle(settlement(held, wake_at=NOW, entries=[entry()]))
        await trial.store.remove(["a"])
        await trial.add(job("a", birth="second"))
        assert await trial.store.runs("a") == [entry()]


class PruneCases:
    """prune."""

    async def test_old_entries_are_pruned(self, trial: Trial) -> None:
        await trial.write_log(*(entry(fence=i, at=NOW - 10 * i) for i in range(6)))
        trial.now += 5
        assert await trial.store.prune(30.0, None, 100) == 3
        assert [e.fence for e in await trial.log()] == [0, 1, 2]

    async def test_entries_beyond_the_newest_of_each_job_are_pruned(self, trial: Trial) -> None:
        await trial.write_log(*(entry("a", fence=i, at=NOW - i) for i in range(5)))
        await trial.write_log(*(entry("b", fence=i, at=NOW - i) for i in range(2)))
        assert await trial.store.prune(None, 2, 100) == 3
        assert [e.fence for e in await trial.store.runs("a")] == [0, 1]
        assert [e.fence for e in await trial.store.runs("b")] == [0, 1]

    async def test_of_the_entries_of_one_instant_the_first_in_the_log_are_kept(self, trial: Trial) -> None:
        entries = [entry(fence=i, kind=kind) for i in (2, 10) for kind in ("misfire", "run")]
        await trial.write_log(*entries)
        assert await trial.store.prune(None, 3, 100) == 1
        assert await trial.log() == entries[:0:-1]

    async def test_both_bounds_prune_together(self, trial: Trial) -> None:
        await trial.write_log(
            *(entry("a", fence=i, at=NOW - i) for i in range(5)), entry("b", at=NOW - 1_000)
        )
        assert await trial.store.prune(500.0, 2, 100) == 4
        assert [(e.job_id, e.fence) for e in await trial.log()] == [("a", 0), ("a", 1)]

    async def test_pruning_is_bounded(self, trial: Trial) -> None:
        await trial.write_log(*(entry("a", fence=i, at=NOW - 100 - i) for i in range(10)))
        await trial.write_log(*(entry("b", fence=i, at=NOW - i) for i in range(10)))
        assert [await trial.store.prune(50.0, 5, 4) for _ in range(5)] == [4, 4, 4, 3, 0]
        assert [e.fence for e in await trial.log()] == [0, 1, 2, 3, 4]

    async def test_nothing_is_pruned_without_a_bound(self, trial: Trial) -> None:
        await trial.write_log(entry(at=NOW - 10_000_000))
        assert await trial.store.prune(None, None, 100) == 0
        assert len(await trial.log()) == 1

    async def test_pruning_leaves_the_records_alone(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.write_log(entry(at=NOW - 500))
        await trial.store.prune(1.0, 0, 100)
        assert (await trial.log(), await trial.read("a")) == ([], held)

    async def test_an_entry_written_again_after_it_was_pruned_is_there_once(self, trial: Trial) -> None:
        await trial.write_log(entry(at=NOW - 500), entry("b"))
        await trial.store.prune(100.0, None, 100)
        await trial.write_log(entry(at=NOW - 400))
        assert await trial.log() == [entry("b"), entry(at=NOW - 400)]


async def _walk(
    trial: Trial, limit: int, job_id: str | None = None, kinds: Sequence[str] | None = None
) -> list[Entry]:
    """All pages, each asked for behind the last entry of the one before."""
    entries: list[Entry] = []
    before: Entry | None = None
    while (found := await trial.store.runs(job_id, kinds, limit, before)) and len(entries) < 1_000:
        assert len(found) <= limit
        entries += found
        before = found[-1]
    return entries
