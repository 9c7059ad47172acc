"""What open() makes sure of: a server that can do it, indexes, and a schema of the right version."""

from __future__ import annotations

import asyncio
import random

from asyncsched.errors import SchemaError, StoreError, StoreUnavailable
from asyncsched.stores.mongodb._documents import Keys
from asyncsched.stores.mongodb._server import Document, Names, Refused, Server

__all__ = ["INDEXES", "check_schema", "ddl", "has_change_streams"]

SCHEMA_VERSION = 1
_ATTEMPTS = 8

#: By collection: the indexes by name. What nobody holds, and what has no hold, is left out of the small ones.
INDEXES: dict[str, dict[str, Document]] = {
    "jobs": {
        "lane": {"key": {"lane": 1, "wake": 1, "_id": 1}},
        "holder": {"key": {"holder": 1}, "partialFilterExpression": {"holder": {"$gt": ""}}},
        "hold": {"key": {"hold": 1, "wake": 1, "_id": 1}, "partialFilterExpression": {"hold": {"$gt": ""}}},
    },
    "log": {"by_time": {"key": {"by_time": 1}}, "by_job": {"key": {"by_job": 1}}},
    "leases": {},
}


def ddl(names: Names) -> str:
    """The commands of MongoDB's shell that make collections and indexes beforehand."""
    lines = [
        "// The schema's version is written by open(); it makes all of this by itself where create_schema is true."
    ]
    for kind, indexes in INDEXES.items():
        collection = getattr(names, kind)
        lines.append(f'db.createCollection("{collection}");')
        for name, index in indexes.items():
            key = ", ".join(f"{field}: 1" for field in index["key"])
            partial = index.get("partialFilterExpression")
            options = f'name: "{name}"'
            if partial is not None:
                [field] = partial
                options += f', partialFilterExpression: {{ {field}: {{ $gt: "" }} }}'
            lines.append(f"db.{collection}.createIndex({{ {key} }}, {{ {options} }});")
    return "\n".join(lines) + "\n"


async def check_schema(server: Server, names: Names, keys: Keys, may_create: bool) -> None:
    """Make what is missing where that is allowed, or check its version; raises SchemaError."""
    here = f"namespace {keys.namespace!r} in {names.jobs} of {server.name}"
    found = await _version(server, names, keys)
    if found not in (None, SCHEMA_VERSION):
        raise SchemaError(f"{here} has schema {found}, this code {SCHEMA_VERSION}: upgrade asyncsched")
    # Also of a namespace that is there: a copy of a database may have come without its indexes.
    try:
        missing = await _missing(server, names)
    except Refused:
        if found is None:
            raise
        missing = []  # This user may not look.
    if missing and not may_create:
        raise SchemaError(
            f"{here} has no schema ({', '.join(missing)} missing): open it once with create_schema=True, "
            "or run what ddl() tells"
        )
    if missing:
        await _create(server, names)
    if found is None:
        document = {"_id": keys.own, "schema": SCHEMA_VERSION, "at": 0.0}
        await server.write({"insert": names.jobs, "documents": [document]}, may_exist=True)


async def has_change_streams(server: Server, names: Names) -> bool:
    """Whether the server tells of writes: a replica set or a sharded cluster of MongoDB's does."""
    try:
        answer = await server.command(
            {"aggregate": names.jobs, "pipeline": [{"$changeStream": {}}], "cursor": {"batchSize": 0}}
        )
    except StoreUnavailable:
        raise
    except StoreError:
        return False
    await server.command({"killCursors": names.jobs, "cursors": [answer["cursor"]["id"]]})
    return True


async def _version(server: Server, names: Names, keys: Keys) -> int | None:
    [*found] = await server.rows({"find": names.jobs, "filter": {"_id": keys.own}})
    return int(found[0]["schema"]) if found else None


async def _missing(server: Server, names: Names) -> list[str]:
    """The indexes that are not there."""
    missing = []
    for kind, indexes in INDEXES.items():
        collection = getattr(names, kind)
        if indexes:
            there = await _index_names(server, collection)
            missing += [f"index {name} of {collection}" for name in indexes if name not in there]
    return missing


async def _index_names(server: Server, collection: str) -> set[str]:
    try:
        return {index["name"] for index in await server.rows({"listIndexes": collection, "cursor": {}})}
    except (StoreUnavailable, Refused):
        raise
    except StoreError:
        return set()  # There is no such collection.


async def _create(server: Server, names: Names) -> None:
    for kind, indexes in INDEXES.items():
        if indexes:
            wanted = [{"name": name, **index} for name, index in indexes.items()]
            await _patiently(server, {"createIndexes": getattr(names, kind), "indexes": wanted})


async def _patiently(server: Server, command: Document) -> None:
    """Instances that come up together are in each other's way here, for a moment."""
    for attempt in range(_ATTEMPTS):
        try:
            await server.command(dict(command))
        except StoreError as error:
            if isinstance(error, Refused) or attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(random.uniform(0.02, 0.1) * 2 ** min(attempt, 4))
        else:
            return
