"""The keys: what stands where, and in which order.

Times are microseconds in sixteen hexadecimal digits, so that keys are ordered as instants are. Names of queues and holds are
quoted, so that nothing in them ends a part of a key; an id comes last, and stands as it is.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from urllib.parse import quote, unquote

from asyncsched.contract import Entry, Record

__all__ = ["Keys", "Lane", "end_of", "lane_of", "micros"]

#: Instants count from so far back that no key is of a negative one; no instant is that far away.
_ZERO = 1 << 60
_LONGEST = (1 << 61) - 1
_FARTHEST_S = 1e12
_NEVER = b"~"
#: What stands first at one instant: the end of a lease, which names several records, before records in the order of their ids.
LEASE, RECORD = b"0", b"1"
_ONES = bytes(255 - i for i in range(256))


class Lane(NamedTuple):
    """A queue at one priority."""

    queue: str
    priority: int


def lane_of(record: Record) -> Lane:
    return Lane(record.queue, record.priority)


def micros(instant: float) -> int:
    """*instant* in whole microseconds, from the beginning of all keys."""
    if -_FARTHEST_S < instant < _FARTHEST_S:
        return round(instant * 1e6) + _ZERO
    return _LONGEST if instant > 0 else 0


def digits(instant: float) -> bytes:
    return b"%016x" % micros(instant)


def end_of(prefix: bytes) -> bytes:
    """The first key behind all that begin with *prefix*."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b"\0"


def quoted(name: str) -> bytes:
    return quote(name, safe="").encode()


class Keys:
    """The keys under *prefix*, which ends in a slash."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.meta = self.prefix + b"meta"
        #: What is added to a revision to make a fence of it.
        self.fence = self.prefix + b"fence"
        #: What all instances watch: hints, and what they tell each other of the time.
        self.signals = self.prefix + b"signal/"
        self.hint = self.signals + b"hint"
        self.clock = self.signals + b"clock"
        self.ask_clock = self.signals + b"clock-ask"
        self.told_clock = self.signals + b"clock-told"
        self.jobs = self.prefix + b"job/"
        self.never = self.prefix + b"never/"
        self.lanes = self.prefix + b"lane/"
        self.lines = self.prefix + b"due/"
        self.entries = self.prefix + b"run/"
        self.times = self.prefix + b"log/"
        self.leases = self.prefix + b"lock/"
        self._of_lanes: dict[tuple[str, int], bytes] = {}
        self._lanes: dict[tuple[str, int], bytes] = {}

    # -- of a record ---------------------------------------------------------------------------------------------------

    def job(self, id: str) -> bytes:
        """Who holds it, and all else of it that is not large: the one key that decides."""
        return self.jobs + id.encode()

    def body(self, id: str) -> bytes:
        return self.prefix + b"body/" + id.encode()

    def cursor(self, id: str) -> bytes:
        return self.prefix + b"cursor/" + id.encode()

    def due(self, lane: tuple[str, int]) -> bytes:
        """What all keys of *lane* begin with."""
        found = self._of_lanes.get(lane)
        if found is None:
            if len(self._of_lanes) > 10_000:
                self._of_lanes.clear()
            found = self.lines + self._lane(lane) + b"/"
            self._of_lanes[lane] = found
        return found

    def place(self, record: Record) -> bytes:
        """Where a record that nobody holds stands in line."""
        id = record.id.encode()
        if record.wake_at is None:
            return self.never + id
        return self.due((record.queue, record.priority)) + digits(record.wake_at) + RECORD + id

    def lease_end(self, lane: tuple[str, int], until: float, name: str) -> bytes:
        """Where the end of a lease stands in line; its value lists the ids."""
        return self.due(lane) + digits(until) + LEASE + name.encode()

    def parked(self, record: Record) -> bytes:
        """Where a record that is held back, and that nobody holds, stands in line for being let go."""
        assert record.hold is not None
        wake = _NEVER if record.wake_at is None else digits(record.wake_at)
        return self.hold(record.hold) + wake + b"/" + record.id.encode()

    def hold(self, hold: str) -> bytes:
        return self.prefix + b"hold/" + quoted(hold) + b"/"

    # -- of a lane -----------------------------------------------------------------------------------------------------

    def lane(self, lane: tuple[str, int]) -> bytes:
        """Its value: the place in line before which there is nothing."""
        found = self._lanes.get(lane)
        if found is None:
            if len(self._lanes) > 10_000:
                self._lanes.clear()
            found = self._lanes[lane] = self.lanes + self._lane(lane)
        return found

    def lanes_of(self, queue: str) -> bytes:
        return self.lanes + quoted(queue) + b"/"

    def lane_named(self, key: bytes) -> Lane:
        queue, _, rank = key[len(self.lanes) :].rpartition(b"/")
        return Lane(unquote(queue.decode()), 9 - int(rank))

    @staticmethod
    def _lane(lane: tuple[str, int]) -> bytes:
        queue, priority = lane
        return b"%b/%d" % (quoted(queue), 9 - priority)

    # -- of a claim, and of a named lease ------------------------------------------------------------------------------

    def claim(self, token: str) -> bytes:
        return self.prefix + b"claim/" + quoted(token) + b"/"

    def named_lease(self, key: str) -> bytes:
        return self.leases + key.encode()

    # -- of the log ----------------------------------------------------------------------------------------------------

    def entries_of(self, job_id: str) -> bytes:
        return self.entries + _text(job_id)

    def entry(self, entry: Entry) -> bytes:
        """There is one entry of each such key. Its value: when it was written."""
        fence, fire_at = _number(entry.fence), _number(micros(entry.fire_at))
        return b"%b%b%b%b%b" % (self.entries, _text(entry.job_id), fence, _text(entry.kind), fire_at)

    def time(self, entry: bytes, at: bytes) -> bytes:
        """The key by time of the entry of that key, written then: the newest first, all else in the reverse order too."""
        return self.times + (at + entry[len(self.entries) :]).translate(_ONES)

    @staticmethod
    def at(entry: Entry) -> bytes:
        """When it was written."""
        return _number(micros(entry.at))

    def behind(self, entry: Entry) -> bytes:
        """Where what is older begins."""
        return self.time(self.entry(entry), self.at(entry)) + b"\0"

    def before(self, at: float) -> bytes:
        """Where the log of what happened earlier than *at* begins."""
        return self.times + _number(micros(at) - 1).translate(_ONES)


_number = struct.Struct(">Q").pack


def _text(text: str) -> bytes:
    """Its bytes, and an end that sorts before any continuation."""
    found = text.encode()
    return (found.replace(b"\0", b"\0\1") if b"\0" in found else found) + b"\0\0"
