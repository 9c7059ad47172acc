"""What is particular to the store on Firestore; what every store promises is in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore_v1 import AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from asyncsched.contract import Claim, Entry, Filter, JobStore, Record, Settlement, Update
from asyncsched.errors import DefinitionError, SchemaError, StoreError, StoreUnavailable
from asyncsched.stores import firestore as firestore_room
from asyncsched.stores import store_from_url
from asyncsched.stores.firestore import FirestoreStore, _log
from asyncsched.stores.firestore._names import JOBS, LOG, Names, id_of
from asyncsched.stores.firestore._wire import update
from tests.servers.running import Servers
from tests.servers.server import free_port
from tests.support.proxy import proxied
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0
#: Google's classes have annotations in part.
ANONYMOUS: Any = AnonymousCredentials
RpcHandler: Any = grpc.GenericRpcHandler
ROOT = Path(firestore_room.__file__).parents[3]


def job(id: str, wake_at: float | None = NOW, queue: str = "default", priority: int = 5) -> Record:
    return Record(id, "birth", queue, priority, "task", wake_at, None, b"body", b"cursor")


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


def claim_of(record: Record) -> Claim:
    return Claim(record.id, record.fence, str(record.holder))


async def claim(
    store: JobStore, token: str = "token", limit: int = 100, queues: Sequence[str] = ("default",)
) -> list[Record]:
    return (await store.claim(queues, token, limit, 30.0)).records


@pytest.fixture(scope="module")
def url(stores: Sequence[str], servers: Servers) -> str:
    if "firestore" not in stores:
        pytest.skip("firestore was left out by --stores")
    return servers.url("firestore")


@pytest.fixture
def emulator(url: str) -> str:
    return url.partition("emulator_host=")[2].partition("&")[0]


@pytest.fixture
def own_url(url: str) -> str:
    """With a namespace of its own."""
    return f"{url}&namespace=unit-{uuid.uuid4().hex[:12]}&timeout=30"


@contextlib.asynccontextmanager
async def opened(
    url: str | FirestoreStore, now: Callable[[], float] | None = lambda: NOW
) -> AsyncIterator[FirestoreStore]:
    store = FirestoreStore.from_url(url) if isinstance(url, str) else url
    await store.open(now=now)
    try:
        yield store
    finally:
        await store.close()


class Calls:
    """What a store asks for and writes from now on."""

    def __init__(self, store: FirestoreStore) -> None:
        self.requests: Counter[str] = Counter()
        self.documents = 0
        self.queries: list[Any] = []
        self.written: list[str] = []
        self._server = store._server
        for name in ("get", "query", "commit", "batch"):
            setattr(self._server, name, self._counted(name, getattr(self._server, name)))

    def clear(self) -> None:
        self.requests.clear()
        self.documents = 0
        self.queries.clear()
        self.written.clear()

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def counted(given: Any, *more: Any) -> Any:
            self.requests[name] += 1
            if name in ("commit", "batch"):
                self.written += [write.update.name or write.delete for write in given]
            if name == "query":
                self.queries.append(given)
            answer = await call(given, *more)
            if name in ("get", "query"):
                self.documents += len(answer[0])
            return answer

        return counted


# ---- URLs and settings ---------------------------------------------------------------------------------------------------


def test_it_keeps_to_the_protocol() -> None:
    store: JobStore = FirestoreStore("firestore://project/jobs")
    assert (store.capabilities.push_hints, store.capabilities.clock) == (False, "server")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("firestore://", "firestore://project/collection"),
        ("firestore://project", "firestore://project/collection"),
        ("firestore://project/jobs?colour=red", "unknown keyword 'colour'"),
        ("firestore://project/jobs?timeout=soon", "a number is wanted"),
        ("firestore://project/jobs?timeout=0", "timeout cannot be 0"),
        ("firestore://project/jobs?namespace=a/b", "namespace cannot be 'a/b'"),
        ("firestore://project/jobs?namespace=__x__", "namespace cannot be '__x__'"),
        ("firestore://project/jobs?namespace=..", "namespace cannot be"),
        ("firestore://project/apps/mine", "an odd number of names"),
        ("firestore://project/apps//jobs", "an odd number of names"),
    ],
)
def test_a_url_that_can_never_work_is_refused_with_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        store_from_url(url)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"project": "p"},
        {"collection": "c"},
        {"url": "firestore://p/c", "project": "p"},
        {"client": "not a client", "collection": "c"},
        {"project": "p", "collection": "c", "credentials": object(), "credentials_file": "key.json"},
    ],
)
def test_keywords_that_say_too_little_or_too_much_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        FirestoreStore(**arguments)


def test_a_missing_client_is_said_with_the_command_that_installs_it() -> None:
    code = (
        "import sys; sys.modules['google.cloud.firestore_v1'] = None\n"
        "from asyncsched.errors import MissingExtra\n"
        "from asyncsched.stores import store_from_url\n"
        "try: store_from_url('firestore://p/c')\n"
        "except MissingExtra as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'pip install "asyncsched[firestore]"' in said.stdout


async def test_the_emulator_is_found_through_the_environment_too(
    emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", emulator)
    async with opened("firestore://test/by-environment") as store:
        await store.add([job("a")])
        assert (await store.get(["a"])).keys() == {"a"}
        await store.erase()


async def test_databases_and_collections_are_apart(own_url: str) -> None:
    elsewhere = own_url.replace("/asyncsched?", "/apps/mine/jobs?")
    async with (
        opened(own_url) as here,
        opened(elsewhere) as there,
        opened(f"{own_url}&database=second") as second,
    ):
        await here.add([job("a")])
        assert [await store.get(["a"]) for store in (there, second)] == [{}, {}]
        assert await there.add([job("a")]) == await second.add([job("a")]) == set()


async def test_a_client_of_the_users_is_used_and_left_open(
    emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", emulator)
    client = AsyncClient(project="test", credentials=ANONYMOUS())
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST")
    store = FirestoreStore.from_client(client, "lent", namespace=f"n{uuid.uuid4().hex}")
    async with opened(store):
        await store.add([job("a")])
        assert store.clone() is None
        root = client.document(f"lent/{store._server.place.namespace}")
        found = [each.id async for each in root.collection(JOBS).stream()]
        assert found == ["-a"]
    assert (await client.document(f"{root.path}/{JOBS}/-a").get()).exists
    # It is open still, and its last messages must not arrive after this event loop.
    await client._firestore_api.transport.close()


async def test_a_users_client_is_not_told_what_it_knows_itself() -> None:
    client = AsyncClient(project="test", credentials=ANONYMOUS())
    for more in ({"database": "d"}, {"emulator_host": "h:1"}, {"project": "p"}, {"credentials": object()}):
        with pytest.raises(DefinitionError, match="client="):
            FirestoreStore(client=client, collection="c", **more)


def test_the_endpoint_and_credentials_are_passed_on(tmp_path: Path) -> None:
    store = FirestoreStore("firestore://p/c", credentials=ANONYMOUS(), endpoint="mine.example:443")
    assert store._server._endpoint == "mine.example:443"
    clone = store.clone()
    assert clone is not None
    assert clone._server._credentials is store._server._credentials


# ---- open ----------------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    store = FirestoreStore("firestore://test/c", emulator_host=address, timeout=5)
    with pytest.raises(StoreUnavailable, match=rf"c/asyncsched.*project test.*{address}"):
        await store.open()


async def test_a_server_that_does_not_answer_is_given_up_at_the_deadline(own_url: str) -> None:
    async with proxied(own_url) as proxy:
        store = FirestoreStore.from_url(proxy.of(own_url).replace("timeout=30", "timeout=0.5"))
        async with opened(store):
            proxy.stall()
            async with asyncio.timeout(15):
                with pytest.raises(StoreUnavailable, match=r"no answer within 0\.5 s"):
                    await store.get(["a"])
            proxy.flow()


async def test_missing_credentials_are_said_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "FIRESTORE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(StoreError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        await FirestoreStore("firestore://p/c").open()


async def test_a_key_file_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    with pytest.raises(StoreError, match=r"nowhere\.json"):
        await FirestoreStore("firestore://p/c", credentials_file=str(tmp_path / "nowhere.json")).open()
    (tmp_path / "key.json").write_text("{}")
    with pytest.raises(StoreError, match=r"key\.json"):
        await FirestoreStore("firestore://p/c", credentials_file=str(tmp_path / "key.json")).open()


class Refusing(RpcHandler):  # type: ignore[misc]  # an Any, since grpc has no annotations
    """Answers each call with one status: the emulator lets everyone do everything, as the real service does not."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def refuse(_: bytes, context: Any) -> None:
            context.abort(self._code, self._details)

        if details.method.endswith(("BatchGetDocuments", "RunQuery")):
            return grpc.unary_stream_rpc_method_handler(refuse)
        return grpc.unary_unary_rpc_method_handler(refuse)


