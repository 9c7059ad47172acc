"""How a claim ends, in writing: settlements with their log entries."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from asyncsched.calls import storable
from asyncsched.codec import encode
from asyncsched.contract import Entry, Record, Settlement
from asyncsched.definition import Cursor, Definition, Pending, RunForm, SpanForm
from asyncsched.endings import end_of_decision, end_of_run, is_over, marked, told_by, told_in_quarantine
from asyncsched.errors import SerializationError
from asyncsched.execution import Execution, Host
from asyncsched.ids import base_id, slot_of
from asyncsched.plan import Ended, Span, Start, Step, child_of, ended, spread
from asyncsched.triggers import Within

__all__ = ["Ledger"]

#: What history keeps of a result, in bytes.
_MAX_RESULT = 1 << 20
_MAX_DETAIL = 2000
#: A backfill is told in so many spans, in the log of its job.
_FILLED_SPANS = 10


class Ledger:
    """Writes what a worker's claims came to."""

    def __init__(self, host: Host, keeps_history: bool) -> None:
        self._host = host
        self._keeps_history = keeps_history

    def of_run(self, execution: Execution, end: Ended) -> tuple[Settlement, Sequence[Span]]:
        """The settlement of a run that ends so, and the fire times that it decides about."""
        record = execution.record
        try:
            definition = execution.definition
            rules = self._host.rules(definition.policies)
            step = ended(definition, execution.start, end, rules, (record.id, record.birth))
        except Exception as error:
            self._host.logger.exception("job %r is quarantined: its trigger failed", record.id)
            span = Span("quarantined", end.finished, end.finished, 1, False, _detail(error))
            step = Step(execution.start.cursor, None, "quarantined", False, (*execution.start.spans, span))
        is_told = self._keeps_history and end.skip is None
        entries: tuple[Entry, ...] = (self._run_entry(execution, end),) if is_told else ()
        if execution.definition.trigger.is_backfill:
            step, filled = self._backfilled(execution, end, step)
            entries += filled
        settlement = self.of_step(record, step, end.finished, entries)
        if execution.definition.flows and is_over(step):
            told = end_of_run(end, record.fence, execution.start.attempt, execution.result, self._host.dump)
            spawn = told_by(execution.definition, told, record.fence, end.finished)
            settlement = replace(settlement, spawn=spawn)
        return settlement, step.spans

    def of_decision(self, record: Record, definition: Definition, step: Step, now: float) -> Settlement:
        """The settlement of a record that does not run: it moves, is held back, or goes."""
        settlement = self.of_step(record, step, now)
        if definition.flows and is_over(step):
            told = end_of_decision(step, record.settled, now)
            settlement = replace(settlement, spawn=told_by(definition, told, record.fence, now))
        return settlement

    def of_step(self, record: Record, step: Step, now: float, entries: tuple[Entry, ...] = ()) -> Settlement:
        """The settlement that carries out a step."""
        if self._keeps_history and (step.spans or record.prior is not None):
            entries += self._decisions(record, step.spans, now)
        return Settlement(
            record.id,
            record.fence,
            record.holder or "",
            record.version,
            encode(step.cursor),
            step.wake_at,
            step.hold,
            step.delete,
            False,
            entries,
        )

    def of_spread(
        self, record: Record, definition: Definition, start: Start, slot: str | None, now: float
    ) -> tuple[Settlement, Sequence[Span]]:
        """The settlement that moves an overlapping job on and spawns its child, in the same step."""
        rules, key = self._host.rules(definition.policies), (record.id, record.birth)
        step = spread(definition, start, now, rules, key, has_slot=slot is not None)
        settlement = self.of_step(record, step, now)
        if slot is not None:
            body = encode(child_of(definition, start))
            # Begun already: it is neither late nor jittered a second time, whatever the scheduler's defaults say.
            cursor = encode(Cursor(1, None, Pending(start.fire, start.due, start.attempt - 1)))
            child = Record(
                slot, record.birth, record.queue, record.priority, record.task, start.due, None, body, cursor
            )
            settlement = replace(settlement, spawn=(child,))
        return settlement, step.spans

    def of_quarantine(self, record: Record, error: BaseException, now: float) -> Settlement:
        """Keep the record as it is, out of the way, with the reason in its log."""
        span = Span("quarantined", now, now, 1, False, _detail(error))
        entries = self._decisions(record, (span,), now) if self._keeps_history else ()
        spawn = told_in_quarantine(record, _detail(error), now)
        return replace(self._held_back(record, entries), spawn=spawn)

    def of_poison(
        self, execution: Execution | None, refused: Settlement, error: Exception
    ) -> tuple[Settlement, ...]:
        """What is left of a settlement that the store refuses for good: quarantine, and the run without its result and
        traceback; and if that is too much, quarantine alone. Nothing of a workflow's record: nobody would look after it in
        quarantine, and the steps behind it would never begin. It is tried again when its lease has ended."""
        if refused.id.startswith("#"):
            return ()
        cursor = refused.cursor if execution is None else execution.record.cursor
        bare = Settlement(
            refused.id, refused.fence, refused.holder, refused.version, cursor, None, "quarantined",
            unpark=refused.unpark,
        )  # fmt: skip
        if execution is not None and execution.end is not None and execution.definition.flows:
            told = told_in_quarantine(execution.record, _detail(error), execution.end.finished)
            bare = replace(bare, spawn=told)
        entries: tuple[Entry, ...] = ()
        if execution is not None and execution.end is not None and self._keeps_history:
            execution.result = execution.traceback = execution.annotations = None
            now = execution.end.finished
            span = Span("quarantined", now, now, 1, False, _detail(error))
            entries = (
                self._run_entry(execution, execution.end),
                *self._decisions(execution.record, (span,), now),
            )
        return replace(bare, entries=entries), bare

    def of_hand_back(self, record: Record, wake_at: float) -> Settlement:
        """As if it had not been claimed."""
        return Settlement(
            record.id, record.fence, record.holder or "", record.version, b"", round(wake_at, 6), None, False, True,
        )  # fmt: skip

    def _held_back(self, record: Record, entries: tuple[Entry, ...]) -> Settlement:
        return Settlement(
            record.id,
            record.fence,
            record.holder or "",
            record.version,
            record.cursor,
            None,
            "quarantined",
            False,
            False,
            entries,
        )

    def _run_entry(self, execution: Execution, end: Ended) -> Entry:
        record, start = execution.record, execution.start
        result = b"" if execution.result is None else self._stored_result(execution)
        if execution.definition.flows:
            execution.annotations = marked(execution.definition, execution.annotations)
        metadata = self._stored_annotations(execution) if execution.annotations else b""
        job_id = base_id(record.id)
        form = RunForm(
            end.outcome,
            record.task,
            start.due,
            end.started,
            end.finished,
            start.attempt,
            self._host.instance,
            end.error,
            execution.traceback,
            result,
            metadata,
            record.id[len(job_id) :],
        )
        # Whole microseconds, which is what datetimes keep: a page of the log is continued behind a run that users were given.
        return Entry(job_id, record.fence, "run", start.fire, round(end.finished, 6), encode(form))

    def _backfilled(self, execution: Execution, end: Ended, step: Step) -> tuple[Step, tuple[Entry, ...]]:
        """What is written to the log of the job whose fire times these were: few spans, so that its own runs stay in it."""
        trigger, record, start = execution.definition.trigger, execution.record, execution.start
        filled, has_ended = start.cursor.filled, step.cursor.pending is None and not start.request
        is_good = has_ended and end.outcome == "succeeded"
        if is_good:
            first, _, count = filled or (start.fire, start.fire, 0)
            filled = (first, start.fire, count + 1)
        entries: tuple[Entry, ...] = ()
        if filled is not None and isinstance(trigger, Within):
            is_full = filled[2] * _FILLED_SPANS >= trigger.whole[2]
            if step.delete or is_full or (has_ended and not is_good):
                form = SpanForm(filled[1], filled[2], False, f"by {record.id}")
                at = round(end.finished, 6)
                entries = (Entry(trigger.of, record.fence, "backfilled", filled[0], at, encode(form)),)
                filled = None
        return replace(
            step, cursor=replace(step.cursor, filled=filled)
        ), entries if self._keeps_history else ()

    def _stored_result(self, execution: Execution) -> bytes:
        """A result that cannot be stored does not make a run fail; history says what is missing."""
        try:
            result = self._host.dump(execution.result, "result")
            if len(result) > _MAX_RESULT:
                raise SerializationError(
                    f"result: {len(result)} bytes are more than the {_MAX_RESULT} that history keeps"
                )
        except SerializationError as error:
            execution.annotations = {**(execution.annotations or {}), "result_error": str(error)}
            self._host.logger.warning("the result of job %r is not kept: %s", execution.record.id, error)
            return b""
        return result

    def _stored_annotations(self, execution: Execution) -> bytes:
        try:
            return self._host.dump(execution.annotations, "annotate()")
        except SerializationError as error:
            self._host.logger.warning(
                "the annotations of job %r are not kept: %s", execution.record.id, error
            )
            return b""

    def _decisions(self, record: Record, spans: Sequence[Span], now: float) -> tuple[Entry, ...]:
        """Log entries of decisions, and of the claim before this one where it was lost."""
        now = round(now, 6)
        entries = [
            Entry(
                base_id(record.id),
                record.fence,
                span.reason,
                span.first,
                now,
                encode(SpanForm(span.last, span.count, span.more, span.detail)),
            )
            for span in spans
        ]
        if record.prior is not None:
            error = f"its lease ended without a settlement ({record.tries - 1} lost in a row)"
            slot = slot_of(record.id)
            form = RunForm(
                "lost", record.task, now, None, None, max(record.tries - 1, 1), "", error, slot=slot
            )
            # Children that one lost claim had, and that one claim takes over, differ in nothing else.
            fire_at = now if not slot else round(now - 1e-6 * int(slot[1:]), 6)
            entries.append(Entry(base_id(record.id), record.prior, "lost", fire_at, now, encode(form)))
        return tuple(entries)


def _detail(error: BaseException) -> str:
    return storable(f"{type(error).__name__}: {error}"[:_MAX_DETAIL])
