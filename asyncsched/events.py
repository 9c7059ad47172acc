"""Facts as they happen, in this process: typed events, and listeners that harm nobody.

Each listener has a bounded queue and a task of its own that feeds it one event after another, so its order is the order of
events, a slow one only fills its own queue (what it drops is counted), and a failing one is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from asyncsched.model import Outcome
from asyncsched.outlast import cancellations

__all__ = [
    "Bus",
    "DeclarationsLeft",
    "Event",
    "JobAdded",
    "JobEvent",
    "JobExhausted",
    "JobGone",
    "JobHandedBack",
    "JobHealthy",
    "JobLimited",
    "JobOrphaned",
    "JobPausedEvent",
    "JobQuarantined",
    "JobRemoved",
    "JobResumed",
    "JobUnhealthy",
    "JobUpdated",
    "RunCancelled",
    "RunEvent",
    "RunFailed",
    "RunFinished",
    "RunLost",
    "RunSkipped",
    "RunStarted",
    "RunSucceeded",
    "RunTimedOut",
    "SchedulerEvent",
    "SchedulerPaused",
    "SchedulerResumed",
    "SchedulerStarted",
    "SchedulerStopped",
    "StoreDegraded",
    "StoreEvent",
    "StoreRecovered",
    "Subscription",
    "WorkflowCompleted",
]

#: How many events one listener may be behind before further ones are dropped for it.
QUEUE_SIZE = 1000


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The base class: a listener for it hears everything."""

    at: datetime


class SchedulerEvent(Event, frozen=True, kw_only=True):
    """Something about this instance."""

    instance: str


class SchedulerStarted(SchedulerEvent, frozen=True, kw_only=True):
    """It claims jobs from now on (or, as a client, takes calls)."""


class SchedulerStopped(SchedulerEvent, frozen=True, kw_only=True):
    """It has drained and let go of everything."""


class SchedulerPaused(SchedulerEvent, frozen=True, kw_only=True):
    """It claims nothing until it is resumed."""


class SchedulerResumed(SchedulerEvent, frozen=True, kw_only=True):
    """It claims again."""


class DeclarationsLeft(SchedulerEvent, frozen=True, kw_only=True):
    """A newer revision of the application has declared jobs in a store: those of this instance were left out there."""

    store: str
    application: str
    revision: int | None
    #: That of the newer one; None where it is written in a format that this instance does not read.
    stored_revision: int | None


class StoreEvent(Event, frozen=True, kw_only=True):
    """Something about one store."""

    store: str
    error: str | None = None


class StoreDegraded(StoreEvent, frozen=True, kw_only=True):
    """The store does not answer; its jobs wait until it does."""


class StoreRecovered(StoreEvent, frozen=True, kw_only=True):
    """The store answers again."""


class JobEvent(Event, frozen=True, kw_only=True):
    """Something about a job."""

    store: str
    job_id: str
    task: str
    name: str | None = None
    queue: str = "default"
    tags: tuple[str, ...] = ()
    error: str | None = None


class JobAdded(JobEvent, frozen=True, kw_only=True):
    """This instance added it."""


class JobUpdated(JobEvent, frozen=True, kw_only=True):
    """This instance changed it."""


class JobRemoved(JobEvent, frozen=True, kw_only=True):
    """This instance removed it."""


class JobPausedEvent(JobEvent, frozen=True, kw_only=True):
    """This instance paused it."""


class JobResumed(JobEvent, frozen=True, kw_only=True):
    """This instance resumed it."""


class JobQuarantined(JobEvent, frozen=True, kw_only=True):
    """It cannot be run as it is; it is kept, and ``resume_job`` tries again."""


class JobHandedBack(JobEvent, frozen=True, kw_only=True):
    """This instance does not know its task, or reads no format as new as its own; it is left for another."""


class JobLimited(JobEvent, frozen=True, kw_only=True):
    """It is due, and waits for its turn under a limit; told once for each wait."""

    #: ``key/NAME`` or ``task/NAME``.
    limit: str
    #: When a rate lets it start; None: when a place becomes free.
    until: datetime | None = None


class JobExhausted(JobEvent, frozen=True, kw_only=True):
    """Its attempts at one fire time have run out."""


class JobGone(JobEvent, frozen=True, kw_only=True):
    """The code that declared it does not declare it any more; ``gone=`` of the scheduler says what becomes of it."""


class JobOrphaned(JobEvent, frozen=True, kw_only=True):
    """No live instance has known its task for ``orphan_after``; ``orphans=`` of the scheduler says what becomes of it."""

    #: The first look that found no instance.
    since: datetime


class JobUnhealthy(JobEvent, frozen=True, kw_only=True):
    """It has become unhealthy, by the scheduler's ``health=``: as the instance that wrote its last run knows, or as each one
    that listens sees at its heartbeat. Told once, until it is healthy again."""

    #: As of Health: quarantined, failed, resting, failing, overdue.
    reasons: tuple[str, ...]
    consecutive_failures: int = 0
    #: Seconds for which it has been due.
    late_by: float | None = None


class JobHealthy(JobEvent, frozen=True, kw_only=True):
    """It is not unhealthy any more: a run of it succeeded, it was taken up again or paused, or it is gone."""


class RunEvent(JobEvent, frozen=True, kw_only=True):
    """Something about a run."""

    fire_time: datetime
    attempt: int
    fence: int


