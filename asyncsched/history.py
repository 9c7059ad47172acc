"""Finished runs and decisions, as the stores keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from asyncsched.codec import decode_cursor, decode_definition, decode_run, decode_span
from asyncsched.contract import Entry, Filter, JobStore, Record
from asyncsched.definition import Policies, RunForm, SpanForm, Tally
from asyncsched.errors import DefinitionError, RunLookupError, SerializationError
from asyncsched.ids import base_id, slot_of
from asyncsched.model import Decision, Run, Stats
from asyncsched.rules import Rules
from asyncsched.units import to_datetime

__all__ = ["History"]

_RUN_KINDS = ("run", "lost")
_PAGE = 500


class History:
    """``scheduler.history``: what ran, what did not and why. With several stores it looks into each."""

    def __init__(
        self,
        stores: Callable[[], Mapping[str, JobStore]],
        load: Callable[[bytes], Any],
        rules: Callable[[Policies], Rules],
    ) -> None:
        self._stores = stores
        self._load = load
        self._rules = rules

    async def runs(self, job_id: str | None = None, limit: int = 50, before: Run | None = None) -> list[Run]:
        """Finished runs, newest first: of one job, or of all; strictly older than the run *before* (for paging)."""
        _check_limit(limit)
        floor = None if before is None else _entry_of(before)
        entries = await self._entries(job_id, _RUN_KINDS, limit, floor)
        return [self._run(entry) for entry in entries]

    async def run(self, id: str) -> Run:
        """The run of that id; raises RunLookupError."""
        of, _, fence = id.rpartition("@")
        job_id = base_id(of)
        if job_id and fence.isdigit():
            last: Entry | None = None
            while entries := await self._entries(job_id, _RUN_KINDS, _PAGE, last):
                for entry in entries:
                    if str(entry.fence) == fence and (run := self._run(entry)).id == id:
                        return run
                last = entries[-1]
        raise RunLookupError(
            f"no run {id!r} is in the history; it may have been pruned, or be under way still"
        )

    async def decisions(self, job_id: str | None = None, limit: int = 50) -> list[Decision]:
        """Why fire times did not run, newest first: one row for each span of them."""
        _check_limit(limit)
        found: list[Decision] = []
        last: Entry | None = None
        while len(found) < limit and (entries := await self._entries(job_id, None, _PAGE, last)):
            found.extend(_decision(entry) for entry in entries if entry.kind not in _RUN_KINDS)
            last = entries[-1]
        return found[:limit]

    async def stats(self, job_id: str | None = None) -> Stats:
        """Counts and durations of one job since it was added; or of all jobs, with what the log still holds of those that
        are gone. Kept with the job, so pruning the log changes nothing for one that is there, unless it has
        ``overlap="allow"``: its runs are counted in the log."""
        if job_id is not None:
            for store in self._stores().values():
                record = (await store.get([job_id])).get(job_id)
                if record is not None and not self._runs_in_children(record):
                    return _stats(decode_cursor(record.cursor).tally)
            return _stats(await self._tally_of_log(job_id, set()))
        tally, known = Tally(), set[str]()
        for store in self._stores().values():
            after = None
            while page := await store.page(Filter(), _PAGE, after):
                for record in page:
                    if slot_of(record.id) or self._runs_in_children(record):
                        continue
                    known.add(record.id)
                    tally = _sum(tally, _tally_of(record.cursor))
                after = page[-1]
        return _stats(_sum(tally, await self._tally_of_log(None, known)))

    def _runs_in_children(self, record: Record) -> bool:
        """Whether its runs are those of its children, which leave nothing but the log."""
        try:
            return self._rules(decode_definition(record.body).policies).overlap == "allow"
        except SerializationError:
            return False

    async def _tally_of_log(self, job_id: str | None, known: set[str]) -> Tally:
        """What the log says of jobs that are not stored any more."""
        tally = Tally()
        last: Entry | None = None
        while entries := await self._entries(job_id, None, _PAGE, last):
            for entry in entries:
                if entry.job_id not in known:
                    tally = _sum(tally, _tally_of_entry(entry))
            last = entries[-1]
        return tally

    async def _entries(
        self, job_id: str | None, kinds: tuple[str, ...] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        found: list[Entry] = []
        for store in self._stores().values():
            found.extend(await store.runs(job_id, kinds, limit, before))
        found.sort(key=_order, reverse=True)
        return found[:limit]

    def _run(self, entry: Entry) -> Run:
        try:
            form = decode_run(entry.body)
        except SerializationError as error:
            return _unreadable(entry, error)
        return Run(
            id=f"{entry.job_id}{form.slot}@{entry.fence}",
            job_id=entry.job_id,
            task=form.task,
            fire_time=to_datetime(entry.fire_at),
            due_at=to_datetime(form.due),
            started_at=None if form.started is None else to_datetime(form.started),
            finished_at=to_datetime(entry.at if form.finished is None else form.finished),
            outcome=form.outcome,
            attempt=form.attempt,
            fence=entry.fence,
            instance=form.instance,
            error=form.error,
            traceback=form.traceback,
            result=self._value(form.result),
            metadata=self._value(form.metadata) or {},
        )

    def _value(self, data: bytes) -> Any:
        """A stored result; one whose class is not loaded here is shown as the error that says so."""
        if not data:
            return None
        try:
            return self._load(data)
        except SerializationError as error:
            return f"<{error}>"


def _unreadable(entry: Entry, error: SerializationError) -> Run:
    """What is known of a run whose entry a newer version has written, or something has damaged: it hides no other."""
    fire_time = to_datetime(entry.fire_at)
    return Run(
        id=f"{entry.job_id}@{entry.fence}",
        job_id=entry.job_id,
        task="",
        fire_time=fire_time,
        due_at=fire_time,
        started_at=None,
        finished_at=to_datetime(entry.at),
        outcome="lost" if entry.kind == "lost" else None,
        fence=entry.fence,
        instance="",
        error=f"this entry of the history cannot be read: {error}",
    )


def _check_limit(limit: int) -> None:
    if type(limit) is not int or limit < 0:
        raise DefinitionError(f"limit must be 0 or more, not {limit!r}")


def _order(entry: Entry) -> tuple[float, str, int, str, float]:
    return (entry.at, entry.job_id, entry.fence, entry.kind, entry.fire_at)


def _entry_of(run: Run) -> Entry:
    """The place of a run in the log."""
    finished = run.finished_at.timestamp() if run.finished_at is not None else 0.0
    kind = "lost" if run.outcome == "lost" else "run"
    return Entry(run.job_id, run.fence, kind, run.fire_time.timestamp(), finished, b"")


def _decision(entry: Entry) -> Decision:
    try:
        span = decode_span(entry.body)
    except SerializationError as error:
        detail = f"this entry of the history cannot be read: {error}"
        span = SpanForm(entry.fire_at, 1, True, detail)
    return Decision(
        job_id=entry.job_id,
        reason=entry.kind,
        first=to_datetime(entry.fire_at),
        last=to_datetime(span.last),
        count=span.count,
        more=span.more,
        decided_at=to_datetime(entry.at),
        detail=span.detail,
    )


def _tally_of(cursor: bytes) -> Tally:
    try:
        return decode_cursor(cursor).tally
    except SerializationError:
        return Tally()


def _tally_of_entry(entry: Entry) -> Tally:
    try:
        return _read_tally(entry)
    except SerializationError:
        return Tally()


def _read_tally(entry: Entry) -> Tally:
    if entry.kind == "backfilled":
        # Its run is in the log of the backfill.
        return Tally()
    if entry.kind not in _RUN_KINDS:
        return Tally(skipped=decode_span(entry.body).count)
    form: RunForm = decode_run(entry.body)
    good = form.outcome == "succeeded"
    duration = None if form.started is None else entry.at - form.started
    return Tally(
        int(good),
        int(not good),
        0,
        0,
        entry.at,
        entry.at if good else None,
        None if good else entry.at,
        None if good else form.error,
        duration or 0.0,
        duration,
        duration,
    )


def _sum(a: Tally, b: Tally) -> Tally:
    newer = a if (a.last_failure or 0) >= (b.last_failure or 0) else b
    return Tally(
        a.succeeded + b.succeeded,
        a.failed + b.failed,
        a.skipped + b.skipped,
        0,
        _extreme(max, a.last_run, b.last_run),
        _extreme(max, a.last_success, b.last_success),
        newer.last_failure,
        newer.last_error,
        a.sum_s + b.sum_s,
        _extreme(min, a.min_s, b.min_s),
        _extreme(max, a.max_s, b.max_s),
    )


def _extreme(choose: Callable[[float, float], float], a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return b if a is None else a
    return choose(a, b)


def _stats(tally: Tally) -> Stats:
    total = tally.succeeded + tally.failed
    return Stats(
        total=total,
        succeeded=tally.succeeded,
        failed=tally.failed,
        skipped=tally.skipped,
        last_run=None if tally.last_run is None else to_datetime(tally.last_run),
        last_success=None if tally.last_success is None else to_datetime(tally.last_success),
        last_failure=None if tally.last_failure is None else to_datetime(tally.last_failure),
        last_error=tally.last_error,
        mean_duration=tally.sum_s / total if total else None,
        min_duration=tally.min_s,
        max_duration=tally.max_s,
    )
