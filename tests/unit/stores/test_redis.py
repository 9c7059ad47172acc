"""What is particular to the store on Redis; what every store promises is in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio

from asyncsched.contract import Claim, Entry, Filter, JobStore, Record, Settlement, Update
from asyncsched.errors import DefinitionError, MissingExtra, SchemaError, StoreError, StoreUnavailable
from asyncsched.stores import redis as redis_room
from asyncsched.stores import store_from_url
from asyncsched.stores.redis import RedisStore
from tests.servers.redis import RedisServer
from tests.servers.running import Servers
from tests.servers.server import free_port
from tests.support.proxy import proxied
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0
ROOT = Path(redis_room.__file__).parents[3]
#: Commands whose cost grows with what is stored.
SCANS = {"scan", "keys", "hgetall", "hkeys", "hvals", "hscan", "zscan", "sscan", "smembers", "zrange", "sort"}


def job(id: str, wake_at: float | None = NOW, queue: str = "default", hold: str | None = None) -> Record:
    return Record(id, "birth", queue, 5, "task", wake_at, hold, b"body", b"cursor")


def ended(record: Record, wake_at: float | None = None) -> Settlement:
    """The claim of *record* ends with one log entry; the job goes, or moves to *wake_at*."""
    return Settlement(
        id=record.id,
        fence=record.fence,
        holder=str(record.holder),
        version=record.version,
        wake_at=wake_at,
        delete=wake_at is None,
        entries=(Entry(record.id, record.fence, "run", NOW, NOW, b""),),
    )


async def claim(store: JobStore, token: str = "token", limit: int = 100) -> list[Record]:
    return (await store.claim(["default"], token, limit, 30.0)).records


@pytest.fixture(scope="module")
def url(stores: Sequence[str], servers: Servers) -> str:
    if "redis" not in stores:
        pytest.skip("redis was left out by --stores")
    return servers.url("redis")


@pytest.fixture
def namespace() -> str:
    return f"unit-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def own(stores: Sequence[str]) -> Iterator[Callable[..., RedisServer]]:
    """Makes servers that the test may do anything to."""
    if "redis" not in stores:
        pytest.skip("redis was left out by --stores")
    made: list[RedisServer] = []

    def start(*arguments: str, **options: Any) -> RedisServer:
        server = RedisServer(None, *arguments, **options)
        made.append(server)
        server.start()
        return server

    yield start
    for server in made:
        server.remove()


@contextlib.asynccontextmanager
async def opened(
    store: RedisStore, now: Callable[[], float] | None = lambda: NOW
) -> AsyncIterator[RedisStore]:
    await store.open(now=now)
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def counted(url: str) -> AsyncIterator[dict[str, int]]:
    """How often the server executed which command within the block, those inside of scripts included."""
    calls: dict[str, int] = {}
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.config_resetstat()
        yield calls
        found = await client.info("commandstats")
        calls.update({name.removeprefix("cmdstat_"): facts["calls"] for name, facts in found.items()})


def test_it_keeps_to_the_protocol() -> None:
    store: JobStore = RedisStore("redis://localhost")
    assert store.capabilities.push_hints
    assert store.capabilities.clock == "server"


# ---- URLs and settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:secret@localhost:6380/3?namespace=mine&timeout=2.5",
        "rediss://localhost:6380/0?ssl_cert_reqs=none",
        "redis://localhost:7000?cluster=true&spread=true",
        "redis+cluster://localhost:7000,localhost:7001",
        "rediss+cluster://user:secret@a.example:7000,b.example:7000?max_connections=4",
    ],
)
def test_urls_name_a_store(url: str) -> None:
    assert isinstance(store_from_url(url), RedisStore)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost", ["no Redis URL", "redis://localhost:6379/0", "redis+cluster://"]),
        ("redis://a.example,b.example", ["several servers", "redis+cluster://"]),
        ("redis+cluster://localhost:7000/1", ["database 0"]),
        ("redis://localhost/jobs", ["a number, not 'jobs'", "?namespace="]),
        ("redis://localhost?namespace={a}", ["namespace", "{a}"]),
        ("redis://localhost?namespace=", ["namespace"]),
        ("redis://localhost?timeout=0", ["timeout", "0.0", "above 0"]),
        ("redis://localhost?timeout=soon", ["timeout", "'soon'", "number"]),
        ("redis://localhost?spread=maybe", ["spread", "'maybe'", "true or false"]),
        ("redis://localhost?max_connections=1", ["max_connections", "2 at the least"]),
        ("redis://localhost?timeout=1&timeout=2", ["timeout stands twice"]),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_remedy(url: str, words: list[str]) -> None:
    with pytest.raises(DefinitionError) as refusal:
        RedisStore.from_url(url)
    assert [word for word in words if word not in str(refusal.value)] == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:secret@h:abc",
        "redis://h:99999",
        "redis://h?socket_timeout=x",
        "redis+cluster://h:7000,h:abc",
    ],
)
async def test_what_the_driver_cannot_read_in_a_url_is_a_refusal_of_ours(url: str) -> None:
    store = RedisStore.from_url(url)
    with pytest.raises(DefinitionError, match="cannot be read") as refusal:
        await store.open()
    assert "secret" not in str(refusal.value)
    await store.close()


def test_a_refusal_does_not_tell_the_password() -> None:
    with pytest.raises(DefinitionError) as refusal:
        RedisStore.from_url("redis://user:secret@a.example,b.example")
    assert "secret" not in str(refusal.value)


def test_a_store_is_made_of_a_url_or_of_a_client() -> None:
    with pytest.raises(DefinitionError, match="takes a URL"):
        RedisStore()
    with pytest.raises(
        DefinitionError, match=r"takes a Redis or RedisCluster of redis\.asyncio; this is redis\."
    ):
        RedisStore(client=redis.Redis())  # type: ignore[arg-type]  # mypy is right: it is refused
    with pytest.raises(DefinitionError, match="give ssl_ca_certs to it"):
        RedisStore(client=redis.asyncio.Redis(), ssl_ca_certs="ca.pem")


def test_without_its_client_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    spec = importlib.util.spec_from_file_location("asyncsched.stores.redis", redis_room.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtra, match=r'pip install "asyncsched\[redis\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


async def test_options_of_the_client_are_passed_on() -> None:
    store = RedisStore.from_url("rediss://localhost:1?ssl_cert_reqs=none&client_name=jobs&max_connections=7")
    store._server.connect()
    assert isinstance(store._server.client, redis.asyncio.Redis)
    pool = store._server.client.connection_pool
    kept = {name: pool.connection_kwargs[name] for name in ("ssl_cert_reqs", "client_name")}
    assert (kept, pool.max_connections) == ({"ssl_cert_reqs": "none", "client_name": "jobs"}, 7)
    assert pool.connection_class is redis.asyncio.SSLConnection
    await store.close()


async def test_an_option_that_the_client_does_not_know_is_named(url: str) -> None:
    with pytest.raises(StoreError, match="nonsense"):
        await RedisStore(url, nonsense=1).open()


async def test_jobs_are_kept_by_way_of_tls(own: Callable[..., RedisServer], tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    certificate, key, port = tmp_path / "cert.pem", tmp_path / "key.pem", str(free_port())
    command = [
        openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate),
    ]  # fmt: skip
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o755)
    key.chmod(0o644)
    own(
        "--tls-port", port, "--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-auth-clients", "no"
    )  # fmt: skip
    async with opened(RedisStore(f"rediss://localhost:{port}/0", ssl_ca_certs=str(certificate))) as store:
        assert await store.add([job("a")]) == set()
        assert [r.id for r in await claim(store)] == ["a"]
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        await RedisStore(f"rediss://localhost:{port}/0").open()


# ---- what open() says ------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_named() -> None:
    port = free_port()
    with pytest.raises(StoreUnavailable, match=rf"redis://127.0.0.1:{port}/0 cannot be reached"):
        await RedisStore(f"redis://127.0.0.1:{port}/0").open()


async def test_a_wrong_password_is_told_and_not_shown(own: Callable[..., RedisServer]) -> None:
    server = own(password="right")
    async with opened(RedisStore(server.url)) as store:
        assert await store.add([job("a")]) == set()
    for login in ("", ":wrongly@", "nobody:wrongly@"):
        with pytest.raises(StoreError, match="refuses this user or password") as refusal:
            await RedisStore(f"redis://{login}127.0.0.1:{server.port}/0").open()
        assert not isinstance(refusal.value, StoreUnavailable)
        assert "wrongly" not in str(refusal.value)


async def test_a_user_without_the_privilege_is_told_what_is_missing(own: Callable[..., RedisServer]) -> None:
    server = own()
    server.ask("ACL", "SETUSER", "reader", "on", ">pass", "~*", "&*", "+@read", "+@connection", "+info")
    with pytest.raises(StoreError, match=r"does not allow this user what the store needs \(.*evalsha"):
        await RedisStore(f"redis://reader:pass@127.0.0.1:{server.port}/0").open()


@pytest.mark.parametrize(
    ("rights", "missing"),
    [
        (["resetchannels"], "PUBLISH"),  # As the server has it for every new user.
        (["&*", "-zadd"], "ZADD"),
        (["&*", "-@write"], "HSET"),
    ],
)
async def test_a_right_that_a_script_would_miss_behind_its_first_writes_is_missed_by_open(
    own: Callable[..., RedisServer], rights: list[str], missing: str
) -> None:
    server = own()
    async with opened(RedisStore(server.url)) as store:
        server.ask("ACL", "SETUSER", "worker", "on", ">pass", "~*", "+@all", *rights)
        worker = RedisStore(f"redis://worker:pass@127.0.0.1:{server.port}/0")
        with pytest.raises(StoreError, match=rf"does not allow this user .*\({missing}\)") as refusal:
            await worker.open()
        assert not isinstance(refusal.value, StoreUnavailable)
        assert await store.page(Filter(), 1) == []


async def test_what_was_written_stands_though_its_user_may_not_publish_any_more(
    own: Callable[..., RedisServer],
) -> None:
    server = own()
    server.ask("ACL", "SETUSER", "worker", "on", ">pass", "~*", "&*", "+@all")
    async with opened(RedisStore(f"redis://worker:pass@127.0.0.1:{server.port}/0")) as store:
        server.ask("ACL", "SETUSER", "worker", "resetchannels")
        await works(store)


async def test_a_user_needs_no_more_than_the_keys_and_the_channel_of_the_namespace(
    own: Callable[..., RedisServer],
) -> None:
    server = own()
    server.ask(
        "ACL", "SETUSER", "worker", "on", ">pass", "~{asyncsched}:*", "&{asyncsched}:*",
        "+@all", "-@dangerous", "-@admin",
    )  # fmt: skip
    async with opened(RedisStore(f"redis://worker:pass@127.0.0.1:{server.port}/0")) as store:
        await works(store)
    with pytest.raises(StoreError, match="does not allow this user"):
        await RedisStore(f"redis://worker:pass@127.0.0.1:{server.port}/0", namespace="other").open()


async def test_a_database_that_is_not_there_is_told(url: str) -> None:
    with pytest.raises(StoreError, match=r"(?i)DB index is out of range"):
        await RedisStore(url.removesuffix("/0") + "/99").open()


async def test_a_namespace_that_nobody_made_is_refused_on_demand(url: str, namespace: str) -> None:
    store = RedisStore(url, namespace=namespace, create_schema=False)
    with pytest.raises(
        SchemaError, match=rf"'{namespace}' .* has no schema: open it once with create_schema=True"
    ):
        await store.open()
    async with opened(RedisStore(url, namespace=namespace)):
        pass
    async with opened(store):
        assert await store.add([job("a")]) == set()


async def test_a_schema_of_a_newer_version_is_refused(url: str, namespace: str) -> None:
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.hset(f"{{{namespace}}}:meta", mapping={"schema": 99, "layout": "one"})
    with pytest.raises(SchemaError, match="has schema 99, this code 1: upgrade asyncsched"):
        await RedisStore(url, namespace=namespace).open()


async def test_a_namespace_is_opened_in_the_layout_that_it_was_made_in(url: str, namespace: str) -> None:
    async with opened(RedisStore(url, namespace=namespace, spread=True)):
        pass
    with pytest.raises(SchemaError, match="was made with spread=True"):
        await RedisStore(url, namespace=namespace).open()


async def test_a_policy_that_deletes_jobs_is_warned_of(
    own: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = own("--maxmemory-policy", "allkeys-lru")
    async with opened(RedisStore(server.url)):
        pass
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "maxmemory-policy is allkeys-lru): set it to noeviction" in caplog.text
    caplog.clear()
    server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    async with opened(RedisStore(server.url)):
        pass
    assert caplog.records == []


async def test_a_call_before_open_is_refused_in_plain_words() -> None:
    with pytest.raises(StoreError, match=r"not open: await its open\(\) first"):
        await RedisStore("redis://user:secret@localhost").add([job("a")])


# ---- one's own client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode_responses", [False, True])
async def test_a_client_of_ones_own_is_used_and_left_open(
    url: str, namespace: str, decode_responses: bool
) -> None:
    async with redis.asyncio.Redis.from_url(url, decode_responses=decode_responses) as client:
        store = RedisStore(client=client, namespace=namespace)
        async with opened(store):
            await works(store)
        assert await client.ping()
        assert store.clone() is None
        async with opened(store):
            assert await store.get(["none"]) == {}


@pytest.mark.parametrize("decode_responses", [False, True])
async def test_a_client_of_one_connection_is_used_too(
    url: str, namespace: str, decode_responses: bool
) -> None:
    client = redis.asyncio.Redis.from_url(
        url, single_connection_client=True, decode_responses=decode_responses
    )
    async with client, opened(RedisStore(client=client, namespace=namespace)) as store:
        await store.add([job("a")])
        [held] = await claim(store)
        assert await store.settle([ended(held)]) == ["done"]


async def works(store: RedisStore) -> None:
    """One call of each kind, and a hint of it for another."""
    heard: list[float | None] = []
    end = store.on_hint(heard.append)
    await store.add([job("a"), job("b", hold="why"), job("c", wake_at=None)])
    held = {r.id: r for r in await claim(store)}
    assert held.keys() == {"a", "b"}
    claims = [Claim(r.id, r.fence, str(r.holder)) for r in held.values()]
    assert (await store.renew(claims, 60.0)).versions == {"a": 1, "b": 1}
    assert await store.settle([ended(held["a"]), ended(held["b"], NOW + 5)]) == ["done", "done"]
    updated = await store.update(
        Update(id="c", version=1, body=b"\xff", queue="q", priority=1, wake_at=NOW, hold=None)
    )
    assert updated is not None
    assert (await store.get(["c"]), len(await store.page(Filter(), 10))) == ({"c": updated}, 2)
    assert len(await store.runs()) == 2
    assert await store.prune(0.0, 1, 10) == 0
    [lease] = (await store.acquire(["k"], "me", 30.0)).values()
    assert await store.extend([lease], 30.0) == {"k": lease}
    await store.release([lease])
    assert await store.remove(["b", "c"]) == {"b", "c"}
    # Beside those of the listener, which is told of its own beginning.
    assert NOW in heard
    end()


async def test_a_claim_without_a_holder_is_nobodys(url: str, namespace: str) -> None:
    async with opened(RedisStore(url, namespace=namespace)) as store:
        await store.add([job("a")])
        [held] = await claim(store)
        back = Settlement("a", held.fence, str(held.holder), 1, hand_back=True, wake_at=NOW)
        assert await store.settle([back]) == ["done"]
        assert await store.settle([Settlement("a", held.fence, "", 1, delete=True)]) == ["lost"]
        assert (await store.renew([Claim("a", held.fence, "")], 30.0)).versions == {"a": "lost"}


async def test_each_claim_of_each_job_has_a_fence_of_its_own(url: str, namespace: str) -> None:
    """Children are logged under their parent's id, so a fence that two of them shared would name two runs."""
    async with opened(RedisStore(url, namespace=namespace)) as store:
        await store.add([job(f"{i}") for i in range(600)])
        fences = [r.fence for token in "ab" for r in await claim(store, token, 300)]
        assert fences == sorted(set(fences))
        assert len(fences) == 600


