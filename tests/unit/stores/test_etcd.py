"""What is particular to the store on etcd; what every store promises is in tests/contract."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aetcd
import pytest
from aetcd import rpc
from msgspec.structs import replace

from asyncsched.clock import uptime
from asyncsched.contract import Claim, Entry, Filter, Record, Settlement, Update
from asyncsched.errors import DefinitionError, MissingExtra, SchemaError, StoreError, StoreUnavailable
from asyncsched.stores import etcd as etcd_room
from asyncsched.stores import store_from_url
from asyncsched.stores.etcd import EtcdStore
from asyncsched.stores.etcd._clock import AgreedClock
from asyncsched.stores.etcd._line import Line
from tests.servers.etcd import EtcdServer
from tests.servers.running import Servers
from tests.servers.server import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0


@pytest.fixture
def url(stores: Sequence[str], servers: Servers) -> str:
    if "etcd" not in stores:
        pytest.skip("etcd was left out by --stores")
    return servers.url("etcd")


@pytest.fixture
async def store(url: str) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(url, namespace=uuid.uuid4().hex)
    await store.open(now=lambda: NOW)
    yield store
    await store.erase()
    await store.close()


@pytest.fixture
async def pair(store: EtcdStore) -> AsyncIterator[tuple[EtcdStore, EtcdStore]]:
    """Two instances."""
    other = store.clone()
    assert other is not None
    await other.open()
    yield store, other
    await other.close()


@pytest.fixture(scope="module")
def guarded(stores: Sequence[str]) -> Iterator[EtcdServer]:
    """A server that asks for passwords: root's, and that of a user who may do all with keys that begin with ``mine/``."""
    if "etcd" not in stores:
        pytest.skip("etcd was left out by --stores")
    server = EtcdServer(None, "--auth-token-ttl", "1")
    try:
        server.start()
        server.ask_for_passwords("secret", jobs="mine/")
        yield server
    finally:
        server.remove()


def job(
    id: str, wake_at: float | None = NOW, queue: str = "default", hold: str | None = None, **more: Any
) -> Record:
    return Record(id, "birth", queue, 5, "task", wake_at, hold, b"body", b"cursor", **more)


def changed_from(
    id: str, version: int, wake_at: float | None, queue: str = "default", hold: str | None = None
) -> Update:
    """Another body for the job of that version."""
    return Update(id=id, version=version, body=b"new", queue=queue, priority=5, wake_at=wake_at, hold=hold)


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


async def claim(store: EtcdStore, token: str = "token", limit: int = 100) -> list[Record]:
    return (await store.claim(["default"], token, limit, 30.0)).records


def host_of(url: str) -> str:
    return url.removeprefix("etcd://")


