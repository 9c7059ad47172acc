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

pytestmark = pytest.mark.anyio

IDLE_S = 10.0
STORED = 5_000


@pytest.mark.parametrize("kind", SERVERS)
async def test_an_idle_instance_asks_at_most_once_a_second_however_much_is_stored(
    kind: str, stores: Sequence[str], servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    of_none, of_many = await asyncio.gather(
        *(cost_of_idling(url_of(kind, tmp_path, servers), stored) for stored in (0, STORED))
    )
    with capsys.disabled():
        print(f"\n{kind}, idle for {IDLE_S:g} s: {of_none} with nothing stored, {of_many} with {STORED} jobs")
    for cost in (of_none, of_many):
        assert cost.requests <= IDLE_S
    # A poll more or less is chance.
    assert of_many.calls - of_none.calls <= 2


class Cost(NamedTuple):
    """Chunks that were sent to the server, and calls of the store."""

    requests: int
    calls: int


async def cost_of_idling(url: str, stored: int) -> Cost:
    async with proxied(url) as proxy:
        store = FaultyStore(store_from_url(proxy.of(url)))
        there = Noting(store)
        async with running(there.scheduler):
            specs = [JobSpec("work", once(delay=3600 + n), id=f"job-{n}") for n in range(stored // 2)]
            specs += [JobSpec("work", every(7200 + n), id=f"recurring-{n}") for n in range(stored // 2)]
            await there.scheduler.add_jobs(specs)
            await asyncio.sleep(1.0)
            store.faults.calls.clear()
            before = proxy.requests
            await asyncio.sleep(IDLE_S)
            return Cost(proxy.requests - before, store.faults.calls.total())
