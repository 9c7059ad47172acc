"""The store on PostgreSQL as part of a user's own transaction."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from asyncsched.contract import Claim, Entry, Filter, Record, Settlement
from asyncsched.errors import DefinitionError, StoreError, StoreUnavailable
from asyncsched.stores.postgres import PostgresStore
from tests.servers.running import Servers
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0


def job(id: str, wake_at: float | None = NOW) -> Record:
    return Record(id, "birth", "default", 5, "task", wake_at, None, b"body", b"cursor")


def ended(record: Record) -> Settlement:
    return Settlement(
        id=record.id,
        fence=record.fence,
        holder=str(record.holder),
        version=record.version,
        delete=True,
        entries=(Entry(record.id, record.fence, "run", NOW, NOW, b""),),
    )


async def add_and_fail(store: PostgresStore, connection: object, id: str) -> None:
    async with store.within(connection) as joined:
        await joined.add([job(id)])
        raise ZeroDivisionError


async def claim(store: Any, token: str = "token") -> list[Record]:
    return (await store.claim(["default"], token, 100, 30.0)).records


@pytest.fixture(scope="module")
def url(stores: Sequence[str], servers: Servers) -> str:
    if "postgres" not in stores:
        pytest.skip("postgres was left out by --stores")
    return servers.url("postgres")


@pytest.fixture
async def user(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
async def store(url: str, user: asyncpg.Connection) -> AsyncIterator[PostgresStore]:
    place = f"test_{secrets.token_hex(6)}"
    store = PostgresStore(url, schema=place, timeout=2.0)
    await store.open(now=lambda: NOW)
    yield store
    await store.close()
    if user.is_in_transaction():
        await user.execute("ROLLBACK")
    await user.execute(f"SET client_min_messages = error; DROP SCHEMA {place} CASCADE")


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    yield engine
    await engine.dispose()


async def test_nothing_is_there_before_the_commit_and_all_of_it_after(
    store: PostgresStore, user: Any
) -> None:
    async with user.transaction():
        async with store.within(user) as joined:
            assert await joined.add([job("a"), job("b")]) == set()
            assert (await joined.get(["a", "b"])).keys() == {"a", "b"}
        assert await store.get(["a", "b"]) == {}
        assert await claim(store) == []
    assert [r.id for r in await claim(store)] == ["a", "b"]


async def test_nothing_is_left_after_a_rollback(store: PostgresStore, user: Any) -> None:
    await store.add([job("held")])
    [held] = await claim(store)
    with contextlib.suppress(ZeroDivisionError):
        async with user.transaction():
            async with store.within(user) as joined:
                await joined.add([job("a")])
                assert await joined.settle([ended(held)]) == ["done"]
            raise ZeroDivisionError
    assert (await store.get(["a", "held"])) == {"held": held}
    assert await store.runs() == []
    assert await store.settle([ended(held)]) == ["done"]


async def test_hints_are_given_with_the_commit(store: PostgresStore, user: Any) -> None:
    heard: list[float | None] = []
    store.on_hint(heard.append)
    await eventually(lambda: None in heard)
    heard.clear()
    async with user.transaction():
        async with store.within(user) as joined:
            await joined.add([job("a", NOW - 7)])
        await store.add([job("b", NOW - 3)])
        assert heard == [NOW - 3]
    await eventually(lambda: NOW - 7 in heard)
    transaction = user.transaction()
    await transaction.start()
    async with store.within(user) as joined:
        await joined.add([job("c", NOW - 9)])
    await transaction.rollback()
    async with store.within(user) as joined:
        await joined.add([job("d", NOW - 8)])
    await eventually(lambda: NOW - 8 in heard)
    assert heard == [NOW - 3, NOW - 7, NOW - 8]


async def test_without_a_transaction_one_is_begun_and_committed(store: PostgresStore, user: Any) -> None:
    async with store.within(user) as joined:
        await joined.add([job("a")])
        assert user.is_in_transaction()
        assert await store.get(["a"]) == {}
    assert not user.is_in_transaction()
    assert (await store.get(["a"])).keys() == {"a"}


async def test_without_a_transaction_one_is_begun_and_rolled_back_on_an_error(
    store: PostgresStore, user: Any
) -> None:
    with pytest.raises(ZeroDivisionError):
        await add_and_fail(store, user, "a")
    assert not user.is_in_transaction()
    assert await store.get(["a"]) == {}


async def test_a_connection_that_a_pool_lends_is_taken(store: PostgresStore, url: str) -> None:
    async with asyncpg.create_pool(url, min_size=0, max_size=1) as pool, pool.acquire() as lent:
        async with lent.transaction(), store.within(lent) as joined:
            await joined.add([job("a")])
            assert await store.get(["a"]) == {}
        assert (await store.get(["a"])).keys() == {"a"}


async def test_a_connection_of_sqlalchemy_is_taken(store: PostgresStore, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        async with connection.begin() as transaction:
            async with store.within(connection) as joined:
                await joined.add([job("a")])
            assert await store.get(["a"]) == {}
            await transaction.rollback()
        assert await store.get(["a"]) == {}
        async with connection.begin():
            await connection.execute(text("SELECT 1"))
            async with store.within(connection) as joined:
                await joined.add([job("a")])
            assert await store.get(["a"]) == {}
        assert (await store.get(["a"])).keys() == {"a"}


async def test_a_session_of_sqlalchemy_is_taken(store: PostgresStore, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(text("CREATE TEMPORARY TABLE effect (id text)"))
        await session.commit()
        await store.add([job("held")])
        [held] = await claim(store)
        async with session.begin():
            await session.execute(text("INSERT INTO effect VALUES ('a')"))
            async with store.within(session) as joined:
                assert await joined.settle([ended(held)]) == ["done"]
            assert (await store.get(["held"])).keys() == {"held"}
        assert await store.get(["held"]) == {}
        assert (await session.execute(text("SELECT count(*) FROM effect"))).scalar() == 1


class OwnSession(AsyncSession):
    """As services and other libraries derive them."""


async def test_a_session_of_a_derived_class_and_one_of_a_scope_are_taken(
    store: PostgresStore, engine: AsyncEngine
) -> None:
    async with OwnSession(engine) as session:
        async with store.within(session) as joined:
            await joined.add([job("derived")])
        await session.commit()
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: None)
    async with store.within(scoped) as joined:
        await joined.add([job("scoped")])
    await scoped.commit()
    await scoped.remove()
    assert (await store.get(["derived", "scoped"])).keys() == {"derived", "scoped"}


async def test_a_session_or_a_connection_that_blocks_is_refused(
    store: PostgresStore, engine: AsyncEngine
) -> None:
    async with AsyncSession(engine) as session, engine.connect() as connection:
        for wrong in (session.sync_session, connection.sync_connection):
            with pytest.raises(DefinitionError, match=r"AsyncSession of SQLAlchemy.*this is sqlalchemy\."):
                async with store.within(wrong):
                    pytest.fail("it was let in")


async def test_sqlalchemy_begins_with_the_first_statement_as_always_and_its_user_commits(
    store: PostgresStore, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        async with store.within(connection) as joined:
            await joined.add([job("a")])
        assert connection.in_transaction()
        assert await store.get(["a"]) == {}
        await connection.commit()
        assert (await store.get(["a"])).keys() == {"a"}
    async with AsyncSession(engine) as session:
        async with store.within(session) as joined:
            await joined.add([job("b")])
        await session.rollback()
    assert await store.get(["b"]) == {}


async def test_a_connection_of_sqlalchemy_in_autocommit_mode_gets_a_transaction_for_the_block(
    store: PostgresStore, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        async with store.within(connection) as joined:
            await joined.add([job("d")])
            assert await store.get(["d"]) == {}
        with pytest.raises(ZeroDivisionError):
            await add_and_fail(store, connection, "e")
    assert (await store.get(["d", "e"])).keys() == {"d"}


@pytest.mark.parametrize("wrong", [None, "postgresql://localhost/jobs", object()])
async def test_anything_else_is_refused_before_anything_is_written(
    store: PostgresStore, wrong: object
) -> None:
    with pytest.raises(DefinitionError, match="asyncpg"):
        async with store.within(wrong):
            pytest.fail("it was let in")


async def test_a_connection_of_another_database_is_refused(store: PostgresStore) -> None:
    with (
        contextlib.closing(sqlite3.connect(":memory:")) as other,
        pytest.raises(DefinitionError, match="sqlite3"),
    ):
        async with store.within(other):
            pytest.fail("it was let in")


async def test_a_connection_to_another_database_of_the_server_is_refused_though_it_has_the_same_tables(
    store: PostgresStore, user: Any, url: str
) -> None:
    name = f"other_{secrets.token_hex(6)}"
    await user.execute(f"CREATE DATABASE {name}")
    parts = urlsplit(url)._replace(path=f"/{name}")
    twin = PostgresStore(parts.geturl(), schema=store._names.schema, listen=False)
    await twin.open()
    elsewhere = await asyncpg.connect(parts.geturl())
    try:
        for _ in range(2):
            with pytest.raises(DefinitionError, match=f"connection= leads to the database '{name}', and the"):
                async with store.within(elsewhere) as joined:
                    await joined.add([job("a")])
        assert await twin.get(["a"]) == {}
    finally:
        await elsewhere.close()
        await twin.close()
        await user.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_store_that_is_not_open_joins_nothing(url: str, user: Any) -> None:
    with pytest.raises(StoreError, match="not open"):
        async with PostgresStore(url).within(user):
            pytest.fail("it was let in")


async def test_a_transaction_that_has_settled_blocks_nobody(store: PostgresStore, user: Any) -> None:
    await store.add([job(f"{i}") for i in range(4)])
    held = await claim(store)
    await store.add([job("due")])
    async with user.transaction():
        async with store.within(user) as joined:
            assert await joined.settle([ended(held[0])]) == ["done"]
        renewal = await store.renew([Claim(r.id, r.fence, str(r.holder)) for r in held], 60.0)
        assert renewal.versions == {"0": "busy", "1": 1, "2": 1, "3": 1}
        assert [r.id for r in await claim(store, "other")] == ["due"]
        assert await store.settle([ended(r) for r in held[1:]]) == ["done"] * 3
    assert (await store.get([r.id for r in held])) == {}


async def test_a_lost_claim_can_be_told_and_the_transaction_goes_on(store: PostgresStore, user: Any) -> None:
    await store.add([job("a")])
    [held] = await claim(store)
    await store.remove(["a"])
    await store.add([job("a")])
    async with user.transaction():
        async with store.within(user) as joined:
            assert await joined.settle([ended(held)]) == ["lost"]
        assert await user.fetchval("SELECT 1") == 1


async def test_every_call_works_within_a_transaction(store: PostgresStore, user: Any) -> None:
    async with user.transaction(), store.within(user) as joined:
        await joined.add([job("a"), job("b")])
        held = await claim(joined)
        assert (await joined.renew([Claim(r.id, r.fence, "token") for r in held], 60.0)).versions == {
            "a": 1,
            "b": 1,
        }
        assert await joined.settle([ended(held[0])]) == ["done"]
        assert [r.id for r in await joined.page(Filter(), 10)] == ["b"]
        assert len(await joined.runs()) == 1
        lease = await joined.acquire(["k"], "me", 30.0)
        await joined.release(list(lease.values()))
        assert await joined.prune(0.0, None, 10) == 0
        assert await joined.remove(["b"]) == {"b"}
        assert await joined.now() == NOW


async def test_a_call_within_a_transaction_has_a_deadline_too(
    store: PostgresStore, user: Any, url: str
) -> None:
    await store.add([job("a")])
    hasty = PostgresStore(url, schema=store._names.schema, timeout=1.0)
    await hasty.open()
    other = await asyncpg.connect(url)
    try:
        async with other.transaction():
            await other.execute(f"SELECT FROM {store._names.schema}.asyncsched_jobs FOR UPDATE")
            with pytest.raises(StoreUnavailable, match="within 1 s"):
                async with hasty.within(user) as joined:
                    await joined.remove(["a"])
        assert not user.is_in_transaction()
        assert await user.fetchval("SELECT 1") == 1
    finally:
        await other.close()
        await hasty.close()
