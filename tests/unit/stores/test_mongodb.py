"""What is particular to the store on MongoDB; what every store promises is in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import re
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from msgspec.structs import replace
from pymongo import AsyncMongoClient, MongoClient

from asyncsched.contract import Claim, Entry, Filter, JobStore, Record, Settlement, Update
from asyncsched.errors import DefinitionError, SchemaError, StoreError, StoreUnavailable
from asyncsched.stores import mongodb as mongodb_room
from asyncsched.stores import store_from_url
from asyncsched.stores.mongodb import MongoStore
from asyncsched.stores.mongodb._server import Server
from tests.servers.mongodb import MongoServer
from tests.servers.running import Servers, url_given_for
from tests.servers.server import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0
ROOT = Path(mongodb_room.__file__).parents[3]


def job(
    id: str, wake_at: float | None = NOW, *, queue: str = "default", priority: int = 5, body: bytes = b"body"
) -> Record:
    return Record(id, f"birth of {id}", queue, priority, "task", wake_at, None, body, b"cursor")


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
    if "mongodb" not in stores:
        pytest.skip("mongodb was left out by --stores")
    return servers.url("mongodb")


@pytest.fixture
def namespace() -> str:
    return f"unit-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def own(stores: Sequence[str]) -> Iterator[Callable[..., MongoServer]]:
    """Makes servers that the test may do anything to."""
    if "mongodb" not in stores:
        pytest.skip("mongodb was left out by --stores")
    if url_given_for("mongodb") is not None:
        pytest.skip("the server that is given is not to be set up anew")
    made: list[MongoServer] = []

    def start(**options: Any) -> MongoServer:
        server = MongoServer(**options)
        made.append(server)
        server.start()
        return server

    yield start
    for server in made:
        server.remove()


@contextlib.asynccontextmanager
async def opened(
    store: MongoStore, now: Callable[[], float] | None = lambda: NOW
) -> AsyncIterator[MongoStore]:
    await store.open(now=now)
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often which command is sent within the block."""
    sent: Counter[str] = Counter()

    def counting(send: Callable[..., Any]) -> Callable[..., Any]:
        async def command(self: Server, command: dict[str, Any]) -> Any:
            sent[next(iter(command))] += 1
            return await send(self, command)

        return command

    with monkeypatch.context() as patch:
        patch.setattr(Server, "command", counting(Server.command))
        patch.setattr(Server, "rows", counting(Server.rows))
        yield sent


# ---- URLs and settings ---------------------------------------------------------------------------------------------------


def test_it_keeps_to_the_protocol() -> None:
    store: JobStore = MongoStore("mongodb://localhost/app")
    assert store.capabilities.clock == "server"
    assert store.capabilities.linearizable


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("mongodb://localhost", "asyncsched"),
        ("mongodb://localhost/", "asyncsched"),
        ("mongodb://localhost/app", "app"),
        ("mongodb://a:27017,b:27018,c/app?replicaSet=rs0", "app"),
        ("mongodb://localhost/app?database=other", "other"),
        ("mongodb+srv://cluster.example/app", "app"),
    ],
)
def test_the_database_is_that_of_the_url_or_asyncsched(url: str, database: str) -> None:
    store = store_from_url(url)
    assert isinstance(store, MongoStore)
    assert store._server.database == database


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mongodb://localhost/a/b", "names more than a database"),
        ("mongodb://localhost/a?timeout=soon", "timeout cannot be 'soon'"),
        ("mongodb://localhost/a?timeout=0", "timeout cannot be 0"),
        ("mongodb://localhost/a?namespace=", "namespace cannot be ''"),
        ("mongodb://localhost/a?namespace=a%01b", "none is NUL or U+0001"),
        ("mongodb://localhost/a?collection=$x", "collection cannot be '$x'"),
        ("mongodb://localhost/a?database=a.b", "database cannot be 'a.b'"),
        ("mongodb://localhost/a?max_connections=0", "max_connections cannot be 0"),
        ("mongodb://localhost/a?create_schema=perhaps", "true or false is wanted"),
    ],
)
def test_a_url_that_can_never_work_is_refused_with_its_fault(url: str, said: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(said)):
        MongoStore.from_url(url)


def test_a_store_takes_either_a_url_or_a_client() -> None:
    with pytest.raises(DefinitionError, match="takes a URL"):
        MongoStore()
    with pytest.raises(DefinitionError, match="takes a URL"):
        MongoStore("mongodb://localhost", client=object())


@pytest.mark.parametrize("client", [object(), MongoClient(connect=False)], ids=["object", "blocking"])
def test_a_client_that_is_no_async_client_is_refused(client: Any) -> None:
    with pytest.raises(DefinitionError, match="client= takes an AsyncMongoClient"):
        MongoStore(client=client)


def test_options_go_to_a_client_that_is_made_here_only() -> None:
    with pytest.raises(DefinitionError, match="give tls to it"):
        MongoStore(client=AsyncMongoClient(connect=False), tls=True)


@pytest.mark.parametrize("url", ["mongodb://localhost/a?colection=x", "mongodb://localhost/a?tls=perhaps"])
async def test_an_option_that_the_driver_does_not_know_is_refused(url: str) -> None:
    with pytest.raises(DefinitionError, match=r"localhost"):
        await MongoStore.from_url(url).open()


