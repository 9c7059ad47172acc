"""The words around a trigger in its string: ``NAME=value`` in front of it, and instants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from asyncsched.errors import TriggerError
from asyncsched.units import to_datetime

__all__ = ["instant_text", "read_instant", "read_text", "split_options", "with_options"]


def split_options(text: str, known: Collection[str]) -> tuple[dict[str, str], str]:
    """The options in front of a text, by their names in small letters, and what follows them."""
    options: dict[str, str] = {}
    rest = text.strip()
    while True:
        word, _, behind = rest.partition(" ")
        name, mark, value = word.partition("=")
        if not mark:
            return options, rest
        if name.lower() not in known:
            raise TriggerError(
                f"unknown option {word!r}; known here: {', '.join(name.upper() for name in known)}"
            )
        if name.lower() in options:
            raise TriggerError(f"{name} is given twice in {text!r}")
        options[name.lower()] = value
        rest = behind.strip()


def with_options(options: Mapping[str, str | float | None], text: str) -> str:
    """The text with its options in front: floats are instants, strings are quoted as far as they must be."""
    words = [
        f"{name.upper()}={quote(value, safe='/:+') if isinstance(value, str) else instant_text(value)}"
        for name, value in options.items()
        if value is not None
    ]
    return " ".join([*words, text])


def instant_text(instant: float) -> str:
    """An instant as ISO 8601 in UTC."""
    return to_datetime(instant).isoformat().replace("+00:00", "Z")


def read_instant(text: str | None, name: str) -> datetime | None:
    """The aware datetime that an option holds."""
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise TriggerError(
            f"{name.upper()}={text} is no ISO 8601 instant such as 2026-01-31T09:00:00Z"
        ) from None
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


def read_text(text: str | None) -> str | None:
    """The string that an option holds."""
    return None if text is None else unquote(text)
