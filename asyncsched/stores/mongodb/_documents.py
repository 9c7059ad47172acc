"""Records, entries and leases as documents, and the keys by which they are found.

Instants are seconds as doubles, like everywhere in the store: MongoDB's own dates keep milliseconds only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from asyncsched.contract import Entry, Record
from asyncsched.stores.mongodb._server import Document

__all__ = ["ALIVE", "NOW_US", "SERVER_NOW", "Keys", "entry_of", "literal", "record_of"]

#: The server's clock, in seconds. It ticks in milliseconds.
SERVER_NOW: Document = {"$divide": [{"$toLong": "$$NOW"}, 1000]}
#: The same in microseconds: what fences are taken from.
NOW_US: Document = {"$multiply": [{"$toLong": "$$NOW"}, 1000]}
#: A document that is about to be deleted counts as gone.
ALIVE: Document = {"dead": None}

_DOUBLE = struct.Struct(">d")
_SIGN = 1 << 63
_ALL = (1 << 64) - 1


def literal(value: object) -> Document:
    """*value* as it is: in an expression a text that begins with a dollar would be something else."""
    return {"$literal": value}


class Keys:
    """Keys of one namespace: each begins with its name, and no name holds the character behind it."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._start = f"{namespace}\0"
        #: The document of the namespace itself, which stands behind the jobs; those of its batches follow.
        self.own = f"{namespace}\1"

    def of(self, name: str) -> str:
        return self._start + name

    def name(self, key: str | None) -> str | None:
        """The name of that key."""
        return None if key is None else key[len(self._start) :]

    def all(self, prefix: str = "") -> Document:
        """What a key of this namespace matches, or of those that begin with *prefix*."""
        first = self._start + prefix
        return {"$gte": first, "$lt": _behind(first)}

    def owned(self, prefix: str = "") -> Document:
        """What the id of the namespace's own document and those of its batches match."""
        first = self.own + prefix
        return {"$gte": first, "$lt": _behind(first)}

    def lane(self, queue: str, priority: int) -> str:
        """Lanes of one queue sort from the highest priority down."""
        return f"{self._start}{9 - priority}{queue}"

    def lanes(self, queues: Iterable[str]) -> list[str]:
        return [f"{self._start}{digit}{queue}" for queue in queues for digit in range(10)]

    # -- records -------------------------------------------------------------------------------------------------------

    def document(self, record: Record) -> Document:
        hold = record.hold
        return {
            "_id": self._start + record.id,
            "lane": self.lane(record.queue, record.priority),
            "wake": record.wake_at,
            "birth": record.birth,
            "queue": record.queue,
            "priority": record.priority,
            "task": record.task,
            "hold": None if hold is None else self._start + hold,
            "body": record.body,
            "cursor": record.cursor,
            "version": record.version,
            "fence": record.fence,
            "holder": None if record.holder is None else self._start + record.holder,
            "settled": record.settled,
            "tries": record.tries,
            "prior": record.prior,
        }

    # -- the log -------------------------------------------------------------------------------------------------------

    def entry(self, entry: Entry) -> Document:
        """Its id is what it is unique by; ``by_time`` and ``by_job`` are its places in the log and in that of its job."""
        at, fire_at = _sortable(entry.at), _sortable(entry.fire_at)
        rest = f"{entry.fence:020}{entry.kind}\0{fire_at}"
        return {
            "_id": f"{self._start}{entry.job_id}\0{rest}",
            "by_time": f"{self._start}{at}{entry.job_id}\0{rest}",
            "by_job": f"{self._start}{entry.job_id}\0{at}{rest}",
            "job": entry.job_id,
            "fence": entry.fence,
            "kind": entry.kind,
            "fire_at": entry.fire_at,
            "at": entry.at,
            "body": entry.body,
        }

    def times_before(self, at: float) -> Document:
        """What places in the log before that instant match."""
        return {"$gte": self._start, "$lt": self._start + _sortable(at)}

    def behind(self, entry: Entry, job_id: str | None) -> str:
        """Before which place in the log of *job_id*, or in the whole, stands what is older than *entry*."""
        places = self.entry(entry)
        if job_id is None or job_id == entry.job_id:
            return str(places["by_time" if job_id is None else "by_job"])
        instant = f"{self._start}{job_id}\0{_sortable(entry.at)}"
        return _behind(instant) if job_id < entry.job_id else instant

    def job_log(self, job_id: str) -> Document:
        return self.all(f"{job_id}\0")


def record_of(document: Document, keys: Keys) -> Record:
    d, prior = document, document["prior"]
    # Positional, since this is what claims spend their time on: the order of Record's fields. The driver has a type of its own
    # for whole numbers of 64 bits.
    return Record(
        keys.name(d["_id"]) or "", d["birth"], d["queue"], d["priority"], d["task"], d["wake"], keys.name(d["hold"]),
        d["body"], d["cursor"], int(d["version"]), int(d["fence"]), keys.name(d["holder"]), int(d["settled"]), int(d["tries"]),
        None if prior is None else int(prior),
    )  # fmt: skip


def entry_of(document: Document) -> Entry:
    d: Any = document
    return Entry(d["job"], int(d["fence"]), d["kind"], d["fire_at"], d["at"], d["body"])


def _sortable(value: float) -> str:
    """*value* as text of one length that sorts as numbers do."""
    (bits,) = struct.unpack(">Q", _DOUBLE.pack(value + 0.0))
    return f"{bits ^ (_ALL if bits & _SIGN else _SIGN):016x}"


def _behind(prefix: str) -> str:
    """The least text that sorts behind all that begin with *prefix*."""
    return prefix + "\U0010ffff\U0010ffff"
