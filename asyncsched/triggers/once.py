"""One fire time, and none."""

from __future__ import annotations

from datetime import datetime

from asyncsched.errors import TriggerError
from asyncsched.triggers.base import Passed, Trigger
from asyncsched.triggers.words import compact_duration, plural
from asyncsched.units import LATEST, Duration, to_datetime, to_instant, to_seconds

__all__ = ["Manual", "Once", "manual", "once"]


class Once(Trigger, frozen=True, array_like=True, gc=False, tag="once"):
    """One fire time: an instant, or a delay that begins when the job is added."""

    at: float | None = None
    delay: float | None = None

    def bind(self, now: float, id: str = "") -> Once:
        if self.at is not None:
            return self
        at = now + (self.delay or 0.0)
        if at > LATEST:
            raise TriggerError(f"{self} lies beyond the year 9999: no calendar reaches that far")
        return Once(at, self.delay)

    def unbound(self) -> Once:
        return self if self.delay is None else Once(None, self.delay)

    def next(self, after: float) -> float | None:
        return self.at if self.at is not None and self.at > after else None

    def first(self, now: float) -> float | None:
        """Its instant, though that may be past: a job for a past time is late, not lost."""
        return self.at if self.at is not None else now + (self.delay or 0.0)

    def previous(self, until: float) -> float | None:
        return self.at if self.at is not None and self.at <= until else None

    @property
    def recurs(self) -> bool:
        return False

    def describe(self) -> str:
        if self.delay is not None:
            after = plural(round(self.delay * 1e6))
            return f"once, {after} after it was added" if self.delay else "once, when it was added"
        return "once" if self.at is None else f"once, at {self.at_text(' ')} UTC"

    def at_text(self, separator: str = "T") -> str:
        """The instant as ISO 8601, in UTC and without saying so."""
        return to_datetime(self.at or 0.0).replace(tzinfo=None).isoformat(separator)

    def __str__(self) -> str:
        if self.delay is not None:
            return f"once after {compact_duration(round(self.delay * 1e6))}"
        return "once" if self.at is None else f"once at {self.at_text()}+00:00"


class Manual(Trigger, frozen=True, array_like=True, gc=False, tag="manual"):
    """Never fires by itself; the job stays and runs when it is told to."""

    def next(self, after: float) -> float | None:
        return None

    def previous(self, until: float) -> float | None:
        return None

    def passed(self, after: float, until: float) -> Passed:
        return Passed(0, None, None)

    def describe(self) -> str:
        return "only when it is told to"

    def __str__(self) -> str:
        return "@manual"


def once(at: datetime | None = None, *, delay: Duration | None = None) -> Once:
    """Fire once: at the aware datetime *at*, or *delay* (seconds or timedelta) after the job was added.

    Without either it is due now. A time that is past is due at once.
    """
    if at is not None and delay is not None:
        raise TriggerError("once() takes at= or delay=, not both")
    if delay is not None:
        return Once(None, to_seconds(delay, "delay"))
    return Once(None, 0.0) if at is None else Once(to_instant(at, "at"))


def manual() -> Manual:
    """Never fire by itself; ``run_job`` runs it."""
    return Manual()
