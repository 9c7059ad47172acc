"""Fire times of the past, run after the event: a job of its own, whose trigger is the original one within a range.

It stands beside the job whose fire times it runs, so the regular schedule goes on as it would. Its cursor is its progress.
"""

from __future__ import annotations

import asyncio
import secrets
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import msgspec

from asyncsched.codec import decode_cursor, decode_definition, decode_run, decode_span, encode
from asyncsched.contract import Entry, Filter, Record, Settlement
from asyncsched.definition import Cursor, Definition, Policies, SpanForm
from asyncsched.engine import Engine
from asyncsched.errors import (
    ConflictError,
    DefinitionError,
    JobLookupError,
    SerializationError,
    WaitTimeout,
)
from asyncsched.events import JobAdded, JobRemoved
from asyncsched.ids import check_id, check_name
from asyncsched.plan import next_fire, synced
from asyncsched.rates import parse_rate
from asyncsched.shelf import Shelf
from asyncsched.triggers import AnyTrigger, Manual, Within
from asyncsched.units import Duration, to_datetime, to_instant, to_seconds

__all__ = ["Backfill", "BackfillOverlap", "BackfillProgress", "Backfills"]

#: ``queue_all``: one run after the other. ``allow``: several at once.
BackfillOverlap = Literal["queue_all", "allow"]

