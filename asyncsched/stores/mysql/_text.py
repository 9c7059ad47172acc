"""Values as they stand in a statement. The driver has no other way to send them: it writes them into the text itself.

What is written here means the same under every ``sql_mode`` of the server, which is why the driver's own escapes, made with
backslashes, are not used; and bytes in hexadecimal cost a fraction of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["NEVER", "blob", "choice", "integer", "json", "listed", "optional", "real", "text", "wake"]

#: Stands for "never by itself" where an instant does. Unlike NULL it is the greatest of an index, where it is wanted.
NEVER = 9e15


def text(value: str) -> str:
    if "\\" in value:
        return f"_utf8mb4 x'{value.encode().hex()}'"
    return "'" + value.replace("'", "''") + "'"


def optional(value: str | int | None) -> str:
    if value is None:
        return "NULL"
    return text(value) if isinstance(value, str) else integer(value)


def blob(value: bytes) -> str:
    return f"x'{value.hex()}'"


def integer(value: int) -> str:
    return f"{value:d}"


def real(value: float) -> str:
    """A double, exactly; a literal without an exponent would be a decimal."""
    if not math.isfinite(value):
        raise OverflowError(f"{value!r} is no instant and no duration that the server can keep")
    written = repr(float(value))
    return written if "e" in written else f"{written}e0"


def wake(at: float | None) -> str:
    """An instant, or never."""
    return real(NEVER if at is None else min(at, NEVER))


def listed(values: Iterable[str]) -> str:
    return ",".join(map(text, values))


def json(values: object) -> str:
    """One large value that the server takes apart with JSON_TABLE."""
    return text(msgspec.json.encode(values).decode())


def choice(column: str, of: Sequence[tuple[str, str]]) -> str:
    """What *column* picks from pairs of its value and an expression; the expression alone where all are the same."""
    if len({expression for _, expression in of}) == 1:
        return of[0][1]
    return (
        f"CASE {column} {' '.join(f'WHEN {text(value)} THEN {expression}' for value, expression in of)} END"
    )
