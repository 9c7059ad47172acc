"""A cancellation that a driver swallows ends what it was meant for all the same."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from asyncsched import Scheduler, every
from asyncsched.errors import StoreUnavailable
from asyncsched.outlast import heeding
from tests.support.faulty import FaultyStore
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def deaf(outcome: Exception | None) -> str:
    """A call that is cancelled once, and goes on as if it had not been."""
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        if outcome is not None:
            raise outcome from None
    return "an answer"


@pytest.mark.parametrize("outcome", [None, StoreUnavailable("away")], ids=["an answer", "an error"])
async def test_a_cancellation_that_a_call_swallowed_is_heeded(outcome: Exception | None) -> None:
    task = asyncio.ensure_future(heeding(deaf(outcome)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_whoever_was_cancelled_before_may_still_call() -> None:
    async def cleans_up() -> str:
        try:
            await asyncio.sleep(600)
        finally:
            answers.append(await heeding(asyncio.sleep(0, "an answer")))
        return ""

    answers: list[str] = []
    task = asyncio.ensure_future(cleans_up())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert answers == ["an answer"]


async def fails() -> None:
    raise StoreUnavailable("away")


async def test_a_call_whose_tasks_have_failed_was_not_cancelled() -> None:
    """Before Python 3.13 a TaskGroup that fails leaves its task counted as cancelled."""

    async def call() -> str:
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
        if refuses:
            await fails()
        return "an answer"

    for refuses in (False, True, False):
        if refuses:
            with pytest.raises(StoreUnavailable):
                await heeding(call())
        else:
            assert await heeding(call()) == "an answer"


async def test_a_call_that_somebody_else_cancels_is_a_fault_of_the_call() -> None:
    async def call() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="not by whoever waited for it"):
        await heeding(call())


async def test_whoever_waits_is_cancelled_only_once_the_call_has_ended() -> None:
    async def call() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            ended.set()

    ended = asyncio.Event()
    task = asyncio.ensure_future(heeding(call()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


class DeafStore(FaultyStore):
    """Each call that is cancelled ends as if the store were away."""

    is_hanging = False
    hung = 0

    async def _through(self, method: str, call: Callable[[], Awaitable[object]]) -> object:  # type: ignore[override]  # as FaultyStore has it, without its type variable
        if self.is_hanging:
            self.hung += 1
            return await deaf(StoreUnavailable(f"{method}() was cancelled"))
        return await super()._through(method, call)


async def test_a_scheduler_stops_though_each_call_on_its_way_swallows_its_cancellation() -> None:
    store = DeafStore(SharedMemory())
    scheduler = Scheduler(store, heartbeat=0.05)
    await scheduler.start()

    @scheduler.task(name="work")
    async def work() -> None: ...

    await scheduler.add_job("work", every(0.05))
    await eventually(lambda: store.faults.calls["settle"])
    store.is_hanging = True
    # A claim, a settlement or the heartbeat.
    await eventually(lambda: store.hung >= 2)
    try:
        done, _ = await asyncio.wait([asyncio.ensure_future(scheduler.stop(drain=0))], timeout=45)
    finally:
        # Else a scheduler that does not stop would hold up the event loop too.
        store.is_hanging = False
    assert done


async def test_a_call_that_its_driver_cancels_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    class Astray(FaultyStore):
        left = 2

        async def _through(self, method: str, call: Callable[[], Awaitable[object]]) -> object:  # type: ignore[override]  # as FaultyStore has it, without its type variable
            if method in ("claim", "settle") and self.left:
                self.left -= 1
                raise asyncio.CancelledError
            return await super()._through(method, call)

    ran = list[int]()
    async with Scheduler(Astray(SharedMemory())) as scheduler:

        @scheduler.task(name="work")
        async def work() -> None:
            ran.append(1)

        receipt = await scheduler.enqueue(work)
        await receipt.result(timeout=60)
    assert ran == [1]
    assert "not by whoever waited for it" in caplog.text


async def test_a_claim_whose_tasks_have_failed_is_made_again() -> None:
    class Grouped(FaultyStore):
        left = 3

        async def _through(self, method: str, call: Callable[[], Awaitable[object]]) -> object:  # type: ignore[override]  # as FaultyStore has it, without its type variable
            if method == "claim" and self.left:
                self.left -= 1
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(fails())
                except ExceptionGroup as errors:
                    raise errors.exceptions[0] from None
            return await super()._through(method, call)

    async with Scheduler(Grouped(SharedMemory())) as scheduler:

        @scheduler.task(name="work")
        async def work() -> str:
            return "done"

        receipt = await scheduler.enqueue(work)
        assert await receipt.result(timeout=60) == "done"