#: What jobs of this kind are tagged with.
_TAG = "backfill"
#: So many runs at once where overlap="allow" says no more.
_AT_ONCE = 4
_MOST_AT_ONCE = 100
#: After so many fire times others of this event loop have a turn.
_BREATH = 500
_PAGE = 500
_TICK_S = 1e-6
#: No job has this id.
_NOBODY = "#backfilled"
#: How often a wait looks: soon at first, then less and less often.
_LOOKS_S = (0.05, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillProgress:
    """How far a backfill has come."""

    count: int
    #: Fire times that have come to their end, their retries included: whether they succeeded the history knows.
    done: int
    #: Those that have not; 0 too where it was cancelled.
    left: int
    #: Whether one of its runs is under way.
    is_running: bool
    #: Whether it does not go on by itself: paused, or quarantined.
    is_held: bool

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to run."""
        return self.left == 0


class _Book(Protocol):
    async def progress(self, backfill: Backfill) -> BackfillProgress: ...
    async def cancel(self, backfill: Backfill) -> int: ...
    async def wait(self, backfill: Backfill, limit_s: float | None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """A range of fire times that are run after the event; ``scheduler.get_backfill(id)`` gives it again, in any process."""

    id: str
    #: The job whose fire times they are.
    job_id: str
    store: str
    start: datetime
    #: Exclusive.
    end: datetime
    #: How many fire times run.
    count: int
    #: How many of the range do not, since they ran already.
    left_out: int = 0
    #: What ran before that is not known: the history has forgotten it, or there was nothing. None: all of the range is known.
    known_since: datetime | None = None
    #: The jobs that run it: one, or several that share it; none where there is nothing to run, or for a dry run.
    jobs: tuple[str, ...] = ()
    _book: _Book = field(repr=False, compare=False)

    async def progress(self) -> BackfillProgress:
        """How far it has come; one that has finished or was cancelled has nothing left."""
        return await self._book.progress(self)

    async def cancel(self) -> int:
        """Run no more of it; a run under way may end. Returns how many fire times were left."""
        return await self._book.cancel(self)

    async def wait(self, timeout: Duration | None = None) -> None:
        """Until it is over; raises WaitTimeout (a TimeoutError) after *timeout*, and may be repeated."""
        await self._book.wait(self, None if timeout is None else to_seconds(timeout, "timeout"))


class Order(NamedTuple):
    """What was asked for."""

    start: datetime
    end: datetime | None
    rate: str | None
    overlap: BackfillOverlap
    max_instances: int | None
    again: bool
    limit: int
    id: str | None
    queue: str | None
    priority: int | None
    is_dry: bool


class Backfills:
    """Makes, finds and ends backfills, for one scheduler."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def make(self, shelf: Shelf, record: Record, order: Order) -> Backfill:
        """Add the jobs that run it, unless there is nothing to run."""
        definition = decode_definition(record.body)
        gap_s, at_once = _pace_of(order), _at_once(order)
        begin, end = _range_of(definition.trigger, record.id, order, shelf.now())
        id = _id_of(record.id, begin, end) if order.id is None else check_id(order.id, "a backfill's id")
        ran, known_since = _Ran(set(), []), None
        if not order.again:
            end = _before_schedule(definition, record, begin, end)
        fires = await _fires_of(definition.trigger, record.id, begin, end, order.limit)
        if not order.again:
            filled = await self._earlier(shelf, record.id, id, fires, refuses=order.id is None)
            # Only then: what was waiting a moment before is in the log once it has run.
            ran, known_since = await self._ran(shelf, record, begin)
            ran.spans.extend(filled)
        known = {fire for fire in fires if ran.has(fire)}
        runs = [fire for fire in fires if fire not in known]
        parts = _parts(runs, min(at_once, len(runs)))
        whole = (begin, end, len(runs), len(parts))
        composed = []
        for at, part in enumerate(parts):
            trigger = Within(
                definition.trigger,
                part[0],
                part[-1] + _TICK_S,
                len(part),
                _left_out(fires, part, known),
                gap_s * len(parts),
                record.id,
                "" if order.again else record.birth,
                whole,
            )
            part_id = id if len(parts) == 1 else f"{id}/{at + 1}"
            composed.append(_composed(record, definition, trigger, part_id, shelf.now() + at * gap_s, order))
        if composed and not order.is_dry:
            await self._add(shelf, composed)
        return Backfill(
            id=id,
            job_id=record.id,
            store=shelf.alias,
            start=to_datetime(begin),
            end=to_datetime(end),
            count=len(runs),
            left_out=len(fires) - len(runs),
            known_since=None if known_since is None or known_since <= begin else to_datetime(known_since),
            jobs=() if order.is_dry else tuple(part.id for part, _ in composed),
            _book=self,
        )

    async def _earlier(
        self, shelf: Shelf, job_id: str, id: str, fires: Sequence[float], *, refuses: bool
    ) -> list[tuple[float, float]]:
        """What earlier backfills have run that is not in the log yet; *refuses*: raise ConflictError where one has some of these
        fire times still to run."""
        filled: list[tuple[float, float]] = []
        where, last = Filter(id_prefix=_prefix_of(job_id)), None
        while page := await shelf.repeat(partial(shelf.store.page, where, _PAGE, last)):
            for record in page:
                span = _filled_by(record, job_id)
                filled += [] if span is None else [(span[0], span[1])]
                found = _waiting(record, fires)
                if refuses and found is not None and found.of == job_id:
                    if record.id == id or record.id.startswith(f"{id}/"):
                        raise shelf.conflict(record.id)
                    begin, end = (to_datetime(at).isoformat() for at in (found.begin, found.end))
                    raise ConflictError(
                        f"backfill {record.id!r} has fire times of job {job_id!r} from {begin} to {end} still to run, and some "
                        f"of them are in this range: wait for it, remove it, or fill another range",
                        job_id=job_id,
                        store=shelf.alias,
                    )
            last = page[-1]
        return filled

    async def _add(self, shelf: Shelf, composed: Sequence[tuple[Record, Definition]]) -> None:
        taken = await shelf.taken([record.id for record, _ in composed])
        if taken:
            raise shelf.conflict(min(taken))
        for answer in (await shelf.add(composed, "error"))[0]:
            if isinstance(answer, Exception):
                raise answer
            self._engine.emit_job(JobAdded, answer)

    async def _ran(self, shelf: Shelf, job: Record, begin: float) -> tuple[_Ran, float | None]:
        """The fire times from *begin* on that the log knows to have succeeded, and how far back it reaches; None: far enough."""
        found = _Ran(set(), [])
        runs, reaches, last = 0, shelf.now(), None
        while entries := await shelf.store.runs(job.id, ("run", "backfilled"), _PAGE, last):
            for entry in entries:
                runs += entry.kind == "run"
                found.add(entry)
            last = entries[-1]
            reaches = last.at
            if reaches < begin:
                # What ran before cannot be of the range.
                return found, None
        tally = decode_cursor(job.cursor).tally
        is_whole = 0 < tally.succeeded + tally.failed <= runs
        return found, None if is_whole else reaches

    async def find(self, id: str, store: str | None) -> Backfill:
        """The backfill of that id, as far as it is stored still; raises JobLookupError."""
        for shelf in self._engine.some_shelves(store):
            records = await shelf.store.get([id, *(f"{id}/{n}" for n in range(1, _MOST_AT_ONCE + 1))])
            for record in records.values():
                trigger = decode_definition(record.body).trigger
                if not isinstance(trigger, Within):
                    continue
                begin, end, count, parts = trigger.whole
                return Backfill(
                    id=id,
                    job_id=trigger.of,
                    store=shelf.alias,
                    start=to_datetime(begin),
                    end=to_datetime(end),
                    count=count,
                    jobs=(id,) if parts == 1 else tuple(f"{id}/{n}" for n in range(1, parts + 1)),
                    _book=self,
                )
        raise JobLookupError(
            f"no backfill {id!r} is stored; it may have finished or been cancelled: what it ran is in the history",
            job_id=id,
        )

    async def progress(self, backfill: Backfill) -> BackfillProgress:
        records = await self._records(backfill)
        left, is_held = 0, False
        for record in records:
            remaining = _remaining(record)
            left += remaining
            is_held = is_held or (remaining > 0 and record.hold is not None)
        return BackfillProgress(
            count=backfill.count,
            done=max(backfill.count - left, 0),
            left=left,
            is_running=any(record.holder is not None for record in records),
            is_held=is_held,
        )

    async def cancel(self, backfill: Backfill) -> int:
        records = await self._records(backfill)
        if not records:
            return 0
        shelf = self._engine.shelf(backfill.store)
        await shelf.remove([record.id for record in records])
        told = [
            _told(record, span, shelf.now())
            for record in records
            if (span := _filled_by(record, backfill.job_id))
        ]
        if told and self._engine.options.keeps_history:
            await shelf.repeat(partial(shelf.store.settle, told))
        for record in records:
            self._engine.emit_job(JobRemoved, self._engine.composer.job(record, backfill.store))
        return sum(map(_remaining, records))

    async def wait(self, backfill: Backfill, limit_s: float | None) -> None:
        clock = self._engine.clock
        over = None if limit_s is None else clock.monotonic() + limit_s
        look_s, longest_s = _LOOKS_S
        while not (await self.progress(backfill)).is_over:
            now = clock.monotonic()
            if over is not None and now >= over:
                raise WaitTimeout(
                    f"backfill {backfill.id!r} is not over yet", job_id=backfill.id, store=backfill.store
                )
            await clock.sleep(look_s if over is None else min(look_s, over - now))
            look_s = min(look_s * 1.5, longest_s)

    async def _records(self, backfill: Backfill) -> list[Record]:
        self._engine.check_running()
        if not backfill.jobs:
            return []
        found = await self._engine.shelf(backfill.store).store.get(backfill.jobs)
        return [found[id] for id in sorted(found)]


# -- what was asked for --------------------------------------------------------------------------------------------------


def _pace_of(order: Order) -> float:
    """Seconds from the start of one run to the start of the next."""
    if order.rate is None:
        return 0.0
    try:
        return parse_rate(order.rate).interval_s
    except DefinitionError as error:
        raise DefinitionError(str(error).replace("rate_limit", "rate", 1)) from None


def _at_once(order: Order) -> int:
    if order.overlap not in ("queue_all", "allow"):
        raise DefinitionError(
            f'backfill(overlap=) must be "queue_all" (one run after the other) or "allow" (up to max_instances at once), not '
            f"{order.overlap!r}: whatever else a job may do with fire times that overlap leaves some of them out"
        )
    most = order.max_instances
    if most is None:
        return _AT_ONCE if order.overlap == "allow" else 1
    if order.overlap != "allow":
        raise DefinitionError('backfill(max_instances=) goes with overlap="allow"')
    if type(most) is not int or not 1 <= most <= _MOST_AT_ONCE:
        raise DefinitionError(f"backfill(max_instances=) must be 1 to {_MOST_AT_ONCE}, not {most!r}")
    return most


def _range_of(trigger: AnyTrigger, id: str, order: Order, now: float) -> tuple[float, float]:
    """Where it begins and ends; raises DefinitionError where no such range can be filled."""
    begin = to_instant(order.start, "start")
    end = now if order.end is None else to_instant(order.end, "end")
    if isinstance(trigger, Within):
        raise DefinitionError(f"job {id!r} is a backfill itself: fill job {trigger.of!r}", job_id=id)
    if trigger.after_finish:
        raise DefinitionError(
            f"job {id!r} has the trigger {trigger}, whose fire times depend on when runs end: there are none in the past to fill",
            job_id=id,
        )
    if not trigger.recurs or isinstance(trigger, Manual):
        raise DefinitionError(
            f"job {id!r} has the trigger {trigger}, which names no times to fill: run_job() runs it once more",
            job_id=id,
        )
    if begin >= end:
        raise DefinitionError(
            f"a backfill begins before it ends, not at {to_datetime(begin).isoformat()} for an end at "
            f"{to_datetime(end).isoformat()} (end= is now unless given)",
            job_id=id,
        )
    if end > now:
        raise DefinitionError(
            f"a backfill ends now at the latest, not at {to_datetime(end).isoformat()}: what comes is the schedule's own. Leave "
            f"out end=",
            job_id=id,
        )
    return begin, end


def _id_of(job_id: str, begin: float, end: float) -> str:
    start, stop = (to_datetime(at).strftime("%Y%m%dT%H%M%SZ") for at in (begin, end))
    return f"{_prefix_of(job_id)}{start}-{stop}"


def _prefix_of(job_id: str) -> str:
    return f"{job_id[:200]}/backfill/"


def _before_schedule(definition: Definition, record: Record, begin: float, end: float) -> float:
    """The end, but not beyond the fire time that the regular schedule comes to next: it sees to those behind it."""
    cursor = synced(definition, decode_cursor(record.cursor))
    if definition.paused or record.hold is not None or cursor.over is not None or cursor.next is None:
        return end
    ahead = cursor.next if cursor.pending is None else min(cursor.next, cursor.pending.fire)
    return max(min(end, ahead), begin)


async def _fires_of(trigger: AnyTrigger, id: str, begin: float, end: float, limit: int) -> list[float]:
    if type(limit) is not int or limit < 1:
        raise DefinitionError(f"backfill(limit=) must be 1 or more, not {limit!r}")
    fires: list[float] = []
    fire = trigger.next(begin - _TICK_S)
    while fire is not None and fire < end:
        fires.append(fire)
        if len(fires) > limit:
            raise DefinitionError(
                f"job {id!r} has more than {limit:,} fire times from {to_datetime(begin).isoformat()} to "
                f"{to_datetime(end).isoformat()}: fill a shorter range, or say limit=",
                job_id=id,
            )
        if len(fires) % _BREATH == 0:
            await asyncio.sleep(0)
        fire = trigger.next(fire)
    return fires


class _Ran(NamedTuple):
    """The fire times that have succeeded: by runs of the job, to the microsecond, and spans by backfills."""

    fires: set[float]
    spans: list[tuple[float, float]]

    def add(self, entry: Entry) -> None:
        if entry.kind == "backfilled":
            self.spans.append((entry.fire_at, decode_span(entry.body).last))
        elif decode_run(entry.body).outcome == "succeeded":
            self.fires.add(round(entry.fire_at, 6))

    def has(self, fire: float) -> bool:
        return round(fire, 6) in self.fires or any(first <= fire <= last for first, last in self.spans)


# -- what is made of it --------------------------------------------------------------------------------------------------


def _parts(runs: Sequence[float], count: int) -> list[Sequence[float]]:
    """Runs of equal length, one behind the other."""
    edges = [len(runs) * at // count for at in range(count + 1)] if count else []
    return [runs[begin:end] for begin, end in pairwise(edges)]


def _left_out(
    fires: Sequence[float], part: Sequence[float], known: set[float]
) -> tuple[tuple[float, float], ...]:
    """The spans of fire times between those of *part* that are left out."""
    spans: list[tuple[float, float]] = []
    is_open = False
    for fire in fires[bisect_left(fires, part[0]) : bisect_left(fires, part[-1])]:
        if fire not in known:
            is_open = False
        elif is_open:
            spans[-1] = (spans[-1][0], fire)
        else:
            spans.append((fire, fire))
            is_open = True
    return tuple(spans)


def _composed(
    job: Record, definition: Definition, trigger: Within, id: str, begins_at: float, order: Order
) -> tuple[Record, Definition]:
    """The job that runs a part: task, arguments and policies are those of the original, as they are now."""
    first = trigger.first(0.0)
    on_exhausted = "pause" if definition.policies.on_exhausted == "pause" else "keep"
    policies: Policies = msgspec.structs.replace(
        definition.policies,
        overlap="queue_all",
        max_instances=None,
        # All of them, whatever the scheduler's defaults say.
        max_runs=trigger.count,
        jitter=None,
        on_exhausted=on_exhausted,
    )
    now = round(begins_at, 6)
    made = Definition(
        now,
        now,
        trigger,
        1,
        first,
        definition.args,
        definition.name,
        policies,
        tuple(dict.fromkeys((*definition.tags, _TAG))),
        definition.metadata,
    )
    cursor = Cursor(1, first, not_before=now)
    queue = job.queue if order.queue is None else check_name(order.queue, "a queue's name")
    priority = job.priority if order.priority is None else order.priority
    if type(priority) is not int or not 0 <= priority <= 9:
        raise DefinitionError(f"priority must be a whole number from 0 to 9, not {priority!r}", job_id=job.id)
    birth = f"backfill-{secrets.token_hex(8)}"
    return Record(id, birth, queue, priority, job.task, now, None, encode(made), encode(cursor)), made


def _waiting(record: Record, fires: Sequence[float]) -> Within | None:
    """The trigger of a backfill that some of *fires* are still to be run by."""
    try:
        definition = decode_definition(record.body)
        cursor = synced(definition, decode_cursor(record.cursor))
    except SerializationError:
        return None
    trigger = definition.trigger
    fire = cursor.next if cursor.pending is None else cursor.pending.fire
    if not isinstance(trigger, Within) or fire is None:
        return None
    shared = fires[bisect_left(fires, fire) : bisect_left(fires, trigger.end)]
    return trigger if any(trigger.next(at - _TICK_S) == at for at in shared) else None


def _filled_by(record: Record, job_id: str) -> tuple[float, float, int] | None:
    """The first, the last and the number of the fire times of *job_id* that it has run, and that no log tells of yet."""
    try:
        definition = decode_definition(record.body)
        filled = synced(definition, decode_cursor(record.cursor)).filled
    except SerializationError:
        return None
    trigger = definition.trigger
    return filled if isinstance(trigger, Within) and trigger.of == job_id else None


def _told(record: Record, filled: tuple[float, float, int], now: float) -> Settlement:
    """What it has run, for the log of its job: of a job that is not stored a settlement writes its entries alone."""
    definition = decode_definition(record.body)
    assert isinstance(definition.trigger, Within)
    first, last, count = filled
    form = encode(SpanForm(last, count, False, f"by {record.id}"))
    entry = Entry(definition.trigger.of, record.fence, "backfilled", first, round(now, 6), form)
    return Settlement(_NOBODY, record.fence, _NOBODY, 0, entries=(entry,))


def _remaining(record: Record) -> int:
    """How many of its fire times have not come to their end."""
    definition = decode_definition(record.body)
    cursor = synced(definition, decode_cursor(record.cursor))
    trigger = definition.trigger
    if not isinstance(trigger, Within) or (next_fire(cursor) is None and cursor.pending is None):
        return 0
    return max(trigger.count - cursor.runs, 0)
