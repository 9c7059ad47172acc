"""Mutants of settle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from asyncsched.contract import Claim, Entry, Record, Renewal, Settled, Settlement
from asyncsched.errors import StoreError
from asyncsched.stores.memory import MemoryStore
from asyncsched.testing._mutants.table import caught_by

__all__: list[str] = []


class _Settle(MemoryStore):
    """Settlements are written one by one."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return [await self.settle_one(s, self._records.get(s.id)) for s in settlements]

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        [answer] = await super().settle([s])
        return answer

    def rewrite(self, id: str, **changes: object) -> None:
        if id in self._records:
            self._records[id] = r = replace(self._records[id], **changes)
            if r.wake_at is not None:
                self._push(r.queue, r.priority, r.wake_at, r.id)


# -- who may settle ----------------------------------------------------------------------------------------------------


@caught_by("test_a_settlement_needs_the_fence")
class SettleIgnoresTheFence(_Settle):
    """The holder's name is enough."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        return await super().settle_one(replace(s, fence=record.fence) if record else s, record)


@caught_by("test_a_settlement_needs_the_holder")
class SettleIgnoresTheHolder(_Settle):
    """Whoever knows the fence can settle."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        return await super().settle_one(
            replace(s, holder=record.holder) if record and record.holder else s, record
        )


@caught_by("test_a_zombie_cannot_settle")
class SettleIgnoresBoth(_Settle):
    """Completion writes that never check who holds the job."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        if record is not None and record.holder is not None:
            s = replace(s, holder=record.holder, fence=record.fence)
        return await super().settle_one(s, record)


@caught_by("test_a_revoked_claim_cannot_settle")
class RevokedClaimsCanSettle(_Settle):
    """A record that nobody holds can be settled by its last fence."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        if record is not None and record.holder is None and record.settled != s.fence:
            self.rewrite(s.id, holder=s.holder)
        return await super().settle_one(s, record)


@caught_by("test_an_expired_lease_alone_refuses_no_settlement")
class SettleRefusesExpired(_Settle):
    """A lease that ended cannot be settled, although nobody took it."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        if record is not None and record.wake_at is not None and record.wake_at <= self._now():
            return "lost"
        return await super().settle_one(s, record)


@caught_by("test_a_late_renewal_cannot_move_a_settled_job")
class SettleKeepsTheHolder(_Settle):
    """A settlement does not let go."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        self.rewrite(s.id, holder=s.holder)
        return answer


@caught_by("test_a_settlement_repeated_is_already_done")
class SettleForgetsWhatWasSettled(_Settle):
    """The fence that was settled is not written down."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        self.rewrite(s.id, settled=0)
        return answer


@caught_by("test_a_zombie_cannot_settle_after_its_successor_has")
class AlreadyMeansAnyLowerFence(_Settle):
    """A lower fence than the settled one counts as settled."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        return "already" if answer == "lost" and record and s.fence < record.settled else answer


@caught_by("test_of_two_settlements_of_one_claim_in_one_batch_the_first_counts")
class TheLastOfABatchCounts(MemoryStore):
    """A batch is gathered by id."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers = await super().settle(settlements[::-1])
        return answers[::-1]


@caught_by("test_answers_stand_in_the_order_given")
class AnswersAreGrouped(MemoryStore):
    """Answers stand in the order in which they were found."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return sorted(await super().settle(settlements))


@caught_by("test_one_refused_settlement_does_not_stop_the_others")
class BatchStopsAtARefusal(_Settle):
    """What stands behind a lost claim is lost as well."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: list[Settled] = []
        for s in settlements:
            answers.append("lost" if "lost" in answers else await self.settle_one(s, self._records.get(s.id)))
        return answers


@caught_by("test_a_thousand_claims_are_settled_at_once")
class BatchIsCut(MemoryStore):
    """A batch has no more than 500 items."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await super().settle(settlements[:500])


