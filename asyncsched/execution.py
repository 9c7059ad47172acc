"""One claimed run: the call itself, its timeout, and how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from asyncsched.calls import call_reference, reference_of, storable, text_of, traceback_of, without_stop
from asyncsched.clock import Clock, Timer
from asyncsched.codec import retry_from
from asyncsched.contract import Record
from asyncsched.definition import Definition, Policies
from asyncsched.errors import RunTimeout, SerializationError
from asyncsched.flows import is_step
from asyncsched.ids import base_id, slot_of
from asyncsched.model import Carry, Finish, GiveUp, Outcome, Retry, RetryLater, Run, Skip, Snooze, Steering
from asyncsched.plan import Ended, Start
from asyncsched.registry import Task
from asyncsched.rules import Rules
from asyncsched.triggers import Once
from asyncsched.units import to_datetime, to_instant, to_seconds

__all__ = ["CURRENT", "Execution", "Host", "Reason", "in_run_of"]

T = TypeVar("T")

#: Why a run is being cancelled.
Reason = Literal["timeout", "shutdown", "lost", "cancel", "overlap", "limit"]

_FOREVER = math.inf


@dataclass(slots=True, kw_only=True)
class Host:
    """What a run needs of the scheduler that it runs in."""

    instance: str
    clock: Clock
    load: Callable[[bytes], Any]
    dump: Callable[[Any, str], bytes]
    logger: logging.Logger
    middleware: Sequence[Callable[[Any, Any], Awaitable[Any]]]
    #: Makes what middleware and the task see of a run.
    show: Callable[[Execution], Any]
    defaults: Mapping[str, Any]
    #: The policies that count for a job.
    rules: Callable[[Policies], Rules]
    #: Enters the task's lifespan unless that was done.
    enter: Callable[[Task[..., Any]], Awaitable[None]]
    threads: Callable[[], ThreadPoolExecutor]
    #: One of the threads was given up: others are to take the calls that come.
    renew_threads: Callable[[], None]
    processes: Processes
    scheduler: Any
    #: How long a failed one-shot is kept, in seconds.
    keep_s: float | None


class Processes(Protocol):
    """Where tasks of the executor "process" run."""

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call *function* in a process of its own, which is killed if this is cancelled."""
        ...


