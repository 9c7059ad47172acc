"""add, get, page, update and remove."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from asyncsched.contract import Filter, Record, Update
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.firestore import _wire as wire
from asyncsched.stores.firestore._floor import Floor
from asyncsched.stores.firestore._names import JOBS, id_of, rank_of, to_seconds, to_us
from asyncsched.stores.firestore._records import check_size, chunks_of, fields_of_record, record_of
from asyncsched.stores.firestore._server import Conflict, Server, in_parallel, pause

__all__ = ["Jobs"]

#: Writes, and bytes of them, in one request; Firestore takes 500 and ten mebibytes.
_PIECE = 400
_PIECE_BYTES = 4_000_000
_TRIES = 8


class Jobs:
    """The documents of the jobs."""

    def __init__(self, server: Server, floor: Floor) -> None:
        self._server = server
        self._floor = floor
        self._names = server.names

    async def add(self, records: Sequence[Record]) -> set[str]:
        """Returns the ids that another birth holds."""
        first: dict[str, Record] = {}
        taken: set[str] = set()
        for r in records:
            if first.setdefault(r.id, r).birth != r.birth:
                taken.add(r.id)
        made = [(r, fields_of_record(r)) for r in first.values()]
        await self._floor.lift(first.values())
        sizes = [(1, len(r.body) + len(r.cursor) + 1_000) for r, _ in made]
        pieces = [[made[i] for i in chunk] for chunk in chunks_of(sizes, _PIECE, _PIECE_BYTES)]
        answers = await in_parallel([partial(self._add, piece) for piece in pieces])
        return taken.union(*answers)

    async def _add(self, piece: Sequence[tuple[Record, dict[str, wire.Value]]]) -> set[str]:
        taken: set[str] = set()
        for attempt in range(_TRIES):
            await pause(attempt)
            written = await self._server.batch(
                [wire.creation(self._names.job(r.id), fields) for r, fields in piece]
            )
            left = [item for item, at_us in zip(piece, written, strict=True) if at_us is None]
            if not left:
                return taken
            there, _ = await self._server.get([self._names.job(r.id) for r, _ in left], ["birth"])
            piece = []
            for item in left:
                found = there.get(self._names.job(item[0].id))
                if found is None:
                    # Removed meanwhile, or someone else was writing to it.
                    piece.append(item)
                elif wire.value_of(found, "birth") != item[0].birth:
                    taken.add(item[0].id)
            if not piece:
                return taken
        raise StoreUnavailable(f"job {piece[0][0].id!r} came and went again and again while it was added")

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        found, _ = await self._server.get([self._names.job(id) for id in dict.fromkeys(ids)])
        records = (record_of(document) for document in found.values())
        return {r.id: r for r in records}

    # -- pages ---------------------------------------------------------------------------------------------------------

    async def page(self, where: Filter, limit: int, after: Record | None) -> list[Record]:
        if where.id_prefix:
            return await self._page_of_prefix(where, limit, after)
        filters: list[wire.Filter] = []
        if where.queue is not None:
            filters.append(("queue", "==", where.queue))
        if where.task is not None:
            filters.append(("task", "==", where.task))
        if where.hold is not None:
            filters.append(("hold", "==", where.hold or None))
        behind: list[tuple[str, wire.Value]] | None = None
        if after is not None:
            behind = [("wake", to_us(after.wake_at)), ("__name__", self._names.job(after.id))]
        found, _ = await self._server.query(
            wire.query(JOBS, filters, ["wake", "__name__"], limit, behind=behind)
        )
        return [record_of(document) for document in found]

    async def _page_of_prefix(self, where: Filter, limit: int, after: Record | None) -> list[Record]:
        """No index leads from a part of the id to the order by time: the keys of all that begin so are read and sorted here."""
        assert where.id_prefix is not None
        start, end = self._names.prefixed(where.id_prefix)
        filters: list[wire.Filter] = [("__name__", ">=", start), ("__name__", "<", end)]
        fields = ["wake", "queue", "task", "hold"]
        found, _ = await self._server.query(wire.query(JOBS, filters, ["__name__"], None, fields=fields))
        keys = sorted((d.fields["wake"].integer_value, id_of(d.name)) for d in found if _matches(d, where))
        if after is not None:
            floor = (to_us(after.wake_at), after.id)
            keys = [key for key in keys if key > floor]
        there = await self.get([id for _, id in keys[:limit]])
        return [there[id] for _, id in keys[:limit] if id in there]

    # -- changes -------------------------------------------------------------------------------------------------------

    async def update(self, update: Update) -> Record | None:
        name = self._names.job(update.id)
        check_size(update.id, len(update.body), 0)
        for attempt in range(_TRIES):
            await pause(attempt)
            found, now_us = await self._server.get([name])
            if name not in found:
                return None
            record = record_of(found[name])
            if record.version != update.version:
                return None
            check_size(update.id, len(update.body), len(record.cursor))
            changed, fields = _changed(record, update, now_us)
            try:
                await self._server.commit(
                    [wire.update(name, fields, wire.microseconds(found[name].update_time))]
                )
            except Conflict:
                continue
            return changed
        raise StoreUnavailable(f"job {update.id!r} changed again and again while it was updated")

    async def remove(self, ids: Sequence[str]) -> set[str]:
        unique = list(dict.fromkeys(ids))
        pieces = [unique[i : i + _PIECE] for i in range(0, len(unique), _PIECE)]
        answers = await in_parallel([partial(self._remove, piece) for piece in pieces])
        return set[str]().union(*answers)

    async def _remove(self, ids: Sequence[str]) -> set[str]:
        removed: set[str] = set()
        for attempt in range(_TRIES):
            await pause(attempt)
            written = await self._server.batch([wire.deletion(self._names.job(id)) for id in ids])
            left = [id for id, at_us in zip(ids, written, strict=True) if at_us is None]
            removed |= set(ids).difference(left)
            if not left:
                return removed
            # Not there, as a rule; or someone else was writing to it.
            there, _ = await self._server.get([self._names.job(id) for id in left], ["version"])
            ids = [id for id in left if self._names.job(id) in there]
            if not ids:
                return removed
        raise StoreUnavailable(f"job {ids[0]!r} changed again and again while it was removed")


def _changed(r: Record, update: Update, now_us: int) -> tuple[Record, dict[str, wire.Value]]:
    """The record after *update*, and the fields that say so."""
    fields: dict[str, wire.Value] = {
        "body": update.body,
        "version": r.version + 1,
        "queue": update.queue,
        "priority": update.priority,
        "task": r.task if update.task is None else update.task,
    }
    changed = replace(r, **fields)
    if r.holder is None or update.revoke:
        wake_us = now_us if update.revoke else to_us(update.wake_at)
        fields |= {"hold": update.hold, "wake": wake_us, "holder": None}
        fields["rank"] = rank_of(update.priority, wake_us)
        wake_at = None if not update.revoke and update.wake_at is None else to_seconds(wake_us)
        changed = replace(changed, hold=update.hold, wake_at=wake_at, holder=None)
    return changed, fields


def _matches(document: Any, where: Filter) -> bool:
    return (
        id_of(document.name).startswith(where.id_prefix or "")
        and (where.queue is None or wire.value_of(document, "queue") == where.queue)
        and (where.task is None or wire.value_of(document, "task") == where.task)
        and (where.hold is None or (wire.value_of(document, "hold") or "") == where.hold)
    )
