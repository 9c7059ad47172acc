"""Workflows as they are written: steps, what each comes after, and what is wrong with that; and how an execution stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, Unpack

import msgspec

from asyncsched.errors import (
    CycleError,
    DefinitionError,
    DuplicateStepError,
    EmptyWorkflowError,
    TwoFinalStepsError,
    UnknownStepError,
    WorkflowError,
)
from asyncsched.flowform import When
from asyncsched.ids import check_id, check_name
from asyncsched.model import Job
from asyncsched.specs import JobSpec, PolicyArgs, policies_from
from asyncsched.units import Duration, to_seconds

__all__ = [
    "After",
    "Condition",
    "Step",
    "StepStatus",
    "Workflow",
    "WorkflowState",
    "WorkflowStatus",
    "on_complete",
    "on_failure",
    "on_skipped",
    "on_success",
]

#: Steps of one workflow.
MAX_STEPS = 1000
#: What says how a job goes on after a run: a step runs once.
_NOT_OF_STEPS = frozenset(
    {
        "on_exhausted",
        "catch_up",
        "max_catch_up",
        "overlap",
        "max_instances",
        "max_runs",
        "pause_after_failures",
    }
)
#: What a bound call may not say of a step either.
_NOT_OF_CALLS = _NOT_OF_STEPS | {"id", "trigger", "store", "paused", "run_immediately", "run_on_start"}

#: ``pending``: waits for the steps before it. ``scheduled``: may run as soon as there is room, waits for its next attempt, or is
#: paused. ``running``, and how it ended: ``skipped`` is one whose conditions cannot be met any more, or that said so by Skip.
StepStateName = Literal["pending", "scheduled", "running", "succeeded", "failed", "skipped", "cancelled"]
WorkflowState = Literal["running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Condition:
    """A step that another comes after, and the end of it that the other asks for. Made by ``on_success`` and its kin."""

    #: The step's name; of a job that is no step, its id.
    step: str
    when: When = "success"
    #: The store of a job that is no step; None: it is a step.
    store: str | None = None


class HasJob(Protocol):
    """What names a job: a Receipt."""

    @property
    def job_id(self) -> str: ...

    @property
    def store(self) -> str: ...


#: A step by its name; or a job that is there already, by what ``add_job`` or ``enqueue`` gave.
Before = str | Job | HasJob
After = Before | Condition | Iterable[Before | Condition]


def on_success(step: Before) -> Condition:
    """After *step*, if it succeeded; a bare name says the same. In the place of a step a one-shot Job or a Receipt may stand."""
    return _condition(step, "success")


def on_failure(step: Before) -> Condition:
    """After *step*, if it failed (its last attempt, a timeout and a quarantine included) or was cancelled or removed."""
    return _condition(step, "failure")


def on_skipped(step: Before) -> Condition:
    """After *step*, if it was skipped: its own conditions could not be met, or it raised Skip, or came too late to start."""
    return _condition(step, "skipped")


def on_complete(step: Before) -> Condition:
    """After *step*, however it ended, and also if it was skipped."""
    return _condition(step, "complete")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step as it was written."""

    spec: JobSpec
    name: str
    after: tuple[Condition, ...]
    #: None: as the workflow is started.
    queue: str | None
    priority: int | None
    delay_s: float
    is_final: bool


