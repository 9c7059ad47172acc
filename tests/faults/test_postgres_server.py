"""The store on PostgreSQL while its server is frozen, restarted, made a standby, pooled or guarded by TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import asyncpg
import pytest

from asyncsched.contract import Filter, Record, Settlement
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.postgres import PostgresStore
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer
from tests.servers.server import CannotStart, Server
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("collected")]


def job(id: str, wake_at: float | None = 1.0) -> Record:
    return Record(id, "birth", "default", 5, "task", wake_at, None, b"body", b"cursor")


def deleted(record: Record) -> Settlement:
    return Settlement(
        id=record.id, fence=record.fence, holder=str(record.holder), version=record.version, delete=True
    )


async def claim(store: PostgresStore, token: str, limit: int = 100) -> list[Record]:
    return (await store.claim(["default"], token, limit, 30.0)).records


@pytest.fixture(scope="module")
def server(stores: Sequence[str]) -> Iterator[PostgresServer]:
    """A server of these tests alone."""
    if "postgres" not in stores:
        pytest.skip("postgres was left out by --stores")
    yield from started(PostgresServer(tls=True))


def started(server: Any) -> Iterator[Any]:
    try:
        server.start()
        yield server
    except CannotStart as error:
        pytest.fail(f"no server for this test: {error}", pytrace=False)
    finally:
        server.remove()


@pytest.fixture
async def user(server: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(server.url)
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def opened(store: PostgresStore) -> AsyncIterator[PostgresStore]:
    await store.open()
    try:
        await store.remove([r.id for r in await store.page(Filter(), 1000)])
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def frozen(server: Server) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


# ---- away ----------------------------------------------------------------------------------------------------------------


async def test_every_call_to_a_frozen_server_has_a_deadline(server: PostgresServer) -> None:
    async with opened(PostgresStore(server.url, timeout=2)) as store:
        await store.add([job("a"), job("b")])
        held = await claim(store, "first", 1)
        with frozen(server):
            # More calls than there are connections: some wait for one, some for a new one.
            calls = [
                store.add([job("c")]),
                store.claim(["default"], "second", 10, 30.0),
                store.settle([deleted(held[0])]),
                *(store.get(["a"]) for _ in range(6)),
                store.now(),
            ]
            began_at = time.monotonic()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            took_s = time.monotonic() - began_at
            assert [type(answer) for answer in answers] == [StoreUnavailable] * len(calls)
            assert "did not answer within 2 s" in str(answers[0])
            assert 1.9 < took_s < 12.0
            began_at = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await PostgresStore(server.url, timeout=0.5).open()
            assert time.monotonic() - began_at < 8.0

        async def is_back() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return (await store.get(["c"])).keys() <= {"c"}
            return False

        await eventually(is_back)
        # Whatever became of the calls, each counts once when it is made again.
        assert await store.add([job("c")]) == set()
        assert sorted(r.id for r in await claim(store, "second")) == ["b", "c"]
        assert (await store.settle([deleted(held[0])]))[0] in ("done", "gone")


async def test_a_frozen_server_does_not_hold_up_close(server: PostgresServer) -> None:
    store = PostgresStore(server.url, timeout=30.0)
    await store.open()
    store.on_hint(lambda _: None)
    with frozen(server):
        call = asyncio.ensure_future(store.get(["a"]))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10.0):
            await store.close()
            with pytest.raises(StoreUnavailable):
                await call


async def test_a_cancelled_call_to_a_frozen_server_ends_at_once(server: PostgresServer) -> None:
    async with opened(PostgresStore(server.url, timeout=30.0, pool_size=1)) as store:
        with frozen(server):
            call = asyncio.ensure_future(store.get(["a"]))
            await asyncio.sleep(0.05)
            call.cancel()
            async with asyncio.timeout(10.0):
                await asyncio.wait([call])
            assert call.cancelled()

        async def is_back() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await store.get(["a"]) == {}
            return False

        await eventually(is_back)


async def test_a_server_that_is_killed_and_comes_back_is_used_again_at_once(server: PostgresServer) -> None:
    async with opened(PostgresStore(server.url, timeout=2.0)) as store:
        await store.add([job("a"), job("b")])
        await asyncio.gather(*(store.get(["a"]) for _ in range(8)))
        [held] = await claim(store, "first", 1)
        server.kill()

        async def is_away() -> bool:
            """The processes that serve connections outlive the one that was killed for a moment."""
            try:
                await store.get(["a"])
            except StoreUnavailable:
                return True
            return False

        await eventually(is_away)
        server.start()
        assert await store.add([job("c")]) == set()
        assert await store.settle([deleted(held)]) == ["done"]
        later = await claim(store, "second")
        assert [r.id for r in later] == ["b", "c"]
        assert min(r.fence for r in later) > held.fence


async def test_connections_that_an_administrator_ends_are_replaced(server: PostgresServer, user: Any) -> None:
    async with opened(PostgresStore(server.url)) as store:
        await store.add([job("a")])
        for turn in range(3):
            await asyncio.gather(*(store.get(["a"]) for _ in range(8)))
            await user.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
            )

            async def is_there() -> bool:
                with contextlib.suppress(StoreUnavailable):
                    return (await store.get(["a"])).keys() == {"a"}
                return False

            await eventually(is_there)
            assert (await store.get(["a"])).keys() == {"a"}, turn


async def test_a_statement_timeout_of_the_server_is_no_refusal(server: PostgresServer, user: Any) -> None:
    options = {"server_settings": {"statement_timeout": "100"}}
    async with opened(PostgresStore(server.url, options=options)) as store:
        await store.add([job("a")])
        async with user.transaction():
            await user.execute("SELECT FROM asyncsched_jobs FOR UPDATE")
            with pytest.raises(StoreUnavailable, match="57014"):
                await store.remove(["a"])
        assert await store.remove(["a"]) == {"a"}


async def test_a_server_with_no_connection_left_is_unavailable(server: PostgresServer, user: Any) -> None:
    await user.execute(
        "DROP ROLE IF EXISTS few; CREATE ROLE few LOGIN CONNECTION LIMIT 1 IN ROLE pg_read_all_data; GRANT postgres TO few"
    )
    url = server.url.replace("postgres@", "few@")
    one = await asyncpg.connect(url)
    try:
        with pytest.raises(StoreUnavailable, match="too many connections"):
            await PostgresStore(url).open()
    finally:
        await one.close()


async def test_connections_to_a_server_that_turned_read_only_are_thrown_away(
    server: PostgresServer, user: Any
) -> None:
    async with opened(PostgresStore(server.url)) as store:
        await store.add([job("a")])
        await asyncio.gather(*(store.get(["a"]) for _ in range(8)))
        pids = "SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity WHERE datname IS NOT NULL AND pid <> pg_backend_pid()"
        old = set(await user.fetchval(pids))
        assert len(old) >= 2
        await user.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        try:
            await user.execute("SELECT pg_reload_conf()")

            async def is_refused() -> bool:
                try:
                    await store.add([job("b")])
                except StoreUnavailable as error:
                    return "read-only" in str(error)
                await store.remove(["b"])
                return False

            await eventually(is_refused)
        finally:
            await user.execute("SET default_transaction_read_only = off")
            await user.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await user.execute("SELECT pg_reload_conf()")

        async def works() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await store.add([job("c")]) == set()
            return False

        await eventually(works)
        # Each connection that the pool had is replaced before it is used again.
        await asyncio.gather(*(store.get(["a"]) for _ in range(8)))
        await asyncio.gather(*(store.get(["a"]) for _ in range(8)))
        assert not old & set(await user.fetchval(pids))


# ---- hints ---------------------------------------------------------------------------------------------------------------


async def test_a_listener_that_is_ended_is_made_anew_and_gives_one_hint(
    server: PostgresServer, user: Any
) -> None:
    async with opened(PostgresStore(server.url)) as store, opened(PostgresStore(server.url)) as other:
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: None in heard)
        heard.clear()
        listeners = "pid <> pg_backend_pid() AND query IN ('SELECT pg_backend_pid()', $1)"
        channel = store._names.channel(store._space)
        ended = await user.fetch(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listeners}", f'LISTEN "{channel}"'
        )
        assert len(ended) == 1
        # Once because it was lost, and once because it is there again.
        await eventually(lambda: heard.count(None) == 2)
        await other.add([job("a", 5.0)])
        await eventually(lambda: 5.0 in heard)


# ---- poolers -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pooler(server: PostgresServer) -> Iterator[PgBouncer]:
    """Two connections, each lent for one transaction."""
    yield from started(PgBouncer(server.url, size=2))


async def work_together(store: PostgresStore, jobs: int) -> set[str]:
    """Add, claim and settle from many tasks at once; the ids that were settled."""
    settled: set[str] = set()

    async def add_and_work(number: int) -> None:
        assert await store.add([job(f"{number}-{i}") for i in range(jobs)]) == set()
        turn = 0
        while held := await claim(store, f"{number}:{turn}", 3):
            turn += 1
            assert await store.settle([deleted(r) for r in held]) == ["done"] * len(held)
            settled.update(r.id for r in held)

    await asyncio.gather(*(add_and_work(n) for n in range(10)))
    return settled


async def test_it_works_through_a_pooler_without_a_statement_cache(pooler: PgBouncer) -> None:
    async with opened(
        PostgresStore(pooler.url, namespace="pooled", statement_cache_size=0, listen=False)
    ) as store:
        assert len(await work_together(store, 10)) == 100
        lease = await store.acquire(["k"], "me", 30.0)
        assert (await store.extend(list(lease.values()), 60.0)).keys() == {"k"}


async def test_statements_that_a_pooler_mixes_up_are_explained(pooler: PgBouncer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        one = await connected(stack, pooler)
        other = await connected(stack, pooler)
        store = PostgresStore(pooler.url, namespace="mixed", listen=False, pool_size=1)
        await stack.enter_async_context(opened(store))
        # Of the two connections behind the pooler, the one prepares a claim, and the other is asked for it.
        await one.execute("BEGIN")
        await claim(store, "token")
        await other.execute("BEGIN")
        await one.execute("ROLLBACK")
        with pytest.raises(StoreError, match="set statement_cache_size=0") as refusal:
            await claim(store, "token")
    assert not isinstance(refusal.value, StoreUnavailable)


async def test_another_s_statement_of_the_same_name_is_explained_too(pooler: PgBouncer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        one = await connected(stack, pooler)
        other = await connected(stack, pooler)
        store = PostgresStore(pooler.url, namespace="mixed", listen=False, pool_size=1)
        await stack.enter_async_context(opened(store))
        await one.execute("BEGIN")
        await claim(store, "token")
        await other.execute("BEGIN")
        # What another process has prepared on the other connection, which counts its statements as this one does.
        for [name] in await other.fetch(
            "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%claim_1%'"
        ):
            await one.execute(f'PREPARE "{name}" (integer) AS SELECT $1')
        await one.execute("ROLLBACK")
        with pytest.raises(StoreError, match="set statement_cache_size=0") as refusal:
            await claim(store, "token")
        await other.execute("ROLLBACK")
    assert not isinstance(refusal.value, StoreUnavailable)


async def connected(stack: contextlib.AsyncExitStack, pooler: PgBouncer) -> asyncpg.Connection:
    connection = await asyncpg.connect(pooler.url, statement_cache_size=0)
    stack.push_async_callback(connection.close)
    return connection


async def test_behind_a_pooler_there_are_no_hints_and_it_says_so_once(pooler: PgBouncer, caplog: Any) -> None:
    url = f"{pooler.url}?statement_cache_size=0&namespace=deaf"
    async with opened(PostgresStore.from_url(url)) as store:
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: "no hints from other processes" in caplog.text)
        await store.add([job("a", 1.0)])
        assert heard == [1.0]
        assert [r.id for r in await claim(store, "token")] == ["a"]
    assert caplog.text.count("no hints") == 1
    for words in ("a pooler stands in front", "listener_url=", "listen=False"):
        assert words in caplog.text


async def test_behind_a_pooler_hints_come_by_a_direct_connection(
    server: PostgresServer, pooler: PgBouncer
) -> None:
    def make() -> PostgresStore:
        return PostgresStore(pooler.url, namespace="direct", statement_cache_size=0, listener_url=server.url)

    async with opened(make()) as store, opened(make()) as other:
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: None in heard)
        await other.add([job("a", 5.0)])
        await eventually(lambda: 5.0 in heard)


# ---- TLS -----------------------------------------------------------------------------------------------------------------


async def uses_tls(user: Any, name: str) -> set[bool]:
    query = (
        "SELECT s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.application_name = $1"
    )
    return {row[0] for row in await user.fetch(query, name)}


async def test_tls_options_reach_the_driver(server: PostgresServer, user: Any) -> None:
    trusting = ssl.create_default_context(cafile=str(server.certificate))
    named = {"server_settings": {"application_name": "by-keyword"}}
    async with opened(PostgresStore(server.url, ssl=trusting, options=named)) as store:
        store.on_hint(lambda _: None)
        await eventually(lambda: store._listener is not None and store._listener.is_hearing)
        assert await uses_tls(user, "by-keyword") == {True}
    url = f"{server.url}?sslmode=verify-full&sslrootcert={server.certificate}&application_name=by-url"
    async with opened(PostgresStore.from_url(url)):
        assert await uses_tls(user, "by-url") == {True}
    async with opened(PostgresStore(f"{server.url}?sslmode=disable&application_name=without")):
        assert await uses_tls(user, "without") == {False}


async def test_a_certificate_that_is_not_trusted_is_refused(server: PostgresServer) -> None:
    with pytest.raises(StoreError, match="certificate verify failed"):
        await PostgresStore(server.url, ssl=ssl.create_default_context()).open()
