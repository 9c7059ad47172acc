"""What an instance costs its server when nothing is due."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from asyncsched import JobSpec, every, once
from asyncsched.stores import store_from_url
from tests.servers.running import SERVERS, Servers
from tests.support.faulty import FaultyStore
from tests.support.noting import Noting
from tests.support.proxy import proxied
from tests.support.running import running
from tests.support.stores import url_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

IDLE_S = 10.0
STORED = 5_000


async def test_an_idle_instance_asks_at_most_once_a_second_however_much_is_stored(
    stores: Sequence[str], servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All servers at once: there is time enough for each."""
    kinds = [kind for kind in SERVERS if kind in stores]
    if not kinds:
        pytest.skip("all servers were left out by --stores")
    ready = asyncio.Barrier(2 * len(kinds))
    urls = [(url_of(kind, tmp_path, servers), stored) for kind in kinds for stored in (0, STORED)]
    costs = await asyncio.gather(*(cost_of_idling(url, stored, ready) for url, stored in urls))
    said = []
    for kind, of_none, of_many in zip(kinds, costs[::2], costs[1::2], strict=True):
        with capsys.disabled():
            print(
                f"\n{kind}, idle for {IDLE_S:g} s: {of_none} with nothing stored, {of_many} with {STORED} jobs"
            )
        said += [f"{kind} {cost}" for cost in (of_none, of_many) if cost.requests > IDLE_S]
        # A poll more or less is chance.
        if of_many.calls - of_none.calls > 2:
            said.append(f"{kind} {of_none} {of_many}")
    assert not said


class Cost(NamedTuple):
    """Chunks that were sent to the server, and calls of the store."""

    requests: int
    calls: int


async def cost_of_idling(url: str, stored: int, ready: asyncio.Barrier) -> Cost:
    async with proxied(url) as proxy:
        store = FaultyStore(store_from_url(proxy.of(url)))
        there = Noting(store)
        async with running(there.scheduler):
            specs = [JobSpec("work", once(delay=3600 + n), id=f"job-{n}") for n in range(stored // 2)]
            specs += [JobSpec("work", every(7200 + n), id=f"recurring-{n}") for n in range(stored // 2)]
            await there.scheduler.add_jobs(specs)
            await ready.wait()
            store.faults.calls.clear()
            # Idle is who has looked since.
            await eventually(lambda: store.faults.calls["claim"] > 1)
            store.faults.calls.clear()
            before = proxy.requests
            await asyncio.sleep(IDLE_S)
            return Cost(proxy.requests - before, store.faults.calls.total())
