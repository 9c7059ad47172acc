"""Waiting that cancellation does not end at once, for work that must not be left half done; and that it ends for certain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

__all__ = ["ENOUGH_S", "cancellations", "gone_astray", "heeding", "to_its_end"]

T = TypeVar("T")

#: What a cancelled caller waits for has so long.
ENOUGH_S = 30.0


async def to_its_end(task: asyncio.Task[None], hurry: Callable[[], None] = lambda: None) -> None:
    """Wait for *task*; once that is cancelled *hurry*, and wait on, bounded, however often it is cancelled: *task* must not be
    left half done."""
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        hurry()
        await _outlast(task)
        raise


async def _outlast(task: asyncio.Future[Any]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.call_later(ENOUGH_S, task.cancel)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    deadline.cancel()


async def heeding(call: Awaitable[T]) -> T:
    """What *call* gives or raises, in a task of its own, so that cancelling whoever waits ends the wait for certain: drivers lose
    a cancellation now and then (``wait_for`` of Python 3.11 does where it races with an answer), and whoever goes on in a loop
    would never hear of it again. How often a task was cancelled does not tell: before Python 3.13 each TaskGroup that fails
    adds to it. A *call* that somebody else cancels raises RuntimeError."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(call)
    over = loop.create_future()
    task.add_done_callback(lambda _: None if over.done() else over.set_result(None))
    try:
        await over
    except asyncio.CancelledError:
        task.cancel()
        await _outlast(task)
        if not task.cancelled():
            task.exception()  # It is nobody's any more.
        raise
    if task.cancelled():
        raise gone_astray()
    return task.result()


def gone_astray() -> RuntimeError:
    """What a call comes to that ends as cancelled, when nobody has cancelled whoever waits for it."""
    return RuntimeError("a call was cancelled, though not by whoever waited for it")


def cancellations() -> int:
    """How often the current task was cancelled so far, as a mark to compare with: of itself the number tells nothing, see
    ``heeding``."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
