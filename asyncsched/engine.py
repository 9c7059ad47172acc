"""The life of a scheduler: its stores, its workers, and everything that begins with start() and ends with stop()."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import random
import secrets
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

from asyncsched.clock import Clock, SystemClock
from asyncsched.contract import JobStore, Record
from asyncsched.definition import Policies
from asyncsched.errors import (
    AlreadyRunning,
    AsyncSchedError,
    DefinitionError,
    JobLookupError,
    NotRunning,
    SerializationError,
    StoreError,
    StoreUnavailable,
    UnknownStoreError,
    WrongLoopError,
)
from asyncsched.events import (
    Bus,
    JobEvent,
    SchedulerEvent,
    SchedulerPaused,
    SchedulerResumed,
    SchedulerStarted,
    SchedulerStopped,
)
from asyncsched.execution import Host, Middleware, in_run_of
from asyncsched.ids import check_name
from asyncsched.jobs import Composer, policies_from
from asyncsched.lifespans import Lifespans
from asyncsched.model import ClockSkew, Job, Retention, Retry
from asyncsched.processes import ProcessPool
from asyncsched.registry import AnyTask, Registry
from asyncsched.rules import Rules, rules_of
from asyncsched.shelf import Shelf
from asyncsched.slots import Slots
from asyncsched.storeclock import StoreClock
from asyncsched.stores import store_from_url
from asyncsched.units import to_datetime, to_seconds
from asyncsched.values import DataSerializer, Serializer
from asyncsched.worker import Settings, Worker, queue_mark

__all__ = ["Engine", "Options", "SchedulerState", "Stores"]

SchedulerState = Literal["stopped", "starting", "running", "paused", "stopping"]
Stores = str | JobStore | Mapping[str, str | JobStore]

_PRUNE_BATCH = 500
_FLUSH_S = 5.0
#: A store's clock that differs by more from the host's is worth a warning.
_MAX_SKEW = timedelta(seconds=1)
#: A stop whose caller was cancelled has so long for all that it must do.
_STOP_S = 30.0
_DATA = DataSerializer()
_NO_POLICIES = Policies()


@dataclass(slots=True, kw_only=True)
class Options:
    """What a scheduler was made with, checked; seconds throughout."""

    concurrency: int
    queues: Mapping[str, int | None]
    lease_s: float
    lookahead_s: float
    poll_s: float | None
    poll_jitter: float
    store_retry: Retry
    retention: Retention
    keeps_history: bool
    defaults: Mapping[str, Any]
    middleware: Sequence[Middleware]

    def __post_init__(self) -> None:
        if type(self.concurrency) is not int or self.concurrency < 1:
            raise DefinitionError(f"concurrency must be 1 or more, not {self.concurrency!r}")
        if not 0 <= self.poll_jitter < 1:
            raise DefinitionError(f"poll_jitter must lie between 0 and 1, not {self.poll_jitter!r}")
        checked = policies_from(self.defaults)
        if checked.jitter is not None:
            self.defaults = {**self.defaults, "jitter": checked.jitter}
        self.defaults = {
            name: to_seconds(value, name) if name in _DURATIONS and value is not None else value
            for name, value in self.defaults.items()
        }


_DURATIONS = ("timeout", "cancel_grace", "abandon_after", "misfire_grace")


class Engine:
    """Opens, employs, drains and closes. One for each scheduler."""

    def __init__(
        self,
        facade: object,
        stores: Stores,
        options: Options,
        *,
        lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None,
        serializer: Serializer | None,
        clock: Clock | None,
        id: str | None,
        logger: logging.Logger | None,
    ) -> None:
        self.id = check_name(id, "a scheduler's id") if id is not None else _instance_id()
        self.logger = logger or logging.getLogger("asyncsched")
        self.state: SchedulerState = "stopped"
        self.clock = clock or SystemClock()
        self.options = options
        self.registry = Registry()
        self.bus = Bus(self.logger)
        self.composer = Composer(self.dump, self.load, self.rules)
        self.stores: dict[str, JobStore] = {}
        for alias, given in _stores_from(stores).items():
            self.stores[alias] = store_from_url(given) if isinstance(given, str) else given
        self.shelves: dict[str, Shelf] = {}
        self.workers: dict[str, Worker] = {}
        self.store_clocks: dict[str, StoreClock] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self._facade = facade
        self._default_rules = rules_of(_NO_POLICIES, options.defaults)
        self._lifespan = lifespan
        self._serializer: Serializer = serializer or DataSerializer()
        self._clock_is_given = clock is not None
        self._slots = Slots(options.concurrency, options.queues)
        self._lifespans = Lifespans()
        self._processes = ProcessPool(options.concurrency)
        self._host = self._make_host()
        self._work: dict[str, list[asyncio.Task[None]]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._stopper: asyncio.Task[None] | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self.state in ("running", "paused")

    async def start(self, *, paused: bool, declare: Callable[[], Awaitable[None]]) -> None:
        """Open everything, *declare* the jobs, and employ a worker for each store."""
        if self.state != "stopped":
            raise AlreadyRunning(f"this scheduler is {self.state}; stop it before starting it again")
        self.state = "starting"
        self.loop = asyncio.get_running_loop()
        self._stopper = None
        self._lifespans = Lifespans()
        self._slots = Slots(self.options.concurrency, self.options.queues)
        self._host = self._make_host()
        try:
            for alias in self.stores:
                await self._open(alias)
            self.bus.start()
            if self._lifespan is not None:
                await self._lifespans.enter("", self._lifespan)
            await declare()
        except BaseException:
            await self._close()
            raise
        self.state = "paused" if paused else "running"
        for alias in self.stores:
            self._employ(alias)
        self._emit(SchedulerStarted)
        if not self.options.queues:
            self.logger.info("scheduler %s started as a client: it serves no queues", self.id)
        elif _is_one_of_many():
            self._warn_of_memory()

    def _warn_of_memory(self) -> None:
        """A memory store in one of several web workers: each of them will run every job."""
        for alias, store in self.stores.items():
            if not store.capabilities.shared:
                self.logger.warning(
                    "store %r lives in the memory of this process, which seems to be one of several workers: each of them runs "
                    "every job. Use a store that they share, such as sqlite:///jobs.db",
                    alias,
                )

    async def stop(self, drain_s: float) -> None:
        """Stop, in a task of its own: a caller that is cancelled cuts the drain short, and cannot leave things half done."""
        if self.state == "stopped":
            raise NotRunning("this scheduler is not running")
        self.check_loop()
        if self._stopper is None:
            self._stopper = asyncio.get_running_loop().create_task(
                self._stop(drain_s), name="asyncsched-stop"
            )
        if in_run_of(self._facade):
            return
        try:
            await asyncio.shield(self._stopper)
        except asyncio.CancelledError:
            self.cut_drain()
            await _outlast(self._stopper)
            raise

    def cut_drain(self) -> None:
        """Give runs that are being waited for no more time."""
        for worker in self.workers.values():
            worker.cut_drain()

    async def _stop(self, drain_s: float) -> None:
        self.state = "stopping"
        workers = list(self.workers.values())
        abandoned = await asyncio.gather(*(worker.drain(drain_s) for worker in workers))
        if any(abandoned):
            self.logger.error("abandoned at stop: %s", ", ".join(run for runs in abandoned for run in runs))
        await asyncio.gather(*(self._flush(worker) for worker in workers))
        self._emit(SchedulerStopped)
        await self._close()

    async def _flush(self, worker: Worker) -> None:
        try:
            await asyncio.wait_for(worker.flush(), _FLUSH_S)
        except TimeoutError:
            self.logger.error(
                "store %r took no more ends of runs; those runs will be made again", worker.alias
            )

    async def _close(self) -> None:
        """Let go of everything, however far start() came."""
        for errand in list(self._errands):
            errand.cancel()
        for alias in list(self._work):
            await self._dismiss(alias)
        for error in await self._lifespans.leave():
            self.logger.error("a lifespan failed on its way out", exc_info=error)
        for store in self.stores.values():
            with contextlib.suppress(StoreUnavailable):
                await store.close()
        self.shelves.clear()
        await self.bus.stop(1.0)
        await self._processes.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        self.state = "stopped"

    # -- stores and workers --------------------------------------------------------------------------------------------

    async def add_store(self, alias: str, store: str | JobStore) -> None:
        check_name(alias, "a store's alias")
        if alias in self.stores:
            raise DefinitionError(
                f"a store {alias!r} is there already; remove it, or choose another alias", store=alias
            )
        self.stores[alias] = store_from_url(store) if isinstance(store, str) else store
        if not self.is_running:
            return
        self.check_running()
        try:
            await self._open(alias)
        except BaseException:
            del self.stores[alias]
            raise
        self._employ(alias)

    async def remove_store(self, alias: str, drain_s: float) -> None:
        store = self.store(alias)
        if self.is_running:
            self.check_running()
            worker = self.workers[alias]
            await worker.drain(drain_s)
            await self._flush(worker)
            await self._dismiss(alias)
            del self.shelves[alias]
            await store.close()
        del self.stores[alias]

    async def _open(self, alias: str) -> None:
        store = self.stores[alias]
        await store.open(self.clock.time if self._clock_is_given else None)
        clock = StoreClock(self.clock, is_host=store.capabilities.clock == "host")
        await clock.sample(store.now)
        self.store_clocks[alias] = clock
        self._warn_of_skew(alias, clock.skew())
        self.shelves[alias] = Shelf(alias, store, self.composer, clock.reached)

    def _warn_of_skew(self, alias: str, skew: ClockSkew) -> None:
        if abs(skew.offset) - skew.error > _MAX_SKEW:
            self.logger.warning(
                "the clock of store %r is %.1f s %s the clock of this host: jobs go by the store's. Set both by NTP, since what "
                "this process computes from its own clock is off by that much",
                alias, abs(skew.offset.total_seconds()), "behind" if skew.offset < timedelta() else "ahead of",
            )  # fmt: skip

    def _employ(self, alias: str) -> None:
        """A worker for this store, with the tasks that are its life."""
        store, options = self.stores[alias], self.options
        settings = Settings(
            lease_s=options.lease_s,
            lookahead_s=options.lookahead_s,
            poll_s=options.poll_s if options.poll_s is not None else _poll_of(store),
            poll_jitter=options.poll_jitter,
            retry=options.store_retry,
            keeps_history=options.keeps_history,
        )
        clock = self.store_clocks[alias]
        worker = Worker(self._host, alias, store, self._slots, settings, self.registry.tasks, self.bus, clock)
        worker.is_paused = self.state == "paused"
        self.workers[alias] = worker
        loop = asyncio.get_running_loop()
        self._work[alias] = [loop.create_task(worker.run(), name=f"asyncsched-worker-{alias}")]
        if options.keeps_history:
            prune = self._prune_for_ever(store)
            self._work[alias].append(loop.create_task(prune, name=f"asyncsched-prune-{alias}"))

    async def _dismiss(self, alias: str) -> None:
        tasks = self._work.pop(alias, [])
        for task in tasks:
            task.cancel()
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(answer, Exception):
                self.logger.error("a worker of store %r had failed", alias, exc_info=answer)
        self.workers.pop(alias, None)

    async def _prune_for_ever(self, store: JobStore) -> None:
        """Keep the log within its bounds, in batches small enough to hold nobody up."""
        retention = self.options.retention
        every, age = cast(float, retention.every), cast("float | None", retention.age)
        more = False
        while True:
            await self.clock.sleep(0.0 if more else every * random.uniform(0.9, 1.1))
            try:
                more = await store.prune(age, retention.per_job, _PRUNE_BATCH) >= _PRUNE_BATCH
            except StoreError as error:
                more = False
                self.logger.warning("the history could not be pruned, and will be later: %s", error)

    async def set_paused(self, on: bool, store: str | None, queue: str | None, everywhere: bool) -> None:
        """Pause or resume this instance, one store's worker, or a queue, here or for all."""
        shelves = self.some_shelves(store)
        if everywhere and queue is None:
            raise DefinitionError(
                "everywhere=True goes with queue=: name the queue that no instance shall serve"
            )
        for shelf in shelves:
            worker = self.workers[shelf.alias]
            if queue is None:
                worker.is_paused = on
            else:
                if everywhere:
                    await _mark_queue(shelf, queue, on)
                named = worker.paused_for_all if everywhere else worker.paused_here
                (named.add if on else named.discard)(queue)
            worker.wake()
        if queue is None and store is None:
            self.state = "paused" if on else "running"
            self._emit(SchedulerPaused if on else SchedulerResumed)

    # -- what the facade asks for --------------------------------------------------------------------------------------

    def check_loop(self) -> None:
        if _running_loop() is not self.loop:
            raise WrongLoopError(
                "this scheduler runs in another event loop; from other threads use scheduler.from_thread, whose calls wait"
            )

    def check_running(self) -> None:
        if self.state in ("stopped", "starting") or (
            self.state == "stopping" and not in_run_of(self._facade)
        ):
            raise NotRunning(
                f"this scheduler is {self.state}: await scheduler.start() first, or use 'async with scheduler'"
            )
        self.check_loop()

    def store(self, alias: str) -> JobStore:
        store = self.stores.get(alias)
        if store is None:
            raise UnknownStoreError(f"no store {alias!r}; known: {', '.join(self.stores)}", store=alias)
        return store

    def shelf(self, alias: str) -> Shelf:
        self.store(alias)
        return self.shelves[alias]

    def some_shelves(self, alias: str | None) -> list[Shelf]:
        """One shelf by alias, or all."""
        self.check_running()
        return list(self.shelves.values()) if alias is None else [self.shelf(alias)]

    async def find(self, id: str, store: str | None) -> tuple[Shelf, Record]:
        """The shelf that holds a job, and its record; without an alias all are asked. Raises JobLookupError."""
        shelves = self.some_shelves(store)
        for shelf in shelves:
            record = await shelf.find(id) if isinstance(id, str) and "#" not in id else None
            if record is not None:
                return shelf, record
        if len(shelves) == 1:
            raise shelves[0].missing(id)
        raise JobLookupError(f"no job {id!r} is stored in any of {', '.join(self.shelves)}", job_id=id)

    def opened_stores(self) -> Mapping[str, JobStore]:
        self.check_running()
        return {alias: shelf.store for alias, shelf in self.shelves.items()}

    def errand(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that a synchronous call began; owned here, and its failure is logged."""

        async def run() -> None:
            try:
                await work
            except AsyncSchedError:
                self.logger.exception("a job that was declared while running could not be added")

        task = asyncio.get_running_loop().create_task(run(), name="asyncsched-errand")
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def wake_all(self) -> None:
        """Have every worker look again: something that it could not run may run now."""
        for worker in self.workers.values():
            if self.loop is not None and not self.loop.is_closed():
                self.loop.call_soon_threadsafe(worker.wake)

    def emit_job(self, kind: type[JobEvent], job: Job) -> None:
        if self.bus.subscriptions:
            self.bus.emit(
                kind(
                    at=to_datetime(self.clock.time()),
                    store=job.store,
                    job_id=job.id,
                    task=job.task,
                    name=job.name,
                    queue=job.queue,
                    tags=job.tags,
                )
            )

    def _emit(self, kind: type[SchedulerEvent]) -> None:
        if self.bus.subscriptions:
            self.bus.emit(kind(at=to_datetime(self.clock.time()), instance=self.id))

    # -- what runs ask for ---------------------------------------------------------------------------------------------

    def dump(self, value: Any, path: str) -> bytes:
        """Encode with this scheduler's serializer, whose tag goes in front."""
        try:
            return self._serializer.tag + self._serializer.dumps(value, path)
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(f"{path}: cannot be stored: {type(error).__name__}: {error}") from error

    def rules(self, policies: Policies) -> Rules:
        """The policies that count: the job's own, else this scheduler's defaults."""
        return self._default_rules if policies == _NO_POLICIES else rules_of(policies, self.options.defaults)

    def load(self, data: bytes) -> Any:
        """Decode what any scheduler with this serializer, or with the default one, has encoded."""
        known = [serializer for serializer in (self._serializer, _DATA) if serializer.tag == data[:1]]
        try:
            if known:
                return known[0].loads(data[1:])
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"stored data cannot be read: {type(error).__name__}: {error}"
            ) from error
        raise SerializationError(
            f"stored with a serializer of the tag {data[:1]!r}, and this scheduler has {self._serializer.tag!r}: "
            f"give it the serializer that wrote the data"
        )

    def _make_host(self) -> Host:
        return Host(
            instance=self.id,
            clock=self.clock,
            load=self.load,
            dump=self.dump,
            logger=self.logger,
            middleware=self.options.middleware,
            defaults=self.options.defaults,
            rules=self.rules,
            enter=self._enter_task,
            threads=self._thread_pool,
            processes=self._processes,
            scheduler=self._facade,
            keep_s=cast("float | None", self.options.retention.age),
        )

    async def _enter_task(self, task: AnyTask) -> None:
        assert task.lifespan is not None
        await self._lifespans.enter(task.name, task.lifespan)

    def _thread_pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="asyncsched")
        return self._threads


