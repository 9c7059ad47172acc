"""What is particular to the store on ZooKeeper; what every store promises is in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiozk
import msgspec
import pytest
from aiozk import protocol
from msgspec.structs import replace

from asyncsched.contract import Claim, Entry, Filter, JobStore, Record, Settlement, Update
from asyncsched.errors import DefinitionError, MissingExtra, SchemaError, StoreError, StoreUnavailable
from asyncsched.stores import store_from_url
from asyncsched.stores.zookeeper import ZooKeeperStore, _leases
from asyncsched.stores.zookeeper._names import key_of, leaf_of
from tests.servers.running import Servers
from tests.servers.server import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
MOVED = Update(id="", version=1, body=b"", queue="default", priority=5, wake_at=None, hold=None)
Still = tuple[ZooKeeperStore, list[float]]


def job(id: str, wake_at: float | None, queue: str = "default", body: bytes = b"body") -> Record:
    return Record(id, f"birth of {id}", queue, 5, "task", wake_at, None, body, b"cursor")


def ended(record: Record, wake_at: float | None = None, body: bytes = b"") -> Settlement:
    """The claim of *record* ends with one log entry; the job goes, or moves to *wake_at*."""
    return Settlement(
        id=record.id,
        fence=record.fence,
        holder=str(record.holder),
        version=record.version,
        wake_at=wake_at,
        delete=wake_at is None,
        entries=(Entry(record.id, record.fence, "run", 1.0, 2.0, body),),
    )


async def move(store: JobStore, id: str, version: int, wake_at: float | None, **more: Any) -> None:
    """Have the job of that version wake at another time."""
    update = replace(MOVED, id=id, version=version, wake_at=wake_at, **more)
    assert await store.update(update) is not None


async def claim(store: JobStore, token: str = "token", limit: int = 100) -> list[Record]:
    return (await store.claim(["default"], token, limit, 30.0)).records


@pytest.fixture
def url(stores: Sequence[str], servers: Servers) -> str:
    if "zookeeper" not in stores:
        pytest.skip("zookeeper was left out by --stores")
    return servers.url("zookeeper")


@pytest.fixture
def namespace() -> str:
    return f"u{uuid.uuid4().hex[:12]}"


@contextlib.asynccontextmanager
async def opened(url: str, **keywords: Any) -> AsyncIterator[ZooKeeperStore]:
    """The store, whose namespace is erased in the end."""
    store = ZooKeeperStore(url, **keywords)
    await store.open()
    try:
        yield store
    finally:
        await store.erase()
        await store.close()


@pytest.fixture
async def store(url: str, namespace: str) -> AsyncIterator[ZooKeeperStore]:
    async with opened(url, namespace=namespace) as store:
        yield store


@pytest.fixture
async def still(url: str, namespace: str) -> AsyncIterator[Still]:
    """A store whose clock stands still, and what sets it."""
    moment = [2_000_000_000.0]
    store = ZooKeeperStore(url, namespace=namespace)
    await store.open(now=lambda: moment[0])
    yield store, moment
    await store.erase()
    await store.close()


@contextlib.asynccontextmanager
async def client_of(url: str, **keywords: Any) -> AsyncIterator[aiozk.ZKClient]:
    client = aiozk.ZKClient(url.removeprefix("zk://"), **keywords)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def tree(store: ZooKeeperStore, *folders: str) -> list[str]:
    """All nodes below those folders of the namespace, without the folders of queues and times."""
    base, found = store._base(), []
    level = [f"{base}/{folder}" for folder in folders]
    while level:
        answers = await store._wire.ask(list(map(store._wire.children, level)))
        level = [
            f"{path}/{name}"
            for path, answer in zip(level, answers, strict=True)
            for name in getattr(answer, "children", ())
        ]
        found += level
    return [path for path in found if len(path.rpartition("/")[2]) > 6 and not path.endswith("/due/_default")]


# -- URLs and keywords -----------------------------------------------------------------------------------------------------


def test_a_url_names_servers_a_login_a_path_and_keywords() -> None:
    made = store_from_url(
        "zk://me:pass%3Aword@one:2182,two,[::1]:2183/apps/jobs?namespace=mail&timeout=3&session_timeout=5"
        "&create_schema=false"
    )
    assert isinstance(made, ZooKeeperStore)
    wire = made._wire
    assert wire._hosts == [("one", 2182), ("two", 2181), ("::1", 2183)]
    assert (wire._login, wire.timeout_s, wire._session_timeout_s) == (b"me:pass:word", 3.0, 5.0)
    assert (made._base(), made._create_schema) == ("/apps/jobs/mail", False)


def test_what_is_left_out_has_its_default() -> None:
    made = ZooKeeperStore("zk://localhost")
    assert (made._wire._hosts, made._base()) == ([("localhost", 2181)], "/asyncsched")
    assert (made._wire.timeout_s, made._wire._session_timeout_s) == (10.0, 10.0)


def test_the_base_path_may_stand_in_the_url_or_in_a_keyword() -> None:
    assert ZooKeeperStore("zk://h/a/b")._base() == ZooKeeperStore("zk://h", base_path="a/b/")._base()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("zk://", "no ZooKeeper URL"),
        ("zk:///path", "no ZooKeeper URL"),
        ("zk://host:port", "'host:port' is no server"),
        ("zk://host:99999", "'host:99999' is no server"),
        ("zk://one,,two", "'' is no server"),
        ("zk://user@host", "a user and a password"),
        ("zk://host/a/../b", "without . and .."),
        ("zk://host?timeout=soon", "a number is wanted"),
        ("zk://host?timeout=0", "timeout cannot be 0"),
        ("zk://host?session_timeout=-1", "session_timeout cannot be -1"),
        ("zk://host?namespace=a/b", "namespace cannot be 'a/b'"),
        ("zk://host?namespace=", "namespace cannot be ''"),
        ("zk://host?tls=true", "unknown keyword 'tls'"),
        ("zk://host/a?base_path=/b", "one of them is enough"),
    ],
)
def test_a_wrong_url_is_refused_with_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        ZooKeeperStore.from_url(url)


def test_a_store_takes_a_url_or_a_client() -> None:
    with pytest.raises(DefinitionError, match="takes a URL"):
        ZooKeeperStore()
    with pytest.raises(DefinitionError, match=r"takes an aiozk\.ZKClient; this is builtins\.str"):
        ZooKeeperStore(client="zk://host")  # type: ignore[arg-type]  # mypy is right: that is what is tested


async def test_a_password_is_never_shown() -> None:
    store = ZooKeeperStore(f"zk://me:hunter2@127.0.0.1:{free_port()}", timeout=1.0)
    with pytest.raises(StoreUnavailable) as refused:
        await store.open()
    assert "hunter2" not in str(refused.value)
    assert "me:***@" in str(refused.value)


def test_the_driver_is_asked_for_by_name_where_it_is_missing() -> None:
    asked = (
        "import sys; sys.modules['aiozk'] = None\n"
        "from asyncsched import store_from_url\n"
        "from asyncsched.errors import MissingExtra\n"
        "try: store_from_url('zk://host')\n"
        "except MissingExtra as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert 'pip install "asyncsched[zookeeper]"' in said
    assert issubclass(MissingExtra, Exception)


# -- open ------------------------------------------------------------------------------------------------------------------


async def test_open_says_which_servers_cannot_be_reached() -> None:
    port = free_port()
    with pytest.raises(StoreUnavailable, match=rf"127\.0\.0\.1:{port} cannot be reached"):
        await ZooKeeperStore(f"zk://127.0.0.1:{port}").open()


async def test_a_server_of_several_that_is_away_is_passed_over(url: str, namespace: str) -> None:
    both = url.replace("zk://", f"zk://127.0.0.1:{free_port()},")
    for _ in range(4):
        async with opened(both, namespace=namespace) as store:
            assert await store.page(Filter(), 10) == []


async def test_without_a_schema_open_says_how_to_make_one(url: str, namespace: str) -> None:
    store = ZooKeeperStore(url, namespace=namespace, create_schema=False)
    with pytest.raises(SchemaError, match=rf"no node /{namespace}/schema.*create_schema=True"):
        await store.open()
    async with opened(url, namespace=namespace):
        await store.open()
        await store.close()


async def test_a_newer_schema_is_refused_and_left_alone(url: str, store: ZooKeeperStore) -> None:
    node = store._ground.paths.schema
    await store._wire.ask_one(store._wire.set_data(node, msgspec.msgpack.encode(2)))
    with pytest.raises(SchemaError, match="has schema 2, this code 1: upgrade"):
        await ZooKeeperStore(url, namespace=store._namespace).open()
    assert msgspec.msgpack.decode((await store._wire.ask_one(store._wire.get(node))).data) == 2


async def test_a_node_of_somebody_else_is_not_taken_for_a_schema(url: str, store: ZooKeeperStore) -> None:
    await store._wire.ask_one(store._wire.set_data(store._ground.paths.schema, b"\xc1 not ours"))
    with pytest.raises(SchemaError, match="another's node"):
        await ZooKeeperStore(url, namespace=store._namespace).open()


async def test_what_a_login_has_made_is_shut_to_others(url: str, namespace: str) -> None:
    mine = url.replace("zk://", "zk://me:secret@")
    async with opened(mine, namespace=namespace) as store:
        now = await store.now()
        await store.add([job("a", now - 1)])
        for other in (url, url.replace("zk://", "zk://me:wrong@")):
            with pytest.raises(StoreError, match="does not allow") as refused:
                await ZooKeeperStore(other, namespace=namespace).open()
            assert not isinstance(refused.value, StoreUnavailable)
        async with contextlib.AsyncExitStack() as stack:
            again = ZooKeeperStore(mine, namespace=namespace)
            await again.open()
            stack.push_async_callback(again.close)
            assert [r.id for r in await claim(again)] == ["a"]


async def test_nodes_are_made_with_the_acl_that_is_given(url: str, namespace: str) -> None:
    open_to_all = [aiozk.ACL.make("world", "anyone", True, True, True, True, True)]
    async with (
        opened(url.replace("zk://", "zk://me:secret@"), namespace=namespace, acl=open_to_all),
        opened(url, namespace=namespace) as other,
    ):
        assert await other.page(Filter(), 10) == []


async def test_a_folder_that_nothing_may_be_made_in_is_named_as_a_missing_right(
    url: str, namespace: str
) -> None:
    async with client_of(url) as client:
        await client.create(f"/{namespace}", acl=[protocol.WORLD_READABLE])
        with pytest.raises(StoreError, match=r"does not allow.*NoAuth.*grant it cdrw"):
            await ZooKeeperStore(url, base_path=namespace).open()


async def test_a_store_that_is_not_open_says_so(url: str) -> None:
    with pytest.raises(StoreError, match="is not open: await its open"):
        await ZooKeeperStore(url).get(["a"])


async def test_who_waits_for_a_connection_when_the_store_is_closed_is_told_so(
    url: str, namespace: str
) -> None:
    store = ZooKeeperStore(url, namespace=namespace)
    await store.open()
    await store.erase()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store._wire._hosts = [silent.getsockname()]
        assert store._wire._session is not None
        store._wire._session.end()
        waiting = asyncio.create_task(store.get(["a"]))
        await eventually(lambda: store._wire._connecting is not None)
        await store.close()
        with pytest.raises(StoreUnavailable, match="was closed meanwhile"):
            await waiting


async def test_the_printed_nodes_are_those_that_are_made(store: ZooKeeperStore) -> None:
    base = store._base()
    made = (await store._wire.ask_one(store._wire.children(base))).children
    said = {line.removeprefix(f"-- {base}/").partition(" ")[0] for line in store.ddl().splitlines()[1:]}
    assert {name.partition("/")[0] for name in said} == set(made)


# -- a client of the user's ------------------------------------------------------------------------------------------------


async def test_a_client_of_the_users_serves_and_is_left_open(url: str, namespace: str) -> None:
    async with client_of(url) as client:
        await client.create(f"/{namespace}")
        store = ZooKeeperStore(client=client, namespace=namespace, base_path=namespace)
        await store.open()
        await store.add([job("a", await store.now() - 1)])
        [held] = await claim(store)
        assert await store.settle([ended(held)]) == ["done"]
        assert store.clone() is None
        await store.close()
        assert await client.exists(f"/{namespace}/{namespace}/schema")


async def test_the_root_of_a_client_of_the_users_is_kept(url: str, namespace: str) -> None:
    async with client_of(url, chroot=f"/{namespace}") as client:
        store = ZooKeeperStore(client=client)
        await store.open()
        await store.close()
        assert await client.exists("/asyncsched/schema")


async def test_a_client_of_the_users_hears_hints(url: str, store: ZooKeeperStore) -> None:
    async with client_of(url) as client:
        other = ZooKeeperStore(client=client, namespace=store._namespace)
        await other.open()
        heard: list[float | None] = []
        other.on_hint(heard.append)
        await eventually(lambda: heard)  # It listens by now.
        for at in (5.0, 4.0):
            heard.clear()
            await store.add([job(f"{at}", at)])
            await eventually(lambda at=at: at in heard)
        await other.close()


async def test_who_listens_by_a_client_of_the_users_notices_the_end_of_its_connection(
    url: str, namespace: str
) -> None:
    """And has the driver connect anew, which by itself would notice with its next heartbeat."""
    async with client_of(url) as client, opened(url, namespace=namespace) as other:
        store = ZooKeeperStore(client=client, namespace=namespace)
        await store.open()
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: heard)
        before = client.session.conn
        before.writer.transport.abort()
        heard.clear()
        await eventually(lambda: client.session.conn is not before and None in heard)
        await other.add([job("a", 5.0)])
        await eventually(lambda: 5.0 in heard)
        await store.close()


async def test_a_client_that_was_not_started_is_refused(url: str) -> None:
    client = aiozk.ZKClient(url.removeprefix("zk://"))
    with pytest.raises(StoreError, match="was not started"):
        await ZooKeeperStore(client=client).open()


async def test_a_client_of_the_users_that_is_suspended_is_away(url: str, namespace: str) -> None:
    async with client_of(url) as client:
        store = ZooKeeperStore(client=client, namespace=namespace)
        await store.open()
        client.session.conn.writer.transport.abort()
        with pytest.raises(StoreUnavailable):
            await store.get(["a"])
        # The driver connects anew by itself.
        await eventually(lambda: client.session.state == "connected")
        assert await store.get(["a"]) == {}
        await store.erase()
        await store.close()


# -- what it costs, and what it leaves behind ------------------------------------------------------------------------------


async def test_jobs_that_have_run_leave_nothing_but_their_log(store: ZooKeeperStore) -> None:
    now = await store.now()
    await store.add([job(f"{n}", now - 1) for n in range(250)])
    for n in range(3):
        held = await claim(store, f"token {n}")
        await store.renew([Claim(r.id, r.fence, str(r.holder)) for r in held], 60.0)
        assert set(await store.settle([ended(record) for record in held])) == {"done"}
    assert await claim(store, "last") == []
    assert await tree(store, "jobs", "due", "claims", "never", "holds", "locks") == []
    assert len(await store.runs(limit=1000)) == 250


async def test_a_turn_asks_for_no_more_however_much_is_stored(still: Still) -> None:
    # The clock stands still: a turn asks for other nodes once a leaf of 18 minutes is over.
    store, [now] = still
    await store.add([job("now", now - 1)])
    costs = []
    for stored in (100, 3_000):
        await store.add([job(f"later {n}", now + HOUR_S + n) for n in range(stored)])
        await claim(store, f"warm {stored}")
        [record] = (await store.get(["now"])).values()
        await store.settle([ended(record, now - 1)])
        before = dict(store._wire.sent)
        for n in range(10):
            [held] = await claim(store, f"{stored} {n}")
            await store.settle([ended(held, now - 1)])
        costs.append({name: count - before.get(name, 0) for name, count in store._wire.sent.items()})
    few, many = costs
    assert many == few
    # Two transactions; and in between the heads of the lanes, and the sheet that is due.
    assert many["TransactionRequest"] == 20
    assert sum(many.values()) - many["operations"] <= 200


async def test_jobs_that_come_one_by_one_are_not_listed_one_by_one_for_ever(still: Still) -> None:
    store, [now] = still
    await asyncio.gather(*(store.add([job(f"{n:03}", now + HOUR_S + n / 100)]) for n in range(600)))
    assert len(await tree(store, "due")) == 600
    for n in range(6):
        assert await claim(store, f"token {n}") == []
    assert len(await tree(store, "due")) <= 256
    page = await store.page(Filter(), 1000)
    assert [r.id for r in page] == [f"{n:03}" for n in range(600)]
    taken = [
        r for n in range(6) for r in (await store.claim(["default"], f"{n}", 100, 30, 2 * HOUR_S)).records
    ]
    assert [r.id for r in taken] == [f"{n:03}" for n in range(600)]


async def test_a_record_that_was_moved_many_times_is_claimed_at_its_last_time(store: ZooKeeperStore) -> None:
    now = await store.now()
    await store.add([job("a", now + HOUR_S), job("b", now - 5)])
    for n in range(30):
        await move(store, "a", n + 1, now - 40 + n, body=b"%d" % n)
    taken = await claim(store)
    assert [(r.id, r.body) for r in taken] == [("a", b"29"), ("b", b"body")]
    assert await store.get(["a", "b"]) == {r.id: r for r in taken}


async def test_pages_show_what_was_paused_or_resumed_once_and_in_its_place(store: ZooKeeperStore) -> None:
    now = await store.now()
    await store.add([job(f"{n}", None if n % 2 else now + HOUR_S + n) for n in range(6)])
    await move(store, "2", 1, None)
    await move(store, "3", 1, now + HOUR_S + 3)
    await move(store, "4", 1, None)
    await move(store, "4", 2, now + HOUR_S + 4)
    order = ["0", "3", "4", "1", "2", "5"]
    assert [r.id for r in await store.page(Filter(), 10)] == order
    paged: list[Record] = []
    for _ in order:
        paged += await store.page(Filter(), 1, paged[-1] if paged else None)
    assert [r.id for r in paged] == order
    assert await store.page(Filter(), 1, paged[-1]) == []


async def test_a_large_record_is_not_written_anew_with_each_renewal(store: ZooKeeperStore) -> None:
    now = await store.now()
    await store.add([job("a", now - 1, body=b"x" * 400_000)])
    [held] = await claim(store)
    folder = store._ground.paths.job("a")
    before = (await store._wire.ask_one(store._wire.get(folder))).stat.last_modified_zxid
    await store.renew([Claim(held.id, held.fence, str(held.holder))], 60.0)
    after = await store._wire.ask_one(store._wire.get(folder))
    assert (after.stat.last_modified_zxid, len(after.data) > 400_000) == (before, True)
    assert (await store.get(["a"]))["a"].body == held.body


async def test_what_is_due_in_many_large_sheets_is_claimed_all_the_same(store: ZooKeeperStore) -> None:
    """Each claim shrinks all of them, by more than a server takes in one request."""
    now = await store.now()
    for n in range(44):
        await store.add([job(f"{m}-{n:02}", now - 600 + m, body=b"x" * 900) for m in range(30)])
    for m in range(2):
        taken = await claim(store, f"token {m}", 44)
        assert [r.id for r in taken] == [f"{m}-{n:02}" for n in range(44)]
    assert set(await store.settle([ended(record) for record in taken])) == {"done"}
    assert [r.id for r in await claim(store, "last", 1)] == ["2-00"]


async def test_small_sheets_that_are_large_together_are_joined(store: ZooKeeperStore) -> None:
    later = await store.now() + HOUR_S
    ids = sorted(f"{n:03}-{m}" for n in range(260) for m in range(10))
    added = [[job(f"{n:03}-{m}", later, body=b"x" * 900) for m in range(10)] for n in range(260)]
    await asyncio.gather(*map(store.add, added))
    for n in range(4):
        assert await claim(store, f"token {n}") == []
    assert len(await tree(store, "due")) < 256
    assert [r.id for r in await store.page(Filter(), 3_000)] == ids


async def test_a_job_that_wakes_at_the_very_end_of_its_lease_is_not_lost(still: Still) -> None:
    store, moment = still
    await store.add([job("a", moment[0])])
    [held] = await claim(store, "first")
    assert await store.settle([ended(held, held.wake_at)]) == ["done"]
    moment[0] += 31
    assert [r.id for r in await claim(store, "second")] == ["a"]
    assert [r.id for r in await claim(store, "second")] == ["a"]


async def test_what_was_held_back_for_a_while_leaves_nothing_behind(store: ZooKeeperStore) -> None:
    now = await store.now()
    await store.add([job("a", now + HOUR_S), job("stays", now + HOUR_S)])

    await move(store, "stays", 1, None, hold="off")
    for version in range(1, 40, 2):
        await move(store, "a", version, None, hold="off")
        await move(store, "a", version + 1, now + HOUR_S, hold="later")
    await store.remove(["a"])
    assert len(await tree(store, "never", "holds")) == 21 + 41
    for _ in range(6):
        await store.prune(1.0, 1, 100)
    assert len(await tree(store, "never", "holds")) == 2
    listed = await store._wire.ask_one(store._wire.children(store._ground.paths.holds))
    assert listed.children == ["_off"]
    assert [r.id for r in await store.page(Filter(hold="off"), 10)] == ["stays"]


async def test_a_line_is_moved_on_at_the_same_cost_however_long_it_has_been_there(still: Still) -> None:
    store, moment = still
    await store.add([job("runs", moment[0]), job("waits", moment[0])])
    asked = []
    for n in range(40):
        runs, waits = await claim(store, f"token {n}")
        await store.settle([replace(ended(waits, moment[0] + HOUR_S), hold="limit")])
        before = store._wire.sent["GetChildrenRequest"]
        moved = replace(ended(runs, moment[0] + HOUR_S / 2), unpark=("limit", 2))
        assert await store.settle([moved]) == ["done"]
        asked.append(store._wire.sent["GetChildrenRequest"] - before)
        moment[0] += HOUR_S / 2
    assert max(asked) <= 8


async def test_jobs_that_were_removed_before_their_time_hold_no_claim_up(still: Still) -> None:
    store, [now] = still
    ids = [f"{n:03}" for n in range(300)]
    await store.add([job(id, now + HOUR_S + n) for n, id in enumerate(ids)])
    await store.add([job("stays", now + 2 * HOUR_S)])
    await store.remove(ids)
    woken = []
    for n in range(6):
        before = store._wire.sent["GetDataRequest"]
        woken.append((await store.claim(["default"], f"token {n}", 100, 30.0)).next_wake_at)
        assert store._wire.sent["GetDataRequest"] - before <= 75
    assert woken[0] == pytest.approx(now + HOUR_S + 64)
    assert woken[-1] == pytest.approx(now + 2 * HOUR_S)


async def test_pruning_many_jobs_goes_through_the_log_once(store: ZooKeeperStore) -> None:
    now = await store.now()
    await store.add([job(f"{n}", now - 1) for n in range(40)])
    for n in range(4):
        held = await claim(store, f"token {n}")
        assert set(await store.settle([ended(record, now - 1) for record in held])) == {"done"}
    before = store._wire.sent["TransactionRequest"]
    assert await store.prune(None, 3, 500) == 40
    assert store._wire.sent["TransactionRequest"] - before <= 6
    assert len(await store.runs(limit=1000)) == 120
    assert await store.prune(None, 3, 500) == 0
    assert sum("/times/" in path for path in await tree(store, "times")) <= 6


async def test_an_end_that_no_request_can_hold_is_refused_with_its_size(store: ZooKeeperStore) -> None:
    now = await store.now()
    await store.add([job("a", now - 1)])
    [held] = await claim(store)
    with pytest.raises(StoreError, match=r"end of job 'a' is too large.*1000000 is the limit") as refused:
        await store.settle([ended(held, body=b"x" * 1_100_000)])
    assert not isinstance(refused.value, StoreUnavailable)
    assert await store.settle([ended(held, body=b"x" * 400_000)]) == ["done"]


async def test_an_idle_session_is_kept_alive(url: str, namespace: str) -> None:
    async with opened(url, namespace=namespace, session_timeout=1.0) as store:
        await asyncio.sleep(3.0)  # Three times as long as the server waits to hear of a client.
        assert await store.get(["a"]) == {}
        assert store._wire.connections == 1


async def test_the_clock_is_the_servers_and_never_ahead_of_it(store: ZooKeeperStore) -> None:
    """Both run on this machine, so its clock tells what the server's is."""
    behind = []
    for _ in range(20):
        now = await store.now()
        behind.append(time.time() - now)
    assert min(behind) >= 0
    assert max(behind) < 0.1


