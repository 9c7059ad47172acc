"""What is particular to the store on MariaDB and MySQL; what every store promises is in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiomysql
import pytest
from pymysql.err import OperationalError

from asyncsched.contract import Claim, Entry, Filter, JobStore, Record, Settlement, Update
from asyncsched.errors import (
    DefinitionError,
    MissingExtra,
    SchemaError,
    StoreError,
    StoreUnavailable,
)
from asyncsched.stores import mysql, store_from_url
from asyncsched.stores.mysql import MySQLStore, _line, _opening, _store
from asyncsched.stores.mysql._line import Answer, NotApplied
from asyncsched.stores.mysql._statements import Lane
from tests.servers.running import Servers
from tests.support.proxy import proxied
from tests.support.stores import namespaced
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0
#: Ids that the text of a statement could be broken with.
AWKWARD = (
    "it's",
    'say "hi"',
    "back\\slash",
    "\\'; DROP",
    "%s",
    "line\nend",
    "nul\0l",
    "-- no",
    "\U0001f680",
    "a ",
    "a",
)


def job(
    id: str, wake_at: float | None = NOW, queue: str = "default", hold: str | None = None, body: bytes = b"b"
) -> Record:
    return Record(id, f"birth of {id}"[:255], queue, 5, "task", wake_at, hold, body, b"cursor")


def run_of(record: Record, body: bytes = b"") -> Entry:
    return Entry(record.id, record.fence, "run", NOW, NOW, body)


def moved(record: Record, wake_at: float | None = NOW + 60, **changes: Any) -> Settlement:
    return Settlement(
        id=record.id,
        fence=record.fence,
        holder=str(record.holder),
        version=record.version,
        wake_at=wake_at,
        cursor=f"cursor of {record.id}".encode(),
        entries=(run_of(record),),
        **changes,
    )


def deleted(record: Record, spawn: Sequence[Record] = ()) -> Settlement:
    return moved(record, delete=True, spawn=tuple(spawn))


def changed(id: str, body: bytes = b"", revoke: bool = False) -> Update:
    return Update(
        id=id, version=1, body=body, queue="default", priority=5, wake_at=NOW, hold=None, revoke=revoke
    )


async def claim(
    store: JobStore, token: str = "token", limit: int = 100, ahead_s: float = 0.0
) -> list[Record]:
    return (await store.claim(["default", "other"], token, limit, 30.0, ahead_s)).records


@pytest.fixture(params=["mariadb", "mysql"])
def kind(request: pytest.FixtureRequest, stores: Sequence[str]) -> str:
    kind: str = request.param
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    return kind


@pytest.fixture
def server_url(kind: str, servers: Servers) -> str:
    return servers.url(kind)


@pytest.fixture
def url(server_url: str) -> str:
    """A namespace of its own."""
    return namespaced(server_url)


@pytest.fixture
async def store(url: str) -> AsyncIterator[MySQLStore]:
    async with opened(MySQLStore.from_url(url)) as store:
        yield store


@contextlib.asynccontextmanager
async def opened(store: MySQLStore) -> AsyncIterator[MySQLStore]:
    await store.open(now=lambda: NOW)
    try:
        yield store
    finally:
        await store.close()


def login_of(url: str) -> dict[str, Any]:
    """How the user of *url* connects by himself."""
    options = MySQLStore.from_url(url)._options
    return {name: options[name] for name in ("host", "port", "user", "password", "db")}


@contextlib.asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Any]:
    """A connection of the user's."""
    connection = await aiomysql.connect(**{**login_of(url), "charset": "utf8mb4", **options})
    try:
        yield connection
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def pooled(url: str, **options: Any) -> AsyncIterator[Any]:
    """A pool of the user's."""
    pool = await aiomysql.create_pool(**{**login_of(url), "minsize": 0, **options})
    try:
        yield pool
    finally:
        pool.close()
        await pool.wait_closed()


async def ask(connection: Any, statement: str) -> Any:
    cursor = await connection.cursor()
    await cursor.execute(statement)
    return await cursor.fetchall()


async def drop(url: str, prefix: str) -> None:
    async with connected(url) as connection:
        for table in ("jobs", "runs", "claims", "leases", "fences", "spaces", "meta"):
            await ask(connection, f"DROP TABLE {prefix}{table}")


async def use_in_full(store: JobStore) -> None:
    """A bit of everything, with awkward ids; nothing may be in the store."""
    jobs = [job(id, hold="it's held" if id == "a" else None) for id in AWKWARD]
    assert await store.add(jobs) == set()
    assert await store.add([*jobs, job("more")]) == set()
    assert await store.add([Record("a", "another", "default", 5, "task", NOW, None, b"", b"")]) == {"a"}
    held = {r.id: r for r in await claim(store, "it's a \\token")}
    assert held.keys() == {*AWKWARD, "more"}
    assert {r.id: r for r in await claim(store, "it's a \\token")} == held
    renewal = await store.renew([Claim(r.id, r.fence, str(r.holder)) for r in held.values()], 60.0)
    assert set(renewal.versions.values()) == {1}
    answers = await store.settle([moved(r) if r.id != "more" else deleted(r) for r in held.values()])
    assert set(answers) == {"done"}
    there = await store.get(list(held))
    assert {id: (r.cursor, r.wake_at) for id, r in there.items()} == {
        id: (f"cursor of {id}".encode(), NOW + 60) for id in AWKWARD
    }
    assert {r.id for r in await store.page(Filter(), 100)} == set(AWKWARD)
    assert {e.job_id for e in await store.runs(limit=100)} == {*AWKWARD, "more"}
    updated = await store.update(
        Update(id="it's", version=1, body=b"new", queue="it's", priority=1, wake_at=NOW, hold=None)
    )
    assert updated is not None
    assert (updated.body, updated.queue) == (b"new", "it's")
    lease = (await store.acquire(["it's"], "it's me", 30.0))["it's"]
    assert await store.extend([lease], 60.0) == {"it's": lease._replace(until=NOW + 60)}
    assert await store.remove(AWKWARD) == set(AWKWARD)


