"""The way to one store: what did not get through is repeated, and a store that is away is visible."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asyncsched.clock import Clock
from asyncsched.errors import AsyncSchedError, StoreError, StoreUnavailable
from asyncsched.events import Bus, StoreDegraded, StoreRecovered
from asyncsched.model import Retry
from asyncsched.outlast import cancellations, gone_astray
from asyncsched.units import to_datetime

__all__ = ["Link"]

T = TypeVar("T")

#: Between tries once a Retry has no more delays to give: a store is never given up.
_LONGEST_S = 10.0
#: So many errors that no store may raise are taken for a passing one.
_FAULTS = 4


class Link:
    """The way to one store: repeats what did not get through, and makes its absence visible."""

    def __init__(self, alias: str, clock: Clock, retry: Retry, bus: Bus, logger: logging.Logger) -> None:
        self.alias = alias
        self.is_degraded = False
        #: Whoever uses it is being cancelled, and a driver may lose that.
        self.is_ending = False
        self._clock = clock
        self._retry = retry
        self._bus = bus
        self._logger = logger

    async def persist(
        self, call: Callable[[], Awaitable[T]], on_repeat: Callable[[], None] | None = None
    ) -> T:
        """Repeat *call* until the store answers; a permanent refusal is raised, and so is what no store may raise if it is
        raised again and again."""
        failures = faults = 0
        while True:
            try:
                answer = await self._heeding(call)
            except Exception as error:
                if isinstance(error, AsyncSchedError) and not isinstance(error, StoreUnavailable):
                    raise
                faults += not isinstance(error, StoreUnavailable)
                if faults > _FAULTS:
                    raise
                failures += 1
                self.failed(error)
                await self._clock.sleep(self._pause_s(failures))
                if on_repeat is not None:
                    on_repeat()
                continue
            if self.is_degraded:
                self.recovered()
            return answer

    async def _heeding(self, call: Callable[[], Awaitable[T]]) -> T:
        """``outlast.heeding`` without a task for each call: at the end, a cancellation that was counted in one was meant so."""
        before = cancellations()
        try:
            answer = await call()
        except asyncio.CancelledError:
            if self.is_ending or cancellations() > before:
                raise
            raise gone_astray() from None
        except Exception:
            if self.is_ending and cancellations() > before:
                raise asyncio.CancelledError from None
            raise
        if self.is_ending and cancellations() > before:
            raise asyncio.CancelledError
        return answer

    async def guard(self, work: Awaitable[None]) -> None:
        """What goes wrong in it is told, and ends nothing else."""
        try:
            await work
        except Exception as error:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        if not isinstance(error, StoreError):
            # A fault of a store that does not keep to the contract, or of ours: there is no telling what more it spoils.
            self._logger.critical("store %r: an error that no store may raise", self.alias, exc_info=error)
        if not self.is_degraded:
            self.is_degraded = True
            self._logger.warning("store %r is degraded: %s", self.alias, error)
            self._bus.emit(
                StoreDegraded(at=to_datetime(self._clock.time()), store=self.alias, error=str(error))
            )

    def recovered(self) -> None:
        if self.is_degraded:
            self.is_degraded = False
            self._logger.warning("store %r has recovered", self.alias)
            self._bus.emit(StoreRecovered(at=to_datetime(self._clock.time()), store=self.alias))

    def _pause_s(self, failures: int) -> float:
        """A Retry's cap holds after its spread; here the cap itself is spread, downwards, lest all instances knock in step."""
        delay = self._retry.delay(failures)
        seconds = _LONGEST_S if delay is None else delay.total_seconds()
        return seconds * (1 - self._retry.spread / 2 * random.random())
