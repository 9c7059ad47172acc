"""Ids: made (UUIDv7, monotonic in a process) and checked."""

from __future__ import annotations

import random
import threading
from hashlib import blake2b

from asyncsched.clock import host_time
from asyncsched.errors import DefinitionError

__all__ = [
    "INSTANCES",
    "LIMITS",
    "base_id",
    "check_encodable",
    "check_id",
    "check_name",
    "instance_mark",
    "new_id",
    "queue_mark",
    "roster_mark",
    "slot_of",
]

#: How the holds of jobs begin that wait for a place under a limit.
LIMITS = "limit/"
#: The queue, and the task, of the records that instances keep of themselves; how the ids of those begin.
INSTANCES = "#instance"

_LONGEST_PART = 200
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
    check_encodable(id, what)
    return id


def base_id(id: str) -> str:
    """The id of the job that a child (``id#0``) belongs to; a job's own id, and that of a record of ours, as it is."""
    return id.partition("#")[0] or id


def slot_of(id: str) -> str:
    """What a child's id has more than that of its job: ``#0``; empty for a job's own id."""
    return id[len(base_id(id)) :]


def check_name(name: str, what: str) -> str:
    """*name* of a queue, task, store or tag: 1 to 255 characters of any Unicode but NUL."""
    if not isinstance(name, str) or not 1 <= len(name) <= 255 or "\0" in name:
        raise DefinitionError(f"{what} must be a string of 1 to 255 characters without NUL, not {name!r}")
    check_encodable(name, what)
    return name


def check_encodable(text: str, what: str) -> None:
    """Refuse lone surrogates, which no encoding has."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DefinitionError(f"{what} must be valid Unicode; {text!r} holds a lone surrogate") from error


def queue_mark(queue: str) -> str:
    """The id of the record that says that *queue* is paused for all; ``#`` keeps it apart from jobs."""
    return f"#queue/{queue}"


def is_limit(hold: str | None) -> bool:
    """Whether a job that is held back so waits for a place under a limit."""
    return hold is not None and hold.startswith(LIMITS)


def fitted(name: str) -> str:
    """*name*, as part of the names of leases and records: a long one is cut, and told from others by its digest."""
    if len(name) <= _LONGEST_PART:
        return name
    return f"{name[: _LONGEST_PART - 33]}~{blake2b(name.encode(), digest_size=16).hexdigest()}"


def rate_mark(name: str) -> str:
    """The id of the record that keeps the bucket of a rate."""
    return f"#rate/{name}"


def instance_mark(instance: str) -> str:
    """The id of the record in which an instance says that it is alive."""
    return f"{INSTANCES}/{instance}"


def roster_mark(application: str) -> str:
    """The id of the record that says which jobs *application* declares."""
    return f"#declared/{application}"
