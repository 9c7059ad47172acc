"""Mutants of claim and renew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from asyncsched.clock import host_time
from asyncsched.contract import Claim, Claimed, Record, Renewal
from asyncsched.stores.memory import MemoryStore
from asyncsched.testing._mutants.table import caught_by

__all__: list[str] = []

_Heap = list[tuple[float, str]]
_Lanes = list[tuple[str, int, _Heap]]


class _Claim(MemoryStore):
    """A claim is followed by another write of each record that it took anew."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        before = self._records.copy()
        claimed = await super().claim(queues, token, limit, lease_s, ahead_s)
        for i, r in enumerate(claimed.records):
            if r is not before[r.id]:
                claimed.records[i] = self._records[r.id] = self.rewritten(before[r.id], r, lease_s)
        return claimed

    def rewritten(self, before: Record, after: Record, lease_s: float) -> Record:
        return after


@caught_by("test_each_record_is_claimed_exactly_once")
class ClaimRaces(MemoryStore):
    """What is due is read before, and not while it is taken."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        now = self._now()
        due = [
            r
            for r in self._records.values()
            if r.wake_at is not None and r.wake_at <= now and r.queue in queues
        ]
        await asyncio.sleep(0)
        self._fence += 1
        taken = [replace(r, holder=token, fence=self._fence, wake_at=now + lease_s) for r in due[:limit]]
        self._records |= {r.id: r for r in taken}
        return Claimed(taken, None, now)


@caught_by("test_a_claim_takes_no_more_than_its_limit")
class ClaimIgnoresItsLimit(MemoryStore):
    """A claim takes all that is due."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        return await super().claim(queues, token, 1_000_000, lease_s, ahead_s)


@caught_by("test_a_claim_takes_no_more_than_its_limit")
class ClaimTakesOneTooMany(MemoryStore):
    """The limit is exceeded by one."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        return await super().claim(queues, token, limit + 1, lease_s, ahead_s)


@caught_by("test_the_highest_priority_goes_first")
class LowPriorityGoesFirst(MemoryStore):
    """Lanes are walked upwards."""

    def _walk(self, queues: Sequence[str]) -> _Lanes:
        return super()._walk(queues)[::-1]


@caught_by("test_queues_are_served_in_the_order_given")
class QueuesAreServedByName(MemoryStore):
    """The order of the queues is lost."""

    def _walk(self, queues: Sequence[str]) -> _Lanes:
        return super()._walk(sorted(queues))


@caught_by("test_priority_counts_before_the_order_of_queues")
class QueuesComeBeforePriorities(MemoryStore):
    """One queue is emptied before the next."""

    def _walk(self, queues: Sequence[str]) -> _Lanes:
        return [lane for queue in queues for lane in super(QueuesComeBeforePriorities, self)._walk([queue])]


@caught_by("test_a_lane_is_ordered_by_wake_at_then_id")
class LanesAreOrderedById(MemoryStore):
    """Whatever is due is taken by id, or in whichever order it lies."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        before = self._records.copy()
        claimed = await super().claim(queues, token, 1_000, lease_s, ahead_s)
        claimed.records.sort(key=lambda r: r.id)
        for r in claimed.records[limit:]:
            self._records[r.id] = back = before[r.id]
            self._push(back.queue, back.priority, back.wake_at or 0.0, back.id)
        return claimed._replace(records=claimed.records[:limit])


@caught_by("test_one_claim_returns_its_records_in_that_order")
class ClaimReturnsAnyOrder(MemoryStore):
    """The right records, as the server happened to return them."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        claimed = await super().claim(queues, token, limit, lease_s, ahead_s)
        return claimed._replace(records=claimed.records[::-1])


@caught_by("test_only_the_asked_queues_are_claimed")
class AllQueuesAreClaimed(MemoryStore):
    """Whose queue it is does not matter."""

    def _walk(self, queues: Sequence[str]) -> _Lanes:
        return super()._walk(sorted({queue for queue, _ in self._lanes}))


@caught_by("test_queues_of_similar_names_are_kept_apart")
class QueuesIgnoreCase(MemoryStore):
    """A collation that ignores case."""

    def _walk(self, queues: Sequence[str]) -> _Lanes:
        asked = {queue.casefold() for queue in queues}
        return super()._walk([queue for queue, _ in self._lanes if queue.casefold() in asked])


@caught_by("test_a_record_without_wake_at_is_never_claimed")
class NeverMeansAtOnce(MemoryStore):
    """A wake_at of None is kept as 0."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        return await super().add([replace(r, wake_at=r.wake_at or 0.0) for r in records])


