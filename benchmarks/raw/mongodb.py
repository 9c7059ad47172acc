"""What PyMongo can do on this server: due jobs in a collection, claimed by a token and deleted by the hundred."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

__all__ = ["claim_and_delete", "queries"]

_BATCH = 100
_BODY = b"x" * 60
#: What clients of this project send when nothing is due.
_ASKED = ("aggregate", "find", "insert", "update", "delete", "findAndModify")


def _client(url: str) -> tuple[Any, Any]:
    from pymongo import AsyncMongoClient

    client: Any = AsyncMongoClient(url)
    return client, client[urlsplit(url).path.strip("/") or "asyncsched"]


async def claim_and_delete(url: str, jobs: int) -> float:
    """Jobs a second."""
    from pymongo import WriteConcern

    client, database = _client(url)
    due = database["raw_jobs"].with_options(write_concern=WriteConcern("majority"))
    await due.drop()
    await due.create_index([("wake_at", 1)], name="due")
    for start in range(0, jobs, 1000):
        piece = range(start, min(jobs, start + 1000))
        await due.insert_many([{"_id": f"{n:036}", "wake_at": float(n), "body": _BODY} for n in piece])
    began, done = time.perf_counter(), 0
    while True:
        found = due.find({"wake_at": {"$lte": 1e8}}, {"_id": 1}).sort("wake_at", 1).hint("due").limit(_BATCH)
        ids = [document["_id"] for document in await found.to_list()]
        if not ids:
            break
        which = {"_id": {"$in": ids}, "wake_at": {"$lte": 1e8}}
        await due.update_many(which, {"$set": {"wake_at": 1e9, "holder": f"claim-{done}"}})
        batch = await due.find({"_id": {"$in": ids}, "holder": f"claim-{done}"}).to_list()
        await due.delete_many({"_id": {"$in": [document["_id"] for document in batch]}})
        done += len(batch)
    rate = done / (time.perf_counter() - began)
    await due.drop()
    await client.close()
    return rate


async def queries(url: str) -> float | None:
    """How many commands the server has counted so far; None where it does not count them, as DocumentDB does not."""
    from pymongo.errors import OperationFailure

    client, _ = _client(url)
    try:
        found = (await client["admin"].command("serverStatus"))["metrics"]["commands"]
    except OperationFailure:
        return None
    finally:
        await client.close()
    return float(sum(found[name]["total"] for name in _ASKED))
