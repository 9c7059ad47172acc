"""Renewal: pushes the ends of all held leases in one call, and ends the runs whose lease can no longer be trusted.

Trust in a lease ends at (monotonic instant before the request + lease - margin): from then on another instance may hold the
job by right, whatever this one believes, so the run is cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence, Sized
from typing import Protocol

from asyncsched.clock import Clock
from asyncsched.contract import Claim, JobStore
from asyncsched.execution import Execution
from asyncsched.outlast import heeding

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
        on_error: Callable[[Exception], None],
        on_update: Callable[[Sequence[Execution]], Awaitable[None]],
        places: Sized,
        renew_places: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._lease_s = lease_s
        self._held = held
        self._on_answer = on_answer
        self._on_error = on_error
        self._on_update = on_update
        #: What the runs hold besides; a run whose job was removed has nothing else. Renewed first, so that no run is trusted for
        #: longer than that.
        self._places = places
        self._renew_places = renew_places
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
            if not self._held and not self._places:
                self._work.clear()
                continue
            # The one is not to suffer from the other.
            is_done = await self._is_done(self._renew_places())
            if not (await self._is_done(self.renew(list(self._held.values()))) and is_done):
                # A third of the lease more might be too late.
                pause_s = self._lease_s / _LOOKS

    async def _is_done(self, work: Awaitable[None]) -> bool:
        try:
            await heeding(work)
        except Exception as error:
            self._on_error(error)
            return False
        return True

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
        lost, updated = [], []
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
                if type(answer) is int and answer > max(execution.record.version, execution.seen):
                    updated.append(execution)
        if updated:
            await self._on_update(updated)
        if lost:
            await self._give_up(lost)

    async def _give_up(self, lost: list[Execution]) -> None:
        """A job that was removed while its lease lived has no successor, and another job of its id is none: its run may end in
        peace. Any other lost run is cancelled."""
        now = self._clock.monotonic()
        there = await self._store.get([execution.record.id for execution in lost])
        for execution in lost:
            record = there.get(execution.record.id)
            is_there = record is not None and record.birth == execution.record.birth
            if is_there or execution.trusted_until <= now:
                execution.cancel("lost")
            else:
                execution.trusted_until = math.inf
