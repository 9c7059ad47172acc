"""The store on MongoDB."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from asyncsched.address import flag, keywords_of, without_password
from asyncsched.clock import SystemClock
from asyncsched.contract import (
    Capabilities,
    Claim,
    Claimed,
    Entry,
    Filter,
    Lease,
    Record,
    Renewal,
    Settled,
    Settlement,
    Update,
)
from asyncsched.errors import DefinitionError, SchemaError, StoreUnavailable
from asyncsched.stores.mongodb._batches import Batches
from asyncsched.stores.mongodb._claims import Claims
from asyncsched.stores.mongodb._documents import ALIVE, Keys, literal, record_of
from asyncsched.stores.mongodb._leases import Leases
from asyncsched.stores.mongodb._listener import Listener
from asyncsched.stores.mongodb._log import Log
from asyncsched.stores.mongodb._server import Document, Names, Server
from asyncsched.stores.mongodb._settling import Settling
from asyncsched.stores.mongodb._setup import check_schema, ddl, has_change_streams
from asyncsched.stores.mongodb._time import ServerTime

__all__ = ["MongoStore"]

_T = TypeVar("_T")

_KEYWORDS: dict[str, Callable[[str], object]] = {
    "namespace": str,
    "database": str,
    "collection": str,
    "create_schema": flag,
    "timeout": float,
    "max_connections": int,
}
_FORMS = "write mongodb://user:password@host:27017/database, or mongodb+srv://"
#: So many items go into one command, and so many bytes of them.
_PIECE = 500
_BYTES = 8_000_000
#: How often an id that a dead document holds is freed before another writer of it is given way to.
_ATTEMPTS = 5
_INFINITY = float("inf")
_NUMBERS = {"$gte": -_INFINITY}


class MongoStore:
    """A job store in a MongoDB database (4.4 or later).

    The server is named by *url*, or reached by the user's own *client*, an ``AsyncMongoClient`` of PyMongo's or one of motor's,
    which is never closed here. The jobs are in *database* (that of the URL, or ``asyncsched``), in collections whose names begin
    with *collection*. Two applications share them under different *namespace*. With ``create_schema=False`` the indexes must
    exist; ``ddl()`` tells what makes them. A call that takes longer than *timeout* seconds raises StoreUnavailable. Other
    *options* go to the client as they are, those for TLS and authentication among them.
    """

    #: ``push_hints`` is decided by ``open``: it needs change streams, which replica sets and sharded clusters have.
    capabilities = Capabilities(
        durable=True,
        shared=True,
        clock="server",
        push_hints=False,
        linearizable=True,
        transactional_add=False,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        database: str | None = None,
        collection: str = "asyncsched",
        namespace: str = "asyncsched",
        create_schema: bool = True,
        timeout: float = 10.0,
        max_connections: int = 10,
        **options: Any,
    ) -> None:
        _check(url, client, namespace, collection, timeout, max_connections, options)
        named = None if url is None else unquote(urlsplit(url).path.strip("/"))
        database = database or named or "asyncsched"
        _refuse(
            re.fullmatch(r"[^/\\. \"$*<>:|?\0]{1,63}", database) is None,
            f'database cannot be {database!r}: MongoDB takes up to 63 characters, and none of /\\. "$*<>:|?',
        )
        self._arguments = {
            "url": url, "database": database, "collection": collection, "namespace": namespace, "create_schema": create_schema,
            "timeout": timeout, "max_connections": max_connections, **options,
        }  # fmt: skip
        self._client = client
        self._create_schema = create_schema
        self._server = Server(
            url,
            client,
            database,
            shown="the MongoDB of the given client" if url is None else without_password(url),
            timeout_s=timeout,
            connections=max_connections,
            options=options,
        )
        self._names = Names(collection)
        self._keys = Keys(namespace)
        self._time = ServerTime()
        parts = self._server, self._names, self._keys, self._time
        self._batches = Batches(*parts)
        self._claims = Claims(*parts, self._batches)
        self._settling = Settling(*parts, self._batches)
        self._leases = Leases(*parts)
        self._log = Log(*parts, self._batches)
        self._listeners: list[Callable[[float | None], None]] = []
        self._listener = Listener(self._server, self._names, self._keys, self._hint)
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    def from_client(cls, client: Any, **keywords: Any) -> MongoStore:
        """A store by the user's own client, which is never closed here."""
        return cls(client=client, **keywords)

    @classmethod
    def from_url(cls, url: str) -> MongoStore:
        """The store of ``mongodb://[user:password@]host[:port][,host]/database`` or ``mongodb+srv://``, with keywords behind a
        question mark; those that are not the store's go to the client."""
        address, keywords = keywords_of(url, _KEYWORDS, others=True)
        return cls(address, **keywords)

    def ddl(self) -> str:
        """The commands by which the collections and indexes are made."""
        return ddl(self._names)

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._time.given = now
        if self._server.is_open:
            return
        self._server.connect()
        try:
            await self._server.check()
            await check_schema(self._server, self._names, self._keys, self._create_schema)
            pushes = await has_change_streams(self._server, self._names)
            await self._anchor()
        except BaseException:
            await self.close()
            raise
        self.capabilities = replace(type(self).capabilities, push_hints=pushes)
        self._server.ready()
        self._listen()

    async def close(self) -> None:
        listening, self._listening = self._listening, None
        self._listeners.clear()
        try:
            if listening is not None:
                listening.cancel()
                # Unlike the task itself this tells its cancellation from that of the caller.
                await asyncio.wait([listening])
        finally:
            await self._server.disconnect()

    def clone(self) -> MongoStore | None:
        """None for a user's own client, whose connections belong to one event loop."""
        if self._client is not None:
            return None
        clone = MongoStore(**self._arguments)
        clone._time.given = self._time.given
        return clone

    async def now(self) -> float:
        return await self._anchor() if self._time.given is None else self._time.given()

    async def erase(self) -> None:
        """Delete all that this namespace holds: jobs, log and leases. The store must be opened anew afterwards."""
        for collection in (self._names.jobs, self._names.log, self._names.leases):
            await self._delete(collection, {"_id": self._keys.all()})
        await self._delete(self._names.jobs, {"_id": self._keys.owned()})

    # -- records -------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken: set[str] = set()
        lived = max((r.fence for r in records), default=0)
        if lived:
            await self._raise_fences(lived)
        for piece in _pieces(records, lambda r: len(r.body) + len(r.cursor)):
            taken |= await self._add(piece)
        self._hint_earliest(r.wake_at for r in records)
        return taken

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        found, adding, waiting = await self._found(ids)
        if adding:
            # Children of a job that is seen to have gone on are there.
            await self._batches.finish_quietly(adding)
            found, _, waiting = await self._found(ids)
        if await self._batches.drop_forsaken(waiting):
            found, _, _ = await self._found(ids)
        return found

    async def _found(self, ids: Sequence[str]) -> tuple[dict[str, Record], list[str], list[Document]]:
        """The records of those ids, the batches that are adding children, and the documents that wait for one; by one command
        for some hundred ids."""
        found: dict[str, Record] = {}
        adding: set[str] = set()
        waiting: list[Document] = []
        batches: Document = {"_id": self._keys.owned(), "adds": True}
        for piece in _pieces(ids, lambda _: 0):
            jobs: Document = {"_id": {"$in": [self._keys.of(id) for id in piece]}, **ALIVE}
            for document in await self._server.rows(
                {"find": self._names.jobs, "filter": {"$or": [jobs, batches]}}
            ):
                if document.get("adds"):
                    adding.add(document["_id"])
                    continue
                record = record_of(document, self._keys)
                found[record.id] = record
                if "blocked" in document:
                    waiting.append(document)
        return found, list(adding), waiting

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        # The children of a job that is seen to be gone are there.
        await self._batches.finish_quietly(await self._batches.pending(adding=True))
        which: Document = {"_id": self._keys.all(where.id_prefix or ""), **ALIVE}
        if where.queue is not None:
            which["queue"] = where.queue
        if where.task is not None:
            which["task"] = where.task
        if where.hold is not None:
            which["hold"] = self._keys.of(where.hold) if where.hold else None
        found: list[Document] = []
        if after is None or after.wake_at is not None:
            planned: list[Document] = [{**which, "wake": _NUMBERS}]
            if after is not None:
                behind = {**which["_id"], "$gt": self._keys.of(after.id)}
                planned = [
                    {**which, "wake": {"$gt": after.wake_at}},
                    {**which, "wake": after.wake_at, "_id": behind},
                ]
            found = await self._sorted(planned, limit)
        if len(found) < limit:
            never: Document = {**which, "wake": None}
            if after is not None and after.wake_at is None:
                never["_id"] = {**which["_id"], "$gt": self._keys.of(after.id)}
            found += await self._sorted([never], limit - len(found))
        return [record_of(document, self._keys) for document in found]

    async def update(self, update: Update) -> Record | None:
        command: Document = {
            "findAndModify": self._names.jobs,
            "query": {"_id": self._keys.of(update.id), "version": update.version, **ALIVE},
            "update": [{"$set": self._change(update)}],
            "new": True,
        }
        changed = (await self._server.command(command))["value"]
        if changed is None:
            return None
        record = record_of(changed, self._keys)
        if record.holder is not None:
            self._hint(None)
        elif record.wake_at is not None:
            self._hint(record.wake_at)
        return record

    async def remove(self, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for piece in _pieces(ids, lambda _: 0):
            found |= await self._remove(piece)
        return found

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        if not queues or limit <= 0:
            return Claimed([], None, await self.now())
        return await self._claims.claim(queues, token, limit, lease_s, ahead_s)

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        return await self._claims.renew(claims, lease_s)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        times: list[float | None] = []
        try:
            return await self._settling.settle(settlements, times.append)
        finally:
            self._hint_earliest(times)

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        listeners = self._listeners
        listeners.append(callback)
        self._listen()

        def end() -> None:
            if callback in listeners:
                listeners.remove(callback)

        return end

    # -- named leases --------------------------------------------------------------------------------------------------

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        return await self._leases.acquire(keys, holder, lease_s, limit)

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        return await self._leases.extend(leases, lease_s)

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._leases.release(leases)

    # -- the log -------------------------------------------------------------------------------------------------------

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        return await self._log.runs(job_id, kinds, limit, before)

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        await self._leases.prune()
        return await self._log.prune(older_than_s, per_job, limit)

    # -- below ---------------------------------------------------------------------------------------------------------

    async def _anchor(self) -> float:
        """Ask the server for its clock."""
        stages: list[Document] = [
            {"$match": {"_id": self._keys.own}},
            {"$project": {"lead": 1, "now": {"$toLong": "$$NOW"}}},
        ]
        found = await self._server.aggregate(self._names.jobs, stages)
        if not found:
            raise SchemaError(
                f"namespace {self._keys.namespace!r} of {self._server.name} was erased: open the store anew"
            )
        self._time.lead_us = max(self._time.lead_us, int(found[0].get("lead", 0)))
        return self._time.anchor(found[0]["now"])

    def _listen(self) -> None:
        if (
            self._listening is None
            and self._listeners
            and self.capabilities.push_hints
            and self._server.is_open
        ):
            self._listening = asyncio.get_running_loop().create_task(
                self._listener.run(), name=f"asyncsched-hints-{self._keys.namespace}"
            )

    def _hint(self, wake_at: float | None) -> None:
        for listener in tuple(self._listeners):  # One of them may end itself.
            listener(wake_at)

    def _hint_earliest(self, times: Any) -> None:
        earliest = min((at for at in times if at is not None), default=None)
        if earliest is not None and earliest < _INFINITY:
            self._hint(earliest)

    async def _raise_fences(self, fence: int) -> None:
        """Have no later fence of the namespace as low as *fence*, which comes from another store."""
        lead = self._time.lead_for(fence)
        if lead > self._time.lead_us:
            update = {"q": {"_id": self._keys.own}, "u": {"$max": {"lead": lead, "lowest": fence}}}
            await self._server.write({"update": self._names.jobs, "updates": [update]})
            await self._leases.raise_fences(fence)
            self._time.lead_us = lead

    async def _add(self, records: Sequence[Record]) -> set[str]:
        taken: set[str] = set()
        left = {r.id: r for r in reversed(records)}
        taken |= {r.id for r in records if left[r.id].birth != r.birth}
        for _ in range(_ATTEMPTS):
            documents = [self._keys.document(r) for r in left.values()]
            command: Document = {"insert": self._names.jobs, "documents": documents, "ordered": False}
            answer = await self._server.write(command, may_exist=True)
            places = [error["index"] for error in answer.get("writeErrors", ())]
            if not places:
                return taken
            there = await self._births([documents[place]["_id"] for place in places])
            if await self._batches.drop_forsaken(there.values()):
                there = await self._births(list(there))
            left = {
                r.id: r
                for r in left.values()
                if self._keys.of(r.id) in {documents[place]["_id"] for place in places}
            }
            for id, r in tuple(left.items()):
                found = there.get(self._keys.of(id))
                if found is not None and found.get("dead") is None:
                    if found["birth"] != r.birth:
                        taken.add(id)
                    del left[id]
                elif found is not None:
                    await self._batches.free(found["dead"], found["_id"])
            if not left:
                return taken
        raise StoreUnavailable(
            f"others add and remove {', '.join(sorted(left))} again and again: try it later"
        )

    async def _births(self, keys: Sequence[str]) -> dict[str, Document]:
        command: Document = {
            "find": self._names.jobs,
            "filter": {"_id": {"$in": list(keys)}},
            "projection": {"birth": 1, "dead": 1, "blocked": 1},
        }
        return {found["_id"]: found for found in await self._server.rows(command)}

    async def _sorted(self, filters: Sequence[Document], limit: int) -> list[Document]:
        """The first documents by wake time and id that match one of *filters*."""
        which = filters[0] if len(filters) == 1 else {"$or": list(filters)}
        command: Document = {
            "find": self._names.jobs,
            "filter": which,
            "sort": {"wake": 1, "_id": 1},
            "limit": limit,
        }
        return await self._server.rows(command) if limit > 0 else []

    def _change(self, update: Update) -> Document:
        hold = literal(None if update.hold is None else self._keys.of(update.hold))
        change: Document = {
            "body": literal(update.body),
            "version": update.version + 1,
            "queue": literal(update.queue),
            "priority": update.priority,
            "lane": literal(self._keys.lane(update.queue, update.priority)),
        }
        if update.task is not None:
            change["task"] = literal(update.task)
        if update.revoke:
            return {**change, "hold": hold, "wake": self._time.expression(), "holder": None}
        is_held = {"$gt": ["$holder", None]}
        # What listeners know an update by of a record that stays held.
        change["told"] = {"$cond": [is_held, update.version + 1, "$told"]}
        mine = {"hold": hold, "wake": literal(update.wake_at)}
        return {**change, **{name: {"$cond": [is_held, f"${name}", value]} for name, value in mine.items()}}

    async def _remove(self, ids: Sequence[str]) -> set[str]:
        batch = self._batches.new_id()
        keys = [self._keys.of(id) for id in ids]
        gone = {"lane": None, "wake": None, "hold": None, "holder": None, "dead": batch}
        update = {"q": {"_id": {"$in": keys}, **ALIVE}, "u": {"$set": gone}, "multi": True}
        updates = [self._batches.write_removal(batch, ids), update]
        await self._server.write({"update": self._names.jobs, "updates": updates, "ordered": True})
        return set(await self._batches.end_removal(batch, ids, SystemClock.monotonic()))

    async def _delete(self, collection: str, which: Document) -> None:
        await self._server.write({"delete": collection, "deletes": [{"q": which, "limit": 0}]})


def _pieces(items: Sequence[_T], size_of: Callable[[_T], int]) -> list[list[_T]]:
    """*items* in pieces that a command takes; one that is too large is a piece of its own, and is refused when it is sent."""
    pieces: list[list[_T]] = []
    room = 0
    for item in items:
        size = size_of(item)
        if not pieces or len(pieces[-1]) == _PIECE or size > room:
            pieces.append([])
            room = _BYTES
        pieces[-1].append(item)
        room -= size
    return pieces


def _check(
    url: str | None,
    client: Any,
    namespace: str,
    collection: str,
    timeout: float,
    max_connections: int,
    options: dict[str, Any],
) -> None:
    _refuse(
        (url is None) == (client is None),
        "a MongoStore takes a URL, such as mongodb://localhost:27017/database, or client=",
    )
    if url is not None:
        shown = without_password(url)
        _refuse(
            urlsplit(url).scheme not in ("mongodb", "mongodb+srv"), f"{shown!r} is no MongoDB URL: {_FORMS}"
        )
        _refuse("/" in urlsplit(url).path.strip("/"), f"{shown!r} names more than a database: {_FORMS}")
    kind = f"{type(client).__module__}.{type(client).__qualname__}"
    is_async = kind.partition(".")[0] in ("motor", "pymongo") and not kind.endswith(".MongoClient")
    _refuse(
        client is not None and not is_async,
        f"client= takes an AsyncMongoClient of pymongo, or an AsyncIOMotorClient; this is {kind}",
    )
    _refuse(
        client is not None and bool(options),
        f"client= is used as it is: give {', '.join(sorted(options))} to it",
    )
    _refuse(
        not 1 <= len(namespace) <= 255 or "\0" in namespace or "\1" in namespace,
        f"namespace cannot be {namespace!r}: it has 1 to 255 characters, and none is NUL or U+0001",
    )
    _refuse(
        re.fullmatch(r"[A-Za-z_][\w.-]{0,99}", collection, re.ASCII) is None
        or collection.startswith("system."),
        f"collection cannot be {collection!r}: the names of the store's collections begin with it",
    )
    _refuse(
        not 0 < timeout < math.inf, f"timeout cannot be {timeout!r}: a number of seconds above 0 is wanted"
    )
    _refuse(max_connections < 1, f"max_connections cannot be {max_connections}: a store needs 1 at the least")


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise DefinitionError(message)
