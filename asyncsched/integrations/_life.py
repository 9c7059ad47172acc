"""What the frameworks have in common: a scheduler that lives as long as the application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncsched import NoScheduler, Scheduler
from asyncsched.units import Duration, to_seconds

__all__ = ["NO_CACHE", "Check", "given", "started"]

#: What a health check says is out of date at once.
NO_CACHE = {"Cache-Control": "no-store"}


@asynccontextmanager
async def started(scheduler: Scheduler, drain_s: float) -> AsyncIterator[None]:
    """*scheduler* runs inside of the block; its runs then have *drain_s* seconds to end, and none if the block is cancelled."""
    await scheduler.start()
    try:
        yield
    except asyncio.CancelledError:
        drain_s = 0.0
        raise
    finally:
        if scheduler.state != "stopped":
            await scheduler.stop(drain_s)


def given(found: object, remedy: str) -> Scheduler:
    """What was *found* where an application keeps its scheduler; raises NoScheduler with the *remedy* if that is none."""
    if not isinstance(found, Scheduler):
        raise NoScheduler(f"no scheduler is attached to this application: {remedy}")
    return found


class Check:
    """What a health check of a scheduler answers; its options are checked when it is made."""

    def __init__(self, live: bool, details: bool, timeout: Duration, max_lag: Duration | None) -> None:
        self._live = live
        self._details = details
        self._timeout_s = to_seconds(timeout, "timeout", positive=True)
        self._max_lag_s = None if max_lag is None else to_seconds(max_lag, "max_lag")

    async def answer(self, scheduler: Scheduler) -> tuple[int, dict[str, Any]]:
        """The status of HTTP, and the JSON."""
        if self._live:
            return 200, {"ok": True}
        summary = await scheduler.monitor.summary(timeout=self._timeout_s, max_lag=self._max_lag_s)
        return (200 if summary.ok else 503), summary.as_dict() if self._details else {"ok": summary.ok}
