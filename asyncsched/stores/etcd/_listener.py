"""Hints from other instances: a watch on a connection of its own, asked now and then whether it is alive, made anew when not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from aetcd import rpc

from asyncsched.errors import StoreError
from asyncsched.outlast import cancellations
from asyncsched.stores.etcd._line import Line, Way, logger

__all__ = ["Listener"]

#: A watch that has said nothing for so long is asked for a sign of life, which has so long to come.
_SILENCE_S = 8.0
_ANSWER_S = 3.0
_BACKOFF_S = (0.05, 2.0)


class Listener:
    """Tells *hear* each value that is put to a key of *prefix* or lost there, for as long as ``run`` is not cancelled; None where
    some may have been missed."""

    def __init__(
        self,
        line: Line,
        key: bytes,
        end: bytes,
        hear: Callable[[bytes, bytes | None], None],
        missed: Callable[[], None],
    ) -> None:
        self._line = line
        self._key = key
        self._end = end
        self._hear = hear
        self._missed = missed
        #: Behind what was heard.
        self._revision = 0
        #: How many watches it has made.
        self.watches = 0
        self.is_hearing = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled, whatever happens."""
        failures = 0
        while True:
            before, cancelled = self.watches, cancellations()
            try:
                await self._listen()
            except (StoreError, rpc.AioRpcError, OSError, TimeoutError, asyncio.InvalidStateError) as error:
                failures = failures + 1 if before == self.watches else 0
                logger.debug("hints from %s are not heard at present: %s", self._line.name, error)
            except asyncio.CancelledError:
                if cancellations() > cancelled:
                    raise
                # The channel was closed, not this.
                failures += 1
            finally:
                self.is_hearing.clear()
            # Many instances lose their watches at once, and must not knock in step.
            least, most = _BACKOFF_S
            await asyncio.sleep(min(most, least * 2 ** min(failures, 10)) * (0.5 + random.random()))

    async def _listen(self) -> None:
        way = await self._line.way_to_listen()
        try:
            await self._watch(way)
        finally:
            await self._line.drop(way)

    async def _watch(self, way: Way) -> None:
        stream = way.watch.Watch(metadata=way.metadata)
        reading: asyncio.Task[Any] | None = None
        try:
            create = rpc.WatchCreateRequest(key=self._key, range_end=self._end, start_revision=self._revision)
            async with asyncio.timeout(self._line.timeout_s):
                await stream.write(rpc.WatchRequest(create_request=create))
            is_asked = True
            while True:
                asked = reading = reading if reading is not None else asyncio.ensure_future(_read(stream))
                # A reading that is cancelled would end the stream.
                await asyncio.wait([asked], timeout=_ANSWER_S if is_asked else _SILENCE_S)
                if asked.done():
                    reading, is_asked = None, False
                    self._take(asked.result())
                elif is_asked:
                    raise TimeoutError("its watch has gone silent")
                else:
                    is_asked = True
                    async with asyncio.timeout(_ANSWER_S):
                        await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
        finally:
            self._line.is_untidy = True
            stream.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.wait([reading])
                if not reading.cancelled():
                    reading.exception()

    def _take(self, answer: Any) -> None:
        """Hear what the server says; raises OSError where it has ended the watch."""
        if not isinstance(answer, rpc.WatchResponse):
            raise ConnectionError("the stream has ended")
        if answer.compact_revision or answer.canceled:
            # What came meanwhile is forgotten; from now on, then.
            self._revision = 0
            raise ConnectionError(answer.cancel_reason or "the watch was ended")
        if answer.created:
            self.watches += 1
            self.is_hearing.set()
            if not self._revision:
                self._missed()
        for event in answer.events:
            self._hear(event.kv.key, None if event.type else event.kv.value)
        # What a new watch has to tell of the time before comes after it was created.
        if answer.events or not self._revision:
            self._revision = max(self._revision, answer.header.revision + 1)


async def _read(stream: Any) -> Any:
    return await stream.read()