def test_it_keeps_to_the_protocol() -> None:
    store: JobStore = MySQLStore(database="jobs")
    assert store.capabilities.transactional_add


# ---- URLs and settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "mysql://h/jobs",
            {"host": "h", "port": 3306, "user": None, "password": "", "db": "jobs", "ssl": None},
        ),
        ("mariadb://me:secret@h:3307/jobs", {"host": "h", "port": 3307, "user": "me", "password": "secret"}),
        (
            "mysql://a%40b:p%2F%3A%23@[::1]/my%20jobs",
            {"user": "a@b", "password": "p/:#", "host": "::1", "db": "my jobs"},
        ),
        ("mysql://me@/jobs?unix_socket=/run/my.sock", {"unix_socket": "/run/my.sock", "host": "127.0.0.1"}),
        ("mysql://h/jobs?timeout=2.5", {"connect_timeout": 2.5}),
    ],
)
def test_a_url_says_where_and_who(url: str, expected: dict[str, object]) -> None:
    store = store_from_url(url)
    assert isinstance(store, MySQLStore)
    assert {name: store._options[name] for name in expected} == expected


def test_tls_is_asked_for_in_a_url_or_with_a_context_of_ones_own() -> None:
    by_url = MySQLStore.from_url("mysql://h/jobs?ssl=true")._options["ssl"]
    assert isinstance(by_url, ssl.SSLContext)
    assert (by_url.verify_mode, by_url.check_hostname) == (ssl.CERT_REQUIRED, True)
    own = ssl.create_default_context()
    assert MySQLStore(database="jobs", ssl=own)._options["ssl"] is own


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://h", ["no database", "mysql://user:password@host/database"]),
        ("mysql://h/jobs#1", ["%23"]),
        ("mysql://h:many/jobs", ["port"]),
        ("postgres://h/jobs", ["no URL of MySQL"]),
        ("mysql://me:secret@h/jobs?charset=latin1", ["'charset'", "known: create_schema", "***"]),
        ("mysql://h/jobs?timeout=0", ["timeout", "0"]),
        ("mysql://h/jobs?timeout=soon", ["timeout", "'soon'", "a number"]),
        ("mysql://h/jobs?pool_size=0", ["pool_size", "0"]),
        ("mysql://h/jobs?table_prefix=a-b", ["table_prefix", "'a-b'"]),
        ("mysql://h/jobs?namespace=", ["namespace", "1 to 255"]),
        ("mysql://h/jobs?create_schema=maybe", ["create_schema", "true or false"]),
        ("mysql://h/jobs?ssl_ca=/none.pem", ["ssl_ca=/none.pem", "readable PEM files"]),
        ("mysql://h/jobs?ssl_key=/none.pem", ["ssl_key without ssl_cert"]),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_remedy(url: str, words: list[str]) -> None:
    with pytest.raises(DefinitionError) as refusal:
        MySQLStore.from_url(url)
    assert [word for word in words if word not in str(refusal.value)] == []
    assert "secret" not in str(refusal.value)


def test_something_else_than_a_pool_is_refused() -> None:
    with pytest.raises(DefinitionError, match="pool of aiomysql"):
        MySQLStore(pool="pool")  # type: ignore[arg-type]  # mypy is right: that is what is tested


def test_without_aiomysql_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiomysql", None)
    spec = importlib.util.spec_from_file_location("mysql_without_its_client", mysql.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtra, match=r'pip install "asyncsched\[mysql\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


async def test_a_store_that_is_not_open_says_so() -> None:
    with pytest.raises(StoreError, match="open"):
        await MySQLStore(database="jobs").get(["a"])


async def test_stores_of_different_prefix_share_a_database_unseen(url: str, store: MySQLStore) -> None:
    async with opened(MySQLStore.from_url(f"{url}&table_prefix=other_")) as other:
        await store.add([job("a")])
        assert await other.add([job("a"), job("b")]) == set()
        assert [r.id for r in await claim(other)] == ["a", "b"]
        assert [r.id for r in await claim(store)] == ["a"]
    await drop(url, "other_")


async def test_a_clone_that_is_closed_leaves_its_original_at_work(store: MySQLStore) -> None:
    clone = store.clone()
    assert clone is not None
    await clone.close()
    await clone.open(now=lambda: NOW)
    await clone.add([job("a")])
    await clone.close()
    assert [r.id for r in await claim(store)] == ["a"]


# ---- open, and what can be wrong -----------------------------------------------------------------------------------------


async def refusal_of(store: MySQLStore) -> StoreError:
    try:
        with pytest.raises(StoreError) as refusal:
            await store.open()
    finally:
        await store.close()
    return refusal.value


async def test_a_server_that_is_not_there_is_unavailable(url: str) -> None:
    async with proxied(url) as proxy:
        gone = proxy.of(url)
    refusal = await refusal_of(MySQLStore.from_url(gone))
    assert isinstance(refusal, StoreUnavailable)
    assert "cannot be reached" in str(refusal)


async def test_a_wrong_password_is_said_and_not_shown(url: str) -> None:
    wrong = url.replace("root@", "nobody:my-secret@")
    refusal = await refusal_of(MySQLStore.from_url(wrong))
    assert not isinstance(refusal, StoreUnavailable)
    # MySQL's way of asking for a password without TLS needs a package more.
    assert any(words in str(refusal) for words in ("refuses the login", "pip install cryptography"))
    assert "my-secret" not in str(refusal)


async def test_a_missing_database_is_named(url: str) -> None:
    refusal = await refusal_of(MySQLStore.from_url(url.replace("/test?", "/no_such_one?")))
    assert not isinstance(refusal, StoreUnavailable)
    assert "no such database" in str(refusal)
    assert "no_such_one" in str(refusal)


async def test_a_server_that_is_too_old_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_opening, "_NEEDED", {"mariadb": (99,), "mysql": (99,)})
    refusal = await refusal_of(MySQLStore.from_url(url))
    assert "MariaDB 10.6 or MySQL 8.0.17 or later" in str(refusal)


