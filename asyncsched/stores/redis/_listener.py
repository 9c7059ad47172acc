"""Hints from other clients, by pub/sub: a connection of its own that is watched, and remade when it has died or gone silent."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from redis.exceptions import RedisClusterException, RedisError

from asyncsched.stores.redis._server import Server, logger
from asyncsched.stores.redis._shard import Hints

__all__ = ["Listener"]

#: A connection that has said nothing for so long is asked whether it is alive, and given up after as long again.
_SILENCE_S = 2.0
_BACKOFF_S = (0.05, 2.0)


class Listener:
    """Hears what other clients publish, for as long as ``run`` is not cancelled."""

    def __init__(self, server: Server, hints: Hints) -> None:
        self._server = server
        self._hints = hints
        self._own = hints.sender
        #: How many connections it has made.
        self.connections = 0

    async def run(self) -> None:
        failures = 0
        while True:
            heard = self.connections
            try:
                await self._listen()
            except (RedisError, RedisClusterException, OSError, TimeoutError, RuntimeError) as error:
                failures = failures + 1 if heard == self.connections else 0
                logger.debug("hints from %s are not heard at present: %s", self._server.name, error)
            # Many instances lose their listeners at once, and must not knock in step.
            least, most = _BACKOFF_S
            await asyncio.sleep(min(most, least * 2 ** min(failures, 10)) * (0.5 + random.random()))

    async def _listen(self) -> None:
        pubsub: Any = self._server.client.pubsub()
        try:
            async with asyncio.timeout(self._server.timeout_s):
                await pubsub.subscribe(self._hints.channel)
            is_asked = False
            while True:
                message = await pubsub.get_message(timeout=_SILENCE_S)
                if message is not None:
                    is_asked = False
                    self._hear(message)
                elif is_asked:
                    raise TimeoutError("its connection has gone silent")
                else:
                    async with asyncio.timeout(self._server.timeout_s):
                        await pubsub.ping()
                    is_asked = True
        finally:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await pubsub.aclose()

    def _hear(self, message: dict[str, Any]) -> None:
        kind, text = message["type"], message["data"]
        if kind == "subscribe":
            # Now, and whenever the driver has subscribed anew by itself: what was said before went unheard.
            self.connections += 1
            self._hints.give(None)
        elif kind == "message":
            # A client that decodes what it reads gives text.
            said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            sender, _, wake_at = said.partition(" ")
            if sender != self._own:
                try:
                    at = float(wake_at)
                except ValueError:
                    return  # A stranger's.
                self._hints.tell(at)
