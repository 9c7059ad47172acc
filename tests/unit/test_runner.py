"""The runner: a queue of typed jobs, with priorities, retries and hooks, that stands on a scheduler."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asyncsched import (
    AlreadyRunning,
    ConflictingIdError,
    ConflictingTaskError,
    DefinitionError,
    GiveUp,
    JobSpec,
    MemoryStore,
    NotRunning,
    RetryLater,
    Runner,
    RunnerJob,
    RunTimeout,
    Scheduler,
    SerializationError,
    Snooze,
    UnknownTaskError,
    once,
)
from asyncsched.contract import Record
from asyncsched.testing import ManualClock
from tests.servers.running import Servers
from tests.support.stores import url_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Email(msgspec.Struct):
    to: str
    subject: str = ""


class Hooks:
    """What the hooks of a runner were told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.jobs: list[RunnerJob[Any]] = []

    def arguments(self) -> dict[str, Callable[..., object]]:
        def start(job: RunnerJob[Any]) -> None:
            self._note("start", job)

        async def success(job: RunnerJob[Any]) -> None:
            self._note("success", job)

        def error(job: RunnerJob[Any], error: Exception) -> None:
            self._note("error", job, type(error), str(error))

        async def retry(job: RunnerJob[Any], error: Exception, attempt: int) -> None:
            self._note("retry", job, type(error), attempt)

        return {"on_start": start, "on_success": success, "on_error": error, "on_retry": retry}

    def _note(self, hook: str, job: RunnerJob[Any], *rest: Any) -> None:
        self.told.append((hook, job.id, *rest))
        self.jobs.append(job)