def test_without_its_driver_the_pip_command_is_named() -> None:
    code = (
        "import sys; sys.modules['pymongo'] = None\n"
        "from asyncsched import store_from_url\n"
        "from asyncsched.errors import MissingExtra\n"
        "try: store_from_url('mongodb://localhost')\n"
        "except MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 'pip install "asyncsched[mongodb]"' in done.stdout


def test_it_needs_no_motor() -> None:
    code = (
        "import sys; sys.modules['motor'] = None\n"
        "from asyncsched import store_from_url\n"
        "print(type(store_from_url('mongodb://localhost')).__name__)\n"
    )
    assert importlib.util.find_spec("motor") is not None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "MongoStore"


# ---- what open() says ----------------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    url = f"mongodb://app:hunter2@127.0.0.1:{free_port()}/app?timeout=0.5"
    with pytest.raises(StoreUnavailable, match=r"cannot be reached") as caught:
        await MongoStore.from_url(url).open()
    assert "app:***@127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_wrong_password_is_said_at_once_and_a_right_one_opens(
    own: Callable[..., MongoServer],
) -> None:
    server = own(password="s3cret/word")
    at = f"127.0.0.1:{server.port}/test?authSource=admin&authMechanism=SCRAM-SHA-256"
    with pytest.raises(StoreError, match="refuses this user or password") as caught:
        await MongoStore.from_url(f"mongodb://app:wrong@{at}").open()
    assert not isinstance(caught.value, StoreUnavailable)
    assert "wrong" not in str(caught.value)
    with pytest.raises(StoreError, match=r"does not allow this user.*grant the role readWrite on 'test'"):
        await MongoStore(server.url).open()
    async with opened(MongoStore.from_url(f"mongodb://app:s3cret%2Fword@{at}")) as store:
        await store.add([job("a")])
        assert [r.id for r in await claim(store)] == ["a"]


async def test_a_certificate_is_checked_against_the_one_that_is_given(
    own: Callable[..., MongoServer],
) -> None:
    server = own(tls=True)
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        await MongoStore(server.url, tls=True, timeout=2.0).open()
    async with opened(MongoStore(server.url, tls=True, tlsCAFile=str(server.certificate))) as store:
        await store.add([job("a")])
    async with opened(MongoStore(f"{server.url}?tls=true&tlsCAFile={server.certificate}")) as store:
        assert (await store.get(["a"])).keys() == {"a"}


async def test_missing_indexes_are_named_where_none_may_be_made(url: str, namespace: str) -> None:
    collection = f"c{uuid.uuid4().hex[:8]}"
    with pytest.raises(SchemaError, match=rf"index lane of {collection}_jobs.*create_schema=True"):
        await MongoStore(url, namespace=namespace, collection=collection, create_schema=False).open()
    async with opened(MongoStore(url, namespace=namespace, collection=collection)):
        pass
    # Another namespace of the same collections needs nothing made.
    async with opened(
        MongoStore(url, namespace=f"{namespace}-2", collection=collection, create_schema=False)
    ) as store:
        assert await store.add([job("a")]) == set()


async def test_a_copy_without_its_indexes_gets_them(url: str, namespace: str) -> None:
    collection = f"c{uuid.uuid4().hex[:8]}"
    store = MongoStore(url, namespace=namespace, collection=collection)
    async with opened(store):
        await store.add([job("a")])
        documents = await store._server.rows({"find": store._names.jobs})
        await store._server.command({"drop": store._names.jobs})
        await store._server.write({"insert": store._names.jobs, "documents": documents})
    with pytest.raises(SchemaError, match=f"index lane of {collection}_jobs"):
        await MongoStore(url, namespace=namespace, collection=collection, create_schema=False).open()
    async with opened(store):
        assert [r.id for r in await claim(store)] == ["a"]
        there = await store._server.rows({"listIndexes": store._names.jobs, "cursor": {}})
        assert {index["name"] for index in there} >= {"lane", "holder", "hold"}


async def test_a_newer_schema_is_left_alone(url: str, namespace: str) -> None:
    async with opened(MongoStore(url, namespace=namespace)) as store:
        which = {"q": {"_id": store._keys.own}, "u": {"$set": {"schema": 2}}}
        await store._server.write({"update": store._names.jobs, "updates": [which]})
    with pytest.raises(SchemaError, match="has schema 2, this code 1: upgrade asyncsched"):
        await MongoStore(url, namespace=namespace).open()