@contextlib.contextmanager
def refusing(code: grpc.StatusCode, details: str) -> Iterator[str]:
    """The address of such a server, in threads: one of an event loop leaves behind what reaches that loop when it is closed."""
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([Refusing(code, details)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("code", "details", "kind", "says"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "no", StoreError, "roles/datastore.user"),
        (grpc.StatusCode.UNAUTHENTICATED, "no", StoreError, "refuses the credentials"),
        (grpc.StatusCode.NOT_FOUND, "no", StoreError, r"no database '\(default\)' in project 'p'"),
        (grpc.StatusCode.FAILED_PRECONDITION, "needs an index", SchemaError, "asyncsched stores ddl"),
        (grpc.StatusCode.INVALID_ARGUMENT, "what", StoreError, "refuses a call"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", StoreUnavailable, "quota"),
        (grpc.StatusCode.UNAVAILABLE, "away", StoreUnavailable, "away"),
        (grpc.StatusCode.INTERNAL, "oops", StoreUnavailable, "oops"),
        (grpc.StatusCode.ABORTED, "busy", StoreUnavailable, "busy"),
    ],
)
async def test_each_refusal_is_told_with_what_it_means(
    code: grpc.StatusCode, details: str, kind: type[StoreError], says: str
) -> None:
    with refusing(code, details) as host:
        store = FirestoreStore("firestore://p/c", emulator_host=host, timeout=5)
        with pytest.raises(kind, match=says) as raised:
            await store.open()
        assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "roles/datastore.user"),
        (grpc.StatusCode.UNAUTHENTICATED, "refuses the credentials"),
    ],
)
async def test_a_refusal_of_a_store_that_is_open_condemns_nothing(code: grpc.StatusCode, says: str) -> None:
    """Rights that were taken away, or a key that has run out: jobs whose runs end meanwhile are not to blame."""
    with refusing(code, "no") as host:
        store = FirestoreStore("firestore://p/c", emulator_host=host, timeout=5)
        await store._server.connect()
        store._server.ready()
        try:
            held = replace(job("a"), fence=1, holder="token")
            calls = (
                store.settle([ended(held)]),
                store.add([job("b")]),
                store.claim(["default"], "t", 1, 30.0),
            )
            for call in calls:
                with pytest.raises(StoreUnavailable, match=says):
                    await call
        finally:
            await store.close()