async def _outlast(task: asyncio.Task[None]) -> None:
    """Wait for *task*, bounded, however often the waiting is cancelled: it must not be left half done."""
    loop = asyncio.get_running_loop()
    deadline = loop.call_later(_STOP_S, task.cancel)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    deadline.cancel()


def _stores_from(given: Stores) -> Mapping[str, str | JobStore]:
    if isinstance(given, Mapping):
        if "default" not in given:
            raise DefinitionError(
                f"one of several stores must have the alias 'default'; given: {', '.join(given) or 'none'}"
            )
        return given
    return {"default": given}


def _poll_of(store: JobStore) -> float:
    """Seconds between looks at a store that says nothing; one that lives here tells everything, so only clocks matter."""
    if not store.capabilities.shared:
        return 30.0
    return 5.0 if store.capabilities.push_hints else 1.25


def _is_one_of_many() -> bool:
    """Whether this process looks like one of several workers of a service: started by one that starts many (uvicorn, gunicorn),
    or told how many there are."""
    told = os.environ.get("WEB_CONCURRENCY", "")
    return (told.isdigit() and int(told) > 1) or multiprocessing.parent_process() is not None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _instance_id() -> str:
    return f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}"


async def _mark_queue(shelf: Shelf, queue: str, on: bool) -> None:
    """Write or remove the record that says that a queue is paused for all."""
    id = queue_mark(check_name(queue, "a queue's name"))
    if on:
        await shelf.store.add([Record(id, "mark", queue, 0, "#queue", None, "paused", b"", b"")])
    else:
        await shelf.store.remove([id])
