"""The store on MariaDB and MySQL as part of a transaction of the user's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiomysql
import pytest
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from asyncsched.contract import Claim, Filter, JobStore, Record, Settlement, Update
from asyncsched.errors import DefinitionError, StoreError, StoreUnavailable
from asyncsched.stores.mysql import MySQLStore
from tests.servers.running import Servers
from tests.support.stores import namespaced
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0
ISOLATIONS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def job(id: str, wake_at: float | None = NOW, birth: str = "birth") -> Record:
    return Record(id, birth, "default", 5, "task", wake_at, None, b"body", b"cursor")


def moved(record: Record, wake_at: float | None = NOW + 60) -> Settlement:
    return Settlement(
        id=record.id, fence=record.fence, holder=str(record.holder), version=record.version, wake_at=wake_at
    )


def update_of(record: Record, body: bytes = b"new") -> Update:
    return Update(
        id=record.id, version=record.version, body=body, queue="default", priority=5, wake_at=NOW, hold=None
    )


async def claim(store: JobStore, token: str = "token") -> list[Record]:
    return (await store.claim(["default"], token, 100, 30.0)).records


@pytest.fixture(params=["mariadb", "mysql"])
def url(request: pytest.FixtureRequest, stores: Sequence[str], servers: Servers) -> str:
    if request.param not in stores:
        pytest.skip(f"{request.param} was left out by --stores")
    return namespaced(servers.url(request.param))


@pytest.fixture
async def store(url: str) -> AsyncIterator[MySQLStore]:
    store = MySQLStore.from_url(url)
    await store.open(now=lambda: NOW)
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def connected(url: str, isolation: str = "REPEATABLE READ", **options: Any) -> AsyncIterator[Any]:
    """A connection of the user's, which has a table of his."""
    login = {
        name: MySQLStore.from_url(url)._options[name] for name in ("host", "port", "user", "password", "db")
    }
    session = f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation}"
    connection = await aiomysql.connect(**{**login, "charset": "utf8mb4", "init_command": session, **options})
    try:
        yield connection
    finally:
        connection.close()


async def ask(connection: Any, statement: str) -> Any:
    cursor = await connection.cursor()
    await cursor.execute(statement)
    return await cursor.fetchall()


@pytest.fixture
async def notes(url: str) -> AsyncIterator[str]:
    """A table of the user's."""
    name = f"notes_{url[-8:]}"
    async with connected(url, autocommit=True) as connection:
        await ask(connection, f"CREATE TABLE {name} (note VARCHAR(100))")
        yield name
        await ask(connection, f"DROP TABLE {name}")


@contextlib.asynccontextmanager
async def engine_of(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    login, _, _ = url.partition("?")
    engine = create_async_engine(f"mysql+aiomysql://{login.partition('://')[2]}?charset=utf8mb4", **options)
    try:
        yield engine
    finally:
        await engine.dispose()


# ---- whose transaction it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_what_is_done_counts_once_the_user_commits(
    store: MySQLStore, url: str, notes: str, isolation: str
) -> None:
    await store.add([job("held")])
    [held] = await claim(store)
    async with connected(url, isolation) as connection:
        await ask(connection, f"INSERT INTO {notes} VALUES ('paid')")
        async with store.within(connection) as joined:
            assert await joined.add([job("a"), job("b", None)]) == set()
            assert await joined.settle([moved(held)]) == ["done"]
            assert (await joined.get(["a"])).keys() == {"a"}
            assert await joined.remove(["b"]) == {"b"}
        assert [r.id for r in await store.page(Filter(), 10)] == ["held"]
        assert (await store.get(["held"]))["held"].holder == "token"
        await connection.commit()
        assert await ask(connection, f"SELECT note FROM {notes}") == (("paid",),)
    assert {r.id: r.holder for r in await store.page(Filter(), 10)} == {"a": None, "held": None}


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_nothing_is_left_if_the_user_rolls_back(
    store: MySQLStore, url: str, notes: str, isolation: str
) -> None:
    await store.add([job("held")])
    [held] = await claim(store)
    async with connected(url, isolation) as connection:
        await ask(connection, f"INSERT INTO {notes} VALUES ('paid')")
        async with store.within(connection) as joined:
            await joined.add([job("a")])
            assert await joined.settle([moved(held)]) == ["done"]
        await connection.rollback()
        assert await ask(connection, f"SELECT note FROM {notes}") == ()
    assert await store.get(["a", "held"]) == {"held": held}
    assert await store.settle([moved(held)]) == ["done"]