@caught_by("test_a_hold_alone_does_not_keep_a_record_from_being_claimed")
class HeldBackIsNotClaimed(_Claim):
    """A store that knows what a hold means."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        held_back = {id: r for id, r in self._records.items() if r.hold is not None}
        for id in held_back:
            del self._records[id]
        claimed = await super().claim(queues, token, limit, lease_s, ahead_s)
        self._records |= held_back
        return claimed


class _ClaimLane(MemoryStore):
    """Another idea of what is due."""

    def _claim_lane(
        self,
        taken: list[Record],
        limit: int,
        queue: str,
        priority: int,
        heap: _Heap,
        now: float,
        horizon: float,
        until: float,
        token: str,
    ) -> None:
        expired_by, due_by = self.bounds(now, horizon)
        super()._claim_lane(taken, limit, queue, priority, heap, expired_by, due_by, until, token)

    def bounds(self, now: float, horizon: float) -> tuple[float, float]:
        return now, horizon


@caught_by("test_looking_ahead_never_takes_a_live_lease")
class AheadStealsLiveLeases(_ClaimLane):
    """A lease that will have ended is taken like a job that will be due."""

    def bounds(self, now: float, horizon: float) -> tuple[float, float]:
        return horizon, horizon


@caught_by("test_looking_ahead_takes_unheld_records_early")
class AheadIsIgnored(_ClaimLane):
    """Nothing is taken early."""

    def bounds(self, now: float, horizon: float) -> tuple[float, float]:
        return now, now


@caught_by("test_looking_ahead_takes_what_stands_behind_a_live_lease")
class AheadStopsAtALiveLease(_Claim):
    """A live lease at the head of its lane hides what stands behind it."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        ahead_s = 0.0 if any(r.holder for r in self._records.values()) else ahead_s
        return await super().claim(queues, token, limit, lease_s, ahead_s)


@caught_by("test_an_expired_lease_is_claimed_under_a_higher_fence")
class LeasesNeverEnd(_ClaimLane):
    """What is held stays held."""

    def bounds(self, now: float, horizon: float) -> tuple[float, float]:
        return 0.0, horizon


@caught_by("test_a_live_lease_is_not_claimed")
class LeasesEndAtHalfTime(_Claim):
    """A lease is shorter than it was asked for."""

    def rewritten(self, before: Record, after: Record, lease_s: float) -> Record:
        until = self._now() + lease_s / 2
        self._push(after.queue, after.priority, until, after.id)
        return replace(after, wake_at=until)


@caught_by("test_one_microsecond_too_early_is_not_due")
class DueToTheMillisecond(_ClaimLane):
    """What is due within this millisecond is due."""

    def bounds(self, now: float, horizon: float) -> tuple[float, float]:
        return now, horizon + 0.001


@caught_by("test_what_is_not_due_yet_is_not_claimed")
class DueMeansPast(_ClaimLane):
    """wake_at < now, where it should be <=."""

    def bounds(self, now: float, horizon: float) -> tuple[float, float]:
        return now - 0.000001, horizon - 0.000001


@caught_by("test_an_expired_lease_is_claimed_under_a_higher_fence")
class TakeoverKeepsTheFence(_Claim):
    """Who takes over cannot be told from who was lost."""

    def rewritten(self, before: Record, after: Record, lease_s: float) -> Record:
        return replace(after, fence=after.fence if after.prior is None else after.prior)


@caught_by("test_an_expired_lease_is_taken_over_by_one_of_many")
class TakeoverRaces(MemoryStore):
    """That a lease has expired is read before, and not while it is taken."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        before = [
            r
            for r in self._records.values()
            if r.holder and r.wake_at is not None and r.wake_at <= self._now()
        ]
        await asyncio.sleep(0)
        for r in before:
            self._records[r.id] = r
            self._push(r.queue, r.priority, r.wake_at or 0.0, r.id)
        return await super().claim(queues, token, limit, lease_s, ahead_s)


@caught_by("test_a_takeover_names_the_fence_that_was_lost")
class TakeoverForgetsThePriorFence(_Claim):
    """Nobody learns that a claim was lost."""

    def rewritten(self, before: Record, after: Record, lease_s: float) -> Record:
        return replace(after, prior=None)


@caught_by("test_no_prior_fence_is_named_once_the_record_was_let_go")
class EveryClaimNamesAPriorFence(_Claim):
    """A claim that was settled is called lost."""

    def rewritten(self, before: Record, after: Record, lease_s: float) -> Record:
        return replace(after, prior=before.fence or None)


@caught_by("test_tries_count_the_claims_since_the_last_settlement")
class TriesAreNotCounted(_Claim):
    """Every try is the first."""

    def rewritten(self, before: Record, after: Record, lease_s: float) -> Record:
        return replace(after, tries=1)


@caught_by("test_a_claim_takes_what_is_due")
class LeaseBeginsWhenDue(_Claim):
    """The lease is counted from the due time."""

    def rewritten(self, before: Record, after: Record, lease_s: float) -> Record:
        return replace(after, wake_at=(before.wake_at or 0.0) + lease_s)


@caught_by("test_a_claim_tells_the_time_of_the_store")
class ClaimTellsTheTimeOfTheHost(MemoryStore):
    """The client's clock instead of the store's."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        return (await super().claim(queues, token, limit, lease_s, ahead_s))._replace(now=host_time())


