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
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from asyncsched.model import Outcome

__all__ = [
    "Bus",
    "Event",
    "JobAdded",
    "JobEvent",
    "JobExhausted",
    "JobHandedBack",
    "JobPausedEvent",
    "JobQuarantined",
    "JobRemoved",
    "JobResumed",
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


class JobExhausted(JobEvent, frozen=True, kw_only=True):
    """Its attempts at one fire time have run out."""


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
        if self._queue or not self._idle.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained(), timeout_s)
        task.cancel()
        await asyncio.wait([task], timeout=1.0)
        self._ready = None

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _feed(self) -> None:
        assert self._ready is not None
        while True:
            await self._ready.wait()
            self._ready.clear()
            self._idle.clear()
            while self._queue:
                await self._deliver(self._queue.popleft())
            self._idle.set()

    async def _drained(self) -> None:
        await asyncio.sleep(0)
        while self._queue or not self._idle.is_set():
            await self._idle.wait()
            await asyncio.sleep(0)

    async def _deliver(self, event: E) -> None:
        try:
            answer = self._listener(event)
            if inspect.isawaitable(answer):
                await answer
        except Exception:
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
