"""Which instances there are: each keeps a record of itself in its stores, and writes it anew with each heartbeat."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from asyncsched.codec import decode_instance, encode
from asyncsched.contract import Filter, JobStore, Record, Update
from asyncsched.definition import InstanceForm
from asyncsched.errors import SerializationError, StoreError, StoreUnavailable
from asyncsched.ids import INSTANCES, instance_mark, new_id
from asyncsched.model import ClockSkew
from asyncsched.storeclock import StoreClock
from asyncsched.units import to_datetime
from asyncsched.version import VERSION

__all__ = ["Activity", "Instance", "Presence", "instance_id", "instances_of", "look_at_instances"]

#: An instance is alive if it was seen within so many of its own heartbeats.
MISSED = 3
#: Records of dead instances are kept for so long, and looked for so often by each live one.
_KEPT_S = 86400.0
_SWEEP_S = 3600.0
_SWEPT = 100
_PAGE = 500
_SPREAD = 0.1
#: A stop waits no longer for its record to be removed: unseen, it counts as dead soon.
_GOODBYE_S = 2.0


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A scheduler that uses a store, as it was when it was last seen there. Instants are the store's."""

    #: The ``id`` of that scheduler.
    id: str
    #: The alias, here, of the store that knows it; an instance with several stores is known in each.
    store: str
    host: str
    pid: int
    #: Of asyncsched.
    version: str
    started_at: datetime
    seen_at: datetime
    #: Whether it was seen within three of its heartbeats.
    is_alive: bool
    #: Seconds; None: it lives and dies with the store.
    heartbeat: float | None
    #: How many runs of this store it had under way.
    running: int
    #: The store's clock less that host's.
    skew: ClockSkew
    #: The names of its registered tasks.
    tasks: tuple[str, ...]
    #: The queues that it serves.
    queues: tuple[str, ...]
    revision: int | None = None

    @property
    def is_client(self) -> bool:
        """Whether it runs nothing: it serves no queue."""
        return not self.queues


class Activity(NamedTuple):
    """What an instance tells of itself."""

    running: int
    tasks: tuple[str, ...]
    queues: tuple[str, ...]
    revision: int | None = None


