"""The log of one store, written into another, and both compared."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from asyncsched.contract import Entry, JobStore, Settlement
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.moving._reading import PAGE, Ids, Progress, Sum, content, log_pages, micros, tell, tried
from asyncsched.moving._tenure import Tenure
from asyncsched.moving._values import Log

__all__ = ["compare_history", "copy_history"]

#: Entries of one settlement, and their bytes: it is never split, and some servers bound a transaction.
_ENTRIES, _ENTRY_BYTES = 10, 256 * 1024
#: No job has this id.
_NOBODY = "#migrated"


async def copy_history(source: JobStore, target: JobStore, tenure: Tenure, progress: Progress | None) -> None:
    """Write the log of *source* into *target*, where entries that are there already are left alone.

    They go with settlements of a job that is not stored: to those a store answers *gone*, and keeps the entries, once each.
    """
    done = 0
    async for entries in log_pages(source):
        await tenure.keep()
        await _write(list(_carriers(entries)), target)
        done += len(entries)
        tell(progress, "copying history", done, None)


async def _write(carriers: Sequence[Settlement], target: JobStore) -> None:
    """What is refused for good is left out alone; the comparison names it."""
    try:
        answers = await tried(target.settle, carriers)
    except StoreUnavailable:
        raise
    except StoreError:
        for fewer in _halves(carriers):
            await _write(fewer, target)
        return
    if others := set(answers) - {"gone"}:
        raise StoreError(
            f"{type(target).__name__} answers {others} for {_NOBODY!r}, a job that nobody stores"
        )


def _carriers(entries: Sequence[Entry]) -> Iterator[Settlement]:
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        if batch and (len(batch) == _ENTRIES or size + len(entry.body) > _ENTRY_BYTES):
            yield _carrier(batch)
            batch, size = [], 0
        batch.append(entry)
        size += len(entry.body)
    if batch:
        yield _carrier(batch)


def _carrier(entries: Sequence[Entry]) -> Settlement:
    return Settlement(id=_NOBODY, fence=0, holder=_NOBODY, version=0, entries=tuple(entries))


def _halves(carriers: Sequence[Settlement]) -> list[Sequence[Settlement]]:
    """The same entries in smaller calls; nothing where there is one entry alone."""
    if len(carriers) > 1:
        half = len(carriers) // 2
        return [carriers[:half], carriers[half:]]
    entries = carriers[0].entries
    return [[_carrier([entry])] for entry in entries] if len(entries) > 1 else []


async def compare_history(
    source: JobStore, target: JobStore, tenure: Tenure, progress: Progress | None
) -> Log:
    """Read both logs side by side, which are in the order of time; what is of one instant is compared as a set."""
    total, same, missing = Sum(), Sum(), Ids()
    async with aclosing(_instants(target)) as there:
        at, known = math.inf, set[bytes]()
        async for instant, entries in _instants(source):
            while at > instant:
                at, of_instant = await anext(there, (-math.inf, []))
                known = set(map(content, of_instant))
            for entry in entries:
                total.add(content(entry))
                if at == instant and content(entry) in known:
                    same.add(content(entry))
                else:
                    missing.add(f"{entry.job_id} (fence {entry.fence}, {entry.kind})")
            if total.count % PAGE < len(entries):
                await tenure.keep()
                tell(progress, "comparing history", total.count, None)
    return Log(
        entries=total.count,
        digest=total.digest,
        same=same.count,
        target_digest=same.digest,
        missing=missing.found,
    )


async def _instants(store: JobStore) -> AsyncGenerator[tuple[float, list[Entry]], None]:
    """The log, newest first, by its microseconds."""
    at = math.inf
    of_instant: list[Entry] = []
    async for entries in log_pages(store):
        for entry in entries:
            if micros(entry.at) != at and of_instant:
                yield at, of_instant
                of_instant = []
            at = micros(entry.at)
            of_instant.append(entry)
    if of_instant:
        yield at, of_instant
