"""What goes over the wire: documents, writes and queries, as the plain protobuf messages of Firestore's API.

The driver's own message classes wrap these, and take many times as long to fill in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.cloud.firestore_v1 import types

from asyncsched.stores.firestore._names import NEVER, SECOND

__all__ = [
    "Document",
    "Filter",
    "Query",
    "Value",
    "Write",
    "creation",
    "deletion",
    "microseconds",
    "query",
    "update",
    "value_of",
]


def _plain(message: Any) -> Any:
    return type(message.pb(message()))


Document: Any = _plain(types.Document)
Write: Any = _plain(types.Write)
Query: Any = _plain(types.StructuredQuery)
BatchGet: Any = _plain(types.BatchGetDocumentsRequest)
BatchWrite: Any = _plain(types.BatchWriteRequest)
Commit: Any = _plain(types.CommitRequest)
RunQuery: Any = _plain(types.RunQueryRequest)

#: What a field may hold here.
Value = str | int | bytes | None

_ASCENDING, _DESCENDING = 1, 2
_AND, _OR = 1, 2
_IS_NULL = 3
_OPERATORS = {"<": 1, "<=": 2, ">": 3, ">=": 4, "==": 5, "in": 8}

#: (field, operator, value): ``__name__`` is the document's own name; "in" takes a sequence.
Filter = tuple[str, str, Value | Sequence[str] | Sequence[int]]


def microseconds(time: Any) -> int:
    """A protobuf timestamp, which Firestore keeps to the microsecond."""
    return int(time.seconds * SECOND + time.nanos // 1000)


def value_of(document: Any, field: str) -> Any:
    """What a field holds; None also where it is not there."""
    found = document.fields.get(field)
    if found is None:
        return None
    kind = found.WhichOneof("value_type")
    return None if kind == "null_value" else getattr(found, kind)


def creation(name: str, fields: Mapping[str, Value]) -> Any:
    """Refused where there is such a document."""
    write = Write()
    write.update.name = name
    write.current_document.exists = False
    _fill(write.update.fields, fields)
    return write


def update(name: str, fields: Mapping[str, Value], at_us: int) -> Any:
    """Of these fields alone; refused unless the document was last changed at the instant *at_us*."""
    write = Write()
    write.update.name = name
    write.update_mask.field_paths.extend(fields)
    _expect(write, at_us)
    _fill(write.update.fields, fields)
    return write


def deletion(name: str, at_us: int | None = None) -> Any:
    """Refused unless the document was last changed at *at_us*, or, without it, is there."""
    write = Write()
    write.delete = name
    if at_us is None:
        write.current_document.exists = True
    else:
        _expect(write, at_us)
    return write


def query(
    collection: str,
    filters: Iterable[Filter],
    order: Sequence[str],
    limit: int | None,
    *,
    fields: Sequence[str] | None = None,
    behind: Sequence[tuple[str, Value]] | None = None,
    within: tuple[str, Sequence[tuple[int, int]]] | None = None,
) -> Any:
    """Documents of *collection* that pass all *filters*, by *order* (a minus sign: descending), the name being its last part;
    *behind* gives the place after which to begin, as a (field, value) for each part of the order. *within* names a field, and
    ranges one of which must have it."""
    made = Query()
    made.from_.add(collection_id=collection)
    found = list(filters)
    ranges = [[(within[0], ">=", low), (within[0], "<=", high)] for low, high in within[1]] if within else []
    if len(ranges) == 1:
        found += ranges[0]
    if len(found) == 1 and len(ranges) < 2:
        _filter(made.where, found[0])
    elif found:
        _all_of(made.where, found)
    if len(ranges) > 1:
        either = made.where.composite_filter.filters.add().composite_filter
        either.op = _OR
        for each in ranges:
            _all_of(either.filters.add(), each)
    for part in order:
        direction = _DESCENDING if part.startswith("-") else _ASCENDING
        made.order_by.add(direction=direction).field.field_path = part.removeprefix("-")
    if limit is not None:
        made.limit.value = limit
    if fields is not None:
        for name in fields or ("__name__",):
            made.select.fields.add(field_path=name)
    if behind is not None:
        for field, at in behind:
            _set(made.start_at.values.add(), field, at)
        made.start_at.before = False
    return made


def _all_of(into: Any, filters: Sequence[Filter]) -> None:
    into.composite_filter.op = _AND
    for each in filters:
        _filter(into.composite_filter.filters.add(), each)


def _filter(into: Any, filter: Filter) -> None:
    field, operator, wanted = filter
    if wanted is None:
        into.unary_filter.op = _IS_NULL
        into.unary_filter.field.field_path = field
        return
    made = into.field_filter
    made.field.field_path = field
    if operator == "in":
        assert isinstance(wanted, Sequence)
        if len(wanted) > 1:
            made.op = _OPERATORS["in"]
            for each in wanted:
                _set(made.value.array_value.values.add(), field, each)
            return
        operator, wanted = "==", wanted[0]
    made.op = _OPERATORS[operator]
    _set(made.value, field, wanted)  # type: ignore[arg-type]  # the field is a message of that kind


def _expect(write: Any, at_us: int) -> None:
    expected = write.current_document.update_time
    expected.seconds, rest = divmod(at_us, SECOND)
    expected.nanos = rest * 1000


def _fill(into: Any, fields: Mapping[str, Value]) -> None:
    for name, value in fields.items():
        _set(into[name], name, value)


def _set(into: Any, field: str, value: Value) -> None:
    if value is None:
        into.null_value = 0
    elif isinstance(value, int):
        into.integer_value = min(value, NEVER) if field == "wake" else value
    elif isinstance(value, bytes):
        into.bytes_value = value
    elif field == "__name__":
        into.reference_value = value
    else:
        into.string_value = value
