"""The place at which an expression is wrong."""

from __future__ import annotations

import re

from asyncsched import CronError

__all__ = ["place_at_fault"]

_COMBINED = ("any_of(", "all_of(", "excluding(")


def place_at_fault(text: str, error: CronError) -> tuple[int, int] | None:
    """Where in *text* the field, or the part of it, stands that *error* is about: (begin, end); None where that is not clear."""
    words = [(match.start(), match.end()) for match in re.finditer(r"\S+", text)]
    value = (error.value or "").lower()
    if error.position is None or not words:
        return None
    if text.lower().startswith(_COMBINED):
        alone = [m.span() for m in re.finditer(rf"(?<![^\s(;,]){re.escape(value)}(?![^\s);,])", text.lower())]
        return alone[0] if value and len(alone) == 1 else None
    options = [(begin, end) for begin, end in words if "=" in text[begin:end]]
    if error.field in ("option", "time zone", "dst_gap", "dst_fold", "day"):
        return next((place for place in options if value in text[slice(*place)].lower()), None)
    fields = words[len(options) :]
    if error.position > len(fields):
        return len(text) + 1, len(text) + 2
    begin, end = fields[error.position - 1]
    return _part(text[begin:end].lower(), value, begin) or (begin, end)


def _part(field: str, value: str, begin: int) -> tuple[int, int] | None:
    """Where a member of a field's list stands."""
    for part in field.split(","):
        if part and part == value:
            return begin, begin + len(part)
        begin += len(part) + 1
    return None