async def test_a_settlement_waits_for_an_index_that_is_being_built(
    own_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(own_url) as store:
        await store.add([job("a")])
        [held] = await claim(store)
        query = store._server.query

        async def refused(_: object) -> None:
            raise SchemaError("it is being built")

        monkeypatch.setattr(store._server, "query", refused)
        settlement = replace(ended(held), unpark=("limit", 2))
        with pytest.raises(StoreUnavailable, match="it is being built"):
            await store.settle([settlement])
        monkeypatch.setattr(store._server, "query", query)
        assert await store.settle([settlement]) == ["done"]


async def test_a_missing_schema_is_said_where_none_may_be_made(own_url: str) -> None:
    with pytest.raises(SchemaError, match="create_schema=True"):
        await FirestoreStore.from_url(f"{own_url}&create_schema=false").open()
    async with opened(own_url):
        pass
    async with opened(f"{own_url}&create_schema=false") as store:
        assert await store.page(Filter(), 10) == []


async def test_a_newer_schema_is_refused(own_url: str) -> None:
    async with opened(own_url) as store:
        root = store._server.place.root
        found, _ = await store._server.get([root])
        changed = found[root].update_time
        at_us = changed.seconds * 1_000_000 + changed.nanos // 1000
        await store._server.commit([update(root, {"schema": 2}, at_us)])
    with pytest.raises(SchemaError, match="schema 2, this code 1: upgrade"):
        await FirestoreStore.from_url(own_url).open()


async def test_a_store_that_was_not_opened_says_so() -> None:
    with pytest.raises(StoreError, match="not open"):
        await FirestoreStore("firestore://p/c").get(["a"])


# ---- names ---------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_an_id_is_read_back_from_its_documents_name(id: str) -> None:
    name = Names("root").job(id)
    assert id_of(name) == id
    last = name.rpartition("/")[2]
    assert (name.count("/"), last in (".", "..")) == (2, False)


@given(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=6)] * 2)
def test_documents_stand_in_the_order_of_their_ids(one: str, other: str) -> None:
    names = Names("root")
    assert (names.job(one) < names.job(other)) == (one < other)


