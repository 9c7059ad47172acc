"""Hints from other instances, by a change stream of the jobs: watched, and opened anew when it has ended or gone silent."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable
from typing import Any

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from asyncsched.stores.mongodb._documents import Keys
from asyncsched.stores.mongodb._server import Names, Server, logger

__all__ = ["Listener"]

#: So long the server waits for a change before it answers that there was none.
_WAIT_S = 2.0
_BACKOFF_S = (0.05, 5.0)


class Listener:
    """Hears what anyone writes that may be due sooner, for as long as ``run`` is not cancelled."""

    def __init__(
        self, server: Server, names: Names, keys: Keys, hear: Callable[[float | None], None]
    ) -> None:
        self._server, self._names, self._keys, self._hear = server, names, keys, hear
        #: How many streams it has opened.
        self.streams = 0

    async def run(self) -> None:
        failures = 0
        while True:
            before = self.streams
            try:
                await self._listen()
            except (PyMongoError, BSONError, OSError, TimeoutError) as error:
                failures = failures + 1 if before == self.streams else 0
                logger.debug("hints from %s are not heard at present: %s", self._server.name, error)
            # Many instances lose their streams at once, and must not knock in step.
            least, most = _BACKOFF_S
            await asyncio.sleep(min(most, least * 2 ** min(failures, 10)) * (0.5 + random.random()))

    async def _listen(self) -> None:
        deadline_s = self._server.timeout_s
        opened: Any = self._server.handle[self._names.jobs].watch(
            self._stages(), max_await_time_ms=int(_WAIT_S * 1000), batch_size=1_000
        )
        # One of the two drivers opens it here, the other with the first look.
        async with asyncio.timeout(deadline_s):
            stream = await opened if inspect.isawaitable(opened) else opened
            change = await stream.try_next()
        self.streams += 1
        # What was written before went unheard.
        self._hear(None)
        try:
            while True:
                if change is not None:
                    self._hear(change.get("wake"))
                if not stream.alive:
                    return  # The collection was dropped or renamed; to ask on would be answered at once, and for ever.
                # A server that answers nothing at all, not even that nothing has changed, is as good as gone.
                async with asyncio.timeout(_WAIT_S + deadline_s):
                    change = await stream.try_next()
        finally:
            await self._close(stream)

    async def _close(self, stream: Any) -> None:
        try:
            async with asyncio.timeout(1.0):
                await stream.close()
        except (PyMongoError, OSError, TimeoutError) as error:
            logger.debug("closing a change stream of %s: %s", self._server.name, error)

    def _stages(self) -> list[dict[str, Any]]:
        """Adds, what settlements, updates and unparking make due, and updates of what is held; of each its wake time alone.

        Claims and renewals write none of these fields.
        """
        changed = "updateDescription.updatedFields"
        moved = [{f"{changed}.{field}": {"$exists": True}} for field in ("batch", "version", "hold")]
        heard = [
            {"operationType": "insert", "fullDocument.lane": {"$ne": None}},
            {"operationType": "update", f"{changed}.wake": {"$type": "number"}, "$or": moved},
            {"operationType": "update", f"{changed}.told": {"$exists": True}},
            # A child that waited for its batch.
            {"operationType": "update", f"{changed}.lane": {"$gt": ""}},
        ]
        return [
            {"$match": {"documentKey._id": self._keys.all(), "$or": heard}},
            {"$project": {"wake": {"$ifNull": ["$fullDocument.wake", f"${changed}.wake"]}}},
        ]
