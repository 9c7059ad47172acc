"""Triggers: frozen values that name fire times. Pure: no I/O, no clock."""

from __future__ import annotations

from asyncsched.errors import TriggerError
from asyncsched.triggers.base import Passed, Trigger
from asyncsched.triggers.cron import Cron, cron
from asyncsched.triggers.interval import Every, every
from asyncsched.triggers.once import Manual, Once, manual, once

__all__ = [
    "AnyTrigger",
    "Cron",
    "Every",
    "Manual",
    "Once",
    "Passed",
    "Trigger",
    "cron",
    "every",
    "manual",
    "once",
    "parse_trigger",
]

#: Every trigger that can be stored.
AnyTrigger = Once | Every | Cron | Manual


def parse_trigger(text: str) -> AnyTrigger:
    """The trigger that a string stands for: a cron expression, a macro such as ``@daily``, ``@every 5m``, ``@manual``."""
    stripped = text.strip()
    if stripped.lower().startswith("@every "):
        return every(stripped[len("@every ") :].strip())
    if stripped.lower() == "@manual":
        return manual()
    if not stripped:
        raise TriggerError("an empty string is no trigger; write a cron expression, a macro or '@every 5m'")
    return cron(stripped)
