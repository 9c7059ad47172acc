"""A record as it is kept: one key that decides, and keys that say where it stands in line.

Whatever changes a record writes its key ``job/ID``, and compares the revision at which that was last written. While nobody
holds it, its places in line (``due/`` or ``never/``, and ``hold/`` where it is held back) are written with it, each with the
whole record as value: so what is read there can be claimed without a look at the record itself. While somebody holds it, the
end of the lease stands in line, one key for all that were claimed or renewed together. A body or a cursor that is large has a
key of its own, so that claims and renewals do not write it again.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from asyncsched.contract import Record
from asyncsched.errors import StoreError
from asyncsched.stores.etcd._keys import Keys
from asyncsched.stores.etcd._ops import Item

__all__ = ["LARGEST_RECORD", "Kept", "added", "changed", "removed"]

#: Bytes of body and cursor together: a request has 1.5 MiB, and there is more in it than these.
LARGEST_RECORD = 1_000_000
#: What is larger has a key of its own.
_INLINE = 1024


class _Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of the key of a record. New fields go to the end, with a default."""

    id: str
    birth: str
    queue: str
    priority: int
    task: str
    wake_at: float | None
    hold: str | None
    body: bytes
    cursor: bytes
    version: int
    fence: int
    holder: str | None
    settled: int
    tries: int
    prior: int | None
    body_size: int = 0
    cursor_size: int = 0


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Row)


class Kept(NamedTuple):
    """A record as it was at a revision. What is large is not in it: its sizes say so."""

    record: Record
    revision: int
    body_size: int = 0
    cursor_size: int = 0

    @property
    def is_whole(self) -> bool:
        return not self.body_size and not self.cursor_size


def decoded(value: bytes, revision: int) -> Kept:
    try:
        r = _DECODER.decode(value)
    except msgspec.MsgspecError as error:
        raise StoreError(f"a record that etcd keeps cannot be read: {error}") from error
    # Positional, since this is done for each record that is claimed.
    record = Record(
        r.id, r.birth, r.queue, r.priority, r.task, r.wake_at, r.hold, r.body, r.cursor,
        r.version, r.fence, r.holder, r.settled, r.tries, r.prior,
    )  # fmt: skip
    return Kept(record, revision, r.body_size, r.cursor_size)


def encoded(kept: Kept) -> bytes:
    """The value of the key of *kept*, whose large parts have been taken out."""
    r, _, body_size, cursor_size = kept
    row = _Row(
        r.id, r.birth, r.queue, r.priority, r.task, r.wake_at, r.hold, b"" if body_size else r.body,
        b"" if cursor_size else r.cursor, r.version, r.fence, r.holder, r.settled, r.tries, r.prior, body_size, cursor_size,
    )  # fmt: skip
    return _ENCODER.encode(row)


def check_size(id: str, body: int, cursor: int) -> None:
    size = body + cursor
    if size > LARGEST_RECORD:
        raise StoreError(
            f"job {id!r} has {size} bytes (body {body}, cursor {cursor}), and the store on etcd takes {LARGEST_RECORD}: "
            "keep large data elsewhere"
        )


def added(keys: Keys, record: Record) -> Item:
    """Insert *record*, if there is none of its id."""
    check_size(record.id, len(record.body), len(record.cursor))
    kept = Kept(
        record,
        0,
        len(record.body) if len(record.body) > _INLINE else 0,
        len(record.cursor) if len(record.cursor) > _INLINE else 0,
    )
    item = Item(f"adding job {record.id!r}")
    item.if_absent(keys.job(record.id))
    if kept.body_size:
        item.put(keys.body(record.id), record.body)
    if kept.cursor_size:
        item.put(keys.cursor(record.id), record.cursor)
    value = encoded(kept)
    item.put(keys.job(record.id), value)
    for place in _places(keys, record, item):
        item.put(place, value)
    return item


def changed(
    keys: Keys, old: Kept, record: Record, *, body: bytes | None = None, cursor: bytes | None = None
) -> tuple[Item, Kept]:
    """Make of *old* what *record* says, if nobody has changed it; *body* and *cursor* are written where they are given."""
    id = record.id
    item = Item(f"changing job {id!r}")
    item.if_at(keys.job(id), old.revision)
    body_size, cursor_size = old.body_size, old.cursor_size
    if body is not None or cursor is not None:
        check_size(
            id,
            old.body_size or len(old.record.body) if body is None else len(body),
            old.cursor_size or len(old.record.cursor) if cursor is None else len(cursor),
        )
    if body is not None:
        body_size = _large(item, keys.body(id), body, body_size)
    if cursor is not None:
        cursor_size = _large(item, keys.cursor(id), cursor, cursor_size)
    new = Kept(record, 0, body_size, cursor_size)
    value = encoded(new)
    item.put(keys.job(id), value)
    places = _places(keys, record, item)
    for place in _places(keys, old.record):
        if place not in places:
            item.delete(place)
    for place in places:
        item.put(place, value)
    return item, new


def removed(keys: Keys, old: Kept) -> Item:
    """Delete *old*, if nobody has changed it."""
    id = old.record.id
    item = Item(f"removing job {id!r}")
    item.if_at(keys.job(id), old.revision)
    item.delete(keys.job(id))
    for place in _places(keys, old.record):
        item.delete(place)
    if old.body_size:
        item.delete(keys.body(id))
    if old.cursor_size:
        item.delete(keys.cursor(id))
    return item


def _large(item: Item, key: bytes, data: bytes, there: int) -> int:
    """Write *data* to a key of its own if it is large; its size then, else 0."""
    if len(data) > _INLINE:
        item.put(key, data)
        return len(data)
    if there:
        item.delete(key)
    return 0


def _places(keys: Keys, record: Record, item: Item | None = None) -> list[bytes]:
    """Where a record stands in line while nobody holds it; *item* is told of it."""
    if record.holder is not None:
        return []
    place = keys.place(record)
    if item is not None and record.wake_at is not None:
        lane = (record.queue, record.priority)
        item.takes(keys.lane(lane), place[len(keys.due(lane)) :])
        item.wakes(record.wake_at)
    return [place] if record.hold is None else [place, keys.parked(record)]
