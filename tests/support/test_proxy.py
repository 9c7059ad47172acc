"""The fault proxy, in front of a server that answers each line with the same line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.proxy import Proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Echo:
    """The server: what it received, and its answers."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.received.append(line.strip())
                writer.write(line)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def stop(self) -> None:
        assert self._server is not None
        self._server.close()


class Client:
    """One connection to it by way of the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, line: str) -> str:
        """The answer; raises ConnectionError when the connection ends before it."""
        self._writer.write(f"{line}\n".encode())
        answer = await self._reader.readline()
        if not answer:
            raise ConnectionResetError
        return answer.decode().strip()

    async def close(self) -> None:
        self._writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    yield echo
    echo.stop()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    proxy = Proxy("127.0.0.1", await echo.start())
    await proxy.start()
    yield proxy
    await proxy.stop()


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    async with asyncio.timeout(10):
        try:
            yield client
        finally:
            await client.close()


async def test_without_a_fault_everything_passes_and_is_counted(proxy: Proxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        assert [await client.ask("one"), await client.ask("two")] == ["one", "two"]
        long = "x" * 60_000
        assert await client.ask(long) == long
    assert len(echo.received) == 3
    assert proxy.requests >= 3
    assert proxy.lost == 0
    await eventually(lambda: not proxy.connections)


async def test_a_url_leads_through_it_with_everything_else_as_it_was(proxy: Proxy) -> None:
    url = "postgresql://user:secret@db.example.org:5432/name?table_prefix=a_"
    assert proxy.of(url) == f"postgresql://user:secret@127.0.0.1:{proxy.port}/name?table_prefix=a_"


async def test_latency_holds_up_both_ways(proxy: Proxy) -> None:
    async with connected(proxy) as client:
        proxy.latency_s = 0.1
        began_at = time.monotonic()
        assert await client.ask("one") == "one"
        assert time.monotonic() - began_at >= 0.2


async def test_a_lost_reply_is_to_a_request_that_the_server_has_received(proxy: Proxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        proxy.lose_reply()
        with pytest.raises(ConnectionError):
            await client.ask("one")
    assert echo.received == [b"one"]
    assert (proxy.lost, proxy.losses_left) == (1, 0)
    async with connected(proxy) as client:
        assert await client.ask("two") == "two"


async def test_the_reply_that_is_lost_can_be_a_later_one(proxy: Proxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        proxy.lose_reply(after=2)
        assert [await client.ask("one"), await client.ask("two")] == ["one", "two"]
        with pytest.raises(ConnectionError):
            await client.ask("three")
    assert echo.received == [b"one", b"two", b"three"]


async def test_the_reply_that_is_lost_can_be_one_to_certain_requests(proxy: Proxy, echo: Echo) -> None:
    proxy.lose_reply(b"commit", after=1, count=2)
    async with connected(proxy) as client:
        answers = [await client.ask(line) for line in ("one", "COMMIT first", "two")]
        with pytest.raises(ConnectionError):
            await client.ask("COMMIT second")
    async with connected(proxy) as client:
        assert await client.ask("three") == "three"
        with pytest.raises(ConnectionError):
            await client.ask("Commit third")
    async with connected(proxy) as client:
        assert await client.ask("commit fourth") == "commit fourth"
    assert answers == ["one", "COMMIT first", "two"]
    assert len(echo.received) == 7
    assert (proxy.lost, proxy.losses_left) == (2, 0)


async def test_losses_can_be_called_off(proxy: Proxy) -> None:
    proxy.lose_reply()
    proxy.forget_losses()
    async with connected(proxy) as client:
        assert await client.ask("one") == "one"


async def test_a_lost_reply_leaves_other_connections_alone(proxy: Proxy) -> None:
    async with connected(proxy) as victim, connected(proxy) as other:
        assert await other.ask("one") == "one"
        proxy.lose_reply(b"mine")
        with pytest.raises(ConnectionError):
            await victim.ask("mine")
        assert await other.ask("two") == "two"


async def test_connections_that_are_cut_end_with_a_reset_and_new_ones_serve(proxy: Proxy) -> None:
    async with connected(proxy) as first, connected(proxy) as second:
        await asyncio.gather(first.ask("one"), second.ask("two"))
        assert proxy.cut() == 2
        for client in (first, second):
            with pytest.raises(ConnectionError):
                await client.ask("more")
    async with connected(proxy) as third:
        assert await third.ask("three") == "three"


async def test_only_what_is_meant_is_cut(proxy: Proxy) -> None:
    async with connected(proxy) as listener, connected(proxy) as other:
        await asyncio.gather(listener.ask("LISTEN here"), other.ask("work"))
        assert proxy.cut(lambda connection: connection.has_sent(b"listen", b"subscribe")) == 1
        with pytest.raises(ConnectionError):
            await listener.ask("more")
        assert await other.ask("more") == "more"


async def test_a_stalled_connection_stays_open_and_silent_until_it_flows_again(
    proxy: Proxy, echo: Echo
) -> None:
    async with connected(proxy) as client:
        await client.ask("one")
        assert proxy.stall() == 1
        asking = asyncio.create_task(client.ask("two"))
        await asyncio.sleep(0.1)
        assert not asking.done()
        assert echo.received == [b"one"]
        async with connected(proxy) as other:
            assert await other.ask("three") == "three"
        proxy.flow()
        assert await asking == "two"


async def test_a_stalled_connection_can_be_cut(proxy: Proxy) -> None:
    async with connected(proxy) as client:
        await client.ask("one")
        proxy.stall()
        asking = asyncio.create_task(client.ask("two"))
        await asyncio.sleep(0.05)
        proxy.cut()
        with pytest.raises(ConnectionError):
            await asking
    await eventually(lambda: not proxy.connections)


async def test_new_connections_are_refused_while_it_refuses(proxy: Proxy) -> None:
    async with connected(proxy) as old:
        await old.ask("one")
        proxy.refuses = True
        async with connected(proxy) as new:
            with pytest.raises(ConnectionError):
                await new.ask("two")
        assert await old.ask("three") == "three"
        proxy.refuses = False
        async with connected(proxy) as new:
            assert await new.ask("four") == "four"


async def test_a_server_that_is_away_is_away_through_the_proxy_too(proxy: Proxy, echo: Echo) -> None:
    echo.stop()
    async with connected(proxy) as client:
        with pytest.raises(ConnectionError):
            await client.ask("one")
