"""What the document of an embedded scheduler's stores promises."""

import inspect
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from asyncsched import (
    ConflictingIdError,
    JobLookupError,
    MemoryStore,
    Scheduler,
    TransientJobError,
    every,
    once,
)
from asyncsched.contract import JobStore
from asyncsched.stores.etcd import EtcdStore
from asyncsched.stores.firestore import FirestoreStore
from asyncsched.stores.mongodb import MongoStore
from asyncsched.stores.mysql import MySQLStore
from asyncsched.stores.postgres import PostgresStore
from asyncsched.stores.redis import RedisStore
from asyncsched.stores.sqlite import SQLiteStore
from asyncsched.stores.zookeeper import ZooKeeperStore
from asyncsched.testing import ManualClock
from asyncsched.testing._contract.trial import job, settlement
from tests.servers.running import Servers
from tests.support.stores import url_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

STORES = (
    MemoryStore, SQLiteStore, RedisStore, PostgresStore, MySQLStore, MongoStore, ZooKeeperStore, EtcdStore, FirestoreStore,
)  # fmt: skip

ran: list[str] = []


async def kept(what: str) -> None:
    ran.append(what)


async def nothing() -> None: ...


# -- memory --------------------------------------------------------------------------------------------------------------------


async def test_without_a_store_jobs_live_in_memory_and_end_with_the_application(clock: ManualClock) -> None:
    async with Scheduler(clock=clock) as first:
        await first.add_job(nothing, every(60), id="a")
        assert [job.id for job in await first.get_jobs()] == ["a"]
    async with Scheduler(clock=clock) as second:
        assert await second.get_jobs() == []
    assert not MemoryStore.capabilities.durable


async def test_a_store_is_attached_under_its_alias_and_default_is_the_first(clock: ManualClock) -> None:
    scheduler = Scheduler(MemoryStore(), clock=clock)
    await scheduler.add_store("other", MemoryStore())
    async with scheduler:
        assert (await scheduler.add_job(nothing, every(60))).store == "default"
        assert (await scheduler.add_job(nothing, every(60), store="other")).store == "other"


async def steps_of(call: Callable[[], Awaitable[Any]]) -> int:
    """How many steps of Python a call takes."""
    steps = 0

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        await call()
    finally:
        sys.settrace(before)
    return steps


async def test_in_memory_no_call_does_more_when_more_is_stored() -> None:
    async def of_one_job(stored: int) -> int:
        now = 1000.0
        store = MemoryStore()
        await store.open(lambda: now)
        await store.add([job(f"later {i}", wake_at=now + 10 + i) for i in range(stored)])

        async def one_life() -> None:
            await store.add([job("a", wake_at=now)])
            [held] = (await store.claim(["default"], "token", 10, 30.0)).records
            await store.renew([(held.id, held.fence, held.holder or "")], 30.0)
            await store.get(["a"])
            assert await store.settle([settlement(held, wake_at=now + 5)]) == ["done"]
            await store.remove(["a"])

        return await steps_of(one_life)

    few, many = await of_one_job(10), await of_one_job(10_000)
    assert many <= few + 50


# -- stores of all kinds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_every_store_has_all_that_the_contract_asks_for(store: type) -> None:
    wanted = {name: method for name, method in vars(JobStore).items() if inspect.isfunction(method)}
    wanted = {name: method for name, method in wanted.items() if not name.startswith("_")}
    assert {"open", "close", "get", "page", "add", "update", "remove", "claim", "settle"} <= wanted.keys()
    for name, method in wanted.items():
        asked, given = (inspect.signature(one).parameters.values() for one in (method, getattr(store, name)))
        assert [(p.name, p.default) for p in given] == [(p.name, p.default) for p in asked], name
    assert isinstance(store.capabilities.durable, bool)  # type: ignore[attr-defined]  # it is no subclass of the protocol, which is what is shown
    assert JobStore not in store.__mro__


