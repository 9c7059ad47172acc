"""What runners take in, and give to handlers and hooks."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from asyncsched.currentrun import CurrentRun
from asyncsched.errors import DefinitionError
from asyncsched.ids import new_id
from asyncsched.units import Duration, to_datetime

__all__ = ["AnyJob", "Handler", "RunnerJob", "check_count", "job_of", "payload_of"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunnerJob(Generic[T]):
    """One piece of work: what to enqueue, and what handlers and hooks are given. None: as the runner says.

    ``retry_delay`` and ``timeout`` are seconds or timedelta. ``attempts`` counts those that have begun, this one included;
    ``error`` is how the last one failed ("ValueError: ..."). Those and ``created_at`` are set by the runner.
    """

    type: str
    payload: T
    _: KW_ONLY
    id: str = field(default_factory=new_id)
    #: 0 to 9; higher goes first.
    priority: int = 0
    #: Attempts after the first one; 0: there is none.
    max_retries: int | None = None
    #: The wait before the first retry; it doubles with each further one.
    retry_delay: Duration | None = None
    timeout: Duration | None = None
    attempts: int = 0
    created_at: datetime | None = None
    error: str | None = None


Handler = Callable[[RunnerJob[T]], object]
AnyJob = RunnerJob[Any]


def job_of(run: CurrentRun, type: str, payload: Any) -> AnyJob:
    """The job that a run is about, with the policies that count for it."""
    execution = run._execution
    retry, tally = execution.retry, execution.start.cursor.tally
    attempts = 1 if retry is None else retry.max_attempts or 1
    return RunnerJob(
        type,
        payload,
        id=run.job_id,
        priority=run.priority,
        max_retries=attempts - 1,
        retry_delay=None if retry is None else retry.base,
        timeout=execution.timeout_s,
        attempts=run.attempt,
        created_at=to_datetime(execution.definition.created_at),
        error=tally.last_error if run.attempt > 1 else None,
    )


def payload_of(handler: Callable[..., Any]) -> Any:
    """What the handler's annotation ``job: RunnerJob[Email]`` says of the payload; Any where it says nothing."""
    target = handler
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        hints = typing.get_type_hints(target)
        names = list(inspect.signature(handler).parameters)
    except (TypeError, ValueError, NameError):
        return Any
    hint = hints.get(names[0]) if names else None
    if typing.get_origin(hint) is not RunnerJob:
        return Any
    [payload] = typing.get_args(hint)
    return Any if isinstance(payload, TypeVar) else payload


def check_count(value: int, name: str, least: int) -> int:
    if type(value) is not int or value < least:
        raise DefinitionError(f"{name} must be a whole number, {least} or more, not {value!r}")
    return value
