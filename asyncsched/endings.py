"""How the job that a workflow waits for has ended, and the records that tell it: they go with the settlement that ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec.structs import replace

from asyncsched.codec import decode_definition, decode_run
from asyncsched.contract import Entry, Record
from asyncsched.definition import Definition
from asyncsched.errors import SerializationError
from asyncsched.flowform import EndForm
from asyncsched.flows import end_record
from asyncsched.plan import Ended, Step

__all__ = [
    "end_in_log",
    "end_of_decision",
    "end_of_run",
    "is_over",
    "marked",
    "told_by",
    "told_in_quarantine",
]

#: Of the result of a step, what the steps after it are given.
_MAX_RESULT = 32 * 1024
#: So many bytes of results are told with one settlement: some stores bound what one transaction writes.
_MAX_TOLD = 128 * 1024


def is_over(step: Step) -> bool:
    """Whether a one-shot has come to its end by this."""
    return step.delete or step.hold in ("failed", "quarantined") or step.cursor.over is not None


def end_of_run(
    end: Ended, fence: int, attempt: int, result: Any, dump: Callable[[Any, str], bytes]
) -> EndForm:
    """The end of a step whose last run ended so."""
    if end.skip is not None:
        reason, detail = end.skip
        return EndForm("skipped", detail or reason, fence, attempt, end.started, end.finished)
    if end.outcome == "succeeded":
        data, problem = _bounded(result, dump)
        return EndForm("succeeded", None, fence, attempt, end.started, end.finished, data, problem)
    if end.outcome == "cancelled":
        return EndForm("cancelled", end.error, fence, attempt, end.started, end.finished)
    return EndForm("failed", end.error, fence, attempt, end.started, end.finished)


def end_of_decision(step: Step, fence: int, now: float) -> EndForm:
    """The end of a step that was decided about without a run; if it has run, then its end was told by that already, unless it
    was told to nobody."""
    tally = step.cursor.tally
    outcome = tally.last_outcome or ("succeeded" if tally.succeeded else "failed" if tally.failed else None)
    if outcome == "succeeded":
        return EndForm("succeeded", None, fence, finished=now, result_error="it is in the history only")
    if outcome is not None:
        state: Literal["failed", "cancelled"] = "cancelled" if outcome == "cancelled" else "failed"
        return EndForm(state, tally.last_error, fence, finished=now)
    reason = step.spans[-1].reason if step.spans else "it did not run"
    return EndForm("skipped", reason, finished=now)


def end_in_log(entry: Entry) -> EndForm:
    """The end that the log tells of a job's last run."""
    form = decode_run(entry.body)
    common = (entry.fence, form.attempt, form.started, form.finished)
    if form.outcome == "succeeded":
        if len(form.result) > _MAX_RESULT:
            return EndForm("succeeded", None, *common, result_error=_too_large(len(form.result)))
        return EndForm("succeeded", None, *common, form.result)
    if form.outcome == "cancelled":
        return EndForm("cancelled", form.error, *common)
    return EndForm("failed", form.error, *common)


def told_by(definition: Definition, end: EndForm, fence: int, now: float) -> tuple[Record, ...]:
    """The records that tell each execution that waits for this. Where many do, they are to look for the result in the log."""
    bare = end
    if len(end.result) * len(definition.flows) > _MAX_TOLD:
        bare = replace(end, result=b"", result_error="it is in the history only")
    return tuple(end_record(link, end if link.is_own else bare, str(fence), now) for link in definition.flows)


def told_in_quarantine(record: Record, reason: str, now: float) -> tuple[Record, ...]:
    """The same for a job that cannot be run as it is. Of one that cannot be read, the execution finds out by itself."""
    if record.id.startswith("#"):
        return ()
    try:
        definition = decode_definition(record.body)
    except SerializationError:
        return ()
    end = EndForm("failed", f"quarantined: {reason}", record.fence, finished=now)
    return told_by(definition, end, record.fence, now)


def marked(definition: Definition, annotations: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the history keeps with a run, the workflow that it is a step of included."""
    for link in definition.flows:
        if link.is_own:
            return {"workflow": link.id, "step": link.step, **(annotations or {})}
    return annotations


def _bounded(result: Any, dump: Callable[[Any, str], bytes]) -> tuple[bytes, str | None]:
    if result is None:
        return b"", None
    try:
        data = dump(result, "result")
    except SerializationError as error:
        return b"", str(error)
    if len(data) > _MAX_RESULT:
        return b"", _too_large(len(data))
    return data, None


def _too_large(size: int) -> str:
    return f"{size} bytes are more than the {_MAX_RESULT} that a step is given; it is in the history"
