"""Triggers from their strings; what ``str()`` of one gives is read back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from asyncsched.errors import TriggerError
from asyncsched.triggers.base import Trigger
from asyncsched.triggers.calendar import parse_calendar
from asyncsched.triggers.combine import AnyTrigger, all_of, any_of, excluding
from asyncsched.triggers.cron import cron
from asyncsched.triggers.interval import Every, every
from asyncsched.triggers.once import Once, manual, once
from asyncsched.triggers.options import read_instant, split_options
from asyncsched.units import parse_duration

__all__ = ["parse_trigger"]

_MAX_LENGTH = 10_000
_MAX_DEPTH = 10
_EVERY_OPTIONS = ("anchor", "start", "end", "after")


def parse_trigger(text: str) -> AnyTrigger:
    """The trigger that a string stands for: a cron expression, a macro such as ``@daily``, ``@every 5m``, ``@manual``.

    What ``str()`` of a trigger gives is understood too.
    """
    if not isinstance(text, str):
        raise TriggerError(f"a trigger's string is a string, not {text!r}")
    if len(text) > _MAX_LENGTH:
        raise TriggerError(
            f"a trigger's string has at most {_MAX_LENGTH:,} characters; this one has {len(text):,}"
        )
    return _parse(text, _MAX_DEPTH)


def _parse(text: str, depth: int) -> AnyTrigger:
    stripped = text.strip()
    if not stripped:
        raise TriggerError("an empty string is no trigger; write a cron expression, a macro or '@every 5m'")
    lowered = stripped.lower()
    if lowered == "@manual":
        return manual()
    if lowered.startswith("@calendar "):
        return parse_calendar(stripped[len("@calendar ") :])
    if lowered == "once" or lowered.startswith("once "):
        return _parse_once(stripped)
    for name, make in _COMBINED.items():
        if lowered.startswith(f"{name}("):
            if not lowered.endswith(")") or depth == 0:
                raise TriggerError(
                    f"{stripped!r} is not understood: it is not closed, or more than {_MAX_DEPTH} deep"
                )
            return make([part.strip() for part in _parts(stripped[len(name) + 1 : -1])], depth - 1)
    if "@every " in lowered:
        return _parse_every(stripped)
    return cron(stripped)


def _parse_once(text: str) -> Once:
    words = text.split()
    if len(words) == 1:
        return Once()
    if len(words) == 3 and words[1] == "at":
        return once(read_instant(words[2], "at"))
    if len(words) == 3 and words[1] == "after":
        return once(delay=0 if words[2] == "0s" else parse_duration(words[2], "delay"))
    raise TriggerError(f"{text!r} is not understood; write 'once at 2026-01-31T09:00:00Z' or 'once after 5m'")


def _parse_every(text: str) -> Every:
    options, rest = split_options(text, _EVERY_OPTIONS)
    words = rest.split()
    if len(words) != 2 or words[0].lower() != "@every":
        raise TriggerError(f"{text!r} is not understood; write '@every 5m'")
    return every(
        words[1],
        anchor=read_instant(options.get("anchor"), "anchor"),
        start=read_instant(options.get("start"), "start"),
        end=read_instant(options.get("end"), "end"),
        after=options.get("after", "start"),  # type: ignore[arg-type]  # every() refuses others
    )


def _parts(text: str) -> list[str]:
    """What stands between semicolons that are in no parentheses."""
    parts, depth, begin = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == ";" and depth == 0:
            parts.append(text[begin:i])
            begin = i + 1
    return [*parts, text[begin:]]


def _parse_any(parts: list[str], depth: int) -> AnyTrigger:
    return any_of(*(_parse(part, depth) for part in parts))


def _parse_all(parts: list[str], depth: int) -> AnyTrigger:
    return all_of(*(_parse(part, depth) for part in parts))


def _parse_excluding(parts: list[str], depth: int) -> AnyTrigger:
    return excluding(_parse(parts[0], depth), *(_parse_excluded(part, depth) for part in parts[1:]))


def _parse_excluded(text: str, depth: int) -> Trigger | date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return _parse(text, depth)


_COMBINED: dict[str, Callable[[list[str], int], AnyTrigger]] = {
    "any_of": _parse_any,
    "all_of": _parse_all,
    "excluding": _parse_excluding,
}