async def test_where_no_transaction_is_open_one_is_begun_and_committed(store: MySQLStore, url: str) -> None:
    async with connected(url, autocommit=True) as connection:
        async with store.within(connection) as joined:
            await joined.add([job("a")])
            assert await store.get(["a"]) == {}
        assert (await store.get(["a"])).keys() == {"a"}
        assert not connection.get_transaction_status()
        assert connection.get_autocommit()


async def test_where_one_was_begun_an_exception_rolls_it_back(store: MySQLStore, url: str) -> None:
    async with connected(url, autocommit=True) as connection:
        with pytest.raises(ValueError, match="no"):
            await _add_and_fail(store, connection)
        assert not connection.get_transaction_status()
    assert await store.get(["a"]) == {}


async def test_a_transaction_begun_by_hand_is_joined(store: MySQLStore, url: str) -> None:
    async with connected(url, autocommit=True) as connection:
        await connection.begin()
        async with store.within(connection) as joined:
            await joined.add([job("a")])
        assert await store.get(["a"]) == {}
        await connection.rollback()
    assert await store.get(["a"]) == {}


async def test_a_connection_of_a_pool_is_joined(store: MySQLStore, url: str) -> None:
    login = {name: MySQLStore.from_url(url)._options[name] for name in ("host", "port", "user", "db")}
    async with (
        aiomysql.create_pool(minsize=0, charset="utf8mb4", **login) as pool,
        pool.acquire() as connection,
    ):
        async with store.within(connection) as joined:
            await joined.add([job("a")])
        await connection.commit()
    assert (await store.get(["a"])).keys() == {"a"}


async def test_a_store_that_works_through_the_users_pool_joins_as_well(store: MySQLStore, url: str) -> None:
    login = {name: MySQLStore.from_url(url)._options[name] for name in ("host", "port", "user", "db")}
    async with aiomysql.create_pool(minsize=0, charset="utf8mb4", **login) as pool:
        other = MySQLStore(pool=pool, namespace=store._namespace)
        await other.open(now=lambda: NOW)
        async with pool.acquire() as connection:
            async with other.within(connection) as joined:
                await joined.add([job("a")])
            assert await other.get(["a"]) == {}
            await connection.commit()
        assert (await other.get(["a"])).keys() == {"a"}
        await other.close()


# ---- SQLAlchemy ----------------------------------------------------------------------------------------------------------


async def test_a_connection_of_sqlalchemy_is_joined(store: MySQLStore, url: str, notes: str) -> None:
    async with engine_of(url) as engine:
        async with engine.begin() as connection:
            await connection.execute(text(f"INSERT INTO {notes} VALUES ('paid')"))
            async with store.within(connection) as joined:
                await joined.add([job("a")])
            assert await store.get(["a"]) == {}
        assert (await store.get(["a"])).keys() == {"a"}
        async with engine.connect() as connection:
            async with store.within(connection) as joined:
                await joined.add([job("b")])
            await connection.rollback()
    assert await store.get(["b"]) == {}


async def test_a_session_of_sqlalchemy_is_joined(store: MySQLStore, url: str, notes: str) -> None:
    async with engine_of(url) as engine, AsyncSession(engine) as session:
        await session.execute(text(f"INSERT INTO {notes} VALUES ('paid')"))
        async with store.within(session) as joined:
            await joined.add([job("a")])
        await session.rollback()
        assert await store.get(["a"]) == {}
        # The session's first statement is ours here.
        async with store.within(session) as joined:
            await joined.add([job("b")])
        await session.commit()
    assert (await store.get(["a", "b"])).keys() == {"b"}


