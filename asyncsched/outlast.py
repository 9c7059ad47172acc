"""Waiting that cancellation does not end at once, for work that must not be left half done; and that it ends for certain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["ENOUGH_S", "heeding", "to_its_end"]

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


async def _outlast(task: asyncio.Task[None]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.call_later(ENOUGH_S, task.cancel)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    deadline.cancel()


async def heeding(call: Awaitable[T]) -> T:
    """What *call* gives or raises, unless it was cancelled meanwhile: drivers lose a cancellation now and then (``wait_for`` of
    Python 3.11 does where it races with an answer), and whoever goes on in a loop would never hear of it again."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        answer = await call
    except Exception:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from None
        raise
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return answer
