"""Now, and waiting until then: the only module that reads the time.

Wall-clock instants are UTC seconds since 1970 (float); elapsed time is measured on the monotonic clock, so that a wall
clock that is set forwards or backwards changes no timeout and no lease.
"""

from __future__ import annotations

import asyncio
import time as _time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "SystemClock", "Timer", "host_time", "uptime"]

host_time = _time.time
#: Linux's monotonic clock stands still while the machine sleeps, and this one does not; macOS has both under other names.
_UPTIME = getattr(_time, "CLOCK_BOOTTIME", getattr(_time, "CLOCK_MONOTONIC", None))


def uptime() -> float:
    """Elapsed time that goes on while the machine sleeps, where its system tells that."""
    return _time.monotonic() if _UPTIME is None else _time.clock_gettime(_UPTIME)


class Timer(Protocol):
    """A pending callback."""

    def cancel(self) -> None:
        """Forget the callback; harmless when it has already run."""
        ...


class Clock(Protocol):
    """What tells the time and wakes things up. Tests put a manual one in its place."""

    def time(self) -> float:
        """The wall clock: UTC seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed instant; never goes back."""
        ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* in the running loop once ``monotonic()`` has reached *when*; never earlier."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Return once *delay_s* seconds have passed."""
        ...


class SystemClock:
    """The host's clocks and the running event loop's timers."""

    time = staticmethod(_time.time)
    monotonic = staticmethod(_time.monotonic)

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(when - _time.monotonic(), callback)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
