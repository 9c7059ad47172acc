"""Ids: made (UUIDv7, monotonic in a process) and checked."""

from __future__ import annotations

import random
import threading

from asyncsched.clock import host_time
from asyncsched.errors import DefinitionError

__all__ = ["base_id", "check_id", "check_name", "new_id"]

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """A UUIDv7 (RFC 9562): sortable by creation time, strictly rising within this process."""
    global _last
    now = int(host_time() * 1e6)
    with _lock:
        # 60 bits of microseconds: 48 of milliseconds and 12 below, as RFC 9562 section 6.2 (method 3) allows.
        _last = now if now > _last else _last + 1
        stamp = _last
    millis, micros = divmod(stamp, 1000)
    # 48 bits of time, the version, 12 bits of time, the variant, 62 random bits.
    digits = "%032x" % (millis << 80 | 7 << 76 | micros << 66 | 2 << 62 | random.getrandbits(62))
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def check_id(id: str, what: str = "a job's id") -> str:
    """*id* if it is a legal one: 1 to 255 characters of any Unicode but NUL, lone surrogates and ``#`` (it is reserved)."""
    if not isinstance(id, str):
        raise DefinitionError(f"{what} must be a string, not {id!r}")
    if not 1 <= len(id) <= 255:
        raise DefinitionError(f"{what} must have 1 to 255 characters; {id[:40]!r} has {len(id)}")
    if "\0" in id or "#" in id:
        raise DefinitionError(f"{what} must not contain NUL or '#' (which is reserved): {id!r}")
    _check_encodable(id, what)
    return id


def base_id(id: str) -> str:
    """The id of the job that a child (``id#0``) belongs to; a job's own id as it is."""
    return id.partition("#")[0]


def check_name(name: str, what: str) -> str:
    """*name* of a queue, task, store or tag: 1 to 255 characters of any Unicode but NUL."""
    if not isinstance(name, str) or not 1 <= len(name) <= 255 or "\0" in name:
        raise DefinitionError(f"{what} must be a string of 1 to 255 characters without NUL, not {name!r}")
    _check_encodable(name, what)
    return name


def _check_encodable(text: str, what: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DefinitionError(f"{what} must be valid Unicode; {text!r} holds a lone surrogate") from error
