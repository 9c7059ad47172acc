"""Jobs and histories that have lived in another store, and are brought into this one."""

from __future__ import annotations

from msgspec.structs import replace

from asyncsched.contract import Record, Settlement
from asyncsched.testing._contract.trial import EVERYTHING, LEASE_S, NOW, QUEUE, Trial, entry, job, settlement

__all__ = ["MovedCases"]

#: The fences of what comes from elsewhere are higher than those of this store by so many.
AHEAD = 10**10


class MovedCases:
    """add of a record with a past, and entries of a job that is not there."""

    async def test_a_record_that_has_lived_elsewhere_is_added_whole(self, trial: Trial) -> None:
        fence = await _a_higher_fence(trial)
        lived = _lived(job("a", wake_at=NOW + 5, hold="paused", queue="q", priority=7), fence)
        never = _lived(job("b", wake_at=None, hold="failed"), fence)
        await trial.add(lived, never)
        assert await trial.store.get(["a", "b"]) == {"a": lived, "b": never}
        assert await trial.store.page(EVERYTHING, 10) == [lived, never]

    async def test_the_next_claim_of_a_record_that_has_lived_elsewhere_has_a_higher_fence(
        self, trial: Trial
    ) -> None:
        lived = _lived(job("a"), await _a_higher_fence(trial))
        held = await trial.held(lived)
        assert held.fence > lived.fence
        expected = replace(lived, fence=held.fence, holder=held.holder, tries=3, wake_at=NOW + LEASE_S)
        assert held == expected
        ending = settlement(held, wake_at=NOW + 60)
        assert (await trial.settle(ending), await trial.settle(ending)) == ("done", "already")

    async def test_no_later_fence_is_as_low_as_one_that_was_added(self, trial: Trial) -> None:
        """Whoever gives it, and whatever it is given to: the record itself may have been removed by then."""
        other = await trial.client()
        await trial.add(job("before"))
        [before] = (await other.claim([QUEUE], "other", 1, LEASE_S)).records
        lived = _lived(job("a", wake_at=None), await _a_higher_fence(trial))
        await trial.add(lived)
        await trial.store.remove(["a"])
        await trial.add(job("a", birth="second"))
        [after] = (await other.claim([QUEUE], "another", 1, LEASE_S)).records
        lease = (await other.acquire(["lock"], "me", LEASE_S))["lock"]
        assert before.fence < lived.fence < min(after.fence, lease.fence)

    async def test_leases_that_are_held_stay_so_when_a_higher_fence_comes(self, trial: Trial) -> None:
        [held] = (await trial.store.acquire(["lock"], "me", LEASE_S)).values()
        lived = _lived(job("a"), held.fence + AHEAD)
        await (await trial.client()).add([lived])
        assert await trial.store.extend([held], 1.0) == {"lock": held}
        await trial.store.release([held])
        [next] = (await trial.store.acquire(["lock"], "other", LEASE_S)).values()
        assert next.fence > lived.fence

    async def test_a_record_with_a_low_fence_lowers_none(self, trial: Trial) -> None:
        first = await trial.held(_lived(job("a"), await _a_higher_fence(trial)))
        await trial.add(_lived(job("b"), 7))
        second = await trial.claimed()
        assert second.fence > first.fence

    async def test_a_record_from_elsewhere_leaves_the_one_that_is_there_alone(self, trial: Trial) -> None:
        fence = await _a_higher_fence(trial)
        await trial.add(job("a"), job("b"))
        moved = [_lived(job("a"), fence), _lived(job("b", birth="another"), fence), _lived(job("c"), fence)]
        assert await trial.store.add(moved) == {"b"}
        assert await trial.store.get(["a", "b", "c"]) == {"a": job("a"), "b": job("b"), "c": moved[2]}

    async def test_entries_of_a_record_that_never_was_here_are_kept(self, trial: Trial) -> None:
        """The way in which a history comes from another store; repeated, it changes nothing."""
        entries = [entry("a", fence=AHEAD, at=NOW - 9), entry("b", fence=3, kind="misfire", at=NOW - 10)]
        ending = Settlement(id="a", fence=0, holder="nobody", version=0, entries=tuple(entries))
        assert await trial.store.settle([ending, ending]) == ["gone", "gone"]
        assert await trial.settle(ending) == "gone"
        assert await trial.log() == entries
        assert (await trial.store.get(["a"]), (await trial.claim()).records) == ({}, [])


async def _a_higher_fence(trial: Trial) -> int:
    """A fence that this store has not come to, and would not for long by itself."""
    lease = (await trial.store.acquire(["now"], "here", LEASE_S))["now"]
    return lease.fence + AHEAD


def _lived(record: Record, fence: int) -> Record:
    """*record* as a store gives it that has claimed, lost and settled it before."""
    return replace(record, version=9, fence=fence, settled=fence - 2, tries=2, prior=fence - 1)
