"""What an instance costs its server when nothing is due."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncsched import JobSpec, every, once
from asyncsched.stores import store_from_url
from tests.servers.running import SERVERS, Servers
from tests.support.faulty import FaultyStore
from tests.support.noting import Noting
from tests.support.proxy import proxied
from tests.support.running import running
from tests.support.stores import url_of

pytestmark = pytest.mark.anyio

IDLE_S = 12.0


@pytest.mark.parametrize("stored", [0, 5_000])
@pytest.mark.parametrize("kind", SERVERS)
async def test_an_idle_instance_asks_at_most_once_a_second_however_much_is_stored(
    kind: str,
    stored: int,
    stores: Sequence[str],
    servers: Servers,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    url = url_of(kind, tmp_path, servers)
    specs = [JobSpec("work", once(delay=3600 + n), id=f"job-{n}") for n in range(stored)]
    specs += [JobSpec("work", every(7200), id=f"recurring-{n}") for n in range(stored // 5)]
    async with proxied(url) as proxy:
        store = FaultyStore(store_from_url(proxy.of(url)))
        there = Noting(store)
        async with running(there.scheduler):
            await there.scheduler.add_jobs(specs)
            await asyncio.sleep(1.0)
            store.faults.calls.clear()
            requests = proxy.requests
            await asyncio.sleep(IDLE_S)
            requests = proxy.requests - requests
            calls = dict(store.faults.calls)
    with capsys.disabled():
        print(f"\n{kind}, {stored} stored: {requests} requests in {IDLE_S:g} s, calls {calls}")
    assert requests <= IDLE_S