class Blocked:
    """A handler that notes what it is given, and goes on when it is let."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.go = asyncio.Event()

    async def __call__(self, job: RunnerJob[Any]) -> None:
        self.seen.append(job.payload)
        await self.go.wait()


# -- what is enqueued is handled -------------------------------------------------------------------------------------------


async def test_a_job_reaches_the_handler_of_its_type_on_every_store(
    store_kind: str, tmp_path: Path, servers: Servers
) -> None:
    store = MemoryStore() if store_kind == "memory" else url_of(store_kind, tmp_path, servers)
    runner, seen = Runner(store=store), list[RunnerJob[Email]]()
    runner.register("ignored", lambda job: None)

    @runner.register("send_email")
    async def send(job: RunnerJob[Email]) -> None:
        seen.append(job)

    async with runner:
        assert await runner.enqueue(
            RunnerJob("send_email", Email("a@example.org"), id="email-123", priority=3)
        )
        assert await runner.enqueue("send_email", Email("b@example.org"))
        assert await runner.enqueue(send, Email("c@example.org"))
        await eventually(lambda: len(seen) == 3)
        assert await runner.queue_len() == 0
    first = next(job for job in seen if job.id == "email-123")
    assert (first.type, first.payload, first.priority, first.attempts) == (
        "send_email",
        Email("a@example.org"),
        3,
        1,
    )
    assert (first.max_retries, first.retry_delay, first.timeout, first.error) == (3, 1.0, 30.0, None)
    assert first.created_at is not None
    assert {job.payload.to for job in seen} == {"a@example.org", "b@example.org", "c@example.org"}


async def test_higher_priorities_go_first_and_equal_ones_in_the_order_of_enqueueing() -> None:
    runner, blocked = Runner(workers=1), Blocked()
    runner.register("work", blocked)
    async with runner:
        await runner.enqueue("work", "first")
        await eventually(lambda: blocked.seen)
        for number, priority in enumerate([0, 5, 0, 9, 5]):
            assert await runner.enqueue(
                RunnerJob("work", (priority, number), priority=priority, id=f"{9 - number}")
            )
        assert await runner.queue_len() == 5
        blocked.go.set()
        await eventually(lambda: len(blocked.seen) == 6)
    assert blocked.seen[1:] == [(9, 3), (5, 1), (5, 4), (0, 0), (0, 2)]


async def test_no_more_jobs_are_handled_at_once_than_there_are_workers() -> None:
    runner, blocked = Runner(workers=2), Blocked()
    runner.register("work", blocked)
    async with runner:
        for number in range(5):
            await runner.enqueue("work", number)
        await eventually(lambda: len(blocked.seen) == 2)
        assert await runner.queue_len() == 3
        assert len(blocked.seen) == 2
        blocked.go.set()
    assert sorted(blocked.seen) == [0, 1, 2, 3, 4]


async def test_a_plain_handler_runs_in_a_thread() -> None:
    threads: list[threading.Thread] = []
    hooks = Hooks()
    runner = Runner(**hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives
    runner.register("plain", lambda job: threads.append(threading.current_thread()))
    async with runner:
        await runner.enqueue(RunnerJob("plain", None, id="one"))
        await eventually(lambda: len(hooks.told) == 2)
    assert threads
    assert threads[0] is not threading.main_thread()
    assert hooks.told == [("start", "one"), ("success", "one")]


# -- what is refused -------------------------------------------------------------------------------------------------------


async def test_what_can_never_be_handled_raises_when_it_is_enqueued() -> None:
    runner = Runner()

    @runner.register("send")
    async def send(job: RunnerJob[Email]) -> None: ...

    async with runner:
        with pytest.raises(
            UnknownTaskError, match=r"no handler is registered for job type 'sned'.*known: 'send'"
        ):
            await runner.enqueue("sned", Email("a"))
        with pytest.raises(UnknownTaskError, match="is the handler of no job type"):
            await runner.enqueue(Blocked(), None)
        with pytest.raises(SerializationError, match=r"args\[0\] of .* does not fit its annotation Email"):
            await runner.enqueue("send", "a@example.org")
        with pytest.raises(SerializationError):
            await runner.put("send", object())
        with pytest.raises(DefinitionError, match="priority must be a whole number from 0 to 9, not 10"):
            await runner.enqueue(RunnerJob("send", Email("a"), priority=10))
        with pytest.raises(
            DefinitionError, match=r"RunnerJob\(max_retries=\) must be a whole number, 0 or more"
        ):
            await runner.enqueue(RunnerJob("send", Email("a"), max_retries=-1))
        with pytest.raises(ConflictingTaskError):
            runner.register("send", lambda job: None)
        assert await runner.queue_len() == 0


async def test_an_id_that_is_taken_is_refused_and_takes_no_room() -> None:
    runner, blocked = Runner(workers=1, queue_size=2), Blocked()
    runner.register("work", blocked)
    async with runner:
        await runner.enqueue("work", 0)
        await eventually(lambda: blocked.seen)
        assert await runner.enqueue(RunnerJob("work", 1, id="same"))
        for _ in range(3):
            with pytest.raises(ConflictingIdError):
                await runner.enqueue(RunnerJob("work", 2, id="same"))
        assert await runner.enqueue("work", 3)
        assert not await runner.enqueue("work", 4)
        blocked.go.set()
    assert blocked.seen == [0, 1, 3]


@pytest.mark.parametrize(
    "options",
    [
        {"workers": -1}, {"workers": 1.5}, {"queue_size": 0}, {"max_retries": -1}, {"timeout": 0}, {"retry_delay": -1},
        {"name": ""}, {"scheduler": Scheduler(), "clock": ManualClock()}, {"scheduler": Scheduler(), "store": MemoryStore()},
        {"on_start": 5}, {"on_retry": "tell"},
    ],
)  # fmt: skip
def test_options_that_can_never_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Runner(**options)


async def test_what_no_job_could_be_handled_with_is_refused_at_once() -> None:
    runner = Runner()
    handlers: list[Any] = [lambda: None, lambda job, more: None, lambda *, job: None]
    for handler in handlers:
        with pytest.raises(DefinitionError, match="the handler of job type 'x' is called with the job alone"):
            runner.register("x", handler)
    runner.register("x", lambda job, more=1: None)
    runner.register("y", lambda *jobs: None)
    async with runner:
        job: Any = RunnerJob("x", 1)
        with pytest.raises(DefinitionError, match="a RunnerJob has its payload itself, so 5 beside it"):
            await runner.enqueue(job, 5)


async def test_a_runner_takes_jobs_between_start_and_stop_only() -> None:
    runner, blocked = Runner(), Blocked()
    blocked.go.set()
    runner.register("work", blocked)
    with pytest.raises(NotRunning, match=r"runner\.start\(\)"):
        await runner.enqueue("work", 0)
    await runner.start()
    with pytest.raises(AlreadyRunning):
        await runner.start()
    await runner.enqueue("work", 1)
    assert await runner.stop() == []
    with pytest.raises(NotRunning):
        await runner.put("work", 2)
    with pytest.raises(NotRunning):
        await runner.stop()
    async with runner:
        await runner.enqueue("work", 3)
    assert blocked.seen == [1, 3]


# -- the queue is bounded --------------------------------------------------------------------------------------------------


async def test_a_full_queue_answers_false_until_a_worker_takes_a_job() -> None:
    runner, blocked = Runner(workers=1, queue_size=2), Blocked()
    runner.register("work", blocked)
    async with runner:
        await runner.enqueue("work", 0)
        await eventually(lambda: blocked.seen)
        assert [await runner.enqueue("work", n) for n in (1, 2, 3, 4)] == [True, True, False, False]
        assert await runner.queue_len() == 2
        blocked.go.set()
        await eventually(lambda: len(blocked.seen) == 3)
        assert await runner.enqueue("work", 5)
    assert blocked.seen == [0, 1, 2, 5]


async def test_put_waits_for_room_first_come_first_served() -> None:
    runner, blocked = Runner(workers=1, queue_size=1), Blocked()
    runner.register("work", blocked)
    async with runner:
        await runner.enqueue("work", 0)
        await eventually(lambda: blocked.seen)
        await runner.put("work", 1)
        waiting = [asyncio.create_task(runner.put("work", n)) for n in (2, 3, 4)]
        await eventually(lambda: runner._line.locked())
        assert not any(put.done() for put in waiting)
        blocked.go.set()
        await asyncio.gather(*waiting)
    assert blocked.seen == [0, 1, 2, 3, 4]


async def test_a_job_that_waits_for_its_retry_takes_room() -> None:
    clock, hooks = ManualClock(), Hooks()
    runner = Runner(queue_size=2, retry_delay=60, clock=clock, **hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives

    @runner.register("fails")
    async def fails(job: RunnerJob[int]) -> None:
        raise ValueError(job.payload)

    async with runner:
        for number in (1, 2):
            assert await runner.enqueue("fails", number)
        await clock.advance(1)
        assert [told[0] for told in hooks.told].count("retry") == 2
        assert await runner.queue_len() == 2
        assert not await runner.enqueue("fails", 3)
        await runner.stop(timeout=0)


async def test_what_waits_in_a_durable_store_counts_after_a_restart(sqlite_url: str) -> None:
    client = Runner(workers=0, queue_size=4, store=sqlite_url)
    client.register("work", lambda job: None)
    async with client:
        assert [await client.enqueue("work", n) for n in range(6)] == [True] * 4 + [False] * 2
    async with client:
        assert await client.queue_len() == 4
        assert not await client.enqueue("work", 6)
        assert client.scheduler.queues == {}


async def test_two_processes_that_enqueue_at_once_overshoot_by_less_than_one_queue(sqlite_url: str) -> None:
    clients = [Runner(workers=0, queue_size=40, store=sqlite_url) for _ in range(2)]
    for client in clients:
        client.register("work", lambda job: None)
    async with clients[0], clients[1]:

        async def fill(client: Runner) -> None:
            while await client.enqueue("work"):
                pass

        await asyncio.gather(*map(fill, clients))
        assert 40 <= await clients[0].queue_len() <= 50


class SlowToAdd(MemoryStore):
    """A store that takes a while to write, as a server does."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        for _ in range(20):
            await asyncio.sleep(0)
        return await super().add(records)


