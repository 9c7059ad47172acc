"""What is particular to the store on PostgreSQL; what every store promises is in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest

from asyncsched.contract import Claim, Entry, Filter, JobStore, Record, Settlement, Update
from asyncsched.errors import DefinitionError, MissingExtra, SchemaError, StoreError, StoreUnavailable
from asyncsched.stores import postgres
from asyncsched.stores.postgres import PostgresStore, schema, setup
from tests.servers.postgres import PASSWORD
from tests.servers.running import Servers, url_given_for
from tests.servers.server import free_port
from tests.support.proxy import proxied
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0

#: How many statements on a schema wait for a lock.
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%'"
)


def job(id: str, wake_at: float | None = NOW, queue: str = "default", hold: str | None = None) -> Record:
    return Record(id, "birth", queue, 5, "task", wake_at, hold, b"body", b"cursor")


def ended(record: Record, *, wake_at: float | None = None) -> Settlement:
    return Settlement(
        id=record.id,
        fence=record.fence,
        holder=str(record.holder),
        version=record.version,
        wake_at=wake_at,
        delete=wake_at is None,
        entries=(Entry(record.id, record.fence, "run", NOW, NOW, b""),),
    )


def claim_of(record: Record) -> Claim:
    return Claim(record.id, record.fence, str(record.holder))


async def claim(store: JobStore, token: str = "token", limit: int = 100) -> list[Record]:
    return (await store.claim(["default", "other"], token, limit, 30.0)).records


@pytest.fixture(scope="module")
def url(stores: Sequence[str], servers: Servers) -> str:
    if "postgres" not in stores:
        pytest.skip("postgres was left out by --stores")
    return servers.url("postgres")


@pytest.fixture
async def user(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the user's own."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
async def place(user: asyncpg.Connection) -> AsyncIterator[str]:
    """A schema that is not there yet."""
    name = f"test_{secrets.token_hex(6)}"
    yield name
    await user.execute(f'SET client_min_messages = error; DROP SCHEMA IF EXISTS "{name}" CASCADE')


@pytest.fixture
async def store(url: str, place: str) -> AsyncIterator[PostgresStore]:
    async with opened(PostgresStore(url, schema=place)) as store:
        yield store


@contextlib.asynccontextmanager
async def opened(store: PostgresStore, *, is_now: bool = True) -> AsyncIterator[PostgresStore]:
    await store.open(now=(lambda: NOW) if is_now else None)
    try:
        yield store
    finally:
        await store.close()


def test_it_keeps_to_the_protocol() -> None:
    store: JobStore = PostgresStore("postgresql://localhost/jobs")
    assert store.capabilities.transactional_add


# ---- URLs and keywords ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("mysql://localhost/jobs", ["no PostgreSQL URL", "postgresql://user"]),
        ("postgresql://u:secret@h/jobs?table_prefix=a-b", ["table_prefix", "'a-b'"]),
        ("postgresql://h/jobs?table_prefix=" + "a" * 33, ["table_prefix", "32 bytes"]),
        ("postgresql://h/jobs?schema=a%22b", ["schema", "no name"]),
        ("postgresql://u:secret@h/jobs?timeout=soon", ["timeout", "'soon'", "a number"]),
        ("postgresql://h/jobs?timeout=0", ["timeout", "above 0"]),
        ("postgresql://h/jobs?pool_size=0", ["pool_size", "0"]),
        ("postgresql://h/jobs?statement_cache_size=-1", ["statement_cache_size", "-1"]),
        ("postgresql://h/jobs?create_schema=maybe", ["create_schema", "true or false"]),
        ("postgresql://h/jobs?namespace=", ["namespace", "''"]),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_remedy(given: str, words: list[str]) -> None:
    with pytest.raises(DefinitionError) as refusal:
        PostgresStore.from_url(given)
    assert [word for word in words if word not in str(refusal.value)] == []
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "remedy"), [("timeout", "timeout="), ("max_size", "pool_size="), ("connection_class", "pool=")]
)
def test_options_that_the_store_sets_itself_are_refused_with_the_remedy(name: str, remedy: str) -> None:
    with pytest.raises(DefinitionError, match=f"options cannot have '{name}': that is said by {remedy}"):
        PostgresStore("postgresql://localhost/jobs", options={name: 1})


def test_a_store_needs_a_place() -> None:
    with pytest.raises(DefinitionError, match="URL or pool="):
        PostgresStore()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "PostgreSQL"])
async def test_a_url_may_be_written_in_the_usual_ways(url: str, place: str, scheme: str) -> None:
    _, _, rest = url.partition("://")
    async with opened(PostgresStore.from_url(f"{scheme}://{rest}?schema={place}")) as store:
        assert await store.add([job("a")]) == set()


async def test_keywords_of_a_url_reach_their_place(url: str, place: str, user: asyncpg.Connection) -> None:
    keywords = f"schema={place}&table_prefix=Mine_&namespace=shop&create_schema=true&pool_size=2&listen=false"
    async with opened(PostgresStore.from_url(f"{url}?{keywords}&application_name=shopper")) as store:
        await store.add([job("a")])
        names = await user.fetch(
            "SELECT application_name FROM pg_stat_activity WHERE application_name = 'shopper'"
        )
        assert len(names) >= 1
        assert not store.capabilities.push_hints
    [[space]] = await user.fetch(
        f'SELECT s.name FROM "{place}"."Mine_jobs" j JOIN "{place}"."Mine_spaces" s ON s.id = j.space'
    )
    assert space == "shop"


async def test_a_keyword_that_nobody_knows_is_refused_by_the_server_by_name(url: str) -> None:
    with pytest.raises(StoreError, match="namespce"):
        await PostgresStore.from_url(f"{url}?namespce=shop").open()


def test_without_asyncpg_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    spec = importlib.util.spec_from_file_location("postgres_without_its_client", postgres.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtra, match=r'pip install "asyncsched\[postgres\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


async def test_two_prefixes_two_schemas_and_two_namespaces_see_nothing_of_each_other(
    url: str, place: str, user: Any
) -> None:
    stores = [
        PostgresStore(url, schema=place),
        PostgresStore(url, schema=place, table_prefix="other_"),
        PostgresStore(url, schema=place, namespace="other"),
    ]
    async with contextlib.AsyncExitStack() as stack:
        for i, store in enumerate(stores):
            await stack.enter_async_context(opened(store))
            assert await store.add([job("a"), job(f"only {i}")]) == set()
        for i, store in enumerate(stores):
            assert [r.id for r in await claim(store)] == ["a", f"only {i}"]
            assert (await store.acquire(["k"], f"{i}", 30.0)).keys() == {"k"}


async def test_a_hint_of_one_namespace_is_not_heard_in_another(url: str, place: str) -> None:
    async with (
        opened(PostgresStore(url, schema=place)) as store,
        opened(PostgresStore(url, schema=place)) as same,
        opened(PostgresStore(url, schema=place, namespace="other")) as other,
    ):
        heard: dict[str, list[float | None]] = {"same": [], "other": []}
        same.on_hint(heard["same"].append)
        other.on_hint(heard["other"].append)
        await eventually(lambda: None in heard["same"] and None in heard["other"])
        await store.add([job("a", NOW + 5)])
        await eventually(lambda: NOW + 5 in heard["same"])
        assert heard["other"] == [None]


# ---- open() says what is wrong -------------------------------------------------------------------------------------------


async def refusal_of(store: PostgresStore) -> StoreError:
    with pytest.raises(StoreError) as refusal:
        await store.open()
    assert PASSWORD not in str(refusal.value)
    return refusal.value


async def test_a_server_that_is_not_there_is_unavailable(url: str) -> None:
    error = await refusal_of(
        PostgresStore(f"postgresql://someone:{PASSWORD.replace('/', '%2F')}@127.0.0.1:{free_port()}/jobs")
    )
    assert isinstance(error, StoreUnavailable)
    assert "someone:***@127.0.0.1" in str(error)


@pytest.fixture
async def guarded(url: str, user: asyncpg.Connection) -> AsyncIterator[str]:
    """The URL, without the password, of the user who needs one; he may log in and no more."""
    if url_given_for("postgres"):
        pytest.skip("the given server has no user guarded")
    await user.execute(f"DROP ROLE IF EXISTS guarded; CREATE ROLE guarded LOGIN PASSWORD '{PASSWORD}'")
    yield url.replace("postgres@", "guarded{}@")
    await user.execute("DROP OWNED BY guarded; DROP ROLE guarded")


async def test_a_wrong_password_is_refused_for_good(guarded: str) -> None:
    error = await refusal_of(PostgresStore(guarded.format(":wrong")))
    assert not isinstance(error, StoreUnavailable)
    assert "check user and password" in str(error)


async def test_a_login_that_is_refused_once_the_store_is_open_may_succeed_again(
    guarded: str, place: str, user: Any
) -> None:
    await user.execute(f"CREATE SCHEMA {place} AUTHORIZATION guarded")
    store = PostgresStore(guarded.format(":" + PASSWORD.replace("/", "%2F")), schema=place, pool_size=1)
    async with opened(store):
        await user.execute("ALTER ROLE guarded PASSWORD 'another'")
        await user.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guarded'")
        with pytest.raises(StoreUnavailable):
            await store.add([job("a")])
        with pytest.raises(StoreUnavailable, match="check user and password"):
            await store.add([job("a")])
        await user.execute(f"ALTER ROLE guarded PASSWORD '{PASSWORD}'")
        assert await store.add([job("a")]) == set()


async def test_a_right_that_is_taken_while_the_store_is_open_condemns_no_job(
    guarded: str, place: str, user: Any
) -> None:
    await user.execute(f"CREATE SCHEMA {place} AUTHORIZATION guarded")
    store = PostgresStore(guarded.format(":" + PASSWORD.replace("/", "%2F")), schema=place)
    async with opened(store):
        await store.add([job("a")])
        [held] = await claim(store)
        await user.execute(f"REVOKE DELETE ON ALL TABLES IN SCHEMA {place} FROM guarded")
        with pytest.raises(StoreUnavailable, match="grant it that privilege"):
            await store.settle([ended(held)])
        await user.execute(f"GRANT DELETE ON ALL TABLES IN SCHEMA {place} TO guarded")
        assert await store.settle([ended(held)]) == ["done"]


async def test_the_right_password_is_never_shown(guarded: str, place: str) -> None:
    password = ":" + PASSWORD.replace("/", "%2F")
    error = await refusal_of(PostgresStore(guarded.format(password), schema=place))
    assert not isinstance(error, StoreUnavailable)
    for word in (
        "'guarded' cannot create",
        place,
        "grant it CREATE",
        "schema=",
        "ddl()",
        "create_schema=False",
    ):
        assert word in str(error)


async def test_a_role_that_may_only_use_the_tables_works_without_creating_them(
    guarded: str, place: str, user: Any
) -> None:
    guarded = guarded.format(":" + PASSWORD.replace("/", "%2F"))
    await user.execute(PostgresStore(guarded, schema=place).ddl())
    error = await refusal_of(PostgresStore(guarded, schema=place, create_schema=False))
    assert "grant it that privilege" in str(error)
    for what in ("USAGE ON SCHEMA", "ALL ON ALL TABLES IN SCHEMA", "ALL ON ALL SEQUENCES IN SCHEMA"):
        await user.execute(f"GRANT {what} {place} TO guarded")
    async with opened(PostgresStore(guarded, schema=place, create_schema=False)) as store:
        await store.add([job("a")])
        [held] = await claim(store)
        assert await store.settle([ended(held)]) == ["done"]


async def test_a_database_that_is_not_there_is_named(url: str) -> None:
    error = await refusal_of(PostgresStore(url.rpartition("/")[0] + "/nowhere"))
    assert not isinstance(error, StoreUnavailable)
    assert "no such database" in str(error)
    assert "nowhere" in str(error)


async def test_a_database_of_another_encoding_is_refused(url: str, user: asyncpg.Connection) -> None:
    name = f"latin_{secrets.token_hex(4)}"
    await user.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        error = await refusal_of(PostgresStore(url.rpartition("/")[0] + f"/{name}"))
    finally:
        await user.execute(f"DROP DATABASE {name} WITH (FORCE)")
    assert "LATIN1" in str(error)
    assert "UTF8" in str(error)


async def test_a_server_that_cannot_be_written_to_is_unavailable(url: str, place: str) -> None:
    options = {"server_settings": {"default_transaction_read_only": "on"}}
    error = await refusal_of(PostgresStore(url, schema=place, options=options))
    assert isinstance(error, StoreUnavailable)
    assert "read-only" in str(error)


async def test_a_server_that_is_too_old_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_OLDEST", 990000)
    assert "99 or later is needed" in str(await refusal_of(PostgresStore(url)))


async def test_a_missing_schema_is_not_created_unasked(url: str, place: str) -> None:
    error = await refusal_of(PostgresStore(url, schema=place, create_schema=False))
    assert isinstance(error, SchemaError)
    assert "open it once with create_schema=True" in str(error)
    async with (
        opened(PostgresStore(url, schema=place)),
        opened(PostgresStore(url, schema=place, create_schema=False)) as store,
    ):
        await store.add([job("a")])


async def test_tables_that_lack_a_version_are_not_taken_for_a_schema(url: str, place: str, user: Any) -> None:
    await user.execute(f"CREATE SCHEMA {place}")
    await user.execute(f"CREATE TABLE {place}.asyncsched_meta (key text PRIMARY KEY, value bigint NOT NULL)")
    error = await refusal_of(PostgresStore(url, schema=place))
    assert 'relation "asyncsched_meta" already exists' in str(error)


async def test_a_newer_schema_is_refused_with_both_versions(
    url: str, place: str, store: PostgresStore, user: Any
) -> None:
    await user.execute(f"UPDATE {place}.asyncsched_meta SET value = 7 WHERE key = 'schema'")
    error = await refusal_of(PostgresStore(url, schema=place))
    assert isinstance(error, SchemaError)
    assert f"version 7, this code {schema.SCHEMA_VERSION}: upgrade asyncsched" in str(error)


async def test_a_schema_that_is_dropped_meanwhile_is_missed_by_name(
    store: PostgresStore, place: str, user: Any
) -> None:
    await store.add([job("a")])
    await user.execute(f"SET client_min_messages = error; DROP SCHEMA {place} CASCADE")
    with pytest.raises(SchemaError, match="gone or damaged"):
        await store.get(["a"])


async def test_a_store_that_is_not_open_says_so(url: str) -> None:
    with pytest.raises(StoreError, match=r"not open: await its open\(\) first"):
        await PostgresStore(url).get(["a"])


@pytest.mark.parametrize(
    "poison", [job("a\0b"), job("\ud800"), Record("a", "b", "q", 2**70, "t", NOW, None, b"", b"")]
)
async def test_a_value_that_postgresql_cannot_keep_is_refused_for_good(
    store: PostgresStore, poison: Record
) -> None:
    with pytest.raises(StoreError) as refusal:
        await store.add([job("good"), poison])
    assert not isinstance(refusal.value, StoreUnavailable)
    assert await store.page(Filter(), 10) == []


# ---- the schema and its versions -----------------------------------------------------------------------------------------


async def test_a_schema_is_created_once_by_many_at_once(url: str, place: str) -> None:
    stores = [PostgresStore(url, schema=place, namespace=f"{i % 2}") for i in range(12)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        assert (
            await asyncio.gather(*(store.add([job(f"{i}")]) for i, store in enumerate(stores)))
            == [set()] * 12
        )
        assert len(await stores[0].page(Filter(), 100)) == 6
    finally:
        for store in stores:
            await store.close()


async def test_a_schema_of_an_older_version_is_brought_up_to_date_once(
    url: str, place: str, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(PostgresStore(url, schema=place)) as store:
        await store.add([job("a")])
        monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
        added = {schema.SCHEMA_VERSION: ("ALTER TABLE @jobs ADD COLUMN extra integer",)}
        monkeypatch.setattr(schema, "MIGRATIONS", {**schema.MIGRATIONS, **added})
        error = await refusal_of(PostgresStore(url, schema=place, create_schema=False))
        assert isinstance(error, SchemaError)
        assert "has version 1, this code 2" in str(error)
        newer = [PostgresStore(url, schema=place) for _ in range(4)]
        await asyncio.gather(*(store.open(now=lambda: NOW) for store in newer))
        # The instance of the older version goes on beside them.
        [held] = await claim(store)
        assert await newer[0].settle([ended(held)]) == ["done"]
        for each in newer:
            await each.close()
    assert await user.fetchval(f"SELECT value FROM {place}.asyncsched_meta WHERE key = 'schema'") == 2


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    url: str, place: str, store: PostgresStore, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 2)
    steps = ("ALTER TABLE @jobs ADD COLUMN extra integer", "SELECT 1 / 0")
    monkeypatch.setattr(schema, "MIGRATIONS", {**schema.MIGRATIONS, 2: steps})
    assert "division by zero" in str(await refusal_of(PostgresStore(url, schema=place)))
    assert await user.fetchval(f"SELECT value FROM {place}.asyncsched_meta WHERE key = 'schema'") == 1
    assert not await user.fetchval(
        "SELECT count(*) FROM information_schema.columns WHERE table_schema = $1 AND column_name = 'extra'",
        place,
    )
    assert await store.add([job("a")]) == set()


async def test_the_printed_statements_make_the_schema(url: str, place: str, user: Any) -> None:
    await user.execute(PostgresStore(url, schema=place).ddl())
    async with opened(PostgresStore(url, schema=place, create_schema=False)) as store:
        assert await store.add([job("a")]) == set()
        assert [r.id for r in await claim(store)] == ["a"]


# ---- connections ---------------------------------------------------------------------------------------------------------


async def test_the_users_pool_is_used_and_left_open(url: str, place: str) -> None:
    async with asyncpg.create_pool(url, min_size=0, max_size=3) as pool:
        store = PostgresStore(pool=pool, schema=place)
        assert not store.capabilities.push_hints
        assert store.clone() is None
        async with opened(store):
            await store.add([job("a")])
            [held] = await claim(store)
            assert await store.settle([ended(held)]) == ["done"]
        assert await pool.fetchval("SELECT 1") == 1
        async with opened(store):
            assert await store.get(["a"]) == {}


async def test_a_pool_with_a_url_hears_hints_and_can_be_cloned(url: str, place: str) -> None:
    async with asyncpg.create_pool(url, min_size=0, max_size=3) as pool:
        async with (
            opened(PostgresStore(url, pool=pool, schema=place)) as store,
            opened(PostgresStore(url, schema=place)) as other,
        ):
            heard: list[float | None] = []
            store.on_hint(heard.append)
            await eventually(lambda: None in heard)
            await other.add([job("a", NOW - 3)])
            await eventually(lambda: NOW - 3 in heard)
            clone = store.clone()
            assert clone is not None
            async with opened(clone):
                assert (await clone.get(["a"])).keys() == {"a"}
        assert await pool.fetchval("SELECT 1") == 1


async def test_waiting_for_a_connection_has_a_deadline(url: str, place: str) -> None:
    async with (
        asyncpg.create_pool(url, min_size=0, max_size=1) as pool,
        opened(PostgresStore(pool=pool, schema=place, timeout=1.0)) as store,
    ):
        async with pool.acquire():
            with pytest.raises(StoreUnavailable, match=r"did not answer within 1 s"):
                await store.get(["a"])
        assert await store.get(["a"]) == {}


async def test_waiting_for_a_lock_has_a_deadline_and_leaves_nobody_waiting(
    store: PostgresStore, url: str, place: str, user: Any
) -> None:
    await store.add([job("a")])
    async with opened(PostgresStore(url, schema=place, timeout=1.0)) as hasty:
        async with user.transaction():
            await user.execute(f"SELECT FROM {place}.asyncsched_jobs FOR UPDATE")
            with pytest.raises(StoreUnavailable, match=r"did not answer within 1 s"):
                await hasty.remove(["a"])

            async def nobody_waits() -> bool:
                return not await user.fetchval(WAITING, place)

            await eventually(nobody_waits)
        assert (await store.get(["a"])).keys() == {"a"}
        assert await hasty.remove(["a"]) == {"a"}


async def test_a_cancelled_call_leaves_its_connection_fit_for_use(url: str, place: str, user: Any) -> None:
    async with opened(PostgresStore(url, schema=place, pool_size=1)) as store:
        await store.add([job("a")])
        async with user.transaction():
            await user.execute(f"SELECT FROM {place}.asyncsched_jobs FOR UPDATE")
            task = asyncio.ensure_future(store.remove(["a"]))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            # The only connection of the store is there again while the row is locked still.
            assert (await store.get(["a"])).keys() == {"a"}


async def test_a_store_is_closed_at_once_whatever_is_on_its_way(url: str, place: str, user: Any) -> None:
    store = PostgresStore(url, schema=place)
    await store.open()
    await store.add([job("a")])
    async with user.transaction():
        await user.execute(f"SELECT FROM {place}.asyncsched_jobs FOR UPDATE")
        task = asyncio.ensure_future(store.remove(["a"]))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(7):
            await store.close()
            with pytest.raises(StoreUnavailable):
                await task


async def test_a_close_that_is_cancelled_leaves_no_connection_behind(url: str, place: str, user: Any) -> None:
    store = PostgresStore(url, schema=place, options={"server_settings": {"application_name": place}})
    await store.open()
    heard: list[float | None] = []
    store.on_hint(heard.append)
    await eventually(lambda: None in heard)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing

    async def is_alone() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
        return not await user.fetchval(query, place)

    await eventually(is_alone)


async def test_each_call_of_the_hot_path_is_one_round_trip(url: str, place: str) -> None:
    async with proxied(url) as proxy:
        store = PostgresStore(proxy.of(url), schema=place, pool_size=1, listen=False)
        async with opened(store):
            trips: list[int] = []
            for turn in range(3):
                before = proxy.requests
                await store.add([job(f"{turn}-{i}") for i in range(50)])
                trips.append(proxy.requests - before)
                held = await claim(store, f"token-{turn}")
                trips.append(proxy.requests - before)
                await store.renew([claim_of(r) for r in held], 60.0)
                trips.append(proxy.requests - before)
                moves = [ended(r, wake_at=NOW + 9) for r in held[:20]]
                assert await store.settle([*moves, *map(ended, held[20:])]) == ["done"] * 50
                trips.append(proxy.requests - before)
            # The first turn prepared the statements.
            assert trips[-4:] == [1, 2, 3, 4]


# ---- locked rows and others' transactions --------------------------------------------------------------------------------


async def test_a_renewal_does_not_wait_for_a_locked_row(store: PostgresStore, place: str, user: Any) -> None:
    await store.add([job("a"), job("b"), job("c")])
    held = await claim(store)
    await store.remove(["c"])
    async with user.transaction():
        await user.execute(f"SELECT FROM {place}.asyncsched_jobs WHERE id = 'a' FOR UPDATE")
        renewal = await store.renew([claim_of(r) for r in held], 90.0)
        assert renewal.versions == {"a": "busy", "b": 1, "c": "lost"}
    renewal = await store.renew([claim_of(r) for r in held], 90.0)
    assert renewal.versions == {"a": 1, "b": 1, "c": "lost"}
    assert {r.wake_at for r in (await store.get(["a", "b"])).values()} == {NOW + 90}


async def test_a_claim_takes_what_stands_behind_locked_rows(
    store: PostgresStore, place: str, user: Any
) -> None:
    await store.add([job(f"{i:02}") for i in range(20)])
    async with user.transaction():
        await user.execute(f"SELECT FROM {place}.asyncsched_jobs WHERE id < '10' FOR UPDATE")
        assert [r.id for r in await claim(store, limit=5)] == ["10", "11", "12", "13", "14"]


async def test_calls_that_lock_each_other_out_are_repeated_and_both_succeed(
    store: PostgresStore, place: str, user: Any
) -> None:
    await store.add([job("a"), job("b")])
    async with user.transaction():
        await user.execute("SET LOCAL deadlock_timeout = '10s'")
        await user.execute(f"SELECT FROM {place}.asyncsched_jobs WHERE id = 'b' FOR UPDATE")
        removal = asyncio.ensure_future(store.remove(["a", "b"]))
        await eventually(lambda: user.fetchval(WAITING, place))
        # Now the one waits for b and has a; here is b, and a is asked for.
        await user.execute(f"SELECT FROM {place}.asyncsched_jobs WHERE id = 'a' FOR UPDATE")
    assert await removal == {"a", "b"}


@pytest.mark.parametrize("call", ["extend", "release"])
async def test_named_leases_are_locked_in_the_order_of_their_keys_however_they_are_given(
    store: PostgresStore, place: str, user: Any, call: str
) -> None:
    """As acquire locks them: whoever waits for the first has none of the others, so nobody waits for him."""
    in_reverse = [(await store.acquire([key], "me", 30.0))[key] for key in ("c", "b", "a")]

    async def is_waiting() -> bool:
        # A transaction looks once at what others do, unless it is told to look again.
        await user.execute("SELECT pg_stat_clear_snapshot()")
        return bool(await user.fetchval(WAITING, place))

    async with user.transaction():
        await user.execute(f"SELECT FROM {place}.asyncsched_leases WHERE key = 'a' FOR UPDATE")
        waiting = asyncio.ensure_future(
            store.release(in_reverse) if call == "release" else store.extend(in_reverse, 60.0)
        )
        await eventually(is_waiting)
        free = await user.fetch(
            f"SELECT key FROM {place}.asyncsched_leases ORDER BY key FOR UPDATE SKIP LOCKED"
        )
    assert [row[0] for row in free] == ["a", "b", "c"]
    await waiting


async def test_a_batch_with_a_lost_claim_settles_the_others_in_two_round_trips(store: PostgresStore) -> None:
    await store.add([job(f"{i}") for i in range(10)])
    held = await claim(store)
    revoked = held[4]
    await store.update(
        Update(
            id=revoked.id,
            version=1,
            body=b"",
            queue="default",
            priority=5,
            wake_at=NOW,
            hold=None,
            revoke=True,
        )
    )
    answers = await store.settle([ended(r) for r in held])
    assert answers == ["done"] * 4 + ["lost"] + ["done"] * 5
    assert len(await store.runs()) == 9


# ---- hints ---------------------------------------------------------------------------------------------------------------


async def test_a_batch_is_told_once_with_its_earliest_time(
    store: PostgresStore, place: str, user: Any
) -> None:
    told: list[str] = []
    await user.add_listener(
        store._names.channel(store._space), lambda *args: told.append(args[3].partition(":")[2])
    )
    await store.add([job(f"{i}", NOW - i) for i in range(100)])
    await store.add([job("later", NOW + 3600), job("never", None)])
    held = await claim(store)
    assert await store.settle([ended(r) for r in held[:50]]) == ["done"] * 50
    assert (
        await store.settle([ended(r, wake_at=NOW + 7 + i) for i, r in enumerate(held[50:])]) == ["done"] * 50
    )
    await store.add([job("last", NOW)])
    await eventually(lambda: str(int(NOW)) in told)
    assert told == [str(int(NOW - 99)), str(int(NOW + 7)), str(int(NOW))]


async def test_options_of_a_pool_do_not_keep_the_listener_from_hearing(url: str, place: str) -> None:
    options = {"max_inactive_connection_lifetime": 60.0, "max_queries": 1000}
    async with (
        opened(PostgresStore(url, schema=place, options=options)) as store,
        opened(PostgresStore(url, schema=place)) as other,
    ):
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: None in heard)
        await other.add([job("a", NOW - 1)])
        await eventually(lambda: NOW - 1 in heard)


async def test_who_asks_for_no_hints_holds_no_listening_connection(
    store: PostgresStore, place: str, user: Any
) -> None:
    await store.get(["a"])
    listening = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' || $1 || '%'"
    channel = store._names.channel(store._space)
    assert await user.fetchval(listening, channel) == 0
    store.on_hint(lambda _: None)
    await eventually(
        lambda: user.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%LISTEN%' AND pid <> pg_backend_pid()"
        )
    )


async def test_a_store_hears_its_own_writes_once(url: str, place: str) -> None:
    async with (
        opened(PostgresStore(url, schema=place)) as store,
        opened(PostgresStore(url, schema=place)) as other,
    ):
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: None in heard)
        heard.clear()
        await store.add([job("a", NOW - 1)])
        await other.add([job("b", NOW - 2)])
        await eventually(lambda: NOW - 2 in heard)
        assert heard == [NOW - 1, NOW - 2]


async def test_what_another_wrote_before_the_floor_is_claimed_at_once(url: str, place: str) -> None:
    """A claim need not begin where the lane does, but for as long only as it hears of what others put there."""
    async with (
        opened(PostgresStore(url, schema=place), is_now=False) as store,
        opened(PostgresStore(url, schema=place), is_now=False) as other,
    ):
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: None in heard)
        now = await store.now()
        await store.add([job(f"{i:03}", now - 50 + i) for i in range(40)])
        assert [r.id for r in await claim(store, "one", 10)] == [f"{i:03}" for i in range(10)]
        assert store._floors.of(["default", "other"])[0] == now - 40
        await other.add([job("earlier", now - 90)])
        await eventually(lambda: now - 90 in heard)
        assert [r.id for r in await claim(store, "two", 2)] == ["earlier", "010"]
        await store.add([job("own", now - 80)])
        assert [r.id for r in await claim(store, "three", 2)] == ["own", "011"]


async def test_a_floor_is_forgotten_where_nothing_is_heard(url: str, place: str) -> None:
    async with (
        opened(PostgresStore(url, schema=place, listen=False), is_now=False) as store,
        opened(PostgresStore(url, schema=place), is_now=False) as other,
    ):
        now = await store.now()
        await store.add([job("a", now - 5), job("b", now - 4)])
        assert [r.id for r in await claim(store, "one", 1)] == ["a"]
        await other.add([job("earlier", now - 90)])
        assert [r.id for r in await claim(store, "two", 1)] == ["earlier"]


async def test_the_server_s_timeout_for_transactions_is_no_refusal(store: PostgresStore) -> None:
    with pytest.raises(StoreUnavailable, match="25P04"):
        await store._ask("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '25P04'; END $$")


# ---- claims that are repeated --------------------------------------------------------------------------------------------


async def test_what_is_known_of_a_claim_goes_once_its_lease_has_ended(
    url: str, place: str, user: Any
) -> None:
    clock = [NOW]
    store = PostgresStore(url, schema=place)
    await store.open(now=lambda: clock[0])
    try:
        for turn in range(30):
            await store.add([job(f"{turn}", clock[0])])
            [held] = await claim(store, f"token {turn}")
            await store.settle([ended(held)])
            clock[0] += 10
        assert await user.fetchval(f"SELECT count(*) FROM {place}.asyncsched_claims") <= 6
    finally:
        await store.close()


async def test_a_claim_that_was_renewed_can_be_repeated_long_after(url: str, place: str) -> None:
    clock = [NOW]
    store = PostgresStore(url, schema=place)
    await store.open(now=lambda: clock[0])
    try:
        await store.add([job("a")])
        [held] = await claim(store, "mine")
        for turn in range(10):
            clock[0] += 20
            await store.renew([claim_of(held)], 30.0)
            await store.add([job(f"{turn}", clock[0])])
            [other] = await claim(store, f"token {turn}")
            assert await store.settle([ended(other)]) == ["done"]
        assert [r.id for r in await claim(store, "mine")] == ["a"]
    finally:
        await store.close()


async def test_a_claim_that_is_repeated_before_the_first_is_committed_gives_what_that_took(
    store: PostgresStore, user: asyncpg.Connection, url: str, place: str
) -> None:
    await store.add([job("a"), job("b")])
    watcher = await asyncpg.connect(url)
    try:
        async with user.transaction(), store.within(user) as joined:
            first = await claim(joined, limit=1)
            again = asyncio.create_task(claim(store, limit=1))
            await eventually(lambda: _is_waiting(watcher, place))
    finally:
        await watcher.close()
    assert await again == first
    assert (await store.get(["b"]))["b"].holder is None


async def _is_waiting(watcher: asyncpg.Connection, place: str) -> bool:
    return bool(await watcher.fetchval(WAITING, place))
