"""What settlements do beside the job's own document: written down first, finished by whoever comes by.

A batch is one document that says what a whole call of ``settle`` will do: log entries, children, parked jobs. It is written in
one command with the marks that it gives: the job's document is marked with the batch's id in the same write that settles it. From
that moment its part of the batch counts, and before it does not. What counts is carried out, and then the batch is deleted. If an
instance dies in between, the next claim, or whoever reads the log or adds a job of that id, finds the batch and carries it out;
every step of that may be taken twice.

Children wait, unclaimable, until the batch says that all of their part are there. Whoever carries it out a second time can
therefore never add a child again that has run and gone already; nor can whoever began it, once it says that they were let go.

A document that is to be deleted is first marked as dead, and goes a moment later: its fences come from the server's clock, which
ticks in milliseconds, and a job that is added anew under the id must get higher ones.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Iterable, Sequence

import msgspec

from asyncsched.clock import SystemClock
from asyncsched.contract import Entry, Record, Settlement
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.mongodb._documents import ALIVE, Keys, literal
from asyncsched.stores.mongodb._server import Document, Names, Server, logger
from asyncsched.stores.mongodb._time import ServerTime

__all__ = ["GRACE_S", "Batches", "Part", "part_of"]

#: A batch as old as that was left by an instance that died, or is as slow.
GRACE_S = 10.0
#: A little more than a tick of the server's clock.
_TICK_S = 0.0012
#: So many documents go into one insert.
_PIECE = 500
#: How often a line is looked at anew that others have moved on meanwhile.
_TURNS = 10
_INFINITY = float("inf")


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one settlement of a batch does beside the job's document."""

    id: str
    fence: int
    holder: str
    entries: tuple[Entry, ...]
    spawn: tuple[Record, ...]
    unpark: tuple[str, int] | None


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(list[Part]).decode


def part_of(s: Settlement) -> Part:
    return Part(s.id, s.fence, s.holder, s.entries, s.spawn, s.unpark)


