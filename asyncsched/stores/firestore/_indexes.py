"""The indexes that the store's queries need, as Firebase's tools deploy them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from asyncsched.stores.firestore._names import JOBS, LEASES, LOG

__all__ = ["definitions"]

#: By collection: fields of a composite index; a minus sign means descending.
_COMPOSITE: Sequence[tuple[str, Sequence[str]]] = (
    # A claim, and what is planned next.
    (JOBS, ("queue", "wake")),
    # A claim that finds more than it may take.
    (JOBS, ("queue", "rank")),
    # Lists of jobs by task or hold; together with the first also by several of them. Parked jobs by their limit.
    (JOBS, ("task", "wake")),
    (JOBS, ("hold", "wake")),
    # The log of a job, and that of some kinds; both together for some kinds of a job.
    (LOG, ("job", "-at")),
    (LOG, ("kind", "-at")),
)
#: Of the indexes that Firestore makes by itself, those that the store uses; all others cost storage and time with each write.
_SINGLE: Mapping[str, Mapping[str, Sequence[str]]] = {
    JOBS: {"wake": ("ASCENDING",), "holder": ("ASCENDING",)},
    LOG: {"at": ("ASCENDING", "DESCENDING")},
    LEASES: {"until": ("ASCENDING",)},
}
_FIELDS: Mapping[str, Sequence[str]] = {
    JOBS: (
        "birth", "queue", "priority", "task", "wake", "rank", "hold", "body", "cursor", "version", "fence", "holder", "settled",
        "tries", "prior",
    ),
    LOG: ("job", "fence", "kind", "fire", "at", "body"),
    LEASES: ("holder", "until", "fence", "floor"),
}  # fmt: skip


def definitions() -> str:
    """A ``firestore.indexes.json``."""
    indexes = [
        {
            "collectionGroup": collection,
            "queryScope": "COLLECTION",
            "fields": [
                {
                    "fieldPath": field.removeprefix("-"),
                    "order": "DESCENDING" if field.startswith("-") else "ASCENDING",
                }
                for field in fields
            ],
        }
        for collection, fields in _COMPOSITE
    ]
    overrides = [
        {
            "collectionGroup": collection,
            "fieldPath": field,
            "indexes": [
                {"order": order, "queryScope": "COLLECTION"} for order in _SINGLE[collection].get(field, ())
            ],
        }
        for collection, fields in _FIELDS.items()
        for field in fields
    ]
    made = msgspec.json.encode({"indexes": indexes, "fieldOverrides": overrides})
    return msgspec.json.format(made, indent=2).decode() + "\n"
