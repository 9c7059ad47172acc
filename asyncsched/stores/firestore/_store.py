"""The store: what it is told, and who does it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from google.cloud.firestore_v1 import AsyncClient

from asyncsched.address import flag, keywords_of, without_password
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
from asyncsched.errors import DefinitionError, SchemaError
from asyncsched.stores.firestore import _wire as wire
from asyncsched.stores.firestore._claims import Claims
from asyncsched.stores.firestore._floor import Floor
from asyncsched.stores.firestore._held import Held
from asyncsched.stores.firestore._indexes import definitions
from asyncsched.stores.firestore._jobs import Jobs
from asyncsched.stores.firestore._leases import Leases
from asyncsched.stores.firestore._log import Log
from asyncsched.stores.firestore._names import JOBS, LEASES, LOG, NEVER, to_seconds, to_us
from asyncsched.stores.firestore._records import LARGEST
from asyncsched.stores.firestore._server import Conflict, Place, Server, in_parallel
from asyncsched.stores.firestore._settlements import Settlements

__all__ = ["FirestoreStore"]

_SCHEMA = 1
_DATABASE = "(default)"
_KEYWORDS: dict[str, Callable[[str], object]] = {
    "namespace": str, "database": str, "create_schema": flag, "timeout": float, "emulator_host": str,
    "credentials_file": str, "endpoint": str,
}  # fmt: skip
#: What Firestore takes for the id of a document or collection.
_NAME = re.compile(r"(?!\.\.?$)(?!__.*__$)[^/]{1,200}")
_ERASED_AT_ONCE = 4_000


class FirestoreStore:
    """A job store in one collection of a Firestore database in Native mode.

    The place is named by *url*, ``firestore://project/collection``, or by *project* and *collection*; or it is reached by the
    user's own *client*, a ``google.cloud.firestore.AsyncClient``, which is never closed here, and *collection*. Two applications
    share a collection under different *namespace*. A request without an answer after *timeout* seconds raises StoreUnavailable.

    Google's credentials are found as its own libraries find them, unless *credentials* or *credentials_file* are given. With
    *emulator_host*, or with FIRESTORE_EMULATOR_HOST in the environment, Google's emulator is used instead, which needs none.

    Production needs the indexes that ``ddl()`` gives. Nothing is pushed: what other processes write is found by looking.
    """

    capabilities = Capabilities(
        durable=True,
        shared=True,
        clock="server",
        push_hints=False,
        linearizable=True,
        transactional_add=False,
        largest_record=LARGEST,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        project: str | None = None,
        collection: str | None = None,
        client: AsyncClient | None = None,
        database: str | None = None,
        namespace: str = "asyncsched",
        create_schema: bool = True,
        timeout: float = 10.0,
        emulator_host: str | None = None,
        credentials: Any = None,
        credentials_file: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        project, collection = _address(url, project, collection, client)
        _check(client, namespace, timeout, database, credentials, credentials_file, emulator_host, endpoint)
        if client is None and emulator_host is None:
            emulator_host = os.environ.get("FIRESTORE_EMULATOR_HOST") or None
        self._arguments: dict[str, Any] = {
            "project": project, "collection": collection, "database": database, "namespace": namespace,
            "create_schema": create_schema, "timeout": timeout, "emulator_host": emulator_host, "credentials": credentials,
            "credentials_file": credentials_file, "endpoint": endpoint,
        }  # fmt: skip
        self._client = client
        self._create_schema = create_schema
        if client is not None:
            database = client._database
        place = Place(project, database or _DATABASE, collection, namespace, emulator_host)
        self._server = Server(place, client, credentials or credentials_file, endpoint, timeout)
        self._listeners: list[Callable[[float | None], None]] = []
        self._floor = Floor(self._server)
        self._jobs = Jobs(self._server, self._floor)
        self._leases = Leases(self._server, self._floor)
        self._log = Log(self._server)
        self._hold(Held())

    def _hold(self, held: Held) -> None:
        self._held = held
        self._claims = Claims(self._server, held, self._floor)
        self._settlements = Settlements(self._server, held, self._floor)

    @classmethod
    def from_url(cls, url: str) -> FirestoreStore:
        """The store of ``firestore://project/collection``, with keywords behind a question mark."""
        address, keywords = keywords_of(url, _KEYWORDS)
        return cls(address, **keywords)

    @classmethod
    def from_client(cls, client: AsyncClient, collection: str, **keywords: Any) -> FirestoreStore:
        """The store in a *collection* that the user's own *client* reaches; the client is never closed here."""
        return cls(client=client, collection=collection, **keywords)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._server.given_now = now
        if self._server.is_open:
            return
        await self._server.connect()
        try:
            await self._open_namespace()
        except BaseException:
            await self._server.disconnect()
            raise
        self._server.ready()
        self._hold(self._held)

    async def _open_namespace(self) -> None:
        place = self._server.place
        while True:
            found, _ = await self._server.get([place.root])
            if place.root in found:
                break
            if not self._create_schema:
                raise SchemaError(f"{place.shown} has no schema: open it once with create_schema=True")
            try:
                await self._server.commit([wire.creation(place.root, {"schema": _SCHEMA})])
            except Conflict:
                continue
            return
        schema = wire.value_of(found[place.root], "schema")
        if schema != _SCHEMA:
            raise SchemaError(f"{place.shown} has schema {schema}, this code {_SCHEMA}: upgrade asyncsched")

    async def close(self) -> None:
        self._listeners.clear()
        await self._server.disconnect()

    def clone(self) -> FirestoreStore | None:
        """None for a user's own client, whose connection belongs to one event loop."""
        if self._client is not None:
            return None
        clone = FirestoreStore(**self._arguments)
        clone._server.given_now = self._server.given_now
        # What it renews, the settlements of this one need not read again.
        clone._hold(self._held)
        return clone

    async def now(self) -> float:
        return to_seconds(await self._server.now_us())

    def ddl(self) -> str:
        """A ``firestore.indexes.json``: what ``firebase deploy --only firestore:indexes`` makes of it, production needs."""
        return definitions()

    async def erase(self) -> None:
        """Delete all that this namespace holds: jobs, log and leases. The store must be opened anew afterwards."""
        for collection in (JOBS, LOG, LEASES):
            while True:
                query = wire.query(collection, [], ["__name__"], _ERASED_AT_ONCE, fields=[])
                found, _ = await self._server.query(query)
                if not found:
                    break
                writes = [wire.deletion(document.name) for document in found]
                pieces = [writes[i : i + 400] for i in range(0, len(writes), 400)]
                await in_parallel([partial(self._server.batch, piece) for piece in pieces])
        await self._server.batch([wire.deletion(self._server.place.root)])

    # -- records -------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken = await self._jobs.add(records)
        self._hint(to_us(r.wake_at) for r in records if r.id not in taken)
        return taken

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        return await self._jobs.get(ids)

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await self._jobs.page(where, limit, after)

    async def update(self, update: Update) -> Record | None:
        updated = await self._jobs.update(update)
        if updated is not None and updated.holder is None:
            self._hint([to_us(updated.wake_at)])
        elif updated is not None:
            self._tell(None)
        return updated

    async def remove(self, ids: Sequence[str]) -> set[str]:
        return await self._jobs.remove(ids)

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        return await self._claims.claim(queues, token, limit, lease_s, ahead_s)

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        return await self._claims.renew(claims, lease_s)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        wakes: list[int] = []
        try:
            return await self._settlements.settle(settlements, wakes)
        finally:
            self._hint(wakes)

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        """Of what is written through this store; Firestore tells nobody of what others write."""
        self._listeners.append(callback)

        def end() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return end

    def _hint(self, wakes: Iterable[int]) -> None:
        earliest = min(wakes, default=NEVER)
        if earliest >= NEVER:
            return
        self._claims.hint(earliest)
        self._tell(to_seconds(earliest))

    def _tell(self, wake_at: float | None) -> None:
        for listener in tuple(self._listeners):  # One of them may end itself.
            listener(wake_at)

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
        pruned = await self._log.prune(older_than_s, per_job, limit)
        await self._leases.forget(limit)
        return pruned


