"""etcd's own troubles: a leader that dies, members that are cut off, a watch that misses what was forgotten, instances that
contend, and whoever kept the clock being killed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from asyncsched import JobSpec, once
from asyncsched.contract import Record, Settlement
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.etcd import EtcdStore
from tests.servers.etcd import EtcdCluster, EtcdServer
from tests.support.noting import Noting
from tests.support.proxy import proxied
from tests.support.running import running
from tests.support.stores import namespaced
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

JOBS = 200
SPAN_S = 6.0


@pytest.fixture(scope="module")
def cluster(stores: Sequence[str]) -> Iterator[EtcdCluster]:
    if "etcd" not in stores:
        pytest.skip("etcd was left out by --stores")
    cluster = EtcdCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def whole(cluster: EtcdCluster) -> Iterator[EtcdCluster]:
    yield cluster
    for member in cluster.members:
        if member.is_alive:
            member.thaw()
        else:
            member.start()
    cluster.wait_until_whole()


@pytest.fixture(scope="module")
def server(stores: Sequence[str]) -> Iterator[EtcdServer]:
    if "etcd" not in stores:
        pytest.skip("etcd was left out by --stores")
    server = EtcdServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
async def pair(server: EtcdServer) -> AsyncIterator[list[EtcdStore]]:
    """Two instances of one namespace."""
    namespace = uuid.uuid4().hex
    pair = [EtcdStore(server.url, namespace=namespace) for _ in range(2)]
    for store in pair:
        await store.open()
    yield pair
    await pair[0].erase()
    for store in pair:
        await store.close()


def job(id: str, wake_at: float = 1.0) -> Record:
    return Record(id, "birth", "default", 5, "task", wake_at, None, b"body", b"cursor")


async def test_all_jobs_run_once_though_the_leader_is_killed(whole: EtcdCluster) -> None:
    url = namespaced(whole.url)
    both = [Noting(url, id=f"instance-{n}", concurrency=20) for n in range(2)]
    async with running(*(there.scheduler for there in both)):
        ids = [f"job-{n}" for n in range(JOBS)]
        specs = [
            JobSpec("work", once(delay=0.2 + n * SPAN_S / JOBS), id=id, args=[0.05])
            for n, id in enumerate(ids)
        ]
        await both[0].scheduler.add_jobs(specs)
        await eventually(lambda: sum(len(there.begun) for there in both) >= JOBS / 4)
        await asyncio.to_thread(whole.leader.kill)
        for there in both:
            await eventually(
                lambda there=there: _answers(there), timeout=30, what="an answer of the new leader"
            )
        await both[0].all_gone()
        assert await both[0].outcomes() == {(id, "succeeded"): 1 for id in ids}
        assert both[0].ran + both[1].ran == dict.fromkeys(ids, 1)
        # Each of them works again, also where the other was quicker and left it nothing of those.
        for here, other in (both, both[::-1]):
            await other.scheduler.pause()
            await other.scheduler.add_job("work", id="for one")
            await eventually(lambda here=here: here.ran["for one"], what="a run of this instance")
            await here.all_gone()
            await other.scheduler.resume()


async def _answers(there: Noting) -> bool:
    try:
        await there.scheduler.get_jobs(limit=1)
    except StoreUnavailable:
        return False
    return True


async def test_a_member_that_is_killed_is_left_for_the_next(whole: EtcdCluster) -> None:
    store = EtcdStore(whole.url, namespace=uuid.uuid4().hex, dial_timeout=1.0)
    await store.open()
    await store.add([job("a")])
    await asyncio.to_thread(whole.members[0].kill)

    async def answers() -> bool:
        try:
            return (await store.get(["a"])).keys() == {"a"}
        except StoreUnavailable:
            return False

    await eventually(answers, what="an answer of another member")
    assert store._line.way.endpoint != f"127.0.0.1:{whole.members[0].port}"
    await store.erase()
    await store.close()


async def test_a_member_that_is_frozen_is_left_for_the_next(whole: EtcdCluster) -> None:
    store = EtcdStore(whole.url, namespace=uuid.uuid4().hex, timeout=1.0)
    await store.open()
    await store.add([job("a")])
    whole.members[0].freeze()
    with pytest.raises(StoreUnavailable, match="did not answer within 1 s"):
        await store.get(["a"])

    async def answers() -> bool:
        try:
            return (await store.get(["a"])).keys() == {"a"}
        except StoreUnavailable:
            return False

    await eventually(answers, what="an answer of another member")
    whole.members[0].thaw()
    await store.erase()
    await store.close()


async def test_without_a_majority_calls_are_refused_until_it_is_there_again(whole: EtcdCluster) -> None:
    store = EtcdStore(whole.url, namespace=uuid.uuid4().hex, timeout=2.0)
    await store.open()
    for member in whole.members[1:]:
        await asyncio.to_thread(member.kill)
    with pytest.raises(StoreUnavailable):
        await store.add([job("a")])
    for member in whole.members[1:]:
        await asyncio.to_thread(member.start)
    await asyncio.to_thread(whole.wait_until_whole)

    async def adds() -> bool:
        try:
            return await store.add([job("a")]) == set()
        except StoreUnavailable:
            return False

    await eventually(adds, what="an add")
    assert (await store.get(["a"])).keys() == {"a"}
    await store.erase()
    await store.close()


async def test_hints_go_on_from_what_was_heard_last(server: EtcdServer) -> None:
    """What another wrote while the watch was away is heard when it is back."""
    namespace = uuid.uuid4().hex
    async with proxied(server.url) as proxy:
        there = EtcdStore(proxy.of(server.url), namespace=namespace)
        other = EtcdStore(server.url, namespace=namespace)
        await there.open()
        await other.open()
        heard: list[float | None] = []
        there.on_hint(heard.append)
        await other.add([job("a", 5.0)])
        await eventually(lambda: 5.0 in heard)
        proxy.refuses = True
        proxy.cut()
        await other.add([job("b", 7.0)])
        proxy.refuses = False
        await eventually(lambda: 7.0 in heard, what="what was written meanwhile")
        proxy.refuses = True
        proxy.cut()
        heard.clear()
        await other.add([job("c", 9.0)])
        await other.add([job("d", 11.0)])
        await other.compact()
        proxy.refuses = False
        await eventually(lambda: None in heard, what="word that something was missed")
        await other.erase()
        await there.close()
        await other.close()


async def test_of_instances_that_contend_each_gets_its_share_and_none_takes_what_another_has(
    pair: list[EtcdStore],
) -> None:
    others = [clone for _ in range(2) if (clone := pair[0].clone()) is not None]
    for store in others:
        await store.open()
    stores = [*pair, *others]
    await pair[0].add([job(f"{n:04}") for n in range(2_000)])
    taken: dict[int, list[str]] = {n: [] for n in range(len(stores))}

    async def work(number: int, store: EtcdStore) -> None:
        turn = 0
        while len({id for ids in taken.values() for id in ids}) < 2_000:
            turn += 1
            claimed = await store.claim(["default"], f"{number}-{turn}", 50, 30.0)
            taken[number] += [r.id for r in claimed.records]
            endings = [
                Settlement(r.id, r.fence, str(r.holder), r.version, delete=True) for r in claimed.records
            ]
            assert set(await store.settle(endings)) <= {"done"}

    async with asyncio.TaskGroup() as group:
        for number, store in enumerate(stores):
            group.create_task(work(number, store))
    assert sorted(id for ids in taken.values() for id in ids) == [f"{n:04}" for n in range(2_000)]
    assert min(len(ids) for ids in taken.values()) >= 100
    for store in others:
        await store.close()


async def test_a_claim_whose_instance_died_is_taken_over_when_its_lease_ends(pair: list[EtcdStore]) -> None:
    await pair[0].add([job(f"{n}") for n in range(5)])
    [*first] = (await pair[0].claim(["default"], "dies", 10, 0.5)).records
    claimed = await pair[1].claim(["default"], "waits", 10, 30.0)
    assert claimed.records == []
    assert claimed.next_wake_at == first[0].wake_at

    async def taken() -> bool:
        return len((await pair[1].claim(["default"], "takes", 10, 30.0)).records) == 5

    await eventually(taken, what="the takeover")
    late = [Settlement(r.id, r.fence, str(r.holder), r.version, delete=True) for r in first]
    assert set(await pair[0].settle(late)) == {"lost"}


async def test_the_clock_goes_on_when_whoever_kept_it_dies(server: EtcdServer) -> None:
    """Its key stays until the server ends its lease; meanwhile those who know the time tell it."""
    namespace = uuid.uuid4().hex
    keeper, second, third = (EtcdStore(server.url, namespace=namespace) for _ in range(3))
    await keeper.open()
    second._host_time = lambda: time.time() + 7200.0
    await second.open()
    for task in keeper._tasks:
        task.cancel()
    await asyncio.wait(keeper._tasks)
    third._host_time = lambda: time.time() - 7200.0
    await third.open()
    assert abs(await third.now() - time.time()) < 0.1
    await third.erase()
    for store in (third, second, keeper):
        await store.close()