async def test_a_machine_that_has_slept_asks_for_the_time_with_its_next_connection(
    store: ZooKeeperStore,
) -> None:
    """Its monotonic clock stood still, and the server has ended its session meanwhile."""
    await store.add([job("a", await store.now() - 1)])
    clock, session = store._ground.clock, store._wire._session
    assert session is not None
    clock._offset -= HOUR_S
    clock._upper -= HOUR_S
    session.end()
    assert [r.id for r in await claim(store)] == ["a"]


async def test_a_child_of_two_is_there_though_the_claim_of_one_of_them_was_lost(
    store: ZooKeeperStore,
) -> None:
    now = await store.now()
    await store.add([job(f"{n:02}", now - 1) for n in range(60)])
    # Together they are more than one transaction holds, and the first knows nothing of its loss.
    held = [replace(ended(r, body=b"x" * 9_000), spawn=(job("child", None),)) for r in await claim(store)]
    other = store.clone()
    assert other is not None
    await other.open()
    await move(other, "00", 1, None, revoke=True)
    await other.close()
    assert await store.settle([held[0], *(replace(s, spawn=()) for s in held[1:-1]), held[-1]]) == [
        "lost",
        *["done"] * 59,
    ]
    assert (await store.get(["child"])).keys() == {"child"}