# ---- what it costs ---------------------------------------------------------------------------------------------------------


async def test_a_claim_and_a_batch_of_settlements_are_one_round_trip_each(url: str, namespace: str) -> None:
    async with opened(RedisStore(url, namespace=namespace)) as store:
        await store.add([job(f"{i}") for i in range(250)])
        await claim(store, "warm", 1)
        async with proxied(url) as proxy, opened(RedisStore(proxy.of(url), namespace=namespace)) as far:
            before = proxy.requests
            held = await claim(far, limit=200)
            assert (len(held), proxy.requests - before) == (200, 1)
            async with counted(url) as calls:
                assert await far.settle([ended(r) for r in held]) == ["done"] * 200
            assert calls["evalsha"] == 1


async def test_no_call_of_a_running_scheduler_scans_what_is_stored(url: str, namespace: str) -> None:
    async with opened(RedisStore(url, namespace=namespace)) as store, counted(url) as calls:
        await works(store)
    assert calls["zrangebylex"]
    # Pruning goes over the named leases, which are those of this moment, some hundreds at a time; nothing else does.
    assert {name: calls[name] for name in SCANS & calls.keys()} == {"hscan": 1}


async def test_a_claim_costs_the_same_however_much_is_stored(url: str, namespace: str) -> None:
    """Commands are counted, and what the server looked at: each returns what is taken, or one record for each lane."""
    seen = []
    async with opened(RedisStore(url, namespace=namespace)) as store:
        for size in (1_000, 50_000):
            known = len(await store.get([f"{size}-0"]))
            assert known == 0
            await store.add([job(f"{size}-{i}", NOW + 1_000 + i) for i in range(size)])
            await store.add([job(f"{size}-due-{i}") for i in range(100)])
            async with counted(url) as calls:
                held = await claim(store, f"{size}")
                await store.settle([ended(r, NOW + 10) for r in held])
            assert len(held) == 100
            seen.append({name: count for name, count in calls.items() if name not in ("info", "publish")})
    assert seen[0] == seen[1]


