"""One claimed run: the call itself, its timeout, and how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import logging
import math
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from asyncsched.clock import Clock, Timer
from asyncsched.codec import retry_from
from asyncsched.contract import Record
from asyncsched.definition import Definition, Policies
from asyncsched.errors import DefinitionError, NoCurrentRun, RunTimeout, SerializationError
from asyncsched.ids import base_id
from asyncsched.model import Carry, Finish, GiveUp, Outcome, Retry, RetryLater, Run, Snooze
from asyncsched.plan import Ended, Start
from asyncsched.registry import Task
from asyncsched.rules import Rules
from asyncsched.units import to_datetime, to_instant

__all__ = ["CurrentRun", "Execution", "Host", "Middleware", "current_run"]

T = TypeVar("T")

#: Why a run is being cancelled.
Reason = Literal["timeout", "shutdown", "lost", "cancel", "overlap"]

_FOREVER = math.inf
_MAX_TRACEBACK = 16_000
_MAX_ERROR = 2_000


class CallNext(Protocol):
    """The rest of the middleware and the task itself; returns the task's result."""

    def __call__(self, run: CurrentRun | None = None, /) -> Awaitable[Any]: ...


Middleware = Callable[["CurrentRun", CallNext], Awaitable[Any]]


@dataclass(slots=True, kw_only=True)
class Host:
    """What a run needs of the scheduler that it runs in."""

    instance: str
    clock: Clock
    load: Callable[[bytes], Any]
    dump: Callable[[Any, str], bytes]
    logger: logging.Logger
    middleware: Sequence[Middleware]
    defaults: Mapping[str, Any]
    #: The policies that count for a job.
    rules: Callable[[Policies], Rules]
    #: Enters the task's lifespan unless that was done.
    enter: Callable[[Task[..., Any]], Awaitable[None]]
    threads: Callable[[], ThreadPoolExecutor]
    processes: Processes
    scheduler: Any
    #: How long a failed one-shot is kept, in seconds.
    keep_s: float | None


class Processes(Protocol):
    """Where tasks of the executor "process" run."""

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call *function* in a process of its own, which is killed if this is cancelled."""
        ...


_current: contextvars.ContextVar[Execution] = contextvars.ContextVar("asyncsched_run")


class Owner(Protocol):
    """Whoever started the run."""

    host: Host
    alias: str

    def now(self) -> float:
        """The store's clock."""
        ...

    def run_ended(self, execution: Execution) -> None:
        """The run has ended: ``execution.end`` says how."""
        ...

    def hand_back(self, execution: Execution) -> None:
        """The run must not begin."""
        ...

    def commit(self, execution: Execution, connection: object) -> AbstractAsyncContextManager[None]:
        """Settle the run as succeeded at the end of the block, in the user's transaction; raises LeaseLost."""
        ...