# -- many at one head ------------------------------------------------------------------------------------------------------


async def test_clients_that_meet_at_one_head_share_it(url: str, namespace: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(url, namespace=namespace)) for _ in range(4)]
        now = await stores[0].now()
        await stores[0].add([job(f"{n:04}", now - 1) for n in range(2_000)])
        taken: list[str] = []

        async def drain(number: int) -> None:
            turn = 0
            while len(taken) < 2_000:
                turn += 1
                taken.extend(r.id for r in await claim(stores[number], f"{number} {turn}", 50))

        async with asyncio.timeout(60):
            await asyncio.gather(*map(drain, range(4)))
        assert sorted(taken) == [f"{n:04}" for n in range(2_000)]


async def test_a_claim_that_is_repeated_after_its_leases_have_ended_may_be_repeated_again(
    still: Still,
) -> None:
    store, moment = still
    await store.add([job(f"{n:03}", moment[0]) for n in range(300)])
    assert len(await claim(store)) == 100
    moment[0] += 31
    again = await claim(store)
    assert len(again) == 100
    assert await claim(store) == again


async def test_the_claim_lock_of_a_client_that_died_with_it_holds_nobody_up_for_long(
    store: ZooKeeperStore,
) -> None:
    now = await store.now()
    await store.add([job("a", now - 1)])
    held = msgspec.msgpack.encode(("another", now + HOUR_S))
    await store._wire.ask_one(store._wire.create(store._ground.paths.lock("default"), held))
    began = time.monotonic()
    assert [r.id for r in await claim(store)] == ["a"]
    assert time.monotonic() - began < 15.0


