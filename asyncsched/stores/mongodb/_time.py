"""The server's clock, as far as it must be known here before a command is sent."""

from __future__ import annotations

from collections.abc import Callable

from asyncsched.clock import SystemClock
from asyncsched.stores.mongodb._documents import NOW_US, SERVER_NOW
from asyncsched.stores.mongodb._server import Document

__all__ = ["ServerTime"]

_monotonic = SystemClock.monotonic


class ServerTime:
    """What looks for due jobs goes by an estimate, which is anchored to the server's clock by every answer that tells it, and is
    late rather than early; what takes one and what writes an instant goes by the server's clock itself, within the command."""

    def __init__(self) -> None:
        #: What replaces the server's clock.
        self.given: Callable[[], float] | None = None
        #: By how much the namespace's fences are ahead of the server's clock, in microseconds.
        self.lead_us = 0
        self._ahead_s = 0.0

    def anchor(self, milliseconds: int) -> float:
        """The server's clock was at so many milliseconds when it answered just now; return the instant to go by."""
        self._ahead_s = milliseconds / 1000 - _monotonic()
        return self.estimate()

    def estimate(self) -> float:
        return _monotonic() + self._ahead_s if self.given is None else self.given()

    def expression(self) -> Document:
        """The clock, for a command."""
        return SERVER_NOW if self.given is None else {"$literal": self.given()}

    # -- fences ----------------------------------------------------------------------------------------------------------

    def fence(self) -> Document:
        """What the next fence is at the least, for a command: the server's own clock, and the lead."""
        return {"$add": [NOW_US, self.lead_us]} if self.lead_us else NOW_US

    def lead_for(self, fence: int) -> int:
        """The lead with which every fence from now on is higher than *fence*."""
        return max(0, fence + 1 - int((_monotonic() + self._ahead_s) * 1e6))
