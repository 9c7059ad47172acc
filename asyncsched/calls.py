"""Calls of users' functions: in threads, in other processes, and what is written down when they fail."""

from __future__ import annotations

import functools
import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from asyncsched.registry import Task

__all__ = ["call_reference", "reference_of", "storable", "text_of", "traceback_of", "without_stop"]

T = TypeVar("T")

_MAX_TRACEBACK = 16_000
_MAX_ERROR = 2_000


def text_of(error: BaseException) -> str:
    """Its class and its text, bounded."""
    try:
        text = str(error)
    except Exception:
        text = "<its str() failed>"
    return storable(f"{type(error).__name__}: {text}"[:_MAX_ERROR] if text else type(error).__name__)


def storable(text: str) -> str:
    """*text* without what no encoding has: half a surrogate pair, as file names that are not UTF-8 have them."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def traceback_of(error: BaseException) -> str:
    """Bounded: the beginning and the end, which say what was called and what went wrong."""
    try:
        text = storable("".join(traceback.format_exception(error)))
    except Exception:
        text = f"{type(error).__name__}: <its traceback cannot be shown>"
    if len(text) <= _MAX_TRACEBACK:
        return text
    half = _MAX_TRACEBACK // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def without_stop(call: Callable[[], T]) -> T:
    """What *call* gives. A StopIteration cannot be the end of a future: whoever waits for it would wait for ever."""
    try:
        return call()
    except StopIteration as error:
        raise RuntimeError("the task raised StopIteration") from error


def reference_of(function: Callable[..., Any]) -> tuple[str, str]:
    """The module and the qualified name by which another process finds *function* again."""
    while isinstance(function, functools.partial):
        function = function.func
    return function.__module__, function.__qualname__


def call_reference(reference: tuple[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run in the worker process: find the function again, under its registered name's module, and call it."""
    module_name, qualname = reference
    found: Any = sys.modules.get(module_name) or importlib.import_module(module_name)
    for part in qualname.split("."):
        found = getattr(found, part)
    function = found.function if isinstance(found, Task) else found
    return without_stop(functools.partial(function, *args, **kwargs))
