"""What is stored of a record: a small node that each claim, renewal and settlement rewrites, and beside it what is large."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
from aiozk import exc

from asyncsched.contract import Record
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.zookeeper._names import Paths, key_of
from asyncsched.stores.zookeeper._wire import Wire

__all__ = ["LARGEST", "Row", "Seen", "check_size", "read_rows"]

#: So many bytes may body and cursor have together: half of what a server takes in one request, so that there is room for entries.
LARGEST = 512 * 1024
#: Body and cursor up to here stand in the record's node, larger ones in its folder, which no renewal rewrites.
_INLINE = 2048
_READS = 5


class Row(msgspec.Struct, array_like=True, gc=False):
    """A record as its node has it."""

    birth: str
    queue: str
    priority: int
    task: str
    wake_at: float | None
    hold: str | None
    version: int
    fence: int
    holder: str | None
    settled: int
    tries: int
    prior: int | None
    body: bytes
    cursor: bytes
    #: Where body and cursor are kept in the folder: what is written there with them.
    stamp: str = ""


class _Large(msgspec.Struct, array_like=True, gc=False):
    stamp: str
    body: bytes
    cursor: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(Row).decode
_decode_large = msgspec.msgpack.Decoder(_Large).decode


class Seen(msgspec.Struct, gc=False):
    """A record as it was read or written last: what a compare-and-set compares."""

    id: str
    #: The record's node in its folder. No other record ever has it, not even the next of its id.
    nonce: str
    row: Row
    #: The node's version, and the transaction that wrote it.
    version: int
    zxid: int
    path: str

    @property
    def key(self) -> int:
        return key_of(self.row.wake_at)

    @property
    def node(self) -> str:
        return f"{self.path}/{self.nonce}"

    def record(self) -> Record:
        r = self.row
        return Record(
            self.id, r.birth, r.queue, r.priority, r.task, r.wake_at, r.hold, r.body, r.cursor,
            r.version, r.fence, r.holder, r.settled, r.tries, r.prior,
        )  # fmt: skip


def new_row(record: Record) -> Row:
    r = record
    return Row(
        r.birth, r.queue, r.priority, r.task, r.wake_at, r.hold, r.version, r.fence, r.holder, r.settled, r.tries,
        r.prior, r.body, r.cursor,
    )  # fmt: skip


def decode_row(data: bytes) -> Row:
    return _decode_row(data)


def encode_row(row: Row) -> bytes:
    """The row as its node keeps it; body and cursor of a row with a stamp are in its folder already."""
    if not row.stamp:
        return _encode(row)
    return _encode(
        Row(
            row.birth, row.queue, row.priority, row.task, row.wake_at, row.hold, row.version, row.fence, row.holder,
            row.settled, row.tries, row.prior, b"", b"", row.stamp,
        )
    )  # fmt: skip


def place(row: Row) -> bytes | None:
    """Decide where a new body or cursor goes; return what is to be written into the folder, None for nothing."""
    was_large = bool(row.stamp)
    if len(row.body) + len(row.cursor) <= _INLINE:
        row.stamp = ""
        return b"" if was_large else None
    row.stamp = secrets.token_hex(6)
    return _encode(_Large(row.stamp, row.body, row.cursor))


def check_size(id: str, body: bytes, cursor: bytes) -> None:
    size = len(body) + len(cursor)
    if size > LARGEST:
        raise StoreError(
            f"job {id!r} is too large for ZooKeeper: body and cursor have {size} bytes, and {LARGEST} is the limit; "
            "keep what is large elsewhere, and pass where it is"
        )


async def read_rows(wire: Wire, paths: Paths, ids: Sequence[str], *, fresh: bool = True) -> dict[str, Seen]:
    """The records of those *ids* that exist. *fresh*: as they are at the leader, at the cost of one request more."""
    if not ids:
        return {}
    unique = list(dict.fromkeys(ids))
    ahead = [wire.sync(paths.jobs)] if fresh else []
    folders = [paths.job(id) for id in unique]
    listed = (await wire.ask([*ahead, *map(wire.children, folders)]))[len(ahead) :]
    known = [
        (id, path, found.children[0])
        for id, path, found in zip(unique, folders, listed, strict=True)
        if not isinstance(found, Exception) and found.children
    ]
    return await read_nodes(wire, known)


async def read_nodes(wire: Wire, known: Sequence[tuple[str, str, str]]) -> dict[str, Seen]:
    """The records of (id, folder, node) that exist still."""
    answers = await wire.ask([wire.get(f"{path}/{nonce}") for _, path, nonce in known])
    found: dict[str, Seen] = {}
    large: list[Seen] = []
    for (id, path, nonce), answer in zip(known, answers, strict=True):
        if isinstance(answer, Exception):
            continue
        seen = seen_of(id, path, nonce, answer)
        found[id] = seen
        if seen.row.stamp:
            large.append(seen)
    if large:
        await _read_large(wire, large, found)
    return found


def seen_of(id: str, path: str, nonce: str, answer: Any) -> Seen:
    stat = answer.stat
    return Seen(id, nonce, _decode_row(answer.data), stat.version, stat.last_modified_zxid, path)


async def _read_large(wire: Wire, large: list[Seen], found: dict[str, Seen]) -> None:
    """Fill in bodies and cursors. Both nodes are read anew where they were not written together."""
    for _ in range(_READS):
        answers = await wire.ask([wire.get(seen.path) for seen in large])
        again = []
        for seen, answer in zip(large, answers, strict=True):
            kept = None if isinstance(answer, exc.ZKError) or not answer.data else _decode_large(answer.data)
            if kept is not None and kept.stamp == seen.row.stamp:
                seen.row.body, seen.row.cursor = kept.body, kept.cursor
            else:
                again.append(seen)
        if not again:
            return
        states = await wire.ask([wire.get(seen.node) for seen in again])
        large = []
        for seen, answer in zip(again, states, strict=True):
            if isinstance(answer, Exception):
                found.pop(seen.id, None)
                continue
            fresh = found[seen.id] = seen_of(seen.id, seen.path, seen.nonce, answer)
            if fresh.row.stamp:
                large.append(fresh)
        if not large:
            return
    raise StoreUnavailable(f"{wire.name}: job {large[0].id!r} is written faster than it can be read")
