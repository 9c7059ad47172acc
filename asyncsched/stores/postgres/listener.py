"""Hints from other processes: one connection that listens, is looked after, and is made anew when it has gone deaf."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from asyncsched.errors import StoreError

__all__ = ["Listener"]

_LOGGER = logging.getLogger("asyncsched")

#: How often it is made sure that what is told is heard, and how long a told word may take.
_CHECK_S = 10.0
_HEARING_S = 3.0
#: Between attempts to listen.
_SHORTEST_S, _LONGEST_S = 0.2, 30.0

#: Before a word that is said only to find out whether it is heard.
_PROBE = "?"
_BACKEND = "SELECT pg_backend_pid()"


class Listener:
    """Calls *hear* with the earliest wake time that another process told on *channel*, or with None when some may have been
    missed. *connect* makes a connection; *tell* says a word on the channel, by another way than that connection."""

    def __init__(
        self,
        channel: str,
        own_tag: str,
        connect: Callable[[], Awaitable[Any]],
        tell: Callable[[str], Awaitable[object]],
        hear: Callable[[float | None], None],
        place: str,
        *,
        is_direct: bool = False,
    ) -> None:
        self.is_hearing = False
        self._channel = channel
        self._own_tag = own_tag
        self._connect = connect
        self._tell = tell
        self._hear = hear
        self._place = place
        #: Whether the user vouches for the connection.
        self._is_direct = is_direct
        self._heard = asyncio.Event()
        self._lost = asyncio.Event()
        self._turns = 0
        self._is_warned = False

    async def run(self) -> None:
        """Listen until cancelled, whatever happens."""
        pause_s = _SHORTEST_S
        while True:
            try:
                await self._listen()
                pause_s = _SHORTEST_S
            except StoreError as error:
                self._warn(error)
                pause_s = min(2 * pause_s, _LONGEST_S)
            finally:
                was_hearing, self.is_hearing = self.is_hearing, False
            if was_hearing:
                # Whoever relies on hints had better look for himself meanwhile.
                self._hear(None)
                pause_s = _SHORTEST_S
            await asyncio.sleep(pause_s)

    async def _listen(self) -> None:
        """Listen until the connection is lost, by word or in silence."""
        try:
            await self._listen_on(await self._connect())
        except StoreError:
            raise
        except Exception as error:
            # Whatever the driver made of it: without hints there is polling, and another attempt.
            raise StoreError(f"{self._place}: {error}") from error

    async def _listen_on(self, connection: asyncpg.Connection) -> None:
        self._lost.clear()
        try:
            connection.add_termination_listener(self._on_end)
            await self._within(self._refuse_pooler(connection))
            await self._within(connection.add_listener(self._channel, self._on_word))
            while await self._hears_itself():
                if not self.is_hearing:
                    self.is_hearing, self._is_warned = True, False
                    # What was told before it could be heard.
                    self._hear(None)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_S):
                        await self._lost.wait()
                        return
            if not self._lost.is_set():
                raise StoreError(f"what is told at {self._place} is not heard")
        finally:
            connection.terminate()

    async def _refuse_pooler(self, connection: asyncpg.Connection) -> None:
        """A pooler lends its connections for a transaction each: one that listens would speak to whoever has it later."""
        if not self._is_direct and await connection.fetchval(_BACKEND) != connection.get_server_pid():
            raise StoreError(f"a pooler stands in front of the server at {self._place}")

    async def _hears_itself(self) -> bool:
        self._turns += 1
        self._heard.clear()
        await self._tell(f"{self._own_tag}:{_PROBE}{self._turns}")
        try:
            await self._within(self._heard.wait())
        except StoreError:
            return False
        return not self._lost.is_set()

    async def _within(self, waited: Awaitable[Any]) -> None:
        try:
            async with asyncio.timeout(_HEARING_S):
                await waited
        except TimeoutError:
            raise StoreError(f"the listener at {self._place} got no answer within {_HEARING_S:g} s") from None

    def _on_word(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        tag, _, rest = str(payload).partition(":")
        if tag == self._own_tag:
            self._heard.set()
        if tag == self._own_tag or rest.startswith(_PROBE):
            return
        try:
            wake_at = float(rest)
        except ValueError:
            wake_at = math.nan
        # Minus infinity: one that is held was updated.
        self._hear(wake_at if math.isfinite(wake_at) else None)

    def _on_end(self, _connection: object) -> None:
        self._lost.set()
        self._heard.set()

    def _warn(self, error: StoreError) -> None:
        if not self._is_warned:
            self._is_warned = True
            _LOGGER.warning(
                "no hints from other processes, so their jobs are found by polling: %s; where that is to stay so, set "
                "listen=False; where a pooler is in the way, give a direct connection as listener_url=",
                error,
            )