@caught_by("test_batches_in_opposite_orders_do_not_block_each_other")
class BatchesBlockEachOther(_Settle):
    """Each item is locked until the end of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self._locked: set[str] = set()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        own: set[str] = set()
        for s in settlements:
            if s.id in self._locked - own:
                raise StoreError("deadlock")
            own.add(s.id)
            self._locked.add(s.id)
            await asyncio.sleep(0)
        self._locked -= own
        return await super().settle(settlements)


# -- what is written ---------------------------------------------------------------------------------------------------


@caught_by("test_a_settlement_moves_the_record_and_lets_go")
class TriesAreNeverReset(_Settle):
    """Claims are counted for ever."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if not s.hand_back and record:
            self.rewrite(s.id, tries=record.tries)
        return answer


@caught_by("test_a_settlement_can_clear_the_hold")
class HoldsAreNeverCleared(_Settle):
    """A hold of None is taken for no change."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        return await super().settle_one(replace(s, hold=s.hold or record.hold) if record else s, record)


@caught_by("test_a_settlement_can_leave_the_record_without_wake_at")
class NeverMeansNow(_Settle):
    """What has no next time is due now."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        return await super().settle_one(replace(s, wake_at=s.wake_at or self._now()), record)


@caught_by("test_a_settlement_can_delete_the_record")
class DeleteLeavesATombstone(_Settle):
    """What was deleted is still found."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        return await super().settle_one(replace(s, delete=False, wake_at=None) if s.delete else s, record)


@caught_by("test_a_settled_record_is_due_at_its_new_time")
class SettledRecordsAreForgotten(MemoryStore):
    """A settled record is put into no heap."""

    def _release(self, r: Record, s: Settlement, wake_at: float | None, hold: str | None) -> None:
        super()._release(r, s, wake_at, hold)
        self._lanes[r.queue, r.priority].clear()


# -- stale -------------------------------------------------------------------------------------------------------------


@caught_by("test_an_update_in_mid_run_makes_the_settlement_stale")
class NothingIsStale(_Settle):
    """The version is not compared."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        return await super().settle_one(replace(s, version=record.version) if record else s, record)


@caught_by("test_a_renewal_after_an_update_leaves_the_settlement_stale")
class ARenewalHidesTheUpdate(_Settle):
    """Who has renewed a claim is believed to know the record as it is."""

    renewed: frozenset[str] = frozenset()

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        self.renewed = frozenset(claim.id for claim in claims)
        return await super().renew(claims, lease_s)

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        if record is not None and s.id in self.renewed:
            s = replace(s, version=record.version)
        return await super().settle_one(s, record)


@caught_by("test_a_stale_settlement_does_not_move_the_record")
class StaleMoves(_Settle):
    """What was planned under the old body is carried out."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if answer == "stale":
            self.rewrite(s.id, wake_at=s.wake_at)
        return answer


@caught_by("test_a_stale_settlement_does_not_delete_the_record")
class StaleDeletes(_Settle):
    """An updated job is deleted by the run that did not know of the update."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if answer == "stale" and s.delete:
            del self._records[s.id]
        return answer


@caught_by("test_an_update_in_mid_run_makes_the_settlement_stale")
class StaleDropsTheCursor(_Settle):
    """An update in mid-run loses the progress."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if answer == "stale" and record:
            self.rewrite(s.id, cursor=record.cursor)
        return answer


@caught_by("test_an_update_in_mid_run_makes_the_settlement_stale")
class StaleWritesTheHold(_Settle):
    """The hold of the old plan is written."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if answer == "stale":
            self.rewrite(s.id, hold=s.hold)
        return answer


@caught_by("test_a_stale_settlement_repeated_is_already_done")
class StaleStaysStale(_Settle):
    """A stale settlement is not written down as settled."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        return "stale" if answer == "already" and record and s.version != record.version else answer


@caught_by("test_a_stale_settlement_keeps_its_entries_and_its_children")
class StaleWritesNoEntries(_Settle):
    """An update in mid-run loses the run."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        stale = record is not None and record.version != s.version
        return await super().settle_one(replace(s, entries=()) if stale else s, record)