class Counted:
    """Counts what one store asks of its server: requests, and the keys that the server counts for it."""

    def __init__(self, store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = self.keys = 0
        ask, line = Line.ask, store._line

        async def counted(self_: Line, method: Any, request: Any) -> Any:
            answer = await ask(self_, method, request)
            if self_ is line:
                self.requests += 1
                found = [answer] if isinstance(answer, rpc.RangeResponse) else []
                found += [part.response_range for part in getattr(answer, "responses", ())]
                self.keys += sum(part.count for part in found)
            return answer

        monkeypatch.setattr(Line, "ask", counted)


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "words"),
        [
            ("etcd://", "write etcd://host:2379"),
            ("http://host:2379", "is no etcd URL"),
            ("etcd://host:port", "'host:port' is no endpoint"),
            ("etcd://host:1,", "'' is no endpoint"),
            ("etcd://user@host", "names a user without a password"),
            ("etcd://host?spread=true", "unknown keyword 'spread'"),
            ("etcd://host?timeout=soon", "timeout cannot be 'soon'"),
            ("etcd://host?timeout=0", "timeout cannot be 0.0"),
            ("etcd://host?dial_timeout=-1", "dial_timeout cannot be -1.0"),
            ("etcd://host?namespace=", "namespace cannot be ''"),
            ("etcd://host/a?key_prefix=b", "say it twice"),
            ("etcd://host?username=me", "username= and password= belong together"),
            ("etcd://host?cert=/none/cert.pem", "cert and key together"),
            ("etcd://host?ca=/none/ca.pem", "ca of tls cannot be read from '/none/ca.pem'"),
        ],
    )
    def test_an_address_that_cannot_work_is_refused_with_the_reason(self, address: str, words: str) -> None:
        with pytest.raises(DefinitionError) as refused:
            EtcdStore.from_url(address)
        assert words in str(refused.value)

    def test_no_message_about_an_address_has_its_password(self) -> None:
        with pytest.raises(DefinitionError) as refused:
            store_from_url("etcd://me:hushhush@host:port?timeout=1")
        assert "hushhush" not in str(refused.value)
        assert "hushhush" not in EtcdStore("etcd://me:hushhush@host")._line.name

    def test_a_store_has_one_way_to_its_server(self) -> None:
        for wrong in (
            {},
            {"url": "etcd://a", "endpoints": ["b"]},
            {"client": aetcd.Client(), "endpoints": ["b"]},
        ):
            with pytest.raises(DefinitionError, match="takes a URL, endpoints= or client="):
                EtcdStore(**wrong)  # type: ignore[arg-type]  # whatever a test gives
        with pytest.raises(DefinitionError, match=r"client= takes an aetcd\.Client"):
            EtcdStore(client=object())  # type: ignore[arg-type]  # mypy is right: that is what is tested
        with pytest.raises(DefinitionError, match="client= is used as it is"):
            EtcdStore(client=aetcd.Client(), username="me", password="secret")

    @pytest.mark.parametrize(
        ("given", "endpoints"),
        [
            ({"url": "etcd://a,b:1,[::1],[::1]:7"}, ("a:2379", "b:1", "[::1]:2379", "[::1]:7")),
            ({"endpoints": ["a", "b:1"]}, ("a:2379", "b:1")),
        ],
    )
    def test_a_port_that_is_left_out_is_the_usual_one(self, given: Any, endpoints: tuple[str, ...]) -> None:
        assert EtcdStore(**given)._line._endpoints == endpoints

    @pytest.mark.parametrize(
        ("given", "prefix"),
        [
            ({"url": "etcd://a"}, b"asyncsched/"),
            ({"url": "etcd://a/apps/"}, b"/apps/asyncsched/"),
            ({"url": "etcd://a", "key_prefix": "apps"}, b"apps/asyncsched/"),
            ({"endpoints": ["a"], "namespace": "a/b"}, b"a%2Fb/"),
        ],
    )
    def test_all_keys_begin_with_prefix_and_namespace(self, given: Any, prefix: bytes) -> None:
        assert EtcdStore(**given)._keys.prefix == prefix

    def test_the_driver_is_asked_for_by_the_name_of_its_extra(self) -> None:
        spec = importlib.util.find_spec(etcd_room.__name__)
        assert spec is not None
        code = f"import sys; sys.modules['aetcd'] = None; import {etcd_room.__name__}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert MissingExtra.__name__ in done.stderr
        assert 'pip install "asyncsched[etcd]"' in done.stderr