@pytest.mark.parametrize(
    ("store", "defaults"),
    [
        (RedisStore, {"namespace": "asyncsched"}),
        (PostgresStore, {"schema": "public", "table_prefix": "asyncsched_", "namespace": "asyncsched"}),
        (MySQLStore, {"table_prefix": "asyncsched_", "namespace": "asyncsched", "port": 3306}),
        (MongoStore, {"database": None, "collection": "asyncsched"}),
        (ZooKeeperStore, {"session_timeout": 10.0, "base_path": ""}),
        (EtcdStore, {"dial_timeout": 5.0, "username": None, "password": None, "key_prefix": None}),
    ],
)
def test_what_a_store_may_be_told_has_its_default(store: type, defaults: dict[str, object]) -> None:
    options = inspect.signature(store).parameters
    assert {name: options[name].default for name in defaults} == defaults


async def test_the_database_of_redis_may_be_chosen_and_is_0_by_default(
    stores: tuple[str, ...], servers: Servers, tmp_path: Path
) -> None:
    if "redis" not in stores:
        pytest.skip("redis was left out by --stores")
    url, _, namespace = url_of("redis", tmp_path, servers).partition("?")
    server = url.removesuffix("/0")
    found: dict[str, set[str]] = {}
    for path in ("/0", "/1", ""):
        store = RedisStore.from_url(f"{server}{path}?{namespace}")
        await store.open()
        if path:
            await store.add([job(f"in {path}")])
        found[path] = set(await store.get(["in /0", "in /1"]))
        await store.close()
    assert found == {"/0": {"in /0"}, "/1": {"in /1"}, "": {"in /0"}}


async def test_a_store_is_attached_by_its_url_whatever_its_kind(
    store_kind: str, tmp_path: Path, servers: Servers
) -> None:
    ran.clear()
    scheduler = Scheduler()
    scheduler.register(kept, "kept")
    async with scheduler:
        await scheduler.add_store("other", url_of(store_kind, tmp_path, servers))
        added = await scheduler.add_job(kept, once(delay=0), args=["ran"], store="other")
        assert added.store == "other"
        await scheduler.wait_job(added.id, timeout=20)
    assert ran == ["ran"]


# -- several stores ------------------------------------------------------------------------------------------------------------


async def test_passing_jobs_in_memory_and_kept_ones_in_a_file_live_in_one_scheduler(
    sqlite_url: str, clock: ManualClock
) -> None:
    ran.clear()

    def make() -> Scheduler:
        scheduler = Scheduler({"default": MemoryStore(), "persistent": sqlite_url}, clock=clock)
        scheduler.register(kept, "kept")
        return scheduler

    async with make() as scheduler:
        await scheduler.add_job(kept, every(60), id="passing", args=["passing"])
        await scheduler.add_job(kept, every(60), id="kept", args=["kept"], store="persistent")
        await scheduler.add_job(lambda: ran.append("lambda"), every(60), id="unnamed")
        with pytest.raises(TransientJobError):
            await scheduler.add_job(lambda: None, every(60), store="persistent")
        assert {job.id: job.store for job in await scheduler.get_jobs()} == {
            "passing": "default", "unnamed": "default", "kept": "persistent",
        }  # fmt: skip
    async with make() as scheduler:
        assert [job.id for job in await scheduler.get_jobs()] == ["kept"]
        await clock.advance(60)
        await eventually(lambda: ran == ["kept"])


# -- errors --------------------------------------------------------------------------------------------------------------------


async def test_errors_carry_the_id_of_their_job(sqlite_url: str) -> None:
    async with Scheduler(sqlite_url) as scheduler:
        with pytest.raises(JobLookupError) as unknown:
            await scheduler.get_job("nobody")
        assert unknown.value.job_id == "nobody"
        scheduler.register(nothing, "nothing")
        await scheduler.add_job(nothing, every(60), id="taken")
        with pytest.raises(ConflictingIdError) as taken:
            await scheduler.add_job(nothing, every(60), id="taken")
        assert taken.value.job_id == "taken"
        with pytest.raises(TransientJobError) as transient:
            await scheduler.add_job(lambda: None, every(60), id="unnamed")
        assert transient.value.job_id == "unnamed"