async def test_a_missing_schema_is_only_made_where_that_is_allowed(url: str) -> None:
    refusal = await refusal_of(MySQLStore.from_url(f"{url}&table_prefix=absent_&create_schema=false"))
    assert isinstance(refusal, SchemaError)
    assert "create_schema=True" in str(refusal)
    async with connected(url) as connection:
        assert await ask(connection, "SHOW TABLES LIKE 'absent%'") == ()


async def test_the_ddl_makes_all_that_is_needed(url: str) -> None:
    store = MySQLStore.from_url(f"{url}&table_prefix=byhand_&create_schema=false")
    async with connected(url, autocommit=True) as connection:
        for statement in store.ddl().split(";\n"):
            if statement:
                await ask(connection, statement)
    async with opened(store):
        await use_in_full(store)
    await drop(url, "byhand_")


async def test_a_newer_schema_is_refused(url: str) -> None:
    store = MySQLStore.from_url(f"{url}&table_prefix=newer_")
    async with opened(store):
        pass
    async with connected(url, autocommit=True) as connection:
        await ask(connection, "UPDATE newer_meta SET value = 99")
    refusal = await refusal_of(store)
    assert isinstance(refusal, SchemaError)
    assert "99" in str(refusal)
    assert "upgrade asyncsched" in str(refusal)
    await drop(url, "newer_")


async def test_many_make_the_schema_at_once(url: str) -> None:
    made = [MySQLStore.from_url(f"{url}&table_prefix=crowd_") for _ in range(6)]
    await asyncio.gather(*(store.open() for store in made))
    assert await made[0].add([job("a")]) == set()
    assert (await made[5].get(["a"])).keys() == {"a"}
    for store in made:
        await store.close()
    await drop(url, "crowd_")


async def test_a_schema_that_was_half_made_is_completed(url: str) -> None:
    store = MySQLStore.from_url(f"{url}&table_prefix=half_")
    async with connected(url) as connection:
        for statement in store.ddl().split(";\n")[:3]:
            await ask(connection, statement)
    async with opened(store):
        await use_in_full(store)
    await drop(url, "half_")


@contextlib.asynccontextmanager
async def as_user(url: str, *grants: str) -> AsyncIterator[str]:
    """*url* for a user who may do no more than that."""
    async with connected(url, autocommit=True) as connection:
        for host in ("%", "localhost"):
            await ask(connection, f"CREATE USER 'limited'@'{host}'")
            for grant in grants:
                await ask(connection, f"GRANT {grant} TO 'limited'@'{host}'")
        try:
            yield url.replace("root@", "limited@")
        finally:
            for host in ("%", "localhost"):
                await ask(connection, f"DROP USER 'limited'@'{host}'")


async def test_a_missing_privilege_is_named(url: str) -> None:
    async with as_user(url, "SELECT ON test.*") as limited:
        refusal = await refusal_of(MySQLStore.from_url(f"{limited}&table_prefix=priv_"))
    assert not isinstance(refusal, StoreUnavailable)
    assert "CREATE command denied" in str(refusal)
    assert "grant it" in str(refusal)


async def test_the_rights_to_read_and_write_rows_are_enough_once_the_schema_is_there(
    url: str, store: MySQLStore
) -> None:
    async with (
        as_user(url, "SELECT, INSERT, UPDATE, DELETE ON test.*") as limited,
        opened(MySQLStore.from_url(f"{limited}x&create_schema=false")) as other,
    ):
        await use_in_full(other)


async def test_a_user_whose_rights_were_taken_condemns_no_job(url: str) -> None:
    """A refusal for good would quarantine the jobs whose ends are to be written; this one is the server's to mend."""
    async with (
        connected(url, autocommit=True) as root,
        as_user(url, "ALL ON test.*") as limited,
        opened(MySQLStore.from_url(limited)) as store,
    ):
        await store.add([job("a")])
        [held] = await claim(store)
        for take, give, words in (
            ("REVOKE INSERT ON test.* FROM {}", "GRANT INSERT ON test.* TO {}", "grant it"),
            (
                "ALTER USER {} IDENTIFIED BY 'Another1!'",
                "ALTER USER {} IDENTIFIED BY ''",
                "refuses the login",
            ),
        ):
            await _change_user(root, store, take)
            with pytest.raises(StoreUnavailable, match=words):
                await store.settle([moved(held)])
            await _change_user(root, store, give)
        assert await store.settle([moved(held)]) == ["done"]


