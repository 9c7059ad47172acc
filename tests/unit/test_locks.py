"""Locks and leaders: one holder at a time, in whatever process, and never a moment longer than its lease can be trusted."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from asyncsched import (
    DefinitionError,
    Leader,
    Lock,
    LockLost,
    LockNotAcquired,
    LockNotHeld,
    NotRunning,
    Scheduler,
    UnknownStoreError,
    every,
    exclusive,
    once,
)
from asyncsched.contract import JobStore, Lease
from asyncsched.stores import store_from_url
from asyncsched.testing import ManualClock
from tests.servers.running import Servers
from tests.support.faulty import FaultyStore
from tests.support.stores import SharedMemory, url_of

pytestmark = pytest.mark.anyio

MakeLock = Callable[..., Lock]


@pytest.fixture
async def processes(
    store_kind: str, clock: ManualClock, tmp_path: Path, servers: Servers
) -> AsyncIterator[list[JobStore]]:
    """The stores of two processes, on one server and the manual clock."""
    url = url_of(store_kind, tmp_path, servers)
    memory = SharedMemory()
    opened: list[JobStore] = [
        FaultyStore(memory) if store_kind == "memory" else store_from_url(url) for _ in range(2)
    ]
    for store in opened:
        await store.open(clock.time)
    yield opened
    for store in opened:
        await store.close()


@pytest.fixture
async def here(clock: ManualClock) -> FaultyStore:
    return await process_on(SharedMemory(), clock)


@pytest.fixture
async def there(here: FaultyStore, clock: ManualClock) -> FaultyStore:
    """Another process."""
    return await process_on(here.inner, clock)


async def process_on(store: JobStore, clock: ManualClock) -> FaultyStore:
    faulty = FaultyStore(store)
    await faulty.open(clock.time)
    return faulty


# -- on every store ----------------------------------------------------------------------------------------------------


async def test_one_holds_it_and_the_next_one_has_a_higher_fence(
    processes: list[JobStore], clock: ManualClock
) -> None:
    first, second = (Lock(store, "reports", 10, clock=clock) for store in processes)
    fence = await first.acquire()
    assert (first.is_held, first.fence, second.is_held) == (True, fence, False)
    assert not await second.try_acquire()
    await first.release()
    assert not first.is_held
    assert await second.try_acquire()
    assert second.fence > fence
    await second.release()


async def test_an_ended_lease_frees_it(processes: list[JobStore], clock: ManualClock) -> None:
    first, second = (Lock(store, "reports", 10, clock=clock) for store in processes)
    await first.acquire()
    await clock.advance(9)
    assert not first.is_held, "it is not trusted to its very end"
    assert not await second.try_acquire()
    await clock.advance(1)
    assert await second.try_acquire()
    with pytest.raises(LockLost, match="'reports'"):
        await first.release()
    with pytest.raises(LockNotHeld):
        await first.release()
    assert second.is_held


# -- taking it ---------------------------------------------------------------------------------------------------------


async def test_who_waits_gets_it_when_it_is_released(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    first, second = Lock(here, "a", clock=clock), Lock(there, "a", clock=clock)
    fence = await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await clock.advance(20)
    assert not waiting.done()
    await first.release()
    await clock.advance(1)
    assert await waiting > fence


async def test_a_wait_ends_at_its_timeout(here: FaultyStore, there: FaultyStore, clock: ManualClock) -> None:
    await Lock(here, "a", 60, clock=clock).acquire()
    for store in (here, there):
        waiting = asyncio.create_task(Lock(store, "a", clock=clock).acquire(timeout=5))
        await clock.advance(4.9)
        assert not waiting.done()
        await clock.advance(0.2)
        with pytest.raises(LockNotAcquired, match="'a'"):
            await waiting
        with pytest.raises(TimeoutError):
            await Lock(store, "a", clock=clock).acquire(timeout=0)


async def test_it_is_not_reentrant(here: FaultyStore, clock: ManualClock) -> None:
    lock = Lock(here, "a", clock=clock)
    async with lock:
        assert not await lock.try_acquire()
        assert not await Lock(here, "a", clock=clock).try_acquire()
        assert await Lock(here, "b", clock=clock).try_acquire()


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    first, second = Lock(here, "a", clock=clock), Lock(there, "a", clock=clock)
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await clock.advance(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await clock.advance(0)
    await first.release()
    assert await first.try_acquire()
    await first.release()
    assert await second.try_acquire()


async def test_who_came_first_is_served_first_in_one_process(here: FaultyStore, clock: ManualClock) -> None:
    served: list[int] = []

    async def ask(number: int) -> None:
        async with Lock(here, "a", clock=clock):
            served.append(number)

    async with Lock(here, "a", clock=clock):
        asking = [asyncio.create_task(ask(number)) for number in range(10)]
        await clock.advance(0)
    await clock.advance(5)
    await asyncio.gather(*asking)
    assert served == list(range(10))


async def test_nobody_who_comes_by_goes_past_the_one_in_line(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    first, passing = Lock(here, "a", 60, clock=clock), Lock(here, "a", 60, clock=clock)
    await first.acquire()
    waiting = asyncio.create_task(Lock(there, "a", 60, clock=clock).acquire())
    await clock.advance(3)
    await first.release()
    assert not await passing.try_acquire()
    await clock.advance(1)
    assert waiting.done()


async def test_one_who_died_in_line_holds_nobody_up_for_long(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    await there.acquire(["lock-next/a"], "who has died", 2.0)
    asking = asyncio.create_task(Lock(here, "a", 60, clock=clock).acquire())
    await clock.advance(1.9)
    assert not asking.done()
    await clock.advance(0.5)
    assert await asking


async def test_a_store_that_is_away_is_waited_for(here: FaultyStore, clock: ManualClock) -> None:
    here.faults.away = {"acquire"}
    lock = Lock(here, "a", clock=clock)
    asking = asyncio.create_task(lock.acquire())
    await clock.advance(60)
    assert not asking.done()
    here.faults.away = set()
    await clock.advance(1)
    assert await asking == lock.fence


async def test_a_lost_reply_costs_nothing(here: FaultyStore, clock: ManualClock) -> None:
    here.faults.lost["acquire"] = 1
    lock = Lock(here, "a", 60, clock=clock)
    asking = asyncio.create_task(lock.acquire(timeout=1))
    await clock.advance(0.5)
    assert await asking == lock.fence


async def test_trying_for_a_lock_never_waits_for_those_in_line(here: FaultyStore, clock: ManualClock) -> None:
    first, second = Lock(here, "a", clock=clock), Lock(here, "a", clock=clock)
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await clock.advance(1)
    async with asyncio.timeout(5):
        await first.release()
        assert not await first.try_acquire(), "it is the turn of the one in line"
    await clock.advance(1)
    assert await waiting == second.fence


async def test_what_an_attempt_gives_back_is_never_freed_under_the_next_one(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    """The reply to its last step was lost; what it gives back is slow to arrive."""
    releasing, arrived, calls = here.release, asyncio.Event(), list[int]()

    async def slow_release(leases: Sequence[Lease]) -> None:
        calls.append(len(leases))
        if len(leases) == 2:
            await arrived.wait()
        await releasing(leases)

    here.release = slow_release  # type: ignore[method-assign]  # the test takes its place
    here.faults.lost["extend"] = 1
    lock = Lock(here, "a", clock=clock)
    asking = asyncio.create_task(lock.acquire())
    await clock.advance(0.5)
    arrived.set()
    await clock.advance(0.5)
    assert await asking == lock.fence
    assert calls == [1, 2, 1]
    assert not await Lock(there, "a", clock=clock).try_acquire()


async def test_fifty_waiters_of_two_processes_are_served_within_three_times_the_mean_wait() -> None:
    memory = SharedMemory()
    stores = [FaultyStore(memory), FaultyStore(memory)]
    for store in stores:
        await store.open()
    waits: list[float] = []
    began = time.monotonic()
    holders = 0

    async def work(store: JobStore) -> None:
        nonlocal holders
        async with Lock(store, "a"):
            holders += 1
            waits.append(time.monotonic() - began)
            assert holders == 1
            await asyncio.sleep(0.001)  # The work; nothing waits for a condition here.
            holders -= 1

    await asyncio.gather(*(work(stores[number % 2]) for number in range(50)))
    assert len(waits) == 50
    assert max(waits) <= 3 * sum(waits) / 50


async def test_it_is_renewed_as_long_as_its_block_lasts(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    lock, other = Lock(here, "a", 9, clock=clock), Lock(there, "a", 9, clock=clock)
    async with lock:
        await clock.advance(100)
        assert lock.remaining > 4
        assert not await other.try_acquire()
        assert here.faults.calls["extend"] < 36, "three times a lease"
    assert await other.try_acquire()


# -- holding it --------------------------------------------------------------------------------------------------------


async def test_extend_moves_the_end_of_the_lease(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    lock, other = Lock(here, "a", 10, clock=clock), Lock(there, "a", 10, clock=clock)
    await lock.acquire()
    await clock.advance(7)
    await lock.extend()
    await clock.advance(7)
    assert lock.is_held
    await lock.extend(100)
    await clock.advance(70)
    assert lock.is_held
    assert not await other.try_acquire()
    await lock.release()
    with pytest.raises(LockNotHeld, match="acquire it first"):
        await lock.extend()
    with pytest.raises(LockNotHeld):
        lock.fence  # noqa: B018


async def test_extend_of_a_lock_that_another_has_taken_says_so(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    lock, other = Lock(here, "a", 10, clock=clock), Lock(there, "a", 10, clock=clock)
    await lock.acquire()
    await clock.advance(10)
    assert await other.try_acquire()
    with pytest.raises(LockLost):
        await lock.extend()
    assert not lock.is_held
    assert other.is_held


async def test_the_block_is_cancelled_when_the_lock_can_no_longer_be_trusted(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    lock, steps = Lock(here, "a", 10, clock=clock), []

    async def work() -> None:
        async with lock:
            steps.append("begun")
            try:
                await clock.sleep(1000)
            finally:
                steps.append(f"{clock.monotonic():g}")
        steps.append("never")

    working = asyncio.create_task(work())
    await clock.advance(5)
    here.faults.away = {"extend", "release"}
    await clock.advance(6)
    assert steps == ["begun"]
    await clock.advance(2)
    with pytest.raises(LockLost):
        await working
    # The last renewal was asked for at 3 1/3 s; it is trusted for 8 s, a fifth less than it lasts.
    assert steps == ["begun", "11.3333"]
    here.faults.away = set()
    assert await Lock(there, "a", clock=clock).try_acquire() is False, "until its lease has ended"
    await clock.advance(1)
    assert await Lock(there, "a", clock=clock).try_acquire()


async def test_a_renewal_that_hangs_keeps_no_block_going(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    lock, ended_at = Lock(here, "a", 10, clock=clock), list[float]()

    async def work() -> None:
        async with lock:
            try:
                await clock.sleep(1000)
            finally:
                ended_at.append(clock.monotonic())

    working = asyncio.create_task(work())
    await clock.advance(1)
    here.faults.delay_s["extend"] = 3600
    await clock.advance(8)
    assert ended_at == [8]
    with pytest.raises(LockLost):
        await working
    assert await Lock(there, "a", clock=clock).try_acquire()


async def test_who_is_cancelled_as_the_block_ends_leaves_no_lock_behind(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    lock, other = Lock(here, "a", clock=clock), Lock(there, "a", clock=clock)
    for turns in range(12):
        ending = asyncio.Event()

        async def work(ending: asyncio.Event = ending) -> None:
            async with lock:
                ending.set()

        working = asyncio.create_task(work())
        await ending.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working])
        await clock.advance(0.1)
        assert not lock.is_held
        assert await other.try_acquire(), f"cancelled {turns} turns after its end"
        await other.release()


async def test_a_release_that_is_cancelled_leaves_no_lock_behind(
    here: FaultyStore, there: FaultyStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, other, answers = Lock(here, "a", clock=clock), Lock(there, "a", clock=clock), asyncio.Event()

    async def release(leases: Sequence[Lease]) -> None:
        await answers.wait()
        await here.inner.release(leases)

    await lock.acquire()
    monkeypatch.setattr(here, "release", release)
    releasing = asyncio.create_task(lock.release())
    await asyncio.sleep(0)
    releasing.cancel()
    await asyncio.wait([releasing])
    assert releasing.cancelled()
    assert not lock.is_held
    answers.set()
    await clock.advance(0.1)
    assert await other.try_acquire()


async def test_a_block_that_ends_late_after_its_lock_was_lost_leaves_the_next_one_alone(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    """Both by one object."""
    lock, steps = Lock(here, "a", 10, clock=clock), list[str]()

    async def work(name: str, cleaning_s: float) -> None:
        async with lock:
            steps.append(f"{name} begins")
            try:
                await clock.sleep(1000)
            finally:
                await clock.sleep(cleaning_s)
                steps.append(f"{name} ends")

    first = asyncio.create_task(work("first", 10))
    await clock.advance(1)
    second = asyncio.create_task(work("second", 0))
    here.faults.away = {"extend"}
    await clock.advance(8)
    here.faults.away = set()
    await clock.advance(20)
    with pytest.raises(LockLost):
        await first
    assert steps == ["first begins", "second begins", "first ends"]
    assert not await Lock(there, "a", clock=clock).try_acquire()
    second.cancel()
    await asyncio.wait([second])
    assert await Lock(there, "a", clock=clock).try_acquire()


async def test_a_block_that_outlives_its_scheduler_ends_in_peace(clock: ManualClock) -> None:
    scheduler = Scheduler(SharedMemory(), clock=clock)
    await scheduler.start()
    async with scheduler.lock("a"):
        await scheduler.stop()


async def test_a_block_that_ends_as_the_lock_is_lost_ends_with_that(
    here: FaultyStore, clock: ManualClock
) -> None:
    """The event loop was blocked: nobody could be told."""
    lock = Lock(here, "a", 10, clock=clock)

    async def work() -> None:
        async with lock:
            clock._move(60_000_000)

    with pytest.raises(LockLost):
        await work()


async def test_a_block_that_keeps_its_cancellation_to_itself_ends_with_the_loss_of_its_lock(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    """The lease was refused a renewal, long before its end."""
    lock = Lock(here, "a", 10, clock=clock)

    async def work() -> None:
        async with lock:
            await there.inner.release([lock._mine().lease])
            with contextlib.suppress(asyncio.CancelledError):
                await clock.sleep(1000)

    working = asyncio.create_task(work())
    await clock.advance(5)
    with pytest.raises(LockLost):
        await working
    assert working.cancelling() == 0


async def test_an_error_of_the_block_and_a_cancellation_from_outside_stay_what_they_are(
    here: FaultyStore, clock: ManualClock
) -> None:
    lock = Lock(here, "a", 10, clock=clock)
    with pytest.raises(ZeroDivisionError):
        async with lock:
            1 / 0  # noqa: B018
    assert await lock.try_acquire()
    await lock.release()

    async def wait() -> None:
        async with lock:
            await clock.sleep(1000)

    waiting = asyncio.create_task(wait())
    await clock.advance(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await lock.try_acquire()


async def test_a_lock_may_be_released_before_its_block_ends(here: FaultyStore, clock: ManualClock) -> None:
    async with Lock(here, "a", clock=clock) as lock:
        await lock.release()
        assert await Lock(here, "a", clock=clock).try_acquire()


async def test_a_holder_who_forgot_about_it_holds_nobody_up(here: FaultyStore, clock: ManualClock) -> None:
    await Lock(here, "a", 10, clock=clock).acquire()
    waiting = asyncio.create_task(Lock(here, "a", 10, clock=clock).acquire())
    await clock.advance(11)
    assert waiting.done()


def test_a_holder_whose_event_loop_has_ended_holds_nobody_up_in_the_next_one() -> None:
    store, clock = SharedMemory(), ManualClock()
    lock = Lock(store, "a", 10)

    async def take() -> bool:
        await store.open(clock.time)
        return await lock.try_acquire()

    assert asyncio.run(take())
    assert not asyncio.run(take()), "its lease has not ended"
    clock._move(11_000_000)
    assert asyncio.run(take())


async def test_with_lock_returns_what_the_function_does(here: FaultyStore, clock: ManualClock) -> None:
    lock = Lock(here, "a", clock=clock)

    async def add(a: int, b: int) -> int:
        assert lock.is_held
        return a + b

    assert await lock.with_lock(add, 1, b=2) == 3
    assert not lock.is_held


async def test_hold_waits_no_longer_than_it_was_told(here: FaultyStore, clock: ManualClock) -> None:
    await Lock(here, "a", 60, clock=clock).acquire()
    lock = Lock(here, "a", clock=clock)

    async def work() -> None:
        async with lock.hold(timeout=2):
            raise AssertionError("it is held by another")

    working = asyncio.create_task(work())
    await clock.advance(3)
    with pytest.raises(LockNotAcquired):
        await working


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "1 to 200 characters"),
        ("x" * 201, "1 to 200 characters"),
        (None, "1 to 200 characters"),
        ("a\0b", "without NUL"),
        ("\ud800", "lone surrogate"),
    ],
)
async def test_a_name_that_can_be_none_is_refused(here: FaultyStore, name: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        Lock(here, name)


# -- of a scheduler ----------------------------------------------------------------------------------------------------


async def test_the_locks_of_a_scheduler_are_those_of_its_stores(clock: ManualClock) -> None:
    scheduler = Scheduler({"default": "memory://", "other": "memory://"}, clock=clock)
    lock = scheduler.lock("a", ttl=10)
    with pytest.raises(NotRunning):
        await lock.acquire()
    async with scheduler:
        assert await lock.acquire()
        assert not await scheduler.lock("a").try_acquire()
        assert await scheduler.lock("a", store="other").try_acquire()
        with pytest.raises(UnknownStoreError):
            await scheduler.lock("a", store="none").acquire()


async def test_one_of_all_who_stand_is_the_leader_until_he_steps_down(clock: ManualClock) -> None:
    memory, told = SharedMemory(), list[str]()

    async def off(name: str) -> None:
        told.append(f"{name} off")

    async with Scheduler(memory, clock=clock) as one, Scheduler(FaultyStore(memory), clock=clock) as two:
        first = one.leader("billing", on_elected=lambda: told.append("one on"), on_lost=lambda: off("one"))
        second = two.leader("billing", on_elected=lambda: told.append("two on"), on_lost=lambda: off("two"))
        async with first:
            fence = await first.wait_elected()
            async with second:
                await clock.advance(100)
                assert (first.is_leader, second.is_leader, told) == (True, False, ["one on"])
                await first.__aexit__()
                await clock.advance(1)
                assert (first.is_leader, second.is_leader) == (False, True)
                assert await second.wait_elected() > fence
                assert second.fence > fence
                await first.__aenter__()
        assert told == ["one on", "one off", "two on", "two off"]


async def test_a_leader_that_is_cut_off_is_told_and_stands_again(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    told = list[str]()

    def failing() -> None:
        told.append("on")
        raise ValueError

    leader = Leader(Lock(here, "x", 10, clock=clock), failing, lambda: told.append("off"))
    async with leader, Leader(Lock(there, "x", 10, clock=clock)) as other:
        await clock.advance(1)
        assert leader.is_leader
        here.faults.away = {"extend", "acquire", "release"}
        await clock.advance(20)
        assert (leader.is_leader, other.is_leader, told) == (False, True, ["on", "off"])
        here.faults.away = set()
        await clock.advance(20)
        assert (leader.is_leader, other.is_leader) == (False, True)
        await other.__aexit__()
        await clock.advance(5)
        assert (leader.is_leader, told) == (True, ["on", "off", "on"])
        await other.__aenter__()


async def test_a_leader_stands_though_tasks_of_its_callback_have_failed(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    """Before Python 3.13 a TaskGroup that fails leaves its task counted as cancelled."""

    async def failing() -> None:
        raise ValueError

    async def serve() -> None:
        told.append("on")
        async with asyncio.TaskGroup() as group:
            group.create_task(failing())

    told = list[str]()
    leader = Leader(Lock(here, "x", 10, clock=clock), serve, lambda: told.append("off"))
    async with leader, Leader(Lock(there, "x", 10, clock=clock)) as other:
        await clock.advance(1)
        assert (leader.is_leader, told) == (True, ["on"])
        here.faults.away = {"extend", "acquire", "release"}
        await clock.advance(20)
        assert (leader.is_leader, other.is_leader, told) == (False, True, ["on", "off"])
        here.faults.away = set()
        await other.__aexit__()
        await clock.advance(20)
        assert (leader.is_leader, told) == (True, ["on", "off", "on"])
        await other.__aenter__()


async def test_a_leader_whose_callback_keeps_its_cancellation_to_itself_steps_down_and_stands_again(
    here: FaultyStore, clock: ManualClock
) -> None:
    told = list[str]()

    async def serve() -> None:
        told.append("on")
        try:
            await clock.sleep(10_000)
        except asyncio.CancelledError:
            told.append("served")

    async with asyncio.timeout(5):
        async with Leader(Lock(here, "x", 10, clock=clock), serve, lambda: told.append("off")) as leader:
            await clock.advance(1)
            here.faults.away = {"extend", "release"}
            await clock.advance(11)
            assert not leader.is_leader
            here.faults.away = set()
            await clock.advance(10)
            assert leader.is_leader
    assert told == ["on", "served", "off"] * 2


async def test_a_refusal_of_the_store_ends_no_candidacy(
    here: FaultyStore, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    here.faults.refused["acquire"] = 3  # Each attempt leaves the line by another.
    async with Leader(Lock(here, "x", 9, clock=clock)) as leader:
        await clock.advance(5)
        assert not leader.is_leader
        assert "acquire() is refused" in caplog.text
        await clock.advance(5)
        assert leader.is_leader


async def test_nobody_waits_for_an_election_that_cannot_be_won(
    here: FaultyStore, there: FaultyStore, clock: ManualClock
) -> None:
    scheduler = Scheduler(SharedMemory(), clock=clock)
    with pytest.raises(NotRunning):
        await scheduler.leader("x").__aenter__()
    await Lock(there, "x", 3600, clock=clock).acquire()
    async with Leader(Lock(here, "x", clock=clock)) as leader:
        waiting = asyncio.create_task(leader.wait_elected())
        await clock.advance(1)
    with pytest.raises(LockNotHeld, match="does not stand for 'x' any more"):
        await waiting


async def test_one_leader_stands_once(here: FaultyStore, clock: ManualClock) -> None:
    leader = Leader(Lock(here, "x", clock=clock))
    async with leader:
        with pytest.raises(DefinitionError, match="already"):
            await leader.__aenter__()


# -- a middleware ------------------------------------------------------------------------------------------------------


async def test_of_jobs_under_one_lock_one_runs_and_what_finds_it_taken_is_skipped_as_locked(
    clock: ManualClock,
) -> None:
    scheduler = Scheduler(clock=clock, middleware=[exclusive("machine", {"long", "short"})])
    ran: list[str] = []
    async with scheduler:

        @scheduler.task(name="long")
        async def long() -> None:
            ran.append("long")
            await clock.sleep(100)

        @scheduler.task(name="short")
        async def short() -> None:
            ran.append("short")

        @scheduler.task(name="free")
        async def free() -> None:
            ran.append("free")

        await scheduler.enqueue("long")
        await scheduler.add_job("short", every(60), id="every minute")
        once_ = await scheduler.add_job("short", once(delay=10))
        await scheduler.add_job("free", once(delay=20))
        await clock.advance(90)
        assert ran == ["long", "free"]
        [decision] = await scheduler.history.decisions("every minute")
        assert (decision.reason, decision.count) == ("locked", 1)
        assert decision.detail == "another run holds lock 'machine'"
        await clock.advance(11)
        assert ran == ["long", "free", "short"], "the one-shot was put off, and is not lost"
        assert [run.outcome for run in await scheduler.history.runs(once_.id, limit=1)] == ["succeeded"]
        await clock.advance(20)
        assert ran == ["long", "free", "short", "short"]


async def test_a_run_that_cannot_ask_for_its_lock_is_put_off_and_has_not_failed(
    here: FaultyStore, clock: ManualClock
) -> None:
    ran: list[str] = []
    async with Scheduler(here, clock=clock, middleware=[exclusive("machine")]) as scheduler:

        @scheduler.task(name="work")
        async def work(name: str) -> None:
            ran.append(name)

        here.faults.away = {"acquire"}
        await scheduler.add_job("work", once(), id="once", args=("once",))
        await scheduler.add_job("work", every(3600), id="hourly", args=("hourly",))
        await clock.advance(3610)
        assert ran == []
        here.faults.away = set()
        await clock.advance(10)
        assert sorted(ran) == ["hourly", "once"]
        for id in ("once", "hourly"):
            assert (await scheduler.history.runs(id, limit=1))[0].outcome == "succeeded"
