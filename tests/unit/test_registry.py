"""What a task accepts: signatures and annotations of every kind of function."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from asyncsched import DefinitionError, Scheduler, SerializationError, Task


class Opaque:
    """A class that no serializer knows."""


async def plain(a: int, b: str = "x") -> None: ...
async def positional(a: int, /, b: int = 0) -> None: ...
async def named(*, a: int) -> None: ...
async def rest(*args: int, **kwargs: str) -> None: ...
async def lax(a, b=None): ...  # type: ignore[no-untyped-def]  # that is what is tested
async def optional(a: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013
async def unresolvable(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def opaque(a: Opaque) -> None: ...
async def odd(a: "lambda: 0") -> None: ...  # type: ignore[valid-type]  # that is what is tested


class Callable_:
    async def __call__(self, a: int) -> None: ...


def task(function: Callable[..., Any]) -> Task[..., Any]:
    return Scheduler().register(function, name="t")


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (plain, (1,), {}),
        (plain, (1, "y"), {}),
        (plain, (), {"b": "y", "a": 1}),
        (positional, (1,), {"b": 2}),
        (named, (), {"a": 1}),
        (rest, (1, 2, 3), {"x": "y"}),
        (rest, (), {}),
        (lax, (object(), object()), {}),
        (optional, (None,), {}),
        (optional, (), {}),
        (unresolvable, (1,), {}),
        (opaque, (Opaque(),), {}),
        (odd, (1,), {}),
        (Callable_(), (1,), {}),
        (functools.partial(plain, 1), ("y",), {}),
        (print, (1, 2), {"sep": ""}),
        (dict.fromkeys, ([1],), {}),
        (max, (1, 2), {}),
    ],
)
def test_a_call_that_fits_is_bound(function: Any, args: Any, kwargs: Any) -> None:
    call = task(function).bind(*args, **kwargs)
    assert (call.args, call.kwargs) == (args, kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (plain, (), {}),
        (plain, (1, "y", 2), {}),
        (plain, (1,), {"a": 2}),
        (plain, (1,), {"c": 2}),
        (positional, (), {"a": 1}),
        (named, (1,), {}),
        (functools.partial(plain, 1), ("y", "z"), {}),
        (Callable_(), (), {}),
        (Callable_(), (1, 2), {}),
    ],
)
def test_a_call_that_does_not_fit_is_refused_with_the_signature(
    function: Any, args: Any, kwargs: Any
) -> None:
    with pytest.raises(DefinitionError, match=r"t\(.*a") as caught:
        task(function).bind(*args, **kwargs)
    assert caught.value.task == "t"


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "path"),
    [
        (plain, ("1",), {}, r"args\[0\]"),
        (plain, (1, 2), {}, r"args\[1\]"),
        (plain, (1,), {"b": 2}, r"kwargs\.b"),
        (rest, (1, "2"), {}, r"args\[1\]"),
        (rest, (), {"x": 1}, r"kwargs\.x"),
        (optional, ("x",), {}, r"args\[0\]"),
        (opaque, (5,), {}, r"args\[0\]"),
        (Callable_(), ("1",), {}, r"args\[0\]"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_path_to_it(
    function: Any, args: Any, kwargs: Any, path: str
) -> None:
    with pytest.raises(SerializationError, match=path) as caught:
        task(function).bind(*args, **kwargs)
    assert caught.value.task == "t"


def test_many_shapes_of_calls_are_checked_all_the_same() -> None:
    """The shapes that are remembered are bounded; what was forgotten is worked out again."""
    some = task(rest)
    for n in range(600):
        some.bind(**{f"k{n}": "x"})
    with pytest.raises(SerializationError):
        some.bind(k0=5)


def test_a_refusal_is_the_same_each_time() -> None:
    some = task(plain)
    for _ in range(2):
        with pytest.raises(DefinitionError, match="missing"):
            some.bind()