async def test_a_connection_of_sqlalchemy_in_autocommit_gets_a_transaction(
    store: MySQLStore, url: str
) -> None:
    async with (
        engine_of(url, isolation_level="AUTOCOMMIT") as engine,
        engine.connect() as connection,
    ):
        with pytest.raises(ValueError, match="no"):
            await _add_and_fail(store, connection)
        async with store.within(connection) as joined:
            await joined.add([job("b")])
    assert (await store.get(["a", "b"])).keys() == {"b"}


# ---- what cannot be joined -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "connection", object()])
async def test_what_is_no_connection_is_refused(store: MySQLStore, given: object) -> None:
    with pytest.raises(DefinitionError, match="connection of aiomysql"):
        async with store.within(given):
            pass


async def test_a_connection_to_another_server_with_such_tables_is_refused(url: str) -> None:
    store = MySQLStore.from_url(f"{url}&table_prefix=marked_")
    await store.open()
    async with connected(url, autocommit=True) as connection:
        # As if they were those of another server.
        await ask(connection, "UPDATE marked_meta SET value = value + 1 WHERE name = 'mark'")
        with pytest.raises(DefinitionError, match="give one to the database that keeps the jobs"):
            async with store.within(connection):
                pass
        await store.close()
        await store.open()
        async with store.within(connection) as joined:
            await joined.add([job("a")])
        assert (await store.get(["a"])).keys() == {"a"}
        await store.close()
        for table in ("jobs", "runs", "claims", "leases", "fences", "spaces", "meta"):
            await ask(connection, f"DROP TABLE marked_{table}")


async def test_a_connection_of_another_charset_is_refused_with_the_remedy(
    store: MySQLStore, url: str
) -> None:
    async with connected(url, charset="latin1") as connection:
        with pytest.raises(DefinitionError, match="charset='utf8mb4'"):
            async with store.within(connection):
                pass


async def test_a_store_that_is_not_open_joins_nothing(url: str) -> None:
    async with connected(url) as connection:
        with pytest.raises(StoreError, match="open"):
            async with MySQLStore.from_url(url).within(connection):
                pass


# ---- races, under each isolation level -----------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ISOLATIONS[:2])
async def test_a_job_that_came_in_since_the_transaction_began_is_seen_as_a_conflict(
    store: MySQLStore, url: str, notes: str, isolation: str
) -> None:
    async with connected(url, isolation) as connection:
        await ask(connection, f"SELECT * FROM {notes}")
        async with store.within(connection) as joined:
            await joined.get(["other"])
            await store.add([job("a", birth="theirs")])
            assert await joined.add([job("a"), job("b")]) == {"a"}
            assert (await joined.get(["a"]))["a"].birth == "theirs"
        await connection.commit()
    assert {r.id: r.birth for r in await store.page(Filter(), 10)} == {"a": "theirs", "b": "birth"}


@pytest.mark.parametrize("isolation", ISOLATIONS[:2])
async def test_a_refused_update_is_followed_by_what_is_there_now(
    store: MySQLStore, url: str, isolation: str
) -> None:
    await store.add([job("a")])
    async with connected(url, isolation) as connection, store.within(connection) as joined:
        seen = (await joined.get(["a"]))["a"]
        newer = await store.update(update_of(seen, b"theirs"))
        assert await joined.update(update_of(seen)) is None
        assert await joined.get(["a"]) == {"a": newer}
        assert newer is not None
        assert await joined.update(update_of(newer)) is not None
        await connection.commit()
    assert (await store.get(["a"]))["a"].version == 3


@pytest.mark.parametrize("isolation", ISOLATIONS[:2])
async def test_a_job_that_was_removed_since_the_transaction_began_can_be_added_anew(
    store: MySQLStore, url: str, isolation: str
) -> None:
    await store.add([job("a", birth="theirs")])
    async with connected(url, isolation) as connection, store.within(connection) as joined:
        seen = (await joined.get(["a"]))["a"]
        await store.remove(["a"])
        assert await joined.update(update_of(seen)) is None
        assert await joined.get(["a"]) == {}
        assert await joined.add([job("a")]) == set()
        assert await joined.get(["a"]) == {"a": job("a")}
        await connection.commit()
    assert await store.get(["a"]) == {"a": job("a")}