class TestOpening:
    async def test_a_server_that_is_not_there_is_named(self) -> None:
        port = free_port()
        store = EtcdStore(f"etcd://127.0.0.1:{port}", dial_timeout=0.5)
        with pytest.raises(StoreUnavailable, match=rf"127\.0\.0\.1:{port} cannot be reached within 0\.5 s"):
            await store.open()
        await store.close()

    async def test_of_several_members_one_that_answers_is_enough(self, url: str) -> None:
        dead = f"127.0.0.1:{free_port()}"
        store = EtcdStore(endpoints=[dead, host_of(url)], namespace=uuid.uuid4().hex, dial_timeout=0.5)
        await store.open()
        assert await store.page(Filter(), 1) == []
        await store.erase()
        await store.close()

    async def test_a_schema_that_is_missing_is_not_made_where_that_is_unwanted(self, url: str) -> None:
        namespace = uuid.uuid4().hex
        store = EtcdStore(url, namespace=namespace, create_schema=False)
        with pytest.raises(SchemaError, match=f"'{namespace}' on .* has no schema: .*create_schema=True"):
            await store.open()
        other = EtcdStore(url, namespace=namespace)
        await other.open()
        await store.open()
        await other.erase()
        await other.close()
        await store.close()

    async def test_a_newer_schema_is_refused(self, store: EtcdStore, url: str) -> None:
        async with aetcd.Client(port=int(url.rpartition(":")[2])) as client:
            await client.put(store._keys.meta, b"99")
        other = store.clone()
        assert other is not None
        with pytest.raises(SchemaError, match=r"has schema 99, this code 1: upgrade asyncsched"):
            await other.open()

    async def test_a_store_that_is_not_open_says_so(self, url: str) -> None:
        with pytest.raises(StoreError, match="is not open: await its open"):
            await EtcdStore(url).get(["a"])

    async def test_a_server_that_speaks_no_tls_is_not_spoken_to_without(self, url: str) -> None:
        store = EtcdStore(url, tls=True, dial_timeout=0.5)
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await store.open()
        await store.close()

    async def test_jobs_are_kept_behind_tls(self, stores: Sequence[str], tmp_path: Path) -> None:
        if "etcd" not in stores:
            pytest.skip("etcd was left out by --stores")
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        make = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        make += [
            "-keyout",
            str(key),
            "-out",
            str(cert),
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ]
        await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True)
        for path in (cert, key):
            path.chmod(0o644)
        for folder in (tmp_path, *tmp_path.parents):
            if folder != Path("/") and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o011)
        server = EtcdServer(None, "--cert-file", str(cert), "--key-file", str(key), scheme="https")
        try:
            server.start()
            store = store_from_url(f"{server.url}?ca={cert}")
            await store.open(now=lambda: NOW)
            await store.add([job("a")])
            assert (await store.get(["a"]))["a"].body == b"body"
            await store.close()
            plain = EtcdStore(server.url, dial_timeout=0.5)
            with pytest.raises(StoreUnavailable):
                await plain.open()
            await plain.close()
        finally:
            server.remove()

    async def test_many_open_a_namespace_together(self, url: str) -> None:
        namespace = uuid.uuid4().hex
        stores = [EtcdStore(url, namespace=namespace) for _ in range(8)]
        await asyncio.gather(*(store.open() for store in stores))
        times = await asyncio.gather(*(store.now() for store in stores))
        assert max(times) - min(times) < 5
        await stores[0].erase()
        await asyncio.gather(*(store.close() for store in stores))

    async def test_ddl_tells_the_keys(self) -> None:
        told = EtcdStore("etcd://host/apps", namespace="ours").ddl()
        assert "# /apps/ours/job/ID" in told
        assert all(line.startswith("#") for line in told.splitlines())


class TestPasswords:
    @pytest.mark.parametrize(
        ("login", "words"),
        [
            ("", "give username= and password="),
            ("jobs:wrong@", "refuses this user or password"),
            ("nobody:secret@", "refuses this user or password"),
        ],
    )
    async def test_who_is_not_known_is_told_so(self, guarded: EtcdServer, login: str, words: str) -> None:
        store = store_from_url(guarded.url.replace("etcd://", f"etcd://{login}") + "?namespace=mine")
        with pytest.raises(StoreError, match=words) as refused:
            await store.open()
        assert not isinstance(refused.value, StoreUnavailable)
        assert "wrong" not in str(refused.value)

    async def test_who_may_not_write_there_is_told_what_to_grant(self, guarded: EtcdServer) -> None:
        store = EtcdStore(guarded.url, namespace="theirs", username="jobs", password="secret")
        with pytest.raises(StoreError, match="grant it readwrite on all keys with its prefix") as refused:
            await store.open()
        assert not isinstance(refused.value, StoreUnavailable)

    async def test_a_user_needs_nothing_but_the_keys_of_the_prefix(self, guarded: EtcdServer) -> None:
        store = EtcdStore(guarded.url, namespace="mine", username="jobs", password="secret")
        await store.open()
        await store.add([job("a", wake_at=1.0)])
        [held] = await claim(store)
        assert await store.settle([ended(held)]) == ["done"]
        assert (await store.acquire(["lock"], "me", 30.0)).keys() == {"lock"}
        await store.erase()
        await store.close()

    async def test_a_token_that_has_ended_is_renewed_unseen(self, guarded: EtcdServer) -> None:
        store = EtcdStore(guarded.url, namespace="mine", username="jobs", password="secret")
        await store.open()
        token = store._line.way.token
        # The server is told to end tokens that were not used for a second.
        guarded_way = store._line.way
        guarded_way.token = "stranger.1"
        await store.add([job("a", wake_at=None)])
        assert store._line.way.token not in (None, "stranger.1", token)
        await store.erase()
        await store.close()

    async def test_a_users_client_with_a_password_is_enough(self, guarded: EtcdServer) -> None:
        async with aetcd.Client(port=guarded.port, username="jobs", password="secret") as client:
            store = EtcdStore.from_client(client, namespace="mine")
            await store.open()
            assert await store.page(Filter(), 1) == []
            await store.erase()
            await store.close()


