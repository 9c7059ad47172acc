"""How a claim ends, in writing: settlements with their log entries."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from asyncsched.codec import encode
from asyncsched.contract import Entry, Record, Settlement
from asyncsched.definition import Cursor, Definition, Pending, RunForm, SpanForm
from asyncsched.errors import SerializationError
from asyncsched.execution import Execution, Host
from asyncsched.ids import base_id
from asyncsched.plan import Ended, Span, Start, Step, child_of, ended, spread

__all__ = ["Ledger"]

#: What history keeps of a result, in bytes.
_MAX_RESULT = 1 << 20
_MAX_DETAIL = 2000


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
        entries = (self._run_entry(execution, end),) if self._keeps_history else ()
        return self.of_step(record, step, end.finished, entries), step.spans

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
            cursor = encode(Cursor(1, None, Pending(start.fire, start.due, 0)))
            child = Record(
                slot, record.birth, record.queue, record.priority, record.task, start.due, None, body, cursor
            )
            settlement = replace(settlement, spawn=(child,))
        return settlement, step.spans

    def of_quarantine(self, record: Record, error: BaseException, now: float) -> Settlement:
        """Keep the record as it is, out of the way, with the reason in its log."""
        span = Span("quarantined", now, now, 1, False, _detail(error))
        entries = self._decisions(record, (span,), now) if self._keeps_history else ()
        return self._held_back(record, entries)

    def of_poison(
        self, execution: Execution | None, refused: Settlement, error: Exception
    ) -> tuple[Settlement, Settlement]:
        """What is left of a settlement that the store refuses for good: quarantine, and the run without its result and
        traceback; and if that is too much, quarantine alone."""
        cursor = refused.cursor if execution is None else execution.record.cursor
        bare = Settlement(
            refused.id, refused.fence, refused.holder, refused.version, cursor, None, "quarantined",
        )  # fmt: skip
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
        metadata = self._stored_annotations(execution) if execution.annotations else b""
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
        )
        # Whole microseconds, which is what datetimes keep: a page of the log is continued behind a run that users were given.
        return Entry(
            base_id(record.id), record.fence, "run", start.fire, round(end.finished, 6), encode(form)
        )

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
            form = RunForm("lost", record.task, now, None, None, max(record.tries - 1, 1), "", error)
            entries.append(Entry(base_id(record.id), record.prior, "lost", now, now, encode(form)))
        return tuple(entries)


def _detail(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_DETAIL]
