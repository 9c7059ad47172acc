"""renew: a lease is extended, never shortened, and its loss is told."""

from __future__ import annotations

from msgspec.structs import replace

from asyncsched.contract import Claim
from asyncsched.testing._contract.trial import (
    LEASE_S,
    NOW,
    QUEUE,
    Trial,
    claim_of,
    job,
    settlement,
    unlike,
    update_of,
)

__all__ = ["RenewalCases"]


class RenewalCases:
    """renew."""

    async def test_a_renewal_moves_the_end_of_the_lease(self, trial: Trial) -> None:
        held = await trial.held()
        trial.now += 10
        assert await trial.renew(held, 30) == held.version
        assert await trial.read("a") == replace(held, wake_at=NOW + 40)

    async def test_a_renewed_lease_is_not_claimed_at_its_first_end(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.renew(held, 2 * LEASE_S)
        trial.now += LEASE_S
        assert await trial.claim_ids() == []
        trial.now += LEASE_S
        assert await trial.claim_ids() == ["a"]

    async def test_a_renewal_never_shortens(self, trial: Trial) -> None:
        held = await trial.held()
        assert await trial.renew(held, 1.0) == held.version
        assert await trial.read("a") == held

    async def test_a_renewal_tells_the_time_of_the_store(self, trial: Trial) -> None:
        trial.now += 3
        assert (await trial.store.renew([Claim("none", 1, "h")], LEASE_S)).now == NOW + 3

    async def test_a_renewal_tells_the_version_so_that_an_update_is_seen(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held))
        assert await trial.renew(held) == held.version + 1
        assert await trial.renew(held, 1.0) == held.version + 1

    async def test_an_expired_lease_that_nobody_took_can_be_renewed(self, trial: Trial) -> None:
        held = await trial.held()
        trial.now += 10 * LEASE_S
        assert await trial.renew(held) == held.version
        assert await trial.claim_ids() == []

    async def test_a_superseded_claim_is_lost(self, trial: Trial) -> None:
        held = await trial.held()
        trial.now += LEASE_S
        successor = await trial.claimed()
        assert await trial.renew(held) == "lost"
        assert await trial.read("a") == successor

    async def test_a_claim_of_a_removed_record_is_lost(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.remove(["a"])
        assert await trial.renew(held) == "lost"
        assert await trial.store.get(["a"]) == {}

    async def test_a_claim_of_a_removed_record_is_lost_though_its_lease_would_not_be_extended(
        self, trial: Trial
    ) -> None:
        held = await trial.held()
        await (await trial.client()).remove(["a"])
        assert await trial.renew(held, 1.0) == "lost"

    async def test_a_revoked_claim_is_lost(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held, revoke=True))
        assert await trial.renew(held) == "lost"
        assert await trial.claim_ids() == ["a"]

    async def test_a_late_renewal_cannot_move_a_settled_job(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.settle(settlement(held, wake_at=NOW + 5))
        assert await trial.renew(held, 1_000) == "lost"
        assert (await trial.read("a")).wake_at == NOW + 5

    async def test_a_renewal_needs_the_fence(self, trial: Trial) -> None:
        held = await trial.held()
        claim = claim_of(held)
        assert await trial.renew(claim._replace(fence=held.fence + 1), 1_000) == "lost"
        assert await trial.renew(claim._replace(fence=held.fence - 1), 1_000) == "lost"
        assert await trial.read("a") == held

    async def test_a_renewal_needs_the_holder(self, trial: Trial) -> None:
        held = await trial.held()
        assert await trial.renew(claim_of(held)._replace(holder="another"), 1_000) == "lost"
        assert await trial.read("a") == held

    async def test_one_lost_claim_does_not_stop_the_renewal_of_others(self, trial: Trial) -> None:
        await trial.add(*(job(f"{i:03}") for i in range(1_000)))
        claims = [claim_of(r) for r in (await trial.claim(1_000)).records]
        await trial.store.remove(["007"])
        renewal = await trial.store.renew(claims, 2 * LEASE_S)
        expected = [(f"{i:03}", "lost" if i == 7 else 1) for i in range(1_000)]
        assert unlike(sorted(renewal.versions.items()), expected) == []
        claimed = await trial.store.claim([QUEUE], "other", 10, LEASE_S)
        assert (claimed.records, claimed.next_wake_at) == ([], NOW + 2 * LEASE_S)
