"""Leases of the server's own: what is attached to one is deleted by the server when it ends, whoever has died meanwhile."""

from __future__ import annotations

import asyncio
import math

from asyncsched.clock import SystemClock
from asyncsched.stores.etcd._line import Line

__all__ = ["Expiry"]

_monotonic = SystemClock.monotonic


class Expiry:
    """Few leases, each for many keys: one for each order of magnitude of seconds, and a new one when its first half is over."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._leases: dict[int, tuple[int, float]] = {}
        self._granting = asyncio.Lock()

    async def lease_for(self, seconds: float) -> int:
        """A lease that ends no earlier than in so many seconds; 0, which is none, for as good as for ever."""
        if not seconds < 1e9:
            return 0
        magnitude = max(math.ceil(math.log2(seconds)), 6)
        now = _monotonic()
        lease, until = self._leases.get(magnitude, (0, 0.0))
        if until - now >= seconds:
            return lease
        async with self._granting:
            lease, until = self._leases.get(magnitude, (0, 0.0))
            if until - now >= seconds:
                return lease
            ttl_s = 2 << magnitude
            granted = await self._line.grant(ttl_s)
            self._leases[magnitude] = granted, now + ttl_s
            return granted

    def forget(self) -> None:
        """Whatever was granted may be gone."""
        self._leases.clear()
