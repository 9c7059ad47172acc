"""Waiting for what must happen, bounded in time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

__all__ = ["eventually"]


async def eventually(
    condition: Callable[[], object | Awaitable[object]], timeout: float = 60.0, what: str = ""
) -> None:
    """Return once *condition* holds; fails after *timeout* real seconds. For what other threads and processes do."""
    try:
        async with asyncio.timeout(timeout):
            while not await _holds(condition):  # noqa: ASYNC110 - no event tells of another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what or 'the condition'} did not come true within {timeout:g} s") from None


async def _holds(condition: Callable[[], object | Awaitable[object]]) -> object:
    answer = condition()
    return await answer if inspect.isawaitable(answer) else answer
