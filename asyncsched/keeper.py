"""Renewal: pushes the ends of all held leases in one call, and ends the runs whose lease can no longer be trusted.

Trust in a lease ends at (monotonic instant before the request + lease - margin): from then on another instance may hold the
job by right, whatever this one believes, so the run is cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Protocol

from asyncsched.clock import Clock
from asyncsched.contract import Claim, JobStore
from asyncsched.errors import StoreError
from asyncsched.execution import Execution

__all__ = ["Keeper", "trust_end"]

#: Renewals per lease, and how often trust is looked at.
_RENEWALS = 3
_LOOKS = 10
_MARGIN = 0.2
_BATCH = 1000


def trust_end(asked_at: float, lease_s: float) -> float:
    """Until when a lease that was asked for at the monotonic instant *asked_at* may be relied on."""
    return asked_at + lease_s * (1 - _MARGIN)


class Held(Protocol):
    """What the keeper looks after."""

    def values(self) -> Iterable[Execution]: ...

    def __len__(self) -> int: ...


class Keeper:
    """Keeps the leases of one worker alive."""

    def __init__(
        self,
        store: JobStore,
        clock: Clock,
        lease_s: float,
        held: Held,
        on_answer: Callable[[float, float], None],
        on_error: Callable[[StoreError], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._lease_s = lease_s
        self._held = held
        self._on_answer = on_answer
        self._on_error = on_error
        self._work = asyncio.Event()
        self._at_once = asyncio.Event()

    def notice(self, *, at_once: bool = False) -> None:
        """Something is held now; an idle keeper sleeps until this is called. *at_once*: its lease is not a fresh one."""
        self._work.set()
        if at_once:
            self._at_once.set()

    async def run(self) -> None:
        """Renew and watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew_for_ever())
            tasks.create_task(self._watch_for_ever())

    async def _renew_for_ever(self) -> None:
        pause_s = self._lease_s / _RENEWALS
        while True:
            await self._work.wait()
            await self._pause(pause_s)
            pause_s = self._lease_s / _RENEWALS
            if not self._held:
                self._work.clear()
                continue
            try:
                await self.renew(list(self._held.values()))
            except StoreError as error:
                # A third of the lease more might be too late.
                pause_s = self._lease_s / _LOOKS
                self._on_error(error)

    async def _pause(self, seconds: float) -> None:
        timer = self._clock.call_at(self._clock.monotonic() + seconds, self._at_once.set)
        try:
            await self._at_once.wait()
        finally:
            timer.cancel()
            self._at_once.clear()

    async def _watch_for_ever(self) -> None:
        while True:
            await self._work.wait()
            await self._clock.sleep(self._lease_s / _LOOKS)
            now = self._clock.monotonic()
            for execution in list(self._held.values()):
                if execution.trusted_until <= now:
                    execution.cancel("lost")

    async def renew(self, executions: list[Execution]) -> None:
        """Renew these leases; raises StoreError."""
        for at in range(0, len(executions), _BATCH):
            await self._renew_batch(executions[at : at + _BATCH])

    async def _renew_batch(self, executions: list[Execution]) -> None:
        claims = [Claim(e.record.id, e.record.fence, e.record.holder or "") for e in executions]
        asked_at = self._clock.monotonic()
        versions, now = await self._store.renew(claims, self._lease_s)
        self._on_answer(asked_at, now)
        lost = []
        for execution, claim in zip(executions, claims, strict=True):
            answer = versions.get(claim.id, "lost")
            if answer == "lost":
                if execution.committed is not None:
                    # It is settled: nothing is left that could be lost.
                    execution.trusted_until = math.inf
                elif execution.record.fence == claim.fence and execution.end is None:
                    lost.append(execution)
            elif answer != "busy" or execution.committed is not None:
                # Its row is locked by the user's own transaction, in which it is settled: nobody can claim it meanwhile.
                execution.trusted_until = trust_end(asked_at, self._lease_s)
        if lost:
            await self._give_up(lost)

    async def _give_up(self, lost: list[Execution]) -> None:
        """A job that was removed has no successor, so its run may end in peace; any other lost run is cancelled."""
        there = await self._store.get([execution.record.id for execution in lost])
        for execution in lost:
            if execution.record.id in there:
                execution.cancel("lost")
            else:
                execution.trusted_until = math.inf
