"""Tasks: how functions are registered and called, where they run, and what lives as long as they do."""

import asyncio
import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncsched import (
    Call,
    ConflictingTaskError,
    DefinitionError,
    Retry,
    Scheduler,
    Task,
    TransientJobError,
    UnknownTaskError,
    current_run,
    every,
    once,
)
from asyncsched.codec import decode_definition
from asyncsched.testing import ManualClock

pytestmark = pytest.mark.anyio

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="it asks /proc which processes live")


async def add(a: int, b: int = 1) -> int:
    return a + b


async def until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Wait for what happens in real time."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - it waits for what has no event
            await asyncio.sleep(0.005)


# -- registering -------------------------------------------------------------------------------------------------------


def test_the_bare_decorator_names_a_task_by_module_and_qualname() -> None:
    scheduler = Scheduler()
    task = scheduler.task(add)
    assert isinstance(task, Task)
    assert task.name == f"{__name__}:add"
    assert scheduler.tasks == {task.name: task}


def test_the_decorator_takes_arguments() -> None:
    scheduler = Scheduler()

    @scheduler.task(name="t", timeout=5, retry=Retry(max_attempts=2))
    async def function() -> None: ...

    assert (function.name, function.timeout, function.retry) == ("t", 5.0, Retry(max_attempts=2))


def test_the_decorator_may_be_called_without_arguments() -> None:
    scheduler = Scheduler()
    assert scheduler.task()(add).name == f"{__name__}:add"


def test_register_takes_a_function_from_elsewhere() -> None:
    scheduler = Scheduler()
    assert scheduler.register(add).name == f"{__name__}:add"
    assert scheduler.register(add, name="plus").name == "plus"
    assert set(scheduler.tasks) == {f"{__name__}:add", "plus"}


def test_registering_the_same_function_twice_is_no_conflict() -> None:
    scheduler = Scheduler()
    scheduler.register(add, "t")
    scheduler.register(add, "t")
    assert list(scheduler.tasks) == ["t"]


def test_a_taken_name_is_refused() -> None:
    scheduler = Scheduler()
    first = scheduler.register(add, "t")
    with pytest.raises(ConflictingTaskError) as caught:
        scheduler.register(until, "t")
    assert caught.value.task == "t"
    assert scheduler.tasks["t"] is first


def test_tasks_are_read_only() -> None:
    scheduler = Scheduler()
    with pytest.raises(TypeError):
        scheduler.tasks["t"] = Task(add, "t")  # type: ignore[index]  # it is refused


def test_unregister_forgets_a_task_by_name_or_by_itself() -> None:
    scheduler = Scheduler()
    scheduler.register(add, "a")
    b = scheduler.register(until, "b")
    scheduler.unregister("a")
    scheduler.unregister(b)
    assert scheduler.tasks == {}
    with pytest.raises(UnknownTaskError) as caught:
        scheduler.unregister("a")
    assert caught.value.task == "a"


def test_a_name_is_free_again_after_unregister() -> None:
    scheduler = Scheduler()
    scheduler.register(add, "t")
    scheduler.unregister("t")
    assert scheduler.register(until, "t").function is until


@pytest.mark.parametrize("name", ["a\0b", "x" * 256, "\ud800", "#flow"])
def test_a_name_that_no_store_can_keep_or_that_is_asyncscheds_own_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError):
        Scheduler().register(add, name)


@pytest.mark.parametrize("thing", [None, 3, "print", [add]])
def test_what_cannot_be_called_is_no_task(thing: Any) -> None:
    with pytest.raises(DefinitionError):
        Scheduler().register(thing)


def test_a_plain_function_is_no_async_task() -> None:
    with pytest.raises(DefinitionError, match="async def"):
        Scheduler().register(time.sleep, executor="async")


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_coroutine_function_runs_in_no_thread_or_process(executor: Any) -> None:
    with pytest.raises(DefinitionError):
        Scheduler().register(add, executor=executor)


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(DefinitionError):
        Scheduler().register(time.sleep, executor="fiber")  # type: ignore[arg-type]  # mypy is right: that is what is tested


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_timeout_that_is_no_duration_is_refused(timeout: Any) -> None:
    with pytest.raises(DefinitionError, match="timeout"):
        Scheduler().register(add, timeout=timeout)