async def test_a_server_that_is_too_old_is_told_which_it_must_be(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncsched.stores.mongodb import _server

    monkeypatch.setattr(_server, "_OLDEST", 99)
    with pytest.raises(StoreError, match=r"speaks version \d+ of MongoDB's protocol.*upgrade it"):
        await MongoStore(url).open()


async def test_a_store_that_is_not_open_says_so(url: str) -> None:
    with pytest.raises(StoreError, match="is not open: await its open"):
        await MongoStore(url).add([job("a")])


async def test_the_printed_commands_make_all_that_open_checks(url: str) -> None:
    collection = f"c{uuid.uuid4().hex[:8]}"
    said = MongoStore(url, collection=collection).ddl()
    async with opened(MongoStore(url, collection=collection)) as store:
        for kind in ("jobs", "log"):
            there = await store._server.rows({"listIndexes": f"{collection}_{kind}", "cursor": {}})
            for index in there:
                if index["name"] != "_id_":
                    keys = ", ".join(f"{field}: 1" for field in index["key"])
                    assert (
                        f'db.{collection}_{kind}.createIndex({{ {keys} }}, {{ name: "{index["name"]}"' in said
                    )


# ---- whose client --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [AsyncMongoClient, AsyncIOMotorClient], ids=["pymongo", "motor"])
async def test_a_client_of_ones_own_is_used_and_left_open(make: Any, url: str, namespace: str) -> None:
    client = make(url)
    try:
        store = MongoStore(client=client, database="test", namespace=namespace)
        assert store.clone() is None
        async with opened(store):
            await store.add([job("a"), job("b", NOW + 5)])
            [held] = await claim(store)
            renewal = await store.renew([Claim(held.id, held.fence, str(held.holder))], 60.0)
            assert renewal.versions == {"a": 1}
            assert await store.settle([ended(held)]) == ["done"]
            assert [entry.job_id for entry in await store.runs()] == ["a"]
            assert (await store.acquire(["k"], "me", 5.0)).keys() == {"k"}
        answer = await client["test"].command({"ping": 1})
        assert answer["ok"] == 1.0
        async with opened(MongoStore(url, namespace=namespace)) as other:
            assert (await other.get(["a", "b"])).keys() == {"b"}
    finally:
        closing = client.close()
        if closing is not None:
            await closing


async def test_values_of_a_client_with_a_codec_of_its_own_are_read_as_they_are(
    url: str, namespace: str
) -> None:
    from bson.son import SON

    client: Any = AsyncMongoClient(url, document_class=SON, tz_aware=True)
    try:
        async with opened(MongoStore(client=client, database="test", namespace=namespace)) as store:
            await store.add([job("a")])
            assert await store.get(["a"]) == {"a": job("a")}
    finally:
        await client.close()


# ---- hints of others -----------------------------------------------------------------------------------------------------


class Ended:
    """A change stream of a collection that was dropped, as both drivers have it."""

    alive = False

    def __init__(self) -> None:
        self.asked = 0

    async def try_next(self) -> None:
        self.asked += 1
        assert self.asked < 100, "the event loop would stand still"

    async def close(self) -> None:
        pass


async def test_a_stream_that_has_ended_is_opened_anew_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MongoStore("mongodb://localhost")
    streams: list[Ended] = []

    class Collection:
        def watch(self, *_: object, **__: object) -> Ended:
            streams.append(Ended())
            return streams[-1]

    collections = {store._names.jobs: Collection()}
    monkeypatch.setattr(Server, "handle", property(lambda _: collections))
    listening = asyncio.create_task(store._listener.run())
    try:
        await eventually(lambda: len(streams) > 2)
        assert {stream.asked for stream in streams[:-1]} == {1}
        assert not listening.done()
    finally:
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening


async def test_a_close_that_is_cancelled_says_so_and_closes_all_the_same() -> None:
    store = MongoStore("mongodb://localhost")
    store._server.connect()
    is_ending = asyncio.Event()

    async def listen() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            is_ending.set()
            await asyncio.sleep(0.2)  # The ending takes a while, which is when the close is cancelled.

    store._listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await is_ending.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not store._server.is_open


# ---- time ----------------------------------------------------------------------------------------------------------------


async def test_the_clock_is_the_servers(url: str, namespace: str) -> None:
    async with opened(MongoStore(url, namespace=namespace), now=None) as store:
        before = await store.now()
        await store.add([job("a", before - 1.0), job("b", before + 3600.0)])
        claimed = await store.claim(["default"], "token", 10, 30.0)
        after = await store.now()
        [held] = claimed.records
        assert before <= claimed.now <= after
        assert held.wake_at is not None
        assert before <= held.wake_at - 30.0 <= after
        assert claimed.next_wake_at == held.wake_at


async def test_nothing_is_taken_early_by_one_whose_estimate_of_the_clock_is_ahead(
    url: str, namespace: str
) -> None:
    async with opened(MongoStore(url, namespace=namespace), now=None) as store:
        now = await store.now()
        await store.add([job("soon", now + 3.0)])
        store._time._ahead_s += 10.0
        assert (await store.claim(["default"], "token", 10, 30.0)).records == []


# ---- costs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [0, 3_000])
async def test_a_claim_that_finds_nothing_is_one_command_however_much_is_stored(
    stored: int, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job(f"later-{n}", NOW + 60 + n, priority=n % 10) for n in range(stored)])
        with counted(monkeypatch) as sent:
            assert await claim(store) == []
        assert sent == {"aggregate": 1}


async def test_a_batch_is_claimed_with_two_commands_and_settled_with_three(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job(f"{n:03}") for n in range(300)])
        with counted(monkeypatch) as sent:
            held = await claim(store, "a", 100)
        assert (len(held), sent) == (100, {"aggregate": 1, "update": 1})
        with counted(monkeypatch) as sent:
            assert (
                await store.settle([ended(r, NOW + 60 if n % 2 else None) for n, r in enumerate(held)])
                == ["done"] * 100
            )
        assert sent == {"update": 1, "insert": 1, "delete": 1}