@given(*[st.text(st.sampled_from("a !./\0\u00e9"), max_size=3)] * 4)
def test_entries_of_different_keys_have_different_names(job: str, kind: str, job2: str, kind2: str) -> None:
    entries = [Entry(j, 1, k, NOW, NOW, b"") for j, k in ((job, kind), (job2, kind2))]
    first, second = map(Names("root").entry, entries)
    assert (first == second) == ((job, kind) == (job2, kind2))


# ---- costs ---------------------------------------------------------------------------------------------------------------


async def test_a_claim_reads_as_much_whatever_is_stored(own_url: str) -> None:
    costs = []
    for stored in (100, 2_000):
        async with opened(own_url.replace("unit-", f"unit-{stored}-")) as store:
            await store.add([job(f"later-{n:05}", NOW + 1_000 + n) for n in range(stored)])
            await claim(store, "first")
            await store.add([job(f"due-{n}") for n in range(10)])
            calls = Calls(store)
            assert len(await claim(store)) == 10
            costs.append((dict(calls.requests), calls.documents))
    assert costs[0] == costs[1]
    # Those that were taken, one that is planned next, and the namespace's own.
    assert costs[0] == ({"query": 2, "get": 1, "commit": 1}, 12)


async def test_an_idle_claim_is_one_query_that_reads_one_document(own_url: str) -> None:
    async with opened(own_url) as store:
        await store.add([job(f"{n:04}", NOW + 1_000 + n) for n in range(300)])
        await claim(store, "first")
        calls = Calls(store)
        claimed = await store.claim(["default", "other"], "second", 10, 30.0)
        claimed = await store.claim(["default", "other"], "third", 10, 30.0)
        calls.clear()
        claimed = await store.claim(["default", "other"], "fourth", 10, 30.0)
        assert (claimed.records, claimed.next_wake_at) == ([], NOW + 1_000)
        assert (dict(calls.requests), calls.documents) == ({"query": 1}, 1)


