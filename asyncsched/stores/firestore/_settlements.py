"""settle: each settlement with its entries, children and unparked records in one commit, and many of them in one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from asyncsched.contract import Settled, Settlement
from asyncsched.errors import SchemaError, StoreUnavailable
from asyncsched.stores.firestore import _wire as wire
from asyncsched.stores.firestore._floor import Floor
from asyncsched.stores.firestore._held import Held, Holding
from asyncsched.stores.firestore._names import JOBS, rank_of, to_us
from asyncsched.stores.firestore._records import (
    check_entry,
    check_size,
    chunks_of,
    fields_of_entry,
    fields_of_record,
)
from asyncsched.stores.firestore._server import Conflict, Server, in_parallel, pause

__all__ = ["Settlements"]

#: Writes, and bytes of them, in one commit, unless a single settlement has more; Firestore takes 500 and ten mebibytes.
_PIECE = 400
_PIECE_BYTES = 4_000_000
#: A batch that meets other writers so often is settled one by one.
_TOGETHER = 3
_ALONE = 8
_STATE = ["fence", "holder", "version", "settled", "tries", "priority"]


class _Known(NamedTuple):
    """What was read before a commit."""

    #: By job id; None: it was removed.
    states: dict[str, Holding | None]
    #: Names of entries and children that are there already.
    there: frozenset[str]
    now_us: int


class Settlements:
    """What this process has claimed it knows, so that it writes without a read; a commit that meets other documents than those
    that were seen is refused as a whole, and then all are read."""

    def __init__(self, server: Server, held: Held, floor: Floor) -> None:
        self._server = server
        self._floor = floor
        self._names = server.names
        self._held = held

    async def settle(self, settlements: Sequence[Settlement], wakes: list[int]) -> list[Settled]:
        """The answers; *wakes* gets the instants at which something has become due thereby."""
        for s in settlements:
            _check(s)
            await self._floor.lift(s.spawn)
        answers: list[Settled] = []
        for batch in _independent(settlements):
            sizes = [(_writes_of(s), _bytes_of(s)) for s in batch]
            pieces = [[batch[i] for i in chunk] for chunk in chunks_of(sizes, _PIECE, _PIECE_BYTES)]
            for told in await in_parallel([partial(self._settle, piece, wakes) for piece in pieces]):
                answers += told
        return answers

    async def _settle(self, batch: Sequence[Settlement], wakes: list[int]) -> list[Settled]:
        told = await self._try(batch, wakes, _TOGETHER)
        if told is not None:
            return told
        if len(batch) > 1:
            each = await in_parallel([partial(self._settle, [s], wakes) for s in batch])
            return [answer for answers in each for answer in answers]
        told = await self._try(batch, wakes, _ALONE)
        if told is None:
            raise StoreUnavailable(f"job {batch[0].id!r} changed again and again while its run was settled")
        return told

    async def _try(self, batch: Sequence[Settlement], wakes: list[int], tries: int) -> list[Settled] | None:
        """The answers, or None if others wrote to the same documents each time."""
        known = self._known(batch)
        for attempt in range(tries):
            if known is None:
                known = await self._read(batch)
            answers: list[Settled] = [_answer(s, known.states[s.id]) for s in batch]
            writes = self._writes(batch, answers, known)
            found, unparked_us = await self._unparking(batch, answers, known)
            try:
                if writes or found:
                    await self._server.commit([*writes, *found])
            except Conflict:
                known = None
                await pause(attempt)
                continue
            for s, answer in zip(batch, answers, strict=True):
                self._held.forget(s.id, s.fence)
                if answer in ("done", "stale"):
                    wakes += [to_us(r.wake_at) for r in s.spawn]
                    wakes += [known.now_us] if answer == "stale" else [] if s.delete else [to_us(s.wake_at)]
            if found:
                wakes.append(unparked_us)
            return answers
        return None

    def _known(self, batch: Sequence[Settlement]) -> _Known | None:
        """What is known without a read, if that is enough; that no entry or child is there already is taken for granted."""
        states: dict[str, Holding | None] = {}
        for s in batch:
            holding = self._held.get(s.id, s.fence, s.holder)
            if holding is None or holding.version != s.version:
                return None
            check_size(s.id, holding.body, len(s.cursor))
            states[s.id] = holding
        return _Known(states, frozenset(), 0)

    async def _read(self, batch: Sequence[Settlement]) -> _Known:
        jobs = {self._names.job(s.id): s.id for s in batch}
        beside = {self._names.entry(e) for s in batch for e in s.entries}
        beside |= {self._names.job(r.id) for s in batch for r in s.spawn}
        found, now_us = await self._server.get([*jobs, *(beside - jobs.keys())], _STATE)
        states = {id: _state_in(found.get(name)) for name, id in jobs.items()}
        return _Known(states, frozenset(beside & found.keys()), now_us)

    # -- what is written -----------------------------------------------------------------------------------------------

    def _writes(self, batch: Sequence[Settlement], answers: Sequence[Settled], known: _Known) -> list[Any]:
        writes: list[Any] = []
        created = set(known.there)

        def create(name: str, fields: dict[str, wire.Value]) -> None:
            if name not in created:
                created.add(name)
                writes.append(wire.creation(name, fields))

        for s, answer in zip(batch, answers, strict=True):
            state = known.states[s.id]
            if answer in ("done", "stale"):
                assert state is not None
                name = self._names.job(s.id)
                if s.delete and answer == "done":
                    writes.append(wire.deletion(name, state.at_us))
                else:
                    fields = _fields(s, state, known.now_us if answer == "stale" else None)
                    writes.append(wire.update(name, fields, state.at_us))
                for record in s.spawn:
                    create(self._names.job(record.id), fields_of_record(record))
            if answer in ("done", "stale", "gone"):
                for entry in s.entries:
                    create(self._names.entry(entry), fields_of_entry(entry))
        return writes

    async def _unparking(
        self, batch: Sequence[Settlement], answers: Sequence[Settled], known: _Known
    ) -> tuple[list[Any], int]:
        """Writes that make parked records due now, and when that is."""
        limits: dict[str, int] = {}
        written: set[str] = set()
        for s, answer in zip(batch, answers, strict=True):
            if answer not in ("done", "stale"):
                continue
            written |= {self._names.job(id) for id in (s.id, *(r.id for r in s.spawn))} - known.there
            if s.unpark is not None:
                hold, limit = s.unpark
                limits[hold] = limits.get(hold, 0) + limit
        if not limits:
            return [], 0
        # One that is parked anew while it is looked for may be found twice, as it was and as it is; one commit takes one of them.
        calls = [partial(self._parked, hold, limit, written) for hold, limit in limits.items()]
        try:
            answered = await in_parallel(calls)
        except SchemaError as error:
            # It is not the settlement's fault, which waits until the index is there.
            raise StoreUnavailable(str(error)) from error
        return [write for writes, _ in answered for write in writes], min(now_us for _, now_us in answered)

    async def _parked(self, hold: str, limit: int, but: set[str]) -> tuple[list[Any], int]:
        """Of the earliest *limit* records with that hold that nobody holds; those named in *but* have a write already. It gets
        the names of these."""
        writes: list[Any] = []
        behind: list[tuple[str, wire.Value]] | None = None
        while True:
            room = limit - len(writes)
            found, now_us = await self._server.query(
                wire.query(
                    JOBS,
                    [("hold", "==", hold)],
                    ["wake", "__name__"],
                    room,
                    fields=["wake", "holder", "priority"],
                    behind=behind,
                )
            )
            for d in found:
                if wire.value_of(d, "holder") is not None or d.name in but:
                    continue
                but.add(d.name)
                rank = rank_of(wire.value_of(d, "priority"), now_us)
                fields: dict[str, wire.Value] = {"hold": None, "wake": now_us, "rank": rank}
                writes.append(wire.update(d.name, fields, wire.microseconds(d.update_time)))
            if len(found) < room or len(writes) >= limit:
                return writes, now_us
            behind = [("wake", found[-1].fields["wake"].integer_value), ("__name__", found[-1].name)]


def _check(s: Settlement) -> None:
    check_size(s.id, 0, len(s.cursor))
    for entry in s.entries:
        check_entry(entry)


def _answer(s: Settlement, state: Holding | None) -> Settled:
    if state is None:
        return "gone"
    if (state.fence, state.holder) != (s.fence, s.holder):
        return "already" if state.settled == s.fence else "lost"
    return "done" if state.version == s.version else "stale"


def _fields(s: Settlement, state: Holding, stale_us: int | None) -> dict[str, wire.Value]:
    wake_us = to_us(s.wake_at) if stale_us is None else stale_us
    rank = rank_of(state.priority, wake_us)
    if s.hand_back:
        return {"wake": wake_us, "rank": rank, "holder": None, "tries": max(state.tries - 1, 0)}
    fields: dict[str, wire.Value] = {
        "wake": wake_us, "rank": rank, "holder": None, "tries": 0, "cursor": s.cursor, "settled": s.fence, "prior": None,
    }  # fmt: skip
    if stale_us is None:
        fields["hold"] = s.hold
    return fields


def _state_in(document: Any | None) -> Holding | None:
    if document is None:
        return None
    return Holding(
        wire.microseconds(document.update_time), *(wire.value_of(document, field) for field in _STATE)
    )


def _independent(settlements: Sequence[Settlement]) -> list[list[Settlement]]:
    """Batches in which no settlement touches what another of them settles, so that their order does not matter."""
    batches: list[list[Settlement]] = []
    settled: set[str] = set()
    touched: set[str] = set()
    for s in settlements:
        spawned = {r.id for r in s.spawn}
        if not batches or s.id in touched or not settled.isdisjoint(spawned):
            batches.append([])
            settled, touched = set(), set()
        batches[-1].append(s)
        settled.add(s.id)
        touched |= {s.id} | spawned
    return batches


def _writes_of(s: Settlement) -> int:
    return 1 + len(s.entries) + len(s.spawn) + (s.unpark[1] if s.unpark is not None else 0)


def _bytes_of(s: Settlement) -> int:
    entries = sum(len(e.body) + 1_000 for e in s.entries)
    return len(s.cursor) + 500 + entries + sum(len(r.body) + len(r.cursor) + 1_000 for r in s.spawn)
