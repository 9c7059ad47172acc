"""What Google's client can do on Firestore: due jobs found by a query, moved to the end of a lease and deleted by the hundred."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["claim_and_delete", "queries"]

_BATCH = 100
_BODY = b"x" * 60


def _client(url: str) -> Any:
    import os

    from google.auth.credentials import AnonymousCredentials
    from google.cloud.firestore_v1 import AsyncClient

    parts = urlsplit(url)
    emulator = parse_qs(parts.query).get("emulator_host")
    if not emulator:
        return AsyncClient(project=parts.netloc)
    # The client takes it from there when it is made, and from nowhere else.
    before = os.environ.get("FIRESTORE_EMULATOR_HOST")
    os.environ["FIRESTORE_EMULATOR_HOST"] = emulator[0]
    try:
        anonymous: Any = AnonymousCredentials  # Without annotations.
        return AsyncClient(project=parts.netloc, credentials=anonymous())
    finally:
        del os.environ["FIRESTORE_EMULATOR_HOST"]
        if before is not None:
            os.environ["FIRESTORE_EMULATOR_HOST"] = before


async def claim_and_delete(url: str, jobs: int) -> float:
    """Jobs a second."""
    from google.cloud.firestore_v1.base_query import FieldFilter

    client = _client(url)
    due = client.collection("raw")

    async def all_gone() -> None:
        while found := [snapshot.reference async for snapshot in due.limit(400).stream()]:
            batch = client.batch()
            for reference in found:
                batch.delete(reference)
            await batch.commit()

    await all_gone()
    for start in range(0, jobs, _BATCH):
        batch = client.batch()
        for number in range(start, min(jobs, start + _BATCH)):
            batch.set(due.document(f"{number:036}"), {"wake": number, "body": _BODY})
        await batch.commit()
    query = due.where(filter=FieldFilter("wake", "<=", jobs)).order_by("wake").limit(_BATCH)
    began, done = time.perf_counter(), 0
    while found := [snapshot async for snapshot in query.stream()]:
        batch = client.batch()
        for snapshot in found:
            option = client.write_option(last_update_time=snapshot.update_time)
            batch.update(snapshot.reference, {"wake": 10**15, "holder": "raw"}, option=option)
        held = await batch.commit()
        batch = client.batch()
        for snapshot, result in zip(found, held, strict=True):
            batch.delete(snapshot.reference, option=client.write_option(last_update_time=result.update_time))
        await batch.commit()
        done += len(found)
    rate = done / (time.perf_counter() - began)
    await all_gone()
    return rate


async def queries(url: str) -> None:
    """The emulator does not count them."""