async def test_a_busy_claim_is_one_query_and_one_write(own_url: str) -> None:
    async with opened(own_url) as store:
        await store.add([job(f"{n:04}") for n in range(500)])
        await claim(store, "first")
        calls = Calls(store)
        assert [r.id for r in await claim(store, "second")] == [f"{n:04}" for n in range(100, 200)]
        assert (dict(calls.requests), calls.documents) == ({"query": 1, "get": 1, "commit": 1}, 102)


async def test_a_hundred_settlements_are_one_request(own_url: str) -> None:
    async with opened(own_url) as store:
        await store.add([job(f"{n:03}") for n in range(100)])
        held = await claim(store)
        calls = Calls(store)
        assert await store.settle([ended(r) for r in held]) == ["done"] * 100
        assert dict(calls.requests) == {"commit": 1}


async def test_what_a_clone_has_renewed_is_settled_without_a_read(own_url: str) -> None:
    async with opened(own_url) as store:
        await store.add([job("a"), job("b")])
        held = await claim(store)
        clone = store.clone()
        assert clone is not None
        async with opened(clone, None):
            renewal = await clone.renew([claim_of(r) for r in held], 300.0)
            assert renewal.versions == {"a": 1, "b": 1}
        calls = Calls(store)
        assert await store.settle([ended(r) for r in held]) == ["done", "done"]
        assert dict(calls.requests) == {"commit": 1}


async def test_what_was_updated_before_its_renewal_by_a_clone_is_settled_as_stale(own_url: str) -> None:
    async with opened(own_url) as store:
        await store.add([job("a")])
        [held] = await claim(store)
        updated = await store.update(
            Update(id="a", version=1, body=b"new", queue="default", priority=5, wake_at=NOW + 5, hold=None)
        )
        assert updated is not None
        clone = store.clone()
        assert clone is not None
        async with opened(clone, None):
            renewal = await clone.renew([claim_of(held)], 300.0)
            assert renewal.versions == {"a": 2}
        assert await store.settle([ended(held)]) == ["stale"]
        assert (await store.get(["a"]))["a"].body == b"new"


async def test_no_document_is_written_by_every_call(own_url: str) -> None:
    """Firestore takes one write a second to a document for long: claims and settlements touch their jobs and entries alone."""
    async with opened(own_url) as store:
        await store.add([job(f"{n:02}") for n in range(20)])
        calls = Calls(store)
        held = await claim(store)
        await store.renew([claim_of(r) for r in held], 300.0)
        await store.settle([ended(r) for r in held])
        assert await store.acquire(["lock"], "me", 30.0)
        names = Counter(calls.written)
        assert max(names.values()) == 3
        assert {name.split("/")[-2] for name in names} == {JOBS, LOG, "asyncsched-leases"}


async def test_every_query_has_an_index(own_url: str) -> None:
    async with opened(own_url) as store:
        calls = Calls(store)
        for number, priority in enumerate((9, 5, 1)):
            await store.add(
                [job(f"{priority}-{n}", queue=q, priority=priority) for n in range(5) for q in "pq"]
            )
            held = await claim(store, f"t{number}", 3, ["p"])
            await claim(store, f"u{number}", 3, ["p", "q"])
        await claim(store, "t0", 3, ["p"])
        await store.settle([replace(ended(held[0]), unpark=("k", 1))])
        where = Filter(queue="p", task="task", hold="")
        for filter in (Filter(), Filter(queue="p"), Filter(hold="x"), where, Filter(id_prefix="5")):
            await store.page(filter, 2)
        await store.runs()
        await store.runs("a", ["run", "lost"])
        await store.prune(5.0, 1, 10)
        made = json.loads(store.ddl())
        assert len(calls.queries) > 20
        for query in calls.queries:
            assert_covered(query, made)


