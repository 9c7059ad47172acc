"""What is fixed where a built-in task is made, and what its jobs may give."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar

from asyncsched import DefinitionError, Retry, Task
from asyncsched.units import Duration

__all__ = ["task_of"]

R = TypeVar("R")


def task_of(
    call: Callable[[dict[str, Any]], Awaitable[R]],
    name: str,
    hints: Mapping[str, Any],
    fixed: Mapping[str, Any],
    per_job: Collection[str] | None,
    *,
    timeout: Duration | None,
    retry: Retry | None,
) -> Task[..., Coroutine[Any, Any, R]]:
    """A task that hands *call* what is fixed, with what the job gives in its place.

    *hints* has the parameters and their types, the first one being what there is no call without; *fixed* those that were
    fixed. Raises DefinitionError for what is fixed and of another type, and for a *per_job* that makes no sense.
    """
    for given, value in fixed.items():
        _check(name, given, value, hints[given])
    names = _given_by_jobs(per_job, hints, fixed)
    signature = inspect.Signature([_parameter(given, hints, fixed) for given in names])

    async def run(*args: Any, **kwargs: Any) -> R:
        return await call({**fixed, **signature.bind(*args, **kwargs).arguments})

    run.__signature__ = signature  # type: ignore[attr-defined]  # what inspect.signature looks for
    run.__annotations__ = {given: hints[given] for given in names}
    run.__module__ = "asyncsched.tasks"
    run.__name__ = run.__qualname__ = name
    return Task(run, name, timeout=timeout, retry=retry)


def _check(task: str, name: str, value: Any, hint: Any) -> None:
    """What is a text must be one; all else is checked where it is read. The message does not show what may be secret."""
    if hint in (str, str | bytes) and not isinstance(value, hint):
        wanted = inspect.formatannotation(hint)
        raise DefinitionError(
            f"{name} of the task {task!r} must be {wanted}, not a value of {type(value).__name__}"
        )


def _given_by_jobs(
    per_job: Collection[str] | None, hints: Mapping[str, Any], fixed: Mapping[str, Any]
) -> list[str]:
    """The parameters that a job may give.

    Unless *per_job* names them: all that are not fixed, where the first one is not; and none where it is, since whoever fixed
    what is to be called wants that and nothing else.
    """
    main = next(iter(hints))
    if per_job is None:
        return [] if main in fixed else [name for name in hints if name not in fixed]
    if isinstance(per_job, str) or not set(per_job) <= set(hints):
        raise DefinitionError(f"per_job names some of {', '.join(hints)}, and not {per_job!r}")
    if main not in fixed and main not in per_job:
        raise DefinitionError(
            f"{main} is not fixed, and per_job={per_job!r} does not let a job give it: fix it, or add {main!r}"
        )
    return [name for name in hints if name in per_job]


def _parameter(name: str, hints: Mapping[str, Any], fixed: Mapping[str, Any]) -> inspect.Parameter:
    is_main = name == next(iter(hints))
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD if is_main else inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if is_main and name not in fixed else fixed.get(name),
        annotation=hints[name],
    )
