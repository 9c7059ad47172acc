"""Where things are: node names for ids, queues, holds and keys of any characters, and for instants in their order."""

from __future__ import annotations

import math
import zlib
from hashlib import blake2b
from urllib.parse import quote, unquote

__all__ = ["SHARDS", "Paths", "instant_of", "key_of", "leaf_of", "name_of", "text_of"]

#: Folders that the records, and the entries of the log, are spread over by a hash.
SHARDS = 256
#: What may stand in a node's name as it is; the rest is written as %XX.
_SAFE = " !#$&'()*+,;:=@[]{}|^<>?\"`"
#: Microseconds: instants before 1970 have keys, too.
_SHIFT = 1 << 52
_LAST = (1 << 62) - 1
#: A leaf covers 2**30 microseconds, which are 18 minutes; a branch 256 leaves, which are three days.
_LEAF, _BRANCH = 30, 38


def name_of(text: str) -> str:
    """A node's name for any text: never ``.`` or ``..``, never with a slash or a control character."""
    return "_" + quote(text, safe=_SAFE)


def text_of(name: str) -> str:
    """What ``name_of`` made a name of."""
    return unquote(name[1:])


def key_of(instant: float | None) -> int:
    """Microseconds, which order as the instants do; 0 for never."""
    if instant is None:
        return 0
    if instant >= _LAST / 1e6:
        return _LAST
    return max(1, round(instant * 1e6) + _SHIFT) if math.isfinite(instant) else 1


def leaf_of(key: int) -> str:
    """The branch and the leaf that an instant's key belongs to; both order by name."""
    return f"{key >> _BRANCH:06x}/{(key >> _LEAF) & 0xFF:02x}"


def digest_of(text: str) -> str:
    return blake2b(text.encode(), digest_size=12).hexdigest()


class Paths:
    """The nodes of one namespace."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.schema = f"{base}/schema"
        self.clock = f"{base}/clock"
        self.fences = f"{base}/fences"
        self.hints = f"{base}/hints"
        self.jobs = f"{base}/jobs"
        self.due = f"{base}/due"
        self.never = f"{base}/never"
        self.holds = f"{base}/holds"
        self.claims = f"{base}/claims"
        self.locks = f"{base}/locks"
        self.leases = f"{base}/leases"
        self.entries = f"{base}/entries"
        self.times = f"{base}/times"
        #: What ``open`` makes, parents first; and the folders that are spread over.
        self.roots = (
            self.clock, self.fences, self.hints, self.jobs, self.due, self.never, self.holds, self.claims, self.locks,
            self.leases, self.entries, self.times,
        )  # fmt: skip

    def shards(self, folder: str) -> list[str]:
        return [f"{folder}/{shard:02x}" for shard in range(SHARDS)]

    def job(self, id: str) -> str:
        """The folder of a record; in it is one node, which is the record."""
        return f"{self.jobs}/{zlib.crc32(id.encode()) % SHARDS:02x}/{name_of(id)}"

    def lane(self, queue: str, priority: int) -> str:
        return f"{self.due}/{name_of(queue)}/{priority}"

    def hold(self, hold: str) -> str:
        return f"{self.holds}/{name_of(hold)}"

    def claim(self, token: str, part: int) -> str:
        return f"{self.claims}/{name_of(token)}.{part}"

    def lock(self, queue: str) -> str:
        return f"{self.locks}/{name_of(queue)}"

    def lease(self, key: str) -> str:
        return f"{self.leases}/{name_of(key)}"

    def entries_of(self, job_id: str) -> tuple[str, str]:
        """The folder of a job's entries, and what their names begin with."""
        digest = digest_of(job_id)
        return f"{self.entries}/{digest[:2]}", f"{digest}."

    def entry(self, job_id: str, fence: int, kind: str, fire_at: float) -> str:
        """One entry: nobody can write a second of its key."""
        folder, start = self.entries_of(job_id)
        return f"{folder}/{start}{fence:x}.{digest_of(kind)}.{fire_at.hex()}"


def instant_of(key: int) -> float:
    """The instant that a key was made of, to the microsecond."""
    return (key - _SHIFT) / 1e6