class Workflow:
    """Steps that come after each other: ``Workflow("nightly").step("extract", extract).step("load", load, after="extract")``.

    Each call gives the workflow back. What is wrong with it raises a WorkflowError at the call that makes it so; that a step
    comes after one which is not there is told by ``check``, and when the workflow is started or added.
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name, "a workflow's name")
        self._steps: dict[str, Step] = {}
        self._final: str | None = None

    def __repr__(self) -> str:
        return f"<Workflow {self.name}: {', '.join(self._steps) or 'no steps'}>"

    @property
    def steps(self) -> Mapping[str, tuple[Condition, ...]]:
        """The names of the steps, in the order in which they were written, and what each comes after."""
        return {name: step.after for name, step in self._steps.items()}

    def step(
        self,
        name: str,
        task: Any,
        *,
        after: After = (),
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration = 0,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        **policies: Unpack[PolicyArgs],
    ) -> Workflow:
        """Add a step. *task* is what ``add_job`` takes, *after* the names of steps and conditions, all of which must hold.

        A step runs *delay* (seconds or timedelta) after it may. Without *queue* and *priority* it has those that the workflow is
        started with. Policies are those of a job, but for the ones that say how a job goes on after a run (overlap, catch_up,
        max_runs ...). Raises DuplicateStepError, and CycleError where steps would wait for each other.
        """
        spec = JobSpec(task, None, None, args, kwargs, name, tags=tags, metadata=metadata, policies=policies)
        self._add(name, spec, after, queue, priority, delay, is_final=False)
        return self

    def final(
        self,
        name: str,
        task: Any,
        *,
        after: After = (),
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration = 0,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        **policies: Unpack[PolicyArgs],
    ) -> Workflow:
        """Add the step that runs last: when all others have ended, in whatever way, and the conditions of *after* hold, if there
        are any. Raises TwoFinalStepsError for a second one, and otherwise as ``step`` does."""
        if self._final is not None:
            raise TwoFinalStepsError(
                f"workflow {self.name!r} has the final step {self._final!r} already, so {name!r} cannot be one: join them, or "
                "make one of them a step",
                workflow=self.name,
                steps=(self._final, name),
            )
        spec = JobSpec(task, None, None, args, kwargs, name, tags=tags, metadata=metadata, policies=policies)
        self._add(name, spec, after, queue, priority, delay, is_final=True)
        self._final = name
        return self

    def _add(
        self,
        name: str,
        spec: JobSpec,
        after: After,
        queue: str | None,
        priority: int | None,
        delay: Duration,
        *,
        is_final: bool,
    ) -> None:
        check_id(name, "a step's name")
        if isinstance(spec.task, Workflow):
            raise DefinitionError(
                f"a step runs a task, and {name!r} is given workflow {spec.task.name!r}, which would only have begun when the "
                "step ends: add its steps to this one, or start and await it in a task"
            )
        conditions = _conditions(after)
        taken = {*self._steps, *self.jobs}
        if name in taken or any(c.store is not None and c.step in {name, *self._steps} for c in conditions):
            raise DuplicateStepError(
                f"workflow {self.name!r} has a step {name!r} already, or waits for a job of that id; give this one another name",
                workflow=self.name,
                steps=(name,),
            )
        if len(self._steps) >= MAX_STEPS:
            raise WorkflowError(
                f"workflow {self.name!r} has {MAX_STEPS} steps, and {name!r} would be one more: split it",
                workflow=self.name,
                steps=(name,),
            )
        self._check_policies(name, spec)
        step = Step(
            spec=spec,
            name=name,
            after=conditions,
            queue=None if queue is None else check_name(queue, "a queue's name"),
            priority=priority,
            delay_s=to_seconds(delay, "delay"),
            is_final=is_final,
        )
        self._check_circle({**self._steps, name: step}, name, name if is_final else self._final)
        self._steps[name] = step

    def _check_policies(self, name: str, spec: JobSpec) -> None:
        of_call = set(getattr(spec.task, "policies", ())) & _NOT_OF_CALLS
        wrong = sorted(of_call | (set(spec.policies) & _NOT_OF_STEPS))
        if wrong:
            raise WorkflowError(
                f"step {name!r} of workflow {self.name!r} cannot have {', '.join(wrong)}: a step runs once, and how it ended is "
                "for the steps after it",
                workflow=self.name,
                steps=(name,),
            )
        policies_from(spec.policies)

    def _check_circle(self, steps: Mapping[str, Step], start: str, final: str | None) -> None:
        """Raise CycleError if a way leads from *start* back to it. The final step waits for all others."""
        came_from: dict[str, str] = {}
        to_see = [start]
        while to_see:
            at = to_see.pop()
            step = steps.get(at)
            before = [] if step is None else [c.step for c in step.after if c.store is None]
            if at == final:
                before += [name for name in steps if name != final]
            for name in before:
                if name == start:
                    circle = [start, at]
                    while circle[-1] != start:
                        circle.append(came_from[circle[-1]])
                    self._refuse_circle(circle)
                if name not in came_from:
                    came_from[name] = at
                    to_see.append(name)

    def _refuse_circle(self, circle: Sequence[str]) -> None:
        way = " before ".join(repr(name) for name in circle)
        raise CycleError(
            f"the steps of workflow {self.name!r} wait for each other: {way}; none of them could ever begin",
            workflow=self.name,
            steps=circle,
        )

    def check(self) -> None:
        """Raise UnknownStepError or EmptyWorkflowError if the workflow cannot be run as it stands."""
        if not any(not step.is_final for step in self._steps.values()):
            raise EmptyWorkflowError(
                f"workflow {self.name!r} has no steps{' but its final one' if self._final else ''}: call step()",
                workflow=self.name,
            )
        for step in self._steps.values():
            unknown = [c.step for c in step.after if c.store is None and c.step not in self._steps]
            if unknown:
                raise UnknownStepError(
                    f"step {step.name!r} of workflow {self.name!r} comes after {', '.join(map(repr, unknown))}, which is "
                    f"not there (steps: {', '.join(self._steps)})",
                    workflow=self.name,
                    steps=(step.name, *unknown),
                )

    @property
    def jobs(self) -> Mapping[str, str]:
        """The ids of the jobs that it waits for and that are no steps of it, each with its store."""
        return {c.step: c.store for step in self._steps.values() for c in step.after if c.store is not None}

    def sorted_steps(self) -> list[Step]:
        """The steps, each behind those that it comes after, and the final one last; raises as ``check``."""
        self.check()
        placed: dict[str, Step] = {}
        waiting = [step for step in self._steps.values() if not step.is_final]
        dependants: dict[str, list[Step]] = {}
        missing = {step.name: len({c.step for c in step.after if c.store is None}) for step in waiting}
        for step in waiting:
            for name in {c.step for c in step.after if c.store is None}:
                dependants.setdefault(name, []).append(step)
        ready = [step for step in waiting if not missing[step.name]]
        for step in ready:
            placed[step.name] = step
            for dependant in dependants.get(step.name, ()):
                missing[dependant.name] -= 1
                if not missing[dependant.name]:
                    ready.append(dependant)
        if self._final is not None:
            placed[self._final] = self._steps[self._final]
        return list(placed.values())


class StepStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a step of an execution stands."""

    name: str
    #: The id of the job that it is, or becomes.
    job_id: str
    task: str
    state: StepStateName
    #: Of its last run, or of the one under way (``job_id@fence``); None: it has had none.
    run_id: str | None = None
    #: How many attempts it took; 0 while it has not ended.
    attempts: int = 0
    #: When it became free to run.
    opened_at: datetime | None = None
    #: Of its last attempt.
    started_at: datetime | None = None
    finished_at: datetime | None = None
    #: Why it did not succeed.
    error: str | None = None
    #: What it returned, if that has no more than 32 KiB.
    result: Any = None
    #: Why a result is missing here.
    result_error: str | None = None


class WorkflowStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How an execution of a workflow stands."""

    id: str
    #: The workflow's.
    name: str
    store: str
    #: ``failed``: a step failed, or was cancelled by itself. A skipped step alone makes no failure.
    state: WorkflowState
    created_at: datetime
    finished_at: datetime | None = None
    #: When somebody called it off.
    cancelled_at: datetime | None = None
    steps: Mapping[str, StepStatus]

    @property
    def is_over(self) -> bool:
        return self.finished_at is not None


def _conditions(after: After) -> tuple[Condition, ...]:
    given = list(after) if isinstance(after, Iterable) and not isinstance(after, str) else [after]
    conditions = [one if isinstance(one, Condition) else _condition(one, "success") for one in given]
    return tuple(dict.fromkeys(conditions))


def _condition(before: Any, when: When) -> Condition:
    if isinstance(before, str):
        return Condition(before, when)
    id = before.id if isinstance(before, Job) else getattr(before, "job_id", None)
    store = getattr(before, "store", None)
    if not isinstance(id, str) or not isinstance(store, str):
        raise DefinitionError(
            f"after= takes names of steps, jobs, receipts, and conditions such as on_failure('load'); not {before!r}"
        )
    return Condition(id, when, store)
