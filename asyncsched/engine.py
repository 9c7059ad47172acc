"""The life of a scheduler: its stores, its workers, and everything that begins with start() and ends with stop()."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Literal, cast

from asyncsched.clock import Clock, SystemClock
from asyncsched.contract import JobStore, Record
from asyncsched.currentrun import CurrentRun
from asyncsched.definition import Policies
from asyncsched.edits import Editor
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
from asyncsched.execution import Host, in_run_of
from asyncsched.ids import check_name
from asyncsched.instances import Activity, Presence, instance_id
from asyncsched.jobs import Composer
from asyncsched.lifespans import Lifespans
from asyncsched.model import ClockSkew, Job
from asyncsched.outlast import ENOUGH_S, heeding, to_its_end
from asyncsched.processes import ProcessPool, is_one_of_many
from asyncsched.registry import AnyTask, Registry
from asyncsched.rules import Rules, rules_of
from asyncsched.settings import Options, Settings, poll_of
from asyncsched.shelf import Shelf
from asyncsched.slots import Slots
from asyncsched.storeclock import StoreClock
from asyncsched.stores import made_store
from asyncsched.units import to_datetime
from asyncsched.values import DataSerializer, Serializer
from asyncsched.watch import Watch
from asyncsched.worker import Worker

__all__ = ["Engine", "SchedulerState", "Stores"]

SchedulerState = Literal["stopped", "starting", "running", "paused", "stopping"]
Stores = str | JobStore | Mapping[str, str | JobStore]

_PRUNE_BATCH = 500
_FLUSH_S = 5.0
#: Where a call to the store takes a while: jobs are claimed so much before they are due, unless the user says otherwise.
_PACE_S = 0.02
#: A store's clock that differs by more from the host's is worth a warning.
_MAX_SKEW = timedelta(seconds=1)
_DATA = DataSerializer()
_NO_POLICIES = Policies()


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
        self.id = check_name(id, "a scheduler's id") if id is not None else instance_id()
        self.logger = logger or logging.getLogger("asyncsched")
        self.state: SchedulerState = "stopped"
        self.clock = clock or SystemClock()
        self.options = options
        self.registry = Registry()
        self.bus = Bus(self.logger)
        self.composer = Composer(self.dump, self.load, self.rules)
        self.editor = Editor(self.composer)
        self.stores: dict[str, JobStore] = {}
        for alias, given in _stores_from(stores).items():
            self._take(alias, given)
        self.shelves: dict[str, Shelf] = {}
        self.workers: dict[str, Worker] = {}
        #: Stores that are being removed.
        self._leaving: set[str] = set()
        #: What this instance was told to leave alone: a store (None: all), and a queue of it (None: all).
        self._pauses: set[tuple[str | None, str | None]] = set()
        self.store_clocks: dict[str, StoreClock] = {}
        #: How this instance shows itself to others, in each store.
        self.presences: dict[str, Presence] = {}
        #: Work beside that of the workers: each is begun for each store, and cancelled with it.
        self.attendants: list[Callable[[str], Coroutine[Any, Any, None]]] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self.on_stopped: Callable[[], object] = lambda: None
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
        #: The task that starts it, and what is done once that has come to its end.
        self._start: tuple[asyncio.Task[Any], asyncio.Future[None]] | None = None
        self._is_called_off = False

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
        starting = asyncio.current_task()
        assert starting is not None
        cancelled = starting.cancelling()
        ended = self.loop.create_future()
        self._start, self._is_called_off = (starting, ended), False
        self._stopper = None
        self._pauses = {(None, None)} if paused else set()
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
            for alias in self.stores:
                await self._appear(alias)
            if self._is_called_off:
                raise asyncio.CancelledError  # It was told, and something kept it to itself.
        except BaseException as error:
            was_called_off, self._is_called_off = self._is_called_off, True
            try:
                await to_its_end(self.loop.create_task(self._close()))
            finally:
                ended.set_result(None)
            if (
                was_called_off
                and starting.uncancel() <= cancelled
                and isinstance(error, asyncio.CancelledError)
            ):
                raise NotRunning("this scheduler was stopped while it started") from None
            raise
        ended.set_result(None)
        self.state = "paused" if paused else "running"
        for alias in self.stores:
            self._employ(alias)
        self._emit(SchedulerStarted)
        if not self.options.queues:
            self.logger.info("scheduler %s started as a client: it serves no queues", self.id)
        elif is_one_of_many():
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
        if self.state == "starting" and self._start is not None:
            starting, ended = self._start
            if not self._is_called_off:
                self._is_called_off = True
                starting.cancel()
            await asyncio.wait([ended], timeout=ENOUGH_S)
            return
        if self._stopper is None:
            self._stopper = asyncio.get_running_loop().create_task(
                self._stop(drain_s), name="asyncsched-stop"
            )
        if in_run_of(self._facade):
            return
        await to_its_end(self._stopper, self.cut_drain)

    def cut_drain(self) -> None:
        """Give runs that are being waited for no more time."""
        for worker in self.workers.values():
            worker.cut_drain()

    async def _stop(self, drain_s: float) -> None:
        self.state = "stopping"
        workers = list(self.workers.values())
        try:
            abandoned = await asyncio.gather(*(worker.drain(drain_s) for worker in workers))
            if any(abandoned):
                names = ", ".join(run for runs in abandoned for run in runs)
                self.logger.error("abandoned at stop: %s", names)
            await asyncio.gather(*(self._flush(worker) for worker in workers))
        except asyncio.CancelledError:
            self.logger.error("the stop took too long; runs that have not ended will be made again")
            for worker in workers:
                worker.give_up()
            await asyncio.gather(*(self._flush(worker) for worker in workers))
            raise
        finally:
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
        try:
            for errand in list(self._errands):
                errand.cancel()
            for alias in list(self._work):
                await self._dismiss(alias)
            for alias in list(self.presences):
                await self._disappear(alias)
            for error in await self._lifespans.leave():
                self.logger.error("a lifespan failed on its way out", exc_info=error)
            closing = [store.close() for store in self.stores.values()]
            for refused in await asyncio.gather(*closing, return_exceptions=True):
                if refused is not None and not isinstance(refused, StoreUnavailable):
                    self.logger.error("a store could not be closed", exc_info=refused)
            self.shelves.clear()
            await self.bus.stop(1.0)
            await self._processes.close()
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
                self._threads = None
        finally:
            self.state = "stopped"
            self.on_stopped()

    # -- stores and workers --------------------------------------------------------------------------------------------

    async def add_store(self, alias: str, store: str | JobStore) -> None:
        self._check_settled()
        self._take(alias, store)
        if not self.is_running:
            return
        host = self._host
        try:
            await self._open(alias)
            if self._host is not host and self.state != "stopped":
                return  # Stopped and started meanwhile: that start has opened it, and employs a worker for it.
            await self._appear(alias)
            if not self.is_running:
                raise NotRunning(f"this scheduler was stopped while it opened store {alias!r}")
        except BaseException:
            self.shelves.pop(alias, None)
            opened = self.stores.pop(alias)
            await self._disappear(alias)
            with contextlib.suppress(StoreUnavailable):
                await opened.close()
            raise
        self._employ(alias)

    def _take(self, alias: str, given: str | JobStore) -> None:
        check_name(alias, "a store's alias")
        if alias in self.stores:
            raise DefinitionError(
                f"a store {alias!r} is there already; remove it, or choose another alias", store=alias
            )
        store = made_store(given)
        for other, there in self.stores.items():
            if there is store:
                # Whoever lets go of one of them would close the other.
                raise DefinitionError(f"store {alias!r} is store {other!r}: use that alias", store=alias)
        self.stores[alias] = store

    async def remove_store(self, alias: str, drain_s: float) -> None:
        self.store(alias)
        self._check_settled()
        if not self.is_running:
            del self.stores[alias]
            return
        worker = self.worker(alias)
        if alias in self._leaving:
            raise UnknownStoreError(f"store {alias!r} is being removed already", store=alias)
        self._leaving.add(alias)
        try:
            try:
                await worker.drain(drain_s)
                await self._flush(worker)
            except BaseException:
                if self.workers.get(alias) is worker and self.state != "stopping":
                    worker.go_on()
                raise
            # What is half let go of would take jobs that nobody runs.
            await to_its_end(asyncio.get_running_loop().create_task(self._let_go(alias)))
        finally:
            self._leaving.discard(alias)

    async def _let_go(self, alias: str) -> None:
        try:
            await self._dismiss(alias)
            await self._disappear(alias)
            self.shelves.pop(alias, None)
            with contextlib.suppress(StoreUnavailable):
                await self.stores[alias].close()
        finally:
            self.shelves.pop(alias, None)
            self.stores.pop(alias, None)
            self._pauses = {pause for pause in self._pauses if pause[0] != alias}

    def _check_settled(self) -> None:
        if self.state in ("starting", "stopping"):
            raise NotRunning(
                f"this scheduler is {self.state}: add or remove stores before its start, or while it runs"
            )
        if self.is_running:
            self.check_loop()

    async def _open(self, alias: str) -> None:
        store = self.stores[alias]
        await store.open(self.clock.time if self._clock_is_given else None)
        clock = StoreClock(self.clock, is_host=store.capabilities.clock == "host")
        await clock.sample(store.now)
        self.store_clocks[alias] = clock
        self._warn_of_skew(alias, clock.skew())
        self.shelves[alias] = Shelf(alias, store, self.composer, self.editor, clock.reached)

    def _warn_of_skew(self, alias: str, skew: ClockSkew) -> None:
        if abs(skew.offset) - skew.error > _MAX_SKEW:
            self.logger.warning(
                "the clock of store %r is %.1f s %s the clock of this host: jobs go by the store's. Set both by NTP, since what "
                "this process computes from its own clock is off by that much",
                alias, abs(skew.offset.total_seconds()), "behind" if skew.offset < timedelta() else "ahead of",
            )  # fmt: skip

    async def _appear(self, alias: str) -> None:
        """Show this instance to the others that use this store."""
        heartbeat_s = self.options.heartbeat_s
        if heartbeat_s is None:
            return
        presence = self.presences[alias] = Presence(
            self.id, alias, self.stores[alias], self.store_clocks[alias], heartbeat_s,
            lambda: self._activity(alias), self.logger,
        )  # fmt: skip
        await presence.begin()

    async def _disappear(self, alias: str) -> None:
        presence = self.presences.pop(alias, None)
        if presence is not None:
            await presence.end()

    def _activity(self, alias: str) -> Activity:
        worker = self.workers.get(alias)
        running = 0 if worker is None else worker.running
        return Activity(
            running, tuple(sorted(self.registry.tasks)), tuple(self.options.queues), self.options.revision
        )

    async def _beat_for_ever(self, presence: Presence, watch: Watch) -> None:
        while True:
            await self.clock.sleep(presence.pause_s())
            try:
                await heeding(presence.beat())
                await heeding(watch.look(self.stores[presence.alias]))
            except StoreError:
                # One that is away is told of by the worker, and one that refuses a page is looked at again later.
                continue
            except Exception:
                # Without heartbeats this instance would count as dead, and its tasks as nobody's.
                self.logger.exception("a heartbeat in store %r failed", presence.alias)

    def _employ(self, alias: str) -> None:
        """A worker for this store, with the tasks that are its life."""
        store, options = self.stores[alias], self.options
        # A clock that was given may stand still, and then nothing may wait for it.
        pace_s = _PACE_S if store.capabilities.clock == "server" and not self._clock_is_given else 0.0
        lookahead_s = pace_s if options.lookahead_s is None else options.lookahead_s
        settings = Settings(
            lease_s=options.lease_s,
            lookahead_s=lookahead_s,
            pace_s=min(lookahead_s, pace_s),
            poll_s=options.poll_s if options.poll_s is not None else poll_of(store),
            poll_jitter=options.poll_jitter,
            retry=options.store_retry,
            keeps_history=options.keeps_history,
            health=options.health,
        )
        clock = self.store_clocks[alias]
        worker = Worker(self._host, alias, store, self._slots, settings, self.registry.tasks, self.bus, clock)
        self.workers[alias] = worker
        self._pause(alias)
        loop = asyncio.get_running_loop()
        self._work[alias] = [loop.create_task(worker.run(), name=f"asyncsched-worker-{alias}")]
        prune = self._prune_for_ever(store)
        self._work[alias].append(loop.create_task(prune, name=f"asyncsched-prune-{alias}"))
        for attend in self.attendants:
            name = f"asyncsched-{attend.__name__}-{alias}"
            self._work[alias].append(loop.create_task(attend(alias), name=name))
        presence = self.presences.get(alias)
        if presence is not None:
            beats = self._beat_for_ever(presence, worker.watch)
            self._work[alias].append(loop.create_task(beats, name=f"asyncsched-beat-{alias}"))
        for task in self._work[alias]:
            task.add_done_callback(self._tell_failure)

    def is_failed(self, alias: str) -> bool:
        """Whether the worker of this store has ended, though it never should."""
        return any(task.done() for task in self._work.get(alias, [])[:1])

    def _tell_failure(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.logger.critical(
                "%s has failed, and does nothing until this scheduler is started again",
                task.get_name(),
                exc_info=error,
            )

    async def _dismiss(self, alias: str) -> None:
        tasks = self._work.pop(alias, [])
        if alias in self.workers:
            self.workers[alias].end()
        for task in tasks:
            task.cancel()
        # What has failed was told when it did.
        await asyncio.gather(*tasks, return_exceptions=True)
        self.workers.pop(alias, None)

    async def _prune_for_ever(self, store: JobStore) -> None:
        """Keep the log within its bounds, in batches small enough to hold nobody up. Who writes no history takes no other's away;
        leases that nobody holds any more are forgotten all the same."""
        retention = self.options.retention
        every, age, per_job = (
            cast(float, retention.every),
            cast("float | None", retention.age),
            retention.per_job,
        )
        if not self.options.keeps_history:
            age = per_job = None
        more = False
        while True:
            await self.clock.sleep(0.0 if more else every * random.uniform(0.9, 1.1))
            try:
                pruned = await heeding(store.prune(age, per_job, _PRUNE_BATCH))
                more = pruned >= _PRUNE_BATCH
            except Exception as error:
                more = False
                is_fault = not isinstance(error, StoreError)
                self.logger.warning(
                    "the history could not be pruned, and will be later: %s", error, exc_info=is_fault
                )

    async def set_paused(self, on: bool, store: str | None, queue: str | None, everywhere: bool) -> None:
        """Pause or resume this instance, one store's worker, or a queue, here or for all."""
        shelves = self.some_shelves(store)
        if queue is not None:
            check_name(queue, "a queue's name")
        elif everywhere:
            raise DefinitionError(
                "everywhere=True goes with queue=: name the queue that no instance shall serve"
            )
        if not everywhere:
            (self._pauses.add if on else self._pauses.discard)((store, queue))
        for shelf in shelves:
            if everywhere and queue is not None:
                await shelf.mark_queue(queue, on)
            # Its store may have been removed meanwhile.
            if (worker := self.workers.get(shelf.alias)) is not None:
                if everywhere and queue is not None:
                    (worker.paused_for_all.add if on else worker.paused_for_all.discard)(queue)
                self._pause(shelf.alias)
                worker.wake()
        if queue is None and store is None and self.is_running:
            self.state = "paused" if on else "running"
            self._emit(SchedulerPaused if on else SchedulerResumed)

    def _pause(self, alias: str) -> None:
        """Tell the worker of a store what it is to leave alone."""
        asked = [queue for store, queue in self._pauses if store is None or store == alias]
        self.workers[alias].is_paused = None in asked
        self.workers[alias].paused_here = {queue for queue in asked if queue is not None}

    def serve(self, queue: str, limit: int | None) -> None:
        """Serve one more queue, or one with another limit."""
        self.options.queues = {**self.options.queues, queue: limit}
        self._slots.serve(queue, limit)
        self.wake_all()

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
        shelf = self.shelves.get(alias)
        if shelf is None:
            raise UnknownStoreError(f"store {alias!r} is not open: it is being added or removed", store=alias)
        return shelf

    def worker(self, alias: str) -> Worker:
        worker = self.workers.get(alias)
        if worker is None:
            raise UnknownStoreError(f"store {alias!r} is not open: it is being added or removed", store=alias)
        return worker

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
            show=CurrentRun,
            defaults=self.options.defaults,
            rules=self.rules,
            enter=self._enter_task,
            threads=self._thread_pool,
            renew_threads=self._renew_threads,
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

    def _renew_threads(self) -> None:
        """A thread that goes on with what was given up has no slot, and must not stand in the place of one that has."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None


def _stores_from(given: Stores) -> Mapping[str, str | JobStore]:
    if isinstance(given, Mapping):
        if "default" not in given:
            raise DefinitionError(
                f"one of several stores must have the alias 'default'; given: {', '.join(given) or 'none'}"
            )
        return given
    return {"default": given}


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