class RunStarted(RunEvent, frozen=True, kw_only=True):
    """It is about to be called."""


class RunFinished(RunEvent, frozen=True, kw_only=True):
    """It has ended; the subclasses say how."""

    outcome: Outcome
    #: Seconds.
    duration: float
    result: Any = None


class RunSucceeded(RunFinished, frozen=True, kw_only=True):
    """It returned."""


class RunFailed(RunFinished, frozen=True, kw_only=True):
    """It raised."""


class RunTimedOut(RunFinished, frozen=True, kw_only=True):
    """It took longer than its timeout."""


class RunCancelled(RunFinished, frozen=True, kw_only=True):
    """It was cancelled, by a shutdown for example."""


class RunLost(RunFinished, frozen=True, kw_only=True):
    """Its lease could no longer be trusted, or its job was taken by another or removed; its end was not written."""


class RunSkipped(JobEvent, frozen=True, kw_only=True):
    """Fire times that do not run, and why (see Decision)."""

    fire_time: datetime
    reason: str
    count: int


class WorkflowCompleted(Event, frozen=True, kw_only=True):
    """The last step of an execution of a workflow has ended; this instance wrote that down."""

    store: str
    #: The execution's.
    id: str
    #: The workflow's.
    name: str
    #: succeeded, failed or cancelled.
    outcome: str
    #: How each step ended: succeeded, failed, skipped or cancelled.
    steps: Mapping[str, str]
    #: Seconds from the start to the end.
    duration: float


E = TypeVar("E", bound=Event)
Listener = Callable[[E], Awaitable[object] | object]


class Subscription(Generic[E]):
    """What ``scheduler.on`` returns; call it to end it."""

    def __init__(self, bus: Bus, kind: type[E], listener: Listener[E]) -> None:
        self.kind = kind
        #: How many events were dropped because the listener was too far behind.
        self.dropped = 0
        self._listener = listener
        self._bus = bus
        self._queue: deque[E] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self._ready: asyncio.Event | None = None
        self._idle = asyncio.Event()

    def __call__(self) -> None:
        """Hear nothing more."""
        self._bus.remove(self)

    def put(self, event: E) -> None:
        if len(self._queue) >= QUEUE_SIZE:
            self.dropped += 1
            return
        self._queue.append(event)
        if self._ready is not None:
            self._ready.set()

    def start(self) -> None:
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        if self._queue:
            self._ready.set()
        self._task = asyncio.get_running_loop().create_task(
            self._feed(), name=f"asyncsched-listener-{self._listener!r}"
        )

    async def drain(self, timeout_s: float) -> None:
        """Deliver what is queued, for *timeout_s* at most, and end."""
        task, self._task = self._task, None
        if task is None:
            return
        try:
            if self._queue or not self._idle.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._drained(), timeout_s)
        finally:
            # Also where whoever drains is cancelled.
            task.cancel()
            await asyncio.wait([task], timeout=1.0)
            self._ready = None

    def cancel(self) -> None:
        task, self._task = self._task, None
        if task is not None and task is asyncio.current_task():
            # Its own listener asks for it, and goes on to its end.
            self._is_over = True
        elif task is not None:
            task.cancel()

    async def _feed(self) -> None:
        assert self._ready is not None
        while True:
            await self._ready.wait()
            self._ready.clear()
            self._idle.clear()
            while self._queue:
                await self._deliver(self._queue.popleft())
                if self._is_over:
                    return
            self._idle.set()

    async def _drained(self) -> None:
        await asyncio.sleep(0)
        while self._queue or not self._idle.is_set():
            await self._idle.wait()
            await asyncio.sleep(0)

    async def _deliver(self, event: E) -> None:
        before = cancellations()
        try:
            answer = self._listener(event)
            if inspect.isawaitable(answer):
                await answer
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and cancellations() > before:
                raise
            # What a listener waited for was cancelled, and that is no reason to hear nothing more.
            self._bus.logger.exception("listener %r failed on %s", self._listener, type(event).__name__)


class Bus:
    """The listeners of one scheduler."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        #: Looked at before an event is made: no listeners, no cost.
        self.subscriptions: list[Subscription[Any]] = []
        self._started = False

    def add(self, kind: type[E], listener: Listener[E]) -> Subscription[E]:
        subscription = Subscription(self, kind, listener)
        self.subscriptions.append(subscription)
        if self._started:
            subscription.start()
        return subscription

    def remove(self, subscription: Subscription[Any]) -> None:
        if subscription in self.subscriptions:
            self.subscriptions.remove(subscription)
            subscription.cancel()

    def wants(self, kind: type[Event]) -> bool:
        """Whether any listener hears events of *kind*."""
        return any(issubclass(kind, s.kind) or issubclass(s.kind, kind) for s in self.subscriptions)

    def emit(self, event: Event) -> None:
        """Queue *event* for its listeners; never waits."""
        for subscription in self.subscriptions:
            if isinstance(event, subscription.kind):
                subscription.put(event)

    def start(self) -> None:
        """Feed the listeners from now on, in the running loop."""
        self._started = True
        for subscription in self.subscriptions:
            subscription.start()

    async def stop(self, timeout_s: float) -> None:
        """Deliver what is queued, bounded, and end the feeding."""
        self._started = False
        await asyncio.gather(*(subscription.drain(timeout_s) for subscription in list(self.subscriptions)))
