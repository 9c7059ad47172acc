"""Tasks: functions registered under a stable name, what they accept, and the calls that are made of them."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import msgspec

from asyncsched.errors import (
    ConflictingTaskError,
    DefinitionError,
    SerializationError,
    TransientJobError,
    UnknownTaskError,
)
from asyncsched.ids import check_name
from asyncsched.model import Retry
from asyncsched.rates import check_limit, parse_rate
from asyncsched.units import Duration, to_seconds

__all__ = ["AnyTask", "Call", "Executor", "Registry", "Task", "task_name"]

P = ParamSpec("P")
R = TypeVar("R")

#: Where a task runs: in the event loop, in a thread, or in a process of its own.
Executor = Literal["async", "thread", "process"]
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]


class Task(Generic[P, R]):
    """A function under a stable name. Calling it calls the function, as if it had never been registered."""

    def __init__(
        self,
        function: Callable[P, R],
        name: str,
        *,
        timeout: Duration | None = None,
        retry: Retry | None = None,
        executor: Executor | None = None,
        lifespan: Lifespan | None = None,
        max_concurrency: int | None = None,
        rate_limit: str | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = check_name(name, "a task's name")
        if name.startswith("#"):
            raise DefinitionError(
                f"a task's name must not begin with #, as those of asyncsched's own do: {name!r}"
            )
        self.timeout = None if timeout is None else to_seconds(timeout, "timeout", positive=True)
        if retry is not None and not isinstance(retry, Retry):
            raise DefinitionError(f"retry must be a Retry, such as Retry(max_attempts=3), not {retry!r}")
        self.retry = retry
        self.executor: Executor = _executor_of(function, executor)
        if lifespan is not None and not callable(lifespan):
            raise DefinitionError(
                f"lifespan must be a function that makes an async context manager, not {lifespan!r}"
            )
        self.lifespan = lifespan
        #: How many runs of it may be under way, and how many may start in which time, over all instances.
        self.max_concurrency = (
            None if max_concurrency is None else check_limit(max_concurrency, "max_concurrency")
        )
        self.rate_limit = rate_limit
        if rate_limit is not None:
            parse_rate(rate_limit)
        self.is_limited = max_concurrency is not None or rate_limit is not None
        self.signature = _Signature(function, name)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """A task that is defined in a class binds as its function would."""
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call:
        """This call, checked against the signature, to be given to ``add_job``."""
        self.signature.check(args, kwargs)
        return Call(self, args, kwargs, {})

    def options(self, **policies: Any) -> Options[P]:
        """Policies (queue=, delay=, id=, priority=, ...) for calls bound through what this returns."""
        return Options(self, policies)


AnyTask = Task[..., Any]


class Options(Generic[P]):
    """A task together with policies; ``bind`` makes calls that carry them."""

    def __init__(self, task: Task[P, Any], policies: Mapping[str, Any]) -> None:
        self.task = task
        self.policies = dict(policies)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call:
        """As Task.bind, with the policies."""
        self.task.signature.check(args, kwargs)
        return Call(self.task, args, kwargs, self.policies)

    def options(self, **policies: Any) -> Options[P]:
        """These policies with others added."""
        return Options(self.task, {**self.policies, **policies})


class Call(msgspec.Struct, frozen=True):
    """A task, the arguments for one call of it, and policies. Made by ``task.bind`` and ``task.options(...).bind``."""

    task: Task[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    policies: Mapping[str, Any]


class Registry:
    """The tasks of one scheduler by name; reading it from outside goes through ``tasks``."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[..., Any]] = {}
        self._by_function: dict[Any, Task[..., Any]] = {}
        self.tasks: Mapping[str, Task[..., Any]] = MappingProxyType(self._tasks)

    def add(self, task: Task[..., Any]) -> None:
        """Register; a taken name raises ConflictingTaskError."""
        known = self._tasks.get(task.name)
        if known is not None and known.function is not task.function:
            raise ConflictingTaskError(
                f"the task name {task.name!r} is taken by {known.function!r}; give one of them name=",
                task=task.name,
            )
        self._tasks[task.name] = task
        self._by_function[_identity(task.function)] = task

    def remove(self, name: str) -> None:
        """Forget; an unknown name raises UnknownTaskError."""
        task = self.find(name)
        del self._tasks[name]
        self._by_function.pop(_identity(task.function), None)

    def find(self, name: str) -> Task[..., Any]:
        """The task of that name; raises UnknownTaskError."""
        task = self._tasks.get(name)
        if task is None:
            known = ", ".join(sorted(self._tasks)[:10]) or "none"
            raise UnknownTaskError(
                f"no task is registered as {name!r}; register the function, or correct the name (known: {known})",
                task=name,
            )
        return task

    def of_function(self, function: Callable[..., Any]) -> Task[..., Any] | None:
        """The task that was made of *function*, if any."""
        return self._by_function.get(_identity(function))


def task_name(function: Callable[..., Any]) -> str:
    """``module:qualname``."""
    module = getattr(function, "__module__", None) or "unknown"
    qualname = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}:{qualname}"


def check_lasting(function: Callable[..., Any], store: str, job_id: str | None = None) -> None:
    """Refuse what has no name by which another process could find it again; *job_id* is the job that is to call it."""
    problem = _why_fleeting(function)
    if problem is not None:
        raise TransientJobError(
            f"{task_name(function)} is {problem}, and the store {store!r} outlives this process: define a function at module "
            f"level, or register it under a name (scheduler.register(fn, name='...'))",
            job_id=job_id,
            store=store,
            task=task_name(function),
        )