async def test_calls_at_the_same_time_go_beyond_no_bound() -> None:
    client = Runner(workers=0, queue_size=8, store=SlowToAdd())
    client.register("work", lambda job: None)
    async with client:
        accepted = await asyncio.gather(*(client.enqueue("work") for _ in range(40)))
        assert sum(accepted) == await client.queue_len() == 8
        await client.stop(timeout=0)


class SlowToAnswer(MemoryStore):
    """A store whose answer to a write comes too late."""

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken = await super().add(records)
        if "#" not in records[0].id:
            await asyncio.Event().wait()
        return taken


async def test_calls_that_were_cancelled_after_the_job_was_stored_go_beyond_no_bound() -> None:
    client = Runner(workers=0, queue_size=3, store=SlowToAnswer())
    client.register("work", lambda job: None)
    async with client:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.enqueue("work"), 0.01)
        for _ in range(3):
            assert not await client.enqueue("work")
        assert await client.queue_len() == 3
        await client.stop(timeout=0)


async def test_who_handles_what_others_enqueue_has_no_room_beyond_the_bound(sqlite_url: str) -> None:
    front = Runner(workers=0, queue_size=6, store=sqlite_url)
    front.register("work", lambda job: None)
    back, blocked = Runner(workers=6, queue_size=6, store=sqlite_url), Blocked()
    back.register("work", blocked)
    async with front:
        for number in range(6):
            assert await front.enqueue("work", number)
        async with back:
            await eventually(lambda: len(blocked.seen) == 6)
            for number in range(6):
                await front.put("work", number)
            while await back.enqueue("work"):
                pass
            assert await front.queue_len() <= 7
            blocked.go.set()