@pytest.mark.parametrize("isolation", ISOLATIONS[:2])
async def test_leases_are_those_of_now_whatever_the_transaction_has_seen(
    store: MySQLStore, url: str, isolation: str
) -> None:
    ended = await store.acquire(["passed on"], "me", 30.0)
    async with connected(url, isolation) as connection, store.within(connection) as joined:
        await joined.get(["a"])
        await store.release(list(ended.values()))
        await store.acquire(["passed on"], "other", 30.0)
        mine = await store.acquire(["new"], "me", 30.0)
        assert await joined.extend([*mine.values(), *ended.values()], 10.0) == mine
        assert await joined.acquire(["passed on", "new"], "me", 30.0) == mine
        await connection.commit()


@pytest.mark.parametrize("isolation", ISOLATIONS[:2])
async def test_a_claim_that_was_made_since_the_transaction_began_is_renewed(
    store: MySQLStore, url: str, isolation: str
) -> None:
    await store.add([job("a")])
    async with connected(url, isolation) as connection, store.within(connection) as joined:
        await joined.get(["a"])
        [a] = await claim(store)
        assert (await joined.renew([Claim("a", a.fence, "token")], 10.0)).versions == {"a": 1}
        await connection.commit()


@pytest.mark.parametrize("isolation", ISOLATIONS[:2])
async def test_a_settlement_of_what_was_lost_meanwhile_is_refused_and_writes_nothing(
    store: MySQLStore, url: str, notes: str, isolation: str
) -> None:
    await store.add([job("a"), job("b"), job("c")])
    held = await claim(store)
    async with connected(url, isolation) as connection:
        await ask(connection, f"INSERT INTO {notes} VALUES ('paid')")
        async with store.within(connection) as joined:
            await joined.get(["a"])
            await store.settle([moved(held[0])])
            await store.remove(["b"])
            assert await joined.settle([moved(r) for r in held]) == ["already", "gone", "done"]
        await connection.commit()
        # What the user did before the refusal was not undone by it.
        assert await ask(connection, f"SELECT note FROM {notes}") == (("paid",),)
    assert {r.id: r.holder for r in await store.page(Filter(), 10)} == {"a": None, "c": None}


async def test_a_claim_that_was_renewed_since_the_transaction_began_is_settled_where_the_server_is_strict(
    store: MySQLStore, url: str, notes: str
) -> None:
    if store._dialect == "mysql":
        pytest.skip("MySQL has no such setting")
    await store.add([job("a"), job("b")])
    a, b = await claim(store)
    async with connected(url) as connection:
        await ask(connection, "SET SESSION innodb_snapshot_isolation = ON")
        await ask(connection, f"SELECT * FROM {notes}")
        await store.renew([Claim(r.id, r.fence, "token") for r in (a, b)], 60.0)
        async with store.within(connection) as joined:
            assert await joined.settle([moved(a)]) == ["done"]
            assert await joined.remove(["b"]) == {"b"}
        await connection.commit()
        assert await ask(connection, "SELECT @@innodb_snapshot_isolation") == ((1,),)
    assert {r.id: r.holder for r in await store.page(Filter(), 10)} == {"a": None}


async def test_a_settlement_that_fails_midway_leaves_nothing_of_itself(
    store: MySQLStore, url: str, notes: str
) -> None:
    await store.add([job("a"), job("locked", None)])
    [a] = await claim(store)
    locking = f"SELECT * FROM asyncsched_jobs WHERE space = {store._sql._space} AND id = 'locked' FOR UPDATE"
    async with connected(url) as connection, connected(url) as other:
        await ask(other, locking)
        await ask(connection, "SET SESSION innodb_lock_wait_timeout = 1")
        await ask(connection, f"INSERT INTO {notes} VALUES ('paid')")
        async with store.within(connection) as joined:
            spawn = (job("locked"), job("told"))
            with pytest.raises(StoreUnavailable):
                await joined.settle([replace(moved(a), delete=True, spawn=spawn)])
        await connection.commit()
        await other.rollback()
        assert await ask(connection, f"SELECT note FROM {notes}") == (("paid",),)
    assert {r.id: r.holder for r in await store.page(Filter(), 10)} == {"a": "token", "locked": None}


