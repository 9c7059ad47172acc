"""The facade: one object that a service makes, starts, gives jobs to, and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, cast, overload

from asyncsched.clock import Clock
from asyncsched.contract import JobStore, Record
from asyncsched.desk import Desk, query_of
from asyncsched.engine import Engine, Options, SchedulerState, Stores
from asyncsched.errors import AsyncSchedError, DefinitionError, JobLookupError, NotRunning, WrongLoopError
from asyncsched.events import (
    Event,
    JobEvent,
    JobPausedEvent,
    JobRemoved,
    JobResumed,
    JobUpdated,
    Listener,
    Subscription,
)
from asyncsched.execution import Middleware
from asyncsched.history import History
from asyncsched.ids import base_id, check_name
from asyncsched.intake import Intake
from asyncsched.jobs import JobChanges, JobSpec, PolicyArgs, TriggerLike
from asyncsched.model import ClockSkew, Job, JobState, Receipt, Retention, Retry, Run
from asyncsched.registry import AnyTask, Call, Executor, Lifespan, Task, task_name
from asyncsched.shelf import OnConflict, Shelf
from asyncsched.units import Duration, to_datetime, to_seconds
from asyncsched.values import Serializer

__all__ = ["FromThread", "Scheduler", "SchedulerState"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
E = TypeVar("E", bound=Event)

TaskLike = AnyTask | Call | Callable[..., Any] | str


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
    :param store_retry: how calls to a store that is away are spaced; unless given 0.1 s, and twice as much each time up to 2 s.
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
        options = Options(
            concurrency=concurrency,
            queues=_queues_from(queues),
            lease_s=to_seconds(lease, "lease", positive=True),
            lookahead_s=to_seconds(lookahead, "lookahead"),
            poll_s=None
            if poll_interval is None
            else to_seconds(poll_interval, "poll_interval", positive=True),
            poll_jitter=poll_jitter,
            store_retry=store_retry or Retry(base=0.1, max_delay=2.0, spread=0.5),
            retention=retention or Retention(),
            keeps_history=history,
            defaults=dict(defaults or {}),
            middleware=tuple(middleware),
        )
        self._engine = Engine(
            self,
            store,
            options,
            lifespan=None if lifespan is None else lambda: lifespan(self),
            serializer=serializer,
            clock=clock,
            id=id,
            logger=logger,
        )
        self._intake = Intake(self._engine)
        self._desk = Desk(self._engine)
        #: Finished runs, decisions and counts.
        self.history = History(self._engine.opened_stores, self._engine.load)
        #: The same calls for other threads; each waits for its answer.
        self.from_thread = FromThread(self)

    def __repr__(self) -> str:
        return f"<Scheduler {self.id} {self.state}>"

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def logger(self) -> logging.Logger:
        """Where it tells what happens."""
        return self._engine.logger

    @property
    def id(self) -> str:
        """This instance's name in the log."""
        return self._engine.id

    @property
    def state(self) -> SchedulerState:
        """``stopped``, ``starting``, ``running``, ``paused`` or ``stopping``."""
        return self._engine.state

    @property
    def is_running(self) -> bool:
        """Whether it takes calls; a paused one does."""
        return self._engine.is_running

    async def start(self, paused: bool = False) -> None:
        """Open the stores, add the declared jobs, and begin to run what is due (or wait for ``resume()``).

        Raises AlreadyRunning for a second start, and the store's error where one cannot be opened.
        """
        await self._engine.start(paused=paused, declare=lambda: self._intake.declare(self._intake.declared))

    async def stop(self, drain: Duration = 30) -> None:
        """Claim nothing more, let runs end for *drain* seconds, then cancel them, write every end, and let go of everything.

        A run that was cancelled by this is settled as cancelled and made again, without having spent an attempt. Cancelling
        this call cuts the drain short; what follows is bounded and happens all the same. Called from inside a run, it returns
        at once and stops in the background.
        """
        await self._engine.stop(to_seconds(drain, "drain"))

    async def __aenter__(self) -> Scheduler:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.state == "stopped":
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
                self._engine.cut_drain()

        loop = asyncio.get_running_loop()
        await self.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask)
        try:
            await asked.wait()
        finally:
            try:
                if self.state != "stopped":
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
        return self._engine.registry.tasks

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
        self._engine.registry.add(task)
        self._engine.wake_all()
        return task

    def unregister(self, task: str | Task[..., Any]) -> None:
        """Forget a task; its jobs stay stored, for an instance that knows it. Raises UnknownTaskError."""
        self._engine.registry.remove(task if isinstance(task, str) else task.name)

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
            self._intake.resolve(spec)
            self._engine.composer.record(spec, task, self._engine.clock.time())
            self._intake.declared.append(spec)
            if self.is_running:
                self._engine.errand(self._intake.declare([spec]))
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
        connection: object = None,
        **policies: Unpack[PolicyArgs],
    ) -> Job:
        """Add a job: *task* is a Task, a bound call, a registered name or a module-level function.

        *trigger* is made by ``once``, ``every``, ``cron`` or ``manual``, or is a string (cron expression, macro, "@every 5m");
        without one the job is due now. An id that is taken raises ConflictingIdError, or with ``on_conflict="replace"`` the job
        is made to look like this (an unchanged trigger keeps its progress), or with "keep" the one that is there is returned.
        *run_immediately* makes the first run due now; *run_on_start* asks for a run at each start of this process's scheduler.

        With *connection* the job is added in the user's own transaction (PostgreSQL and MySQL stores): it is there once that
        commits, and never if it rolls back. It is the driver's connection, or an AsyncConnection or AsyncSession of SQLAlchemy;
        where no transaction is open on it, one is made for this call. No JobAdded is told, since nobody here hears the commit.
        """
        spec = JobSpec(
            task, trigger, id, args, kwargs, name, store, queue, priority, tags, metadata,
            paused, run_immediately, run_on_start, policies,
        )  # fmt: skip
        answers = await self.add_jobs([spec], on_conflict=on_conflict, connection=connection)
        return answers[0]

    @overload
    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        *,
        on_conflict: OnConflict = "error",
        errors: Literal["raise"] = "raise",
        connection: object = None,
    ) -> list[Job]: ...

    @overload
    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        *,
        on_conflict: OnConflict = "error",
        errors: Literal["return"],
        connection: object = None,
    ) -> list[Job | AsyncSchedError]: ...

    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        *,
        on_conflict: OnConflict = "error",
        errors: Literal["raise", "return"] = "raise",
        connection: object = None,
    ) -> Any:
        """Add many jobs in few round trips; all of them are checked before any is written.

        With ``errors="return"`` what is wrong with one stands in its place in the answer, and the others are added.
        *connection* is that of ``add_job``.
        """
        return await self._intake.add(specs, on_conflict, errors, connection)

    async def enqueue(
        self, task: Task[P, Any] | Callable[P, Any] | str, /, *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Run *task* with these arguments as soon as may be; for policies use ``task.options(...).bind(...)`` and add_job."""
        job = await self.add_job(cast(TaskLike, task), args=args, kwargs=kwargs)
        return Receipt(job_id=job.id, store=job.store, task=job.task)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def get_job(self, id: str, *, store: str | None = None) -> Job:
        """The job of that id; raises JobLookupError."""
        shelf, _ = await self._engine.find(id, store)
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
        query = query_of(
            queue=queue, task=task, tags=tuple(tags), id_prefix=id_prefix, state=state, due_before=due_before
        )
        return await self._desk.jobs(query, store, limit, after)

    def running(self, job_id: str | None = None) -> list[Run]:
        """The runs that are under way in this instance, of one job or of all."""
        self._engine.check_running()
        executions = [
            e for worker in self._engine.workers.values() for e in worker.held.values() if e.end is None
        ]
        return [e.as_run() for e in executions if job_id is None or base_id(e.record.id) == job_id]

    async def wait_job(
        self, id: str, timeout: Duration | None = None, *, store: str | None = None
    ) -> Job | None:
        """Wait until nothing of the job is under way: a recurring job's run has ended, a one-shot has run.

        Returns the job, or None once it is gone; raises TimeoutError after *timeout*.
        """
        try:
            return await self._desk.wait(
                id, None if timeout is None else to_seconds(timeout, "timeout"), store
            )
        except JobLookupError:
            if await self._desk.has_run(id):
                return None
            raise

    def now(self) -> datetime:
        """The default store's clock, as far as it is known here; every instant is by it."""
        self._engine.check_running()
        return to_datetime(self._engine.shelves["default"].now())

    def clock_skew(self, store: str = "default") -> ClockSkew:
        """How far the store's clock is from this host's. Jobs go by the store's, so that instances need not agree."""
        self._engine.check_running()
        self._engine.store(store)
        return self._engine.store_clocks[store].skew()

    async def next_fire_time(self) -> datetime | None:
        """When the earliest job of all stores is due; None: nothing is planned."""
        earliest = await self._desk.earliest()
        return None if earliest is None else earliest.next_fire_time

    # -- changing ------------------------------------------------------------------------------------------------------

    async def update_job(self, id: str, *, store: str | None = None, **changes: Unpack[JobChanges]) -> Job:
        """Change fields and policies of a job: name, args, kwargs, trigger, queue, priority, tags, metadata, retry, timeout ...

        A run under way keeps what it was started with. An unchanged trigger keeps its progress.
        """
        shelf, record = await self._engine.find(id, store)
        task = self._engine.registry.tasks.get(record.task)
        return await self._change(
            shelf, id, lambda r: self._engine.composer.edit(r, task, changes, shelf.now()), JobUpdated
        )

    async def reschedule_job(self, id: str, trigger: TriggerLike, *, store: str | None = None) -> Job:
        """Give a job another trigger; its fire times are computed anew."""
        shelf, _ = await self._engine.find(id, store)
        return await self._change(
            shelf, id, lambda r: self._engine.composer.reschedule(r, trigger, shelf.now()), JobUpdated
        )

    async def pause_job(self, id: str, *, store: str | None = None) -> Job:
        """Let a job rest until ``resume_job``; a run under way ends as it would."""
        shelf, _ = await self._engine.find(id, store)
        return await self._change(
            shelf, id, lambda r: self._engine.composer.pause(r, shelf.now()), JobPausedEvent
        )

    async def resume_job(self, id: str, *, store: str | None = None) -> Job:
        """End a job's rest: a recurring one goes on at its next fire time from now, without a backlog. A failed one-shot and a
        quarantined job are tried again."""
        shelf, _ = await self._engine.find(id, store)
        return await self._change(
            shelf, id, lambda r: self._engine.composer.resume(r, shelf.now()), JobResumed
        )

    async def run_job(self, id: str, force: bool = False, *, store: str | None = None) -> Receipt:
        """Run a job now, beside its schedule, which stays as it is; after the run under way if there is one.

        A paused job raises JobPaused unless *force*.
        """
        shelf, _ = await self._engine.find(id, store)
        job, _ = await shelf.change(id, lambda r: self._engine.composer.request(r, shelf.now(), force=force))
        return Receipt(job_id=job.id, store=job.store, task=job.task)

    async def remove_job(self, id: str, missing_ok: bool = False, *, store: str | None = None) -> bool:
        """Remove a job; a run under way may end, and has no further ones. Returns whether it was there.

        One that is not raises JobLookupError unless *missing_ok*.
        """
        try:
            shelf, record = await self._engine.find(id, store)
        except JobLookupError:
            if missing_ok:
                return False
            raise
        await shelf.remove([id])
        self._engine.emit_job(JobRemoved, self._engine.composer.job(record, shelf.alias))
        return True

    async def remove_all_jobs(self, *, store: str | None = None) -> int:
        """Remove every job of one store, or of all; return how many there were."""
        return await self.remove_jobs(store=store)

    async def remove_jobs(self, *, store: str | None = None, **filters: Any) -> int:
        """Remove the jobs that match (filters as for ``get_jobs``); return how many."""
        jobs = await self._desk.matching(store, filters)
        for alias in {job.store for job in jobs}:
            await self._engine.shelves[alias].remove([job.id for job in jobs if job.store == alias])
        for job in jobs:
            self._engine.emit_job(JobRemoved, job)
        return len(jobs)

    async def pause_jobs(self, *, store: str | None = None, **filters: Any) -> int:
        """Pause the jobs that match (filters as for ``get_jobs``); return how many."""
        return await self._desk.each(self.pause_job, store, filters)

    async def resume_jobs(self, *, store: str | None = None, **filters: Any) -> int:
        """Resume the jobs that match (filters as for ``get_jobs``); return how many."""
        return await self._desk.each(self.resume_job, store, filters)

    async def run_jobs(self, *, store: str | None = None, force: bool = False, **filters: Any) -> int:
        """Run the jobs that match now (filters as for ``get_jobs``); return how many."""

        async def run_one(id: str, *, store: str | None = None) -> Receipt:
            return await self.run_job(id, force, store=store)

        return await self._desk.each(run_one, store, filters)

    async def _change(
        self, shelf: Shelf, id: str, edit: Callable[[Record], Any], kind: type[JobEvent]
    ) -> Job:
        job, is_changed = (
            await shelf.change_family(id, edit)
            if kind in (JobPausedEvent, JobResumed)
            else await shelf.change(id, edit)
        )
        if is_changed:
            self._engine.emit_job(kind, job)
        return job

    # -- pausing -------------------------------------------------------------------------------------------------------

    async def pause(
        self, *, store: str | None = None, queue: str | None = None, everywhere: bool = False
    ) -> None:
        """Claim nothing: in this instance, of one store, or of one queue; with *everywhere* no instance claims of the queue.

        Runs under way go on. What is paused everywhere is stored, and reaches other instances within seconds.
        """
        await self._engine.set_paused(True, store, queue, everywhere)

    async def resume(
        self, *, store: str | None = None, queue: str | None = None, everywhere: bool = False
    ) -> None:
        """End what ``pause`` began with the same arguments."""
        await self._engine.set_paused(False, store, queue, everywhere)

    # -- stores --------------------------------------------------------------------------------------------------------

    async def add_store(self, alias: str, store: str | JobStore) -> None:
        """Add a store under *alias*, also while running."""
        await self._engine.add_store(alias, store)

    async def remove_store(self, alias: str, drain: Duration = 30) -> None:
        """Let go of a store after its runs have ended; its jobs stay in it."""
        await self._engine.remove_store(alias, to_seconds(drain, "drain"))

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
        if self.is_running:
            self._engine.check_loop()
        if listener is not None:
            return self._engine.bus.add(kind, listener)

        def decorate(function: Callable[[E], T]) -> Callable[[E], T]:
            self._engine.bus.add(kind, cast(Listener[E], function))
            return function

        return decorate


def _blocking(
    method: Callable[Concatenate[Scheduler, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[FromThread, P], T]:
    @wraps(method)
    def call(self: FromThread, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.call(method, *args, **kwargs)

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
        loop = self._scheduler._engine.loop
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
