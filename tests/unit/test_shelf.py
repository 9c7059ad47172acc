"""Many who change the same jobs at once: no change is lost, and each call tells the truth."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncsched import (
    ConflictingIdError,
    Job,
    JobLookupError,
    MemoryStore,
    Scheduler,
    StoreUnavailable,
    every,
)
from asyncsched.contract import Record, Update
from asyncsched.shelf import Shelf

pytestmark = pytest.mark.anyio

MakeScheduler = Callable[..., Scheduler]


async def nothing(n: int = 0) -> None:
    """Do nothing."""


async def test_updates_made_at_once_are_all_made(make_scheduler: MakeScheduler) -> None:
    async with make_scheduler(queues=()) as scheduler:
        await scheduler.add_job(nothing, every(60), id="x")
        fields = {"name": "n", "tags": ["t"], "priority": 3, "queue": "q", "metadata": {"a": 1}, "args": [5]}
        await asyncio.gather(*(scheduler.update_job("x", **{name: value}) for name, value in fields.items()))
        job = await scheduler.get_job("x")
        assert (job.name, job.tags, job.priority, job.queue) == ("n", ("t",), 3, "q")
        assert (job.metadata, job.args, job.version) == ({"a": 1}, (5,), 7)


async def test_run_requests_made_at_once_are_all_kept(make_scheduler: MakeScheduler) -> None:
    ran: list[int] = []
    async with make_scheduler() as scheduler:

        @scheduler.task(name="t")
        async def task() -> None:
            ran.append(1)

        await scheduler.add_job(task, every(3600), id="x")
        await scheduler.pause()
        await asyncio.gather(*(scheduler.run_job("x") for _ in range(20)))
        await scheduler.resume()
        async with asyncio.timeout(10):
            while len(await scheduler.history.runs("x")) < 20:  # noqa: ASYNC110 - it looks for what is stored
                await asyncio.sleep(0.01)
    assert len(ran) == 20


async def test_of_those_who_add_one_id_at_once_one_succeeds(make_scheduler: MakeScheduler) -> None:
    async with make_scheduler(queues=()) as scheduler:
        answers = await asyncio.gather(
            *(scheduler.add_job(nothing, every(60), id="x", args=[n]) for n in range(10)),
            return_exceptions=True,
        )
        added = [answer for answer in answers if isinstance(answer, Job)]
        assert added == [await scheduler.get_job("x")]
        assert sum(isinstance(answer, ConflictingIdError) for answer in answers) == 9


async def test_those_who_keep_one_id_at_once_all_get_the_same_job(make_scheduler: MakeScheduler) -> None:
    async with make_scheduler(queues=()) as scheduler:
        jobs = await asyncio.gather(
            *(scheduler.add_job(nothing, every(60), id="x", args=[n], on_conflict="keep") for n in range(10))
        )
        assert len({job.args for job in jobs}) == 1


async def test_those_who_replace_one_id_at_once_all_succeed(make_scheduler: MakeScheduler) -> None:
    async with make_scheduler(queues=()) as scheduler:
        await asyncio.gather(
            *(
                scheduler.add_job(nothing, every(60), id="x", args=[n], on_conflict="replace")
                for n in range(10)
            )
        )
        [job] = await scheduler.get_jobs()
        assert job.version == 10


async def test_of_those_who_remove_one_job_at_once_none_fails_in_another_way(
    make_scheduler: MakeScheduler,
) -> None:
    async with make_scheduler(queues=()) as scheduler:
        await scheduler.add_job(nothing, every(60), id="x")
        answers = await asyncio.gather(
            *(scheduler.remove_job("x") for _ in range(10)), return_exceptions=True
        )
        assert all(answer is True or isinstance(answer, JobLookupError) for answer in answers)
        assert True in answers
        assert await scheduler.get_jobs() == []


async def test_pausing_and_resuming_at_once_ends_in_one_of_both(make_scheduler: MakeScheduler) -> None:
    async with make_scheduler(queues=()) as scheduler:
        await scheduler.add_job(nothing, every(60), id="x")
        for _ in range(5):
            await asyncio.gather(
                scheduler.pause_job("x"), scheduler.resume_job("x"), scheduler.pause_job("x")
            )
            job = await scheduler.get_job("x")
            assert (job.state == "paused") == (job.next_fire_time is None)


class Locked(MemoryStore):
    """Its records can be read; whoever would change one waits in vain for another's transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0
        self.is_locked = True

    async def update(self, update: Update) -> Record | None:
        self.updates += 1
        if self.is_locked:
            raise StoreUnavailable("it did not answer in time")
        return await super().update(update)


async def test_a_job_that_others_have_locked_is_tried_three_times_and_the_reason_is_told() -> None:
    store = Locked()
    async with Scheduler(store, queues=()) as scheduler:
        await scheduler.add_job(nothing, every(60), id="x")
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await scheduler.pause_job("x")
        assert store.updates == 3
        store.is_locked = False
        assert (await scheduler.pause_job("x")).state == "paused"


async def test_in_a_user_s_transaction_a_change_is_tried_once() -> None:
    """What went wrong may have ended the transaction, and whatever is sent then is outside of it."""
    store: Any = Locked()
    async with Scheduler(store, queues=()) as scheduler:
        await scheduler.add_job(nothing, every(60), id="x")
        shelf = scheduler._engine.shelf("default")
        joined = Shelf("default", store, shelf.composer, shelf.editor, shelf.now, tries=1)
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await joined.change("x", lambda record: shelf.editor.cancel(record, shelf.now()))
    assert store.updates == 1


class Overtaken(MemoryStore):
    """The reply to an update is lost, and somebody changes the job before that is noticed."""

    overtake: Callable[[], Awaitable[object]] | None = None

    async def update(self, update: Update) -> Record | None:
        updated = await super().update(update)
        if self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            await overtake()
            raise StoreUnavailable("the reply was lost")
        return updated


async def test_a_run_whose_lost_reply_another_change_overtakes_is_asked_for_once() -> None:
    store = Overtaken()
    async with Scheduler(store) as scheduler:
        await scheduler.pause()
        await scheduler.add_job(nothing, every(3600), id="x")
        store.overtake = lambda: scheduler.update_job("x", tags=["overtaken"])
        await scheduler.run_job("x")
        assert (await scheduler.get_job("x")).tags == ("overtaken",)
        await scheduler.resume()
        await scheduler.wait_job("x", timeout=10)
        assert len(await scheduler.history.runs("x")) == 1