class Execution(msgspec.Struct, eq=False):
    """A claimed record whose run is under way, or whose end is being written.

    A struct because one is made for every run: its fields are set in C.
    """

    owner: Owner
    record: Record
    definition: Definition
    start: Start
    task: Task[..., Any]
    #: Monotonic instant after which the lease is not to be trusted.
    trusted_until: float
    #: The asyncio task that makes the call, once that has begun.
    work: asyncio.Task[None] | None = None
    started: float = 0.0
    #: Why it was asked to stop.
    reason: Reason | None = None
    end: Ended | None = None
    #: What was written in the user's own transaction; whether that was committed is not known here.
    committed: Ended | None = None
    result: Any = None
    traceback: str | None = None
    annotations: dict[str, Any] | None = None
    is_abandoned: bool = False
    timer: Timer | None = None
    #: Makes way for the next fire time.
    overlap_timer: Timer | None = None
    facade: CurrentRun | None = None

    # -- the call ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make the call and tell the owner; raises nothing but what must end the process."""
        _current.set(self)
        owner, task = self.owner, self.task
        host = owner.host
        trusted_until = self.trusted_until
        if trusted_until != _FOREVER and trusted_until <= host.clock.monotonic():
            # This process stood still, and by now another one may be at it.
            self._drop_timer()
            owner.hand_back(self)
            return
        self.started = owner.now()
        try:
            if task.lifespan is not None:
                await host.enter(task)
            timeout = self.timeout_s
            if timeout is not None:
                self.timer = host.clock.call_at(host.clock.monotonic() + timeout, self._time_out)
            if host.middleware:
                result = await self._through(0)
            elif task.executor == "async" and not self.definition.args:
                result = await task.function()
            else:
                result = await self._call()
        except asyncio.CancelledError:
            self._finish_cancelled()
        except (KeyboardInterrupt, GeneratorExit) as error:
            self._finish_failed(error)
            raise
        except BaseException as error:
            self._finish_raised(error)
        else:
            self._finish_returned(result)

    @property
    def host(self) -> Host:
        return self.owner.host

    @property
    def timeout_s(self) -> float | None:
        """Of the job, else of the task, else the scheduler's default."""
        of_job = self.definition.policies.timeout
        if of_job is not None:
            return of_job
        of_task = self.task.timeout
        return of_task if of_task is not None else self.host.defaults.get("timeout")

    @property
    def retry(self) -> Retry | None:
        """Of the job, else of the task, else the scheduler's default."""
        form = self.definition.policies.retry
        if form is not None:
            return retry_from(form)
        return self.task.retry if self.task.retry is not None else self.host.defaults.get("retry")

    def policy(self, name: str, otherwise: Any) -> Any:
        """Of the job, else the scheduler's default, else *otherwise*."""
        of_job = getattr(self.definition.policies, name)
        return of_job if of_job is not None else self.host.defaults.get(name, otherwise)

    def arguments(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Decoded to the task's annotations; raises SerializationError."""
        if not self.definition.args:
            return (), {}
        args, kwargs = self.host.load(self.definition.args)
        fitted: tuple[tuple[Any, ...], Mapping[str, Any]] = self.task.signature.fit(tuple(args), kwargs)
        return fitted

    async def _through(self, depth: int) -> Any:
        if depth == len(self.host.middleware):
            return await self._call()

        def call_next(run: CurrentRun | None = None, /) -> Awaitable[Any]:
            return self._through(depth + 1)

        return await self.host.middleware[depth](self._facade(), call_next)

    async def _call(self) -> Any:
        args, kwargs = self.arguments()
        task = self.task
        if task.executor == "async":
            return await task.function(*args, **kwargs)
        if task.executor == "thread":
            return await self._in_thread(functools.partial(task.function, *args, **kwargs))
        function = _inner(task.function)
        reference = (function.__module__, function.__qualname__)
        return await self.host.processes.run(_in_process, reference, args, dict(kwargs))

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """A thread cannot be cancelled: it is asked to (``current_run().cancelled``) and waited for until abandoned."""
        context = contextvars.copy_context()
        running = asyncio.get_running_loop().run_in_executor(self.host.threads(), context.run, call)
        while True:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if self.is_abandoned or self.reason is None:
                    running.cancel()
                    raise

    # -- cancelling ----------------------------------------------------------------------------------------------------

    def cancel(self, reason: Reason) -> None:
        """Ask the run to end; after its grace it is given up."""
        if self.end is not None or self.reason is not None:
            return
        self.reason = reason
        self._drop_timer()
        if not self.started:
            # A task that has not taken its first step would be cancelled before it could say so.
            if self.work is not None:
                self.work.cancel()
            self.started = self.owner.now()
            self._finish_cancelled()
            return
        assert self.work is not None
        self.work.cancel()
        grace = self._grace_s()
        if grace is not None:
            self.timer = self.host.clock.call_at(self.host.clock.monotonic() + grace, self._abandon)

    def _grace_s(self) -> float | None:
        if self.task.executor == "thread":
            grace: float | None = self.policy("abandon_after", None)
        else:
            grace = self.policy("cancel_grace", 5.0)
        return grace

    def _time_out(self) -> None:
        self.timer = None
        self.cancel("timeout")

    def _abandon(self) -> None:
        """Its grace is over: write its end, though the call may still be going on."""
        self.abandon()

    def abandon(self) -> None:
        """Write the run's end now; what it still does is its own affair, and is reported."""
        if self.end is not None:
            return
        self.is_abandoned = True
        self.host.logger.error(
            "run %s@%s of task %s did not stop when it was cancelled (%s); it is abandoned, and may still be at work",
            self.record.id, self.record.fence, self.task.name, self.reason,
        )  # fmt: skip
        self._finish_cancelled()
        if self.work is not None:
            self.work.cancel()

    def give_way_at(self, instant: float) -> None:
        """Cancel the run at this monotonic instant: its next fire time has come."""
        self.overlap_timer = self.host.clock.call_at(instant, lambda: self.cancel("overlap"))

    def _drop_timer(self) -> None:
        if self.overlap_timer is not None:
            self.overlap_timer.cancel()
            self.overlap_timer = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finish_returned(self, result: Any) -> None:
        if self.reason == "timeout":
            self._finish_cancelled()
        elif type(result) is Carry:
            self._finish_carrying(result)
        elif self.end is None:
            # The way of most runs, and so the shortest.
            if self.timer is not None or self.overlap_timer is not None:
                self._drop_timer()
            self.result = result
            finished = self.owner.now()
            self.end = Ended("succeeded", self.started, finished if finished > self.started else self.started)
            self.owner.run_ended(self)

    def fail(self, text: str) -> None:
        """What was taken for a success is a failure, and is retried like one. The owner is not told again."""
        assert self.end is not None
        retry = self.retry
        delay = None if retry is None else retry.delay(self.start.attempt)
        self.result = None
        self.end = Ended(
            "failed",
            self.end.started,
            self.end.finished,
            text,
            None if delay is None else delay.total_seconds(),
            on_exhausted=self.policy("on_exhausted", "keep"),
            keep_s=self.host.keep_s,
        )

    def _finish_carrying(self, carry: Carry) -> None:
        next_at = None if carry.next_at is None else to_instant(carry.next_at, "Carry(next_at=)")
        try:
            carried = self.host.dump(carry.value, "Carry(value=)")
        except SerializationError as error:
            self._finish_failed(error)
            return
        self.result = carry.result
        self._finish("succeeded", carried=carried, next_at=next_at)

    def _finish_cancelled(self) -> None:
        if self.reason == "timeout":
            seconds = self.timeout_s
            error = RunTimeout(
                f"took longer than its timeout of {seconds:g} s" if seconds else "took too long"
            )
            self._finish_failed(error, "timed_out")
        elif self.reason == "shutdown":
            self._finish("cancelled", error="cancelled by a shutdown", again=True)
        elif self.reason == "overlap":
            self._finish("cancelled", error="cancelled for its next fire time")
        else:
            self._finish("cancelled", error="cancelled")

    def _finish_raised(self, error: BaseException) -> None:
        if self.reason == "timeout":
            self._finish_cancelled()
        elif isinstance(error, Finish):
            self.result = error.result
            self._finish("succeeded", finish=True)
        elif isinstance(error, Snooze):
            self._finish("cancelled", error=str(error), again_at=error.at)
        elif isinstance(error, RetryLater):
            self.traceback = _traceback_of(error)
            self._finish("failed", error=_text_of(error), retry_in=self._retry_later(error))
        elif isinstance(error, GiveUp):
            self.traceback = _traceback_of(error)
            self._finish("failed", error=_text_of(error))
        else:
            self._finish_failed(error)

    def _retry_later(self, error: RetryLater) -> float | None:
        retry = self.retry
        if retry is not None and retry.max_attempts is not None and self.start.attempt >= retry.max_attempts:
            return None
        assert isinstance(error.delay, float)
        return error.delay

    def _finish_failed(self, error: BaseException, outcome: Outcome = "failed") -> None:
        self.traceback = _traceback_of(error) if error.__traceback__ is not None else None
        retry = self.retry
        delay = None
        if retry is not None and retry.applies_to(error):
            delay = retry.delay(self.start.attempt)
        self._finish(
            outcome, error=_text_of(error), retry_in=None if delay is None else delay.total_seconds()
        )

    def _finish(
        self,
        outcome: Outcome,
        *,
        error: str | None = None,
        retry_in: float | None = None,
        again: bool = False,
        again_at: float | None = None,
        finish: bool = False,
        carried: bytes | None = None,
        next_at: float | None = None,
    ) -> None:
        if self.end is not None:
            return
        self._drop_timer()
        finished = self.owner.now()
        started = self.started or finished
        self.end = Ended(
            outcome,
            started,
            finished if finished > started else started,
            error,
            retry_in,
            finished if again else again_at,
            finish,
            carried,
            next_at,
            "keep" if outcome == "succeeded" else self.policy("on_exhausted", "keep"),
            self.host.keep_s,
        )
        self.owner.run_ended(self)

    # -- what a user sees ----------------------------------------------------------------------------------------------

    def _facade(self) -> CurrentRun:
        if self.facade is None:
            self.facade = CurrentRun(self)
        return self.facade

    def as_run(self) -> Run:
        """The run as it stands now."""
        record, start, end = self.record, self.start, self.end
        return Run(
            id=f"{base_id(record.id)}@{record.fence}",
            job_id=base_id(record.id),
            task=record.task,
            fire_time=to_datetime(start.fire),
            due_at=to_datetime(start.due),
            started_at=to_datetime(self.started) if self.started else None,
            finished_at=None if end is None else to_datetime(end.finished),
            outcome=None if end is None else end.outcome,
            attempt=start.attempt,
            fence=record.fence,
            instance=self.host.instance,
            error=None if end is None else end.error,
            traceback=self.traceback,
            result=self.result,
            metadata=dict(self.annotations or {}),
        )


class CurrentRun:
    """The run that is under way, as its task sees it."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None

    @property
    def id(self) -> str:
        """``job_id@fence``."""
        return f"{self.job_id}@{self.fence}"

    @property
    def job_id(self) -> str:
        return base_id(self._execution.record.id)

    @property
    def name(self) -> str:
        """The job's name."""
        return self._execution.definition.name or self._execution.record.task

    @property
    def task(self) -> str:
        """The registered name of the task."""
        return self._execution.record.task

    @property
    def store(self) -> str:
        """The alias of the store that the job is kept in."""
        return self._execution.owner.alias

    @property
    def queue(self) -> str:
        return self._execution.record.queue

    @property
    def priority(self) -> int:
        return self._execution.record.priority

    @property
    def tags(self) -> tuple[str, ...]:
        return self._execution.definition.tags

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was annotated so far."""
        return dict(self._execution.annotations or {})

    @property
    def fire_time(self) -> datetime:
        """The nominal instant that the trigger named; retries keep it."""
        return to_datetime(self._execution.start.fire)

    @property
    def due_at(self) -> datetime:
        return to_datetime(self._execution.start.due)

    @property
    def started_at(self) -> datetime:
        return to_datetime(self._execution.started or self._execution.owner.now())

    @property
    def attempt(self) -> int:
        """1, 2, ... within one fire time."""
        return self._execution.start.attempt

    @property
    def fence(self) -> int:
        """Rises with each claim of this job: give it to whatever must refuse a predecessor that does not know it is one."""
        return self._execution.record.fence

    @property
    def instance(self) -> str:
        """The id of the scheduler that runs it."""
        return self._execution.host.instance

    @property
    def args(self) -> tuple[Any, ...]:
        return self._args()[0]

    @property
    def kwargs(self) -> Mapping[str, Any]:
        return self._args()[1]

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt at this fire time, and for no other."""
        execution = self._execution
        request = f"r{execution.start.request}" if execution.start.request else "s"
        return f"{base_id(execution.record.id)}:{execution.record.birth}:{request}:{round(execution.start.fire * 1e6)}"

    @property
    def scheduler(self) -> Any:
        """The scheduler that runs it."""
        return self._execution.host.scheduler

    @property
    def carried(self) -> Any:
        """What the last run carried over with ``Carry``; None when there is nothing."""
        carried = self._execution.start.cursor.carried
        return self._execution.host.load(carried) if carried else None

    @property
    def cancelled(self) -> bool:
        """Whether it has been asked to stop; a task in a thread should look at this now and then."""
        return self._execution.reason is not None

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry job_id, task, attempt and fence."""
        extra = {"job_id": self.job_id, "task": self.task, "attempt": self.attempt, "fence": self.fence}
        return logging.LoggerAdapter(self._execution.host.logger, extra)

    @asynccontextmanager
    async def commit(self, connection: object, *, result: Any = None) -> AsyncIterator[None]:
        """Make the effect of the run and its completion one: both are in the transaction of *connection*, or neither is.

        ::

            async with pool.acquire() as connection, connection.transaction():
                async with current_run().commit(connection):
                    await connection.execute("INSERT ...")

        On leaving the block the run is settled as succeeded, with *result*, as the last write there. The transaction is the
        user's to commit; where none is open on *connection*, the block begins one and commits it. An exception within the block
        settles nothing. Raises LeaseLost, which rolls the transaction back, where another instance holds the job meanwhile.
        What comes after the commit should be short and must not fail: it cannot change how the run ended.

        *connection* belongs to the database that keeps the job: the driver's, or an AsyncConnection or AsyncSession of
        SQLAlchemy. Raises DefinitionError where the store is not in such a database, and for a second block in one run.
        """
        execution = self._execution
        if execution.committed is not None:
            raise DefinitionError(
                f"run {self.id} has committed already: one block of commit() makes up a run"
            )
        execution.result = result
        async with execution.owner.commit(execution, connection):
            yield

    def annotate(self, **values: Any) -> None:
        """Add to the metadata that history keeps of this run."""
        execution = self._execution
        for key, value in values.items():
            execution.host.dump(value, f"annotate({key}=)")
        execution.annotations = {**(execution.annotations or {}), **values}

    def __repr__(self) -> str:
        return f"<CurrentRun {self.id} of {self.task}, attempt {self.attempt}>"

    def _args(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if self._arguments is None:
            self._arguments = self._execution.arguments()
        return self._arguments


def current_run() -> CurrentRun:
    """The run that this code is part of; raises NoCurrentRun outside of one."""
    execution = _current.get(None)
    if execution is None:
        raise NoCurrentRun(
            "current_run() was called outside of a run; only a task that the scheduler runs has one"
        )
    return execution._facade()


def in_run_of(scheduler: object) -> bool:
    """Whether this code is part of a run of *scheduler*."""
    execution = _current.get(None)
    return execution is not None and execution.host.scheduler is scheduler and execution.end is None


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "<its str() failed>"
    return f"{type(error).__name__}: {text}"[:_MAX_ERROR] if text else type(error).__name__


def _traceback_of(error: BaseException) -> str:
    """Bounded: the beginning and the end, which say what was called and what went wrong."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = f"{type(error).__name__}: <its traceback cannot be shown>"
    if len(text) <= _MAX_TRACEBACK:
        return text
    half = _MAX_TRACEBACK // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _in_process(reference: tuple[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run in the worker process: find the function again, under its registered name's module, and call it."""
    module_name, qualname = reference
    found: Any = sys.modules.get(module_name) or importlib.import_module(module_name)
    for part in qualname.split("."):
        found = getattr(found, part)
    function = found.function if isinstance(found, Task) else found
    return function(*args, **kwargs)
