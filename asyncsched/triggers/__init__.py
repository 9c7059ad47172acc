"""Triggers: frozen values that name fire times. Pure: no I/O, no clock."""

from __future__ import annotations

from asyncsched.triggers.base import Omitted, Passed, Trigger
from asyncsched.triggers.calendar import Calendar, calendar
from asyncsched.triggers.combine import AllOf, AnyOf, AnyTrigger, Excluding, Within, all_of, any_of, excluding
from asyncsched.triggers.cron import Cron, cron
from asyncsched.triggers.interval import Every, every
from asyncsched.triggers.once import Manual, Once, manual, once
from asyncsched.triggers.parsing import parse_trigger

__all__ = [
    "AllOf",
    "AnyOf",
    "AnyTrigger",
    "Calendar",
    "Cron",
    "Every",
    "Excluding",
    "Manual",
    "Omitted",
    "Once",
    "Passed",
    "Trigger",
    "Within",
    "all_of",
    "any_of",
    "calendar",
    "cron",
    "every",
    "excluding",
    "manual",
    "once",
    "parse_trigger",
]
