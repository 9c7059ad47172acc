"""Keys that nobody asks for any more do not stay in a store for ever."""

from pathlib import Path

import pytest

from asyncsched.stores import store_from_url
from tests.servers.running import Servers
from tests.support.stores import url_of

pytestmark = pytest.mark.anyio

#: What goes by a clock of its own, or by something else than time, has tests of its own.
OTHERS = {
    "memory": "forgets as it takes others",
    "etcd": "has the server delete them",
    "zookeeper": "goes by when the server says that the node was written",
    "mongodb": "keeps them for a day, by the server's clock",
}


async def test_named_leases_that_ended_long_ago_are_forgotten_by_pruning(
    store_kind: str, tmp_path: Path, servers: Servers
) -> None:
    if store_kind in OTHERS:
        pytest.skip(f"{store_kind} {OTHERS[store_kind]}")
    now = 1_800_000_000.0
    store = store_from_url(url_of(store_kind, tmp_path, servers))
    await store.open(now=lambda: now)
    try:
        old = await store.acquire([f"old-{i}" for i in range(30)], "me", 30.0)
        now += 3_600.0
        late = await store.acquire(["late"], "me", 30.0)
        now += 31.0
        assert await store.prune(None, None, 20) == 0
        await store.prune(None, None, 20)
        assert (await store.extend([*old.values(), *late.values()], 1.0)).keys() == {"late"}
        again = await store.acquire(list(old), "other", 30.0)
        assert min(lease.fence for lease in again.values()) > max(lease.fence for lease in old.values())
    finally:
        await store.close()
