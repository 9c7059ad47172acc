"""Mutants of the named leases, the log, the hints and the life of a store."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from msgspec.structs import replace

from asyncsched.contract import Entry, Lease, Record, Settled, Settlement, Update
from asyncsched.errors import StoreError
from asyncsched.stores.memory import MemoryStore
from asyncsched.testing._mutants.table import caught_by

__all__: list[str] = []


@caught_by("test_a_held_lease_is_refused_to_others")
class AcquireSteals(MemoryStore):
    """A lease goes to who asks last."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        for key in keys:
            self._leases.pop(key, None)
        return await super().acquire(keys, holder, lease_s, limit)


@caught_by("test_a_free_lease_is_taken")
class AcquireTakesItsTime(MemoryStore):
    """A lease ends later than was asked for."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        return await super().acquire(keys, holder, 2 * lease_s, limit)


@caught_by("test_one_lost_lease_does_not_stop_the_others")
class ExtendStopsAtALostLease(MemoryStore):
    """What stands behind a lost lease is lost as well."""

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        held = itertools.takewhile(self._holds, leases)
        return await super().extend(list(held), lease_s)


@caught_by("test_an_acquire_whose_reply_was_lost_has_the_lease")
class AcquireRefusesItsOwn(MemoryStore):
    """A lost reply costs the lease."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        now = self._now()
        free = [key for key in keys if key not in self._leases or self._leases[key].until <= now]
        return await super().acquire(free, holder, lease_s, limit)


@caught_by("test_an_own_lease_taken_again_is_renewed_under_its_fence")
class AcquireRaisesItsOwnFence(MemoryStore):
    """A lease taken again makes its first holder a stranger."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        for key in keys:
            if key in self._leases and self._leases[key].holder == holder:
                del self._leases[key]
        return await super().acquire(keys, holder, lease_s, limit)


@caught_by("test_an_expired_lease_is_taken_under_a_higher_fence")
class ExpiredLeasesKeepTheirFence(MemoryStore):
    """Who takes over cannot be told from who was lost."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        before = self._leases.copy()
        taken = await super().acquire(keys, holder, lease_s, limit)
        kept = {key: lease._replace(fence=before.get(key, lease).fence) for key, lease in taken.items()}
        self._leases |= kept
        return kept


@caught_by("test_leases_are_taken_in_one_batch_as_far_as_they_are_free")
class AcquireTakesAllOrNothing(MemoryStore):
    """One held key keeps the others out."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        if any(key in self._leases and self._leases[key].holder != holder for key in keys):
            return {}
        return await super().acquire(keys, holder, lease_s, limit)


@caught_by("test_a_limited_acquire_takes_the_first_that_are_free_and_no_more")
class AcquireKnowsNoLimit(MemoryStore):
    """Whoever needs one of ten slots takes all ten."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        return await super().acquire(keys, holder, lease_s)


@caught_by("test_a_limited_acquire_takes_the_first_that_are_free_and_no_more")
class AcquireLimitsWhatItAnswers(MemoryStore):
    """More is taken than is told, and nobody gives it back."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        taken = await super().acquire(keys, holder, lease_s)
        return dict(itertools.islice(taken.items(), limit))


@caught_by("test_a_limited_acquire_looks_behind_what_others_hold")
class AcquireLimitsWhatItLooksAt(MemoryStore):
    """The limit counts the keys that were asked for, so that the last of ten slots is never found."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        return await super().acquire(keys[:limit], holder, lease_s)


@caught_by("test_what_the_holder_has_already_counts_towards_the_limit_and_comes_first")
class AcquireLimitsWhatIsNew(MemoryStore):
    """A repeated acquire, whose first reply was lost, takes as many again."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        now = self._now()
        own = [
            k
            for k in keys
            if k in self._leases and self._leases[k][1] == holder and self._leases[k].until > now
        ]
        new = await super().acquire([key for key in keys if key not in own], holder, lease_s, limit)
        return await super().acquire(own, holder, lease_s) | new


@caught_by("test_what_the_holder_has_already_counts_towards_the_limit_and_comes_first")
class AcquirePrefersTheFirst(MemoryStore):
    """A holder of the last slot takes the first one as well."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        now = self._now()
        others = {k for k, v in self._leases.items() if v.until > now and v.holder != holder}
        return await super().acquire([k for k in keys if k not in others][:limit], holder, lease_s)


