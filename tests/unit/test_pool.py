"""Pool: so many calls at a time, each of them ends, and nothing that was accepted is lost."""

import asyncio
import contextvars
import gc
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from asyncsched import (
    DefinitionError,
    Future,
    Pool,
    PoolClosed,
    PoolError,
    PoolFull,
    Scheduler,
    WaitTimeout,
    WrongLoopError,
    current_run,
)
from asyncsched.testing import ManualClock
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Gate:
    """Calls that wait until they are let go, and what is known of them."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.began: list[Any] = []
        self.ended: list[Any] = []
        self.most = 0

    async def __call__(self, item: Any = None) -> Any:
        self.began.append(item)
        self.most = max(self.most, len(self.began) - len(self.ended))
        try:
            await self.is_open.wait()
        finally:
            self.ended.append(item)
        return item


@pytest.fixture
async def gate() -> Gate:
    return Gate()


async def turns(n: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(n):
        await asyncio.sleep(0)


def work_of_the_pool() -> asyncio.Task[Any]:
    """The call that is under way."""
    [work] = [task for task in asyncio.all_tasks() if task.get_name() == "asyncsched-pool"]
    return work


async def fail(text: str = "spoilt") -> None:
    raise ValueError(text)


# -- go and try_go -------------------------------------------------------------------------------------------------------


async def test_go_waits_for_a_free_worker(gate: Gate) -> None:
    async with Pool(2) as pool:
        await pool.go(gate, 1)
        await pool.go(gate, 2)
        third = asyncio.create_task(pool.go(gate, 3))
        await turns()
        assert (gate.began, pool.running, third.done()) == ([1, 2], 2, False)
        gate.is_open.set()
        await third
    assert gate.ended == [1, 2, 3]
    assert pool.running == 0


async def test_try_go_begins_nothing_when_all_workers_are_busy(gate: Gate) -> None:
    async with Pool(1) as pool:
        assert pool.try_go(gate, 1)
        assert not pool.try_go(gate, 2)
        gate.is_open.set()
        assert await pool.wait()
        assert pool.try_go(gate, 3)
    assert gate.ended == [1, 3]


async def test_whoever_came_first_has_the_free_worker(gate: Gate) -> None:
    async with Pool(1) as pool:
        await pool.go(gate, 1)
        pool.submit(gate, 2)
        third = asyncio.create_task(pool.go(gate, 3))
        await turns()
        pool.submit(gate, 4)
        gate.is_open.set()
        await third
    assert gate.began == [1, 2, 3, 4]
    assert gate.most == 1


async def test_a_go_that_is_cancelled_while_it_waits_begins_nothing(gate: Gate) -> None:
    async with Pool(1) as pool:
        await pool.go(gate, 1)
        second = asyncio.create_task(pool.go(gate, 2))
        await turns()
        second.cancel()
        gate.is_open.set()
        await asyncio.wait([second])
        assert second.cancelled()
    assert gate.began == [1]


async def test_a_go_that_is_cancelled_in_the_instant_of_its_turn_leaves_the_worker_to_the_next(
    gate: Gate,
) -> None:
    async with Pool(1) as pool:
        pool.submit(gate, 1)
        second = asyncio.create_task(pool.go(gate, 2))
        await turns()
        third = pool.submit(gate, 3)
        # Behind the pool's own callback, which gives the worker to the second.
        work_of_the_pool().add_done_callback(lambda _: second.cancel())
        gate.is_open.set()
        assert await third.wait(20) == 3
    assert second.cancelled()
    assert gate.began == [1, 3]


async def test_an_error_that_nobody_waits_for_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with Pool(1) as pool:
        await pool.go(fail)
    [record] = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


# -- futures -------------------------------------------------------------------------------------------------------------


async def test_a_future_has_the_result_of_the_call(gate: Gate) -> None:
    async with Pool(1) as pool:
        future = pool.submit(gate, 5)
        assert isinstance(future, Future)
        assert (future.ready, future.done()) == (False, False)
        gate.is_open.set()
        assert await future == await future.wait() == await future.wait(1) == await future == 5
        assert (future.ready, future.done()) == (True, True)


async def test_a_call_that_raises_resolves_its_future() -> None:
    async with Pool(1) as pool:
        future = pool.submit(fail, "first")
        for _ in range(2):
            with pytest.raises(ValueError, match="first"):
                await future.wait(5)
        assert future.ready


def raise_stop() -> None:
    raise StopIteration


async def raise_stop_too() -> None:
    raise StopIteration


async def cancel_itself() -> None:
    raise asyncio.CancelledError


class Unusual(BaseException):
    """Neither an Exception nor the end of the process."""


async def raise_unusual() -> None:
    raise Unusual


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (raise_stop, RuntimeError),
        (raise_stop_too, RuntimeError),
        (cancel_itself, asyncio.CancelledError),
        (raise_unusual, Unusual),
    ],
)
async def test_whatever_a_call_raises_its_future_ends(
    function: Callable[[], Any], kind: type[BaseException]
) -> None:
    async with Pool(1) as pool:
        future = pool.submit(function)
        with pytest.raises(kind):
            await future.wait(20)
        assert pool.running == 0
        assert await pool.submit(asyncio.sleep, 0, "the next one") == "the next one"


async def test_wait_gives_up_after_its_timeout_and_may_be_repeated(clock: ManualClock, gate: Gate) -> None:
    async with Pool(1, clock=clock) as pool:
        future = pool.submit(gate, 5)
        for _ in range(2):
            waiting = asyncio.create_task(future.wait(10))
            await clock.advance(9.9)
            assert not waiting.done()
            await clock.advance(0.2)
            with pytest.raises(TimeoutError) as raised:
                await waiting
            assert isinstance(raised.value, WaitTimeout)
        gate.is_open.set()
        assert await future.wait(10) == 5
    assert clock.sleepers == 0


async def test_to_stop_waiting_for_a_future_leaves_the_call_as_it_is(gate: Gate) -> None:
    async def look(future: Future[Any]) -> Any:
        return await future

    async with Pool(1) as pool:
        future = pool.submit(gate, 5)
        for look_at in (look(future), future.wait(), future.wait(60)):
            waiting = asyncio.create_task(look_at)
            await turns()
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
        gate.is_open.set()
        assert await future == 5


async def test_a_future_that_is_cancelled_while_it_waits_is_never_begun(gate: Gate) -> None:
    async with Pool(1) as pool:
        await pool.go(gate, 1)
        future = pool.submit(gate, 2)
        assert pool.waiting == 1
        assert future.cancel()
        assert not future.cancel()
        assert (future.cancelled(), pool.waiting) == (True, 0)
        gate.is_open.set()
    assert gate.began == [1]


async def test_a_future_that_is_cancelled_while_its_call_is_under_way_asks_it_to_end(gate: Gate) -> None:
    async with Pool(1) as pool:
        future = pool.submit(gate, 1)
        await turns()
        assert future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future.wait(20)
    assert gate.ended == [1]


async def test_futures_are_futures_of_asyncio(gate: Gate) -> None:
    async with Pool(2) as pool:
        slow, quick = pool.submit(gate), pool.submit(asyncio.sleep, 0, "quick")
        done, pending = await asyncio.wait([slow, quick], return_when=asyncio.FIRST_COMPLETED)
        assert (done, pending) == ({quick}, {slow})
        gate.is_open.set()
        assert await asyncio.gather(slow, quick) == [None, "quick"]


def test_an_error_in_a_future_that_nobody_looks_at_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        async with Pool(1) as pool:
            pool.submit(fail, "unseen")
        gc.collect()
        await turns()

    asyncio.run(use())
    assert "never retrieved" in caplog.text
    assert "unseen" in caplog.text


async def test_submit_is_refused_when_too_many_calls_wait(gate: Gate) -> None:
    async with Pool(1, queue_size=2) as pool:
        futures = [pool.submit(gate, n) for n in range(3)]
        with pytest.raises(PoolFull, match="queue_size=2"):
            pool.submit(gate, 3)
        gate.is_open.set()
        assert await asyncio.gather(*futures) == [0, 1, 2]
        assert await pool.submit(gate, 4) == 4
    assert gate.began == [0, 1, 2, 4]


# -- threads and contexts ------------------------------------------------------------------------------------------------


async def test_a_plain_function_runs_in_a_thread() -> None:
    async with Pool(1) as pool:
        assert await pool.submit(threading.get_ident) != threading.get_ident()


async def test_a_lambda_that_makes_a_coroutine_is_awaited() -> None:
    async with Pool(1) as pool:
        assert await pool.submit(lambda: asyncio.sleep(0, "awaited")) == "awaited"


WORD = contextvars.ContextVar[str]("word")


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_call_sees_the_context_of_whoever_asked_for_it(gate: Gate, kind: str) -> None:
    async def word() -> str:
        return WORD.get()

    def ask(text: str) -> Future[str]:
        WORD.set(text)
        return pool.submit(word if kind == "async" else WORD.get)

    async with Pool(1) as pool:
        await pool.go(gate)
        futures = [contextvars.copy_context().run(ask, text) for text in ("a", "b")]
        gate.is_open.set()
        assert await asyncio.gather(*futures) == ["a", "b"]


async def test_a_cancelled_thread_keeps_its_worker_until_it_returns() -> None:
    release = threading.Event()
    async with Pool(1) as pool:
        future = pool.submit(release.wait, 20)
        await turns()
        future.cancel()
        await turns()
        assert (pool.running, future.done()) == (1, False)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await future.wait(20)


async def test_a_closed_pool_leaves_no_thread() -> None:
    async with Pool(3) as pool:
        await pool.map(lambda n: n, range(3))
    await eventually(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("asyncsched-pool")],
        what="the end of the pool's threads",
    )


# -- map -----------------------------------------------------------------------------------------------------------------


async def test_map_gives_the_results_in_the_order_of_the_items() -> None:
    most = running = 0

    async def square(n: int) -> int:
        nonlocal most, running
        running += 1
        most = max(most, running)
        for _ in range(10 - n):
            await asyncio.sleep(0)
        running -= 1
        return n * n

    async with Pool(3) as pool:
        assert await pool.map(square, range(10)) == [n * n for n in range(10)]
    assert most == 3


async def test_map_takes_an_item_when_there_is_a_worker_for_it(gate: Gate) -> None:
    taken: list[int] = []

    async def items() -> AsyncIterator[int]:
        for n in range(5):
            taken.append(n)
            yield n

    async with Pool(2) as pool:
        mapping = asyncio.create_task(pool.map(gate, items()))
        await turns(20)
        assert (gate.began, taken) == ([0, 1], [0, 1, 2])
        gate.is_open.set()
        assert await mapping == [0, 1, 2, 3, 4]


async def test_after_an_error_map_begins_nothing_further_and_what_is_under_way_ends(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    began: list[int] = []

    async def one(n: int) -> Any:
        began.append(n)
        if n > 1:
            raise ValueError(n)
        return await gate(n)

    async with Pool(4) as pool:
        mapping = asyncio.create_task(pool.map(one, range(8)))
        await turns(20)
        assert not mapping.done()
        gate.is_open.set()
        with pytest.raises(ValueError, match="2"):
            await mapping
        assert (began, gate.ended) == ([0, 1, 2, 3], [0, 1])
        assert pool.running == 0
    assert "ValueError: 3" in caplog.text


async def test_a_cancelled_map_cancels_its_own_calls_and_no_others(gate: Gate) -> None:
    async with Pool(3) as pool:
        other = pool.submit(gate, "other")
        mapping = asyncio.create_task(pool.map(gate, range(5)))
        await turns(20)
        mapping.cancel()
        await asyncio.wait([mapping])
        assert mapping.cancelled()
        assert gate.ended == [0, 1]
        gate.is_open.set()
        assert await other == "other"


async def test_an_error_of_the_items_ends_the_map_when_its_calls_have_ended(gate: Gate) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        gate.is_open.set()
        raise KeyError("no more")

    async with Pool(2) as pool:
        with pytest.raises(KeyError, match="no more"):
            await pool.map(gate, items())
        assert (gate.ended, pool.running) == ([1], 0)


async def test_calls_of_a_map_may_be_more_than_the_queue_holds() -> None:
    async with Pool(1, queue_size=1) as pool:
        assert await pool.map(lambda n: -n, range(50)) == [-n for n in range(50)]


# -- waiting and closing -------------------------------------------------------------------------------------------------


async def test_wait_says_whether_everything_has_ended(clock: ManualClock, gate: Gate) -> None:
    async with Pool(1, clock=clock) as pool:
        assert await pool.wait(0)
        pool.submit(gate)
        pool.submit(gate)
        assert not await pool.wait(0)
        waiting = asyncio.create_task(pool.wait(5))
        await clock.advance(5)
        assert await waiting is False
        gate.is_open.set()
        assert await pool.wait(5) is True
        assert len(gate.ended) == 2


async def test_leaving_the_block_waits_for_everything_that_was_accepted(gate: Gate) -> None:
    async def use() -> None:
        async with Pool(1) as pool:
            for n in range(5):
                pool.submit(gate, n)

    using = asyncio.create_task(use())
    await turns()
    assert not using.done()
    gate.is_open.set()
    await using
    assert gate.ended == [0, 1, 2, 3, 4]


async def test_leaving_the_block_by_an_error_waits_likewise(gate: Gate) -> None:
    async def use() -> None:
        async with Pool(1) as pool:
            pool.submit(gate, 1)
            pool.submit(gate, 2)
            raise KeyError("left")

    using = asyncio.create_task(use())
    await turns()
    gate.is_open.set()
    with pytest.raises(KeyError, match="left"):
        await using
    assert gate.ended == [1, 2]


async def test_a_cancelled_block_cancels_what_it_holds_and_every_future_says_so(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    futures: list[Future[Any]] = []

    async def use() -> None:
        async with Pool(1) as pool:
            futures.extend(pool.submit(gate, n) for n in range(3))
            await asyncio.sleep(3600)

    using = asyncio.create_task(use())
    await turns()
    using.cancel()
    await asyncio.wait([using])
    assert using.cancelled()
    assert [future.cancelled() for future in futures] == [True, True, True]
    assert gate.ended == [0]
    assert "under way (1, cancelled) and waiting (2, not begun)" in caplog.text


async def test_a_close_that_is_cancelled_while_it_waits_cancels_what_is_left(gate: Gate) -> None:
    pool = Pool(1)
    future = pool.submit(gate, 1)
    closing = asyncio.create_task(pool.close())
    await turns()
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert (future.cancelled(), gate.ended, pool.running) == (True, [1], 0)


async def test_close_with_a_timeout_cancels_what_has_not_ended_by_then(
    clock: ManualClock, gate: Gate
) -> None:
    pool = Pool(1, clock=clock)
    futures = [pool.submit(gate, n) for n in range(2)]
    closing = asyncio.create_task(pool.close(timeout=5))
    await clock.advance(4.9)
    assert not closing.done()
    await clock.advance(0.2)
    assert await closing is False
    assert [future.cancelled() for future in futures] == [True, True]
    assert await pool.close() is True


async def test_a_closed_pool_refuses_calls(gate: Gate) -> None:
    pool = Pool(1)
    await pool.go(gate, 1)
    late = asyncio.create_task(pool.go(gate, 2))
    await turns()
    closing = asyncio.create_task(pool.close())
    await turns()
    with pytest.raises(PoolClosed):
        await late
    refused: list[Callable[[], object]] = [lambda: pool.submit(gate), lambda: pool.try_go(gate)]
    for call in refused:
        with pytest.raises(PoolClosed):
            call()
    awaited: list[Callable[[], Awaitable[object]]] = [lambda: pool.go(gate), lambda: pool.map(gate, [1])]
    for wait_for in awaited:
        with pytest.raises(PoolClosed):
            await wait_for()
    gate.is_open.set()
    assert await closing is True
    assert gate.began == [1]
    assert pool.is_closed


async def test_a_worker_that_is_given_in_the_instant_of_the_close_begins_nothing(gate: Gate) -> None:
    pool = Pool(1)
    first = pool.submit(gate, 1)
    second = asyncio.create_task(pool.go(gate, 2))
    await turns()
    closing: list[asyncio.Task[bool]] = []
    # Behind the pool's own callback, which gives the worker to the second.
    work = work_of_the_pool()
    work.add_done_callback(lambda _: closing.append(asyncio.ensure_future(pool.close())))
    work.add_done_callback(lambda _: pool._shut())
    gate.is_open.set()
    await first
    with pytest.raises(PoolClosed):
        await second
    assert await closing[0] is True
    assert (gate.began, pool.running) == ([1], 0)


async def test_a_call_of_the_pool_cannot_wait_for_its_own_end() -> None:
    async with Pool(2) as pool:
        for wait_for in (pool.wait, pool.close):
            with pytest.raises(PoolError, match="its own end"):
                await pool.submit(wait_for)


async def test_a_pool_belongs_to_one_event_loop() -> None:
    async def use_it() -> None:
        pool.submit(fail)

    async with Pool(1) as pool:
        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(asyncio.run, use_it())


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1.5}, {"queue_size": 0}], ids=str)
def test_options_that_can_never_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match=next(iter(options))):
        Pool(**options)


async def test_a_pool_within_a_run_is_part_of_the_run(scheduler: Scheduler, clock: ManualClock) -> None:
    async def part(n: int) -> str:
        return f"{n} of {current_run().job_id}"

    @scheduler.task(name="whole")
    async def whole() -> list[str]:
        async with Pool(2) as pool:
            return await pool.map(part, range(3))

    await scheduler.add_job(whole, id="x")
    await clock.advance(1)
    [run] = await scheduler.history.runs("x")
    assert run.result == ["0 of x", "1 of x", "2 of x"]


def test_the_pool_logs_nothing_while_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        async with Pool(2) as pool:
            await pool.map(asyncio.sleep, [0, 0, 0])

    with caplog.at_level(logging.DEBUG, "asyncsched"):
        asyncio.run(use())
    assert not [record for record in caplog.records if record.name.startswith("asyncsched")]


async def test_what_cannot_be_called_takes_no_worker_and_holds_nobody_up() -> None:
    wrong: Any = 5
    async with Pool(1) as pool:
        for _ in range(2):
            with pytest.raises(TypeError, match="callable"):
                pool.try_go(wrong)
            with pytest.raises(TypeError, match="callable"):
                await asyncio.wait_for(pool.map(wrong, [1]), 20)
            with pytest.raises(TypeError, match="callable"):
                await asyncio.wait_for(pool.go(wrong), 20)
        assert await asyncio.wait_for(pool.map(str, [1]), 20) == ["1"]