@pytest.mark.parametrize(
    "option", [{"retry": 3}, {"lifespan": 3}, {"max_concurrency": 0}, {"rate_limit": ""}]
)
@pytest.mark.parametrize("function", [add, Task(add, "t")], ids=["function", "task"])
def test_an_option_of_a_wrong_kind_is_refused_by_name(option: dict[str, Any], function: Any) -> None:
    with pytest.raises(DefinitionError, match=next(iter(option))):
        Scheduler().register(function, **option)


async def test_a_task_that_is_added_as_it_was_before_it_was_registered_keeps_what_it_was_registered_with(
    scheduler: Scheduler,
) -> None:
    made = Task(add, "t", timeout=5)
    registered = scheduler.register(made, max_concurrency=1)
    await scheduler.add_job(made, every(60), args=[1])
    assert scheduler.tasks["t"] is registered
    assert (registered.max_concurrency, registered.timeout) == (1, 5)


async def test_tasks_may_be_registered_and_used_after_start(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task
    async def late() -> str:
        return "late"

    job = await scheduler.add_job(late)
    await clock.advance(0)
    assert (await scheduler.history.runs(job.id))[0].result == "late"


# -- calling and binding -----------------------------------------------------------------------------------------------


async def test_a_task_calls_like_its_function() -> None:
    task = Scheduler().task(add)
    assert await task(1) == 2
    assert await task(1, b=5) == 6


def test_a_plain_task_calls_like_its_function() -> None:
    task = Scheduler().task(functools.partial(max, 1))
    assert task(5) == 5


def test_a_task_looks_like_its_function() -> None:
    task = Scheduler().task(add)
    assert (task.__name__, task.__doc__, task.__wrapped__) == ("add", add.__doc__, add)  # type: ignore[attr-defined]  # functools.update_wrapper sets it


async def test_a_task_in_a_class_binds_as_its_function_would() -> None:
    scheduler = Scheduler()

    class Counter:
        n = 0

        @scheduler.task
        async def add(self, n: int) -> int:
            self.n += n
            return self.n

    counter = Counter()
    assert await counter.add(2) == 2
    assert await counter.add(3) == 5


def test_bind_makes_a_call() -> None:
    call = Scheduler().task(add).bind(1, b=2)
    assert isinstance(call, Call)
    assert (call.args, call.kwargs) == ((1,), {"b": 2})


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"c": 3}), ((1,), {"a": 1})])
def test_a_call_that_does_not_fit_the_signature_is_refused(args: Any, kwargs: Any) -> None:
    task = Scheduler().register(add, "plus")
    with pytest.raises(DefinitionError, match="plus") as caught:
        task.bind(*args, **kwargs)
    assert caught.value.task == "plus"


@pytest.mark.parametrize(
    ("args", "kwargs", "path"), [(("1",), {}, r"args\[0\]"), ((1,), {"b": None}, r"kwargs\.b")]
)
def test_a_call_of_the_wrong_types_is_refused_with_the_path(args: Any, kwargs: Any, path: str) -> None:
    task = Scheduler().register(add, "plus")
    with pytest.raises(DefinitionError, match=path):
        task.bind(*args, **kwargs)


async def test_options_carry_policies_into_the_job(scheduler: Scheduler, clock: ManualClock) -> None:
    task = scheduler.task(add)
    call = (
        task.options(queue="q", priority=3, id="x", tags=["a"], timeout=9)
        .options(delay=5, priority=4)
        .bind(1)
    )
    job = await scheduler.add_job(call)
    assert (job.id, job.queue, job.priority, job.tags, job.args) == ("x", "q", 4, ("a",), (1,))
    assert job.next_fire_time is not None
    assert job.next_fire_time.timestamp() == clock.time() + 5


