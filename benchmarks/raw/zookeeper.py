"""ZooKeeper: a node for each job in folders of a thousand; read, written and deleted by transactions of a hundred."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

__all__ = ["claim_and_delete", "queries"]

_BATCH = 100
_FOLDER = 1000
_BODY = b"x" * 60


async def claim_and_delete(url: str, jobs: int) -> float:
    client = await _client(url)
    if await client.exists("/raw"):
        await client.deleteall("/raw")
    await client.create("/raw")
    folders = [f"/raw/{n:06}" for n in range(0, jobs, _FOLDER)]
    for n, folder in enumerate(folders):
        await client.create(folder)
        names = range(n * _FOLDER, min(jobs, (n + 1) * _FOLDER))
        for at in range(0, len(names), _BATCH):
            made = client.begin_transaction()
            for name in names[at : at + _BATCH]:
                made.create(f"{folder}/{name:036}", _BODY)
            await made.commit()
    began = time.perf_counter()
    # Two at a time, so that the server works while the driver does.
    done = await asyncio.gather(_work(client, folders[::2]), _work(client, folders[1::2]))
    rate = sum(done) / (time.perf_counter() - began)
    await client.deleteall("/raw")
    await client.close()
    return rate


async def _work(client: Any, folders: list[str]) -> int:
    done = 0
    for folder in folders:
        names = sorted(await client.get_children(folder))
        for at in range(0, len(names), _BATCH):
            paths = [f"{folder}/{name}" for name in names[at : at + _BATCH]]
            read = await asyncio.gather(*map(client.get, paths))
            claim = client.begin_transaction()
            for path, (body, stat) in zip(paths, read, strict=True):
                claim.set_data(path, body, stat.version)
            await claim.commit()
            settle = client.begin_transaction()
            for path, (_, stat) in zip(paths, read, strict=True):
                settle.delete(path, stat.version + 1)
            done += len((await settle.commit()).deleted)
    return done


async def queries(url: str) -> float | None:
    """Packets; None where the server does not tell (``mntr`` is not on its whitelist)."""
    address = urlsplit(url).netloc.rpartition("@")[2].split(",")[0]
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port or 2181))
    writer.write(b"mntr")
    told = dict(line.split("\t", 1) for line in (await reader.read()).decode().splitlines() if "\t" in line)
    writer.close()
    await writer.wait_closed()
    counted = told.get("zk_packets_received")
    return None if counted is None else float(counted)


async def _client(url: str) -> Any:
    import aiozk

    client = aiozk.ZKClient(urlsplit(url).netloc)
    await client.start()
    return client