def assert_covered(query: Any, made: dict[str, Any]) -> None:
    """Firestore joins indexes of one equality each that have the same order."""
    collection = query.from_[0].collection_id
    equal, ranged = set[str](), set[str]()
    pending = [query.where]
    while pending:
        each = pending.pop()
        kind = each.WhichOneof("filter_type")
        if kind == "composite_filter":
            pending += each.composite_filter.filters
        elif kind == "unary_filter":
            equal.add(each.unary_filter.field.field_path)
        elif kind == "field_filter":
            is_equality = each.field_filter.op in (5, 8)
            (equal if is_equality else ranged).add(each.field_filter.field.field_path)
    order = [
        (part.field.field_path, "DESCENDING" if part.direction == 2 else "ASCENDING")
        for part in query.order_by
    ]
    sorted_by = [part for part in order if part[0] != "__name__"]
    assert ranged - {"__name__"} <= {field for field, _ in sorted_by}
    exempt = {
        (each["fieldPath"], index["order"])
        for each in made["fieldOverrides"]
        if each["collectionGroup"] == collection
        for index in each["indexes"]
    }
    if not equal:
        assert set(sorted_by) <= exempt
    elif not sorted_by:
        assert {(field, "ASCENDING") for field in equal} <= exempt
    else:
        composite = [
            [(field["fieldPath"], field["order"]) for field in index["fields"]]
            for index in made["indexes"]
            if index["collectionGroup"] == collection
        ]
        assert all([(field, "ASCENDING"), *sorted_by] in composite for field in equal)


def test_the_index_definitions_name_each_field_once() -> None:
    made = json.loads(FirestoreStore("firestore://p/c").ddl())
    overridden = Counter((each["collectionGroup"], each["fieldPath"]) for each in made["fieldOverrides"])
    assert set(overridden.values()) == {1}
    assert len(made["indexes"]) <= 6


# ---- order in a backlog --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [["q"], ["q", "p"]])
async def test_a_backlog_is_taken_in_the_order_of_its_lanes(own_url: str, queues: list[str]) -> None:
    """Though the lanes above have jobs that are not due, and leases of what was taken before."""
    async with opened(own_url) as store:
        due = [
            job(f"{queue}{priority}-{n:02}", NOW - 50 + (n * 7 + priority) % 40, queue, priority)
            for queue in "pq"
            for priority in (8, 5, 2)
            for n in range(12)
        ]
        later = [job(f"later-{n:02}", NOW + 50 + n, "q", 9) for n in range(30)]
        await store.add([*due, *later])
        expected = sorted(
            (r for r in due if r.queue in queues),
            key=lambda r: (-r.priority, queues.index(r.queue), r.wake_at, r.id),
        )
        taken: list[str] = []
        for number in range(len(expected)):
            found = [r.id for r in await claim(store, f"token-{number}", 5, queues)]
            taken += found
            if not found:
                break
        assert taken == [r.id for r in expected]


async def test_an_urgent_job_goes_before_a_backlog_that_is_being_worked_off(own_url: str) -> None:
    async with opened(own_url) as store, opened(own_url) as other:
        await store.add([job(f"{n:02}", NOW - 9) for n in range(50)])
        assert len(await claim(store, "first", 10)) == 10
        await other.add([job("urgent", priority=6)])
        assert [r.id for r in await claim(store, "second", 2)] == ["urgent", "10"]


async def test_a_lease_that_ends_in_a_backlog_is_taken_over_within_a_second(own_url: str) -> None:
    now = NOW
    async with opened(own_url, lambda: now) as store:
        await store.add([job(f"{n:03}", NOW - 100 + n) for n in range(100)])
        [lost] = (await store.claim(["default"], "lost", 1, 5.0)).records
        assert len(await claim(store, "busy-1", 2)) == 2
        now = NOW + 5.0 + 1.1
        await store.add([job(f"new-{n:03}", NOW + 6) for n in range(100)])
        taken = await claim(store, "busy-2", 98)
        assert lost.id in {r.id for r in taken}


