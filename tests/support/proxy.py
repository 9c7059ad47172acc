"""A TCP proxy in front of a server, with faults: slow, stalled, refusing, cut, and replies that are lost.

A *lost reply* is the fault that most often goes wrong: the server has done what it was asked for, and whoever asked sees a
connection that ends before the answer. The proxy lets the request through, waits for the first bytes of the answer, and cuts
then, so that the request was received and performed for certain.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

__all__ = ["Connection", "Proxy", "proxied"]

_CHUNK = 1 << 16
#: Where a URL of Firestore names the server, its host being the project.
_EMULATOR = re.compile(r"emulator_host=([^&]+)")
#: A reset where there would be an orderly end: the peer of a machine that went down sees no more than that.
_RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False, slots=True)
class Connection:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    #: What the client sent first, for telling connections apart.
    sent: bytearray = field(default_factory=bytearray)
    #: The next answer on it is lost.
    loses_reply: bool = False
    #: Nothing passes while this is unset.
    flows: asyncio.Event = field(default_factory=asyncio.Event)

    def has_sent(self, *words: bytes) -> bool:
        """Whether the client has sent one of *words*, in upper or lower case."""
        return any(word.upper() in self.sent.upper() for word in words)

    def cut(self) -> None:
        self.flows.set()
        for writer in (self.client, self.server):
            _reset(writer)


@dataclass(eq=False, slots=True)
class _Loss:
    """Replies to be lost: to requests that contain the bytes, the first *after* of them spared."""

    request: bytes
    after: int
    count: int


class Proxy:
    """Forwards to *host* and *port*; what is wrong at present is set on it, and counts what passes."""

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        #: Seconds that each chunk takes longer, in either direction.
        self.latency_s = 0.0
        #: New connections are reset at once.
        self.refuses = False
        #: Chunks from clients so far: for a protocol of request and answer, round trips. What is mere upkeep of HTTP/2 is none.
        self.requests = 0
        #: Replies that were lost so far.
        self.lost = 0
        self.connections: list[Connection] = []
        self._target = host, port
        self._losses: list[_Loss] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # -- faults --------------------------------------------------------------------------------------------------------

    def cut(self, which: Callable[[Connection], bool] = lambda _: True) -> int:
        """Reset the connections of that kind (all); returns how many."""
        cut = [connection for connection in self.connections if which(connection)]
        for connection in cut:
            connection.cut()
        return len(cut)

    def stall(self, which: Callable[[Connection], bool] = lambda _: True) -> int:
        """From now on nothing passes on the connections of that kind (all), which stay open; returns how many."""
        stalled = [connection for connection in self.connections if which(connection)]
        for connection in stalled:
            connection.flows.clear()
        return len(stalled)

    def flow(self) -> None:
        """What was stalled passes again."""
        for connection in self.connections:
            connection.flows.set()

    def lead_to(self, host: str, port: int) -> None:
        """New connections go to another server."""
        self._target = host, port

    def lose_reply(self, request: bytes = b"", *, after: int = 0, count: int = 1) -> None:
        """Cut *count* connections after a request reached the server and before its reply reaches the client.

        Requests that contain *request* count, in upper or lower case; the first *after* of them are answered. A request of
        more than 64 KiB counts as several, all with the same answer.
        """
        self._losses.append(_Loss(request.upper(), after, count))

    def forget_losses(self) -> None:
        """Lose no more replies."""
        self._losses.clear()

    @property
    def losses_left(self) -> int:
        """How many replies are yet to be lost."""
        return sum(loss.count for loss in self._losses)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)

    def of(self, url: str) -> str:
        """*url* by way of this proxy."""
        if emulator := _EMULATOR.search(url):
            return url.replace(emulator[0], f"emulator_host=127.0.0.1:{self.port}")
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    # -- forwarding ----------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refuses:
            _reset(writer)
            return
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        connection = Connection(writer, to_server)
        connection.flows.set()
        self.connections.append(connection)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(connection, reader))
                both.create_task(self._replies(connection, from_server))
        except* OSError:
            connection.cut()
        finally:
            self.connections.remove(connection)
            writer.close()
            to_server.close()

    async def _requests(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_CHUNK):
            self.requests += not _is_upkeep(data)
            if len(connection.sent) < _CHUNK:
                connection.sent += data
            await self._pause(connection)
            if self._is_to_be_lost(data):
                connection.loses_reply = True
            connection.server.write(data)
            await connection.server.drain()
        if connection.server.can_write_eof():
            connection.server.write_eof()

    async def _replies(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_CHUNK):
            if connection.loses_reply:
                self.lost += 1
                raise ConnectionResetError("the reply is lost")
            await self._pause(connection)
            connection.client.write(data)
            await connection.client.drain()
        if connection.client.can_write_eof():
            connection.client.write_eof()

    async def _pause(self, connection: Connection) -> None:
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        await connection.flows.wait()

    def _is_to_be_lost(self, request: bytes) -> bool:
        for loss in self._losses:
            if loss.count and loss.request in request.upper():
                if loss.after:
                    loss.after -= 1
                    continue
                loss.count -= 1
                return True
        return False


#: Frames of HTTP/2: the end of a stream that was given up, settings, pings (gRPC servers send one with each answer), windows.
_UPKEEP = frozenset({3, 4, 6, 8})


def _is_upkeep(data: bytes) -> bool:
    """Whether *data* is nothing but frames of HTTP/2 that ask for nothing."""
    at = 0
    while at + 9 <= len(data) and data[at + 3] in _UPKEEP:
        at += 9 + int.from_bytes(data[at : at + 3])
    return at == len(data) > 0


def _reset(writer: asyncio.StreamWriter) -> None:
    found = writer.get_extra_info("socket")
    if found is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the server of *url*, for the length of a block."""
    emulator = _EMULATOR.search(url)
    parts = urlsplit(f"//{emulator[1]}" if emulator else url)
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy(parts.hostname, parts.port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