async def _change_user(root: Any, store: MySQLStore, statement: str) -> None:
    for host in ("%", "localhost"):
        await ask(root, statement.format(f"'limited'@'{host}'"))
    # Connections that are there already may keep the rights that they had.
    _line._evict(store._line._pool)  # type: ignore[attr-defined]  # likewise open


@pytest.mark.parametrize(
    ("code", "said"),
    [(1317, "Query execution was interrupted"), (1105, "An error occurred in multi-table update")],
)
def test_a_statement_that_is_killed_condemns_no_job(code: int, said: str) -> None:
    error = _line.translated(OperationalError(code, said), "there", 1.0, is_ready=True)
    assert isinstance(error, StoreUnavailable)
    assert said in str(error)


@pytest.mark.parametrize(
    "cause", [ssl.SSLCertVerificationError("certificate has expired"), ssl.SSLError("handshake failure")]
)
def test_tls_that_fails_under_way_condemns_no_job(cause: Exception) -> None:
    error = OperationalError(2003, "Can't connect")
    error.__cause__ = cause
    at_start, later = (_line.translated(error, "there", 1.0, is_ready) for is_ready in (False, True))
    assert not isinstance(at_start, StoreUnavailable)
    assert isinstance(later, StoreUnavailable)
    assert str(at_start) == str(later)


async def test_a_schema_that_was_dropped_under_it_is_missed(url: str) -> None:
    async with opened(MySQLStore.from_url(f"{url}&table_prefix=dropped_")) as store:
        await drop(url, "dropped_")
        with pytest.raises(SchemaError, match="open the store again"):
            await store.add([job("a")])


# ---- a pool of the user's ------------------------------------------------------------------------------------------------

