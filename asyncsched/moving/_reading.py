"""Stores read page by page, and what is read counted and digested."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from hashlib import blake2b
from typing import ParamSpec, TypeVar

import msgspec

from asyncsched.contract import Entry, Filter, JobStore, Record
from asyncsched.errors import StoreUnavailable
from asyncsched.ids import INSTANCES
from asyncsched.moving._values import Found

__all__ = [
    "EVERYTHING",
    "MARK",
    "PAGE",
    "Ids",
    "Progress",
    "Sum",
    "content",
    "is_empty",
    "log_pages",
    "micros",
    "pages",
    "tell",
    "tried",
]

P = ParamSpec("P")
T = TypeVar("T")

#: Called with what is being done, how many items of it are done, and how many there are, where that is known.
Progress = Callable[[str, int, int | None], None]

PAGE = 200
EVERYTHING = Filter()
#: How the ids of records begin that are the migration's own; no job has one of them.
MARK = "#migrate/"
#: Those, and the records in which instances say that they are alive, stay where they are.
_LEFT = (MARK, f"{INSTANCES}/")
_TRIES = 6
_PAUSE_S = 0.1
#: Of each finding so many ids are kept.
_NAMED = 20


async def tried(call: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs) -> T:
    """The answer of *call*, which may be repeated as it was. A store that stays away ends the migration."""
    for failures in range(_TRIES - 1):
        try:
            return await call(*args, **options)
        except StoreUnavailable:
            await asyncio.sleep(_PAUSE_S * 2**failures)
    return await call(*args, **options)


async def pages(store: JobStore) -> AsyncGenerator[list[Record], None]:
    after: Record | None = None
    while page := await tried(store.page, EVERYTHING, PAGE, after):
        after = page[-1]
        yield [record for record in page if not record.id.startswith(_LEFT)]


async def is_empty(store: JobStore) -> bool:
    """Whether there is nothing that would be copied from it."""
    async for page in pages(store):
        if page:
            return False
    return True


async def log_pages(store: JobStore) -> AsyncGenerator[list[Entry], None]:
    before: Entry | None = None
    while entries := await tried(store.runs, None, None, PAGE, before):
        before = entries[-1]
        yield entries


def tell(progress: Progress | None, doing: str, done: int, total: int | None) -> None:
    if progress is not None:
        progress(doing, done, total)


class Sum:
    """A count, and a digest of contents that is the same in whatever order they come."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, content: bytes) -> None:
        self.count += 1
        self._sum += int.from_bytes(blake2b(content, digest_size=16).digest(), "big")

    @property
    def digest(self) -> str:
        return f"{self._sum % 2**128:032x}"


class Ids:
    """A count, and the first of what was counted."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, id: str) -> None:
        self.count += 1
        if len(self._first) < _NAMED:
            self._first.append(id)

    @property
    def found(self) -> Found:
        return Found(self.count, tuple(self._first))


def content(item: Record | Entry) -> bytes:
    """All that is stored of *item* but the holder; of an instant the microseconds, which every store keeps."""
    if isinstance(item, Entry):
        e = item
        return _encode((e.job_id, e.fence, e.kind, micros(e.fire_at), micros(e.at), e.body))
    r = item
    wake_at = None if r.wake_at is None else micros(r.wake_at)
    place = (r.id, r.birth, r.queue, r.priority, r.task, wake_at, r.hold)
    return _encode((*place, r.body, r.cursor, r.version, r.fence, r.settled, r.tries, r.prior))


_encode = msgspec.msgpack.Encoder().encode


def micros(at: float) -> float:
    return round(at * 1e6) if math.isfinite(at) else at