async def test_large_batches_go_in_pieces_that_do_not_hold_up_the_server(url: str, namespace: str) -> None:
    async with opened(RedisStore(url, namespace=namespace)) as store:
        await store.add([job("warm")])
        assert await store.settle([ended(r) for r in await claim(store)]) == ["done"]
        async with counted(url) as calls:
            await store.add([job(f"{i:04}") for i in range(2_000)])
        assert calls["evalsha"] == 7
        large = [Record(f"x{i}", "b", "big", 5, "t", NOW, None, bytes(1 << 20), b"") for i in range(20)]
        async with counted(url) as calls:
            await store.add(large)
            brought = (await store.claim(["big"], "token", 20, 30.0)).records
        assert calls["evalsha"] >= 7
        assert 0 < len(brought) < 20


async def test_only_what_is_due_sooner_than_all_else_is_told_to_others(url: str, namespace: str) -> None:
    async with opened(RedisStore(url, namespace=namespace)) as store:
        async with counted(url) as calls:
            await store.add([job("first", NOW + 10)])
        assert calls["publish"] == 1
        async with counted(url) as calls:
            await store.add([job("later", NOW + 20)])
        assert "publish" not in calls
        async with counted(url) as calls:
            await store.add([job("sooner", NOW + 5)])
        assert calls["publish"] == 1


