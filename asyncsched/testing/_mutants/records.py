"""Mutants of add, get, page, update and remove."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Sequence

from msgspec.structs import replace

from asyncsched.contract import Filter, Record, Update
from asyncsched.stores.memory import MemoryStore
from asyncsched.testing._mutants.table import caught_by

__all__: list[str] = []

_BIG = 1_000_000


@caught_by("test_an_own_add_repeated_leaves_the_record_alone")
class AddOverwrites(MemoryStore):
    """An existing record is replaced."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        for record in records:
            self._records.pop(record.id, None)
        return await super().add(records)


@caught_by("test_another_birth_is_a_conflict_and_leaves_the_record_alone")
class AddIgnoresBirth(MemoryStore):
    """No add is a conflict."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        await super().add(records)
        return set()


@caught_by("test_an_own_add_repeated_is_no_conflict")
class AddKnowsNoBirth(MemoryStore):
    """Every existing id is a conflict."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        known = {r.id for r in records if r.id in self._records}
        await super().add(records)
        return known


@caught_by("test_one_conflict_does_not_keep_the_others_out")
class AddStopsAtAConflict(MemoryStore):
    """What stands behind a conflict is not added."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        for record in records:
            if taken := await super().add([record]):
                return taken
        return set()


@caught_by("test_of_two_concurrent_adds_of_one_id_one_is_a_conflict")
class AddRaces(MemoryStore):
    """Whether an id is free is asked before, and not while it is written."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken = {r.id for r in records if r.id in self._records and self._records[r.id].birth != r.birth}
        await asyncio.sleep(0)
        self._insert(records, set())
        return taken


@caught_by("test_the_microseconds_of_wake_at_survive")
class AddKeepsMilliseconds(MemoryStore):
    """Instants are kept to the millisecond."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        return await super().add([replace(r, wake_at=r.wake_at and round(r.wake_at, 3)) for r in records])


@caught_by("test_body_and_cursor_are_kept_byte_for_byte")
class AddEndsABodyAtItsFirstNul(MemoryStore):
    """Bytes are kept as text in C."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        return await super().add([replace(r, body=r.body.partition(b"\0")[0]) for r in records])


@caught_by("test_body_and_cursor_may_have_a_mebibyte")
class AddKeepsShortBodies(MemoryStore):
    """A body is cut at 64 KiB."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        return await super().add([replace(r, body=r.body[:65_535]) for r in records])


@caught_by("test_ten_thousand_records_are_added_at_once")
class AddIsCut(MemoryStore):
    """A batch has no more than 1,000 records."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        return await super().add(records[:1_000])


class _LikeIds(MemoryStore):
    """Ids are stored in another form than they were given in."""

    def form(self, id: str) -> str:
        return id

    async def add(self, records: Sequence[Record]) -> set[str]:
        return await super().add([replace(r, id=self.form(r.id)) for r in records])

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        found = await super().get([self.form(id) for id in ids])
        return {id: found[self.form(id)] for id in ids if self.form(id) in found}


@caught_by("test_ids_of_any_characters_are_told_apart")
class IdsIgnoreCase(_LikeIds):
    """A collation that ignores case."""

    def form(self, id: str) -> str:
        return id.casefold()


@caught_by("test_ids_of_any_characters_are_told_apart")
class IdsIgnoreTrailingSpaces(_LikeIds):
    """A collation that pads."""

    def form(self, id: str) -> str:
        return id.rstrip(" ")


@caught_by("test_an_id_may_have_255_characters")
class IdsAreCut(_LikeIds):
    """255 bytes, and not characters."""

    def form(self, id: str) -> str:
        return id.encode()[:255].decode(errors="ignore")


@caught_by("test_get_gives_only_what_exists")
class GetRaises(MemoryStore):
    """A missing id is an error."""

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        return {id: self._records[id] for id in ids}


# -- page --------------------------------------------------------------------------------------------------------------


@caught_by("test_pages_continue_strictly_behind_the_last_record")
class PageWithoutKeyset(MemoryStore):
    """Every page is the first."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await super().page(where, limit)


@caught_by("test_pages_continue_strictly_behind_the_last_record")
class PageGoesByTimeAlone(MemoryStore):
    """What shares its wake_at with the last record is left out."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await super().page(where, limit, after and replace(after, id="\U0010ffff"))


