"""Work by queue: typed handlers, retries and hooks. A job of it is a job of a scheduler that is due at once, and no more."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, overload

from asyncsched.clock import Clock
from asyncsched.contract import Filter, JobStore, Record
from asyncsched.currentrun import CurrentRun, current_run
from asyncsched.errors import (
    AlreadyRunning,
    DefinitionError,
    JobLookupError,
    NoCurrentRun,
    NotRunning,
    RunTimeout,
    StoreUnavailable,
    TaskFailed,
    UnknownTaskError,
)
from asyncsched.events import (
    Bus,
    Event,
    JobEvent,
    JobQuarantined,
    JobRemoved,
    RunFinished,
    SchedulerEvent,
    SchedulerStopped,
)
from asyncsched.ids import check_name
from asyncsched.model import GiveUp, Retry
from asyncsched.registry import is_async, refuse_generator
from asyncsched.runner._job import AnyJob, Handler, RunnerJob, check_count, job_of, payload_of
from asyncsched.runner._room import Room
from asyncsched.scheduler import Scheduler
from asyncsched.specs import JobSpec
from asyncsched.units import Duration, to_datetime, to_seconds

__all__ = ["Runner", "RunnerJob"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])

#: While a stop waits for the queue to drain it looks at least so often.
_STOP_LOOK_S = 1.0
#: How long a stop waits for hooks.
_HOOKS_S = 5.0
#: Likewise where the scheduler stops, which waits a second for what listens to it.
_LAST_HOOKS_S = 0.5
_PAGE = 500
#: Policies by which a job that is due may have to wait for a place.
_LIMITS = frozenset({"rate_limit", "concurrency_key"})


class _Told(Event, frozen=True, kw_only=True):
    """A hook that is to be called."""

    hook: Callable[..., object]
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class _AtWork:
    """A job whose handler was called."""

    job: AnyJob
    error: Exception | None = None
    is_removed: bool = False


class Runner:
    """Takes jobs of registered types into a queue, and has *workers* of them handled at once, with retries.

    The queue is a queue of a scheduler: one of its own on *store* (a URL or a store; memory unless given), or of *scheduler*,
    where *store* is an alias and somebody else starts and stops it. So on a durable store accepted jobs outlive this process, and
    on a shared one all runners of the same *name* work on one queue.

    :param workers: how many jobs are handled at once in this instance; 0: it only enqueues. 4 unless given, or what the
        scheduler's ``queues`` say of the queue *name*.
    :param queue_size: how many accepted jobs may wait, for a worker or for their retry. Where several processes enqueue at once
        it may be exceeded by what each of them takes between two looks: a quarter of the room that is left, or one.
    :param name: of the queue, and in front of the types in the names of tasks.
    :param max_retries: attempts after the first; 0: none. *retry_delay* doubles with each of them. Both unless the job says so.
    :param timeout: of one attempt, in seconds or as a timedelta; None: there is no limit.
    :param on_start: called as ``hook(job)`` when a handler begins; *on_success* likewise, when its end has been written.
    :param on_error: called as ``hook(job, error)`` when no further attempt is made.
    :param on_retry: called as ``hook(job, error, attempt)`` when that attempt has failed and another follows.

    Hooks may be coroutine functions. They are called one after the other, apart from the handlers: a slow or raising one holds
    nobody up (when one is 1,000 calls behind, further ones are dropped).
    """

    def __init__(
        self,
        workers: int | None = None,
        queue_size: int = 100,
        store: str | JobStore | None = None,
        *,
        scheduler: Scheduler | None = None,
        name: str = "runner",
        max_retries: int = 3,
        retry_delay: Duration = 1,
        timeout: Duration | None = 30,
        on_start: Callable[[AnyJob], object] | None = None,
        on_success: Callable[[AnyJob], object] | None = None,
        on_error: Callable[[AnyJob, Exception], object] | None = None,
        on_retry: Callable[[AnyJob, Exception, int], object] | None = None,
        clock: Clock | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.name = check_name(name, "a runner's name")
        if workers is not None:
            check_count(workers, "Runner(workers=)", 0)
        self.queue_size = check_count(queue_size, "Runner(queue_size=)", 1)
        self._max_retries = check_count(max_retries, "Runner(max_retries=)", 0)
        self._retry_delay = to_seconds(retry_delay, "Runner(retry_delay=)")
        self._timeout = None if timeout is None else to_seconds(timeout, "Runner(timeout=)", positive=True)
        self._owns = scheduler is None
        if scheduler is None:
            scheduler, self._store = (
                _own_scheduler(name, 4 if workers is None else workers, store, clock, logger),
                "default",
            )
        else:
            if clock is not None or logger is not None:
                raise DefinitionError(
                    "Runner(scheduler=) goes by that scheduler's clock and logger: leave out clock= and logger="
                )
            if not isinstance(store, str | None):
                raise DefinitionError(
                    f"Runner(scheduler=, store=) takes the alias of one of its stores, not {store!r}"
                )
            self._store = store or "default"
            if workers != 0 and (workers is not None or name not in scheduler.queues):
                scheduler.serve(name, 4 if workers is None else workers)
        hooks = {"on_start": on_start, "on_success": on_success, "on_error": on_error, "on_retry": on_retry}
        for hook, given in hooks.items():
            if given is not None and not callable(given):
                raise DefinitionError(f"Runner({hook}=) takes a function, not {given!r}")
        #: What it stands on: for receipts, the history and whatever else is about jobs.
        self.scheduler = scheduler
        self._on_start, self._on_success, self._on_error, self._on_retry = (
            on_start,
            on_success,
            on_error,
            on_retry,
        )
        #: Types by the names of their tasks, and by their handlers.
        self._types: dict[str, str] = {}
        self._by_handler: dict[Any, str] = {}
        self._at_work: dict[str, _AtWork] = {}
        self._is_closed = self._owns
        self._room = self._new_room()
        self._line = asyncio.Lock()
        self._ends = 0
        self._moved = asyncio.Event()
        self._hooks = Bus(scheduler.logger)
        self._hooks.add(_Told, _call)
        self._is_feeding = False
        #: Whether it is stopped by one of its own handlers, which ends after that.
        self._is_stopped_within = False
        # By themselves, so that none of them is lost in a flood of other events.
        for kind in (RunFinished, JobRemoved, JobQuarantined):
            scheduler.on(kind, self._heard)
        scheduler.on(SchedulerEvent, self._scheduler_changed)

    def __repr__(self) -> str:
        return f"<Runner {self.name} of {self.scheduler!r}>"

    # -- handlers ------------------------------------------------------------------------------------------------------

    @overload
    def register(self, type: str, handler: Handler[T]) -> Handler[T]: ...

    @overload
    def register(self, type: str) -> Callable[[F], F]: ...

    def register(self, type: str, handler: Callable[..., object] | None = None) -> Any:
        """Have jobs of *type* handled by ``handler(job)``, a coroutine function, or a plain one, which runs in a thread.

        Annotated as ``job: RunnerJob[Email]``, the payload is checked when it is enqueued, and is an Email again when it is
        handled. Without a handler this is a decorator. A type that is taken raises ConflictingTaskError.
        """
        if handler is None:
            return lambda function: self.register(type, function)
        if not callable(handler):
            raise DefinitionError(f"the handler of job type {type!r} is a function, not {handler!r}")
        task = self._task_name(check_name(type, "a job's type"))
        refuse_generator(handler)
        _check_takes_a_job(type, handler)
        self.scheduler.register(self._wrapped(type, handler), task)
        self._types[task] = type
        if isinstance(handler, Hashable):
            self._by_handler[handler] = type
        return handler

    def _task_name(self, type: str) -> str:
        return f"{self.name}:{type}"

    def _wrapped(self, type: str, handler: Callable[[AnyJob], Any]) -> Callable[..., Any]:
        """The task that a scheduler runs: it makes the job of the run, and gives it to the handler."""
        run: Callable[..., Any]
        if is_async(handler):

            async def run_async(payload: Any) -> Any:
                job = job_of(current_run(), type, payload)
                at_work = _AtWork(job)
                self._begun(at_work)
                try:
                    return await handler(job)
                except Exception as error:
                    at_work.error = error
                    raise

            run = run_async
        else:

            def run_plain(payload: Any) -> Any:
                job = job_of(current_run(), type, payload)
                at_work = _AtWork(job)
                self._loop().call_soon_threadsafe(self._begun, at_work)
                try:
                    result = handler(job)
                except Exception as error:
                    at_work.error = error
                    raise
                return _noted(at_work, result) if inspect.isawaitable(result) else result

            run = run_plain
        run.__annotations__ = {"payload": payload_of(handler)}
        return run

    # -- enqueueing ----------------------------------------------------------------------------------------------------

    @overload
    async def enqueue(self, job: AnyJob, /) -> bool: ...

    @overload
    async def enqueue(self, type: str, payload: object = None, /) -> bool: ...

    @overload
    async def enqueue(self, type: Handler[T], payload: T, /) -> bool: ...

    async def enqueue(self, job: Any, payload: Any = None, /) -> bool:
        """Accept a job, or a type (or its registered handler) and a payload; False where the queue is full.

        Raises UnknownTaskError for a type without a handler here, SerializationError for a payload that does not fit or cannot be
        stored, DefinitionError for a priority beyond 0 to 9, ConflictingIdError for an id that is in the store, NotRunning.
        """
        spec = self._spec(job, payload)
        self._check_open()
        room = self._room
        if not await room.take():
            return False
        try:
            await self.scheduler.add_jobs([spec])
        except (asyncio.CancelledError, StoreUnavailable):
            # It may be in the store; if it is not, the next look finds its room.
            raise
        except BaseException:
            room.give_back()
            raise
        finally:
            room.settled()
        return True

    @overload
    async def put(self, job: AnyJob, /) -> None: ...

    @overload
    async def put(self, type: str, payload: object = None, /) -> None: ...

    @overload
    async def put(self, type: Handler[T], payload: T, /) -> None: ...

    async def put(self, job: Any, payload: Any = None, /) -> None:
        """As ``enqueue``, but where the queue is full wait until it is not; who waits longest is served first."""
        async with self._line:
            while not await self.enqueue(job, payload):
                await self._room.wait()

    async def queue_len(self) -> int:
        """How many accepted jobs wait, for a worker or for their retry, in all instances; those being handled do not count."""
        return await self._count(None)

    def _spec(self, given: Any, payload: Any) -> JobSpec:
        if isinstance(given, RunnerJob):
            if payload is not None:
                raise DefinitionError(
                    f"a RunnerJob has its payload itself, so {payload!r} beside it is one too many: leave it out"
                )
            job = given
        else:
            is_handler = not isinstance(given, str) and isinstance(given, Hashable)
            type_ = self._by_handler.get(given) if is_handler else given
            if not isinstance(type_, str):
                raise UnknownTaskError(
                    f"{given!r} is the handler of no job type: runner.register(type, handler) first"
                )
            job = RunnerJob(type_, payload)
        task = self._task_name(job.type)
        if task not in self._types:
            known = ", ".join(sorted(map(repr, self._types.values()))[:10]) or "none"
            raise UnknownTaskError(
                f"no handler is registered for job type {job.type!r}: runner.register({job.type!r}, handler) first, or "
                f"correct the type (known: {known})",
                task=task,
            )
        retries = (
            self._max_retries
            if job.max_retries is None
            else check_count(job.max_retries, "RunnerJob(max_retries=)", 0)
        )
        delay = (
            self._retry_delay
            if job.retry_delay is None
            else to_seconds(job.retry_delay, "RunnerJob(retry_delay=)")
        )
        return JobSpec(
            task,
            None,
            job.id,
            (job.payload,),
            store=self._store,
            queue=self.name,
            priority=job.priority,
            policies={
                "retry": Retry(retries + 1, delay),
                "timeout": self._timeout if job.timeout is None else job.timeout,
                "on_exhausted": "keep",
            },
        )

    def _check_open(self) -> None:
        if self._is_closed or not self.scheduler.is_running:
            raise NotRunning(
                f"runner {self.name!r} is not running: await runner.start() first, or use 'async with runner'"
            )

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store and begin to handle what waits there; also again after a stop. Raises AlreadyRunning.

        On a scheduler that was given: begin where it runs; NotRunning where it does not.
        """
        if not self._is_closed and self._owns:
            raise AlreadyRunning(f"runner {self.name!r} is running; stop it before starting it again")
        self._room, self._line = self._new_room(), asyncio.Lock()
        if self._owns:
            await self.scheduler.start()
        else:
            if not self.scheduler.is_running:
                raise NotRunning(
                    f"runner {self.name!r} stands on a scheduler that is not running: start that first"
                )
            await self.scheduler.resume(store=self._store, queue=self.name)
        self._is_closed = False
        self._feed()

    async def stop(self, timeout: Duration = 30) -> list[AnyJob]:
        """Accept nothing more, let what is handled end within *timeout*, and return the accepted jobs that have not run.

        Where the store is in memory what waits is handled as well, as far as *timeout* goes; what is left is returned, and logged
        by id. It is there still if this very runner is started again. On a durable store jobs that wait stay for the next runner,
        so nothing is returned. A handler that is under way after *timeout* is cancelled, and its job comes back without having
        spent an attempt. A scheduler that was given goes on, and so do handlers that it runs. A handler that calls this is not
        waited for, and has the rest of *timeout* to end.
        """
        self._check_open()
        limit_s = to_seconds(timeout, "timeout")
        self._is_stopped_within = self._own_run() is not None
        clock, over = self._clock(), self._clock().monotonic() + limit_s
        self._is_closed = True
        keeps = self._job_store().capabilities.durable
        try:
            if not keeps:
                await self._wait_until_drained(over, self._waiting)
        except asyncio.CancelledError:
            # Whoever is cancelled has no more time.
            over = clock.monotonic()
            raise
        finally:
            if self._owns:
                try:
                    await self.scheduler.stop(drain=max(0.0, over - clock.monotonic()))
                finally:
                    if not self._is_stopped_within:
                        await self._stop_feeding(_HOOKS_S)
            elif self.scheduler.is_running:
                await self.scheduler.pause(store=self._store, queue=self.name)
        if not self._owns:
            await self._wait_until_drained(over, self._running)
        return [] if keeps else await self._left()

    async def __aenter__(self) -> Runner:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_closed and self.scheduler.is_running:
            await self.stop(0 if isinstance(error, asyncio.CancelledError) else 30)

    async def _wait_until_drained(self, over: float, count: Callable[[], Any]) -> None:
        """Until nothing is left or the monotonic instant *over*. One job that ends is one event or more, so what is left is
        counted again only when so many have come."""
        clock = self._clock()
        while (now := clock.monotonic()) < over and (left := await count()):
            self._ends, self._moved = left, asyncio.Event()
            timer = clock.call_at(min(over, now + _STOP_LOOK_S), self._moved.set)
            try:
                await self._moved.wait()
            finally:
                timer.cancel()

    async def _waiting(self) -> int:
        return await self._count(None) + await self._running()

    async def _running(self) -> int:
        own = self._own_run()
        return sum(
            run.task in self._types and (own is None or run.id != own.id) for run in self.scheduler.running()
        )

    def _own_run(self) -> CurrentRun | None:
        """The run of a handler of this runner that this is part of."""
        try:
            run = current_run()
        except NoCurrentRun:
            return None
        return run if run.scheduler is self.scheduler and run.task in self._types else None

    async def _left(self) -> list[AnyJob]:
        """What is in the queue of a store that lives in this process."""
        engine, store = self.scheduler._engine, self._job_store()
        left: list[AnyJob] = []
        own = self._own_run()
        after: Record | None = None
        while page := await store.page(Filter(queue=self.name), _PAGE, after):
            after = page[-1]
            for record in page:
                if "#" in record.id or record.hold in ("failed", "paused", "quarantined"):
                    continue
                if own is not None and record.id == own.job_id:
                    continue
                if not self._owns and record.holder is not None:
                    # Its handler goes on.
                    continue
                job = engine.composer.job(record, self._store)
                payload = job.args[0] if job.args else None
                type_ = self._types.get(job.task, job.task.removeprefix(f"{self.name}:"))
                left.append(
                    RunnerJob(
                        type_,
                        payload,
                        id=job.id,
                        priority=job.priority,
                        created_at=job.created_at,
                        error=job.last_error,
                    )
                )
        if left:
            ids = ", ".join(job.id for job in left[:20]) + (", ..." if len(left) > 20 else "")
            self.scheduler.logger.error(
                "runner %r stopped before %d accepted jobs had run: %s", self.name, len(left), ids
            )
        return left

    # -- what the scheduler tells --------------------------------------------------------------------------------------

    def _begun(self, at_work: _AtWork) -> None:
        self._at_work[at_work.job.id] = at_work
        self._room.begun()
        if self._on_start is not None:
            self._tell(self._on_start, at_work.job)

    async def _heard(self, event: JobEvent) -> None:
        if event.task not in self._types:
            return
        self._ends -= 1
        if self._ends <= 0:
            self._moved.set()
        if isinstance(event, JobRemoved):
            # Its handler may be under way, and then its end is still to come.
            if (at_work := self._at_work.get(event.job_id)) is not None:
                at_work.is_removed = True
            return
        at_work = self._at_work.pop(event.job_id, None)
        if isinstance(event, RunFinished):
            await self._ended(event, at_work)
        elif self._on_error is not None:
            job, _ = await self._stored(event)
            self._tell(self._on_error, replace(job, error=event.error), self._failure(event))

    async def _ended(self, event: RunFinished, at_work: _AtWork | None) -> None:
        if event.outcome == "succeeded":
            if self._on_success is not None and at_work is not None:
                self._tell(self._on_success, replace(at_work.job, error=None))
            return
        if event.outcome not in ("failed", "timed_out"):
            if event.outcome == "cancelled" and await self._is_over(event):
                if self._on_error is not None:
                    job = (
                        RunnerJob(self._types[event.task], None, id=event.job_id)
                        if at_work is None
                        else at_work.job
                    )
                    self._tell(self._on_error, replace(job, error=event.error), self._failure(event))
            elif at_work is not None:
                # It may come again, and wait until then.
                self._room.returned()
            return
        error: Exception
        if event.outcome == "timed_out":
            error = RunTimeout(
                (event.error or "").removeprefix("RunTimeout: "), job_id=event.job_id, task=event.task
            )
        else:
            error = (at_work and at_work.error) or self._failure(event)
        if at_work is None:
            # Its handler was not called: the payload does not fit it any more, for example.
            job, comes_again = await self._stored(event)
        else:
            job, is_final = at_work.job, isinstance(error, GiveUp) or at_work.is_removed
            comes_again = event.attempt <= (job.max_retries or 0) and not is_final
        job = replace(job, attempts=event.attempt, error=event.error)
        if comes_again:
            self._room.returned()
            if self._on_retry is not None:
                self._tell(self._on_retry, job, error, event.attempt)
        elif self._on_error is not None:
            self._tell(self._on_error, job, error)

    async def _is_over(self, event: JobEvent) -> bool:
        """Whether a cancelled job is known not to come again."""
        try:
            job = await self.scheduler.get_job(event.job_id, store=self._store)
        except JobLookupError:
            return True
        except NotRunning:
            return False
        return job.state == "failed"

    async def _stored(self, event: JobEvent) -> tuple[AnyJob, bool]:
        """The job as far as it can be read in the store, and whether it is to be handled again."""
        try:
            job = await self.scheduler.get_job(event.job_id, store=self._store)
        except (JobLookupError, NotRunning):
            return RunnerJob(self._types[event.task], None, id=event.job_id), False
        payload = job.args[0] if job.args else None
        found: AnyJob = RunnerJob(
            self._types[event.task], payload, id=job.id, priority=job.priority, created_at=job.created_at
        )
        return found, job.state in ("scheduled", "running")

    def _failure(self, event: JobEvent) -> TaskFailed:
        return TaskFailed(event.error or "", job_id=event.job_id, task=event.task, run=None)

    async def _scheduler_changed(self, event: SchedulerEvent) -> None:
        if isinstance(event, SchedulerStopped):
            if self._is_stopped_within or not (self._owns and self._is_closed):
                await self._stop_feeding(_LAST_HOOKS_S)
        else:
            self._feed()

    def _tell(self, hook: Callable[..., object], *arguments: Any) -> None:
        self._feed()
        self._hooks.emit(_Told(at=to_datetime(self._clock().time()), hook=hook, arguments=arguments))

    def _feed(self) -> None:
        if not self._is_feeding:
            self._is_feeding = True
            self._hooks.start()

    async def _stop_feeding(self, timeout_s: float) -> None:
        if self._is_feeding:
            self._is_feeding = False
            await self._hooks.stop(timeout_s)

    # -- the rest ------------------------------------------------------------------------------------------------------

    async def _count(self, limit: int | None) -> int:
        """How many wait; no more than *limit* are counted."""
        ask = partial(self.scheduler.get_jobs, store=self._store, queue=self.name)
        waiting = len(await ask(state="scheduled", limit=limit))
        if _LIMITS & self.scheduler._engine.options.defaults.keys() and (limit is None or waiting < limit):
            waiting += len(await ask(state="limited", limit=limit))
        return waiting

    def _new_room(self) -> Room:
        is_shared = self._job_store().capabilities.shared
        return Room(self.queue_size, self._count, self._clock(), is_shared=is_shared)

    def _job_store(self) -> JobStore:
        return self.scheduler._engine.store(self._store)

    def _clock(self) -> Clock:
        return self.scheduler._engine.clock

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = self.scheduler._engine.loop
        assert loop is not None
        return loop


def _check_takes_a_job(type: str, handler: Callable[..., object]) -> None:
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # One of those in C that do not tell.
    try:
        signature.bind(None)
    except TypeError:
        raise DefinitionError(
            f"the handler of job type {type!r} is called with the job alone, and takes {signature}"
        ) from None


async def _noted(at_work: _AtWork, result: Awaitable[Any]) -> Any:
    try:
        return await result
    except Exception as error:
        at_work.error = error
        raise


async def _call(told: _Told) -> None:
    answer = told.hook(*told.arguments)
    if asyncio.iscoroutine(answer) or isinstance(answer, asyncio.Future):
        await answer


def _own_scheduler(
    name: str, workers: int, store: str | JobStore | None, clock: Clock | None, logger: logging.Logger | None
) -> Scheduler:
    return Scheduler(
        "memory://" if store is None else store,
        concurrency=max(workers, 1),
        queues={name: None} if workers else (),
        clock=clock,
        logger=logger,
    )
