"""A reply of the server is lost, at each step of each call: the call is made again and counts once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from asyncsched import JobSpec
from asyncsched.contract import Claimed, JobStore
from asyncsched.stores import store_from_url
from tests.servers.running import SERVERS, Servers
from tests.support.faulty import FaultyStore
from tests.support.noting import Noting
from tests.support.proxy import Proxy, proxied
from tests.support.running import running
from tests.support.stores import url_of

pytestmark = pytest.mark.anyio

T = TypeVar("T")

JOBS = 20
#: No call has as many round trips.
MOST_STEPS = 20


class LosingStore(FaultyStore):
    """A store behind a proxy; the reply to one request of one call is lost, the call being alone on its way meanwhile."""

    def __init__(self, store: JobStore, proxy: Proxy) -> None:
        super().__init__(store)
        self.was_lost = False
        self._proxy = proxy
        self._alone = asyncio.Lock()
        self._method: str | None = None
        self._step = 0

    def lose(self, method: str, step: int) -> None:
        """Lose the reply to request number *step* of the next call of *method* that has so many."""
        self._method, self._step, self.was_lost = method, step, False

    async def _through(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        async with self._alone:
            if method != self._method:
                return await super()._through(method, call)
            before = self._proxy.lost
            self._proxy.lose_reply(after=self._step)
            try:
                answer = await super()._through(method, call)
            finally:
                self._proxy.forget_losses()
                if self._proxy.lost > before:
                    self.was_lost, self._method = True, None
            # A claim that brought nothing may have had fewer steps than one that does.
            if not isinstance(answer, Claimed) or answer.records:
                self._method = None
            return answer


@pytest.mark.parametrize("method", ["claim", "settle", "add"])
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_reply_that_is_lost_at_any_step_costs_no_job_and_runs_none_twice(
    kind: str, method: str, stores: Sequence[str], servers: Servers, tmp_path: Path
) -> None:
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    url = url_of(kind, tmp_path, servers)
    async with proxied(url) as proxy:
        store = LosingStore(store_from_url(proxy.of(url)), proxy)
        there = Noting(store)
        async with running(there.scheduler):
            await there.scheduler.add_jobs([JobSpec("work", id=f"warm-{n}") for n in range(JOBS)])
            await there.all_gone()
            for step in range(MOST_STEPS):
                store.lose(method, step)
                await there.scheduler.add_jobs([JobSpec("work", id=f"job-{step}-{n}") for n in range(JOBS)])
                await there.all_gone()
                if not store.was_lost:
                    break
            assert 1 <= step < MOST_STEPS - 1
            jobs = [f"job-{s}-{n}" for s in range(step + 1) for n in range(JOBS)]
            jobs += [f"warm-{n}" for n in range(JOBS)]
            assert await there.outcomes() == {(id, "succeeded"): 1 for id in jobs}
        # Another reply may have been lost instead: that of a beat in the background.
        assert proxy.lost >= step
    assert there.ran == dict.fromkeys(jobs, 1)