async def test_more_queues_than_one_query_may_name_are_claimed_together(own_url: str) -> None:
    async with opened(own_url) as store:
        queues = [f"q{n:02}" for n in range(40)]
        await store.add([job(f"job-{queue}-{n}", queue=queue) for queue in queues for n in range(2)])
        first = [r.id for r in await claim(store, "first", 30, queues)]
        assert first == [f"job-{queue}-{n}" for queue in queues[:15] for n in range(2)]
        assert len(await claim(store, "second", 100, queues)) == 50


async def test_claims_at_the_same_moment_share_what_is_due(own_url: str) -> None:
    async with opened(own_url) as one, opened(own_url) as two:
        await one.add([job(f"{n:03}") for n in range(60)])
        taken: list[str] = []
        for turn in range(20):
            answers = await asyncio.gather(claim(one, f"a{turn}", 20), claim(two, f"b{turn}", 20))
            taken += [r.id for records in answers for r in records]
            if len(taken) == 60:
                break
        assert sorted(taken) == [f"{n:03}" for n in range(60)]


# ---- settlements and others' writes --------------------------------------------------------------------------------------


async def test_a_batch_in_which_one_job_was_changed_is_settled_each_by_itself(own_url: str) -> None:
    async with opened(own_url) as store, opened(own_url) as other:
        await store.add([job(f"{n}") for n in range(6)])
        held = await claim(store)
        changed = Update(id="2", version=1, body=b"new", queue="default", priority=5, wake_at=None, hold=None)
        await other.update(changed)
        await other.update(replace(changed, id="3", revoke=True))
        await other.remove(["4"])
        answers = await store.settle([ended(r) for r in held])
        assert answers == ["done", "done", "stale", "lost", "gone", "done"]
        assert sorted(e.job_id for e in await store.runs()) == ["0", "1", "2", "4", "5"]


async def test_settlements_that_unpark_at_the_same_moment_make_each_job_due_once(own_url: str) -> None:
    async with opened(own_url) as one, opened(own_url) as two:
        await one.add([job("a"), job("b", queue="other")])
        parked = [replace(job(f"parked-{n}", NOW + 900), hold="k") for n in range(4)]
        await one.add(parked)
        [a], [b] = await claim(one), await claim(two, "t", 1, ["other"])
        endings = [replace(ended(r), unpark=("k", 1)) for r in (a, b)]
        answers = await asyncio.gather(one.settle(endings[:1]), two.settle(endings[1:]))
        assert [*answers] == [["done"], ["done"]]
        left = await one.page(Filter(hold="k"), 10)
        assert [r.id for r in left] == ["parked-2", "parked-3"]


class Between:
    """Does something once, after the first so many queries of a store."""

    def __init__(self, store: FirestoreStore, queries: int, act: Callable[[], Awaitable[object]]) -> None:
        self._query = store._server.query
        self._left = queries
        self._act = act
        store._server.query = self.query  # type: ignore[method-assign]  # what it does is seen from without only

    async def query(self, given: Any) -> Any:
        answer = await self._query(given)
        self._left -= 1
        if self._left == 0:
            await self._act()
        return answer


async def test_a_job_that_is_parked_anew_while_it_is_looked_for_is_no_fault_of_the_settlement(
    own_url: str,
) -> None:
    async with opened(own_url) as one, opened(own_url) as two:
        await one.add([job("a"), replace(job("held", NOW), hold="k"), replace(job("b", NOW + 5), hold="k")])
        a, _ = await claim(one)

        async def park_anew() -> None:
            await two.update(
                Update(id="b", version=1, body=b"", queue="default", priority=5, wake_at=NOW + 99, hold="k")
            )

        # The first page has one that is held and that one; so there is a second page.
        between = Between(one, 1, park_anew)
        assert await one.settle([replace(ended(a), unpark=("k", 2))]) == ["done"]
        assert between._left < 0
        b = (await one.get(["b"]))["b"]
        assert (b.hold, b.wake_at, b.version) == (None, NOW, 2)