#: The run that this code is part of.
CURRENT: contextvars.ContextVar[Execution] = contextvars.ContextVar("asyncsched_run")


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
    #: What a block of ``commit()`` has for a result; it counts if that settles the run, and nothing else of the run does then.
    offered: Any = None
    result: Any = None
    traceback: str | None = None
    annotations: dict[str, Any] | None = None
    is_abandoned: bool = False
    #: Its job was claimed again by this instance, after it had been told to end since its lease had.
    is_held_again: bool = False
    #: The version of its record that was looked at since.
    seen: int = 0
    timer: Timer | None = None
    #: Makes way for the next fire time.
    overlap_timer: Timer | None = None
    #: What middleware and the task see of it.
    shown: Any = None
    #: The timeout that it exceeded, where that is not its own.
    limit_s: float | None = None

    # -- the call ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make the call and tell the owner; raises nothing but what must end the process."""
        CURRENT.set(self)
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
            try:
                self._finish_raised(error)
            except Exception as fault:
                # It says what is to be done in a way that nobody can follow: made by a class that leaves out the delay, say.
                self._finish_failed(fault)
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

        def call_next(run: Any = None, /) -> Awaitable[Any]:
            return self._through(depth + 1)

        return await self.host.middleware[depth](self.facade(), call_next)

    async def _call(self) -> Any:
        args, kwargs = self.arguments()
        task = self.task
        if task.executor == "async":
            return await task.function(*args, **kwargs)
        if task.executor == "thread":
            result = await self._in_thread(functools.partial(task.function, *args, **kwargs))
            return await self._awaited(result) if inspect.isawaitable(result) else result
        return await self.host.processes.run(call_reference, reference_of(task.function), args, dict(kwargs))

    async def _awaited(self, result: Awaitable[Any]) -> Any:
        """What a plain function gave that only calls a coroutine function, as the wrappers of many decorators do."""
        if self.reason is not None:
            # It was asked to end while it was in the thread.
            if inspect.iscoroutine(result):
                result.close()
            raise asyncio.CancelledError
        return await result

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """A thread cannot be cancelled: it is asked to (``current_run().cancelled``) and waited for until abandoned."""
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self.host.threads(), lambda: context.run(without_stop, call))
        # Not its answer: a thread may raise CancelledError, too, and would again and again be taken for one who asks.
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                if self.is_abandoned or self.reason is None:
                    running.cancel()
                    self.host.renew_threads()
                    raise
        return running.result()

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

    def time_out(self, limit_s: float) -> None:
        """It took longer than it was allowed to by others than its job."""
        if self.end is None and self.reason is None:
            self.limit_s = limit_s
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

    def is_run_of(self, claimed: Record) -> bool:
        """Whether a job that was claimed while this instance holds it is in this run: not if that was settled, and its answer was
        lost or is on its way, and not if the job was removed and added again."""
        return claimed.settled < self.record.fence and claimed.birth == self.record.birth

    def begin_at(self, instant: float, begin: Callable[[Execution], None]) -> None:
        """Have it begun at this monotonic instant."""
        self.timer = self.owner.host.clock.call_at(instant, lambda: begin(self))

    def withdraw(self) -> None:
        """It will not begin any more."""
        self._drop_timer()

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
            seconds = self.timeout_s if self.limit_s is None else self.limit_s
            error = RunTimeout(
                f"took longer than its timeout of {seconds:g} s" if seconds else "took too long"
            )
            self._finish_failed(error, "timed_out")
        elif self.reason == "shutdown":
            self._finish("cancelled", error="cancelled by a shutdown", again=True)
        elif self.reason == "limit":
            self._finish("cancelled", error="cancelled, since it lost its place under a limit", again=True)
        elif self.reason == "lost":
            # Written where this instance has claimed the job again meanwhile, and nowhere else.
            self._finish("cancelled", error="cancelled, since its lease had ended", again=True)
        elif self.reason == "overlap":
            self._finish("cancelled", error="cancelled for its next fire time")
        elif self.reason == "cancel":
            is_over = self.start.request == 0 and isinstance(self.definition.trigger, Once)
            self._finish("cancelled", error="cancelled on request", finish=is_over)
        else:
            self._finish("cancelled", error="cancelled")

    def _finish_raised(self, error: BaseException) -> None:
        if self.reason == "timeout":
            self._finish_cancelled()
        elif isinstance(error, Finish):
            self.result = error.result
            self._finish("succeeded", finish=True)
        elif self.reason == "cancel" or (self.reason is not None and not isinstance(error, Steering)):
            # An error on the way out: it was asked to end, and has.
            self.traceback = traceback_of(error)
            self._finish_cancelled()
        elif isinstance(error, Snooze):
            self._finish("cancelled", error=str(error), again_at=error.at)
        elif isinstance(error, Skip):
            self._finish_skipped(error)
        elif isinstance(error, RetryLater):
            self.traceback = traceback_of(error)
            self._finish("failed", error=text_of(error), retry_in=self._retry_later(error))
        elif isinstance(error, GiveUp):
            self.traceback = traceback_of(error)
            self._finish("failed", error=text_of(error))
        else:
            self._finish_failed(error)

    def _finish_skipped(self, error: Skip) -> None:
        start, put_off = self.start, error.put_off
        is_over = put_off is None and is_step(self.definition)
        if slot_of(self.record.id) and start.attempt == 1:
            # It is the run of one fire time, and its job has gone on to the next one.
            is_over = True
        if is_over or (self.definition.trigger.recurs and start.request == 0 and start.attempt == 1):
            skip = (error.reason, None if error.detail is None else storable(str(error.detail)))
            self._finish("cancelled", error=storable(str(error)), skip=skip, finish=is_over)
        else:
            again_at = self.owner.now() + (1.0 if put_off is None else to_seconds(put_off, "put_off"))
            self._finish("cancelled", error=storable(str(error)), again_at=again_at)

    def _retry_later(self, error: RetryLater) -> float | None:
        retry = self.retry
        if retry is not None and retry.max_attempts is not None and self.start.attempt >= retry.max_attempts:
            return None
        assert isinstance(error.delay, float)
        return error.delay

    def _finish_failed(self, error: BaseException, outcome: Outcome = "failed") -> None:
        self.traceback = traceback_of(error) if error.__traceback__ is not None else None
        retry = self.retry
        delay = None
        if retry is not None and retry.applies_to(error):
            delay = retry.delay(self.start.attempt)
        self._finish(outcome, error=text_of(error), retry_in=None if delay is None else delay.total_seconds())

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
        skip: tuple[str, str | None] | None = None,
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
            skip,
        )
        self.owner.run_ended(self)

    # -- what a user sees ----------------------------------------------------------------------------------------------

    def facade(self) -> Any:
        """One for all who ask."""
        if self.shown is None:
            self.shown = self.host.show(self)
        return self.shown

    def as_run(self) -> Run:
        """The run as it stands now."""
        record, start, end = self.record, self.start, self.end
        return Run(
            id=f"{record.id}@{record.fence}",
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


def in_run_of(scheduler: object) -> bool:
    """Whether this code is part of a run of *scheduler*."""
    execution = CURRENT.get(None)
    return execution is not None and execution.host.scheduler is scheduler and execution.end is None