@caught_by("test_of_many_that_compete_for_the_last_of_some_leases_one_gets_it")
class AcquireLooksBeforeItTakes(MemoryStore):
    """Two that look at once both find the last one free, and both take it."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        now = self._now()
        free = [key for key in keys if key not in self._leases or self._leases[key].until <= now]
        await asyncio.sleep(0)
        for key in free[:limit]:
            self._leases.pop(key, None)
        return await super().acquire(free, holder, lease_s, limit)


@caught_by("test_many_that_compete_for_some_leases_get_one_each")
class AcquireGivesUp(MemoryStore):
    """Who was too slow for the first that was free does not look for another."""

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        now = self._now()
        free = [key for key in sorted(keys) if key not in self._leases or self._leases[key].until <= now]
        await asyncio.sleep(0)
        return await super().acquire(free[:limit], holder, lease_s)


@caught_by("test_an_extension_never_shortens")
class ExtendShortens(MemoryStore):
    """A shorter lease replaces a longer one."""

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        until = self._now() + lease_s
        self._leases |= {lease.key: lease._replace(until=until) for lease in leases if self._holds(lease)}
        return {lease.key: self._leases[lease.key] for lease in leases if self._holds(lease)}


@caught_by("test_an_extension_moves_the_end")
class ExtendSaysSoOnly(MemoryStore):
    """The answer is right, and nothing is written."""

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        before = self._leases.copy()
        extended = await super().extend(leases, lease_s)
        self._leases = before
        return extended


@caught_by("test_an_extension_needs_the_holder_and_the_fence")
class LeasesAreHeldByTheirKey(MemoryStore):
    """Neither holder nor fence is compared."""

    def _holds(self, lease: Lease) -> bool:
        return lease.key in self._leases


@caught_by("test_an_extension_needs_the_holder_and_the_fence")
class LeasesAreHeldByTheirHolder(MemoryStore):
    """The fence is not compared."""

    def _holds(self, lease: Lease) -> bool:
        return lease.key in self._leases and self._leases[lease.key].holder == lease.holder


@caught_by("test_a_release_needs_the_holder_and_the_fence")
class LeasesAreHeldByTheirFence(MemoryStore):
    """The holder is not compared."""

    def _holds(self, lease: Lease) -> bool:
        return lease.key in self._leases and self._leases[lease.key].fence == lease.fence


@caught_by("test_a_late_release_does_not_free_the_lease_of_a_successor")
class ReleaseFreesTheKey(MemoryStore):
    """A release asks nobody."""

    async def release(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._leases.pop(lease.key, None)


@caught_by("test_a_released_lease_is_taken_under_a_higher_fence")
class LeaseFencesRestart(MemoryStore):
    """The fence goes with the lease."""

    async def release(self, leases: Sequence[Lease]) -> None:
        await super().release(leases)
        self._fence = 0 if not self._leases else self._fence


@caught_by("test_a_lease_that_ended_long_ago_is_taken_under_a_higher_fence")
class PruneForgetsTheFences(MemoryStore):
    """With the last lease goes what the fences were."""

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        now = self._now()
        self._leases = {key: lease for key, lease in self._leases.items() if lease.until > now}
        self._fence = self._fence if self._leases else 0
        return await super().prune(older_than_s, per_job, limit)


@caught_by("test_pruning_leaves_leases_that_are_held_alone")
class PruneEndsLeases(MemoryStore):
    """Whoever holds a lock for long loses it to the sweep."""

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        self._leases.clear()
        return await super().prune(older_than_s, per_job, limit)


# -- the log -----------------------------------------------------------------------------------------------------------


class _Runs(MemoryStore):
    """Another way to read the log."""

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        return self.read(job_id, kinds, limit, before)

    def read(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        return self._log.newest(job_id, kinds, limit, before)


@caught_by("test_the_log_is_read_newest_first")
class LogIsReadOldestFirst(_Runs):
    """The oldest stands first."""

    def read(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        return super().read(job_id, kinds, 1_000, before)[::-1][:limit]


@caught_by("test_entries_of_one_instant_stand_in_the_reverse_order_of_their_keys")
class LogIsOrderedByTimeAlone(_Runs):
    """Entries of one instant stand in any order."""

    def read(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        return sorted(super().read(job_id, kinds, limit, before), key=lambda e: (-e.at, e.job_id, e.fence))


@caught_by("test_the_log_can_be_read_page_by_page")
class LogHasOnePage(_Runs):
    """Every page is the first."""

    def read(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        return super().read(job_id, kinds, limit, None)


@caught_by("test_the_log_can_be_read_page_by_page")
class LogPagesGoByTimeAlone(_Runs):
    """What shares its instant with the last entry is left out."""

    def read(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        return super().read(job_id, kinds, limit, before and replace(before, job_id=""))


@caught_by("test_the_log_of_one_job")
class LogOfAllJobs(_Runs):
    """The log of one job is the whole."""

    def read(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        return super().read(None, kinds, limit, before)


@caught_by("test_the_log_of_some_kinds")
class LogOfAllKinds(_Runs):
    """Kinds are not compared."""

    def read(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        return super().read(job_id, None, limit, before)


@caught_by("test_the_limit_counts_what_matches")
class LogIsLimitedBeforeItIsFiltered(_Runs):
    """The limit counts what was looked at."""

    def read(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        found = super().read(job_id, None, limit, before)
        return [e for e in found if kinds is None or e.kind in kinds]


@caught_by("test_the_log_outlives_its_job")
class RemoveTakesTheLog(MemoryStore):
    """History goes with the job."""

    async def remove(self, ids: Sequence[str]) -> set[str]:
        for id in ids:
            self._log._drop(self._log.newest(id, None, 1_000, None))
        return await super().remove(ids)


@caught_by("test_old_entries_are_pruned")
class PruneTakesNothing(MemoryStore):
    """History grows without bound."""

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        return 0


@caught_by("test_pruning_is_bounded")
class PruneIsUnbounded(MemoryStore):
    """One call takes all, and holds up the claims."""

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        return await super().prune(older_than_s, per_job, 1_000_000)


@caught_by("test_both_bounds_prune_together")
class PruneKeepsOneBound(MemoryStore):
    """Where an age is given, the count is not looked at."""

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        return await super().prune(older_than_s, per_job if older_than_s is None else None, limit)


@caught_by("test_entries_beyond_the_newest_of_each_job_are_pruned")
class PruneCountsAllJobs(MemoryStore):
    """So many entries are kept of all jobs together."""

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        kept = 1_000 if per_job is None else per_job
        return self._log._drop(self._log.newest(None, None, 1_000, None)[kept:][:limit])


@caught_by("test_entries_beyond_the_newest_of_each_job_are_pruned")
class PruneTakesTheNewest(MemoryStore):
    """The wrong end goes."""

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        return sum(
            self._log._drop(self._log.newest(id, None, 1_000, None)[: -(per_job or 1)])
            for id in {e.job_id for e in self._log.newest(None, None, 1_000, None)}
        )


# -- hints -------------------------------------------------------------------------------------------------------------


class _Quiet(MemoryStore):
    """Some writes give no hint."""

    _silent = False

    def _hint(self, wake_at: float | None) -> None:
        if not self._silent:
            super()._hint(wake_at)


@caught_by("test_an_add_gives_a_hint")
class AddGivesNoHint(_Quiet):
    """Who sleeps does not hear of a new job."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        self._silent = True
        return await super().add(records)