@caught_by("test_a_stale_settlement_keeps_its_entries_and_its_children")
class StaleSpawnsNothing(_Settle):
    """An update in mid-run breaks the chain."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        stale = record is not None and record.version != s.version
        return await super().settle_one(replace(s, spawn=()) if stale else s, record)


# -- lost, already and gone --------------------------------------------------------------------------------------------


@caught_by("test_what_is_gone_keeps_its_entries")
class GoneDropsEntries(_Settle):
    """The last run of a removed job is in no log."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        return await super().settle_one(s if record else replace(s, entries=()), record)


@caught_by("test_a_delete_repeated_does_not_spawn_again")
class GoneSpawns(_Settle):
    """A delete that is repeated starts its children again."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if answer == "gone":
            self._insert(s.spawn, set())
        return answer


@caught_by("test_a_lost_settlement_writes_nothing")
class LostWritesEntries(_Settle):
    """A zombie's run is in the log."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if answer == "lost":
            self._log.extend(s.entries)
        return answer


@caught_by("test_a_lost_settlement_writes_nothing")
class LostSpawns(_Settle):
    """A zombie has children."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        self._insert(s.spawn, set())
        return await super().settle_one(s, record)


@caught_by("test_a_lost_settlement_writes_nothing")
class LostUnparks(_Settle):
    """A zombie frees a slot that is not its own."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        if s.unpark is not None:
            self._unpark(*s.unpark)
        return await super().settle_one(s, record)


@caught_by("test_a_settlement_repeated_does_not_spawn_again")
class AlreadySpawns(_Settle):
    """A repeated settlement starts its children again."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if answer == "already":
            self._insert(s.spawn, set())
        return answer


@caught_by("test_an_entry_is_written_once")
class EntriesAreNotUnique(MemoryStore):
    """A repeated run is in the log twice."""

    def __init__(self) -> None:
        super().__init__()
        self._written = 0

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await super().settle(
            [replace(s, entries=tuple(map(self._numbered, s.entries))) for s in settlements]
        )

    def _numbered(self, entry: Entry) -> Entry:
        self._written += 1
        return replace(entry, fire_at=entry.fire_at + self._written)


@caught_by("test_entries_that_differ_in_any_part_of_the_key_are_all_kept")
class EntriesAreUniqueByFence(MemoryStore):
    """One claim has one entry."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await super().settle(
            [
                replace(s, entries=tuple({(e.job_id, e.fence): e for e in s.entries}.values()))
                for s in settlements
            ]
        )


@caught_by("test_entries_are_written_with_the_settlement")
class EntriesAreDropped(_Settle):
    """A delete leaves no trace."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        return await super().settle_one(replace(s, entries=()) if s.delete else s, record)


# -- hand_back ---------------------------------------------------------------------------------------------------------


@caught_by("test_a_hand_back_keeps_progress_and_undoes_the_try")
class HandBackCountsTheTry(_Settle):
    """What an instance did not know how to run is quarantined in the end."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if s.hand_back and record:
            self.rewrite(s.id, tries=record.tries)
        return answer


@caught_by("test_a_hand_back_keeps_progress_and_undoes_the_try")
class HandBackWritesTheCursor(_Settle):
    """Progress is written by who made none."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if s.hand_back:
            self.rewrite(s.id, cursor=s.cursor)
        return answer


@caught_by("test_a_hand_back_does_not_count_as_a_settlement")
class HandBackSettles(_Settle):
    """A hand-back is written down as settled."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if s.hand_back:
            self.rewrite(s.id, settled=s.fence)
        return answer


