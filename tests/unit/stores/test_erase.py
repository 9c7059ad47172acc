"""``erase()``, which the stores on servers have: all of one namespace, and nothing of another."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from asyncsched import store_from_url
from asyncsched.contract import Entry, Filter, Record, Settlement
from tests.servers.running import SERVERS, Servers

pytestmark = pytest.mark.anyio


@pytest.fixture(params=sorted(SERVERS))
async def two(
    request: pytest.FixtureRequest, stores: Sequence[str], servers: Servers
) -> AsyncIterator[list[Any]]:
    """Two namespaces of one server, each with a job, a run and a lease."""
    kind: str = request.param
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    url = servers.url(kind)
    mark = "&" if "?" in url else "?"
    made: list[Any] = [store_from_url(f"{url}{mark}namespace=e{secrets.token_hex(5)}") for _ in range(2)]
    for store in made:
        await store.open()
        await fill(store)
    yield made
    for store in made:
        await store.erase()
        await store.close()


async def fill(store: Any) -> None:
    now = await store.now()
    await store.add([Record("due", "b", "default", 0, "task", now - 1, None, b"body", b"")])
    await store.add([Record("later", "b", "default", 0, "task", now + 60, "paused", b"body", b"")])
    [held] = (await store.claim(["default"], "token", 10, 30.0)).records
    entry = Entry(held.id, held.fence, "run", now, now, b"run")
    await store.settle(
        [Settlement(held.id, held.fence, held.holder, held.version, wake_at=now + 60, entries=(entry,))]
    )
    await store.acquire(["lock"], "me", 30.0)


async def holds(store: Any) -> tuple[int, int, bool]:
    """How many records and runs there are, and whether the lease is free."""
    records, runs = await store.page(Filter(), 100), await store.runs()
    return len(records), len(runs), bool(await store.acquire(["lock"], "another", 0.001))


async def test_erasing_one_namespace_leaves_the_other_as_it_was(two: list[Any]) -> None:
    erased, other = two
    assert await holds(erased) == (2, 1, False)
    await erased.erase()
    await erased.close()
    await erased.open()
    assert await holds(erased) == (0, 0, True)
    assert await holds(other) == (2, 1, False)


async def test_what_was_erased_can_be_filled_again(two: list[Any]) -> None:
    store, _ = two
    await store.erase()
    await store.close()
    await store.open()
    await fill(store)
    assert await holds(store) == (2, 1, False)