class TestOwnClients:
    async def test_a_users_client_is_not_closed(self, url: str) -> None:
        async with aetcd.Client(port=int(url.rpartition(":")[2])) as client:
            store = EtcdStore.from_client(client, namespace=uuid.uuid4().hex)
            assert store.clone() is None
            await store.open(now=lambda: NOW)
            await store.add([job("a")])
            assert [r.id for r in await claim(store)] == ["a"]
            await store.erase()
            await store.close()
            await client.put(b"still", b"open")
            assert (await client.delete(b"still")) is not None


class TestCosts:
    async def test_a_tick_counts_as_few_keys_among_many_jobs_as_among_few(
        self, store: EtcdStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted = Counted(store, monkeypatch)
        costs = []
        for stored in (0, 10_000):
            await store.add([job(f"later-{n}", NOW + 3600 + n / 7) for n in range(stored)])
            await store.add([job("due")])
            for n in range(8):
                if n == 4:
                    counted.requests = counted.keys = 0
                [record] = await claim(store, f"{stored}-{n}")
                await store.settle([ended(record, NOW)])
            costs.append((counted.requests, counted.keys))
        assert costs[0][0] == costs[1][0] == 12
        assert abs(costs[0][1] - costs[1][1]) <= 4

    async def test_a_backlog_is_claimed_in_windows(
        self, store: EtcdStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await store.add([job(f"{n:05}") for n in range(6_000)])
        await claim(store, "first", 1)
        counted = Counted(store, monkeypatch)
        ids = [record.id for n in range(10) for record in await claim(store, f"claim-{n}")]
        assert ids == [f"{n:05}" for n in range(1, 1_001)]
        # What was asked for is near what was taken, and far from what is there.
        assert counted.keys < 10 * 700
        assert counted.requests <= 35

    async def test_what_was_done_is_not_counted_again_and_again(
        self, store: EtcdStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The beginning of a lane moves on; what stood before is never looked at again."""
        for start in range(0, 3_000, 1_000):
            await store.add([job(f"{start + n:05}") for n in range(1_000)])
            for n in range(10):
                await store.settle([ended(r) for r in await claim(store, f"{start}-{n}")])
        [lane] = (
            await store._line.range(rpc.RangeRequest(key=store._keys.lanes, range_end=b"\xff", limit=1))
        ).kvs
        assert lane.value[17:] > b"01000"
        # And moves back for what is due earlier.
        await store.add([job("early", NOW - 5_000)])
        assert [r.id for r in await claim(store)] == ["early"]

    async def test_a_settlement_that_a_transaction_cannot_hold_is_refused_with_the_number(
        self, store: EtcdStore
    ) -> None:
        await store.add([job("a")])
        [held] = await claim(store)
        spawn = tuple(job(f"child-{n}") for n in range(200))
        many = Settlement("a", held.fence, str(held.holder), held.version, delete=True, spawn=spawn)
        with pytest.raises(StoreError, match=r"settling job 'a' needs \d+ operations .* etcd takes 128"):
            await store.settle([many])
        assert (await store.get(["a", "child-0"])).keys() == {"a"}


class TestOthersAreQuicker:
    """What another instance does between a look and the write that follows it."""

    async def test_a_line_that_another_has_moved_on_is_moved_on_all_the_same(
        self, pair: tuple[EtcdStore, EtcdStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = pair
        await first.add(
            [job("a"), job("b"), *(job(f"waits {n}", NOW + n, hold="limit") for n in range(1, 6))]
        )
        a, b = await claim(first)
        moved_on = [replace(ended(record, NOW + 60), unpark=("limit", 2)) for record in (a, b)]
        looked = first._settlements._parked

        async def look_late(settlements: Sequence[Settlement]) -> Any:
            parked = await looked(settlements)
            monkeypatch.undo()
            assert await second.settle(moved_on[1:]) == ["done"]
            return parked

        monkeypatch.setattr(first._settlements, "_parked", look_late)
        assert await first.settle(moved_on[:1]) == ["done"]
        assert [r.id for r in await first.page(Filter(hold="limit"), 10)] == ["waits 5"]

    async def test_the_end_of_a_run_does_not_wait_for_a_line_that_never_rests(
        self, pair: tuple[EtcdStore, EtcdStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = pair
        await first.add([job("a"), job("waits", NOW + 1, hold="limit")])
        [held] = await claim(first, limit=1)
        looked, looks = first._settlements._parked, []

        async def look_late(settlements: Sequence[Settlement]) -> Any:
            parked = await looked(settlements)
            looks.append(parked)
            assert await second.update(changed_from("waits", len(looks), NOW + 1, hold="limit")) is not None
            return parked

        monkeypatch.setattr(first._settlements, "_parked", look_late)
        assert await first.settle([replace(ended(held), unpark=("limit", 2))]) == ["done"]
        assert len(looks) > 5

    async def test_many_records_are_read_each_as_it_was_at_one_instant(
        self, pair: tuple[EtcdStore, EtcdStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = pair
        ids = [f"{n:03}" for n in range(200)]
        await first.add([replace(job(id, None), body=b"1" * 5_000) for id in ids])
        ask, is_changed = first._line.txn, False

        async def slow_txn(request: Any) -> Any:
            nonlocal is_changed
            answer = await ask(request)
            if not is_changed:
                is_changed = True
                update = replace(changed_from("199", 1, None), body=b"2" * 6_000)
                assert await second.update(update) is not None
            return answer

        async def one_by_one(calls: Sequence[Any]) -> list[Any]:
            return [await call for call in calls]

        monkeypatch.setattr(first._line, "txn", slow_txn)
        monkeypatch.setattr(first._desk, "together", one_by_one)
        found = (await first.get(ids))["199"]
        assert (found.version, found.body) == (2, b"2" * 6_000)

    async def test_a_held_job_that_comes_back_to_a_queue_is_found_there_when_its_lease_ends(
        self, pair: tuple[EtcdStore, EtcdStore]
    ) -> None:
        first, second = pair
        await first.add([job("a")])
        await claim(first)
        for version, queue in enumerate(("other", "default"), 1):
            assert await first.update(changed_from("a", version, None, queue=queue)) is not None
        # The second sees that nobody's lease ends there any more, and deletes that with what it writes next.
        await second.claim(["other"], "another", 10, 30.0)
        assert await first.update(changed_from("a", 3, None, queue="other")) is not None
        await second.add([job("b", NOW + 3_600)])
        assert second._desk.garbage == []
        late = EtcdStore(first._arguments["url"], namespace=first._arguments["namespace"])
        await late.open(now=lambda: NOW + 60)
        assert [r.id for r in (await late.claim(["other"], "late", 10, 30.0)).records] == ["a"]
        await late.close()


class TestLeasesOfTheServer:
    async def test_what_a_dead_holder_left_is_deleted_by_the_server(self, url: str) -> None:
        store = EtcdStore(url, namespace=uuid.uuid4().hex)
        await store.open()
        await store.acquire(["lock"], "me", 0.5)
        await store.add([job("a", wake_at=1.0)])
        await store.claim(["default"], "token", 1, 0.5)
        for prefix in (store._keys.leases, store._keys.claim("token")):
            [kv] = (await store._line.range(rpc.RangeRequest(key=prefix, range_end=prefix + b"\xff"))).kvs
            assert kv.lease
        await store.erase()
        await store.close()


class TestClocks:
    async def test_all_go_by_the_clock_of_the_first(self, url: str) -> None:
        namespace = uuid.uuid4().hex
        first, second, third = (EtcdStore(url, namespace=namespace) for _ in range(3))
        await first.open()
        set_clock(second, ahead_s=7200.0)
        await second.open()
        assert abs(await second.now() - time.time()) < 0.05
        # The first goes, and the second keeps its clock, whatever its own host says.
        await first.close()
        await eventually(lambda: second._clock._kept_at, what="the second to keep the clock")
        set_clock(third, ahead_s=-7200.0)
        await third.open()
        assert abs(await third.now() - time.time()) < 0.05
        await third.erase()
        for store in (second, third):
            await store.close()

    async def test_a_host_clock_that_is_set_does_not_set_the_clock(self, url: str) -> None:
        store = EtcdStore(url, namespace=uuid.uuid4().hex)
        await store.open()
        before = await store.now()
        set_clock(store, ahead_s=3600.0)
        assert 0 <= await store.now() - before < 1.0
        set_clock(store, ahead_s=-3600.0)
        assert 0 <= await store.now() - before < 2.0
        await store.erase()
        await store.close()

    async def test_a_machine_that_has_slept_finds_the_clock_where_it_should_be(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = EtcdStore(url, namespace=uuid.uuid4().hex)
        await store.open()
        before = await store.now()
        monkeypatch.setattr("asyncsched.stores.etcd._clock.uptime", lambda: uptime() + 3600.0)
        set_clock(store, ahead_s=3600.0)
        assert 3600.0 <= await store.now() - before < 3601.0
        await store.erase()
        await store.close()

    async def test_who_may_have_stood_still_asks_the_others_at_once(self, url: str) -> None:
        namespace = uuid.uuid4().hex
        first, second = (EtcdStore(url, namespace=namespace) for _ in range(2))
        await first.open()
        await second.open()
        # As if it had not been told of ten seconds that have passed.
        second._clock._ahead_s -= 10.0
        set_clock(second, ahead_s=10.0)
        assert await second.now() < time.time() - 9.0

        await eventually(lambda: abs(second._clock.now() - time.time()) < 1.0)
        await first.erase()
        for store in (first, second):
            await store.close()


def set_clock(store: EtcdStore, *, ahead_s: float) -> None:
    """Have the host of one store say another time."""
    store._host_time = lambda: time.time() + ahead_s
    store._clock._host_time = store._host_time


class TestCompaction:
    async def test_history_is_forgotten_on_request(self, store: EtcdStore) -> None:
        await store.add([job("a")])
        first = await store.compact()
        again = await store.compact()
        assert again >= first > 0
        found = rpc.RangeRequest(key=store._keys.job("a"), revision=first - 1)
        with pytest.raises(StoreUnavailable, match="compacted"):
            await store._line.range(found)
        assert [r.id for r in await claim(store)] == ["a"]


async def test_a_call_that_is_cancelled_leaves_no_part_of_it_behind(
    store: EtcdStore, recwarn: pytest.WarningsRecorder
) -> None:
    """Some of its requests are on their way then, and others have not begun."""
    reading = asyncio.create_task(store.get([f"{i}" for i in range(2_000)]))
    for _ in range(4):
        await asyncio.sleep(0)
    assert reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    del reading
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []
    assert await store.get(["a"]) == {}


async def test_a_cancellation_while_it_closes_is_not_swallowed_and_leaves_nothing_open(url: str) -> None:
    store = EtcdStore(url, namespace=uuid.uuid4().hex)
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


# -- calls of several requests ---------------------------------------------------------------------------------------------


class _Late:
    """Has the answer to the smallest of the next transactions come late, once it is *awaited*: it is the last of several."""

    def __init__(self, store: EtcdStore, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.is_free = asyncio.Event()
        self.is_waiting = asyncio.Event()
        self._txn = store._line.txn
        self._most = most
        monkeypatch.setattr(store._line, "txn", self.txn)

    async def txn(self, request: Any) -> Any:
        answer = await self._txn(request)
        if len(request.success) <= self._most and not self.is_waiting.is_set():
            self.is_waiting.set()
            await self.is_free.wait()
        return answer


@pytest.fixture
async def still(url: str) -> AsyncIterator[tuple[EtcdStore, EtcdStore, list[float]]]:
    """Two instances, and the clock of both."""
    now = [NOW]
    name = uuid.uuid4().hex
    stores = [EtcdStore(url, namespace=name), EtcdStore(url, namespace=name)]
    for each in stores:
        await each.open(now=lambda: now[0])
    yield stores[0], stores[1], now
    await stores[0].erase()
    for each in stores:
        await each.close()


@pytest.mark.parametrize("call", ["settle", "renew"])
async def test_a_job_that_is_claimed_again_before_a_call_of_many_is_over_is_not_lost(
    still: tuple[EtcdStore, EtcdStore, list[float]], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store, other, now = still
    await store.add([job(f"job {n:03}", NOW) for n in range(101)])
    held = await claim(store, "first", 200)
    now[0] += 1.0
    with monkeypatch.context() as patch:
        late = _Late(store, patch, 20)
        if call == "settle":
            ends = [ended(r, NOW if r.id == "job 000" else NOW + 1e6) for r in held]
            many: asyncio.Task[Any] = asyncio.create_task(store.settle(ends))
            await eventually(late.is_waiting.is_set)
        else:
            claims = [Claim(r.id, r.fence, str(r.holder)) for r in held]
            many = asyncio.create_task(store.renew(claims, 30.0))
            await eventually(late.is_waiting.is_set)
            first = next(r for r in held if r.id == "job 000")
            assert await store.settle([ended(first, NOW)]) == ["done"]
        now[0] += 1.0
        again = await claim(store, "second", 1)
        assert [r.id for r in again] == ["job 000"]
        late.is_free.set()
        await many
    # What is of no more use goes with the next write. Then this instance dies.
    await store.add([job("other", None)])
    now[0] += 60.0
    assert "job 000" in [r.id for r in await claim(other, "third", 200)]


async def test_any_number_of_queues_is_claimed_from(store: EtcdStore) -> None:
    queues = [f"queue {n}" for n in range(300)]
    await store.add([job(f"job {n}", NOW, queues[n]) for n in (0, 70, 150, 299)])
    claimed = await store.claim(queues, "token", 10, 30.0)
    assert [r.id for r in claimed.records] == ["job 0", "job 70", "job 150", "job 299"]


async def test_a_lease_that_is_extended_by_less_than_it_has_left_stays_as_long(url: str) -> None:
    store = EtcdStore(url, namespace=uuid.uuid4().hex)
    await store.open()
    try:
        lease = (await store.acquire(["key"], "me", 3600.0))["key"]
        assert await store.extend([lease], 1.0)
        found = await store._line.range(rpc.RangeRequest(key=store._keys.named_lease("key")))
        asked = rpc.LeaseTimeToLiveRequest(ID=found.kvs[0].lease)
        told = await store._line.ask(lambda way: way.lease.LeaseTimeToLive, asked)
        assert told.TTL > 3600
    finally:
        await store.erase()
        await store.close()


async def test_the_clock_is_kept_though_the_connection_is_closed_in_the_midst_of_a_beat(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EtcdStore(url, namespace=uuid.uuid4().hex)
    await store.open()
    [keeping] = [task for task in store._tasks if "clock" in task.get_name()]
    way = store._line.way
    kept = way.lease.LeaseKeepAlive
    is_cut = asyncio.Event()

    def cut(**keywords: Any) -> Any:
        stream = kept(**keywords)
        read = stream.read

        async def late() -> Any:
            await asyncio.sleep(0.2)  # What was written with it is answered.
            store._line.give_up(way)
            await asyncio.sleep(0.2)  # The channel closes beside this call, and no event tells when it has.
            is_cut.set()
            return await read()

        stream.read = late
        return stream

    monkeypatch.setattr(way.lease, "LeaseKeepAlive", cut)
    store._clock._stirred.set()
    await eventually(is_cut.is_set)
    await eventually(lambda: store._clock._kept_at > 0)
    assert not keeping.done()
    await store.erase()
    await store.close()


async def test_whoever_keeps_the_clock_keeps_it_though_a_reply_is_lost(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EtcdStore(url, namespace=uuid.uuid4().hex)
    await store.open()
    txn = store._line.txn

    async def lost(request: Any) -> Any:
        monkeypatch.setattr(store._line, "txn", txn)
        await txn(request)
        raise StoreUnavailable("the reply was lost")

    monkeypatch.setattr(store._line, "txn", lost)
    before = store._clock._kept_at
    store._clock._stirred.set()
    # Long before its key would have ended by itself.
    async with asyncio.timeout(10.0):
        await eventually(lambda: store._clock._kept_at > before)
    await store.erase()
    await store.close()


async def test_open_waits_no_longer_than_the_timeout_for_a_server_that_falls_silent(
    stores: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "etcd" not in stores:
        pytest.skip("etcd was left out by --stores")
    server = EtcdServer()
    start = AgreedClock.start

    async def late(self: AgreedClock, is_hearing: asyncio.Event) -> None:
        await is_hearing.wait()
        server.freeze()
        await start(self, is_hearing)

    monkeypatch.setattr(AgreedClock, "start", late)
    try:
        server.start()
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(10.0):
                await EtcdStore(server.url, timeout=0.5).open()
    finally:
        server.thaw()
        server.remove()
