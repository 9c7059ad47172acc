"""Settlements: each job's document is changed by its own holder alone, in one write that also says that the rest of it counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from asyncsched.clock import SystemClock
from asyncsched.contract import Settled, Settlement
from asyncsched.stores.mongodb._batches import Batches, Part, part_of
from asyncsched.stores.mongodb._documents import Keys, literal
from asyncsched.stores.mongodb._server import Document, Names, Server
from asyncsched.stores.mongodb._time import ServerTime

__all__ = ["Settling"]

_T = TypeVar("_T")

#: Settlements of one batch, and the bytes of all that they bring. A document of MongoDB's has 16 MB at the most.
_PIECE = 250
_BYTES = 4_000_000

#: Kind, fence, holder and version: what those that one statement settles have in common.
_Group = tuple[str, int, str, int]


class Settling:
    """Settlements of one namespace."""

    def __init__(self, server: Server, names: Names, keys: Keys, time: ServerTime, batches: Batches) -> None:
        self._server, self._names, self._keys, self._time, self._batches = server, names, keys, time, batches

    async def settle(
        self, settlements: Sequence[Settlement], hint: Callable[[float | None], None]
    ) -> list[Settled]:
        """The answers, in the order given; *hint* is told what became due when."""
        answers: dict[int, Settled] = {}
        for batch in _rounds(settlements):
            for (place, s), answer in zip(batch, await self._settle([s for _, s in batch]), strict=True):
                answers[place] = answer
                _tell(s, answer, self._time.estimate, hint)
        return [answers[place] for place in range(len(settlements))]

    async def _settle(self, batch: Sequence[Settlement]) -> list[Settled]:
        """Settle claims of different jobs."""
        began_at = SystemClock.monotonic()
        id = self._batches.new_id()
        # A deletion counts as one: whoever comes by takes away what is marked, if this instance dies.
        parts = [part_of(s) for s in batch if s.entries or s.spawn or s.unpark or _is_deletion(s)]
        done = await self._update(id, batch, parts)
        answers: list[Settled] = (
            ["done"] * len(batch) if done == len(batch) else await self._sorted_out(id, batch)
        )
        if parts:
            whole = [
                part_of(s) for s, answer in zip(batch, answers, strict=True) if answer in ("done", "stale")
            ]
            logged = [part_of(s) for s, answer in zip(batch, answers, strict=True) if answer == "gone"]
            await self._batches.perform(id, whole, logged)
        dead = [
            s.id for s, answer in zip(batch, answers, strict=True) if answer == "done" and _is_deletion(s)
        ]
        await self._batches.end(id, dead, is_written=bool(parts), since=began_at)
        return answers

    async def _update(self, batch: str, settlements: Sequence[Settlement], parts: Sequence[Part]) -> int:
        """Say what the batch does, and settle those that are held as they say; return how many were."""
        groups: dict[_Group, list[Settlement]] = {}
        for s in settlements:
            kind = "back" if s.hand_back else "delete" if s.delete else "move"
            groups.setdefault((kind, s.fence, self._keys.of(s.holder), s.version), []).append(s)
        updates = [
            {
                "q": {
                    "_id": {"$in": [self._keys.of(s.id) for s in group]},
                    "fence": fence,
                    "holder": holder,
                    "version": version,
                },
                "u": self._change(kind, batch, fence, group),
                "multi": True,
            }
            for (kind, fence, holder, version), group in groups.items()
        ]
        if parts:
            updates.insert(0, self._batches.write(batch, parts))
        answer = await self._server.write({"update": self._names.jobs, "updates": updates, "ordered": True})
        return int(answer["n"]) - bool(parts)

    def _change(self, kind: str, batch: str, fence: int, group: Sequence[Settlement]) -> Any:
        if kind == "delete":
            gone = {"lane": None, "wake": None, "hold": None, "holder": None}
            return {"$set": {**gone, "dead": batch, "batch": batch, "settled": fence}}
        let_go: Document = {"holder": None, "batch": literal(batch)}
        if kind == "back":
            let_go["tries"] = {"$max": [{"$subtract": ["$tries", 1]}, 0]}
        else:
            let_go |= {"settled": fence, "tries": 0, "prior": None}
        own = [self._own(s) for s in group]
        if len(own) == 1:
            return [{"$set": {**let_go, **{name: literal(value) for name, value in own[0].items()}}}]
        # Each finds its own values by its place among the ids: one statement for all is four times as fast as one for each.
        ids = [self._keys.of(s.id) for s in group]
        mine = {"$arrayElemAt": [literal(own), {"$indexOfArray": [literal(ids), "$_id"]}]}
        return [
            {"$set": {**let_go, "own": mine}},
            {"$set": {name: f"$own.{name}" for name in own[0]}},
            {"$unset": "own"},
        ]

    def _own(self, s: Settlement) -> Document:
        if s.hand_back:
            return {"wake": s.wake_at}
        return {
            "wake": s.wake_at,
            "cursor": s.cursor,
            "hold": None if s.hold is None else self._keys.of(s.hold),
        }

    # -- what was not as it said ---------------------------------------------------------------------------------------

    async def _sorted_out(self, batch: str, settlements: Sequence[Settlement]) -> list[Settled]:
        """What became of each, where some were updated meanwhile, or are not held any more."""
        there = await self._read(settlements)
        answers: list[Settled] = [self._answer(batch, s, there.get(self._keys.of(s.id))) for s in settlements]
        stale = [s for s, answer in zip(settlements, answers, strict=True) if answer == "stale"]
        if stale:
            updates = [self._stale_update(batch, s) for s in stale]
            answer = await self._server.write(
                {"update": self._names.jobs, "updates": updates, "ordered": False}
            )
            if answer["n"] != len(stale):
                there |= await self._read(stale)
                missed = {s.id for s in stale if (there.get(self._keys.of(s.id)) or {}).get("batch") != batch}
                for place, s in enumerate(settlements):
                    if s.id in missed:
                        found = self._answer(batch, s, there.get(self._keys.of(s.id)))
                        answers[place] = "lost" if found == "stale" else found
        await self._finish_first(batch, settlements, answers, there)
        return answers

    async def _read(self, settlements: Sequence[Settlement]) -> dict[str, Document]:
        command: Document = {
            "find": self._names.jobs,
            "filter": {"_id": {"$in": [self._keys.of(s.id) for s in settlements]}},
            "projection": {"fence": 1, "holder": 1, "settled": 1, "batch": 1, "dead": 1},
        }
        return {d["_id"]: d for d in await self._server.rows(command)}

    def _answer(self, batch: str, s: Settlement, document: Document | None) -> Settled:
        if document is None:
            return "gone"
        if document.get("batch") == batch:
            return "done"
        if document.get("dead") is not None:
            return "gone"
        if document["fence"] == s.fence and document["holder"] == self._keys.of(s.holder):
            return "stale"
        return "already" if document["settled"] == s.fence else "lost"

    def _stale_update(self, batch: str, s: Settlement) -> Document:
        change: Document = {"holder": None, "batch": literal(batch), "wake": self._time.expression()}
        if s.hand_back:
            change["tries"] = {"$max": [{"$subtract": ["$tries", 1]}, 0]}
        else:
            change |= {"settled": s.fence, "tries": 0, "prior": None, "cursor": literal(s.cursor)}
        which = {"_id": self._keys.of(s.id), "fence": s.fence, "holder": self._keys.of(s.holder)}
        return {"q": which, "u": [{"$set": change}]}

    async def _finish_first(
        self,
        batch: str,
        settlements: Sequence[Settlement],
        answers: Sequence[Settled],
        there: dict[str, Document],
    ) -> None:
        """What was settled by an earlier call, whose reply was lost, is carried out before it is answered to be so."""
        earlier = set()
        for s, answer in zip(settlements, answers, strict=True):
            document = there.get(self._keys.of(s.id))
            if document is not None and answer in ("already", "gone"):
                earlier |= {document.get("batch"), document.get("dead")}
        await self._batches.finish(id for id in earlier if id is not None and id != batch)


def _rounds(settlements: Sequence[Settlement]) -> Iterator[list[tuple[int, Settlement]]]:
    """Pieces of a size that a document can have, with each job once in each: the second settlement of one comes later."""
    left = list(enumerate(settlements))
    while left:
        piece: list[tuple[int, Settlement]] = []
        later: list[tuple[int, Settlement]] = []
        seen: set[str] = set()
        size = 0
        for place, s in left:
            more = _size_of(s)
            if s.id in seen or (piece and (len(piece) == _PIECE or size + more > _BYTES)):
                later.append((place, s))
                continue
            piece.append((place, s))
            seen.add(s.id)
            size += more
        yield piece
        left = later


def _size_of(s: Settlement) -> int:
    entries = sum(len(entry.body) for entry in s.entries)
    return len(s.cursor) + entries + sum(len(child.body) + len(child.cursor) for child in s.spawn)


def _is_deletion(s: Settlement) -> bool:
    return s.delete and not s.hand_back


def _tell(
    s: Settlement, answer: Settled, now: Callable[[], float], hint: Callable[[float | None], None]
) -> None:
    if answer not in ("done", "stale"):
        return
    if answer == "stale" or s.unpark is not None:
        hint(now())
    elif not _is_deletion(s) and s.wake_at is not None:
        hint(s.wake_at)
    for child in s.spawn:
        if child.wake_at is not None:
            hint(child.wake_at)