async def test_a_job_that_is_put_off_takes_room() -> None:
    clock, seen = ManualClock(), list[int]()
    runner = Runner(queue_size=1, clock=clock)

    @runner.register("later")
    async def later(job: RunnerJob[int]) -> None:
        seen.append(job.payload)
        raise Snooze(clock.now() + timedelta(seconds=60))

    async with runner:
        assert await runner.enqueue("later", 1)
        await clock.advance(1)
        assert (seen, await runner.queue_len()) == ([1], 1)
        assert not await runner.enqueue("later", 2)
        await runner.stop(timeout=0)


def test_a_runner_may_be_used_in_one_event_loop_after_another() -> None:
    runner, seen = Runner(workers=1, queue_size=1), list[int]()

    @runner.register("work")
    async def work(job: RunnerJob[int]) -> None:
        await asyncio.sleep(0.001)
        seen.append(job.payload)

    async def main() -> None:
        async with runner:
            await asyncio.gather(*(runner.put("work", number) for number in range(4)))

    for _ in range(2):
        asyncio.run(main())
    assert sorted(seen) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_a_long_queue_is_not_counted_for_each_job() -> None:
    runner, blocked = Runner(workers=1, queue_size=1000), Blocked()
    runner.register("work", blocked)
    looks = 0

    async def count(limit: int | None) -> int:
        nonlocal looks
        looks += 1
        return await Runner._count(runner, limit)

    runner._count = count  # type: ignore[method-assign]  # the test takes its place
    async with runner:
        for number in range(500):
            assert await runner.enqueue("work", number)
        assert looks == 1
        blocked.go.set()


