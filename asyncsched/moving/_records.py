"""Records as they are copied, and what is on the target of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from msgspec.structs import replace

from asyncsched.contract import Entry, JobStore, Record
from asyncsched.moving._reading import Ids, Sum, content, tried

__all__ = ["Comparison", "copy", "let_go", "ran"]

#: A log is asked for so many jobs at once.
_LOOKS = 16


def let_go(record: Record, now: float) -> Record:
    """*record* as it is copied: held by nobody. The next claim tells its holder's fence as lost, as if the lease had ended."""
    if record.holder is None:
        return record
    # A store in memory gives leases without an end.
    is_endless = record.wake_at is None or math.isinf(record.wake_at)
    return replace(record, holder=None, prior=record.fence, wake_at=now if is_endless else record.wake_at)


async def copy(records: Sequence[Record], target: JobStore, source: JobStore) -> int:
    """Add those that are not on the target and have not been there; return how many were added."""

    async def add() -> int:
        there = await target.get([r.id for r in records])
        missing = [r for r in records if r.id not in there]
        gone = await ran(missing, target, source)
        new = [r for r in missing if r.id not in gone]
        taken = await target.add(new) if new else set()
        return len(new) - len(taken)

    # As a whole, so that what was added by a call whose reply was lost is looked for.
    return await tried(add)


async def ran(records: Sequence[Record], store: JobStore, origin: JobStore | None = None) -> set[str]:
    """Which of these, that the store does not have, it had: its log has a run of theirs that is later than what they tell, and
    that was not copied there from the log of *origin*: an id may be used again."""
    if not records or not await tried(store.runs, limit=1):
        return set()
    gate = asyncio.Semaphore(_LOOKS)

    async def has_run(record: Record) -> bool:
        async with gate:
            log = await tried(store.runs, record.id, limit=1)
            if not log or log[0].fence <= record.settled:
                return False
            return origin is None or not await _has(origin, log[0])

    answers = await asyncio.gather(*map(has_run, records))
    return {record.id for record, answer in zip(records, answers, strict=True) if answer}


async def _has(store: JobStore, entry: Entry) -> bool:
    behind = replace(entry, at=entry.at + 2e-6)
    found = await tried(store.runs, entry.job_id, None, _LOOKS, behind)
    return content(entry) in map(content, found)


class Comparison:
    """What is on the target of the records that it is shown."""

    def __init__(self) -> None:
        self.same = Sum()
        self.different, self.taken, self.ran, self.missing = Ids(), Ids(), Ids(), Ids()

    async def compare(self, records: Sequence[Record], target: JobStore, source: JobStore) -> None:
        there = await tried(target.get, [r.id for r in records])
        gone = await ran([r for r in records if r.id not in there], target, source)
        for record in records:
            found = there.get(record.id)
            if found is None:
                (self.ran if record.id in gone else self.missing).add(record.id)
            elif found.birth != record.birth:
                self.taken.add(record.id)
            elif found.holder is None and content(found) == content(record):
                self.same.add(content(found))
            else:
                self.different.add(record.id)
