"""Resources that live as long as the scheduler: each is entered and left in one task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from asyncsched.outlast import ENOUGH_S

__all__ = ["Lifespans"]


class Lifespans:
    """Async context managers by key, entered once each and left together, the last one first.

    A task of its own holds each, since a context manager that holds a cancel scope or a task group must be left by the task
    that entered it.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[asyncio.Task[None], asyncio.Future[Any], asyncio.Event]] = {}

    async def enter(self, key: str, make: Callable[[], AbstractAsyncContextManager[Any]]) -> Any:
        """What the context manager gave; it is entered by the first who asks, and the others wait for that.

        Raises what entering raised; the next one who asks tries again.
        """
        held = self._held.get(key)
        if held is None or (held[1].done() and held[1].exception() is not None):
            # Or that failed when nobody waited for it any more.
            ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            leave = asyncio.Event()
            task = asyncio.get_running_loop().create_task(
                _hold(make, ready, leave), name=f"asyncsched-lifespan-{key}"
            )
            held = self._held[key] = (task, ready, leave)
        try:
            return await asyncio.shield(held[1])
        except BaseException:
            if held[1].done() and held[1].exception() is not None and self._held.get(key) is held:
                del self._held[key]
            raise

    async def leave(self) -> list[BaseException]:
        """Leave them all, and enter none any more; return what went wrong on the way."""
        errors: list[BaseException] = []
        while self._held:
            key, (task, ready, leave) = self._held.popitem()
            leave.set()
            if not ready.done():
                # Nobody waits for it.
                task.cancel()
            await asyncio.wait([task], timeout=ENOUGH_S)
            if not task.done():
                errors.append(TimeoutError(f"lifespan {key!r} was not left within {ENOUGH_S:g} s"))
                task.cancel()
                await asyncio.wait([task], timeout=1.0)
            elif task.cancelled():
                errors.append(asyncio.CancelledError())
            elif (error := task.exception()) is not None:
                errors.append(error)
        return errors


async def _hold(
    make: Callable[[], AbstractAsyncContextManager[Any]], ready: asyncio.Future[Any], leave: asyncio.Event
) -> None:
    try:
        manager = make()
        value = await manager.__aenter__()
    except BaseException as error:
        if not ready.done():
            if isinstance(error, StopIteration):
                # It cannot be the end of a future: whoever waits for that would wait for ever.
                error = RuntimeError("the lifespan raised StopIteration")
            ready.set_exception(error)
            ready.exception()
        return
    if not ready.done():
        ready.set_result(value)
    await leave.wait()
    await manager.__aexit__(None, None, None)