MODES = (
    "",
    "ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,IGNORE_SPACE,HIGH_NOT_PRECEDENCE,REAL_AS_FLOAT,PAD_CHAR_TO_FULL_LENGTH",
    "TRADITIONAL,NO_UNSIGNED_SUBTRACTION,ALLOW_INVALID_DATES",
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("flags", [0, aiomysql.connection.CLIENT.FOUND_ROWS])
async def test_a_pool_of_the_users_does_it_whatever_its_settings(
    url: str, mode: str, autocommit: bool, flags: int
) -> None:
    set_mode = f"SET SESSION sql_mode = '{mode}', SESSION time_zone = '-07:30'"
    async with pooled(url, autocommit=autocommit, client_flag=flags, init_command=set_mode) as pool:
        async with opened(MySQLStore(pool=pool, namespace=url[-12:])) as store:
            assert store.clone() is None
            await use_in_full(store)
        async with pool.acquire() as connection:
            assert await ask(connection, "SELECT 1") == ((1,),)
            assert (await ask(connection, "SELECT @@sql_mode, @@time_zone"))[0][1] == "-07:30"
        assert len(pool._free) == pool.size


async def test_a_pool_whose_server_cuts_aggregates_short_does_it(url: str) -> None:
    async with (
        pooled(url, init_command="SET SESSION group_concat_max_len = 8") as pool,
        opened(MySQLStore(pool=pool, namespace=url[-12:])) as store,
    ):
        await use_in_full(store)


async def test_who_waits_for_a_connection_gets_one_where_another_was_closed(url: str) -> None:
    async with pooled(url, maxsize=1) as pool, opened(MySQLStore(pool=pool)) as store:
        call = asyncio.ensure_future(store._read("SELECT SLEEP(30)"))
        await eventually(lambda: _is_lent(pool))
        waiting = asyncio.ensure_future(_answer_by(pool))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(9.0):
            assert await waiting == ((1,),)


async def test_a_call_that_is_cancelled_at_its_end_keeps_no_other_waiting(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pooled(url, maxsize=1) as pool, opened(MySQLStore(pool=pool)) as store:
        call = asyncio.ensure_future(store.get(["a"]))
        release = pool.release

        def released(connection: Any) -> Any:
            call.cancel()
            return release(connection)

        monkeypatch.setattr(pool, "release", released)
        waiting = asyncio.ensure_future(_answer_by(pool))
        async with asyncio.timeout(9.0):
            assert await waiting == ((1,),)
        await asyncio.gather(call, return_exceptions=True)


async def _is_lent(pool: Any) -> bool:
    return bool(pool._used)


async def _answer_by(pool: Any) -> Any:
    async with pool.acquire() as connection:
        return await ask(connection, "SELECT 1")


async def test_a_pool_of_another_charset_is_refused_with_the_remedy(url: str) -> None:
    async with pooled(url, charset="latin1") as pool:
        refusal = await refusal_of(MySQLStore(pool=pool))
    assert "charset='utf8mb4'" in str(refusal)


async def test_a_pool_that_writes_in_another_charset_is_refused_with_the_remedy(url: str) -> None:
    async with pooled(
        url, charset="utf8mb4", init_command="SET SESSION character_set_connection = latin1"
    ) as pool:
        refusal = await refusal_of(MySQLStore(pool=pool))
    assert "latin1" in str(refusal)
    assert "charset='utf8mb4'" in str(refusal)


async def test_a_pool_without_a_database_is_refused_with_the_remedy(url: str) -> None:
    async with pooled(url, db=None) as pool:
        refusal = await refusal_of(MySQLStore(pool=pool))
    assert "db=" in str(refusal)


async def test_a_pool_that_takes_an_empty_text_for_none_is_refused(kind: str, url: str) -> None:
    if kind == "mysql":
        pytest.skip("MySQL has no such mode")
    async with pooled(url, init_command="SET SESSION sql_mode = 'EMPTY_STRING_IS_NULL'") as pool:
        refusal = await refusal_of(MySQLStore(pool=pool))
    assert "EMPTY_STRING_IS_NULL" in str(refusal)


# ---- time, fences and large values ---------------------------------------------------------------------------------------


async def test_the_clock_is_the_servers_whatever_its_time_zone(url: str) -> None:
    async with pooled(url, init_command="SET SESSION time_zone = '+09:00'") as pool:
        store = MySQLStore(pool=pool)
        await store.open()
        now = await store.now()
        async with pool.acquire() as connection:
            [(said,)] = await ask(connection, "SELECT UNIX_TIMESTAMP()")
        await store.close()
    assert 0 <= said - now + 1 < 3


async def test_fences_rise_though_nothing_is_left_of_what_had_them(store: MySQLStore) -> None:
    fences = []
    for _ in range(3):
        await store.add([job("a")])
        fences += [r.fence for r in await claim(store)]
        await store.remove(["a"])
        lease = (await store.acquire(["k"], "me", 30.0))["k"]
        fences.append(lease.fence)
        await store.release([lease])
    assert fences == sorted(set(fences))
    [answer] = await store._read("SELECT COUNT(*) FROM asyncsched_fences")
    assert answer.rows == ((0,),)


async def test_a_claim_that_is_undone_gives_its_fence_to_nobody(url: str, store: MySQLStore) -> None:
    await store.add([job("a"), job("b")])
    async with connected(url) as connection:
        async with store.within(connection) as joined:
            [undone, _] = await claim(joined)
        await connection.rollback()
    [a, _] = await claim(store)
    assert a.fence > undone.fence


async def test_what_is_larger_than_a_packet_is_refused_with_the_sizes(store: MySQLStore) -> None:
    await store.add([job("a")])
    [a] = await claim(store)
    limit = store._line.max_packet
    entry = run_of(a, b"x" * (limit // 2))
    with pytest.raises(StoreError, match=rf"{limit:,}.*max_allowed_packet") as refusal:
        await store.settle([Settlement(id="a", fence=a.fence, holder="token", version=1, entries=(entry,))])
    assert not isinstance(refusal.value, StoreUnavailable)
    assert await store.settle([deleted(a)]) == ["done"]


async def test_a_batch_that_is_larger_than_a_packet_is_cut(store: MySQLStore) -> None:
    size = store._line.max_packet // 5
    large = [job(f"{i}", body=b"x" * size) for i in range(5)]
    assert await store.add(large) == set()
    held = await claim(store)
    assert [len(r.body) for r in held] == [size] * 5
    answers = await store.settle(
        [
            Settlement(
                id=r.id, fence=r.fence, holder="token", version=1, cursor=b"y" * size, entries=(run_of(r),)
            )
            for r in held
        ]
    )
    assert answers == ["done"] * 5
    assert len(await store.runs(limit=10)) == 5
    await store.remove([r.id for r in large])


async def test_a_child_of_the_longest_id_has_room(store: MySQLStore) -> None:
    parent = job("\U0001f680" * 255, queue="\U0001f680" * 255, hold="\U0001f680" * 300)
    await store.add([parent])
    [held] = (await store.claim([parent.queue], "t" * 300, 10, 30.0)).records
    child = job(f"{parent.id}#99", queue=parent.queue)
    assert await store.settle([moved(held, hold=parent.hold, spawn=(child,))]) == ["done"]
    assert await store.get([child.id]) == {child.id: child}


# ---- round trips and costs -----------------------------------------------------------------------------------------------


async def test_calls_take_few_round_trips(url: str) -> None:
    async with proxied(url) as proxy, opened(MySQLStore.from_url(proxy.of(url))) as store:
        trips: dict[str, int] = {}

        async def count(name: str, call: Any) -> Any:
            before = proxy.requests
            answer = await call
            trips[name] = proxy.requests - before
            return answer

        await count("add", store.add([job(f"{i:03}") for i in range(100)]))
        held = await count("claim", claim(store))
        await count("renew", store.renew([Claim(r.id, r.fence, "token") for r in held], 60.0))
        batch = [moved(r) if i % 2 else deleted(r, [job(f"{r.id}+", None)]) for i, r in enumerate(held)]
        assert set(await count("settle", store.settle(batch))) == {"done"}
        await count("claim nothing", claim(store, "other"))
        await count("update", store.update(changed("001", b"")))
        await count("acquire", store.acquire(["a", "b"], "me", 30.0))
        await count("remove", store.remove(["001"]))
        assert trips == {
            "add": 1, "claim": 2, "renew": 1, "settle": 1, "claim nothing": 1, "update": 1, "acquire": 1, "remove": 1
        }  # fmt: skip


async def fill(store: MySQLStore, count: int) -> None:
    """*count* jobs, due over the last hour, in two queues, as many of no time at all; and as many log entries of other jobs."""
    digits = (
        "(SELECT 0 AS d UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5"
        " UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9)"
    )
    numbers = " CROSS JOIN ".join(f"{digits} AS d{i}" for i in range(6))
    n = " + ".join(f"d{i}.d * {10**i}" for i in range(6))
    source = f"(SELECT {n} AS n FROM {numbers} HAVING n < {count} ORDER BY n) AS s"
    space = store._sql._space
    await store._write(
        f"INSERT INTO asyncsched_jobs SELECT {space}, CONCAT('j', LPAD(n, 7, '0')), IF(n % 3, 'default', 'other'), 5, "
        f"IF(n % 4, {NOW!r}e0 - 3600 * n / {count}, 9e15), IF(n % 4, NULL, 9e15), IF(n % 4, NULL, 'paused'), NULL, 0, 1, 0, 0, "
        f"NULL, 'birth', 'task', 'cursor', 'body' FROM {source}",
        f"INSERT INTO asyncsched_runs SELECT {space}, CONCAT('l', LPAD(n, 7, '0')), 1, 'run', {NOW!r}e0, "
        f"{NOW!r}e0 - n / {count}, '' FROM {source}",
    )


async def rows_read(store: MySQLStore, call: Any) -> int:
    """How many rows the server looked at for *call*; the store has one connection."""
    await store._read("FLUSH STATUS")
    await call
    [answer] = await store._read("SHOW SESSION STATUS LIKE 'Handler_read%'")
    # What is read of the server's temporary tables is as much as there are items in the call.
    return sum(int(value) for name, value in answer.rows if name != "Handler_read_rnd_deleted")


async def costs_of_calls(store: MySQLStore) -> dict[str, int]:
    held = await claim(store, "one", 50)
    claims = [Claim(r.id, r.fence, "one") for r in held]
    half = len(held) // 2
    calls = {
        "claim": lambda: claim(store, "two", 50),
        "claim ahead": lambda: claim(store, "three", 50, 10.0),
        "claim again": lambda: claim(store, "one", 50),
        "claim nothing": lambda: store.claim(["none"], "four", 50, 30.0),
        "renew": lambda: store.renew(claims, 60.0),
        "settle": lambda: store.settle(
            [*map(deleted, held[:half]), *(moved(r, unpark=("k", 3)) for r in held[half:])]
        ),
        "settle again": lambda: store.settle([*map(deleted, held[:half])]),
        "page": lambda: store.page(Filter(), 50),
        "page on": lambda: store.page(Filter(), 50, job("x", NOW - 60)),
        "page of a queue": lambda: store.page(Filter(queue="other"), 50, job("x", None)),
        "page parked": lambda: store.page(Filter(hold="paused"), 50),
        "page by prefix": lambda: store.page(Filter(id_prefix="j000001"), 50),
        "runs": lambda: store.runs(limit=50),
        "runs on": lambda: store.runs(limit=50, before=Entry("x", 1, "run", NOW, NOW - 0.5, b"")),
        "runs of one job": lambda: store.runs("l0000005", limit=50),
        "prune by age": lambda: store.prune(0.5, None, 50),
        "get": lambda: store.get([r.id for r in held]),
        "remove": lambda: store.remove([r.id for r in held]),
    }
    return {name: await rows_read(store, call()) for name, call in calls.items()}


async def test_no_call_costs_more_when_more_is_stored(server_url: str) -> None:
    costs: list[dict[str, int]] = []
    for count in (1_000, 200_000):
        async with opened(MySQLStore.from_url(f"{namespaced(server_url)}&pool_size=1&timeout=120")) as store:
            await fill(store, count)
            costs.append(await costs_of_calls(store))
            if count == 200_000:
                await assert_plans(store)
            await store._write(
                f"DELETE FROM asyncsched_jobs WHERE space = {store._sql._space}",
                f"DELETE FROM asyncsched_runs WHERE space = {store._sql._space}",
            )
    few, many = costs
    assert {name: (few[name], cost) for name, cost in many.items() if cost > 1.5 * few[name] + 50} == {}


async def assert_plans(store: MySQLStore) -> None:
    """The hot statements read their index in its order, and nothing else of the table."""
    sql = store._sql
    take = sql.take(Lane("default", 5, NOW - 3600), 100, NOW, NOW + 5, "token", 0, "0e0", 30.0)[0]
    locking = take[take.index("FROM (") + 6 : take.rindex(")")]
    for statement, key in ((locking, "lane"), (sql.runs(None, None, 100, None), "by_time")):
        [answer] = await store._read(f"EXPLAIN FORMAT=JSON {statement}")
        plan = str(answer.rows[0][0])
        assert key in plan
        assert "filesort" not in plan.lower() or '"using_filesort": false' in plan
    # The earliest of each lane is one probe: there is no table left in the plan, or one row of it.
    reads = await rows_read(store, store._read(sql.look(["default"], "0e0")))
    assert reads < 40


# ---- repeated claims -----------------------------------------------------------------------------------------------------


async def test_a_claim_that_comes_through_behind_its_repetition_takes_nothing(store: MySQLStore) -> None:
    """Its reply was given up, and the server did it late."""
    late = store._sql.take(Lane("default", 5, NOW), 100, NOW, NOW, "token", 0, f"{NOW!r}e0", 30.0)
    await store.add([job("a")])
    [a] = await claim(store)
    await store.add([job("b")])
    with pytest.raises(NotApplied):
        await store._write(*late)
    assert await store.get(["a", "b"]) == {"a": a, "b": job("b")}
    assert [r.id for r in await claim(store)] == ["a", "b"]


async def test_a_claim_that_its_first_sending_overtakes_gets_what_that_took(store: MySQLStore) -> None:
    first = store._sql.take(Lane("default", 5, NOW), 100, NOW, NOW, "token", 0, f"{NOW!r}e0", 30.0)
    await store.add([job("a"), job("b")])
    answers = await asyncio.gather(store._write(*first), *(claim(store) for _ in range(5)))
    assert [[r.id for r in answer] for answer in answers[1:]] == [["a", "b"]] * 5
    assert {r.tries for r in (await store.get(["a", "b"])).values()} == {1}


async def test_a_record_that_is_let_go_between_two_lanes_of_a_claim_is_named_once(
    store: MySQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add([job("a", queue="first"), job("b", queue="second")])
    write = store._write

    async def moving(*statements: str, after: Sequence[str] = ()) -> Sequence[Answer]:
        answers = await write(*statements, after=after)
        monkeypatch.undo()
        await store.update(
            Update(
                id="a", version=1, body=b"", queue="second", priority=5, wake_at=NOW, hold=None, revoke=True
            )
        )
        return answers

    monkeypatch.setattr(store, "_write", moving)
    taken = (await store.claim(["first", "second"], "token", 10, 30.0)).records
    assert sorted(r.id for r in taken) == ["a", "b"]
    assert {r.id: r for r in taken} == await store.get(["a", "b"])


async def test_claims_are_forgotten_long_after_their_leases(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store, "_FORGET_EVERY", 1)
    store, now = MySQLStore.from_url(url), NOW
    await store.open(now=lambda: now)
    for i in range(30):
        await store.add([job(f"{i}")])
        assert [r.id for r in await claim(store, f"token {i}")] == [f"{i}"]
        assert [r.id for r in await claim(store, f"token {i}")] == [f"{i}"]
        await store.remove([f"{i}"])
        now += 100
    [answer] = await store._read(f"SELECT COUNT(*) FROM asyncsched_claims WHERE space = {store._sql._space}")
    await store.close()
    assert answer.rows[0][0] <= 8


# ---- batches of settlements ----------------------------------------------------------------------------------------------


async def test_answers_are_exact_when_one_claim_is_settled_twice_in_a_batch(store: MySQLStore) -> None:
    await store.add([job("a"), job("b")])
    [a, b] = await claim(store)
    batch = [deleted(a), moved(b), deleted(a), moved(b)]
    assert await store.settle(batch) == ["done", "done", "gone", "already"]
    assert [r.id for r in await store.page(Filter(), 10)] == ["b"]


async def test_what_one_settlement_spawns_another_of_the_batch_may_settle(store: MySQLStore) -> None:
    await store.add([job("a"), job("b")])
    [a, b] = await claim(store)
    answers = await store.settle([deleted(a, [job("b", NOW + 1)]), deleted(b, [job("a", NOW + 2)])])
    assert answers == ["done", "done"]
    # In turn: b was still there when a wanted to spawn it, and a was gone when b did.
    assert [r.id for r in await store.page(Filter(), 10)] == ["a"]


async def test_a_job_may_spawn_its_own_successor(store: MySQLStore) -> None:
    await store.add([job("a")])
    [a] = await claim(store)
    assert await store.settle([deleted(a, [job("a", NOW + 5)])]) == ["done"]
    assert await store.get(["a"]) == {"a": job("a", NOW + 5)}


async def test_one_refused_settlement_does_not_undo_the_others(store: MySQLStore) -> None:
    await store.add([job(f"{i:03}") for i in range(200)])
    held = await claim(store, limit=200)
    await store.remove(["007"])
    await store.update(changed("011", b"", revoke=True))
    answers = await store.settle([moved(r) for r in held])
    assert [(i, a) for i, a in enumerate(answers) if a != "done"] == [(7, "gone"), (11, "lost")]
    assert len(await store.runs(limit=1000)) == 199


async def test_an_id_prefix_may_end_in_any_character(store: MySQLStore) -> None:
    ids = ["a", "a#0", "aé", "a\ud7ff", "a\ue000", "a\U0010ffff", "a\U0010ffff1", "b"]
    await store.add([job(id) for id in ids])
    for prefix in ("a", "a\ud7ff", "a\U0010ffff", "\U0010ffff", "a#"):
        found = [r.id for r in await store.page(Filter(id_prefix=prefix), 10)]
        assert found == [id for id in ids if id.startswith(prefix)], prefix


async def test_crowded_jobs_are_found_by_stretches(
    store: MySQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store, "_SWEEP", 10)
    log = [Entry(f"j{i:02}", fence, "run", NOW, NOW + fence, b"") for i in range(12) for fence in range(1, 5)]
    await store.add([job("a")])
    [held] = await claim(store)
    await store.settle([Settlement(id="a", fence=held.fence, holder="token", version=1, entries=tuple(log))])
    pruned = [await store.prune(None, 3, 100) for _ in range(8)]
    assert sum(pruned) == 12
    assert max(pruned) < 12
    assert {e.fence for e in await store.runs(limit=1000)} == {2, 3, 4}


async def test_a_namespace_is_erased_in_pieces(store: MySQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "_ERASED", 2)
    await store.add([job(id) for id in "abcde"])
    await store._write(store._sql.log([Entry("a", i, "run", NOW, NOW, b"") for i in range(4)]))
    sent = 0
    write = store._write

    async def counted(*statements: str) -> Any:
        nonlocal sent
        sent += 1
        return await write(*statements)

    monkeypatch.setattr(store, "_write", counted)
    await store.erase()
    assert sent == 3 + 3 + 1 + 1 + 1
    assert (await store.page(Filter(), 10), await store.runs()) == ([], [])


async def test_two_that_prune_at_once_leave_what_is_to_be_kept(
    store: MySQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store._write(store._sql.log([Entry("a", i, "run", NOW, NOW + i, b"") for i in range(15)]))
    read, counted = store._read, asyncio.Barrier(2)

    async def read_together(*statements: str) -> Any:
        answers = await read(*statements)
        if "HAVING COUNT" in statements[0]:
            await counted.wait()
        return answers

    monkeypatch.setattr(store, "_read", read_together)
    assert sum(await asyncio.gather(*(store.prune(None, 10, 100) for _ in range(2)))) == 5
    assert [e.fence for e in await store.runs("a")] == list(range(14, 4, -1))


async def test_all_of_a_job_s_log_may_be_too_much(store: MySQLStore) -> None:
    await store._write(store._sql.log([Entry("a", i, "run", NOW, NOW, b"") for i in range(5)]))
    assert await store.prune(None, 0, 3) == 3
    assert [e.fence for e in await store.runs("a")] == [4, 3]


async def test_jobs_of_many_queues_are_paged_and_claimed_in_time(store: MySQLStore) -> None:
    """One statement that probes them all takes a server a quarter of a minute to plan."""
    queues = [f"q{i:03}" for i in range(500)]
    await store.add([job(queue, NOW + i, queue) for i, queue in enumerate(queues)])
    async with asyncio.timeout(9.0):
        assert [r.id for r in await store.page(Filter(), 3)] == queues[:3]
        claimed = await store.claim(queues[:50], "token", 100, 30.0, 1.0)
    assert [r.id for r in claimed.records] == queues[:2]
    assert claimed.next_wake_at == NOW + 2


async def test_an_id_that_stands_twice_in_a_batch_is_a_conflict(store: MySQLStore) -> None:
    other = Record("a", "another", "default", 5, "task", NOW, None, b"", b"")
    assert await store.add([job("a"), job("a"), other]) == {"a"}
    assert (await store.get(["a"]))["a"].birth == "birth of a"


# ---- locks of others -----------------------------------------------------------------------------------------------------


async def test_a_row_that_stays_locked_makes_the_call_unavailable_and_harms_nothing(url: str) -> None:
    async with opened(MySQLStore.from_url(f"{url}&timeout=2")) as store, connected(url) as other:
        await store.add([job("a")])
        await ask(other, f"SELECT * FROM asyncsched_jobs WHERE space = {store._sql._space} FOR UPDATE")
        with pytest.raises(StoreUnavailable):
            await store.update(changed("a", b"new"))
        await other.rollback()
        # Its outcome was unknown: the server may still have been waiting when the call was given up.
        await store.update(changed("a", b"new"))
        assert (await store.get(["a"]))["a"].body == b"new"


async def test_a_call_that_loses_a_deadlock_is_done_again(store: MySQLStore, url: str) -> None:
    await store.add([job("a"), job("b")])
    async with connected(url) as other:
        write = f"UPDATE asyncsched_jobs SET body = 'theirs' WHERE space = {store._sql._space} AND id = "
        await ask(other, f"{write} 'b'")
        # It has locked a, and waits for b.
        removal = asyncio.ensure_future(store.remove(["a", "b"]))
        await eventually(lambda: _waits_for_a_lock(store))
        await ask(other, f"{write} 'a'")
        await other.commit()
        assert await removal == {"a", "b"}


async def _waits_for_a_lock(store: MySQLStore) -> bool:
    # The server makes this table anew only if nobody has read it for a tenth of a second.
    await asyncio.sleep(0.15)
    [answer] = await store._read(
        "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    )
    return bool(answer.rows[0][0])


async def test_a_locked_row_is_passed_over_by_a_claim_and_busy_for_a_renewal(
    store: MySQLStore, url: str
) -> None:
    await store.add([job("a"), job("b")])
    [a, _] = await claim(store, "one")
    await store.add([job("c"), job("d")])
    async with connected(url) as other:
        rows = (
            f"SELECT * FROM asyncsched_jobs WHERE space = {store._sql._space} AND id IN ('a', 'c') FOR UPDATE"
        )
        await ask(other, rows)
        assert [r.id for r in await claim(store, "two")] == ["d"]
        renewal = await store.renew([Claim("a", a.fence, "one"), Claim("a2", 1, "one")], 60.0)
        assert renewal.versions == {"a": "busy", "a2": "lost"}
        await other.rollback()
    assert (await store.renew([Claim("a", a.fence, "one")], 60.0)).versions == {"a": 1}
    assert [r.id for r in await claim(store, "two")] == ["d", "c"]
