"""How an instance and its stores are, in values that are ready for a health check over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

__all__ = ["StoreSummary", "Summary"]


class StoreSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How one store is, and what is in it. Durations are seconds; counts of jobs stop at 100."""

    #: Its alias.
    name: str
    #: Whether it answered in time; if not, the rest is not known.
    is_reached: bool
    #: The class of the error, without its message: that may tell more than a health check should.
    error: str | None = None
    #: For how long the first of what is due has been so.
    lag: float = 0.0
    #: Its clock less this host's, and to how much that is known.
    skew: float = 0.0
    skew_error: float = 0.0
    #: Instances that are alive, clients included, and how many of them run jobs.
    instances: int = 0
    workers: int = 0
    #: Runs under way in all of them, as of their last heartbeats.
    running: int = 0
    #: Jobs, at most 100 of each.
    overdue: int = 0
    quarantined: int = 0
    failed: int = 0

    @property
    def unhealthy(self) -> int:
        """Overdue, quarantined and failed jobs together. Those that fail and go on are known to ``monitor.health()``."""
        return self.overdue + self.quarantined + self.failed


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """How an instance is, as ``monitor.summary()`` found it."""

    #: Whether it is ready: it takes calls, and its stores answer.
    ok: bool
    #: What is amiss, in a sentence each; empty if it is ok.
    problems: tuple[str, ...]
    #: Of the scheduler: running, paused, ...
    state: str
    instance: str
    #: Of asyncsched.
    version: str
    at: datetime
    stores: tuple[StoreSummary, ...] = ()

    @property
    def unhealthy(self) -> int:
        """Overdue, quarantined and failed jobs, at most 100 of each and store."""
        return sum(store.unhealthy for store in self.stores)

    def as_dict(self) -> dict[str, Any]:
        """Of values that any JSON encoder takes. There are no addresses, arguments, errors' messages or secrets in it."""
        shown: dict[str, Any] = msgspec.to_builtins(self)
        shown["unhealthy"] = self.unhealthy
        return shown