async def test_the_nodes_of_claims_and_leases_that_are_long_over_are_tidied_up(still: Still) -> None:
    store, moment = still
    await store.add([job("a", moment[0])])
    await claim(store)
    await store.release(list((await store.acquire(["lock"], "me", 30.0)).values()))
    await store.prune(1.0, 1, 100)
    assert len(await tree(store, "claims")) == 1
    moment[0] += 2 * HOUR_S
    await store.prune(1.0, 1, 100)
    names = (await store._wire.ask_one(store._wire.children(store._ground.paths.leases))).children
    assert (await tree(store, "claims"), names) == ([], [])


async def test_tidying_reaches_all_of_them_though_many_are_in_use(
    still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_leases, "_TIDIED", 2)
    store, moment = still
    await store.release(list((await store.acquire([f"old {n}" for n in range(8)], "me", 30.0)).values()))
    moment[0] += 2 * HOUR_S
    in_use = [f"in use {n}" for n in range(8)]
    await store.acquire(in_use, "me", HOUR_S)
    for _ in range(100):
        await store.prune(1.0, 1, 100)
    listed = await store._wire.ask_one(store._wire.children(store._ground.paths.leases))
    assert sorted(listed.children) == [f"_{name}" for name in in_use]


async def test_a_cancellation_while_it_closes_is_not_swallowed_and_leaves_nothing_open(
    url: str, namespace: str
) -> None:
    store = ZooKeeperStore(url, namespace=namespace)
    await store.open()
    store.on_hint(lambda _: None)
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    assert closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(StoreError, match="not open"):
        await store.get(["a"])