@caught_by("test_a_page_continues_behind_a_record_that_was_removed")
class PageNeedsItsLastRecord(MemoryStore):
    """A page behind a record that is gone begins anew."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await super().page(where, limit, after if after and after.id in self._records else None)


@caught_by("test_a_page_is_ordered_by_wake_at_then_id_with_never_last")
class PagePutsNeverFirst(MemoryStore):
    """NULL sorts first."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        found = await super().page(where, _BIG, after)
        return sorted(found, key=lambda r: r.wake_at or 0.0)[:limit]


@caught_by("test_a_page_has_no_more_than_its_limit")
class PageIgnoresItsLimit(MemoryStore):
    """A page is everything."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await super().page(where, _BIG, after)


@caught_by("test_a_page_shows_whole_records_held_or_not")
class PageHidesHeldRecords(MemoryStore):
    """A page shows what can be claimed."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return [r for r in await super().page(where, limit, after) if r.holder is None]


@caught_by("test_a_page_misses_nobody_while_leases_are_renewed")
class PageIsReadInPieces(MemoryStore):
    """A page is read record by record, and one that was moved meanwhile is not where it was."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        found = await super().page(where, limit, after)
        await asyncio.sleep(0)
        return [r for r in found if (now := self._records.get(r.id)) is None or now.wake_at == r.wake_at]


@caught_by("test_a_record_that_was_moved_often_is_claimed_at_its_last_time")
class MovedRecordsKeepATime(MemoryStore):
    """The index keeps one former time of a record that was moved more than twice."""

    async def update(self, update: Update) -> Record | None:
        record = await super().update(update)
        if record is not None and record.version > 3 and record.holder is None and record.wake_at is not None:
            early = self._records[record.id] = replace(record, wake_at=record.wake_at - 20)
            self._push(early.queue, early.priority, record.wake_at - 20, early.id)
        return record


@caught_by("test_an_id_prefix_is_taken_literally")
class PrefixIsAPattern(MemoryStore):
    """LIKE or GLOB without escapes."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        if where.id_prefix is None:
            return await super().page(where, limit, after)
        found = await super().page(replace(where, id_prefix=None), _BIG, after)
        return [r for r in found if fnmatch.fnmatchcase(r.id, f"{where.id_prefix}*")][:limit]


@caught_by("test_an_empty_hold_means_records_without_one")
class EmptyHoldIsNoFilter(MemoryStore):
    """An empty hold is taken for a filter that is not set."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await super().page(replace(where, hold=where.hold or None), limit, after)


@caught_by("test_filters_that_are_set_must_all_match")
class OneFilterCounts(MemoryStore):
    """The first filter that is set hides the others."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        where = Filter(queue=where.queue) if where.queue is not None else where
        return await super().page(where, limit, after)


@caught_by("test_pages_are_filtered_by_task")
class TaskIsAPrefix(MemoryStore):
    """A task is found by how its name begins."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        found = await super().page(replace(where, task=None), _BIG, after)
        return [r for r in found if r.task.startswith(where.task or "")][:limit]


# -- update ------------------------------------------------------------------------------------------------------------


class _Update(MemoryStore):
    """An update is followed by another write of the record."""

    async def update(self, update: Update) -> Record | None:
        before = self._records.get(update.id)
        after = await super().update(update)
        if before is None or after is None:
            return after
        after = self._records[after.id] = self.rewritten(before, after, update)
        return after

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return after


@caught_by("test_an_update_of_another_version_is_refused")
class UpdateIgnoresTheVersion(MemoryStore):
    """The last update wins."""

    async def update(self, update: Update) -> Record | None:
        record = self._records.get(update.id)
        return await super().update(update if record is None else replace(update, version=record.version))


@caught_by("test_of_concurrent_updates_of_one_version_one_is_taken")
class UpdateRaces(MemoryStore):
    """The version is compared before, and not while it is written."""

    async def update(self, update: Update) -> Record | None:
        record = self._records.get(update.id)
        if record is None or record.version != update.version:
            return None
        await asyncio.sleep(0)
        return await super().update(replace(update, version=self._records[update.id].version))


@caught_by("test_an_update_keeps_the_prior_fence_for_the_next_claim")
class UpdateForgetsThePriorFence(_Update):
    """A lost run is run again, and nothing says why."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, prior=None) if after.holder is None else after


