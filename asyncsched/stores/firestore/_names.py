"""Where things are: what a document is called, and how instants are written in it."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from asyncsched.contract import Entry

__all__ = [
    "HELD", "JOBS", "LANE", "LEASES", "LOG", "NEVER", "SECOND", "Names", "id_of", "rank_of", "rank_of_held", "to_seconds",
    "to_us",
]  # fmt: skip

#: Collections of a namespace. Indexes are defined by these names, whatever stands before them in a path.
JOBS = "asyncsched-jobs"
LOG = "asyncsched-log"
LEASES = "asyncsched-leases"

#: Instants are whole microseconds, which is what Firestore's own times are.
SECOND = 1_000_000
#: Behind every instant; stands for none at all, since a query by time leaves out documents without the field.
NEVER = 10**16 - 1
#: The ranks of one priority begin at a multiple of it.
LANE = 10**16
HELD = 10 * LANE
#: Added to an instant within a name, so that those before 1970 come first.
_SHIFT = 10**18

#: Document ids may not have a slash, be dots alone or begin with underscores. Each character that is replaced keeps its place in
#: the order, and all that sort below "!" are, so that a space can stand between two parts.
_ESCAPES = {code: f"!{chr(0x40 + code)}" for code in range(0x21)} | {
    ord("!"): "!a",
    ord("."): ".0",
    ord("/"): ".1",
}
_ESCAPED = re.compile(r"!(.)|\.([01])", re.DOTALL)


class Names(NamedTuple):
    """The full names of one namespace's documents."""

    #: The document of the namespace itself.
    root: str

    def job(self, id: str) -> str:
        return f"{self.root}/{JOBS}/-{id.translate(_ESCAPES)}"

    def lease(self, key: str) -> str:
        return f"{self.root}/{LEASES}/-{key.translate(_ESCAPES)}"

    def entry(self, entry: Entry) -> str:
        """Unique as the entry is, and in the order of (job_id, fence, kind, fire_at)."""
        job, kind = entry.job_id.translate(_ESCAPES), entry.kind.translate(_ESCAPES)
        fire = to_us(entry.fire_at) + _SHIFT
        return f"{self.root}/{LOG}/-{job} {entry.fence:019} {kind} {fire:019}"

    def prefixed(self, id_prefix: str) -> tuple[str, str]:
        """Between which names lie the jobs whose ids begin so."""
        start = self.job(id_prefix)
        return start, f"{start}\U0010ffff\U0010ffff"


def id_of(name: str) -> str:
    """The id of a job, or the key of a lease, whose document has that name."""
    escaped = name.rpartition("/")[2][1:]
    return _ESCAPED.sub(_unescape, escaped) if "!" in escaped or "." in escaped else escaped


def _unescape(found: re.Match[str]) -> str:
    low, dotted = found.groups()
    if dotted:
        return "." if dotted == "0" else "/"
    return "!" if low == "a" else chr(ord(low) - 0x40)


def rank_of(priority: int, wake_us: int) -> int:
    """The place in its queue of a job that nobody holds: by priority, then by time."""
    return (9 - priority) * LANE + max(wake_us, 0)


def rank_of_held(until_us: int) -> int:
    """Behind all others, by the end of its lease."""
    return HELD + until_us


def to_us(at: float | None) -> int:
    """An instant as it is stored."""
    if at is None:
        return NEVER
    return round(at * SECOND) if abs(at) < NEVER / SECOND else int(math.copysign(NEVER - 1, at))


def to_seconds(us: int) -> float:
    return us / SECOND