async def test_what_is_said_with_the_job_counts_and_not_the_options(scheduler: Scheduler) -> None:
    call = scheduler.task(add).options(queue="q", id="x", tags=["a"], timeout=9, delay=5).bind(1)
    job = await scheduler.add_job(call, id="y", queue="other", timeout=3)
    assert (job.id, job.queue, job.tags) == ("y", "other", ("a",))
    record = (await scheduler.stores["default"].get(["y"]))["y"]
    assert decode_definition(record.body).policies.timeout == 3


async def test_options_check_the_call(scheduler: Scheduler) -> None:
    with pytest.raises(DefinitionError):
        scheduler.task(add).options(queue="q").bind()


async def test_unknown_options_are_named_when_the_job_is_added(scheduler: Scheduler) -> None:
    call = scheduler.task(add).options(retires=3).bind(1)
    with pytest.raises(DefinitionError, match="retires"):
        await scheduler.add_job(call)


async def test_options_leave_the_task_itself_alone(scheduler: Scheduler) -> None:
    task = scheduler.task(add)
    task.options(queue="q")
    assert (await scheduler.add_job(task, once(delay=5), args=[1])).queue == "default"


# -- where a task runs -------------------------------------------------------------------------------------------------


def where_am_i(word: str) -> tuple[str, int, int]:
    return word, os.getpid(), threading.get_ident()


def fail_in_place() -> None:
    raise ValueError("from afar")


def stop_iteration() -> None:
    next(iter(()))