# ---- others meanwhile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_an_open_transaction_that_has_settled_holds_nobody_up(
    store: MySQLStore, url: str, isolation: str
) -> None:
    await store.add([job(id) for id in "abcd"])
    a, b, c, d = await claim(store)
    async with connected(url, isolation) as connection:
        async with store.within(connection) as joined:
            assert await joined.get(["b", "none", "zzz"]) == {"b": b}
            await joined.add([job("mine")])
            assert await joined.settle([moved(a, NOW - 1), moved(b, None)]) == ["done", "done"]
        async with asyncio.timeout(8.0):
            renewal = await store.renew([Claim(r.id, r.fence, "token") for r in (a, b, c, d)], 60.0)
            assert renewal.versions == {"a": "busy", "b": "busy", "c": 1, "d": 1}
            assert await store.settle([moved(c, NOW)]) == ["done"]
            assert [r.id for r in await claim(store, "other")] == ["c"]
            if isolation != "SERIALIZABLE":  # There a read locks, and what is looked for in vain is kept out.
                await store.add([job("e"), job("aa"), job("zz")])
                assert [r.id for r in await claim(store, "other2")] == ["aa", "e", "zz"]
        await connection.commit()
    assert [r.id for r in await claim(store, "third")] == ["a", "mine"]


async def test_a_conflicting_add_leaves_the_job_free_for_its_renewal(store: MySQLStore, url: str) -> None:
    await store.add([job("a", birth="theirs")])
    [a] = await claim(store)
    async with connected(url) as connection:
        async with store.within(connection) as joined:
            assert await joined.add([job("a"), job("b")]) == {"a"}
            assert (await joined.get(["a"])).keys() == {"a"}
        assert (await store.renew([Claim("a", a.fence, "token")], 60.0)).versions == {"a": 1}
        await connection.commit()


async def test_no_hint_is_given_of_what_may_be_rolled_back(store: MySQLStore, url: str) -> None:
    heard: list[float | None] = []
    store.on_hint(heard.append)
    async with connected(url) as connection:
        async with store.within(connection) as joined:
            await joined.add([job("a")])
        await connection.commit()
    assert heard == []
    await store.add([job("b")])
    assert heard == [NOW]


async def test_a_deadlock_ends_the_transaction_and_is_not_repeated(store: MySQLStore, url: str) -> None:
    await store.add([job("a"), job("b")])
    write = f"UPDATE asyncsched_jobs SET body = 'theirs' WHERE space = {store._sql._space} AND id = "
    async with connected(url) as mine, connected(url) as other:
        # Whoever has written less is the victim.
        for id in ("b", "b1", "b2", "b3"):
            await ask(other, f"{write} '{id}'")
        await ask(other, f"INSERT INTO asyncsched_runs SELECT {store._sql._space}, n, 1, 'k', 1, 1, '' FROM "
                         "(SELECT 1 AS n UNION SELECT 2 UNION SELECT 3 UNION SELECT 4) AS s")  # fmt: skip
        async with store.within(mine) as joined:
            a = (await joined.get(["a"]))["a"]
            await joined.update(update_of(a))
            removal = asyncio.ensure_future(joined.remove(["b"]))
            await eventually(lambda: _waits_for_a_lock(store))
            await ask(other, f"{write} 'a'")
            with pytest.raises(StoreUnavailable):
                await removal
        await other.rollback()
    assert {id: r.body for id, r in (await store.get(["a", "b"])).items()} == {"a": b"body", "b": b"body"}


async def _add_and_fail(store: MySQLStore, connection: object) -> None:
    async with store.within(connection) as joined:
        await joined.add([job("a")])
        raise ValueError("no")


async def _waits_for_a_lock(store: MySQLStore) -> bool:
    # The server makes this table anew only if nobody has read it for a tenth of a second.
    await asyncio.sleep(0.15)
    [answer] = await store._read(
        "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    )
    return bool(answer.rows[0][0])