def _why_fleeting(function: Callable[..., Any]) -> str | None:
    """What kind of function it is, if one that only this process can find."""
    if isinstance(function, functools.partial):
        return "a partial"
    if not isinstance(getattr(function, "__self__", None), types.ModuleType | None):
        return "a bound method"
    if getattr(function, "__name__", None) == "<lambda>":
        return "a lambda"
    if "<locals>" in getattr(function, "__qualname__", "<locals>"):
        return "a local function"
    return None


def _identity(function: Any) -> Any:
    """Bound methods are made anew at each access: they are the same by what they bind."""
    return (function.__func__, id(function.__self__)) if inspect.ismethod(function) else id(function)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling *function* gives an awaitable."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def refuse_generator(function: Callable[..., Any]) -> None:
    """Raise DefinitionError for what runs nothing when it is called."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    calls = (inner, type(inner).__call__)
    if any(inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call) for call in calls):
        raise DefinitionError(
            f"{task_name(function)} is a generator function, and to call it runs nothing of it: leave out 'yield', or register "
            "a function that goes through it"
        )


def _executor_of(function: Callable[..., Any], executor: Executor | None) -> Executor:
    if executor not in (None, "async", "thread", "process"):
        raise DefinitionError(f'executor must be "async", "thread" or "process", not {executor!r}')
    refuse_generator(function)
    if is_async(function):
        if executor in ("thread", "process"):
            raise DefinitionError(
                f"{task_name(function)} is a coroutine function; its executor is 'async', not {executor!r}"
            )
        return "async"
    if executor == "async":
        raise DefinitionError(
            f"{task_name(function)} is not a coroutine function: write 'async def', or choose executor='thread' or 'process'"
        )
    if executor == "process" and (problem := _why_fleeting(function)) is not None:
        raise DefinitionError(
            f"{task_name(function)} is {problem}, which a worker process cannot find again: define a function at module level"
        )
    return executor or "thread"


class _Signature:
    """What a task accepts. The shape of a call (how many positions, which names) is checked once and remembered."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._name = name
        try:
            self._signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):
            self._signature = None
        self._hints = _hints_of(function)
        for parameter in self._signature.parameters.values() if self._signature else ():
            if parameter.default is None and parameter.name in self._hints:
                self._hints[parameter.name] |= None
        self._shapes: dict[tuple[int, tuple[str, ...]], list[tuple[int | str, Any]] | DefinitionError] = {}

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise DefinitionError for arguments that the function does not accept, or of types that it does not declare."""
        for at, hint in self._checks(args, kwargs):
            value = args[at] if isinstance(at, int) else kwargs[at]
            if type(value) is not hint:
                path = f"args[{at}]" if isinstance(at, int) else f"kwargs.{at}"
                self._convert(value, hint, path)

    def fit(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Stored arguments as the annotations want them; raises SerializationError where they do not fit any more."""
        checks = self._checks(args, kwargs)
        if not checks:
            return args, kwargs
        fitted, named = list(args), dict(kwargs)
        for at, hint in checks:
            if isinstance(at, int):
                if type(fitted[at]) is not hint:
                    fitted[at] = self._convert(fitted[at], hint, f"args[{at}]")
            elif type(named[at]) is not hint:
                named[at] = self._convert(named[at], hint, f"kwargs.{at}")
        return tuple(fitted), named

    def _checks(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[int | str, Any]]:
        shape = (len(args), tuple(kwargs))
        checks = self._shapes.get(shape)
        if checks is None:
            if len(self._shapes) > 256:
                self._shapes.clear()
            checks = self._shapes[shape] = self._shape(args, kwargs)
        if isinstance(checks, DefinitionError):
            raise DefinitionError(str(checks), task=self._name)
        return checks

    def _shape(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[tuple[int | str, Any]] | DefinitionError:
        if self._signature is None:
            return []
        places: dict[str, Any] = {}
        try:
            bound = self._signature.bind(*range(len(args)), **{name: name for name in kwargs})
        except TypeError as error:
            return DefinitionError(f"these arguments do not fit {self._name}{self._signature}: {error}")
        for name, place in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                places |= {str(at): (at, name) for at in place}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                places |= {key: (key, name) for key in place}
            else:
                places[name] = (place, name)
        return [(at, self._hints[name]) for at, name in places.values() if name in self._hints]

    def _convert(self, value: Any, hint: Any, path: str) -> Any:
        try:
            return msgspec.convert(value, hint, dec_hook=_of_class)
        except msgspec.ValidationError as error:
            raise SerializationError(
                f"{path} of {self._name} does not fit its annotation {_shown(hint)}: {error}", task=self._name
            ) from error
        except (TypeError, RecursionError):
            return value


def _of_class(kind: type, value: Any) -> Any:
    """Classes that msgspec does not know are compared by isinstance."""
    try:
        fits = isinstance(value, kind)
    except TypeError:
        return value
    if fits:
        return value
    raise ValueError(f"expected {_shown(kind)}, got {type(value).__qualname__}")


def _shown(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) else str(hint)


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations that say something, by parameter; those that cannot be resolved say nothing."""
    while isinstance(function, functools.partial):
        function = function.func
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        hints = typing.get_type_hints(target)
    except Exception:
        return {}
    return {
        name: hint for name, hint in hints.items() if name != "return" and hint is not Any and _is_known(hint)
    }


def _is_known(hint: Any) -> bool:
    """Whether msgspec can check values against *hint*."""
    try:
        msgspec.convert(None, hint, dec_hook=_of_class)
    except msgspec.ValidationError:
        return True
    except Exception:
        return False
    return True
