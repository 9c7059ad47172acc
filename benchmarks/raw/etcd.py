"""What aetcd's stubs can do on this server: due jobs by time, moved to the end of a lease and deleted by the hundred."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

__all__ = ["claim_and_delete", "queries"]

_BATCH = 100
_BODY = b"x" * 60
#: Of a transaction: a comparison, a delete and a put of each job, and 128 operations at the most.
_JOBS_OF_TXN = 50


async def claim_and_delete(url: str, jobs: int) -> float:
    """Jobs a second."""
    import aetcd
    from aetcd import rpc

    async with aetcd.Client(urlsplit(url).hostname, urlsplit(url).port) as client:
        kv: Any = client.kvstub

        def put(key: bytes, value: bytes) -> Any:
            return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value))

        def delete(key: bytes) -> Any:
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))

        def due(number: int) -> bytes:
            return b"raw/due/%036d" % number

        async def claim(piece: list[Any]) -> list[bytes]:
            """By one transaction, as there is no other client that could make it fail for one of them."""
            held = [b"raw/held/%d/%b" % (10**9, found.key[8:]) for found in piece]
            compares = [
                rpc.Compare(
                    result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=f.key, mod_revision=f.mod_revision
                )
                for f in piece
            ]
            ops = [delete(found.key) for found in piece]
            ops += [put(key, found.value) for key, found in zip(held, piece, strict=True)]
            answer = await kv.Txn(rpc.TxnRequest(compare=compares, success=ops))
            assert answer.succeeded
            return held

        await client.delete_prefix(b"raw/")
        for start in range(0, jobs, _BATCH):
            piece = range(start, min(jobs, start + _BATCH))
            await kv.Txn(rpc.TxnRequest(success=[put(due(n), _BODY) for n in piece]))
        began, done = time.perf_counter(), 0
        while True:
            # No farther than there can be enough: the server counts whatever is in the range.
            range_ = rpc.RangeRequest(key=due(done), range_end=due(done + 2 * _BATCH), limit=_BATCH)
            batch = list((await kv.Range(range_)).kvs)
            if not batch:
                break
            pieces = [batch[at : at + _JOBS_OF_TXN] for at in range(0, len(batch), _JOBS_OF_TXN)]
            held = [key for keys in await asyncio.gather(*map(claim, pieces)) for key in keys]
            await kv.Txn(rpc.TxnRequest(success=[delete(key) for key in held]))
            done += len(batch)
        rate = done / (time.perf_counter() - began)
        await client.delete_prefix(b"raw/")
        return rate


async def queries(url: str) -> float:
    """How many calls the server has counted so far."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 2379)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    lines = (await reader.read()).decode().splitlines()
    writer.close()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith("grpc_server_msg_received_total")
    )