# -- next_wake_at ------------------------------------------------------------------------------------------------------


@caught_by("test_next_wake_counts_the_leases_of_others")
class NextWakeIgnoresLeases(MemoryStore):
    """Nobody wakes when a lease ends."""

    def _next_wake(self, lanes: _Lanes) -> float | None:
        unheld = [r.wake_at for r in self._records.values() if r.holder is None and r.wake_at is not None]
        return min(unheld, default=None)


@caught_by("test_next_wake_ignores_a_paused_overdue_record")
class NextWakeCountsPausedRecords(MemoryStore):
    """A paused record makes the loop spin."""

    def _next_wake(self, lanes: _Lanes) -> float | None:
        return (
            self._now()
            if any(r.wake_at is None for r in self._records.values())
            else super()._next_wake(lanes)
        )


@caught_by("test_next_wake_ignores_other_queues")
class NextWakeCountsAllQueues(MemoryStore):
    """Others' jobs wake this one."""

    def _next_wake(self, lanes: _Lanes) -> float | None:
        return min((r.wake_at for r in self._records.values() if r.wake_at is not None), default=None)


@caught_by("test_next_wake_counts_what_is_due_beyond_the_limit")
class NextWakeIsInTheFuture(MemoryStore):
    """What is due already is not counted."""

    def _next_wake(self, lanes: _Lanes) -> float | None:
        now = self._now()
        return min(
            (r.wake_at for r in self._records.values() if r.wake_at is not None and r.wake_at > now),
            default=None,
        )


@caught_by("test_next_wake_is_the_earliest_of_what_is_planned")
class NextWakeIsThatOfTheFirstLane(MemoryStore):
    """Only the highest priority is looked at."""

    def _next_wake(self, lanes: _Lanes) -> float | None:
        return super()._next_wake(lanes[:1])


@caught_by("test_next_wake_is_none_if_nothing_is_planned")
class NextWakeIsAlwaysANumber(MemoryStore):
    """Nothing planned is told as now."""

    def _next_wake(self, lanes: _Lanes) -> float | None:
        return super()._next_wake(lanes) or self._now()


@caught_by("test_next_wake_follows_renewals_settlements_and_updates")
class NextWakeIsThatOfTheHeap(MemoryStore):
    """Entries of a heap that the records do not confirm are believed."""

    def _next_wake(self, lanes: _Lanes) -> float | None:
        return min((heap[0][0] for _, _, heap in lanes if heap), default=None)


@caught_by("test_next_wake_counts_the_leases_just_taken")
class NextWakeIsReadBeforeTheClaim(_Claim):
    """What the claim takes counts as still due, or not at all."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        before = self._next_wake(self._walk(queues))
        return (await super().claim(queues, token, limit, lease_s, ahead_s))._replace(next_wake_at=before)


# -- a claim repeated with its token -----------------------------------------------------------------------------------


@caught_by("test_a_repeated_claim_returns_what_its_token_holds")
class TokensAreNotRemembered(MemoryStore):
    """A lost reply costs a whole lease."""

    def _still_held(self, token: str) -> list[Record]:
        return []


@caught_by("test_a_claim_whose_reply_was_lost_costs_nothing")
class RepeatedClaimTakesOthers(TokensAreNotRemembered):
    """A repeated claim takes what is left."""


@caught_by("test_a_repeated_claim_takes_no_more_than_its_limit")
class RepeatedClaimHasTwoLimits(MemoryStore):
    """What the token holds does not count."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        return await super().claim(queues, token, limit + len(self._still_held(token)), lease_s, ahead_s)


@caught_by("test_a_repeated_claim_leaves_out_what_was_let_go")
class RepeatedClaimIsRecited(MemoryStore):
    """The first answer is given again, whatever became of it."""

    def _still_held(self, token: str) -> list[Record]:
        return list(self._claims.get(token, ()))


@caught_by("test_a_claim_repeated_after_its_lease_names_each_record_once")
class RepeatedClaimNamesExpiredTwice(MemoryStore):
    """What has expired is returned as held, and claimed anew."""

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        held = self._still_held(token)
        claimed = await super().claim(queues, token, limit, lease_s, ahead_s)
        return claimed._replace(records=[r for r in held if r not in claimed.records] + claimed.records)


