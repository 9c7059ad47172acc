"""Hints from other clients: a watch of the hint node, set anew after each event and with each new connection."""

from __future__ import annotations

import asyncio
import random

from aiozk import exc

from asyncsched.errors import StoreError
from asyncsched.stores.zookeeper._ground import Ground
from asyncsched.stores.zookeeper._wire import logger

__all__ = ["Listener"]

_BACKOFF_S = (0.05, 2.0)
#: Between two looks at the node, so that a busy ensemble does not wake its clients for each transaction.
_PAUSE_S = 0.01


class Listener:
    """Hears what other clients write, for as long as ``run`` is not cancelled."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._changed = asyncio.Event()

    def event(self, path: str | None) -> None:
        """A watch has fired, or (None) a connection has ended."""
        if path is None or path.endswith("/hints"):
            self._changed.set()

    async def run(self) -> None:
        # Of this event loop: the store may have been open in another one before.
        self._changed = asyncio.Event()
        self._ground.wire.watch(self._ground.hints.node)
        try:
            await self._listen_for_ever()
        finally:
            self._ground.wire.unwatch(self._ground.hints.node)

    async def _listen_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                await self._listen()
            except StoreError as error:
                failures += 1
                logger.debug("hints from %s are not heard at present: %s", self._ground.wire.name, error)
            else:
                failures = 0
            # Many instances lose their connections at once, and must not knock in step.
            least, most = _BACKOFF_S
            await asyncio.sleep(min(most, least * 2 ** min(failures, 10)) * (0.5 + random.random()))

    async def _listen(self) -> None:
        wire, hints = self._ground.wire, self._ground.hints
        connection = None
        while connection is None or (wire.is_connected and connection == wire.connections):
            self._changed.clear()
            answer = await wire.ask_one(wire.get(hints.node, watch=True))
            if connection != wire.connections:
                # What was said before this connection was heard of by nobody.
                connection, hints.seen = wire.connections, -1
            if isinstance(answer, exc.ZKError):
                raise StoreError(f"{hints.node} is gone")
            hints.hear(answer.stat.version, answer.data)
            await asyncio.sleep(_PAUSE_S)
            await self._changed.wait()