@caught_by("test_a_hand_back_keeps_the_count_of_lost_claims")
class HandBackForgetsLostClaims(_Settle):
    """A poisonous job is never found out."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if s.hand_back:
            self.rewrite(s.id, tries=0)
        return answer


@caught_by("test_a_hand_back_keeps_the_prior_fence_for_the_next_claim")
class HandBackForgetsThePriorFence(_Settle):
    """A lost run is run again, and nothing says why."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        answer = await super().settle_one(s, record)
        if s.hand_back:
            self.rewrite(s.id, prior=None)
        return answer


@caught_by("test_what_was_handed_back_is_due_at_the_given_time")
class HandBackIsDueNow(_Settle):
    """What was handed back is claimed again at once."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        return await super().settle_one(replace(s, wake_at=self._now()) if s.hand_back else s, record)


# -- spawn and unpark --------------------------------------------------------------------------------------------------


@caught_by("test_a_spawn_leaves_existing_records_alone")
class SpawnOverwrites(_Settle):
    """An existing record is replaced."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        for child in s.spawn:
            self._records.pop(child.id, None)
        return await super().settle_one(s, record)


@caught_by("test_a_spawn_leaves_existing_records_alone")
class SpawnStopsAtAConflict(_Settle):
    """One existing id keeps all children out."""

    async def settle_one(self, s: Settlement, record: Record | None) -> Settled:
        taken = any(child.id in self._records for child in s.spawn)
        return await super().settle_one(replace(s, spawn=()) if taken else s, record)


@caught_by("test_spawned_records_are_added_and_due")
class SpawnIsForgotten(MemoryStore):
    """Children are stored, and put into no heap."""

    def _insert(self, records: Iterable[Record], taken: set[str]) -> float | None:
        if not isinstance(records, tuple) or any("#" not in r.id for r in records):
            return super()._insert(records, taken)
        self._records |= {r.id: r for r in records}
        return None


@caught_by("test_the_earliest_parked_records_become_due")
class UnparkIgnoresItsLimit(MemoryStore):
    """All that wait for a slot run for one that is free."""

    def _unpark(self, hold: str, limit: int) -> float | None:
        return super()._unpark(hold, 1_000)


@caught_by("test_the_earliest_parked_records_become_due")
class UnparkTakesTheLatest(MemoryStore):
    """The last comes first."""

    def _unpark(self, hold: str, limit: int) -> float | None:
        now = self._now()
        parked = sorted((r for r in self._records.values() if r.hold == hold), key=lambda r: r.wake_at or 0.0)
        for r in parked[-limit:]:
            self._records[r.id] = replace(r, hold=None, wake_at=now)
            self._push(r.queue, r.priority, now, r.id)
        return now


@caught_by("test_unparking_changes_only_hold_and_wake_at")
class UnparkKeepsTheHold(MemoryStore):
    """What is due is still said to wait."""

    def _unpark(self, hold: str, limit: int) -> float | None:
        before = {id for id, r in self._records.items() if r.hold == hold}
        due = super()._unpark(hold, limit)
        self._records |= {id: replace(self._records[id], hold=hold) for id in before}
        return due


@caught_by("test_unparking_leaves_held_records_alone")
class UnparkTakesHeldRecords(MemoryStore):
    """A run under way is made due again."""

    def _unpark(self, hold: str, limit: int) -> float | None:
        now = self._now()
        for r in [r for r in self._records.values() if r.hold == hold][:limit]:
            self._records[r.id] = replace(r, hold=None, wake_at=now)
        return now


@caught_by("test_unparking_leaves_other_holds_alone")
class UnparkTakesAnyHold(MemoryStore):
    """A free slot ends a pause."""

    def _unpark(self, hold: str, limit: int) -> float | None:
        holds = {r.hold for r in self._records.values() if r.hold is not None}
        return min(
            (super(UnparkTakesAnyHold, self)._unpark(other, limit) or 0.0 for other in holds), default=None
        )
