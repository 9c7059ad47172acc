"""Records and log entries as documents, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncsched.contract import Entry, Record
from asyncsched.errors import StoreError
from asyncsched.stores.firestore._names import NEVER, id_of, rank_of, to_seconds, to_us
from asyncsched.stores.firestore._wire import Value, value_of

__all__ = [
    "LARGEST",
    "check_entry",
    "check_size",
    "chunks_of",
    "entry_of",
    "fields_of_entry",
    "fields_of_record",
    "record_of",
]

#: Bytes of body and cursor together. A document has a mebibyte, with its name and all other fields in it.
LARGEST = 1_000_000


def check_size(id: str, body: int, cursor: int) -> None:
    """Raises StoreError for a record over the bound."""
    if body + cursor > LARGEST:
        raise StoreError(
            f"job {id!r} has a definition of {body} and progress of {cursor} bytes; "
            f"a document of Firestore has room for {LARGEST} bytes of both"
        )


def check_entry(entry: Entry) -> None:
    if len(entry.body) > LARGEST:
        raise StoreError(
            f"a log entry of job {entry.job_id!r} has {len(entry.body)} bytes; "
            f"a document of Firestore has room for {LARGEST} of them"
        )


def fields_of_record(r: Record) -> dict[str, Value]:
    check_size(r.id, len(r.body), len(r.cursor))
    return {
        "birth": r.birth, "queue": r.queue, "priority": r.priority, "task": r.task, "wake": to_us(r.wake_at),
        "rank": rank_of(r.priority, to_us(r.wake_at)), "hold": r.hold, "body": r.body, "cursor": r.cursor,
        "version": r.version, "fence": r.fence, "holder": r.holder, "settled": r.settled, "tries": r.tries, "prior": r.prior,
    }  # fmt: skip


def record_of(document: Any) -> Record:
    """Positional and without a loop, since this is the hottest line of the store."""
    fields = document.fields
    wake = fields["wake"].integer_value
    return Record(
        id_of(document.name), fields["birth"].string_value, fields["queue"].string_value,
        fields["priority"].integer_value, fields["task"].string_value, None if wake >= NEVER else to_seconds(wake),
        _text(fields["hold"]), fields["body"].bytes_value, fields["cursor"].bytes_value,
        fields["version"].integer_value, fields["fence"].integer_value, _text(fields["holder"]),
        fields["settled"].integer_value, fields["tries"].integer_value, value_of(document, "prior"),
    )  # fmt: skip


def _text(value: Any) -> str | None:
    return value.string_value if value.HasField("string_value") else None


def fields_of_entry(e: Entry) -> dict[str, Value]:
    check_entry(e)
    return {
        "job": e.job_id, "fence": e.fence, "kind": e.kind, "fire": to_us(e.fire_at), "at": to_us(e.at), "body": e.body,
    }  # fmt: skip


def entry_of(document: Any) -> Entry:
    fields = document.fields
    return Entry(
        fields["job"].string_value, fields["fence"].integer_value, fields["kind"].string_value,
        to_seconds(fields["fire"].integer_value), to_seconds(fields["at"].integer_value), fields["body"].bytes_value,
    )  # fmt: skip


def chunks_of(sizes: Sequence[tuple[int, int]], most: int, most_bytes: int) -> list[range]:
    """Ranges of consecutive items, each of so many writes and bytes, that fit into one request; a larger item is alone."""
    ranges: list[range] = []
    start = writes = size = 0
    for i, (its_writes, its_size) in enumerate(sizes):
        if i > start and (writes + its_writes > most or size + its_size > most_bytes):
            ranges.append(range(start, i))
            start, writes, size = i, 0, 0
        writes += its_writes
        size += its_size
    if start < len(sizes):
        ranges.append(range(start, len(sizes)))
    return ranges
