"""Mutants of what is brought from another store."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from asyncsched.contract import Lease, Record, Settled, Settlement
from asyncsched.stores.memory import MemoryStore
from asyncsched.testing._mutants.table import caught_by

__all__: list[str] = []


@caught_by("test_a_record_that_has_lived_elsewhere_is_added_whole")
class AddForgetsThePast(MemoryStore):
    """Whatever is added begins with version 1 and no fence."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        return await super().add(
            [replace(r, version=1, fence=0, settled=0, tries=0, prior=None) for r in records]
        )


@caught_by("test_the_next_claim_of_a_record_that_has_lived_elsewhere_has_a_higher_fence")
class FencesBeginAnew(MemoryStore):
    """Fences are counted here, whatever fences a record had before."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        fence = self._fence
        taken = await super().add(records)
        self._fence = fence
        return taken


@caught_by("test_no_later_fence_is_as_low_as_one_that_was_added")
class LeasesCountForThemselves(MemoryStore):
    """What was added raises the fences of claims, and not those of named leases."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        taken = await super().acquire(keys, holder, lease_s, limit)
        for number, key in enumerate(taken):
            taken[key] = self._leases[key] = taken[key]._replace(fence=number + 1)
        return taken


@caught_by("test_a_record_with_a_low_fence_lowers_none")
class AddSetsTheFence(MemoryStore):
    """The counter goes on from the fence of the last record with one."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken = await super().add(records)
        self._fence = next((r.fence for r in reversed(records) if r.fence), self._fence)
        return taken


@caught_by("test_a_record_from_elsewhere_leaves_the_one_that_is_there_alone")
class AddPutsThePastIn(MemoryStore):
    """A record with a higher fence replaces the one of its birth."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        for record in records:
            there = self._records.get(record.id)
            if there is not None and there.birth == record.birth and there.fence < record.fence:
                del self._records[record.id]
        return await super().add(records)


@caught_by("test_entries_of_a_record_that_never_was_here_are_kept")
class KeepsEntriesOfKnownJobs(MemoryStore):
    """Entries of a job that is not stored are kept only if it has been."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await super().settle([s if s.fence else replace(s, entries=()) for s in settlements])