@caught_by("test_an_update_gives_a_hint")
class UpdateGivesNoHint(_Quiet):
    """Who sleeps does not hear that a job was moved."""

    async def update(self, update: Update) -> Record | None:
        self._silent = True
        return await super().update(update)


@caught_by("test_an_update_of_a_held_record_gives_a_hint_without_a_time")
class HeldUpdatesNameATime(MemoryStore):
    """The holder takes it for news of a job that is due later, and does not look at its own."""

    async def update(self, update: Update) -> Record | None:
        record = await super().update(update)
        if record is not None and record.wake_at is not None:
            self._hint(record.wake_at)
        return record

    def _hint(self, wake_at: float | None) -> None:
        if wake_at is not None:
            super()._hint(wake_at)


@caught_by("test_a_hint_comes_from_another_clients_update_of_a_held_record")
class HeldUpdatesGiveNoHint(MemoryStore):
    """The holder of a run that is to end hears of it when it renews."""

    def _hint(self, wake_at: float | None) -> None:
        if wake_at is not None:
            super()._hint(wake_at)


@caught_by("test_a_settlement_gives_a_hint")
class SettleGivesNoHint(_Quiet):
    """Who sleeps does not hear when a job is due again."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        self._silent = True
        return await super().settle(settlements)


@caught_by("test_a_spawn_gives_a_hint")
class SpawnGivesNoHint(MemoryStore):
    """Who sleeps does not hear of children."""

    def _insert(self, records: Iterable[Record], taken: set[str]) -> float | None:
        earliest = super()._insert(records, taken)
        return None if isinstance(records, tuple) and records[0].id == "child" else earliest


@caught_by("test_unparking_gives_a_hint")
class UnparkGivesNoHint(MemoryStore):
    """Who sleeps does not hear that a slot is free."""

    def _unpark(self, hold: str, limit: int) -> float | None:
        super()._unpark(hold, limit)
        return None


@caught_by("test_an_add_gives_a_hint")
class HintsNameALaterTime(MemoryStore):
    """Who trusts the hint sleeps too long."""

    def _hint(self, wake_at: float | None) -> None:
        super()._hint(None if wake_at is None else wake_at + 60)


@caught_by("test_a_listener_that_was_ended_hears_no_more")
class ListenersNeverEnd(MemoryStore):
    """What ends a listener does nothing."""

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        super().on_hint(callback)
        return lambda: None


@caught_by("test_a_listener_that_ends_itself_does_not_silence_the_next")
class EndingIsHeardByTheNext(MemoryStore):
    """Listeners are walked while they change."""

    def _hint(self, wake_at: float | None) -> None:
        for listener in self._listeners:
            listener(wake_at)


@caught_by("test_a_hint_is_given_in_the_loop_that_opened_the_store")
class HintsComeFromAThread(MemoryStore):
    """A listener is called wherever the driver listens."""

    def _hint(self, wake_at: float | None) -> None:
        thread = threading.Thread(target=super()._hint, args=[wake_at])
        thread.start()
        thread.join()


# -- the life of a store -----------------------------------------------------------------------------------------------


@caught_by("test_a_store_may_be_closed_twice")
class SecondCloseFails(MemoryStore):
    """A store that is closed cannot be closed."""

    _open = False

    async def open(self, now: Callable[[], float] | None = None) -> None:
        await super().open(now)
        self._open = True

    async def close(self) -> None:
        if not self._open:
            raise StoreError("the store is closed already")
        self._open = False
        await super().close()


@caught_by("test_a_closed_store_can_be_opened_again")
class ClosedForGood(MemoryStore):
    """A store that was closed stays closed."""

    _closed = False

    async def close(self) -> None:
        self._closed = True
        await super().close()

    async def add(self, records: Sequence[Record]) -> set[str]:
        if self._closed:
            raise StoreError("the store was closed")
        return await super().add(records)


@caught_by("test_namespaces_are_apart")
class NamespacesAreOne(MemoryStore):
    """Whatever the namespace, the jobs are the same."""

    _only: Self | None = None

    def __new__(cls) -> Self:
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __init__(self) -> None:
        if not hasattr(self, "_records"):
            super().__init__()


@caught_by("test_opening_another_client_keeps_what_is_there")
class OpenBeginsAnew(MemoryStore):
    """Each client that opens the store empties it."""

    async def open(self, now: Callable[[], float] | None = None) -> None:
        await super().open(now)
        self._records.clear()


@caught_by("test_a_clone_works_in_an_event_loop_of_its_own")
class CloneIsAnotherStore(MemoryStore):
    """A clone that does not reach the same records."""

    def clone(self) -> MemoryStore:  # type: ignore[override]  # The model has no clone.
        return MemoryStore()


class Durable(MemoryStore):
    """No mutant: it says of itself that it is durable, and as long as the same object is opened again, it is."""

    capabilities = replace(MemoryStore.capabilities, durable=True)


@caught_by("test_records_leases_and_the_log_are_durable")
class CloseForgetsTheLeases(Durable):
    """Named leases end with the client."""

    async def close(self) -> None:
        await super().close()
        self._leases.clear()


@caught_by("test_a_claim_is_repeated_across_a_reopen")
class CloseForgetsTheTokens(Durable):
    """What a token holds is known to the client only."""

    async def close(self) -> None:
        await super().close()
        self._claims.clear()


@caught_by("test_fences_never_fall_across_close_and_reopen")
class CloseForgetsTheFences(Durable):
    """The next fence is one above those that are stored."""

    async def close(self) -> None:
        await super().close()
        self._fence = max((r.fence for r in self._records.values()), default=0)


@caught_by("test_a_cancelled_call_leaves_the_store_usable")
class CancelledSettlementsHang(MemoryStore):
    """A settlement that was cancelled leaves the store locked."""

    _busy = False

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        if self._busy:
            raise StoreError("another settlement is under way")
        self._busy = True
        await asyncio.sleep(0)
        self._busy = False
        return await super().settle(settlements)