# -- retries ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retries", "delay", "expected"),
    [(5, 2, [2, 4, 8, 16, 32]), (None, None, [1, 2, 4]), (0, None, []), (1, timedelta(minutes=1), [60])],
)
async def test_n_retries_are_n_more_attempts_each_after_twice_the_wait(
    retries: int | None, delay: float | timedelta | None, expected: list[float]
) -> None:
    clock, hooks, begun = ManualClock(), Hooks(), list[float]()
    runner = Runner(clock=clock, **hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives

    @runner.register("fails")
    async def fails(job: RunnerJob[None]) -> None:
        begun.append(clock.time())
        assert job.attempts == len(begun)
        assert job.error == (None if len(begun) == 1 else f"ValueError: {len(begun) - 1}")
        raise ValueError(len(begun))

    async with runner:
        await runner.enqueue(RunnerJob("fails", None, id="it", max_retries=retries, retry_delay=delay))
        await clock.advance(500)
        assert [round(b - a, 3) for a, b in pairwise(begun)] == expected
        n = len(expected)
        told = [entry for entry in hooks.told if entry[0] != "start"]
        assert told == [
            *(("retry", "it", ValueError, attempt) for attempt in range(1, n + 1)),
            ("error", "it", ValueError, str(n + 1)),
        ]
        assert hooks.jobs[-1].attempts == n + 1
        assert hooks.jobs[-1].error == f"ValueError: {n + 1}"
        # What has failed for good is kept, where it takes no room of the queue, and can be tried again.
        assert (await runner.scheduler.get_job("it")).state == "failed"
        assert await runner.queue_len() == 0


async def test_a_job_that_succeeds_at_its_second_attempt_is_told_as_a_success() -> None:
    clock, hooks = ManualClock(), Hooks()
    runner = Runner(clock=clock, **hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives

    @runner.register("second")
    async def second(job: RunnerJob[None]) -> None:
        if job.attempts == 1:
            raise OSError("away")

    async with runner:
        await runner.enqueue(RunnerJob("second", None, id="it"))
        await clock.advance(5)
        assert hooks.told == [
            ("start", "it"),
            ("retry", "it", OSError, 1),
            ("start", "it"),
            ("success", "it"),
        ]
        assert hooks.jobs[-1].attempts == 2
        assert hooks.jobs[-1].error is None


@pytest.mark.parametrize("executor", ["async", "thread"])
async def test_an_attempt_that_takes_too_long_is_ended_and_retried(executor: str) -> None:
    hooks = Hooks()
    runner = Runner(retry_delay=0, max_retries=1, **hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives
    let_go = threading.Event()

    async def hangs(job: RunnerJob[None]) -> None:
        await asyncio.Event().wait()

    def hangs_in_a_thread(job: RunnerJob[None]) -> None:
        let_go.wait(0.2)

    runner.register("hangs", hangs if executor == "async" else hangs_in_a_thread)
    async with runner:
        await runner.enqueue(RunnerJob("hangs", None, id="it", timeout=0.05))
        await eventually(lambda: hooks.told and hooks.told[-1][0] == "error")
    assert [told[0] for told in hooks.told] == ["start", "retry", "start", "error"]
    assert hooks.told[-1][2:] == (RunTimeout, "took longer than its timeout of 0.05 s")


async def test_a_handler_may_steer_its_job() -> None:
    clock, hooks = ManualClock(), Hooks()
    runner = Runner(clock=clock, **hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives

    @runner.register("steers")
    async def steers(job: RunnerJob[str]) -> None:
        raise GiveUp("no use") if job.payload == "give up" else RetryLater(100)

    async with runner:
        await runner.enqueue(RunnerJob("steers", "give up", id="a"))
        await clock.advance(1)
        assert hooks.told == [("start", "a"), ("error", "a", GiveUp, "no use")]
        hooks.told.clear()
        await runner.enqueue(RunnerJob("steers", "later", id="b", max_retries=1))
        await clock.advance(99)
        assert hooks.told == [("start", "b"), ("retry", "b", RetryLater, 1)]
        await clock.advance(2)
        assert [told[0] for told in hooks.told] == ["start", "retry", "start", "error"]


async def test_a_payload_that_fits_its_handler_no_more_is_an_error_and_not_a_lost_job(
    sqlite_url: str,
) -> None:
    old = Runner(workers=0, store=sqlite_url)
    old.register("send", lambda job: None)
    async with old:
        await old.enqueue(RunnerJob("send", "a@example.org", id="it", max_retries=0))
    hooks = Hooks()
    new = Runner(store=sqlite_url, **hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives

    @new.register("send")
    async def send(job: RunnerJob[Email]) -> None: ...

    async with new:
        await eventually(lambda: hooks.told)
        assert [told[:2] for told in hooks.told] == [("error", "it")]
        assert hooks.jobs[0].payload == "a@example.org"
        assert "does not fit" in (hooks.jobs[0].error or "")


# -- hooks harm nobody -----------------------------------------------------------------------------------------------------


async def test_a_raising_or_hanging_hook_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    hangs = asyncio.Event()

    def on_start(job: RunnerJob[int]) -> None:
        raise ZeroDivisionError("hook")

    async def on_success(job: RunnerJob[int]) -> None:
        await hangs.wait()

    runner = Runner(on_start=on_start, on_success=on_success)
    runner.register("work", lambda job: done.append(job.payload))
    async with runner:
        for number in range(20):
            await runner.enqueue("work", number)
        await eventually(lambda: len(done) == 20)
        assert await runner.queue_len() == 0
        hangs.set()
    assert sorted(done) == list(range(20))
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("owns", [True, False])
async def test_a_stop_waits_for_a_hook_that_hangs_but_not_for_ever(
    owns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsched.runner._HOOKS_S", 0.05)
    monkeypatch.setattr("asyncsched.runner._LAST_HOOKS_S", 0.05)
    hanging = asyncio.Event()

    async def hang(job: RunnerJob[Any]) -> None:
        hanging.set()
        await asyncio.Event().wait()

    scheduler = Scheduler()
    runner = Runner(on_start=hang) if owns else Runner(scheduler=scheduler, on_start=hang)
    runner.register("work", lambda job: None)
    before = asyncio.all_tasks()
    async with scheduler, runner:
        await runner.enqueue("work")
        await hanging.wait()
    assert asyncio.all_tasks() == before


async def test_a_hook_whose_wait_is_cancelled_is_called_again(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    async def on_success(job: RunnerJob[int]) -> None:
        told.append(job.payload)
        waited = asyncio.get_running_loop().create_future()
        waited.cancel()
        await waited

    runner = Runner(workers=1, on_success=on_success)
    runner.register("work", lambda job: None)
    async with runner:
        for number in range(3):
            await runner.enqueue("work", number)
    assert told == [0, 1, 2]
    assert "CancelledError" in caplog.text


async def test_hooks_are_told_of_every_end_amid_a_flood_of_other_events() -> None:
    scheduler, hooks = Scheduler(), Hooks()
    runner = Runner(scheduler=scheduler, workers=20, **hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives
    later = JobSpec(scheduler.register(print, "later"), once(delay=86_400))
    blocked = Blocked()
    runner.register("wait", blocked)
    async with scheduler, runner:
        for number in range(20):
            await runner.enqueue("wait", number)
        await eventually(lambda: len(blocked.seen) == 20)
        blocked.go.set()
        for _ in range(20):
            await asyncio.sleep(0)
            await scheduler.add_jobs([later] * 1500)
        await eventually(lambda: len(hooks.told) == 40)
    assert sum(told[0] == "success" for told in hooks.told) == 20
    assert runner._at_work == {}


async def test_the_end_of_a_job_that_was_removed_meanwhile_is_told_as_it_was() -> None:
    hooks, go = Hooks(), asyncio.Event()
    runner = Runner(**hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives

    @runner.register("work")
    async def work(job: RunnerJob[str | None]) -> None:
        await go.wait()
        if job.payload is not None:
            raise ValueError(job.payload)

    async with runner:
        await runner.enqueue(RunnerJob("work", None, id="good"))
        await runner.enqueue(RunnerJob("work", "bad", id="bad"))
        await eventually(lambda: len(hooks.told) == 2)
        for id in ("good", "bad"):
            await runner.scheduler.remove_job(id)
        await asyncio.sleep(0)
        go.set()
        await eventually(lambda: len(hooks.told) == 4)
    assert sorted(hooks.told[2:]) == [("error", "bad", ValueError, "bad"), ("success", "good")]
    assert {job.payload for job in hooks.jobs[2:]} == {None, "bad"}


async def test_a_raising_handler_harms_no_other_job() -> None:
    runner, done = Runner(workers=2, max_retries=0), list[int]()

    @runner.register("odd")
    async def odd(job: RunnerJob[int]) -> None:
        if job.payload % 2:
            raise SystemExit(job.payload)
        done.append(job.payload)

    async with runner:
        for number in range(20):
            await runner.enqueue("odd", number)
    assert sorted(done) == list(range(0, 20, 2))


# -- stopping --------------------------------------------------------------------------------------------------------------


async def test_a_stop_in_memory_handles_what_was_accepted() -> None:
    runner, done = Runner(workers=2), list[int]()
    runner.register("work", lambda job: done.append(job.payload))
    await runner.start()
    for number in range(60):
        await runner.put("work", number)
    assert await runner.stop(timeout=30) == []
    assert sorted(done) == list(range(60))


async def test_what_a_stop_in_memory_cannot_handle_is_returned_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner, blocked = Runner(workers=1), Blocked()
    runner.register("work", blocked)
    await runner.start()
    for number in range(3):
        await runner.enqueue(RunnerJob("work", number, id=f"job-{number}", priority=number))
    await eventually(lambda: blocked.seen)
    left = await runner.stop(timeout=0.05)
    assert sorted((job.id, job.type, job.payload, job.priority) for job in left) == [
        (f"job-{number}", "work", number, number) for number in range(3)
    ]
    assert "job-0" in caplog.text
    assert "before 3 accepted jobs had run" in caplog.text
    # They are there still, if the same runner goes on.
    blocked.go.set()
    blocked.seen.clear()
    async with runner:
        await eventually(lambda: len(blocked.seen) == 3)


@pytest.mark.parametrize("owns", [True, False])
async def test_a_handler_that_stops_its_runner_is_not_waited_for_and_ends_in_peace(owns: bool) -> None:
    scheduler, hooks = Scheduler(), Hooks()
    options: dict[str, Any] = {} if owns else {"scheduler": scheduler}
    runner = Runner(workers=2, **options, **hooks.arguments())
    left: list[Any] = []

    @runner.register("last")
    async def last(job: RunnerJob[None]) -> None:
        left.append(await runner.stop(timeout=20))

    others = asyncio.all_tasks()
    async with scheduler:
        await runner.start()
        async with asyncio.timeout(60):
            await runner.enqueue("last")
            await eventually(lambda: len(hooks.told) == 2)
    await eventually(lambda: runner.scheduler.state == "stopped")
    assert left == [[]]
    assert [told[0] for told in hooks.told] == ["start", "success"]
    await eventually(lambda: asyncio.all_tasks() == others)


@pytest.mark.parametrize("owns", [True, False])
async def test_a_stop_that_is_cancelled_waits_no_longer(owns: bool) -> None:
    scheduler, blocked = Scheduler(), Blocked()
    runner = Runner(workers=1) if owns else Runner(workers=1, scheduler=scheduler)
    runner.register("work", blocked)
    async with scheduler:
        await runner.start()
        for number in range(2):
            await runner.enqueue("work", number)
        await eventually(lambda: blocked.seen)
        async with asyncio.timeout(60):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(runner.stop(timeout=600), 0.05)
        blocked.go.set()
        await asyncio.sleep(0.05)
        assert blocked.seen == [0]
        assert runner.scheduler.is_running is not owns


async def test_a_stop_on_a_durable_store_leaves_what_waits_to_the_next_runner(sqlite_url: str) -> None:
    first, blocked = Runner(workers=1, store=sqlite_url), Blocked()
    first.register("work", blocked)
    await first.start()
    for number in range(5):
        await first.enqueue("work", number)
    await eventually(lambda: blocked.seen)
    assert await first.stop(timeout=0) == []
    second, done = Runner(store=sqlite_url), list[int]()
    second.register("work", lambda job: done.append(job.payload))
    async with second:
        await eventually(lambda: len(done) == 5)
    assert sorted(done) == [0, 1, 2, 3, 4]


async def test_hooks_are_called_before_stop_returns() -> None:
    hooks = Hooks()
    runner = Runner(**hooks.arguments())  # type: ignore[arg-type]  # whatever a test gives
    runner.register("work", lambda job: None)
    async with runner:
        for number in range(30):
            await runner.enqueue("work", number)
    assert sorted(told[0] for told in hooks.told) == ["start"] * 30 + ["success"] * 30


# -- on a scheduler that is given ------------------------------------------------------------------------------------------


async def test_a_runner_may_stand_on_a_scheduler_that_does_other_work_too() -> None:
    scheduler = Scheduler()
    mail, rest = Runner(scheduler=scheduler, name="mail", workers=2), Runner(scheduler=scheduler)
    seen: list[str] = []
    for runner in (mail, rest):
        runner.register("work", lambda job, name=runner.name: seen.append(f"{name}:{job.payload}"))
    with pytest.raises(NotRunning, match="scheduler that is not running"):
        await mail.start()
    assert scheduler.queues == {"default": None, "mail": 2, "runner": 4}
    async with scheduler, mail, rest:
        await mail.enqueue("work", 1)
        await rest.enqueue("work", 2)
        await scheduler.enqueue(seen.append, "3")
        await eventually(lambda: len(seen) == 3)
        assert await mail.stop() == []
        with pytest.raises(NotRunning):
            await mail.enqueue("work", 4)
        assert scheduler.is_running
        await mail.start()
        await mail.enqueue("work", 5)
        await eventually(lambda: len(seen) == 4)
    assert sorted(seen) == ["3", "mail:1", "mail:5", "runner:2"]


async def test_what_a_scheduler_that_goes_on_still_handles_is_not_left_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler, blocked, hooks = Scheduler(), Blocked(), Hooks()
    runner = Runner(workers=1, scheduler=scheduler, **hooks.arguments())
    runner.register("work", blocked)
    async with scheduler, runner:
        await runner.enqueue("work", 0)
        await eventually(lambda: blocked.seen)
        assert await runner.stop(timeout=0.05) == []
        blocked.go.set()
        await eventually(lambda: len(hooks.told) == 2)
    assert [told[0] for told in hooks.told] == ["start", "success"]
    assert "had run" not in caplog.text


async def test_the_limit_that_a_scheduler_has_for_the_queue_counts() -> None:
    scheduler = Scheduler(queues={"default": None, "runner": 1})
    runner, blocked = Runner(scheduler=scheduler), Blocked()
    runner.register("work", blocked)
    assert scheduler.queues["runner"] == 1
    async with scheduler, runner:
        for number in range(3):
            await runner.enqueue("work", number)
        await eventually(lambda: blocked.seen)
        assert await runner.queue_len() == 2
        left = await runner.stop(timeout=0.05)
        assert sorted(job.payload for job in left) == [1, 2]
        blocked.go.set()


async def test_a_queue_that_is_served_from_now_on_has_its_limit() -> None:
    scheduler, blocked = Scheduler(), Blocked()
    async with scheduler:
        runner = Runner(scheduler=scheduler, workers=3)
        runner.register("work", blocked)
        for number in range(5):
            await runner.enqueue("work", number)
        await eventually(lambda: len(blocked.seen) == 3)
        assert await runner.queue_len() == 2
        blocked.go.set()
        await eventually(lambda: len(blocked.seen) == 5)


async def test_jobs_that_a_limit_of_the_scheduler_holds_back_are_in_the_queue_too() -> None:
    clock, done = ManualClock(), list[int]()
    scheduler = Scheduler(defaults={"rate_limit": "1/minute"}, clock=clock)
    runner = Runner(scheduler=scheduler, queue_size=4)
    runner.register("work", lambda job: done.append(job.payload))
    async with scheduler:
        await runner.start()
        for number in range(5):
            await runner.put("work", number)
            await clock.advance(0)
            await eventually(lambda: done == [0])
        assert await runner.queue_len() == 4
        stopping = asyncio.create_task(runner.stop(timeout=1))
        await clock.advance(2)
        assert sorted(job.payload for job in await stopping) == [1, 2, 3, 4]


async def test_a_job_that_is_cancelled_for_good_is_told_as_an_error() -> None:
    hooks = Hooks()
    runner = Runner(**hooks.arguments())
    blocked = Blocked()
    runner.register("block", blocked)

    @runner.register("cancelled")
    async def cancelled(job: RunnerJob[Any]) -> None:
        raise asyncio.CancelledError

    async with runner:
        await runner.enqueue(RunnerJob("cancelled", None, id="by itself"))
        await runner.enqueue(RunnerJob("block", None, id="by request"))
        await eventually(lambda: blocked.seen)
        await runner.scheduler.cancel_job("by request")
        await eventually(lambda: sum(told[0] == "error" for told in hooks.told) == 2)
        assert {told[1] for told in hooks.told if told[0] == "error"} == {"by itself", "by request"}


async def test_a_stop_tells_no_error_of_what_it_cancels() -> None:
    hooks = Hooks()
    runner = Runner(**hooks.arguments())
    blocked = Blocked()
    runner.register("block", blocked)
    async with runner:
        await runner.enqueue(RunnerJob("block", None, id="a"))
        await eventually(lambda: blocked.seen)
        await runner.stop(0)
    assert [told[0] for told in hooks.told] == ["start"]


async def test_a_handler_that_gives_a_coroutine_is_handled_when_that_has_ended() -> None:
    hooks = Hooks()
    runner = Runner(max_retries=0, **hooks.arguments())
    seen: list[Any] = []

    async def send(job: RunnerJob[Any]) -> None:
        seen.append(job.payload)
        if job.payload == "bad":
            raise ConnectionError("away")

    runner.register("send", lambda job: send(job))
    async with runner:
        await runner.enqueue(RunnerJob("send", "good", id="good"))
        await runner.enqueue(RunnerJob("send", "bad", id="bad"))
        await eventually(lambda: len(hooks.told) == 4)
    assert sorted(seen) == ["bad", "good"]
    assert ("success", "good") in hooks.told
    assert ("error", "bad", ConnectionError, "away") in hooks.told


async def test_hooks_are_told_of_every_end_where_many_jobs_end_at_once() -> None:
    told: list[int] = []
    runner = Runner(workers=2000, queue_size=2000, on_success=lambda job: told.append(job.payload))
    blocked = Blocked()
    runner.register("block", blocked)
    async with runner:
        for n in range(1600):
            assert await runner.enqueue("block", n)
        await eventually(lambda: len(blocked.seen) == 1600)
        blocked.go.set()
        await eventually(lambda: len(told) == 1600, timeout=20)
    assert not runner._at_work