async def test_a_job_that_moves_while_it_is_looked_for_is_claimed_once(own_url: str) -> None:
    async with opened(own_url) as one, opened(own_url) as two:
        # A claim that looks ahead leaves out what another one holds until then, and asks for what stands behind it.
        await one.add([job("1"), job("2"), *(job(f"due-{n}", NOW + 2 + n) for n in range(4))])
        assert [r.id for r in (await two.claim(["default"], "theirs", 10, 1.0)).records] == ["1", "2"]

        async def move() -> None:
            await two.update(
                Update(
                    id="due-0", version=1, body=b"", queue="default", priority=5, wake_at=NOW + 8, hold=None
                )
            )

        between = Between(one, 2, move)
        claimed = (await one.claim(["default"], "mine", 5, 30.0, 10.0)).records
        assert between._left < 0
        assert sorted(r.id for r in claimed) == [f"due-{n}" for n in range(4)]


async def test_a_log_entry_that_has_no_room_is_refused_with_its_size(own_url: str) -> None:
    async with opened(own_url) as store:
        await store.add([job("a")])
        [held] = await claim(store)
        large = Entry("a", held.fence, "run", NOW, NOW, b"x" * 1_000_001)
        with pytest.raises(StoreError, match="'a' has 1000001 bytes"):
            await store.settle([replace(ended(held), entries=(large,))])
        assert (await store.get(["a"]))["a"] == held


async def test_a_batch_larger_than_a_request_is_written_in_several(own_url: str) -> None:
    """Twelve mebibytes, of which a request takes ten."""
    async with opened(own_url) as store:
        large = [replace(job(f"{n:02}"), body=b"x" * 900_000) for n in range(14)]
        assert await store.add(large) == set()
        held = await claim(store)
        endings = [replace(ended(r, NOW + 60), cursor=b"y" * 90_000) for r in held]
        assert await store.settle(endings) == ["done"] * 14
        found = await store.get([r.id for r in large])
        assert {(len(r.body), len(r.cursor)) for r in found.values()} == {(900_000, 90_000)}


# ---- the log -------------------------------------------------------------------------------------------------------------


async def test_a_log_longer_than_one_look_is_pruned_to_the_newest_of_each_job(
    own_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_log, "_SWEEP", 4)
    async with opened(own_url) as store:
        # The higher the fence the older: by name the newest come first.
        entries = [
            Entry(id, 100 - n, "run", NOW, NOW - n, b"")
            for id in "abc"
            for n in range(3 if id == "b" else 11)
        ]
        ending = Settlement(id="none", fence=0, holder="", version=0)
        for start in range(0, len(entries), 5):
            await store.settle([replace(ending, entries=tuple(entries[start : start + 5]))])
        pruned = [await store.prune(None, 2, 100) for _ in range(20)]
        assert sum(pruned) == 9 + 1 + 9
        assert [(e.job_id, e.fence) for e in await store.runs()] == [
            (id, fence) for fence in (100, 99) for id in "cba"
        ]


async def test_leases_that_are_named_twice_are_extended_and_released_once(own_url: str) -> None:
    async with opened(own_url) as store:
        lease = (await store.acquire(["key"], "me", 30.0))["key"]
        assert list(await store.extend([lease, lease], 60.0)) == ["key"]
        await store.release([lease, lease])
        assert list(await store.acquire(["key"], "another", 30.0)) == ["key"]


async def test_whoever_waits_when_the_store_is_closed_is_told_so(own_url: str) -> None:
    async with proxied(own_url) as proxy:
        store = FirestoreStore.from_url(proxy.of(own_url))
        async with opened(store):
            proxy.stall()
            before = proxy.requests
            waiting = [asyncio.create_task(store.get(["job"])), asyncio.create_task(claim(store))]
            await eventually(lambda: proxy.requests > before, what="the requests")
        proxy.flow()
        told = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in told] == [StoreUnavailable, StoreUnavailable]
