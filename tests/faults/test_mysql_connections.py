"""The store on MariaDB and MySQL when connections, replies and servers go away."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiomysql
import pytest

from asyncsched.contract import Claim, Entry, Filter, Record, Settlement
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.mysql import MySQLStore
from tests.servers.mysql import MariaDBServer, MySQLServer
from tests.servers.running import SERVERS, url_given_for
from tests.servers.server import CannotStart, Server
from tests.support.proxy import proxied
from tests.support.stores import namespaced
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("collected")]

NOW = 1_800_000_000.0


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest, stores: Sequence[str]) -> Iterator[Server]:
    """A server that only these tests use."""
    if request.param not in stores:
        pytest.skip(f"{request.param} was left out by --stores")
    server = SERVERS[request.param]()
    try:
        start(server, request.param)
        yield server
    finally:
        server.remove()


def start(server: Server, kind: str) -> None:
    try:
        server.start()
    except CannotStart as error:
        if url_given_for(kind) is None:
            pytest.fail(f"no {kind} server for this test: {error}", pytrace=False)
        pytest.skip(f"the {kind} server that is given is not to be harmed, and none is installed")


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    yield namespaced(server.url)
    server.thaw()
    if not server.is_alive:
        server.start()


@contextlib.asynccontextmanager
async def opened(url: str, **keywords: object) -> AsyncIterator[MySQLStore]:
    words = "".join(f"&{name}={value}" for name, value in keywords.items())
    store = MySQLStore.from_url(url + words)
    await store.open(now=lambda: NOW)
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def administrator(server: Server) -> AsyncIterator[Any]:
    connection = await aiomysql.connect(
        host="127.0.0.1", port=server.port, user="root", db="test", autocommit=True
    )
    try:
        yield connection
    finally:
        connection.close()


async def ask(connection: Any, statement: str) -> Any:
    cursor = await connection.cursor()
    await cursor.execute(statement)
    return await cursor.fetchall()


async def connections_of(connection: Any, user: str) -> list[int]:
    [(own,)] = await ask(connection, "SELECT CONNECTION_ID()")
    schema = "information_schema" if "MariaDB" in connection.get_server_info() else "performance_schema"
    listed = await ask(connection, f"SELECT id FROM {schema}.processlist WHERE user = '{user}'")
    return [id for (id,) in listed if id != own]


def job(id: str) -> Record:
    return Record(id, "birth", "default", 5, "task", NOW, None, b"body", b"cursor")


def ended(record: Record) -> Settlement:
    return Settlement(
        id=record.id,
        fence=record.fence,
        holder=str(record.holder),
        version=1,
        delete=True,
        entries=(Entry(record.id, record.fence, "run", NOW, NOW, b""),),
    )


async def claim(store: MySQLStore, token: str = "token") -> list[Record]:
    return (await store.claim(["default"], token, 100, 30.0)).records


# ---- a server that does not answer ---------------------------------------------------------------------------------------


async def test_a_frozen_server_makes_each_call_unavailable_in_time(server: Server, url: str) -> None:
    async with opened(url, timeout=2, pool_size=2) as store:
        await store.add([job("a")])
        [held] = await claim(store)
        server.freeze()
        began = time.monotonic()
        calls = (
            store.add([job("b")]),
            claim(store),
            store.renew([Claim("a", held.fence, "token")], 60.0),
            store.settle([ended(held)]),
            store.now(),
            store.get(["a"]),
        )
        answers = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(StoreUnavailable, match=r"did not answer within 2 s"):
            await store.page(Filter(), 1)
        assert {type(answer) for answer in answers} == {StoreUnavailable, float}
        assert time.monotonic() - began < 15.0
        server.thaw()

        async def answers_in_time() -> bool:
            try:
                return await store.now() > 0
            except StoreUnavailable:
                return False

        await eventually(answers_in_time, what="an answer in time")
        # Whatever was cut in the midst of an answer is not used again.
        for _ in range(5):
            assert await store.add([job("c")]) == set()
            assert (await store.get(["c"])).keys() == {"c"}


async def test_a_frozen_server_cannot_hold_up_an_open(server: Server, url: str) -> None:
    server.freeze()
    store = MySQLStore.from_url(f"{url}&timeout=0.5")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.open()
    await store.close()
    assert time.monotonic() - began < 5.0


async def test_a_store_can_be_closed_while_its_server_is_frozen(server: Server, url: str) -> None:
    store = MySQLStore.from_url(f"{url}&timeout=8")
    await store.open()
    call = asyncio.ensure_future(store.add([job("a")]))
    server.freeze()
    pending = asyncio.ensure_future(store.get(["a"]))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await store.close()
    assert time.monotonic() - began < 5.0
    answers = await asyncio.gather(call, pending, return_exceptions=True)
    assert isinstance(answers[1], StoreError)


async def test_a_rollback_that_cannot_be_sent_hides_no_cancellation(server: Server, url: str) -> None:
    login = {"host": "127.0.0.1", "port": server.port, "user": "root", "db": "test"}
    async with opened(url, timeout=2) as store:
        connection = await aiomysql.connect(charset="utf8mb4", autocommit=True, **login)
        added = asyncio.Event()

        async def add() -> None:
            async with store.within(connection) as joined:
                await joined.add([job("a")])
                added.set()
                await asyncio.sleep(60)

        adding = asyncio.ensure_future(add())
        await added.wait()
        server.freeze()
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert connection.closed
        server.thaw()
        assert await store.get(["a"]) == {}


async def test_a_close_that_is_cancelled_leaves_no_connection(url: str) -> None:
    store = MySQLStore.from_url(url)
    await store.open()
    pool: Any = store._line._pool  # type: ignore[attr-defined]  # open, so it has a line
    call = asyncio.ensure_future(store._read("SELECT SLEEP(30)"))
    await eventually(lambda: _has_asked(pool))
    async with pool.acquire():
        pass
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert (pool.size, pool._closing) == (0, True)
    with pytest.raises(StoreUnavailable):
        await call


async def _has_asked(pool: Any) -> bool:
    return bool(pool._used)


async def test_a_server_that_comes_back_is_used_again(server: Server, url: str) -> None:
    async with opened(url, timeout=2) as store:
        await store.add([job("a")])
        [held] = await claim(store)
        await asyncio.to_thread(server.kill)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.settle([ended(held)])
        await asyncio.to_thread(server.start)
        assert await store.settle([ended(held)]) == ["done"]
        # Fences go on where they were.
        await store.add([job("a")])
        [again] = await claim(store)
        assert again.fence > held.fence


# ---- lost replies --------------------------------------------------------------------------------------------------------


async def test_calls_whose_reply_was_lost_are_repeated_and_count_once(url: str) -> None:
    async with proxied(url) as proxy, opened(proxy.of(url)) as store:
        proxy.lose_reply(b"INSERT INTO")
        with pytest.raises(StoreUnavailable):
            await store.add([job("a"), job("b")])
        assert await store.add([job("a"), job("b")]) == set()
        proxy.lose_reply(b"SKIP LOCKED")
        with pytest.raises(StoreUnavailable):
            await claim(store)
        # The cut may reach the server in the midst of the packet: then it undoes it, a moment later.
        await eventually(lambda: _claims(store, 2))
        held = await claim(store)
        assert [(r.id, r.tries, r.prior) for r in held] == [("a", 1, None), ("b", 1, None)]
        proxy.lose_reply(b"DELETE FROM")
        with pytest.raises(StoreUnavailable):
            await store.settle([ended(r) for r in held])
        assert await store.settle([ended(r) for r in held]) in (["gone", "gone"], ["done", "done"])
        assert await store.get(["a", "b"]) == {}
        assert len(await store.runs()) == 2
        assert proxy.lost == 3


async def _claims(store: MySQLStore, count: int) -> bool:
    return len(await claim(store)) == count


async def test_a_connection_that_is_cut_fails_one_call_at_most(url: str) -> None:
    async with proxied(url) as proxy, opened(proxy.of(url)) as store:
        await asyncio.gather(*(store.add([job(f"{i}")]) for i in range(5)))
        proxy.cut()
        failures = 0
        for _ in range(5):
            try:
                await store.get(["0"])
            except StoreUnavailable:
                failures += 1
        assert failures <= 1


# ---- connections that the server closes ----------------------------------------------------------------------------------


async def test_idle_connections_that_the_server_closed_fail_no_call(server: Server, url: str) -> None:
    async with administrator(server) as root, opened(url) as store:
        await asyncio.gather(*(store.add([job(f"{i}")]) for i in range(5)))
        idle = await connections_of(root, "root")
        assert idle
        for id in idle:
            await ask(root, f"KILL {id}")
        await eventually(lambda: _all_gone(root, "root"))
        assert (await store.get(["0"])).keys() == {"0"}


async def test_idle_connections_that_timed_out_fail_no_call(server: Server, url: str) -> None:
    async with administrator(server) as root:
        await ask(root, "SET SESSION wait_timeout = 1000")
        await ask(root, "SET GLOBAL wait_timeout = 1")
        try:
            async with opened(url) as store:
                await store.add([job("a")])
                await eventually(lambda: _all_gone(root, "root"))
                assert (await store.get(["a"])).keys() == {"a"}
        finally:
            await ask(root, "SET GLOBAL wait_timeout = 28800")


async def _all_gone(root: Any, user: str) -> bool:
    return await connections_of(root, user) == []


async def test_a_server_that_became_read_only_is_left(server: Server, url: str) -> None:
    async with administrator(server) as root:
        await ask(root, "CREATE USER 'app'@'%'")
        await ask(root, "CREATE USER 'app'@'localhost'")
        for host in ("%", "localhost"):
            await ask(root, f"GRANT ALL ON test.* TO 'app'@'{host}'")
        async with opened(url.replace("root@", "app@")) as store:
            await asyncio.gather(*(store.add([job(f"{i}")]) for i in range(5)))
            await ask(root, "SET GLOBAL read_only = 1")
            try:
                with pytest.raises(StoreUnavailable, match=r"read-only.*connect to the primary"):
                    await store.add([job("late")])
                await eventually(lambda: _all_gone(root, "app"))
            finally:
                await ask(root, "SET GLOBAL read_only = 0")
            assert await store.add([job("late")]) == set()


async def test_a_cancelled_call_leaves_neither_a_lock_nor_a_half_read_answer(
    server: Server, url: str
) -> None:
    async with administrator(server) as other, opened(url, pool_size=1) as store:
        await store.add([job("a"), job("b")])
        await ask(other, "START TRANSACTION")
        await ask(
            other, f"SELECT * FROM asyncsched_jobs WHERE space = {store._sql._space} AND id = 'b' FOR UPDATE"
        )
        removal = asyncio.ensure_future(store.remove(["a", "b"]))
        await eventually(lambda: _waits(other))
        removal.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removal
        assert (await store.get(["a", "b"])).keys() == {"a", "b"}
        await ask(other, "ROLLBACK")
        # The server may do what was cancelled, or not; it does not keep it locked.
        assert await store.remove(["a", "b"]) in ({"a", "b"}, set())
        assert await store.get(["a", "b"]) == {}


async def _waits(other: Any) -> bool:
    # The server makes this table anew only if nobody has read it for a tenth of a second.
    await asyncio.sleep(0.15)
    found = await ask(
        other, "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    )
    return bool(found[0][0])


# ---- TLS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "cert.pem", folder / "key.pem"
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed, which makes the certificate for this test")
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return made, key


@pytest.fixture(scope="module")
def secured(certificate: tuple[Path, Path], stores: Sequence[str]) -> Iterator[MariaDBServer]:
    """A MariaDB that offers TLS."""
    if "mariadb" not in stores:
        pytest.skip("mariadb was left out by --stores")
    server = MariaDBServer()
    for file in certificate:
        shutil.copy(file, server.folder / file.name)
        (server.folder / file.name).chmod(0o644)
    server._settings = {
        "ssl_cert": str(server.folder / "cert.pem"),
        "ssl_key": str(server.folder / "key.pem"),
    }
    try:
        start(server, "mariadb")
        yield server
    finally:
        server.remove()


async def is_encrypted(store: MySQLStore) -> bool:
    [answer] = await store._read("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
    return bool(answer.rows[0][1])


async def test_calls_go_over_tls_where_that_is_asked_for(
    secured: MariaDBServer, certificate: tuple[Path, Path]
) -> None:
    url = namespaced(secured.url)
    async with opened(url, ssl_ca=certificate[0]) as store:
        assert await is_encrypted(store)
        await store.add([job("a")])
    async with opened(url) as plain:
        assert not await is_encrypted(plain)
        assert (await plain.get(["a"])).keys() == {"a"}


async def test_a_certificate_that_nobody_vouches_for_is_refused(secured: MariaDBServer) -> None:
    store = MySQLStore.from_url(f"{namespaced(secured.url)}&ssl=true")
    with pytest.raises(StoreError, match=r"(?i)certificate") as refusal:
        await store.open()
    assert not isinstance(refusal.value, StoreUnavailable)
    await store.close()


async def test_a_server_without_tls_is_refused_where_tls_is_asked_for(server: Server, url: str) -> None:
    if isinstance(server, MySQLServer):
        pytest.skip("MySQL makes certificates for itself")
    store = MySQLStore.from_url(f"{url}&ssl=true")
    with pytest.raises(StoreError, match="offers no TLS"):
        await store.open()
    await store.close()


async def test_a_context_of_ones_own_is_used(server: Server, url: str) -> None:
    if not isinstance(server, MySQLServer):
        pytest.skip("this MariaDB has no TLS")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    store = MySQLStore(port=server.port, user="root", database="test", ssl=context)
    await store.open()
    assert await is_encrypted(store)
    await store.close()