async def test_a_look_brings_what_is_asked_for_and_the_next_of_it_and_no_more(
    url: str, namespace: str
) -> None:
    async with opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job(f"{n:04}", NOW - 10 if n % 2 else NOW + 500 + n) for n in range(3_000)])
        look = await store._claims._look(["default"], store._keys.of("token"), 10, 0.0)
        assert len(look.due) == 11
        assert look.head == NOW + 500


async def test_many_queues_are_asked_for_in_few_commands_and_served_in_their_order(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = [f"q{n:02}" for n in range(45)]
    async with opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job(f"{queue}/{n}", queue=queue, priority=n) for queue in queues for n in (2, 7)])
        order = queues[30:] + queues[:30]
        with counted(monkeypatch) as sent:
            claimed = await store.claim(order, "a", 60, 30.0)
        assert [r.id for r in claimed.records] == [f"{q}/7" for q in order] + [f"{q}/2" for q in order[:15]]
        assert sent.total() <= 8
        rest = (await store.claim(order, "b", 60, 30.0)).records
        assert [r.id for r in rest] == [f"{q}/2" for q in order[15:]]


async def test_a_page_of_a_large_answer_is_whole(url: str, namespace: str) -> None:
    async with opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job(f"{n:04}", body=b"x" * 9_000) for n in range(2_500)])
        found = await store.page(Filter(), 2_500)
        assert [r.id for r in found] == [f"{n:04}" for n in range(2_500)]


@pytest.mark.parametrize("make", [AsyncMongoClient, AsyncIOMotorClient], ids=["pymongo", "motor"])
async def test_large_answers_are_whole_though_many_calls_share_a_client(
    make: Any, url: str, namespace: str
) -> None:
    client = make(url)
    try:
        async with opened(MongoStore(client=client, database="test", namespace=namespace)) as store:
            await store.add([job(f"{n:04}") for n in range(2_500)])
            for _ in range(3):
                calls = [
                    *(store.page(Filter(), 2_500) for _ in range(4)),
                    *(store.get([f"{n}"]) for n in range(20)),
                ]
                answers = await asyncio.gather(*calls)
                assert [len(found) for found in answers[:4]] == [2_500] * 4
    finally:
        closing = client.close()
        if closing is not None:
            await closing


# ---- limits --------------------------------------------------------------------------------------------------------------


async def test_a_record_that_no_document_can_hold_is_refused_for_good(url: str, namespace: str) -> None:
    async with opened(MongoStore(url, namespace=namespace)) as store:
        with pytest.raises(StoreError, match="takes no document as large") as caught:
            await store.add([job("a", body=b"x" * 17_000_000)])
        assert not isinstance(caught.value, StoreUnavailable)
        assert await store.add([job("b")]) == set()


# ---- what an instance leaves that dies in between ------------------------------------------------------------------------


class Died(BaseException):
    """The end of an instance, at one of its commands."""


@contextlib.contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, store: MongoStore, after: int) -> Iterator[None]:
    """*store* sends so many commands more, and then no other."""
    left = after

    def mortal(send: Callable[..., Any]) -> Callable[..., Any]:
        async def command(command: dict[str, Any]) -> Any:
            nonlocal left
            if not left:
                raise Died
            left -= 1
            return await send(command)

        return command

    with monkeypatch.context() as patch:
        patch.setattr(store._server, "command", mortal(store._server.command))
        patch.setattr(store._server, "rows", mortal(store._server.rows))
        yield


async def left_by_the_dead(store: MongoStore) -> tuple[list[str], list[str]]:
    """The ids of batches, and of documents that are to be deleted."""
    batches = await store._server.rows({"find": store._names.jobs, "filter": {"_id": store._keys.owned()}})
    dead = await store._server.rows(
        {"find": store._names.jobs, "filter": {"_id": store._keys.all(), "dead": {"$gt": ""}}}
    )
    return [d["_id"] for d in batches if d["_id"] != store._keys.own], [d["_id"] for d in dead]


