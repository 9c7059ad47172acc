"""Instances that come up together on a server where there is nothing yet, as at a first deployment."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from asyncsched import JobSpec
from tests.servers.running import SERVERS, Servers
from tests.support.noting import Noting
from tests.support.running import running
from tests.support.stores import url_of

pytestmark = pytest.mark.anyio

INSTANCES = 6
JOBS = 120


@pytest.mark.parametrize("kind", SERVERS)
async def test_instances_that_open_a_fresh_store_together_all_come_up_and_share_the_jobs(
    kind: str, stores: Sequence[str], servers: Servers, tmp_path: Path
) -> None:
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    url = url_of(kind, tmp_path, servers)
    if kind == "mongodb":
        url += f"&collection=t{secrets.token_hex(4)}"
    elif kind not in ("redis", "zookeeper", "etcd", "firestore"):
        # Tables that nobody has made yet; these have none.
        url += f"&table_prefix=t{secrets.token_hex(4)}_"
    instances = [Noting(url, id=f"instance-{n}", concurrency=10) for n in range(INSTANCES)]
    async with AsyncExitStack() as stack:
        await asyncio.gather(
            *(stack.enter_async_context(running(there.scheduler, timeout=30)) for there in instances)
        )
        await instances[0].scheduler.add_jobs(
            [JobSpec("work", id=f"job-{n}", args=[0.2]) for n in range(JOBS)]
        )
        await instances[0].all_gone(timeout=60)
        assert await instances[0].outcomes() == {(f"job-{n}", "succeeded"): 1 for n in range(JOBS)}
    ran: Counter[str] = sum((there.ran for there in instances), Counter())
    assert ran == {f"job-{n}": 1 for n in range(JOBS)}
    # With hints or by looking, the others have taken part.
    assert sum(bool(there.begun) for there in instances) >= 2