@caught_by("test_an_update_writes_the_body_and_raises_the_version")
class UpdateKeepsTheVersion(_Update):
    """The version is not raised."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, version=before.version)


@caught_by("test_an_update_of_a_held_record_leaves_wake_at_and_hold_to_its_holder")
class UpdateMovesHeldRecords(_Update):
    """An update ends the lease that it finds."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, wake_at=update.wake_at)


@caught_by("test_an_update_of_a_held_record_leaves_wake_at_and_hold_to_its_holder")
class UpdateHoldsHeldRecords(_Update):
    """A hold is written although the record is held."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, hold=update.hold)


@caught_by("test_a_record_whose_lease_has_expired_is_held_for_an_update_too")
class UpdateTakesExpiredForUnheld(_Update):
    """Held is taken to mean that the lease is live."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        expired = before.holder is not None and before.wake_at is not None and before.wake_at <= self._now()
        return replace(after, wake_at=update.wake_at, hold=update.hold) if expired else after


@caught_by("test_an_update_moves_an_unheld_record")
class UpdateMovesNothing(_Update):
    """Only the body is ever written."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(
            after, queue=before.queue, priority=before.priority, wake_at=before.wake_at, hold=before.hold
        )


@caught_by("test_an_update_writes_another_task_held_or_not")
class UpdateKeepsTheTaskOfHeldRecords(_Update):
    """A task is written only while the record is unheld."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, task=before.task) if before.holder else after


@caught_by("test_an_update_leaves_progress_alone")
class UpdateResetsTheCursor(_Update):
    """A new body begins anew."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, cursor=b"")


@caught_by("test_an_update_in_mid_run_makes_the_settlement_stale")
class UpdateRaisesTheFence(_Update):
    """An update takes the record from its holder by the fence."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, fence=before.fence + 1)


@caught_by("test_a_revoke_takes_the_record_from_its_holder")
class RevokeLeavesTheHolder(_Update):
    """A revoke moves the record, and does not take it."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, holder=before.holder)


@caught_by("test_a_revoked_record_is_due_now")
class RevokeTakesTheGivenTime(_Update):
    """What was revoked is due as the update says."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, wake_at=update.wake_at)


@caught_by("test_a_revoke_writes_what_a_held_record_would_refuse")
class RevokeWritesOnlyTheBody(_Update):
    """The lane and the hold stay as they are."""

    def rewritten(self, before: Record, after: Record, update: Update) -> Record:
        return replace(after, queue=before.queue, priority=before.priority, hold=before.hold)


# -- remove ------------------------------------------------------------------------------------------------------------


@caught_by("test_a_held_record_can_be_removed_and_its_holder_finds_out")
class RemoveSparesHeldRecords(MemoryStore):
    """What is held stays."""

    async def remove(self, ids: Sequence[str]) -> set[str]:
        return await super().remove(
            [id for id in ids if id not in self._records or not self._records[id].holder]
        )


@caught_by("test_remove_returns_what_it_found")
class RemoveReturnsWhatWasAsked(MemoryStore):
    """A missing id is told to be removed."""

    async def remove(self, ids: Sequence[str]) -> set[str]:
        await super().remove(ids)
        return set(ids)


@caught_by("test_fences_never_fall_across_remove_and_add")
class FencesLiveInTheRecord(MemoryStore):
    """A fence goes with its record."""

    async def remove(self, ids: Sequence[str]) -> set[str]:
        found = await super().remove(ids)
        if not self._records:
            self._fence = 0
        return found


@caught_by("test_a_ghost_of_a_removed_job_cannot_settle_or_renew_its_successor")
class ReAddedJobsAreHeldByTheGhost(MemoryStore):
    """A re-added record takes up where the removed one was."""

    def __init__(self) -> None:
        super().__init__()
        self._removed: dict[str, Record] = {}

    async def remove(self, ids: Sequence[str]) -> set[str]:
        self._removed |= await self.get(ids)
        return await super().remove(ids)

    async def add(self, records: Sequence[Record]) -> set[str]:
        ghosts = {r.id: self._removed.get(r.id, r) for r in records}
        return await super().add(
            [replace(r, fence=ghosts[r.id].fence, holder=ghosts[r.id].holder) for r in records]
        )