@pytest.mark.parametrize("commands", range(9))
async def test_a_settlement_that_an_instance_dies_in_is_finished_by_the_next_claim_or_never_was(
    commands: int, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever command was its last: all of it counts, or nothing of it."""
    now = NOW
    victim = MongoStore(url, namespace=namespace)
    async with (
        opened(victim, lambda: now),
        opened(MongoStore(url, namespace=namespace), lambda: now) as store,
    ):
        parked = Record("parked", "birth", "default", 5, "task", NOW + 900, "k", b"", b"")
        await store.add([job("moves"), job("goes"), parked])
        held = {r.id: r for r in await claim(victim)}
        batch = [
            Settlement(
                **{
                    name: getattr(ended(held["moves"], NOW + 600), name)
                    for name in Settlement.__struct_fields__
                }
                | {"spawn": (job("child", NOW + 50),), "unpark": ("k", 1)}
            ),
            ended(held["goes"]),
        ]
        with dying(monkeypatch, victim, commands), contextlib.suppress(Died):
            await victim.settle(batch)
        now = NOW + 20
        await store.claim(["nothing"], "looks", 10, 30.0)
        assert await left_by_the_dead(store) == ([], []) or not commands
        there = await store.get(["moves", "goes", "child", "parked"])
        logged = sorted(entry.job_id for entry in await store.runs())
        if commands:
            assert (logged, there.keys()) == (["goes", "moves"], {"moves", "child", "parked"})
            assert (there["moves"].holder, there["parked"].hold) == (None, None)
            now = NOW + 100
            assert {"child", "parked"} == {r.id for r in await claim(store, "next")}
        else:
            assert (logged, there.keys()) == ([], {"moves", "goes", "parked"})
            assert (there["moves"], there["parked"].hold) == (held["moves"], "k")


async def test_what_is_settled_while_several_queues_are_read_in_order_is_finished_by_the_claim(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch was not there yet when the claim looked for them; the next settlement puts its mark over the first."""
    victim, store = MongoStore(url, namespace=namespace), MongoStore(url, namespace=namespace)
    async with opened(victim), opened(store):
        await store.add([job("a"), job("b", NOW + 1), job("c", NOW + 1, queue="other")])
        [held] = (await victim.claim(["default"], "victim", 1, 30.0)).records
        last = replace(ended(held, NOW - 50), spawn=(job("child", NOW + 90),))
        in_order = store._claims._in_order

        async def meanwhile_settled(*arguments: Any) -> Any:
            with dying(monkeypatch, victim, 1), pytest.raises(Died):
                await victim.settle([last])
            return await in_order(*arguments)

        monkeypatch.setattr(store._claims, "_in_order", meanwhile_settled)
        [again] = (await store.claim(["default", "other"], "next", 1, 30.0, 2.0)).records
        assert await store.settle([ended(again)]) == ["done"]
        assert {entry.fence for entry in await store.runs("a")} == {held.fence, again.fence}
        assert (await store.get(["a", "child"])).keys() == {"child"}


async def test_what_is_settled_between_two_looks_of_a_claim_of_many_queues_is_finished_by_it(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, store = MongoStore(url, namespace=namespace), MongoStore(url, namespace=namespace)
    queues = [*(f"{i}" for i in range(20)), "default"]
    async with opened(victim), opened(store):
        await store.add([job("a")])
        [held] = await claim(victim)
        aggregate = store._server.aggregate

        async def and_then_settled(*arguments: Any, **more: Any) -> Any:
            found = await aggregate(*arguments, **more)
            monkeypatch.setattr(store._server, "aggregate", aggregate)
            with dying(monkeypatch, victim, 1), pytest.raises(Died):
                await victim.settle([ended(held, NOW - 50)])
            return found

        monkeypatch.setattr(store._server, "aggregate", and_then_settled)
        [again] = (await store.claim(queues, "next", 1, 30.0)).records
        assert await store.settle([ended(again)]) == ["done"]
        assert {entry.fence for entry in await store.runs("a")} == {held.fence, again.fence}


async def test_a_child_that_has_run_and_gone_is_not_added_again_by_who_finishes_the_batch(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = NOW
    victim = MongoStore(url, namespace=namespace)
    async with (
        opened(victim, lambda: now),
        opened(MongoStore(url, namespace=namespace), lambda: now) as store,
    ):
        await store.add([job("parent")])
        [held] = await claim(victim)
        last = Settlement("parent", held.fence, str(held.holder), 1, delete=True, spawn=(job("child"),))
        # The child is let go with the fourth command, and the batch is deleted with the fifth.
        with dying(monkeypatch, victim, 4), pytest.raises(Died):
            await victim.settle([last])
        [child] = await claim(store, "second")
        assert await store.settle([ended(child)]) == ["done"]
        now = NOW + 60
        assert await claim(store, "third") == []
        assert await left_by_the_dead(store) == ([], [])
        assert await store.get(["parent", "child"]) == {}


@pytest.mark.parametrize("moves", [True, False], ids=["moves", "goes"])
async def test_a_child_that_has_run_and_gone_is_not_added_again_by_whose_batch_it_was(
    moves: bool, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader lets the child go while the settler looks what has become of another job of the same batch."""
    async with (
        opened(MongoStore(url, namespace=namespace)) as slow,
        opened(MongoStore(url, namespace=namespace)) as store,
    ):
        held = await claim_one_that_is_updated(slow, store)
        sorted_out = slow._settling._sorted_out

        async def slowly(*arguments: Any) -> Any:
            assert (await store.get(["child"])).keys() == {"child"}
            [child] = await claim(store, "second")
            assert await store.settle([ended(child)]) == ["done"]
            return await sorted_out(*arguments)

        monkeypatch.setattr(slow._settling, "_sorted_out", slowly)
        last = replace(ended(held["parent"], NOW + 60 if moves else None), spawn=(job("child"),))
        assert await slow.settle([last, ended(held["updated"])]) == ["done", "stale"]
        assert [r.id for r in await claim(store, "third")] == ["updated"]
        left = await store.get(["parent", "child", "updated"])
        assert left.keys() == ({"parent", "updated"} if moves else {"updated"})
        assert sorted(entry.job_id for entry in await store.runs()) == ["child", "parent", "updated"]
        assert await left_by_the_dead(store) == ([], [])


@pytest.mark.parametrize("reads", [True, False], ids=["read", "added"])
async def test_a_child_that_was_added_too_late_by_one_who_died_is_in_nobodys_way(
    reads: bool, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = MongoStore(url, namespace=namespace)
    async with opened(slow), opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job("parent")])
        [held] = await claim(slow)
        perform = slow._batches.perform

        async def slowly(*arguments: Any) -> None:
            assert (await store.get(["child"])).keys() == {"child"}
            [child] = await claim(store, "second")
            assert await store.settle([ended(child)]) == ["done"]
            await perform(*arguments)

        monkeypatch.setattr(slow._batches, "perform", slowly)
        # The first settles the parent, and the second adds the child once more.
        last = replace(ended(held, NOW + 60), entries=(), spawn=(job("child"),))
        with dying(monkeypatch, slow, 2), pytest.raises(Died):
            await slow.settle([last])
        if reads:
            assert (await store.get(["parent", "child"])).keys() == {"parent"}
        assert await store.add([replace(job("child"), birth="another")]) == set()
        assert [r.birth for r in await claim(store, "third")] == ["another"]


@pytest.mark.parametrize("commands", range(8))
async def test_children_of_a_batch_that_a_reader_has_begun_to_finish_are_all_there(
    commands: int, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has added those of the first job before it was known what becomes of the other, and then the settler dies."""
    now = NOW
    slow = MongoStore(url, namespace=namespace)
    async with (
        opened(slow, lambda: now),
        opened(MongoStore(url, namespace=namespace), lambda: now) as store,
    ):
        held = await claim_one_that_is_updated(slow, store)
        sorted_out = slow._settling._sorted_out

        async def meanwhile_read(*arguments: Any) -> Any:
            assert (await store.get(["first"])).keys() == {"first"}
            return await sorted_out(*arguments)

        monkeypatch.setattr(slow._settling, "_sorted_out", meanwhile_read)
        batch = [
            replace(ended(held[id], NOW + 60), spawn=(job(child),))
            for id, child in (("parent", "first"), ("updated", "other"))
        ]
        # The first writes the batch, and the third says that the updated job is settled, too.
        with dying(monkeypatch, slow, 3 + commands), contextlib.suppress(Died):
            await slow.settle(batch)
        now = NOW + 20
        await store.claim(["nothing"], "looks", 10, 30.0)
        assert sorted(r.id for r in await claim(store, "second")) == ["first", "other", "updated"]
        assert sorted(entry.job_id for entry in await store.runs()) == ["parent", "updated"]
        assert await left_by_the_dead(store) == ([], [])


async def claim_one_that_is_updated(holder: MongoStore, other: MongoStore) -> dict[str, Record]:
    """The records of ``parent`` and ``updated``, as *holder* knows them; *other* has updated one since."""
    await holder.add([job("parent"), job("updated")])
    held = {r.id: r for r in await claim(holder)}
    update = Update(
        id="updated", version=1, body=b"", queue="default", priority=5, wake_at=NOW + 60, hold=None
    )
    assert await other.update(update) is not None
    return held


async def test_a_run_that_was_taken_over_is_not_logged_by_who_finishes_its_batch(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch was written, but the job has gone to a successor, who has ended and deleted it."""
    now = NOW
    victim = MongoStore(url, namespace=namespace)
    async with (
        opened(victim, lambda: now),
        opened(MongoStore(url, namespace=namespace), lambda: now) as store,
    ):
        await store.add([job("a")])
        [held] = await claim(victim)
        from asyncsched.stores.mongodb._batches import part_of

        batch = store._batches.new_id()
        update = {
            "update": store._names.jobs,
            "updates": [store._batches.write(batch, [part_of(ended(held))])],
        }
        await store._server.write(update)
        now = NOW + 31
        [successor] = await claim(store, "second")
        assert await store.settle([ended(successor)]) == ["done"]
        now = NOW + 60
        await claim(store, "third")
        assert [entry.fence for entry in await store.runs()] == [successor.fence]
        assert await left_by_the_dead(store) == ([], [])


async def test_an_id_can_be_added_anew_though_an_instance_died_while_it_deleted_it(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = MongoStore(url, namespace=namespace)
    async with opened(victim), opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job("removed"), job("settled")])
        first = {r.id: r for r in await claim(victim)}
        with dying(monkeypatch, victim, 1), pytest.raises(Died):
            await victim.settle([ended(first["settled"])])
        with dying(monkeypatch, victim, 1), pytest.raises(Died):
            await victim.remove(["removed"])
        assert await store.get(["removed", "settled"]) == {}
        assert await store.page(Filter(), 10) == []
        assert await store.add([job("removed"), job("settled")]) == set()
        second = {r.id: r for r in await claim(store, "second")}
        assert all(second[id].fence > first[id].fence for id in ("removed", "settled"))
        assert [entry.job_id for entry in await store.runs("settled")] == ["settled"]


async def test_what_a_settlement_did_is_logged_though_the_job_is_removed_before_it_is_finished(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = MongoStore(url, namespace=namespace)
    async with opened(victim), opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job("a")])
        [held] = await claim(victim)
        with dying(monkeypatch, victim, 1), pytest.raises(Died):
            await victim.settle([ended(held, NOW + 60)])
        assert await store.remove(["a"]) == {"a"}
        assert [entry.job_id for entry in await store.runs()] == ["a"]


async def test_who_reads_the_log_finds_what_an_instance_left(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = NOW
    victim = MongoStore(url, namespace=namespace)
    async with (
        opened(victim, lambda: now),
        opened(MongoStore(url, namespace=namespace), lambda: now) as store,
    ):
        await store.add([job("a")])
        [held] = await claim(victim)
        with dying(monkeypatch, victim, 1), pytest.raises(Died):
            await victim.settle([ended(held, NOW + 60)])
        assert [entry.job_id for entry in await store.runs()] == ["a"]


async def test_jobs_of_many_states_are_claimed_at_once(url: str, namespace: str) -> None:
    async with opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job(f"{n:02}") for n in range(30)])
        for n in range(30):
            record = (await store.get([f"{n:02}"]))[f"{n:02}"]
            for _ in range(n % 8):
                update = Update(
                    id=record.id,
                    version=record.version,
                    body=b"",
                    queue="default",
                    priority=5,
                    wake_at=NOW,
                    hold=None,
                )
                found = await store.update(update)
                assert found is not None
                record = found
        held = await claim(store)
        assert await store.get([r.id for r in held]) == {r.id: r for r in held}
        assert len(held) == 30


async def test_what_was_updated_between_look_and_take_is_handed_out_as_it_is_then(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(MongoStore(url, namespace=namespace)) as store:
        await store.add([job("a"), job("b"), job("c")])
        look = store._claims._look

        async def meddled(*arguments: Any) -> Any:
            found = await look(*arguments)
            update = Update(
                id="a", version=1, body=b"new", queue="default", priority=5, wake_at=NOW, hold=None
            )
            await store.update(update)
            await store.remove(["b"])
            await store.add([Record("b", "second birth", "default", 5, "task", NOW, None, b"second", b"")])
            return found

        monkeypatch.setattr(store._claims, "_look", meddled)
        held = {r.id: r for r in await claim(store)}
        assert await store.get(["a", "b", "c"]) | held == await store.get(["a", "b", "c"])
        assert "c" in held
        assert {id: r.body for id, r in held.items() if id != "c"}.items() <= {
            "a": b"new",
            "b": b"second",
        }.items()


async def test_who_was_too_late_knows_when_what_others_took_or_changed_wants_attention(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        opened(MongoStore(url, namespace=namespace)) as store,
        opened(MongoStore(url, namespace=namespace)) as other,
    ):
        await store.add([job("a")])
        look = store._claims._look
        faster: list[Record] = []

        async def late(*arguments: Any) -> Any:
            found = await look(*arguments)
            if faster:
                changed = Update(
                    id="a", version=1, body=b"", queue="default", priority=5, wake_at=NOW, hold=None
                )
                await store.update(changed)
            else:
                faster.extend(await claim(other, "faster"))
            return found

        monkeypatch.setattr(store._claims, "_look", late)
        assert await store.claim(["default"], "late", 10, 30.0) == ([], NOW + 30, NOW)
        [held] = faster
        hand_back = Settlement(held.id, held.fence, "faster", 1, wake_at=NOW, hand_back=True)
        assert await other.settle([hand_back]) == ["done"]
        assert await store.claim(["default"], "later", 10, 30.0) == ([], NOW, NOW)


async def test_leases_that_nobody_held_for_a_day_are_forgotten_and_fences_do_not_fall(
    url: str, namespace: str
) -> None:
    now = NOW
    async with opened(MongoStore(url, namespace=namespace), lambda: now) as store:
        [first] = (await store.acquire(["k"], "me", 30.0)).values()
        await store.release([first])
        await store.prune(None, None, 100)
        assert (
            len(await store._server.rows({"find": store._names.leases, "filter": {"_id": store._keys.all()}}))
            == 1
        )
        now += 100_000.0
        await store.prune(None, None, 100)
        assert (
            await store._server.rows({"find": store._names.leases, "filter": {"_id": store._keys.all()}})
            == []
        )
        [second] = (await store.acquire(["k"], "me", 30.0)).values()
        assert second.fence > first.fence


async def test_a_namespace_that_was_erased_says_so(url: str, namespace: str) -> None:
    async with opened(MongoStore(url, namespace=namespace)) as store:
        await store.erase()
        with pytest.raises(SchemaError, match="was erased: open the store anew"):
            await claim(store)


async def test_dollars_and_dots_in_names_are_plain_text(url: str, namespace: str) -> None:
    async with opened(MongoStore(url, namespace=f"$ROOT.{namespace}")) as store:
        await store.add([Record("$a.b", "$birth", "$q", 5, "$task", NOW, "$hold", b"$body", b"$cursor")])
        [held] = (await store.claim(["$q"], "$token", 10, 30.0)).records
        assert (held.id, held.holder, held.hold) == ("$a.b", "$token", "$hold")
        [other] = (await store.claim(["$q"], "$token", 10, 30.0)).records
        assert other == held
        moved = Settlement("$a.b", held.fence, "$token", 1, cursor=b"$x", wake_at=NOW, hold="$$NOW")
        assert await store.settle([moved]) == ["done"]
        record = (await store.get(["$a.b"]))["$a.b"]
        assert (record.cursor, record.hold) == (b"$x", "$$NOW")
        update = Update(
            id="$a.b", version=1, body=b"$$ROOT", queue="$$NOW", priority=5, wake_at=NOW, hold="$x", task="$t"
        )
        updated = await store.update(update)
        assert updated is not None
        assert (updated.queue, updated.hold, updated.task, updated.body) == ("$$NOW", "$x", "$t", b"$$ROOT")
        assert (await store.acquire(["$k"], "$$NOW", 30.0))["$k"].holder == "$$NOW"


async def test_many_claimers_share_a_backlog_and_none_is_refused(url: str, namespace: str) -> None:
    store_a, store_b = MongoStore(url, namespace=namespace), MongoStore(url, namespace=namespace)
    async with opened(store_a), opened(store_b):
        await store_a.add([job(f"{n:04}") for n in range(2_000)])
        taken: list[str] = []

        async def work(store: MongoStore, name: str) -> None:
            turn = 0
            while held := await claim(store, f"{name}-{(turn := turn + 1)}", 50):
                taken.extend(r.id for r in held)
                assert set(await store.settle([ended(r) for r in held])) == {"done"}

        await asyncio.gather(*(work(store, f"{n}") for n, store in enumerate([store_a, store_b] * 3)))
        while held := await claim(store_a, f"last-{len(taken)}", 50):
            taken.extend(r.id for r in held)
        assert sorted(taken) == [f"{n:04}" for n in range(2_000)]


@contextlib.asynccontextmanager
async def instances(url: str, namespace: str, count: int) -> AsyncIterator[list[MongoStore]]:
    """So many stores, whose namespace is erased in the end."""
    stores = [MongoStore(url, namespace=namespace) for _ in range(count)]
    for each in stores:
        await each.open()
    try:
        yield stores
    finally:
        await stores[0].erase()
        for each in stores:
            await each.close()


async def test_two_that_move_a_line_on_at_once_let_go_as_many_as_both_are_to(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with instances(url, namespace, 2) as (store, other):
        now = await store.now()
        await store.add([job(f"run {n}", now - 1.0) for n in range(2)])
        await store.add([replace(job(f"parked {n}", None), hold="limit") for n in range(4)])
        first, second = await claim(store)
        write, calls = store._server.write, [0]

        async def late(command: dict[str, Any], **keywords: Any) -> dict[str, Any]:
            # What it found in the line is let go by the other before it is by this one.
            if "hold" in str(command.get("updates", [{}])[0].get("q")) and not calls[0]:
                calls[0] += 1
                assert await other.settle([replace(ended(second), unpark=("limit", 2))]) == ["done"]
            return await write(command, **keywords)

        monkeypatch.setattr(store._server, "write", late)
        assert await store.settle([replace(ended(first), unpark=("limit", 2))]) == ["done"]
        assert calls == [1]
        assert await store.page(Filter(hold="limit"), 10) == []


async def test_a_job_that_was_deleted_leaves_nothing_though_its_instance_died_then(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with instances(url, namespace, 2) as (store, other):
        await store.add([job("job", await store.now() - 1.0)])
        [held] = await claim(store)

        async def dies(*_: object, **__: object) -> None:
            raise StoreUnavailable("it is dead")

        monkeypatch.setattr(store._batches, "end", dies)
        with pytest.raises(StoreUnavailable):
            await store.settle([replace(ended(held), entries=())])
        await other.runs()
        which = {"_id": other._keys.all()}
        assert await other._server.rows({"find": other._names.jobs, "filter": which}) == []


async def test_a_child_that_has_run_and_gone_meanwhile_is_not_added_again(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever settled is slow to add it, and whoever has done so in his place is slow to say that all is done."""
    async with instances(url, namespace, 3) as (slow, reader, runner):
        now = await slow.now()
        await slow.add([job("parent", now - 1.0)])
        [held] = await claim(slow)
        is_marked, has_run, is_added = asyncio.Event(), asyncio.Event(), asyncio.Event()
        perform, end = slow._batches.perform, reader._batches.end

        async def late_perform(*args: Any, **keywords: Any) -> None:
            is_marked.set()
            await has_run.wait()
            await perform(*args, **keywords)
            is_added.set()

        async def late_end(*args: Any, **keywords: Any) -> None:
            await is_added.wait()
            await end(*args, **keywords)

        monkeypatch.setattr(slow._batches, "perform", late_perform)
        monkeypatch.setattr(reader._batches, "end", late_end)
        child = job("child", now - 1.0, queue="children")
        settling = asyncio.create_task(slow.settle([replace(ended(held), spawn=(child,))]))
        await is_marked.wait()
        reading = asyncio.create_task(reader.runs())
        taken: list[Record] = []
        while not taken:
            taken = (await runner.claim(["children"], "first", 1, 30.0)).records
        assert await runner.settle([ended(taken[0])]) == ["done"]
        has_run.set()
        assert await settling == ["done"]
        await reading
        assert (await runner.claim(["children"], "second", 1, 30.0)).records == []
        assert await runner.get(["child"]) == {}