def sleep_long(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


async def test_a_coroutine_function_runs_in_the_event_loop() -> None:
    async with Scheduler() as scheduler:

        @scheduler.task(name="here")
        async def here() -> int:
            return threading.get_ident()

        job = await scheduler.add_job(here)
        await scheduler.wait_job(job.id, timeout=10)
        assert (await scheduler.history.runs(job.id))[0].result == threading.get_ident()


async def test_a_plain_function_runs_in_a_thread() -> None:
    async with Scheduler() as scheduler:
        job = await scheduler.add_job(where_am_i, args=["hi"])
        await scheduler.wait_job(job.id, timeout=10)
        word, process, thread = (await scheduler.history.runs(job.id))[0].result
    assert (word, process) == ("hi", os.getpid())
    assert thread != threading.get_ident()


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_a_function_that_raises_stop_iteration_fails(executor: Any) -> None:
    """It cannot be put into a future; the run would never end."""
    async with Scheduler() as scheduler:
        task = scheduler.register(stop_iteration, executor=executor)
        job = await scheduler.add_job(task)
        await scheduler.wait_job(job.id, timeout=30)
        [run] = await scheduler.history.runs(job.id)
    assert (run.outcome, run.error) == ("failed", "RuntimeError: the task raised StopIteration")


async def test_a_run_in_a_thread_knows_itself_and_may_use_from_thread() -> None:
    scheduler = Scheduler()

    @scheduler.task(name="threaded")
    def threaded() -> str:
        run = current_run()
        run.annotate(seen=True)
        run.scheduler.from_thread.add_job("threaded", every(60), id="next")
        return run.job_id

    async with scheduler:
        job = await scheduler.add_job(threaded, id="x")
        await scheduler.wait_job(job.id, timeout=10)
        run = (await scheduler.history.runs("x"))[0]
        assert (run.result, run.metadata) == ("x", {"seen": True})
        assert (await scheduler.get_job("next")).task == "threaded"


async def test_threads_do_not_hold_up_the_loop_or_each_other() -> None:
    barrier = threading.Barrier(5, timeout=10)
    async with Scheduler() as scheduler:

        @scheduler.task(name="meet")
        def meet() -> None:
            barrier.wait()

        receipts = [await scheduler.enqueue(meet) for _ in range(5)]
        for receipt in receipts:
            await scheduler.wait_job(receipt.job_id, timeout=10)
        assert (await scheduler.history.stats()).succeeded == 5


async def test_a_function_may_run_in_a_process() -> None:
    async with Scheduler() as scheduler:
        task = scheduler.register(where_am_i, executor="process")
        job = await scheduler.add_job(task, args=["hi"])
        await scheduler.wait_job(job.id, timeout=30)
        run = (await scheduler.history.runs(job.id))[0]
    assert run.outcome == "succeeded", run.error
    word, process, _ = run.result
    assert word == "hi"
    assert process != os.getpid()


async def test_a_decorated_function_may_run_in_a_process() -> None:
    async with Scheduler() as scheduler:
        task = scheduler.register(decorated_for_process, executor="process")
        job = await scheduler.add_job(task)
        await scheduler.wait_job(job.id, timeout=30)
        run = (await scheduler.history.runs(job.id))[0]
    assert (run.error, run.result) == (None, "from a process")


def _decorated() -> str:
    return "from a process"


_decorated.__name__ = _decorated.__qualname__ = "decorated_for_process"
decorated_for_process = Scheduler().task(_decorated)


async def test_an_error_in_a_process_is_the_runs_error() -> None:
    async with Scheduler() as scheduler:
        task = scheduler.register(fail_in_place, executor="process")
        job = await scheduler.add_job(task)
        await scheduler.wait_job(job.id, timeout=30)
        run = (await scheduler.history.runs(job.id))[0]
    assert (run.outcome, run.error) == ("failed", "ValueError: from afar")


class Refused(Exception):
    """One that cannot be made again from its text."""

    def __init__(self, order: int, why: str) -> None:
        super().__init__(f"order {order}: {why}")
        self.order = order


class Doubled(Exception):
    """One that is made again with another text."""

    def __init__(self, order: str) -> None:
        super().__init__(f"order {order}")


class Holding(Exception):
    """One that may hold what cannot leave its process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def raise_in_process(kind: str) -> None:
    class Local(Exception): ...

    errors = {
        "refused": Refused(7, "no money"),
        "doubled": Doubled("7"),
        "holding": Holding("order 7"),
        "local": Local("order 7"),
        "group": ExceptionGroup("all", [Refused(7, "no money")]),
        "interrupt": KeyboardInterrupt(),
    }
    raise errors[kind]


@pytest.mark.parametrize(
    ("kind", "attempts", "error"),
    [
        ("refused", 1, "Refused: order 7: no money"),
        ("doubled", 1, "Doubled: order 7"),
        ("holding", 1, "Holding: order 7"),
        ("local", 2, "RuntimeError: Local: order 7"),
        ("group", 2, "RuntimeError: ExceptionGroup: all (1 sub-exception)"),
        ("interrupt", 2, "RuntimeError: the worker process was interrupted"),
    ],
)
async def test_an_error_in_a_process_keeps_its_text_and_where_that_can_be_its_class(
    kind: str, attempts: int, error: str
) -> None:
    retry = Retry(max_attempts=2, base=0.01, never_on=(Refused, Doubled, Holding))
    async with Scheduler() as scheduler:
        task = scheduler.register(raise_in_process, executor="process", retry=retry)
        receipt = await scheduler.enqueue(task, kind)
        await scheduler.wait_job(receipt.job_id, timeout=30)
        runs = await scheduler.history.runs(receipt.job_id)
    assert [(run.outcome, run.error) for run in runs] == attempts * [("failed", error)]


INTERRUPTED = """
    import asyncio, pathlib, time
    from asyncsched import RunFinished, Scheduler

    scheduler = Scheduler()
    scheduler.on(RunFinished, lambda event: print(event.outcome, event.error, flush=True))

    def work():
        pathlib.Path("began").touch()
        while not pathlib.Path("over").exists():
            time.sleep(0.01)

    task = scheduler.register(work, executor="process")
    if __name__ == "__main__":
        scheduler.job("@every 1h", id="x", run_on_start=True)(task)
        asyncio.run(scheduler.run(drain=20))
"""


@needs_proc
def test_ctrl_c_reaches_all_processes_and_lets_their_runs_end(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(textwrap.dedent(INTERRUPTED))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "began").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)  # The interrupt is to come before the end.
        (tmp_path / "over").touch()
        said, _ = process.communicate(timeout=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (said, process.returncode) == ("succeeded None\n", 0)


@needs_proc
async def test_a_process_run_that_takes_too_long_is_killed(tmp_path: Any) -> None:
    pid_file = tmp_path / "pid"
    async with Scheduler() as scheduler:
        task = scheduler.register(sleep_long, executor="process")
        job = await scheduler.add_job(task, args=[str(pid_file)], timeout=2)
        await scheduler.wait_job(job.id, timeout=30)
        run = (await scheduler.history.runs(job.id))[0]
    assert run.outcome == "timed_out"
    if pid_file.exists():
        pid = int(pid_file.read_text())
        await until(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    "function",
    [lambda: None, functools.partial(where_am_i, "x"), threading.Event().set],
    ids=["lambda", "partial", "bound method"],
)
def test_what_another_process_cannot_find_again_is_refused_for_a_process(function: Any) -> None:
    with pytest.raises(DefinitionError):
        Scheduler().register(function, name="t", executor="process")


@needs_proc
async def test_no_child_process_is_left_after_stop() -> None:
    before = _children()
    async with Scheduler() as scheduler:
        task = scheduler.register(where_am_i, executor="process")
        job = await scheduler.add_job(task, args=["hi"])
        await scheduler.wait_job(job.id, timeout=30)
    assert multiprocessing.active_children() == []
    await until(lambda: _children() <= before)


def _children() -> set[int]:
    """Live direct children of this process, by what the kernel says."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    state, parent = file.read().rsplit(")", 1)[1].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(parent) == os.getpid() and state != "Z":
                found.add(int(name))
    return found


