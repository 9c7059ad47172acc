"""A manual clock that does not move while a store is being asked."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from asyncsched.contract import JobStore
from asyncsched.testing import ManualClock
from tests.support.faulty import EVERYTHING

__all__ = ["PatientClock"]

#: A call may wait for the clock itself, or for what another test step lets go.
_PATIENCE_S = 1.0


class PatientClock(ManualClock):
    """Servers take real time to answer. If the clock were advanced by a minute meanwhile, a claim would come with a lease that is
    over, where in truth a moment has passed."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0
        self._answered = asyncio.Event()

    def timing(self, store: JobStore) -> JobStore:
        """*store*, whose calls the clock waits for."""
        return cast(JobStore, _Timed(store, self))

    async def call(self, method: Any, *args: Any, **options: Any) -> Any:
        self._calls += 1
        try:
            return await method(*args, **options)
        finally:
            self._calls -= 1
            if not self._calls:
                self._answered.set()

    async def _settle(self) -> None:
        await super()._settle()
        loop = asyncio.get_running_loop()
        over = loop.time() + _PATIENCE_S
        while self._calls and loop.time() < over:
            self._answered.clear()
            try:
                async with asyncio.timeout_at(over):
                    await self._answered.wait()
            except TimeoutError:
                return
            await super()._settle()


class _Timed:
    """The methods of a store by which it is asked, and everything else as it is."""

    def __init__(self, store: JobStore, clock: PatientClock) -> None:
        self._store = store
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._store, name)
        if name not in EVERYTHING:
            return member
        return lambda *args, **options: self._clock.call(member, *args, **options)
