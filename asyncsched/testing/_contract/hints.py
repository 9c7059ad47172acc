"""on_hint: who waits is told that something may be due sooner."""

from __future__ import annotations

import threading

import pytest
from msgspec.structs import replace

from asyncsched.contract import JobStore
from asyncsched.testing._contract.trial import LEASE_S, NOW, Ear, Trial, job, settlement, update_of

__all__ = ["HintCases"]

#: A listener on a server may need a moment before it hears; so often the other client writes again.
ATTEMPTS = 50


class HintCases:
    """on_hint."""

    async def test_an_add_gives_a_hint(self, trial: Trial) -> None:
        ear = _listen(trial)
        await trial.add(job("a", wake_at=NOW + 5))
        assert await ear.hears()
        assert _names_no_later_than(ear, NOW + 5)

    async def test_an_update_gives_a_hint(self, trial: Trial) -> None:
        await trial.add(job("a", wake_at=NOW + 500))
        ear = _listen(trial)
        await trial.store.update(replace(update_of(job("a")), wake_at=NOW + 5))
        assert await ear.hears()
        assert _names_no_later_than(ear, NOW + 5)

    async def test_a_revoke_gives_a_hint(self, trial: Trial) -> None:
        held = await trial.held()
        ear = _listen(trial)
        await trial.store.update(update_of(held, revoke=True))
        assert await ear.hears()
        assert _names_no_later_than(ear, NOW)

    async def test_an_update_of_a_held_record_gives_a_hint_without_a_time(self, trial: Trial) -> None:
        held = await trial.held()
        ear = _listen(trial)
        await trial.store.update(update_of(held))
        assert await ear.hears()
        assert None in ear.heard

    async def test_a_settlement_gives_a_hint(self, trial: Trial) -> None:
        held = await trial.held()
        ear = _listen(trial)
        await trial.settle(settlement(held, wake_at=NOW + 5))
        assert await ear.hears()
        assert _names_no_later_than(ear, NOW + 5)

    async def test_a_stale_settlement_gives_a_hint(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(update_of(held))
        ear = _listen(trial)
        await trial.settle(settlement(held, wake_at=None))
        assert await ear.hears()
        assert _names_no_later_than(ear, NOW)

    async def test_a_spawn_gives_a_hint(self, trial: Trial) -> None:
        held = await trial.held()
        ear = _listen(trial)
        await trial.settle(settlement(held, delete=True, spawn=[job("child", wake_at=NOW + 5)]))
        assert await ear.hears()
        assert _names_no_later_than(ear, NOW + 5)

    async def test_unparking_gives_a_hint(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.add(job("parked", hold="k", wake_at=NOW + 500))
        ear = _listen(trial)
        await trial.settle(settlement(held, delete=True, unpark=("k", 1)))
        assert await ear.hears()
        assert _names_no_later_than(ear, NOW)

    async def test_a_hint_is_given_in_the_loop_that_opened_the_store(self, trial: Trial) -> None:
        heard_in: list[int] = []
        trial.store.on_hint(lambda _: heard_in.append(threading.get_ident()))
        ear = _listen(trial)
        await trial.add(job("a"))
        assert await ear.hears()
        assert set(heard_in) == {threading.get_ident()}

    async def test_a_listener_that_was_ended_hears_no_more(self, trial: Trial) -> None:
        ended = Ear(trial.patience_s)
        end = trial.store.on_hint(ended)
        ear = _listen(trial)
        end()
        end()
        await trial.add(job("a"))
        assert await ear.hears()
        assert ended.heard == []

    async def test_a_listener_that_ends_itself_does_not_silence_the_next(self, trial: Trial) -> None:
        end = trial.store.on_hint(lambda _: end())
        ear = _listen(trial)
        await trial.add(job("a"))
        assert await ear.hears()

    async def test_a_hint_comes_from_another_client(self, trial: Trial) -> None:
        _need_push(trial.store)
        other = await trial.client()
        ear = _listen(trial)
        assert await _hears_adds_of(other, ear)

    async def test_a_hint_comes_from_the_settlement_of_another_client(self, trial: Trial) -> None:
        _need_push(trial.store)
        other = await trial.client()
        ear = _listen(trial)
        assert await _hears_adds_of(other, ear)
        for _ in range(ATTEMPTS):
            [held, *_] = (await other.claim(["adds"], trial.token(), 1, LEASE_S)).records
            ear.forget()
            await other.settle([settlement(held, wake_at=NOW)])
            if await ear.hears(trial.patience_s / ATTEMPTS):
                return
        raise AssertionError("no settlement of the other client was heard")

    async def test_a_hint_comes_from_another_clients_update_of_a_held_record(self, trial: Trial) -> None:
        _need_push(trial.store)
        held = await trial.held()
        other = await trial.client()
        ear = _listen(trial)
        assert await _hears_adds_of(other, ear)
        for _ in range(ATTEMPTS):
            ear.forget()
            updated = await other.update(update_of(held))
            assert updated is not None
            held = updated
            if await ear.hears(trial.patience_s / ATTEMPTS) and None in ear.heard:
                return
        raise AssertionError("no update of a held record by the other client was heard")


def _listen(trial: Trial) -> Ear:
    ear = Ear(trial.patience_s)
    trial.store.on_hint(ear)
    return ear


def _names_no_later_than(ear: Ear, wake_at: float) -> bool:
    """Whether the hints are of use to one who waits for *wake_at*: some named no time, or one that is early enough."""
    return any(heard is None or heard <= wake_at for heard in ear.heard)


def _need_push(store: JobStore) -> None:
    if not store.capabilities.push_hints:
        pytest.skip("the store does not push hints to other clients")


async def _hears_adds_of(other: JobStore, ear: Ear) -> bool:
    for i in range(ATTEMPTS):
        await other.add([job(f"{i}", queue="adds")])
        if await ear.hears(ear.patience_s / ATTEMPTS):
            return True
    return False
