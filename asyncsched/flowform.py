"""An execution of a workflow, pure: which steps there are, how each stands, and what the end of one means for the others.

No clock, no store: a form and an instant in, a form out. Steps stand in an order in which each comes after those that it waits
for, the final one last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec.structs import replace

__all__ = [
    "END_STATES",
    "BeforeForm",
    "EndForm",
    "FlowForm",
    "StepForm",
    "StepState",
    "When",
    "before_of",
    "begun",
    "cancelled",
    "opened_by",
    "told",
]

#: On what end of the step before a step runs: ``complete`` is any, ``failure`` a cancelled one too.
When = Literal["success", "failure", "skipped", "complete"]
State = Literal["pending", "open", "succeeded", "failed", "skipped", "cancelled"]

END_STATES = frozenset({"succeeded", "failed", "skipped", "cancelled"})
_MEETS: dict[When, frozenset[str]] = {
    "success": frozenset({"succeeded"}),
    "failure": frozenset({"failed", "cancelled"}),
    "skipped": frozenset({"skipped"}),
    "complete": END_STATES,
}
#: So many bytes of results one execution keeps.
_MAX_RESULTS = 512 * 1024


class StepForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A step as it was written."""

    name: str
    task: str
    #: The steps that it comes after, each with the end that it asks for.
    after: tuple[tuple[str, When], ...]
    job_id: str
    queue: str
    priority: int
    #: Encoded definition of the job that it becomes. Empty: that job is there already, and is only waited for.
    body: bytes
    #: It becomes due so much later than it may run.
    delay_s: float = 0.0
    #: It waits for all others to end.
    is_final: bool = False
    #: Of a job that was there when the execution was started: its record's birth, and when it was made.
    birth: str = ""
    since: float = 0.0

    @property
    def is_foreign(self) -> bool:
        """Whether it is no step, but a job that was there and is waited for."""
        return not self.task


class EndForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a step ended."""

    state: Literal["succeeded", "failed", "skipped", "cancelled"]
    error: str | None = None
    #: Its last run's; 0: it had none.
    fence: int = 0
    attempt: int = 0
    started: float | None = None
    finished: float | None = None
    #: Encoded; empty when there is none.
    result: bytes = b""
    #: Why the result is not here.
    result_error: str | None = None


class StepState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a step stands. ``open``: it may run, and has not ended."""

    state: State = "pending"
    #: The step whose end opened it; empty: the beginning did.
    by: str | None = None
    opened_at: float | None = None
    end: EndForm | None = None
    #: The birth of the record that told its end.
    told: str = ""


class FlowForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An execution. Instants are the store's."""

    name: str
    created_at: float
    #: For how long it is kept after its end; None: for ever.
    keep_s: float | None
    steps: tuple[StepForm, ...]
    states: tuple[StepState, ...] = ()
    cancelled_at: float | None = None
    finished_at: float | None = None
    outcome: Literal["succeeded", "failed", "cancelled"] | None = None

    def items(self) -> Iterator[tuple[StepForm, StepState]]:
        return zip(self.steps, self.states, strict=True)

    def find(self, step: str) -> tuple[StepForm, StepState] | None:
        return next((pair for pair in self.items() if pair[0].name == step), None)


class BeforeForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a step is told of one that it came after."""

    step: str
    state: str
    error: str | None
    result: bytes


def begun(form: FlowForm, now: float) -> FlowForm:
    """The execution as it begins: the steps that wait for none are open."""
    return _moved_on(replace(form, states=(StepState(),) * len(form.steps)), "", now)


def told(form: FlowForm, step: str, end: EndForm, birth: str, now: float) -> FlowForm:
    """The execution after the end of an open step: what may run now is open, what cannot run any more is skipped."""
    states = []
    room = _MAX_RESULTS - sum(len(state.end.result) for state in form.states if state.end is not None)
    if len(end.result) > room:
        end = replace(
            end, result=b"", result_error=f"{len(end.result)} bytes are more than there is room for"
        )
    for known, state in form.items():
        states.append(replace(state, state=end.state, end=end, told=birth) if known.name == step else state)
    # What a step was made of is needed no more.
    steps = tuple(replace(known, body=b"") if known.name == step else known for known in form.steps)
    return _moved_on(replace(form, steps=steps, states=tuple(states)), step, now)


def cancelled(form: FlowForm, now: float) -> FlowForm:
    """The execution after somebody has called it off: what has not begun never will, and nobody else's job is waited for."""
    if form.cancelled_at is not None or form.finished_at is not None:
        return form
    end = EndForm("cancelled", "the workflow was cancelled", finished=now)
    states = tuple(
        replace(state, state="cancelled", end=end)
        if state.state == "pending" or (state.state == "open" and step.is_foreign)
        else state
        for step, state in form.items()
    )
    return _moved_on(replace(form, states=states, cancelled_at=now), "", now)


def opened_by(form: FlowForm, step: str) -> list[StepForm]:
    """The steps that the end of *step* opened, in a lasting order; with ``""`` those that the beginning did."""
    return [known for known, state in form.items() if state.by == step]


def before_of(form: FlowForm, step: StepForm) -> tuple[BeforeForm, ...]:
    """How those ended that *step* comes after; all others, for the final one."""
    names = {one.name for one in form.steps} if step.is_final else {name for name, _ in step.after}
    return tuple(
        BeforeForm(known.name, state.state, None, b"")
        if state.end is None
        else BeforeForm(known.name, state.state, state.end.error, state.end.result)
        for known, state in form.items()
        if known.name in names and known is not step
    )


def _moved_on(form: FlowForm, by: str, now: float) -> FlowForm:
    """One pass is enough, since each step stands behind those that it waits for."""
    states: dict[str, StepState] = {}
    are_over = True
    for step, state in form.items():
        new = state
        if state.state == "pending" and (are_over or not step.is_final):
            verdict = _verdict(step, states)
            if verdict == "open":
                new = StepState("open", by, now)
            elif verdict == "skip":
                end = EndForm("skipped", _unmet(step, states), finished=now)
                new = StepState("skipped", end=end)
        states[step.name] = new
        are_over = are_over and (step.is_foreign or new.state in END_STATES)
    form = replace(form, states=tuple(states.values()))
    if not are_over or form.finished_at is not None:
        return form
    ends = {state.state for step, state in form.items() if not step.is_foreign}
    outcome: Literal["succeeded", "failed", "cancelled"] = "succeeded"
    if form.cancelled_at is not None:
        outcome = "cancelled"
    elif ends & _MEETS["failure"]:
        outcome = "failed"
    return replace(form, finished_at=now, outcome=outcome)


def _verdict(step: StepForm, states: dict[str, StepState]) -> Literal["wait", "open", "skip"]:
    waits = False
    for name, when in step.after:
        state = states[name].state
        if state not in END_STATES:
            waits = True
        elif state not in _MEETS[when]:
            return "skip"
    return "wait" if waits else "open"


def _unmet(step: StepForm, states: dict[str, StepState]) -> str:
    name, when = next(
        (name, when)
        for name, when in step.after
        if states[name].state in END_STATES and states[name].state not in _MEETS[when]
    )
    state = states[name].state
    return (
        f"it runs on {when} of {name!r}, which {'was ' if state in ('skipped', 'cancelled') else ''}{state}"
    )