def _address(
    url: str | None, project: str | None, collection: str | None, client: AsyncClient | None
) -> tuple[str, str]:
    """Project and collection."""
    if url is not None:
        _refuse(
            bool(project or collection or client is not None),
            "a FirestoreStore takes a URL, or project= and collection=, or client= and collection=; two of them were given",
        )
        shown = without_password(url)
        parts = urlsplit(url)
        project, collection = unquote(parts.netloc), unquote(parts.path).strip("/")
        _refuse(
            parts.scheme != "firestore"
            or not project
            or "@" in project
            or not collection
            or bool(parts.query),
            f"{shown!r} is no Firestore URL: write firestore://project/collection",
        )
    if client is not None:
        _refuse(
            not isinstance(client, AsyncClient),
            f"client= takes an AsyncClient of google.cloud.firestore; this is "
            f"{type(client).__module__}.{type(client).__qualname__}",
        )
        _refuse(project is not None, "client= knows its project: leave project= away")
        project = client.project
    _refuse(
        not project or not collection,
        "a FirestoreStore takes a URL, such as firestore://project/collection, or project= (or client=) and collection=",
    )
    assert project is not None
    assert collection is not None
    segments = collection.split("/")
    _refuse(
        len(segments) % 2 == 0 or not all(map(_NAME.fullmatch, segments)),
        f"collection cannot be {collection!r}: a collection's path has an odd number of names, such as jobs or apps/mine/jobs",
    )
    return project, collection


def _check(
    client: AsyncClient | None,
    namespace: str,
    timeout: float,
    database: str | None,
    credentials: Any,
    credentials_file: str | None,
    emulator_host: str | None,
    endpoint: str | None,
) -> None:
    own = {
        "database": database, "credentials": credentials, "credentials_file": credentials_file,
        "emulator_host": emulator_host, "endpoint": endpoint,
    }  # fmt: skip
    given = [name for name, value in own.items() if value is not None]
    _refuse(client is not None and bool(given), f"client= is used as it is: give {', '.join(given)} to it")
    _refuse(
        credentials is not None and credentials_file is not None,
        "give credentials= or credentials_file=, not both",
    )
    _refuse(
        _NAME.fullmatch(namespace) is None,
        f"namespace cannot be {namespace!r}: it has a name of at most 200 characters, without slashes, "
        "neither . nor .. nor like __this__",
    )
    _refuse(
        not 0 < timeout < math.inf, f"timeout cannot be {timeout!r}: a number of seconds above 0 is wanted"
    )


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise DefinitionError(message)