async def test_nobody_is_subscribed_until_someone_listens(url: str, namespace: str) -> None:
    async with (
        redis.asyncio.Redis.from_url(url) as client,
        opened(RedisStore(url, namespace=namespace)) as store,
    ):
        channel = f"{{{namespace}}}:hints"

        async def subscribers() -> int:
            [(_, count)] = await client.pubsub_numsub(channel)
            return int(count)

        assert await subscribers() == 0
        store.on_hint(lambda _: None)

        async def is_heard() -> bool:
            return await subscribers() == 1

        await eventually(is_heard)


async def test_what_is_published_by_strangers_is_not_heard(url: str, namespace: str) -> None:
    async with (
        opened(RedisStore(url, namespace=namespace)) as store,
        opened(RedisStore(url, namespace=namespace)) as other,
        redis.asyncio.Redis.from_url(url) as client,
    ):
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: heard == [None])
        for said in ("", "hello", "hello world", b"\xff 1x"):
            await client.publish(f"{{{namespace}}}:hints", said)
        await other.add([job("a")])
        await eventually(lambda: heard == [None, NOW])


async def test_a_cancellation_while_it_closes_is_not_swallowed_and_leaves_nothing_open(
    url: str, namespace: str
) -> None:
    for turns in range(1, 4):
        store = RedisStore(url, namespace=namespace)
        await store.open()
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda heard=heard: heard == [None])  # type: ignore[misc]  # mypy infers no type for a lambda's default
        closing = asyncio.create_task(store.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        assert closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not store._server.is_open


async def test_ddl_names_every_key(url: str) -> None:
    for spread in (False, True):
        namespace = f"ddl-{uuid.uuid4().hex[:8]}"
        async with opened(RedisStore(url, namespace=namespace, spread=spread)) as store:
            await store.add([job("a", hold="why"), job("b", queue="b")])
            held = await claim(store)
            await store.acquire(["k"], "me", 30.0)
            if spread:
                child = msgspec.structs.replace(ended(held[0]), spawn=(job("c", queue="b"),))
                assert await store.settle([child]) == ["done"]
            async with redis.asyncio.Redis.from_url(url) as client:
                while_held = set(await client.keys(f"{{{namespace}*"))
                await store.settle([ended(r) for r in held])
                assert any(":arrived" in str(key) for key in while_held) == spread
                keys = while_held | set(await client.keys(f"{{{namespace}*"))
                assert all([await client.ttl(key) < 0 for key in keys])
        text = store.ddl().replace("|QUEUE}", "|default}")
        named = {line.split()[1] for line in text.splitlines()[1:]}
        assert {key.decode().replace("|b}", "|default}") for key in keys} <= named


def test_scripts_touch_declared_keys_only() -> None:
    declared = re.compile(
        r"(KEYS\[\d+\]|jobs|fixed|lanes|holds|claims|counts|log|times|of_jobs|meta|leases|key|s\.key)$"
    )
    called = re.compile(r"""(?:call|each)\('(\w+)'(?:, ([\w.\[\]]+))?""")
    found = 0
    for script in files("asyncsched.stores.redis").joinpath("lua").iterdir():
        text = script.read_text(encoding="utf-8")
        for command, key in called.findall(text):
            if command not in ("TIME", "PUBLISH"):
                found += 1
                assert declared.match(key), f"{script.name}: {command} {key}"
        assert "redis.call(" not in text
    assert found > 40


# ---- what the server refuses -------------------------------------------------------------------------------------------------


async def test_scripts_that_the_server_forgot_are_sent_again(own: Callable[..., RedisServer]) -> None:
    server = own()
    async with opened(RedisStore(server.url)) as store:
        await works(store)
        server.ask("SCRIPT", "FLUSH")
        await store.add([job("again")])
        [held] = await claim(store, "anew")
        assert await store.settle([ended(held)]) == ["done"]


async def test_a_server_without_memory_refuses_for_a_while(own: Callable[..., RedisServer]) -> None:
    server = own()
    async with opened(RedisStore(server.url)) as store:
        await store.add([job("a")])
        server.ask("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(
            StoreUnavailable, match="is out of memory and takes no writes: raise its maxmemory"
        ):
            await store.add([job("b")])
        server.ask("CONFIG", "SET", "maxmemory", 0)
        assert await store.add([job("b")]) == set()
        assert [r.id for r in await claim(store)] == ["a", "b"]


async def test_a_server_that_became_a_replica_is_left_and_found_again(
    own: Callable[..., RedisServer],
) -> None:
    server, primary = own(), own()
    async with opened(RedisStore(server.url)) as store:
        await store.add([job("a")])
        server.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")
        server.ask("REPLICAOF", "127.0.0.1", primary.port)
        with pytest.raises(StoreUnavailable, match="is a replica now and takes no writes"):
            await store.add([job("b")])
        server.ask("REPLICAOF", "NO", "ONE")

        async def is_taken() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await store.add([job("b")]) == set()
            return False

        await eventually(is_taken)


async def test_a_server_that_reads_its_data_still_is_waited_for(own: Callable[..., RedisServer]) -> None:
    server = own()
    async with opened(RedisStore(server.url)) as store:
        await store.add([job("a")])
        async with redis.asyncio.Redis.from_url(server.url) as client:
            # It looks at its connections once for each thousand of commands that it reads.
            pipeline = client.pipeline(transaction=False)
            for i in range(5_000):
                pipeline.set("other", i)
            await pipeline.execute()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start_loading)
        with pytest.raises(StoreUnavailable, match="is starting, and reads its data still"):
            await store.get(["a"])

        async def is_back() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return (await store.get(["a"])).keys() == {"a"}
            return False

        await eventually(is_back)