class Batches:
    """The batches of one namespace."""

    def __init__(self, server: Server, names: Names, keys: Keys, time: ServerTime) -> None:
        self._server, self._names, self._keys, self._time = server, names, keys, time

    def new_id(self) -> str:
        return self._keys.own + uuid.uuid4().hex

    def write(self, batch: str, parts: Sequence[Part]) -> Document:
        """The statement that says what the batch will do: the first of an ordered update."""
        adds = any(part.spawn for part in parts)
        return self._upsert(batch, {"parts": _ENCODE(parts), "adds": adds})

    def write_removal(self, batch: str, ids: Sequence[str]) -> Document:
        """The statement that says which documents it deletes."""
        return self._upsert(batch, {"removes": list(ids)})

    async def perform(
        self,
        batch: str,
        whole: Sequence[Part],
        logged: Sequence[Part] = (),
        *,
        there: Iterable[str] = (),
        let_go: Iterable[str] = (),
    ) -> None:
        """Carry out what counts: *whole* parts, and the log entries of those that are only *logged*.

        Of parts by the ids in *there* all children are there, and of those in *let_go* they may have run and gone already.
        """
        entries = [entry for part in (*whole, *logged) for entry in part.entries]
        known, ended = set(there), set(let_go)
        spawning = [part for part in whole if part.spawn and part.id not in ended]
        new = [part for part in spawning if part.id not in known]
        waiting = [part for part in spawning if part.id in known]
        unparked: dict[str, int] = {}
        for part in whole:
            if part.unpark is not None:
                hold, limit = part.unpark
                unparked[hold] = unparked.get(hold, 0) + limit
        steps = []
        if entries:
            steps.append(self._log(entries))
        if new:
            steps.append(self._spawn(batch, new))
        if waiting:
            steps.append(self._unblock(batch, waiting))
        steps += [self._unpark(hold, limit) for hold, limit in unparked.items()]
        await together(steps)

    async def end(self, batch: str, dead: Sequence[str], *, is_written: bool, since: float) -> None:
        """Delete the batch, and the documents of those *dead* ids that it has marked, which was begun at *since*."""
        deletes: list[Document] = []
        if dead:
            await asyncio.sleep(max(0.0, since + _TICK_S - SystemClock.monotonic()))
            deletes.append(self._burial(batch, [self._keys.of(id) for id in dead]))
        if is_written:
            deletes.append({"q": {"_id": batch}, "limit": 1})
        if deletes:
            await self._server.write({"delete": self._names.jobs, "deletes": deletes})

    async def end_removal(self, batch: str, ids: Sequence[str], since: float) -> list[str]:
        """Delete what the batch has marked, once what its last settlement did is done; return the ids."""
        marked = await self._marks({"_id": {"$in": [self._keys.of(id) for id in ids]}, "dead": batch})
        settled = {found["batch"] for found in marked.values() if found.get("batch") is not None}
        await self.finish(settled)
        found = [self._keys.name(key) or "" for key in marked]
        await self.end(batch, found, is_written=True, since=since)
        return found

    async def pending(self, *, adding: bool = False) -> list[str]:
        """The batches that are not ended; those alone that are *adding* children."""
        which: Document = {"_id": self._keys.owned()}
        if adding:
            which["adds"] = True
        command: Document = {"find": self._names.jobs, "filter": which, "projection": {"_id": 1}}
        return [found["_id"] for found in await self._server.rows(command) if found["_id"] != self._keys.own]

    async def of(self, ids: Iterable[str]) -> list[str]:
        """Those of the batches *ids* that are not ended."""
        command: Document = {
            "find": self._names.jobs,
            "filter": {"_id": {"$in": list(ids)}},
            "projection": {"_id": 1},
        }
        return [found["_id"] for found in await self._server.rows(command)]

    async def finish(self, ids: Iterable[str]) -> None:
        """Carry out what is left of those batches; of one that is still under way, what counts already."""
        wanted = list(set(ids))
        if not wanted:
            return
        command: Document = {"find": self._names.jobs, "filter": {"_id": {"$in": wanted}}}
        for found in await self._server.rows(command):
            await self._finish(found)

    async def finish_quietly(self, ids: Iterable[str]) -> None:
        """The same for whoever has other things to do: what cannot be finished is logged, and tried again by the next."""
        try:
            await self.finish(ids)
        except StoreUnavailable:
            raise
        except (StoreError, msgspec.DecodeError) as error:
            logger.warning(
                "%s: what a dead instance has left cannot be finished: %s", self._server.name, error
            )

    async def free(self, batch: str, key: str) -> None:
        """Have the id free again that a dead document of that batch holds."""
        began_at = SystemClock.monotonic()
        await self.finish([batch])
        await asyncio.sleep(max(0.0, began_at + _TICK_S - SystemClock.monotonic()))
        await self._server.write({"delete": self._names.jobs, "deletes": [self._burial(batch, [key])]})

    async def drop_forsaken(self, documents: Iterable[Document]) -> bool:
        """Delete those of *documents* that wait for a batch which is over: whoever added them too late has died since. Whether
        there were any."""
        waiting = {d["_id"]: d["blocked"] for d in documents if d.get("blocked") is not None}
        if not waiting:
            return False
        over = set(waiting.values()).difference(await self.of(set(waiting.values())))
        keys = [key for key, batch in waiting.items() if batch in over]
        if keys:
            which = {"_id": {"$in": keys}, "blocked": {"$in": list(over)}}
            await self._server.write({"delete": self._names.jobs, "deletes": [{"q": which, "limit": 0}]})
        return bool(keys)

    # -- below ---------------------------------------------------------------------------------------------------------

    def _upsert(self, batch: str, content: Document) -> Document:
        return {"q": {"_id": batch}, "u": {"$set": {"at": self._time.estimate(), **content}}, "upsert": True}

    @staticmethod
    def _burial(batch: str, keys: Sequence[str]) -> Document:
        return {"q": {"_id": {"$in": list(keys)}, "dead": batch}, "limit": 0}

    async def _finish(self, found: Document) -> None:
        batch, began_at = found["_id"], SystemClock.monotonic()
        if "removes" in found:
            await self.end_removal(batch, found["removes"], began_at)
            return
        parts = _DECODE(found["parts"])
        there = await self._marks({"_id": {"$in": [self._keys.of(part.id) for part in parts]}})
        # What is not there was deleted, by this batch once its part was carried out, or by a successor before it counted.
        known = [(part, there[key]) for part in parts if (key := self._keys.of(part.id)) in there]
        whole = [part for part, document in known if document.get("batch") == batch]
        await self.perform(batch, whole, there=found.get("there", ()), let_go=found.get("let_go", ()))
        is_under_way = any(
            document["fence"] == part.fence and document["holder"] == self._keys.of(part.holder)
            for part, document in known
        )
        if not is_under_way:
            await self.end(batch, [part.id for part in whole], is_written=True, since=began_at)
        elif spawning := [part.id for part in whole if part.spawn]:
            # Whoever settles the rest of it, and deletes it, must not add these children again.
            gone = {"q": {"_id": batch}, "u": {"$addToSet": {"let_go": {"$each": spawning}}}}
            await self._server.write({"update": self._names.jobs, "updates": [gone]})

    async def _marks(self, which: Document) -> dict[str, Document]:
        command: Document = {
            "find": self._names.jobs,
            "filter": which,
            "projection": {"batch": 1, "holder": 1, "fence": 1},
        }
        return {found["_id"]: found for found in await self._server.rows(command)}

    async def _log(self, entries: Sequence[Entry]) -> None:
        documents = [self._keys.entry(entry) for entry in entries]
        for start in range(0, len(documents), _PIECE):
            await self._insert_new(self._names.log, documents[start : start + _PIECE])

    async def _insert_new(self, collection: str, documents: Sequence[Document]) -> list[str]:
        """The ids of those that were not there."""
        command = {"insert": collection, "documents": documents, "ordered": False}
        answer = await self._server.write(command, may_exist=True)
        there = {error["index"] for error in answer.get("writeErrors", ())}
        return [document["_id"] for place, document in enumerate(documents) if place not in there]

    async def _spawn(self, batch: str, parts: Sequence[Part]) -> None:
        waiting = []
        for child in _children_of(parts):
            document = self._keys.document(child)
            document["lane"], document["blocked"] = None, batch
            waiting.append(document)
        made: list[str] = []
        for start in range(0, len(waiting), _PIECE):
            made += await self._insert_new(self._names.jobs, waiting[start : start + _PIECE])
        there = {"there": {"$each": [part.id for part in parts]}, "made": {"$each": made}}
        command: Document = {
            "findAndModify": self._names.jobs,
            "query": {"_id": batch},
            "update": {"$addToSet": there},
            "fields": {"let_go": 1, "made": 1},
        }
        found = (await self._server.command(command))["value"]
        # Where another has carried it out meanwhile, what was added here came too late.
        over = {part.id for part in parts} if found is None else set(found.get("let_go", ()))
        late = [self._keys.of(child.id) for child in _children_of(part for part in parts if part.id in over)]
        # What another has made, and what could be made here all the same, has run and gone in between.
        late += set(made).intersection([] if found is None else found.get("made", ()))
        if late:
            which = {"_id": {"$in": late}, "blocked": batch}
            await self._server.write({"delete": self._names.jobs, "deletes": [{"q": which, "limit": 0}]})
        await self._unblock(batch, [part for part in parts if part.id not in over])

    async def _unblock(self, batch: str, parts: Sequence[Part]) -> None:
        lanes: dict[str, list[str]] = {}
        for child in _children_of(parts):
            lanes.setdefault(self._keys.lane(child.queue, child.priority), []).append(self._keys.of(child.id))
        updates = [
            {
                "q": {"_id": {"$in": ids}, "blocked": batch},
                "u": {"$set": {"lane": lane}, "$unset": {"blocked": ""}},
                "multi": True,
            }
            for lane, ids in lanes.items()
        ]
        if updates:
            await self._server.write({"update": self._names.jobs, "updates": updates})

    async def _unpark(self, hold: str, limit: int) -> None:
        left = limit
        for _ in range(_TURNS):
            parked = await self._first_parked(hold, left)
            if not parked:
                return
            which = {"_id": {"$in": parked}, "hold": self._keys.of(hold), "holder": None}
            change = [{"$set": {"hold": literal(None), "wake": self._time.expression()}}]
            update = {"q": which, "u": change, "multi": True}
            answer = await self._server.write({"update": self._names.jobs, "updates": [update]})
            # Another may have let some of the same go: then there are others for this one.
            left -= int(answer["n"])
            if left <= 0:
                return

    async def _first_parked(self, hold: str, limit: int) -> list[str]:
        parked: list[str] = []
        # Those that are never due by themselves come last.
        for wake in ({"$gte": -_INFINITY}, None):
            if len(parked) < limit:
                command: Document = {
                    "find": self._names.jobs,
                    "filter": {"hold": self._keys.of(hold), "wake": wake, "holder": None, **ALIVE},
                    "sort": {"wake": 1, "_id": 1},
                    "limit": limit - len(parked),
                    "projection": {"_id": 1},
                }
                parked += [found["_id"] for found in await self._server.rows(command)]
        return parked


def _children_of(parts: Iterable[Part]) -> list[Record]:
    return [child for part in parts for child in part.spawn]


async def together(steps: Sequence[Awaitable[object]]) -> None:
    """Await all of them at once; the first error is raised, once the others have ended."""
    if len(steps) == 1:
        await steps[0]
    elif steps:
        for outcome in await asyncio.gather(*steps, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
