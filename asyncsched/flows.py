"""The records of workflows: of an execution, of a step that may run, and of the end of one, which moves the execution on.

An execution is one record, ``#flow/ID``; its body says how each step stands, and is changed by updates alone. A step is an
ordinary one-shot. The settlement that ends it spawns ``#flow-end/ID#STEP`` in the same write, so that no end is ever lost:
whoever claims that record moves the execution on, and settles it by spawning the steps that may run now. A claim that is lost
in the middle repeats what it did without harm, since the update says by which record a step was told, and since spawning is
fenced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from asyncsched.codec import decode_definition, encode
from asyncsched.contract import Record, Update
from asyncsched.definition import Cursor, Definition, FlowLink, Pending, Policies
from asyncsched.errors import SerializationError
from asyncsched.flowform import BeforeForm, EndForm, FlowForm, StepForm, before_of
from asyncsched.triggers import Once

__all__ = [
    "END_TASK",
    "FLOWS",
    "FLOW_TASK",
    "KEPT",
    "CurrentWorkflow",
    "cursor_of",
    "end_id",
    "end_of",
    "end_record",
    "flow_body",
    "flow_form",
    "flow_id",
    "flow_record",
    "is_step",
    "is_step_of",
    "looked_at_now",
    "packed",
    "step_record",
    "unpacked",
    "workflow_of",
]

T = TypeVar("T")

#: How the ids of executions begin, and the tasks of our records. No job has one of them.
FLOWS = "#flow/"
FLOW_TASK = "#flow"
END_TASK = "#flow-end"
#: The hold of an execution that has ended and is kept for a while.
KEPT = "ended"
#: Some stores take no longer one.
_LONGEST_ID = 300
#: Before all jobs: a workflow that moves on is worth more than one that begins.
_PRIORITY = 9
#: However many instances die with it, it is not given up.
_OURS = Policies(max_crashes=1_000_000_000)

_pack = msgspec.msgpack.Encoder().encode
_flows = msgspec.msgpack.Decoder(FlowForm)
_ends = msgspec.msgpack.Decoder(EndForm)
_befores = msgspec.msgpack.Decoder(tuple[BeforeForm, ...])


def flow_id(id: str) -> str:
    """The id of the record of an execution."""
    return f"{FLOWS}{id}"


def end_id(id: str, step: str) -> str:
    """The id of the record that tells the end of a step, or of a job, which may have a long id."""
    whole = f"#flow-end/{id}#{step}"
    if len(whole) <= _LONGEST_ID:
        return whole
    return f"#flow-end/{id}#{blake2b(step.encode(), digest_size=16).hexdigest()}"


def flow_record(id: str, birth: str, queue: str, form: FlowForm, now: float) -> Record:
    """An execution that is to begin now."""
    return Record(
        flow_id(id),
        birth,
        queue,
        _PRIORITY,
        FLOW_TASK,
        now,
        None,
        flow_body(form, now),
        cursor_of(),
    )


def packed(form: FlowForm) -> bytes:
    """A workflow that no execution was made of yet; ``unpacked`` reads it."""
    return _pack(form)


def unpacked(data: bytes) -> FlowForm:
    """Raises SerializationError."""
    return _unpacked(_flows, data)


def flow_body(form: FlowForm, now: float) -> bytes:
    return encode(_ours(form.created_at, now, _pack(form)))


def looked_at_now(flow: Record, now: float) -> Update | None:
    """The update that has an execution looked at, unless it has ended."""
    if flow.hold == KEPT:
        return None
    return Update(
        id=flow.id,
        version=flow.version,
        body=flow.body,
        queue=flow.queue,
        priority=flow.priority,
        wake_at=now,
        hold=flow.hold,
    )


def flow_form(record: Record) -> FlowForm:
    """Raises SerializationError, or NewerFormatError for what a newer version wrote."""
    return _unpacked(_flows, decode_definition(record.body).args)


def cursor_of(done: int = 0, looks: int = 0) -> bytes:
    """The cursor of a record of ours, which is due whenever it is claimed: so many steps were spawned, and so often was it
    looked at."""
    return encode(Cursor(1, None, Pending(0.0, 0.0, 0), done, runs=looks))


def step_record(form: FlowForm, step: StepForm, link: FlowLink, now: float) -> Record:
    """The job that an open step becomes."""
    due = round(now + step.delay_s, 6)
    link = replace(link, step=step.name, before=_pack(before_of(form, step)), is_own=True)
    definition = replace(
        decode_definition(step.body),
        created_at=now,
        updated_at=now,
        trigger=Once(due),
        first=due,
        flows=(link,),
    )
    return Record(
        step.job_id, link.birth, step.queue, step.priority, step.task, due, None, encode(definition), b""
    )


def end_record(link: FlowLink, end: EndForm, birth: str, now: float) -> Record:
    """What tells an execution that a step has ended. *birth* tells two tellings of one step apart."""
    now = round(now, 6)
    body = encode(replace(_ours(now, now, _pack(end)), flows=(replace(link, before=b""),)))
    return Record(
        end_id(link.id, link.step), birth, link.queue, _PRIORITY, END_TASK, now, None, body, cursor_of()
    )


def end_of(definition: Definition) -> EndForm:
    """What such a record tells."""
    return _unpacked(_ends, definition.args)


def is_step_of(record: Record, link: FlowLink) -> bool:
    """Whether a record under a step's id is that step, and no job of somebody else's."""
    return record.birth == link.birth


def is_step(definition: Definition) -> bool:
    """Whether a job is a step of a workflow, and not only one that is waited for."""
    return any(link.is_own for link in definition.flows)


def workflow_of(definition: Definition, load: Callable[[bytes], Any]) -> CurrentWorkflow | None:
    """What a step knows of its workflow; None: the job is no step."""
    for link in definition.flows:
        if link.is_own:
            before = _unpacked(_befores, link.before) if link.before else ()
            return CurrentWorkflow(link.id, link.name, link.step, before, load)
    return None


class CurrentWorkflow:
    """The workflow that the current run is a step of: ``current_run().workflow``."""

    def __init__(
        self,
        id: str,
        name: str,
        step: str,
        before: Sequence[BeforeForm],
        load: Callable[[bytes], Any],
    ) -> None:
        #: The execution's id.
        self.id = id
        #: The workflow's name.
        self.name = name
        #: The step's name.
        self.step = step
        self._before = before
        self._load = load

    @property
    def outcomes(self) -> Mapping[str, str]:
        """How the steps ended that this one comes after: succeeded, failed, skipped or cancelled. The final step has all here."""
        return {one.step: one.state for one in self._before}

    @property
    def errors(self) -> Mapping[str, str]:
        """Why those of them that did not succeed did not."""
        return {one.step: one.error for one in self._before if one.error is not None}

    @property
    def results(self) -> Mapping[str, Any]:
        """What those of them that succeeded returned; None for nothing, and for a result of more than 32 KiB, which is in the
        history only."""
        return {
            one.step: self._load(one.result) if one.result else None
            for one in self._before
            if one.state == "succeeded"
        }

    def __repr__(self) -> str:
        return f"<CurrentWorkflow {self.id} of {self.name}, step {self.step}>"


def _ours(created_at: float, now: float, packed: bytes) -> Definition:
    return Definition(created_at, now, Once(created_at), 1, created_at, packed, policies=_OURS)


def _unpacked(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise SerializationError(f"the stored state of a workflow cannot be read: {error}") from error