@caught_by("test_a_token_returns_only_what_it_holds_itself")
class TokensAreComparedByTheirBeginning(MemoryStore):
    """A token that begins like another is taken for it."""

    def _still_held(self, token: str) -> list[Record]:
        return [r for r in self._records.values() if r.holder is not None and r.holder.startswith(token)]


# -- renew -------------------------------------------------------------------------------------------------------------


class _Renew(MemoryStore):
    """Claims are renewed one by one."""

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        versions: dict[str, int | Literal["busy", "lost"]] = {}
        for claim in claims:
            versions |= (await self.renew_one(claim, lease_s)).versions
        return Renewal(versions, self._now())

    async def renew_one(self, claim: Claim, lease_s: float) -> Renewal:
        return await super().renew([claim], lease_s)


@caught_by("test_a_renewal_never_shortens")
class RenewShortens(_Renew):
    """A shorter lease replaces a longer one."""

    async def renew_one(self, claim: Claim, lease_s: float) -> Renewal:
        renewal = await super().renew_one(claim, lease_s)
        if renewal.versions[claim.id] != "lost":
            self._records[claim.id] = replace(self._records[claim.id], wake_at=self._now() + lease_s)
        return renewal


@caught_by("test_a_renewal_moves_the_end_of_the_lease")
class RenewAddsToTheLease(_Renew):
    """The lease is counted from its last end."""

    async def renew_one(self, claim: Claim, lease_s: float) -> Renewal:
        record = self._records.get(claim.id)
        rest_s = max((record.wake_at or 0.0) - self._now(), 0.0) if record else 0.0
        return await super().renew_one(claim, rest_s + lease_s)


@caught_by("test_a_renewed_lease_is_not_claimed_at_its_first_end")
class RenewSaysSoOnly(_Renew):
    """The answer is right, and nothing is written."""

    async def renew_one(self, claim: Claim, lease_s: float) -> Renewal:
        return await super().renew_one(claim, 0.0)


@caught_by("test_a_renewal_needs_the_fence")
class RenewIgnoresTheFence(_Renew):
    """Any claim of the holder can be renewed."""

    async def renew_one(self, claim: Claim, lease_s: float) -> Renewal:
        record = self._records.get(claim.id)
        return await super().renew_one(claim._replace(fence=record.fence) if record else claim, lease_s)


@caught_by("test_a_renewal_needs_the_holder")
class RenewIgnoresTheHolder(_Renew):
    """Whoever knows the fence can renew."""

    async def renew_one(self, claim: Claim, lease_s: float) -> Renewal:
        record = self._records.get(claim.id)
        holder = record.holder if record else None
        return await super().renew_one(claim._replace(holder=holder or claim.holder), lease_s)


@caught_by("test_an_expired_lease_that_nobody_took_can_be_renewed")
class RenewRefusesExpired(_Renew):
    """A lease that ended is lost, although nobody took it."""

    async def renew_one(self, claim: Claim, lease_s: float) -> Renewal:
        record = self._records.get(claim.id)
        if record is not None and (record.wake_at or 0.0) <= self._now():
            return Renewal({claim.id: "lost"}, self._now())
        return await super().renew_one(claim, lease_s)


@caught_by("test_a_renewal_tells_the_version_so_that_an_update_is_seen")
class RenewHidesTheVersion(_Renew):
    """An update in mid-run is seen by nobody."""

    async def renew_one(self, claim: Claim, lease_s: float) -> Renewal:
        renewal = await super().renew_one(claim, lease_s)
        return renewal if renewal.versions[claim.id] == "lost" else Renewal({claim.id: 1}, renewal.now)


@caught_by("test_a_renewal_tells_the_time_of_the_store")
class RenewTellsTheTimeOfTheHost(MemoryStore):
    """The client's clock instead of the store's."""

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        return (await super().renew(claims, lease_s))._replace(now=host_time())


@caught_by("test_one_lost_claim_does_not_stop_the_renewal_of_others")
class RenewStopsAtALostClaim(MemoryStore):
    """What stands behind a lost claim is lost as well."""

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        renewal = await super().renew(claims, lease_s)
        lost = False
        for id, answer in renewal.versions.items():
            lost = lost or answer == "lost"
            renewal.versions[id] = "lost" if lost else answer
        return renewal


@caught_by("test_a_claim_of_a_removed_record_is_lost")
class RenewTrustsTheHolder(_Renew):
    """What is not there is called renewed."""

    async def renew_one(self, claim: Claim, lease_s: float) -> Renewal:
        if claim.id not in self._records:
            return Renewal({claim.id: 1}, self._now())
        return await super().renew_one(claim, lease_s)