# -- lifespans ---------------------------------------------------------------------------------------------------------


async def test_a_tasks_lifespan_is_entered_once_before_its_first_run_and_left_after_the_drain(
    clock: ManualClock,
) -> None:
    scheduler, steps = Scheduler(clock=clock), list[str]()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        steps.append("entered")
        yield
        steps.append("left")

    @scheduler.task(name="work", lifespan=lifespan)
    async def work() -> None:
        steps.append("began")
        await clock.sleep(5)
        steps.append("ended")

    await scheduler.start()
    assert steps == []
    await scheduler.add_job(work)
    await clock.advance(6)
    await scheduler.add_job(work)
    await clock.advance(1)
    stopping = asyncio.get_running_loop().create_task(scheduler.stop())
    await clock.advance(6)
    await stopping
    assert steps == ["entered", "began", "ended", "began", "ended", "left"]


async def test_runs_that_begin_together_share_one_lifespan(scheduler: Scheduler, clock: ManualClock) -> None:
    entered = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        entered.append(1)
        await asyncio.sleep(0)
        yield

    @scheduler.task(name="work", lifespan=lifespan)
    async def work() -> int:
        return len(entered)

    await scheduler.pause()
    for _ in range(5):
        await scheduler.add_job(work)
    await scheduler.resume()
    await clock.advance(1)
    assert [run.result for run in await scheduler.history.runs()] == [1] * 5


async def test_a_lifespan_is_entered_anew_after_a_restart(clock: ManualClock) -> None:
    scheduler, steps = Scheduler(clock=clock), list[str]()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        steps.append("entered")
        yield
        steps.append("left")

    @scheduler.task(name="work", lifespan=lifespan)
    async def work() -> None: ...

    for _ in range(2):
        async with scheduler:
            await scheduler.add_job(work)
            await clock.advance(1)
    assert steps == ["entered", "left"] * 2