def instance_id() -> str:
    """A name that no other instance has."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}"


class Presence:
    """The record of one instance in one store.

    A heartbeat is one write. A store that is away misses some, and nothing else comes of it.
    """

    def __init__(
        self,
        id: str,
        alias: str,
        store: JobStore,
        store_clock: StoreClock,
        heartbeat_s: float,
        activity: Callable[[], Activity],
        logger: logging.Logger,
    ) -> None:
        self.id = instance_mark(id)
        self.alias = alias
        #: A store in this process forgets whoever dies.
        self.needs_beats = store.capabilities.shared or store.capabilities.durable
        self.heartbeat_s = heartbeat_s
        self._store = store
        self._store_clock = store_clock
        self._activity = activity
        self._logger = logger
        self._birth = new_id()
        self._started_at = store_clock.now()
        self._version: int | None = None
        self._has_warned = False
        self._sweep_in_s = random.uniform(0.0, _SWEEP_S)

    async def begin(self) -> None:
        """Appear in the store, in the place of a dead instance of that id. One that is away is told with the next heartbeat."""
        await self._told(is_first=True)

    async def beat(self) -> None:
        """Say that this instance is alive; once in a while, forget those that have been dead for a day."""
        if not self.needs_beats:
            return
        await self._told(is_first=False)
        self._sweep_in_s -= self.heartbeat_s
        if self._sweep_in_s <= 0:
            self._sweep_in_s = _SWEEP_S
            with suppress(StoreError):
                await self._sweep()

    def pause_s(self) -> float:
        """Until the next heartbeat: spread, so that instances which were started together do not write together."""
        return self.heartbeat_s * random.uniform(1 - _SPREAD, 1 + _SPREAD)

    async def end(self) -> None:
        """Leave the store, at a clean stop."""
        with suppress(StoreError, TimeoutError):
            await asyncio.wait_for(self._store.remove([self.id]), _GOODBYE_S)

    def record(self) -> Record:
        """As it is now."""
        return Record(self.id, self._birth, INSTANCES, 0, INSTANCES, None, None, self._body(), b"")

    # -- writing -------------------------------------------------------------------------------------------------------

    async def _told(self, *, is_first: bool) -> None:
        try:
            await self._tell(is_first=is_first)
        except StoreUnavailable as error:
            # Its worker says that the store is away.
            self._logger.debug("store %r missed a heartbeat: %s", self.alias, error)
        except StoreError as error:
            self._warn(
                "store %r refuses the record that shows this instance to others: %s", self.alias, error
            )

    async def _tell(self, *, is_first: bool) -> None:
        if self._version is None:
            if self.id not in await self._store.add([self.record()]):
                # Of an own add whose answer was lost the version is this one, too.
                self._version = 1
                return
        elif await self._update(self._version):
            return
        there = (await self._store.get([self.id])).get(self.id)
        if there is not None and there.birth == self._birth:
            # The answer to the update before was lost.
            await self._update(there.version)
            return
        if there is not None:
            if not is_first:
                self._warn(
                    "another instance has the id of this one, %r, in store %r: give each its own (Scheduler(id=))",
                    self.id.partition("/")[2], self.alias,
                )  # fmt: skip
                return
            await self._store.remove([self.id])
        self._version = None
        if self.id not in await self._store.add([self.record()]):
            self._version = 1

    async def _update(self, version: int) -> bool:
        written = await self._store.update(
            Update(
                id=self.id, version=version, body=self._body(), queue=INSTANCES, priority=0, wake_at=None, hold=None
            )
        )  # fmt: skip
        if written is None:
            return False
        self._version = written.version
        return True

    def _body(self) -> bytes:
        activity, skew = self._activity(), self._store_clock.skew()
        form = InstanceForm(
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            started_at=self._started_at,
            seen_at=self._store_clock.now(),
            heartbeat_s=self.heartbeat_s if self.needs_beats else 0.0,
            running=activity.running,
            skew_s=skew.offset.total_seconds(),
            skew_error_s=skew.error.total_seconds(),
            tasks=activity.tasks,
            queues=activity.queues,
            revision=activity.revision,
        )
        return encode(form)

    async def _sweep(self) -> None:
        """Bounded: what is left over is somebody's next time."""
        now = self._store_clock.now()
        dead = [
            record.id
            for record in await self._store.page(Filter(queue=INSTANCES), _PAGE)
            if is_mark(record) and _is_long_dead(record, now)
        ]
        if dead:
            await self._store.remove(dead[:_SWEPT])

    def _warn(self, message: str, *arguments: object) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._logger.warning(message, *arguments)


# -- reading ---------------------------------------------------------------------------------------------------------------


async def instances_of(store: JobStore, alias: str, now: float) -> list[Instance]:
    """The instances that a store knows, dead ones included; *now* is its clock. A record of a format that is not known here
    is left out."""
    return (await look_at_instances(store, alias, now))[0]


async def look_at_instances(store: JobStore, alias: str, now: float) -> tuple[list[Instance], int]:
    """As ``instances_of``, and how many were left out."""
    found: list[Instance] = []
    unread = 0
    after: Record | None = None
    while page := await store.page(Filter(queue=INSTANCES), _PAGE, after):
        for record in page:
            if is_mark(record):
                try:
                    found.append(instance_from(record, alias, now))
                except SerializationError:
                    unread += 1
        if len(page) < _PAGE:
            break
        after = page[-1]
    return found, unread


def is_mark(record: Record) -> bool:
    """Whether it is an instance's; users may call a queue as they like."""
    return record.id.startswith(f"{INSTANCES}/")


def instance_from(record: Record, alias: str, now: float) -> Instance:
    """The instance of a record; raises SerializationError, or NewerFormatError."""
    form = decode_instance(record.body)
    skew = ClockSkew(timedelta(seconds=form.skew_s), timedelta(seconds=form.skew_error_s))
    return Instance(
        id=record.id.partition("/")[2],
        store=alias,
        host=form.host,
        pid=form.pid,
        version=form.version,
        started_at=to_datetime(form.started_at),
        seen_at=to_datetime(form.seen_at),
        is_alive=not form.heartbeat_s or now - form.seen_at <= MISSED * form.heartbeat_s,
        heartbeat=form.heartbeat_s or None,
        running=form.running,
        skew=skew,
        tasks=form.tasks,
        queues=form.queues,
        revision=form.revision,
    )


def _is_long_dead(record: Record, now: float) -> bool:
    try:
        form = decode_instance(record.body)
    except SerializationError:
        # Of a newer asyncsched, which looks after its own.
        return False
    return bool(form.heartbeat_s) and now - form.seen_at > max(_KEPT_S, MISSED * form.heartbeat_s)
