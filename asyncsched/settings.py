"""What a scheduler was made with, and how its workers behave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncsched.contract import JobStore
from asyncsched.currentrun import Middleware
from asyncsched.errors import DefinitionError
from asyncsched.health import HealthRule
from asyncsched.model import Retention, Retry
from asyncsched.specs import policies_from
from asyncsched.units import to_seconds

__all__ = ["Options", "Settings", "poll_of"]

_DURATIONS = ("timeout", "cancel_grace", "abandon_after", "misfire_grace")


@dataclass(slots=True, kw_only=True)
class Options:
    """What a scheduler was made with, checked; seconds throughout."""

    concurrency: int
    queues: Mapping[str, int | None]
    lease_s: float
    lookahead_s: float | None
    poll_s: float | None
    poll_jitter: float
    #: None: this instance keeps no record of itself.
    heartbeat_s: float | None
    health: HealthRule
    store_retry: Retry
    retention: Retention
    keeps_history: bool
    defaults: Mapping[str, Any]
    middleware: Sequence[Middleware]
    revision: int | None = None

    def __post_init__(self) -> None:
        if type(self.concurrency) is not int or self.concurrency < 1:
            raise DefinitionError(f"concurrency must be 1 or more, not {self.concurrency!r}")
        if not 0 <= self.poll_jitter < 1:
            raise DefinitionError(f"poll_jitter must lie between 0 and 1, not {self.poll_jitter!r}")
        checked = policies_from(self.defaults)
        if checked.jitter is not None:
            self.defaults = {**self.defaults, "jitter": checked.jitter}
        self.defaults = {
            name: to_seconds(value, name) if name in _DURATIONS and value is not None else value
            for name, value in self.defaults.items()
        }


@dataclass(slots=True, kw_only=True)
class Settings:
    """How a worker behaves; seconds throughout."""

    lease_s: float
    lookahead_s: float
    #: Claims and settlements that nobody waits for are so far apart, or a share of it; at most the lookahead.
    pace_s: float
    poll_s: float
    poll_jitter: float
    retry: Retry
    keeps_history: bool
    #: From when on a job is unhealthy.
    health: HealthRule


def poll_of(store: JobStore) -> float:
    """Seconds between looks at a store that says nothing; one that lives here tells everything, so only clocks matter."""
    if not store.capabilities.shared:
        return 30.0
    return 5.0 if store.capabilities.push_hints else 1.35
