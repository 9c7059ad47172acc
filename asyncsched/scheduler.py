"""The facade: one object that a service makes, starts, gives jobs to, and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
import secrets
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, cast, overload

from msgspec.structs import replace

from asyncsched.clock import Clock, SystemClock
from asyncsched.contract import JobStore, Record
from asyncsched.errors import (
    AlreadyRunning,
    AsyncSchedError,
    DefinitionError,
    JobLookupError,
    NotRunning,
    SerializationError,
    StoreUnavailable,
    UnknownStoreError,
    WrongLoopError,
)
from asyncsched.events import (
    Bus,
    Event,
    JobAdded,
    JobEvent,
    JobPausedEvent,
    JobRemoved,
    JobResumed,
    JobUpdated,
    Listener,
    SchedulerEvent,
    SchedulerPaused,
    SchedulerResumed,
    SchedulerStarted,
    SchedulerStopped,
    Subscription,
)
from asyncsched.execution import Host, Middleware, in_run_of
from asyncsched.history import History
from asyncsched.ids import check_name
from asyncsched.jobs import Composer, JobSpec, PolicyArgs, TriggerLike, policies_from, with_call
from asyncsched.lifespans import Lifespans
from asyncsched.model import Job, JobState, Receipt, Retention, Retry, Run
from asyncsched.registry import Call, Executor, Lifespan, Registry, Task, check_lasting, task_name
from asyncsched.shelf import Composed, OnConflict, Query, Shelf
from asyncsched.stores import store_from_url
from asyncsched.units import Duration, to_datetime, to_seconds
from asyncsched.values import DataSerializer, Serializer
from asyncsched.worker import Settings, Slots, Worker, queue_mark

__all__ = ["FromThread", "Scheduler", "SchedulerState"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
E = TypeVar("E", bound=Event)

SchedulerState = Literal["stopped", "starting", "running", "paused", "stopping"]
Stores = str | JobStore | Mapping[str, str | JobStore]
TaskLike = Task[..., Any] | Call | Callable[..., Any] | str

_PRUNE_BATCH = 500
_FLUSH_S = 5.0
_ADD_BATCH = 5000


class Scheduler:
    """Runs jobs: keeps them in one store or several, claims what is due, runs it in this event loop.

    Making one does no I/O and needs no event loop. ``store`` is a URL ("memory://", "sqlite:///jobs.db"), a store, or several
    by alias. All durations are seconds or timedelta.

    :param concurrency: how many runs may be under way at once in this instance.
    :param queues: the queues that this instance serves, each with a limit of its own or None; ``()``: none (a client).
    :param lease: for how long a claimed job is safe from others without a renewal; a dead instance's jobs run again then.
    :param lookahead: claim jobs so much before they are due, so that each starts on its own timer.
    :param poll_interval: how often to look into the store though nothing is known to be due (None: as the store needs).
    :param poll_jitter: by which share polls are spread.
    :param store_retry: how calls to a store that is away are spaced.
    :param retention: what the history keeps.
    :param history: whether runs and decisions are written down at all.
    :param defaults: policies for jobs whose task does not say otherwise.
    :param middleware: ``async def m(run, call_next)``, the first one outermost.
    :param lifespan: an async context manager factory, entered before the first job and left after the drain.
    :param serializer: how arguments and results are stored; by default typed, tagged data.
    :param clock: what tells the time; tests give a ManualClock.
    :param id: this instance's name in the log; unique among the instances that share a store.
    """

    def __init__(
        self,
        store: Stores = "memory://",
        *,
        concurrency: int = 100,
        queues: Mapping[str, int | None] | Sequence[str] | None = None,
        lease: Duration = 30,
        lookahead: Duration = 0,
        poll_interval: Duration | None = None,
        poll_jitter: float = 0.1,
        store_retry: Retry | None = None,
        retention: Retention | None = None,
        history: bool = True,
        defaults: PolicyArgs | None = None,
        middleware: Sequence[Middleware] = (),
        lifespan: Callable[[Scheduler], AbstractAsyncContextManager[Any]] | None = None,
        serializer: Serializer | None = None,
        clock: Clock | None = None,
        id: str | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        if type(concurrency) is not int or concurrency < 1:
            raise DefinitionError(f"concurrency must be 1 or more, not {concurrency!r}")
        self._concurrency = concurrency
        self._queues = _queues_from(queues)
        self._lease_s = to_seconds(lease, "lease", positive=True)
        self._lookahead_s = to_seconds(lookahead, "lookahead")
        self._poll_s = (
            None if poll_interval is None else to_seconds(poll_interval, "poll_interval", positive=True)
        )
        if not 0 <= poll_jitter < 1:
            raise DefinitionError(f"poll_jitter must lie between 0 and 1, not {poll_jitter!r}")
        self._poll_jitter = poll_jitter
        self._store_retry = store_retry or Retry(base=0.1, max_delay=10.0, spread=0.5)
        self._retention = retention or Retention()
        self._keeps_history = history
        self._defaults = dict(defaults or {})
        policies_from(self._defaults)
        for name in ("timeout", "cancel_grace", "abandon_after"):
            if self._defaults.get(name) is not None:
                self._defaults[name] = to_seconds(cast(Any, self._defaults[name]), name)
        self._middleware = tuple(middleware)
        self._lifespan = lifespan
        self._serializer: Serializer = serializer or DataSerializer()
        self._clock = clock or SystemClock()
        self._is_real_clock = clock is None
        self.id = check_name(id, "a scheduler's id") if id is not None else _instance_id()
        self.logger = logger or logging.getLogger("asyncsched")
        self._registry = Registry()
        self._composer = Composer(self._dump, self._load)
        self._stores: dict[str, JobStore] = {}
        for alias, given in _stores_from(store).items():
            self._stores[alias] = store_from_url(given) if isinstance(given, str) else given
        self._bus = Bus(self.logger)
        self._declared: list[JobSpec] = []
        self._state: SchedulerState = "stopped"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shelves: dict[str, Shelf] = {}
        self._workers: dict[str, Worker] = {}
        self._work: dict[str, list[asyncio.Task[None]]] = {}
        self._errands: set[asyncio.Task[Any]] = set()
        self._lifespans = Lifespans()
        self._slots = Slots(concurrency, self._queues)
        self._threads: ThreadPoolExecutor | None = None
        self._stopper: asyncio.Task[None] | None = None
        self._host: Host | None = None
        #: Finished runs, decisions and counts.
        self.history = History(self._opened_stores, self._load)
        #: The same calls for other threads; each waits for its answer.
        self.from_thread = FromThread(self)

    def __repr__(self) -> str:
        return f"<Scheduler {self.id} {self._state}>"

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> SchedulerState:
        return self._state

    @property
    def is_running(self) -> bool:
        """Whether it takes calls; a paused one does."""
        return self._state in ("running", "paused")

    async def start(self, paused: bool = False) -> None:
        """Open the stores, add the declared jobs, and begin to run what is due (or wait for ``resume()``).

        Raises AlreadyRunning for a second start, and the store's error where one cannot be opened.
        """
        if self._state != "stopped":
            raise AlreadyRunning(f"this scheduler is {self._state}; stop it before starting it again")
        self._state = "starting"
        self._loop = asyncio.get_running_loop()
        self._stopper = None
        self._lifespans = Lifespans()
        self._slots = Slots(self._concurrency, self._queues)
        self._host = self._make_host()
        try:
            for alias in self._stores:
                await self._open(alias)
            self._bus.start()
            if self._lifespan is not None:
                make = self._lifespan
                await self._lifespans.enter("", lambda: make(self))
            await self._declare(self._declared)
        except BaseException:
            await self._close()
            raise
        self._state = "paused" if paused else "running"
        for alias in self._stores:
            self._employ(alias)
        self._emit_self(SchedulerStarted)
        if not self._queues:
            self.logger.info("scheduler %s started as a client: it serves no queues", self.id)

    async def stop(self, drain: Duration = 30) -> None:
        """Claim nothing more, let runs end for *drain* seconds, then cancel them, write every end, and let go of everything.

        A run that was cancelled by this is settled as cancelled and made again, without having spent an attempt. Cancelling
        this call cuts the drain short; what follows is bounded and happens all the same. Called from inside a run, it returns
        at once and stops in the background.
        """
        drain_s = to_seconds(drain, "drain")
        if self._state == "stopped":
            raise NotRunning("this scheduler is not running")
        self._check_loop()
        if self._stopper is None:
            self._stopper = asyncio.get_running_loop().create_task(
                self._stop(drain_s), name="asyncsched-stop"
            )
        if in_run_of(self):
            return
        try:
            await asyncio.shield(self._stopper)
        except asyncio.CancelledError:
            for worker in self._workers.values():
                worker.cut_drain()
            await asyncio.wait([self._stopper], timeout=_FLUSH_S + 10.0)
            raise

    async def _stop(self, drain_s: float) -> None:
        self._state = "stopping"
        workers = list(self._workers.values())
        abandoned = await asyncio.gather(*(worker.drain(drain_s) for worker in workers))
        if any(abandoned):
            self.logger.error("abandoned at stop: %s", ", ".join(run for runs in abandoned for run in runs))
        for worker in workers:
            try:
                await asyncio.wait_for(worker.flush(), _FLUSH_S)
            except TimeoutError:
                self.logger.error("store %r took no more; its runs will be made again", worker.alias)
        self._emit_self(SchedulerStopped)
        await self._close()

    async def _close(self) -> None:
        """Let go of everything, however far start() came."""
        for errand in list(self._errands):
            errand.cancel()
        for alias in list(self._work):
            await self._dismiss(alias)
        for error in await self._lifespans.leave():
            self.logger.error("a lifespan failed on its way out", exc_info=error)
        for store in self._stores.values():
            with contextlib.suppress(StoreUnavailable):
                await store.close()
        self._shelves.clear()
        await self._bus.stop(1.0)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        self._state = "stopped"

    async def __aenter__(self) -> Scheduler:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state == "stopped":
            return
        await self.stop(drain=0 if isinstance(error, asyncio.CancelledError) else 30)

    async def run(self, drain: Duration = 30) -> None:
        """Run stand-alone until SIGINT or SIGTERM, then stop with *drain*; a second signal ends the drain.

        Started inside of a service use ``start`` instead: it installs no signal handlers.
        """
        asked = asyncio.Event()
        times = 0

        def ask() -> None:
            nonlocal times
            times += 1
            asked.set()
            if times > 1:
                for worker in self._workers.values():
                    worker.cut_drain()

        loop = asyncio.get_running_loop()
        await self.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask)
        try:
            await asked.wait()
        finally:
            try:
                if self._state != "stopped":
                    await self.stop(drain)
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """For FastAPI and Starlette: ``FastAPI(lifespan=scheduler.lifespan)``."""
        async with self:
            yield

    async def cleanup_ctx(self, app: Any = None) -> AsyncGenerator[None, None]:
        """For aiohttp: ``app.cleanup_ctx.append(scheduler.cleanup_ctx)``."""
        async with self:
            yield

    # -- tasks ---------------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The registered tasks by name, read-only."""
        return self._registry.tasks

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        timeout: Duration | None = None,
        retry: Retry | None = None,
        executor: Executor | None = None,
        lifespan: Lifespan | None = None,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function as a task: bare, or with a name, a timeout, a retry, an executor, a lifespan.

        The name is ``module:qualname`` unless given; a taken one raises ConflictingTaskError. A plain function runs in a thread
        unless ``executor="process"``. A task's lifespan is entered before its first run and left after the drain.
        """
        if function is not None:
            return self.register(function, **options)
        return lambda function: self.register(function, **options)

    def register(
        self,
        function: Callable[P, R],
        name: str | None = None,
        *,
        timeout: Duration | None = None,
        retry: Retry | None = None,
        executor: Executor | None = None,
        lifespan: Lifespan | None = None,
    ) -> Task[P, R]:
        """As the decorator ``task``, for a function that is defined elsewhere."""
        if isinstance(function, Task):
            function = function.function
        if not callable(function):
            raise DefinitionError(f"a task is a function, not {function!r}")
        task = Task(
            function,
            name or task_name(function),
            timeout=timeout,
            retry=retry,
            executor=executor,
            lifespan=lifespan,
        )
        self._registry.add(task)
        self._wake_all()
        return task

    def unregister(self, task: str | Task[..., Any]) -> None:
        """Forget a task; its jobs stay stored, for an instance that knows it. Raises UnknownTaskError."""
        self._registry.remove(task if isinstance(task, str) else task.name)

    def job(
        self,
        trigger: TriggerLike,
        *,
        id: str | None = None,
        name: str | None = None,
        store: str = "default",
        queue: str = "default",
        priority: int = 0,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        paused: bool = False,
        run_immediately: bool = False,
        run_on_start: bool = False,
        executor: Executor | None = None,
        **policies: Unpack[PolicyArgs],
    ) -> Callable[[Callable[P, R]], Task[P, R]]:
        """Register a function and declare a job for it, before or after start.

        The id is the task's name unless given. At each start the stored job is made to look like its declaration: an unchanged
        trigger keeps its progress, a changed one computes anew, and a pause stays.
        """

        def decorate(function: Callable[P, R] | Task[P, R]) -> Task[P, R]:
            task = function if isinstance(function, Task) else self.register(function, executor=executor)
            spec = JobSpec(
                task, trigger, id or task.name, args, kwargs, name, store, queue, priority, tags, metadata,
                paused, run_immediately, run_on_start, policies,
            )  # fmt: skip
            self._resolve(spec)
            self._composer.record(spec, task, self._clock.time())
            self._declared.append(spec)
            if self.is_running:
                self._errand(self._declare([spec]))
            return task

        return decorate

    # -- adding --------------------------------------------------------------------------------------------------------

    async def add_job(
        self,
        task: TaskLike,
        trigger: TriggerLike | None = None,
        *,
        id: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        store: str = "default",
        queue: str = "default",
        priority: int = 0,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        on_conflict: OnConflict = "error",
        paused: bool = False,
        run_immediately: bool = False,
        run_on_start: bool = False,
        **policies: Unpack[PolicyArgs],
    ) -> Job:
        """Add a job: *task* is a Task, a bound call, a registered name or a module-level function.

        *trigger* is made by ``once``, ``every``, ``cron`` or ``manual``, or is a string (cron expression, macro, "@every 5m");
        without one the job is due now. An id that is taken raises ConflictingIdError, or with ``on_conflict="replace"`` the job
        is made to look like this (an unchanged trigger keeps its progress), or with "keep" the one that is there is returned.
        *run_immediately* makes the first run due now; *run_on_start* asks for a run at each start of this process's scheduler.
        """
        spec = JobSpec(
            task, trigger, id, args, kwargs, name, store, queue, priority, tags, metadata,
            paused, run_immediately, run_on_start, policies,
        )  # fmt: skip
        answers = await self.add_jobs([spec], on_conflict=on_conflict)
        return answers[0]

    @overload
    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        *,
        on_conflict: OnConflict = "error",
        errors: Literal["raise"] = "raise",
    ) -> list[Job]: ...

    @overload
    async def add_jobs(
        self, specs: Sequence[JobSpec], *, on_conflict: OnConflict = "error", errors: Literal["return"]
    ) -> list[Job | AsyncSchedError]: ...

    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        *,
        on_conflict: OnConflict = "error",
        errors: Literal["raise", "return"] = "raise",
    ) -> Any:
        """Add many jobs in few round trips; all of them are checked before any is written.

        With ``errors="return"`` what is wrong with one stands in its place in the answer, and the others are added.
        """
        self._check_running()
        if on_conflict not in ("error", "replace", "keep"):
            raise DefinitionError(f'on_conflict must be "error", "replace" or "keep", not {on_conflict!r}')
        answers: list[Job | AsyncSchedError | None] = [None] * len(specs)
        composed: dict[str, list[tuple[int, Composed]]] = {}
        on_start: list[JobSpec] = []
        for at, spec in enumerate(specs):
            try:
                spec, task = self._resolve(spec)
                shelf = self._shelf(spec.store)
                pair = self._composer.record(spec, task, shelf.now())
            except AsyncSchedError as error:
                if errors == "raise":
                    raise
                answers[at] = error
                continue
            composed.setdefault(spec.store, []).append((at, pair))
            if spec.run_on_start:
                on_start.append(_with_id(spec, pair[0].id))
        for alias, pairs in composed.items():
            await self._add_to(self._shelves[alias], pairs, on_conflict, errors, answers)
        self._declared.extend(on_start)
        return answers

    async def _add_to(
        self,
        shelf: Shelf,
        pairs: list[tuple[int, Composed]],
        on_conflict: OnConflict,
        errors: Literal["raise", "return"],
        answers: list[Job | AsyncSchedError | None],
    ) -> None:
        if on_conflict == "error" and errors == "raise" and len(pairs) > 1:
            taken = await shelf.taken([record.id for _, (record, _) in pairs])
            if taken:
                raise shelf.conflict(min(taken))
        for start in range(0, len(pairs), _ADD_BATCH):
            batch = pairs[start : start + _ADD_BATCH]
            added = await shelf.add([pair for _, pair in batch], on_conflict)
            for (at, _), answer in zip(batch, added, strict=True):
                if isinstance(answer, Job):
                    answers[at] = answer
                elif errors == "raise":
                    raise answer
                else:
                    answers[at] = answer
            if self._bus.subscriptions:
                for answer in added:
                    if isinstance(answer, Job):
                        self._emit_job(JobAdded, answer)

    async def enqueue(
        self, task: Task[P, Any] | Callable[P, Any] | str, /, *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Run *task* with these arguments as soon as may be; for policies use ``task.options(...).bind(...)`` and add_job."""
        job = await self.add_job(cast(TaskLike, task), args=args, kwargs=kwargs)
        return Receipt(job_id=job.id, store=job.store, task=job.task)

    def _resolve(self, spec: JobSpec) -> tuple[JobSpec, Task[..., Any]]:
        """The spec with its call unfolded, and its task, registered."""
        spec = with_call(spec)
        given = spec.task
        if isinstance(given, Task):
            if self._registry.tasks.get(given.name) is not given:
                self._registry.add(given)
            return spec, given
        if isinstance(given, str):
            return spec, self._registry.find(given)
        if not callable(given):
            raise DefinitionError(
                f"a job's task is a task, a bound call, a registered name or a function, not {given!r}"
            )
        task = self._registry.of_function(given)
        if task is None:
            store = self._store(spec.store)
            if store.capabilities.durable or store.capabilities.shared:
                check_lasting(given, spec.store)
            task = Task(given, self._free_name(task_name(given)))
            self._registry.add(task)
        return spec, task

    def _free_name(self, name: str) -> str:
        """In a store that lives in this process lambdas and local functions may share a name: they are numbered."""
        free, n = name, 1
        while "<" in name and free in self._registry.tasks:
            n += 1
            free = f"{name}~{n}"
        return free

    async def _declare(self, specs: Sequence[JobSpec]) -> None:
        """Make stored jobs look like their declarations, and ask for the runs that they want at start."""
        for spec in specs:
            spec, task = self._resolve(spec)
            shelf = self._shelf(spec.store)
            pair = self._composer.record(spec, task, shelf.now())
            [job] = await shelf.add([pair], "keep" if spec.trigger is None else "merge")
            if spec.run_on_start and isinstance(job, Job) and job.state != "paused":
                await shelf.change(
                    job.id,
                    lambda record, shelf=shelf: self._composer.request(record, shelf.now(), force=False),
                )  # type: ignore[misc]

    # -- reading -------------------------------------------------------------------------------------------------------

    async def get_job(self, id: str, *, store: str | None = None) -> Job:
        """The job of that id; raises JobLookupError."""
        shelf, _ = await self._find(id, store)
        return await shelf.job(id)

    async def get_jobs(
        self,
        *,
        store: str | None = None,
        queue: str | None = None,
        task: str | Task[..., Any] | None = None,
        tags: Sequence[str] = (),
        id_prefix: str | None = None,
        state: JobState | None = None,
        due_before: datetime | None = None,
        limit: int | None = None,
        after: Job | str | None = None,
    ) -> list[Job]:
        """The jobs that match, by next fire time, those without one last, paused ones at the very end.

        *limit* and *after* (the last job of the page before) page through them by wake time: there a job that runs now stands
        where its lease ends, and a failed one where it will be removed.
        """
        query = self._query(queue, task, tags, id_prefix, state, due_before)
        shelves = self._some_shelves(store)
        floor = None
        if after is not None:
            last = after if isinstance(after, Job) else None
            _, floor = await self._find(last.id if last else cast(str, after), last.store if last else store)
        found: list[tuple[Record, Job]] = []
        for shelf in shelves:
            taken = 0
            async for pair in shelf.jobs(query, floor):
                found.append(pair)
                taken += 1
                if taken == limit:
                    break
        if limit is None and after is None:
            return sorted((job for _, job in found), key=_by_fire_time)
        found.sort(key=lambda pair: _by_wake_time(pair[0]))
        return [job for _, job in found[:limit]]

    def running(self, job_id: str | None = None) -> list[Run]:
        """The runs that are under way in this instance, of one job or of all."""
        self._check_running()
        executions = [e for worker in self._workers.values() for e in worker.held.values() if e.end is None]
        return [e.as_run() for e in executions if job_id is None or e.record.id == job_id]

    async def wait_job(
        self, id: str, timeout: Duration | None = None, *, store: str | None = None
    ) -> Job | None:
        """Wait until nothing of the job is under way: a recurring job's run has ended, a one-shot has run.

        Returns the job, or None once it is gone; raises TimeoutError after *timeout*.
        """
        self._check_running()
        try:
            shelf, _ = await self._find(id, store)
        except JobLookupError:
            if await self.history.runs(id, limit=1):
                return None
            raise
        limit_s = None if timeout is None else to_seconds(timeout, "timeout")
        over = None if limit_s is None else self._clock.monotonic() + limit_s
        worker = self._workers.get(shelf.alias)
        while True:
            changed = asyncio.Event()
            listener = _setter(changed, id)
            if worker is not None:
                worker.on_settled.append(listener)
            try:
                record = await shelf.find(id)
                if record is None:
                    return None
                job = self._composer.job(record, shelf.alias)
                if _is_quiet(record, job):
                    return job
                await self._wait(changed, over, id)
            finally:
                if worker is not None:
                    worker.on_settled.remove(listener)

    async def _wait(self, changed: asyncio.Event, over: float | None, id: str) -> None:
        """Until *changed*, or it is time to look into the store again; raises TimeoutError at *over*."""
        now = self._clock.monotonic()
        if over is not None and now >= over:
            raise TimeoutError(f"job {id!r} was still under way")
        look = now + 0.5 if over is None else min(now + 0.5, over)
        timer = self._clock.call_at(look, changed.set)
        try:
            await changed.wait()
        finally:
            timer.cancel()

    def now(self) -> datetime:
        """The default store's clock, as far as it is known here; every instant is by it."""
        self._check_running()
        return to_datetime(self._shelves["default"].now())

    async def next_fire_time(self) -> datetime | None:
        """When the earliest job of all stores is due; None: nothing is planned."""
        self._check_running()
        times = []
        for shelf in self._shelves.values():
            async for _, job in shelf.jobs(Query()):
                if job.next_fire_time is not None:
                    times.append(job.next_fire_time)
                    break
        return min(times, default=None)

    # -- changing ------------------------------------------------------------------------------------------------------

    async def update_job(self, id: str, *, store: str | None = None, **changes: Any) -> Job:
        """Change fields and policies of a job: name, args, kwargs, trigger, queue, priority, tags, metadata, retry, timeout ...

        A run under way keeps what it was started with. An unchanged trigger keeps its progress.
        """
        shelf, record = await self._find(id, store)
        task = self._registry.tasks.get(record.task)
        return await self._change(
            shelf, id, lambda r: self._composer.edit(r, task, changes, shelf.now()), JobUpdated
        )

    async def reschedule_job(self, id: str, trigger: TriggerLike, *, store: str | None = None) -> Job:
        """Give a job another trigger; its fire times are computed anew."""
        shelf, _ = await self._find(id, store)
        return await self._change(
            shelf, id, lambda r: self._composer.reschedule(r, trigger, shelf.now()), JobUpdated
        )

    async def pause_job(self, id: str, *, store: str | None = None) -> Job:
        """Let a job rest until ``resume_job``; a run under way ends as it would."""
        shelf, _ = await self._find(id, store)
        return await self._change(shelf, id, lambda r: self._composer.pause(r, shelf.now()), JobPausedEvent)

    async def resume_job(self, id: str, *, store: str | None = None) -> Job:
        """End a job's rest: a recurring one goes on at its next fire time from now, without a backlog. A failed one-shot and a
        quarantined job are tried again."""
        shelf, _ = await self._find(id, store)
        return await self._change(shelf, id, lambda r: self._composer.resume(r, shelf.now()), JobResumed)

    async def run_job(self, id: str, force: bool = False, *, store: str | None = None) -> Receipt:
        """Run a job now, beside its schedule, which stays as it is; after the run under way if there is one.

        A paused job raises JobPaused unless *force*.
        """
        shelf, _ = await self._find(id, store)
        job, _ = await shelf.change(id, lambda r: self._composer.request(r, shelf.now(), force=force))
        return Receipt(job_id=job.id, store=job.store, task=job.task)

    async def remove_job(self, id: str, missing_ok: bool = False, *, store: str | None = None) -> bool:
        """Remove a job; a run under way may end, and has no further ones. Returns whether it was there.

        One that is not raises JobLookupError unless *missing_ok*.
        """
        try:
            shelf, record = await self._find(id, store)
        except JobLookupError:
            if missing_ok:
                return False
            raise
        job = self._event_job(record, shelf)
        await shelf.remove([id])
        if job is not None and self._bus.subscriptions:
            self._emit_job(JobRemoved, job)
        return True

    async def remove_all_jobs(self, *, store: str | None = None) -> int:
        """Remove every job of one store, or of all; return how many there were."""
        return await self.remove_jobs(store=store)

    async def remove_jobs(self, *, store: str | None = None, **filters: Any) -> int:
        """Remove the jobs that match (filters as for ``get_jobs``); return how many."""
        jobs = await self._matching(store, filters)
        for alias in {job.store for job in jobs}:
            ids = [job.id for job in jobs if job.store == alias]
            for start in range(0, len(ids), _ADD_BATCH):
                await self._shelves[alias].remove(ids[start : start + _ADD_BATCH])
        for job in jobs if self._bus.subscriptions else ():
            self._emit_job(JobRemoved, job)
        return len(jobs)

    async def pause_jobs(self, *, store: str | None = None, **filters: Any) -> int:
        """Pause the jobs that match (filters as for ``get_jobs``); return how many."""
        return await self._each(self.pause_job, store, filters)

    async def resume_jobs(self, *, store: str | None = None, **filters: Any) -> int:
        """Resume the jobs that match (filters as for ``get_jobs``); return how many."""
        return await self._each(self.resume_job, store, filters)

    async def run_jobs(self, *, store: str | None = None, force: bool = False, **filters: Any) -> int:
        """Run the jobs that match now (filters as for ``get_jobs``); return how many."""

        async def run_one(id: str, *, store: str | None = None) -> Receipt:
            return await self.run_job(id, force, store=store)

        return await self._each(run_one, store, filters)

    async def _matching(self, store: str | None, filters: Mapping[str, Any]) -> list[Job]:
        query = self._query(**{**_NO_FILTERS, **_checked_filters(filters)})
        return [job for shelf in self._some_shelves(store) async for _, job in shelf.jobs(query)]

    async def _each(
        self, act: Callable[..., Awaitable[object]], store: str | None, filters: Mapping[str, Any]
    ) -> int:
        done = 0
        for job in await self._matching(store, filters):
            with contextlib.suppress(JobLookupError):
                await act(job.id, store=job.store)
                done += 1
        return done

    async def _change(
        self, shelf: Shelf, id: str, edit: Callable[[Record], Any], kind: type[JobEvent]
    ) -> Job:
        job, is_changed = await shelf.change(id, edit)
        if is_changed and self._bus.subscriptions:
            self._emit_job(kind, job)
        return job

    # -- pausing -------------------------------------------------------------------------------------------------------

    async def pause(
        self, *, store: str | None = None, queue: str | None = None, everywhere: bool = False
    ) -> None:
        """Claim nothing: in this instance, of one store, or of one queue; with *everywhere* no instance claims of the queue.

        Runs under way go on. What is paused everywhere is stored, and reaches other instances within seconds.
        """
        await self._set_paused(True, store, queue, everywhere)

    async def resume(
        self, *, store: str | None = None, queue: str | None = None, everywhere: bool = False
    ) -> None:
        """End what ``pause`` began with the same arguments."""
        await self._set_paused(False, store, queue, everywhere)

    async def _set_paused(self, on: bool, store: str | None, queue: str | None, everywhere: bool) -> None:
        self._check_running()
        if everywhere and queue is None:
            raise DefinitionError(
                "everywhere=True goes with queue=: name the queue that no instance shall serve"
            )
        shelves = self._some_shelves(store)
        for shelf in shelves:
            worker = self._workers[shelf.alias]
            if queue is None:
                worker.is_paused = on
                worker.wake()
                continue
            if everywhere:
                await _mark_queue(shelf, queue, on)
            named = worker.paused_for_all if everywhere else worker.paused_here
            (named.add if on else named.discard)(queue)
            worker.wake()
        if queue is None and store is None:
            self._state = "paused" if on else "running"
            self._emit_self(SchedulerPaused if on else SchedulerResumed)

    # -- stores --------------------------------------------------------------------------------------------------------

    async def add_store(self, alias: str, store: str | JobStore) -> None:
        """Add a store under *alias*, also while running."""
        check_name(alias, "a store's alias")
        if alias in self._stores:
            raise DefinitionError(
                f"a store {alias!r} is there already; remove it first, or choose another alias", store=alias
            )
        self._stores[alias] = store_from_url(store) if isinstance(store, str) else store
        if not self.is_running:
            return
        self._check_running()
        try:
            await self._open(alias)
        except BaseException:
            del self._stores[alias]
            raise
        self._employ(alias)

    async def remove_store(self, alias: str, drain: Duration = 30) -> None:
        """Let go of a store after its runs have ended; its jobs stay in it."""
        store = self._store(alias)
        if self.is_running:
            self._check_running()
            worker = self._workers[alias]
            await worker.drain(to_seconds(drain, "drain"))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.flush(), _FLUSH_S)
            await self._dismiss(alias)
            self._shelves.pop(alias, None)
            await store.close()
        del self._stores[alias]

    # -- events --------------------------------------------------------------------------------------------------------

    @overload
    def on(self, kind: type[E], listener: Listener[E]) -> Subscription[E]: ...

    @overload
    def on(self, kind: type[E]) -> Callable[[Callable[[E], T]], Callable[[E], T]]: ...

    def on(self, kind: type[E], listener: Listener[E] | None = None) -> Any:
        """Call *listener* (sync or async) with each event of *kind* or of a subclass; return what ends that. Also a decorator.

        Listeners are fed one event after another from a bounded queue: a slow or failing one harms nobody else.
        """
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            raise DefinitionError(f"scheduler.on() takes an event class from asyncsched, not {kind!r}")
        if listener is not None:
            return self._bus.add(kind, listener)

        def decorate(function: Callable[[E], T]) -> Callable[[E], T]:
            self._bus.add(kind, cast(Listener[E], function))
            return function

        return decorate

    # -- below: parts --------------------------------------------------------------------------------------------------

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoopError(
                "this scheduler runs in another event loop; from other threads use scheduler.from_thread, whose calls wait"
            )

    def _check_running(self) -> None:
        if self._state in ("stopped", "starting") or (self._state == "stopping" and not in_run_of(self)):
            raise NotRunning(
                f"this scheduler is {self._state}: await scheduler.start() first, or use 'async with scheduler'"
            )
        self._check_loop()

    def _store(self, alias: str) -> JobStore:
        store = self._stores.get(alias)
        if store is None:
            raise UnknownStoreError(f"no store {alias!r}; known: {', '.join(self._stores)}", store=alias)
        return store

    def _shelf(self, alias: str) -> Shelf:
        self._store(alias)
        return self._shelves[alias]

    def _some_shelves(self, alias: str | None) -> list[Shelf]:
        self._check_running()
        return list(self._shelves.values()) if alias is None else [self._shelf(alias)]

    async def _find(self, id: str, store: str | None) -> tuple[Shelf, Record]:
        """The shelf that holds a job; without an alias all are asked."""
        shelves = self._some_shelves(store)
        for shelf in shelves:
            record = await shelf.find(id) if isinstance(id, str) and "#" not in id else None
            if record is not None:
                return shelf, record
        if len(shelves) == 1:
            raise shelves[0].missing(id)
        raise JobLookupError(f"no job {id!r} is stored in any of {', '.join(self._shelves)}", job_id=id)

    def _query(
        self,
        queue: str | None,
        task: str | Task[..., Any] | None,
        tags: Sequence[str],
        id_prefix: str | None,
        state: JobState | None,
        due_before: datetime | None,
    ) -> Query:
        name = task.name if isinstance(task, Task) else task
        return Query(
            queue=queue, task=name, tags=tuple(tags), id_prefix=id_prefix, state=state, due_before=due_before
        )

    def _opened_stores(self) -> Mapping[str, JobStore]:
        self._check_running()
        return {alias: shelf.store for alias, shelf in self._shelves.items()}

    async def _open(self, alias: str) -> None:
        store = self._stores[alias]
        await store.open(None if self._is_real_clock else self._clock.time)
        anchor = await store.now() - self._clock.monotonic()

        def now() -> float:
            worker = self._workers.get(alias)
            instant = self._clock.monotonic() + anchor if worker is None else worker.now()
            # Whole microseconds, and never ahead of the store: what is due now is due.
            return math.floor(instant * 1e6) / 1e6

        self._shelves[alias] = Shelf(alias, store, self._composer, now)

    def _employ(self, alias: str) -> None:
        """A worker for this store, with the tasks that are its life."""
        assert self._host is not None
        store = self._stores[alias]
        settings = Settings(
            lease_s=self._lease_s,
            lookahead_s=self._lookahead_s,
            poll_s=self._poll_s if self._poll_s is not None else _poll_of(store),
            poll_jitter=self._poll_jitter,
            retry=self._store_retry,
            keeps_history=self._keeps_history,
        )
        now = self._shelves[alias].now()
        worker = Worker(self._host, alias, store, self._slots, settings, self._registry.tasks, self._bus)
        worker.anchor(now)
        worker.is_paused = self._state == "paused"
        self._workers[alias] = worker
        loop = asyncio.get_running_loop()
        self._work[alias] = [loop.create_task(worker.run(), name=f"asyncsched-worker-{alias}")]
        if self._keeps_history:
            self._work[alias].append(
                loop.create_task(self._prune_for_ever(store), name=f"asyncsched-prune-{alias}")
            )

    async def _dismiss(self, alias: str) -> None:
        tasks = self._work.pop(alias, [])
        for task in tasks:
            task.cancel()
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(answer, Exception):
                self.logger.error("a worker of store %r had failed", alias, exc_info=answer)
        self._workers.pop(alias, None)

    async def _prune_for_ever(self, store: JobStore) -> None:
        retention = self._retention
        every = cast(float, retention.every)
        while True:
            await self._clock.sleep(every * random.uniform(0.9, 1.1))
            with contextlib.suppress(StoreUnavailable):
                age = cast("float | None", retention.age)
                while await store.prune(age, retention.per_job, _PRUNE_BATCH) >= _PRUNE_BATCH:
                    await asyncio.sleep(0)

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that a synchronous call began; owned here, and its failure is logged."""

        async def run() -> None:
            try:
                await work
            except AsyncSchedError:
                self.logger.exception("a job that was declared while running could not be added")

        task = asyncio.get_running_loop().create_task(run(), name="asyncsched-errand")
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def _wake_all(self) -> None:
        for worker in self._workers.values():
            worker.wake()

    def _make_host(self) -> Host:
        return Host(
            instance=self.id,
            clock=self._clock,
            load=self._load,
            dump=self._dump,
            logger=self.logger,
            middleware=self._middleware,
            defaults=self._defaults,
            enter=self._enter_task,
            threads=self._thread_pool,
            scheduler=self,
            keep_s=cast("float | None", self._retention.age),
        )

    async def _enter_task(self, task: Task[..., Any]) -> None:
        assert task.lifespan is not None
        await self._lifespans.enter(task.name, task.lifespan)

    def _thread_pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix="asyncsched")
        return self._threads

    def _dump(self, value: Any, path: str) -> bytes:
        return self._serializer.tag + self._serializer.dumps(value, path)

    def _load(self, data: bytes) -> Any:
        if data[:1] == self._serializer.tag:
            return self._serializer.loads(data[1:])
        if data[:1] == _DATA.tag:
            return _DATA.loads(data[1:])
        raise SerializationError(
            f"stored with a serializer of the tag {data[:1]!r}, and this scheduler has {self._serializer.tag!r}: "
            f"give it the serializer that wrote the data"
        )

    def _event_job(self, record: Record, shelf: Shelf) -> Job | None:
        """The job, for an event; a body that cannot be read does not stop its removal."""
        try:
            return self._composer.job(record, shelf.alias)
        except SerializationError:
            return None

    def _emit_self(self, kind: type[SchedulerEvent]) -> None:
        if self._bus.subscriptions:
            self._bus.emit(kind(at=to_datetime(self._clock.time()), instance=self.id))

    def _emit_job(self, kind: type[JobEvent], job: Job) -> None:
        self._bus.emit(
            kind(
                at=to_datetime(self._clock.time()),
                store=job.store,
                job_id=job.id,
                task=job.task,
                name=job.name,
                queue=job.queue,
                tags=job.tags,
            )
        )


def _blocking(
    method: Callable[Concatenate[Scheduler, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[FromThread, P], T]:
    def call(self: FromThread, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.call(method, *args, **kwargs)

    call.__doc__ = method.__doc__
    call.__name__ = method.__name__
    return call


class FromThread:
    """A scheduler's calls for threads other than its event loop's: each waits for its answer."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def call(
        self,
        method: Callable[Concatenate[Scheduler, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Await *method* of the scheduler in its loop, and return what it gave."""
        loop = self._scheduler._loop
        if loop is None or not self._scheduler.is_running:
            raise NotRunning("this scheduler is not running: start it in its event loop first")
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is loop:
                raise WrongLoopError(
                    "from_thread would wait for the event loop that it is called in: await the method itself"
                )
        return asyncio.run_coroutine_threadsafe(method(self._scheduler, *args, **kwargs), loop).result()

    add_job = _blocking(Scheduler.add_job)
    enqueue = _blocking(Scheduler.enqueue)
    get_job = _blocking(Scheduler.get_job)
    get_jobs = _blocking(Scheduler.get_jobs)
    update_job = _blocking(Scheduler.update_job)
    reschedule_job = _blocking(Scheduler.reschedule_job)
    pause_job = _blocking(Scheduler.pause_job)
    resume_job = _blocking(Scheduler.resume_job)
    remove_job = _blocking(Scheduler.remove_job)
    run_job = _blocking(Scheduler.run_job)
    wait_job = _blocking(Scheduler.wait_job)


_DATA = DataSerializer()
_NO_FILTERS: dict[str, Any] = {
    "queue": None,
    "task": None,
    "tags": (),
    "id_prefix": None,
    "state": None,
    "due_before": None,
}


def _checked_filters(filters: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = set(filters) - set(_NO_FILTERS)
    if unknown:
        raise DefinitionError(f"unknown filter {', '.join(sorted(unknown))}; known: {', '.join(_NO_FILTERS)}")
    return filters


def _stores_from(given: Stores) -> Mapping[str, str | JobStore]:
    if isinstance(given, Mapping):
        if "default" not in given:
            raise DefinitionError(
                f"one of several stores must have the alias 'default'; given: {', '.join(given) or 'none'}"
            )
        return given
    return {"default": given}


def _queues_from(given: Mapping[str, int | None] | Sequence[str] | None) -> dict[str, int | None]:
    if given is None:
        return {"default": None}
    if isinstance(given, str):
        raise DefinitionError(f"queues must be a mapping or a sequence of names, not the string {given!r}")
    queues = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given)
    for name, limit in queues.items():
        check_name(name, "a queue's name")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise DefinitionError(f"the limit of queue {name!r} must be 1 or more, or None, not {limit!r}")
    return queues


def _poll_of(store: JobStore) -> float:
    """Seconds between looks at a store that says nothing; one that lives here tells everything, so only clocks matter."""
    if not store.capabilities.shared:
        return 30.0
    return 5.0 if store.capabilities.push_hints else 1.0


def _instance_id() -> str:
    return f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}"


def _by_fire_time(job: Job) -> tuple[int, float, str]:
    if job.next_fire_time is None:
        return (2 if job.state == "paused" else 1, 0.0, job.id)
    return (0, job.next_fire_time.timestamp(), job.id)


def _by_wake_time(record: Record) -> tuple[bool, float, str]:
    return (record.wake_at is None, record.wake_at or 0.0, record.id)


def _with_id(spec: JobSpec, id: str) -> JobSpec:
    return replace(spec, id=id)


def _setter(event: asyncio.Event, id: str) -> Callable[[str], None]:
    def settled(job_id: str) -> None:
        if job_id == id:
            event.set()

    return settled


def _is_quiet(record: Record, job: Job) -> bool:
    if record.holder is not None:
        return False
    return record.hold is not None or record.wake_at is None or job.trigger.recurs


async def _mark_queue(shelf: Shelf, queue: str, on: bool) -> None:
    """Write or remove the record that says that a queue is paused for all."""
    id = queue_mark(check_name(queue, "a queue's name"))
    if on:
        await shelf.store.add([Record(id, "mark", queue, 0, "#queue", None, "paused", b"", b"")])
    else:
        await shelf.store.remove([id])
