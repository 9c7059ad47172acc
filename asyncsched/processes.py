"""Worker processes: one for each run that asks for one, kept for the next, killed with a run that is cancelled."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_process
from anyio.lowlevel import checkpoint

__all__ = ["ProcessPool"]

T = TypeVar("T")


class ProcessPool:
    """anyio's worker processes, as many as the scheduler has slots, with an end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._limiter: anyio.CapacityLimiter | None = None
        self._busy = 0
        #: Processes that are alive, busy or idle.
        self._alive = 0

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call *function* in a process, which is killed if this is cancelled."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._size)
        self._busy += 1
        self._alive = max(self._alive, self._busy)
        try:
            return await anyio.to_process.run_sync(function, *args, cancellable=True, limiter=self._limiter)
        except (anyio.get_cancelled_exc_class(), anyio.BrokenWorkerProcess):
            self._alive -= 1
            raise
        finally:
            self._busy -= 1

    async def close(self) -> None:
        """End the idle processes. anyio keeps them until the event loop ends and has no call for this: each is told to exit."""
        for _ in range(self._alive):
            try:
                await anyio.to_process.run_sync(os._exit, 0, cancellable=True, limiter=self._limiter)
            except anyio.BrokenWorkerProcess:
                await checkpoint()
        self._alive = 0
        self._limiter = None
