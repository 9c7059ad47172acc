"""The facade: one object that a service makes, starts, gives jobs to, and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from types import MappingProxyType, TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, cast, overload

from asyncsched.changes import GonePolicy, Plan
from asyncsched.clock import Clock
from asyncsched.contract import JobStore
from asyncsched.currentrun import Middleware
from asyncsched.declared import Declarations
from asyncsched.desk import Desk
from asyncsched.engine import Engine, SchedulerState, Stores
from asyncsched.errors import AlreadyRunning, DefinitionError, NotRunning, WrongLoopError
from asyncsched.events import (
    Event,
    Listener,
    Subscription,
)
from asyncsched.execution import in_run_of
from asyncsched.flowcalls import FlowCalls
from asyncsched.health import HealthRule
from asyncsched.history import History
from asyncsched.ids import check_name
from asyncsched.intake import Intake
from asyncsched.jobcalls import JobCalls
from asyncsched.locks import Leader, Lock
from asyncsched.model import Retention, Retry
from asyncsched.monitor import Monitor
from asyncsched.orphans import OrphanPolicy, Orphans
from asyncsched.registry import Executor, Lifespan, Task, task_name
from asyncsched.settings import Options
from asyncsched.specs import JobSpec, PolicyArgs, TriggerLike, bound_trigger, checked_flag, checked_mapping
from asyncsched.units import Duration, to_seconds
from asyncsched.values import Serializer

__all__ = ["FromThread", "Scheduler", "SchedulerState"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
E = TypeVar("E", bound=Event)


class Scheduler(JobCalls, FlowCalls):
    """Runs jobs: keeps them in one store or several, claims what is due, runs it in this event loop.

    Making one does no I/O and needs no event loop. ``store`` is a URL ("memory://", "sqlite:///jobs.db"), a store, or several
    by alias. All durations are seconds or timedelta.

    :param concurrency: how many runs may be under way at once in this instance.
    :param queues: the queues that this instance serves, each with a limit of its own or None; ``()``: none (a client).
    :param lease: for how long a claimed job is safe from others without a renewal; a dead instance's jobs run again then.
    :param lookahead: claim jobs so much before they are due, so that each starts on its own timer (None: 20 ms where the
        store is a server, else not at all).
    :param poll_interval: how often to look into the store though nothing is known to be due (None: as the store needs).
    :param poll_jitter: by which share polls are spread.
    :param heartbeat: how often this instance tells the others that use its stores that it is alive, by one write; it counts as
        dead after three of them. None: it does not show itself.
    :param health: from when on a job is unhealthy, for ``monitor`` and the event JobUnhealthy.
    :param store_retry: how calls to a store that is away are spaced; unless given 0.1 s, and twice as much each time up to 2 s.
    :param retention: what the history keeps.
    :param history: whether runs and decisions are written down at all.
    :param defaults: policies for jobs whose task does not say otherwise.
    :param application: whose jobs ``@scheduler.job`` declares; of several applications on the same stores each has its own name.
    :param revision: of the application's code, rising: where a higher one has declared its jobs, this instance changes none.
    :param gone: what becomes of stored jobs that the code of this application no longer declares: ``report``, ``keep``, ``pause``
        or ``remove``; the last two only with an *application*.
    :param orphans: what becomes of jobs whose task no live instance has registered for *orphan_after* (None: nobody looks):
        ``report``, ``pause`` or ``remove``.
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
        lookahead: Duration | None = None,
        poll_interval: Duration | None = None,
        poll_jitter: float = 0.1,
        heartbeat: Duration | None = 30,
        health: HealthRule | None = None,
        store_retry: Retry | None = None,
        retention: Retention | None = None,
        history: bool = True,
        defaults: PolicyArgs | None = None,
        application: str | None = None,
        revision: int | None = None,
        gone: GonePolicy = "report",
        orphans: OrphanPolicy = "report",
        orphan_after: Duration | None = 14 * 86400.0,
        middleware: Sequence[Middleware] = (),
        lifespan: Callable[[Scheduler], AbstractAsyncContextManager[Any]] | None = None,
        serializer: Serializer | None = None,
        clock: Clock | None = None,
        id: str | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        _check_functions(middleware, lifespan)
        options = Options(
            concurrency=concurrency,
            queues=_queues_from(queues),
            lease_s=to_seconds(lease, "lease", positive=True),
            lookahead_s=None if lookahead is None else to_seconds(lookahead, "lookahead"),
            poll_s=None
            if poll_interval is None
            else to_seconds(poll_interval, "poll_interval", positive=True),
            poll_jitter=to_seconds(poll_jitter, "poll_jitter"),
            heartbeat_s=None if heartbeat is None else to_seconds(heartbeat, "heartbeat", positive=True),
            health=_of_kind(HealthRule, health, "health") or HealthRule(),
            store_retry=_of_kind(Retry, store_retry, "store_retry")
            or Retry(base=0.1, max_delay=2.0, spread=0.5),
            retention=_of_kind(Retention, retention, "retention") or Retention(),
            keeps_history=checked_flag(history, "history"),
            defaults=dict(checked_mapping(defaults, "defaults")),
            middleware=tuple(middleware),
            revision=revision,
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
        self._orphans = Orphans(self._engine, orphans, orphan_after)
        self._declarations = Declarations(
            self._engine, self._intake, self._orphans, application, revision, gone
        )
        self._declares_at_start = True
        #: What a client of this one is made with.
        self._given: dict[str, Any] = {
            "store_retry": store_retry, "retention": retention, "history": history, "defaults": defaults,
            "serializer": serializer, "clock": clock, "logger": logger, "application": application, "revision": revision,
            "gone": gone, "orphans": orphans, "orphan_after": orphan_after,
        }  # fmt: skip
        if options.retention.workflows is not None:
            self._engine.attendants.append(self._trim_for_ever)
        #: Finished runs, decisions and counts.
        self.history = History(self._engine.opened_stores, self._engine.load, self._engine.rules)
        #: How jobs and instances are.
        self.monitor = Monitor(self._engine)
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
        await self._engine.start(paused=paused, declare=self._declare)
        if self._declares_at_start:
            for spec in self._declarations.missed():
                self._declare_late(spec)

    async def _declare(self) -> None:
        if self._declares_at_start:
            await self._declarations.start()

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
        # By one of its own runs, say.
        self._engine.on_stopped = asked.set
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, ask)
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
        max_concurrency: int | None = None,
        rate_limit: str | None = None,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function as a task: bare, or with a name, a timeout, a retry, an executor, a lifespan, limits.

        The name is ``module:qualname`` unless given; a taken one raises ConflictingTaskError. A plain function runs in a thread
        unless ``executor="process"``, and a coroutine that it hands on is awaited; a generator function is refused. A task's
        lifespan is entered before its first run and left after the drain. Its limits hold for all of its jobs and all instances:
        so many runs under way, so many starts (``rate_limit="100/minute"``).
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
        max_concurrency: int | None = None,
        rate_limit: str | None = None,
    ) -> Task[P, R]:
        """As the decorator ``task``, for a function that is defined elsewhere.

        A Task (a built-in one, or one of another scheduler) keeps its name and its options, except for those given here.
        """
        if isinstance(function, Task):
            given: Task[P, R] = function
            function, name = given.function, name or given.name
            timeout = given.timeout if timeout is None else timeout
            retry = given.retry if retry is None else retry
            lifespan = given.lifespan if lifespan is None else lifespan
            executor = given.executor if executor is None else executor
            max_concurrency = given.max_concurrency if max_concurrency is None else max_concurrency
            rate_limit = given.rate_limit if rate_limit is None else rate_limit
        if not callable(function):
            raise DefinitionError(f"a task is a function, not {function!r}")
        task = Task(
            function,
            name or task_name(function),
            timeout=timeout,
            retry=retry,
            executor=executor,
            lifespan=lifespan,
            max_concurrency=max_concurrency,
            rate_limit=rate_limit,
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
        trigger keeps its progress, a changed one computes anew, and a pause stays. One that is declared while running never
        counts as gone (``gone=``).
        """

        # At once: "@scheduler.job" without its trigger would be given the function here, and declare nothing.
        bound_trigger(trigger, None, self._engine.clock.time())

        def decorate(function: Callable[P, R] | Task[P, R]) -> Task[P, R]:
            task = function if isinstance(function, Task) else self.register(function, executor=executor)
            spec = JobSpec(
                task, trigger, id or task.name, args, kwargs, name, store, queue, priority, tags, metadata,
                paused, run_immediately, run_on_start, policies,
            )  # fmt: skip
            self._intake.resolve(spec)
            self._engine.composer.record(spec, task, self._engine.clock.time(), may_have_ended=True)
            self._intake.declare(spec)
            if self.is_running:
                self._declare_late(spec)
            return task

        return decorate

    def _declare_late(self, spec: JobSpec) -> None:
        self._intake.late.add(spec.id or self._intake.resolve(spec)[1].name)
        self._engine.errand(self._declarations.add(spec))

    # -- deploying -----------------------------------------------------------------------------------------------------

    async def plan(self, *, rollback: bool = False, show_arguments: bool = False) -> Plan:
        """What would make the stored jobs look like those that this code declares; nothing is changed. See :class:`Plan`.

        With *rollback* it goes back to this revision though a newer one was applied. Arguments and metadata may be secret: that
        they change is told, and with *show_arguments* how. It costs two or three reads per store, whatever is stored.
        """
        return await self._declarations.plan(rollback=rollback, shows_arguments=show_arguments)

    async def apply(self, plan: Plan) -> None:
        """Make it so. Raises PlanOutdated, which names the jobs, if they have changed since the plan was made."""
        await self._declarations.apply(plan)

    def client(self, store: Stores | None = None) -> Scheduler:
        """A scheduler with the tasks and declared jobs of this one, on the same stores or on *store*, that runs nothing: it
        serves no queues, enters no lifespan, shows itself to nobody, and its start declares nothing. For ``plan`` and ``apply``.

        This one must not be running.
        """
        if self.state != "stopped":
            raise AlreadyRunning(
                f"this scheduler is {self.state}: ask itself, or make a client before it starts"
            )
        stores: dict[str, str | JobStore] = dict(self._engine.stores)
        if store is not None:
            stores |= store if isinstance(store, Mapping) else {"default": store}
        client = Scheduler(stores, queues=(), heartbeat=None, **self._given)
        for task in self.tasks.values():
            client._engine.registry.add(task)
        for spec in self._intake.declared:
            client._intake.declare(spec)
        client._intake.late = set(self._intake.late)
        client._declares_at_start = False
        return client

    # -- queues --------------------------------------------------------------------------------------------------------

    @property
    def queues(self) -> Mapping[str, int | None]:
        """The queues that this instance serves, each with its limit or None, read-only."""
        return MappingProxyType(dict(self._engine.options.queues))

    def serve(self, queue: str, limit: int | None = None) -> None:
        """Serve one more queue from now on, or one with another limit, before or after start; as ``queues=`` does."""
        [(name, checked)] = _queues_from({queue: limit}).items()
        self._engine.serve(name, checked)

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

    # -- locks ---------------------------------------------------------------------------------------------------------

    def lock(self, name: str, ttl: Duration = 30, *, store: str = "default") -> Lock:
        """A lock that one holder has at a time among all instances that share the store; see :class:`Lock`."""
        return Lock(lambda: self._open_store(store), name, ttl, clock=self._engine.clock, logger=self.logger)

    def leader(
        self,
        name: str,
        ttl: Duration = 30,
        *,
        on_elected: Callable[[], object] | None = None,
        on_lost: Callable[[], object] | None = None,
        store: str = "default",
    ) -> Leader:
        """``async with scheduler.leader("billing") as leader:`` stands for election among all instances; see :class:`Leader`."""
        return Leader(self.lock(f"leader/{name}", ttl, store=store), on_elected, on_lost)

    def _open_store(self, alias: str) -> JobStore:
        self._engine.check_running()
        return self._engine.store(alias)

    # -- stores --------------------------------------------------------------------------------------------------------

    async def add_store(self, alias: str, store: str | JobStore) -> None:
        """Add a store under *alias*, also while running."""
        await self._engine.add_store(alias, store)

    async def remove_store(self, alias: str, drain: Duration = 30) -> None:
        """Let go of a store after its runs have ended; its jobs stay in it."""
        await self._engine.remove_store(alias, to_seconds(drain, "drain"))

    @property
    def stores(self) -> Mapping[str, JobStore]:
        """The stores by alias, read-only."""
        return MappingProxyType(dict(self._engine.stores))

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
        engine = self._scheduler._engine
        loop = engine.loop
        # As for calls in the event loop: a run may use it while it drains.
        is_draining = engine.state == "stopping" and in_run_of(self._scheduler)
        if loop is None or not (engine.is_running or is_draining):
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
    cancel_job = _blocking(Scheduler.cancel_job)
    cancel_run = _blocking(Scheduler.cancel_run)
    remove_job = _blocking(Scheduler.remove_job)
    run_job = _blocking(Scheduler.run_job)
    wait_job = _blocking(Scheduler.wait_job)


def _check_functions(middleware: object, lifespan: object) -> None:
    if not (isinstance(middleware, Sequence) and all(map(callable, middleware))):
        raise DefinitionError(f"middleware must be a list of functions, not {middleware!r}")
    if lifespan is not None and not callable(lifespan):
        raise DefinitionError(
            f"lifespan must be a function that makes an async context manager, not {lifespan!r}"
        )


def _of_kind(kind: type[T], given: T | None, name: str) -> T | None:
    if given is not None and not isinstance(given, kind):
        raise DefinitionError(f"{name} must be a {kind.__name__}, not {given!r}")
    return given


def _queues_from(given: Mapping[str, int | None] | Sequence[str] | None) -> dict[str, int | None]:
    if given is None:
        return {"default": None}
    if isinstance(given, str):
        raise DefinitionError(f"queues must be a mapping or a sequence of names, not the string {given!r}")
    if not isinstance(given, Mapping | Collection):
        raise DefinitionError(f"queues must be a mapping or a sequence of names, not {given!r}")
    queues = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given)
    for name, limit in queues.items():
        check_name(name, "a queue's name")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise DefinitionError(f"the limit of queue {name!r} must be 1 or more, or None, not {limit!r}")
    return queues