async def test_what_a_refused_part_of_a_call_would_have_let_go_stays_in_its_line(
    store: ZooKeeperStore,
) -> None:
    now = await store.now()
    await store.add([job(f"run {n:02}", now - 1.0) for n in range(60)])
    await store.add([replace(job(f"parked {n:03}", None), hold="limit") for n in range(120)])
    held = sorted(await claim(store), key=lambda record: record.id)
    other = store.clone()
    assert other is not None
    await other.open()
    # One of the last is refused, and with it all that stand in its transaction.
    await move(other, held[-1].id, 1, None)
    await other.close()
    ends = [replace(ended(record), unpark=("limit", 2)) for record in held]
    assert await store.settle(ends) == [*["done"] * 59, "stale"]
    assert await store.page(Filter(hold="limit"), 200) == []


async def test_a_job_that_is_claimed_again_before_a_call_of_many_is_over_is_not_lost(
    still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = still
    later = now[0] + 1e6
    await store.add([job("to be removed", later)])
    await store.remove(["to be removed"])
    await store.add([job(f"job {n:03}", now[0]) for n in range(100)])
    held = sorted(await claim(store), key=lambda record: record.id)
    # The folder of that time, which is known here, is tidied away by another.
    await store._erase_below(f"{store._ground.paths.lane('default', 5)}/{leaf_of(key_of(later))}")
    folders, is_waiting, is_free = store._ground.folders, asyncio.Event(), asyncio.Event()
    ensure, calls = folders.ensure, [0]

    async def late(leaves: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            is_waiting.set()
            await is_free.wait()
        await ensure(leaves)

    monkeypatch.setattr(folders, "ensure", late)
    moves = {held[0].id: now[0], held[-1].id: later}
    many = asyncio.create_task(store.settle([ended(record, moves.get(record.id)) for record in held]))
    await eventually(is_waiting.is_set)
    monkeypatch.setattr(folders, "ensure", ensure)
    assert [record.id for record in await claim(store, "second")] == [held[0].id]
    is_free.set()
    assert await many == ["done"] * 100
    # Whatever is sent next takes with it what is of no more use. Then this instance dies.
    await store.get(["any"])
    now[0] += 60.0
    assert [record.id for record in await claim(store, "third")] == [held[0].id]


async def test_a_connection_that_is_reset_at_once_makes_the_store_unavailable(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reset(self: asyncio.StreamWriter, name: str, default: object = None) -> None:
        """There is no peer any more."""

    store = ZooKeeperStore(url)
    monkeypatch.setattr(asyncio.Transport, "get_extra_info", reset)
    with pytest.raises(StoreUnavailable):
        await store.open()