async def test_a_lifespan_that_cannot_be_entered_fails_the_run_and_is_tried_again_by_the_next(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    tries: list[int] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("not yet")
        yield

    @scheduler.task(name="work", lifespan=lifespan, retry=Retry(max_attempts=3, base=1))
    async def work() -> None: ...

    await scheduler.add_job(work, id="x")
    await clock.advance(10)
    assert [run.outcome for run in await scheduler.history.runs("x")] == ["succeeded", "failed"]
    assert len(tries) == 2


# -- functions without a lasting name ----------------------------------------------------------------------------------


class Holder:
    async def method(self) -> str:
        return "method"


def _fleeting() -> dict[str, Callable[..., Any]]:
    async def local() -> str:
        return "local"

    return {
        "lambda": lambda: "lambda",
        "local function": local,
        "bound method": Holder().method,
        "partial": functools.partial(where_am_i, "partial"),
    }


@pytest.mark.parametrize("kind", _fleeting())
async def test_a_function_without_a_lasting_name_is_refused_where_the_store_outlives_the_process(
    sqlite_url: str, kind: str
) -> None:
    async with Scheduler({"default": "memory://", "file": sqlite_url}) as scheduler:
        with pytest.raises(TransientJobError, match=kind) as caught:
            await scheduler.add_job(_fleeting()[kind], store="file")
        assert caught.value.store == "file"
        assert caught.value.task
        assert await scheduler.get_jobs() == []
        assert scheduler.tasks == {}


@pytest.mark.parametrize("kind", _fleeting())
async def test_a_function_without_a_lasting_name_is_welcome_in_memory(kind: str) -> None:
    async with Scheduler() as scheduler:
        job = await scheduler.add_job(_fleeting()[kind])
        await scheduler.wait_job(job.id, timeout=10)
        run = (await scheduler.history.runs(job.id))[0]
    assert run.outcome == "succeeded", run.error


async def test_two_lambdas_in_memory_are_two_tasks(scheduler: Scheduler) -> None:
    first = await scheduler.add_job(lambda: 1, every(60))
    second = await scheduler.add_job(lambda: 2, every(60))
    assert first.task != second.task


async def test_a_function_registered_under_a_name_may_be_stored(sqlite_url: str) -> None:
    async with Scheduler(sqlite_url) as scheduler:
        scheduler.register(functools.partial(where_am_i, "partial"), name="partial")
        job = await scheduler.add_job("partial")
        await scheduler.wait_job(job.id, timeout=10)
        assert (await scheduler.history.runs(job.id))[0].result[0] == "partial"


async def test_a_module_level_function_may_be_stored_unregistered(sqlite_url: str) -> None:
    async with Scheduler(sqlite_url, queues=()) as scheduler:
        assert (await scheduler.add_job(add, args=[1])).task == f"{__name__}:add"


# -- what a plain function gives -----------------------------------------------------------------------------------------


async def test_a_coroutine_that_a_plain_function_gives_is_awaited_as_part_of_the_run() -> None:
    """The wrapper of a decorator is a plain function, and hands on the coroutine of what it wraps."""
    done: list[int] = []

    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any) -> Any:
            return function(*args)

        return inner

    @traced
    async def charge(order: int) -> int:
        await asyncio.sleep(0)
        done.append(order)
        if order < 0:
            raise ValueError("no such order")
        return order * 2

    async with Scheduler() as scheduler:
        task = scheduler.register(charge, "charge")
        assert await (await scheduler.enqueue(task, 4)).result(timeout=20) == 8
        with pytest.raises(ValueError, match="no such order"):
            await (await scheduler.enqueue(task, -1)).result(timeout=20)
    assert done == [4, -1]


def test_a_generator_function_is_no_task_since_to_call_it_runs_nothing() -> None:
    def plain() -> Any:
        yield 1

    async def of_coroutines() -> Any:
        yield 1

    for function in (plain, of_coroutines, functools.partial(plain)):
        with pytest.raises(DefinitionError, match=r"is a generator function.*leave out 'yield'"):
            Scheduler().register(function, "task")