async def test_a_user_whose_rights_were_taken_condemns_no_job(own: Callable[..., RedisServer]) -> None:
    """A refusal for good would quarantine the jobs whose ends are to be written; this one is the server's to mend."""
    server = own()
    async with opened(RedisStore(server.url)) as store:
        await store.add([job("a")])
        [held] = await claim(store)
        server.ask("ACL", "SETUSER", "default", "-evalsha")
        with pytest.raises(StoreUnavailable, match="does not allow this user what the store needs"):
            await store.settle([ended(held)])
        server.ask("ACL", "SETUSER", "default", "+evalsha")
        assert await store.settle([ended(held)]) == ["done"]


async def test_what_cannot_be_encoded_is_refused_for_good(url: str, namespace: str) -> None:
    async with opened(RedisStore(url, namespace=namespace)) as store:
        for asked in (store.add([job("\ud800")]), store.get(["\ud800"]), store.runs("\ud800")):
            with pytest.raises(StoreError, match="cannot be stored") as refusal:
                await asked
            assert not isinstance(refusal.value, StoreUnavailable)


# ---- time ------------------------------------------------------------------------------------------------------------------


async def test_the_clock_is_that_of_the_server(url: str, namespace: str) -> None:
    async with (
        redis.asyncio.Redis.from_url(url) as client,
        opened(RedisStore(url, namespace=namespace), now=None) as store,
    ):
        seconds, microseconds = await client.time()
        now = await store.now()
        assert 0 <= now - (seconds + microseconds / 1e6) < 5
        await store.add([job("past", now - 1), job("soon", now + 3_000)])
        claimed = await store.claim(["default"], "token", 10, 30.0)
        assert [r.id for r in claimed.records] == ["past"]
        assert now <= claimed.now < now + 5
        assert claimed.records[0].wake_at == claimed.now + 30.0


async def test_one_call_at_a_time_is_enough_for_many_callers(url: str, namespace: str) -> None:
    async with opened(RedisStore(url, namespace=namespace, max_connections=2)) as store:
        await asyncio.gather(*(store.add([job(f"{i}")]) for i in range(100)))
        assert len(await store.page(Filter(), 1_000)) == 100


def test_messages_of_the_room_go_to_a_logger_of_its_own() -> None:
    assert logging.getLogger("asyncsched.stores.redis").parent is not None
