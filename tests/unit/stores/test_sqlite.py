"""What is particular to the store on SQLite; what every store promises is in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from asyncsched.contract import Claim, Entry, Filter, JobStore, Record, Settlement, Update
from asyncsched.errors import DefinitionError, MissingExtra, SchemaError, StoreError, StoreUnavailable
from asyncsched.stores import sqlite
from asyncsched.stores.sqlite import SQLiteStore, _store

pytestmark = pytest.mark.anyio

_T = TypeVar("_T")

NOW = 1_800_000_000.0
ROOT = Path(sqlite.__file__).parents[3]


def job(id: str, wake_at: float | None = NOW, queue: str = "default", hold: str | None = None) -> Record:
    return Record(id, "birth", queue, 5, "task", wake_at, hold, b"body", b"cursor")


def run_of(record: Record, at: float = NOW) -> Entry:
    return Entry(record.id, record.fence, "run", NOW, at, b"")


def deleted(record: Record, spawn: Sequence[Record] = ()) -> Settlement:
    entries = (run_of(record),)
    return Settlement(
        id=record.id,
        fence=record.fence,
        holder=str(record.holder),
        version=record.version,
        delete=True,
        entries=entries,
        spawn=tuple(spawn),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    async with opened(SQLiteStore(path, busy_timeout=5)) as store:
        yield store


@contextlib.asynccontextmanager
async def opened(store: SQLiteStore) -> AsyncIterator[SQLiteStore]:
    await store.open(now=lambda: NOW)
    try:
        yield store
    finally:
        await store.close()


async def claim(
    store: JobStore, token: str = "token", limit: int = 100, ahead_s: float = 0.0
) -> list[Record]:
    return (await store.claim(["default", "other"], token, limit, 30.0, ahead_s)).records


async def ask(store: SQLiteStore, statement: str) -> list[Any]:
    return await store._line.hop(lambda: store._line.db.execute(statement).fetchall())


async def is_in_transaction(store: SQLiteStore) -> bool:
    return await store._line.hop(lambda: store._line.db.in_transaction)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another connection is in the midst of a write."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_it_keeps_to_the_protocol(path: Path) -> None:
    store: JobStore = SQLiteStore(path)
    assert store.capabilities.durable


# ---- URLs and settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///jobs.db", "jobs.db"),
        ("sqlite:///data/jobs.db", "data/jobs.db"),
        ("sqlite:////var/lib/jobs.db", "/var/lib/jobs.db"),
        ("sqlite:///my%20jobs%23.db?synchronous=full", "my jobs#.db"),
    ],
)
def test_a_url_names_the_file(url: str, path: str) -> None:
    assert SQLiteStore.from_url(url)._line._path == path


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", ["memory://"]),
        ("sqlite:///:memory:", ["memory://"]),
        ("sqlite://jobs.db", ["host 'jobs.db'", "sqlite:///relative.db"]),
        ("sqlite:///jobs#1.db", ["%23"]),
        ("postgres:///jobs", ["no SQLite URL"]),
        (
            "sqlite:///jobs.db?sync=full",
            ["'sync'", "synchronous", "busy_timeout", "create_schema", "table_prefix"],
        ),
        ("sqlite:///jobs.db?synchronous=off", ["NORMAL or FULL", "off"]),
        ("sqlite:///jobs.db?busy_timeout=long", ["busy_timeout", "'long'"]),
        ("sqlite:///jobs.db?busy_timeout=-1", ["busy_timeout", "-1"]),
        ("sqlite:///jobs.db?create_schema=maybe", ["create_schema", "'maybe'"]),
        ("sqlite:///jobs.db?table_prefix=a-b", ["table_prefix", "'a-b'"]),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_remedy(url: str, words: list[str]) -> None:
    with pytest.raises(DefinitionError) as refusal:
        SQLiteStore.from_url(url)
    assert [word for word in words if word not in str(refusal.value)] == []


@pytest.mark.parametrize(("level", "code"), [("normal", 1), ("FULL", 2)])
async def test_keywords_of_a_url_reach_the_connection(path: Path, level: str, code: int) -> None:
    url = f"sqlite:///{path}?synchronous={level}&busy_timeout=1.5&table_prefix=mine_&create_schema=true"
    async with opened(SQLiteStore.from_url(url)) as store:
        assert await ask(store, "PRAGMA synchronous") == [(code,)]
        assert await ask(store, "PRAGMA busy_timeout") == [(1500,)]
        assert await ask(store, "PRAGMA journal_mode") == [("wal",)]
        assert await ask(store, "SELECT count(*) FROM mine_jobs") == [(0,)]


async def test_stores_of_different_prefix_share_a_file_unseen(path: Path, store: SQLiteStore) -> None:
    async with opened(SQLiteStore(path, table_prefix="other_")) as other:
        await store.add([job("a")])
        assert await other.add([job("a"), job("b")]) == set()
        assert [r.id for r in await claim(other)] == ["a", "b"]
        assert [r.id for r in await claim(store)] == ["a"]


def test_without_aiosqlite_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    spec = importlib.util.spec_from_file_location("sqlite_without_its_client", sqlite.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtra, match=r'pip install "asyncsched\[sqlite\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ---- what the planner makes of it ----------------------------------------------------------------------------------------


async def everything(store: SQLiteStore) -> None:
    """Calls of every kind whose cost must not grow with what is stored."""
    [a, b, *others] = await claim(store, "one", 10, ahead_s=5.0)
    await claim(store, "one", 10)
    await store.renew([Claim(r.id, r.fence, "one") for r in others], 60.0)
    back = Settlement(
        id=b.id, fence=b.fence, holder="one", version=1, hand_back=True, wake_at=NOW, unpark=("k", 3)
    )
    move = Settlement(id=a.id, fence=a.fence, holder="one", version=1, wake_at=NOW + 9, entries=(run_of(a),))
    assert await store.settle([move, back, deleted(others[0])]) == ["done"] * 3
    assert await store.settle([move, deleted(others[0])]) == ["already", "gone"]
    for where in (
        Filter(),
        Filter(queue="default"),
        Filter(hold="k"),
        Filter(task="task", hold="", queue="default"),
    ):
        for after in (None, job("x"), job("x", wake_at=None)):
            await store.page(where, 10, after)
    for job_id in (None, "j5"):
        await store.runs(job_id, limit=10)
        await store.runs(job_id, ["run"], 10, run_of(a))
    await store.prune(60.0, 2, 10)
    kept = await store.acquire(["lock"], "me", 30.0)
    await store.release(list((await store.extend(list(kept.values()), 60.0)).values()))
    await store.update(
        Update(id="j9", version=1, body=b"", queue="other", priority=1, wake_at=NOW, hold=None)
    )
    await store.get(["j9"])
    await store.remove(["j9"])


async def fill(store: SQLiteStore, count: int) -> None:
    """*count* jobs, due over the last hour, in two queues; and as many log entries of other jobs."""
    jobs = [job(f"j{i}", NOW - 3600 * i / count, "default" if i % 3 else "other") for i in range(count)]
    parked = [job(f"p{i}", NOW + 60, hold="k") for i in range(10)]
    await store.add([*jobs, *parked, job("never", wake_at=None)])
    await store.add([job("writer", wake_at=NOW - 9999)])
    [writer] = await claim(store, "writer", 1)
    log = tuple(Entry(f"l{i}", 1, "run", NOW, NOW - i / count, b"") for i in range(count))
    release = Settlement(
        id="writer", fence=writer.fence, holder="writer", version=1, delete=True, entries=log
    )
    assert await store.settle([release]) == ["done"]


def scans(plan: list[str]) -> list[str]:
    """The steps that read a whole table, or sort more than the rows of one instant."""
    allowed = ("RIGHT PART OF ORDER BY", "TERMS OF ORDER BY", "CONSTANT ROW")
    steps = [step for step in plan if "SCAN" in step.split() or "TEMP B-TREE" in step]
    # The recursive tables of lanes and queues are as long as there are of these.
    return [
        step
        for step in steps
        if not any(words in step for words in allowed) and step not in ("SCAN lane", "SCAN found")
    ]


@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_no_call_scans_or_sorts_a_table(store: SQLiteStore, is_analyzed: bool) -> None:
    await fill(store, 1000)
    if is_analyzed:
        await ask(store, "ANALYZE")
        await store.close()
        await store.open()
    statements: list[str] = []
    await store._line.hop(lambda: store._line.db.set_trace_callback(statements.append))
    await everything(store)
    await store._line.hop(lambda: store._line.db.set_trace_callback(None))
    assert len(statements) > 60
    bad = {}
    for statement in dict.fromkeys(statements):
        # Infinity is written out in a way that SQLite itself does not read.
        readable = statement.replace("(-Inf,", "(-9e999,")
        plan = [row[3] for row in await ask(store, f"EXPLAIN QUERY PLAN {readable}")]
        # The newest of the whole log are read from the end of the index by time, as far as the limit.
        plan = [step for step in plan if not step.endswith("USING INDEX asyncsched_runs_at")]
        if found := scans(plan):
            bad[statement] = found
    assert bad == {}


async def test_no_call_costs_more_when_more_is_stored(tmp_path: Path) -> None:
    costs: list[dict[str, int]] = []
    for count in (300, 20_000):
        async with opened(SQLiteStore(tmp_path / f"{count}.db")) as store:
            await fill(store, count)
            costs.append(await steps_of_calls(store))
    few, many = costs
    assert {name: cost for name, cost in many.items() if cost > 1.3 * few[name] + 200} == {}


async def test_a_settlement_costs_the_same_however_much_its_token_holds(store: SQLiteStore) -> None:
    await store.add([job(f"{i:04}") for i in range(1064)])
    few, many = await claim(store, "few", 64), await claim(store, "many", 1000)
    costs: dict[str, int] = {}
    await count_steps(store, costs, "few", store.settle([deleted(r) for r in few]))
    await count_steps(store, costs, "many", store.settle([deleted(r) for r in many[:64]]))
    assert costs["many"] < 1.3 * costs["few"]


async def count_steps(
    store: SQLiteStore, steps: dict[str, int], name: str, call: Coroutine[Any, Any, _T]
) -> _T:
    """Put down under *name* how many instructions of SQLite's virtual machine *call* takes."""
    steps[name] = 0

    def step() -> int:
        steps[name] += 10
        return 0

    await store._line.hop(lambda: store._line.db.set_progress_handler(step, 10))
    answer = await call
    await store._line.hop(lambda: store._line.db.set_progress_handler(None, 10))
    return answer


async def steps_of_calls(store: SQLiteStore) -> dict[str, int]:
    steps: dict[str, int] = {}
    queues = ["default", "other"]
    claimed = await count_steps(store, steps, "claim", store.claim(queues, "t", 50, 30.0))
    claims = [Claim(r.id, r.fence, "t") for r in claimed.records]
    calls: dict[str, Coroutine[Any, Any, Any]] = {
        "claim again": store.claim(queues, "t", 50, 30.0),
        "renew": store.renew(claims, 60.0),
        "settle": store.settle([deleted(r) for r in claimed.records]),
        "page": store.page(Filter(), 50),
        "page parked": store.page(Filter(hold="k"), 50),
        "page parked of a queue": store.page(Filter(hold="k", queue="default", task="task"), 50),
        "page by prefix": store.page(Filter(id_prefix="p", queue="default"), 50),
        "runs": store.runs(limit=50),
        "runs of one job": store.runs("l5", limit=50),
        "prune by age": store.prune(0.5, None, 50),
    }
    for name, call in calls.items():
        await count_steps(store, steps, name, call)
    return steps


async def test_crowded_jobs_are_found_by_stretches(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store, "_SWEEP", 10)
    log = [
        Entry(f"j{i % 12:02}", fence, "run", NOW, NOW + fence, b"")
        for i in range(12)
        for fence in range(1, 5)
    ]
    await store.add([job("a")])
    [held] = await claim(store)
    await store.settle([Settlement(id="a", fence=held.fence, holder="token", version=1, entries=tuple(log))])
    pruned = [await store.prune(None, 3, 100) for _ in range(8)]
    assert sum(pruned) == 12
    assert max(pruned) < 12
    assert {e.fence for e in await store.runs(limit=1000)} == {2, 3, 4}


# ---- batches of settlements ----------------------------------------------------------------------------------------------


async def test_answers_are_exact_when_one_claim_is_settled_twice_in_a_batch(store: SQLiteStore) -> None:
    await store.add([job("a"), job("b")])
    [a, b] = await claim(store)
    move = Settlement(id="b", fence=b.fence, holder="token", version=1, wake_at=NOW + 5)
    assert await store.settle([deleted(a), move, deleted(a), move]) == ["done", "done", "gone", "already"]
    assert [r.id for r in await store.page(Filter(), 10)] == ["b"]


async def test_what_one_settlement_spawns_another_of_the_batch_may_settle(store: SQLiteStore) -> None:
    await store.add([job("a"), job("b")])
    [a, b] = await claim(store)
    answers = await store.settle([deleted(a, [job("b", NOW + 1)]), deleted(b, [job("a", NOW + 2)])])
    assert answers == ["done", "done"]
    # In turn: b was still there when a wanted to spawn it, and a was gone when b did.
    assert [r.id for r in await store.page(Filter(), 10)] == ["a"]


async def test_a_job_may_spawn_its_own_successor(store: SQLiteStore) -> None:
    await store.add([job("a")])
    [a] = await claim(store)
    assert await store.settle([deleted(a, [job("a", NOW + 5)])]) == ["done"]
    assert await store.get(["a"]) == {"a": job("a", NOW + 5)}


async def test_an_id_prefix_may_end_in_any_character(store: SQLiteStore) -> None:
    ids = ["a", "a#0", "aé", "a\U0010ffff", "a\U0010ffff1", "b"]
    await store.add([job(id) for id in ids])
    assert [r.id for r in await store.page(Filter(id_prefix="a"), 10)] == ids[:-1]
    assert [r.id for r in await store.page(Filter(id_prefix="a\U0010ffff"), 10)] == ids[3:5]


# ---- errors --------------------------------------------------------------------------------------------------------------


async def test_a_missing_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"absent/jobs.db.*the folder .*absent does not exist: create it"
    ) as refusal:
        await SQLiteStore(tmp_path / "absent" / "jobs.db").open()
    assert not isinstance(refusal.value, StoreUnavailable)
    assert isinstance(refusal.value.__cause__, sqlite3.Error)


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="it is a folder: name a file in it"):
        await SQLiteStore(tmp_path).open()


async def test_a_file_that_cannot_be_written_is_refused_at_open(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **kw: connect(f"file:{path}?mode=ro", uri=True, **kw)
    )
    with pytest.raises(StoreError, match=r"jobs.db.*let this process read and write the file and its folder"):
        await SQLiteStore(path).open()


@pytest.fixture
def no_database(path: Path) -> Path:
    path.write_bytes(b"something else" * 1000)
    return path


async def test_what_is_no_database_is_refused_by_name(no_database: Path) -> None:
    with pytest.raises(StoreError, match=r"jobs.db is damaged or no SQLite database") as refusal:
        await SQLiteStore(no_database).open()
    assert not isinstance(refusal.value, StoreUnavailable)


async def test_a_newer_schema_is_refused_with_both_versions(path: Path, store: SQLiteStore) -> None:
    await ask(store, "UPDATE asyncsched_meta SET value = 7 WHERE key = 'schema'")
    with pytest.raises(SchemaError, match=r"jobs.db .*schema 7, this code 1: upgrade asyncsched"):
        await SQLiteStore(path).open()


async def test_a_missing_schema_is_not_created_unasked(path: Path) -> None:
    with pytest.raises(
        SchemaError, match=r"asyncsched_.* has no schema: open it once with create_schema=True"
    ):
        await SQLiteStore(path, create_schema=False).open()
    async with opened(SQLiteStore(path)), opened(SQLiteStore(path, create_schema=False)) as store:
        await store.add([job("a")])


async def test_a_lock_that_lasts_makes_the_store_unavailable_and_no_more(path: Path) -> None:
    async with opened(SQLiteStore(path, busy_timeout=0.02)) as store:
        with locked(path), pytest.raises(StoreUnavailable, match=r"jobs.db stayed locked .* for 0.02 s"):
            await store.add([job("a")])
        assert not await is_in_transaction(store)
        assert await store.add([job("a")]) == set()


async def test_readers_and_idle_claims_do_not_wait_for_a_writer(path: Path) -> None:
    async with opened(SQLiteStore(path, busy_timeout=0.02)) as store:
        await store.add([job("a", NOW + 5)])
        with locked(path):
            assert await claim(store) == []
            assert list(await store.get(["a"])) == ["a"]
            assert [r.id for r in await store.page(Filter(), 10)] == ["a"]
            assert await store.runs() == []


async def test_a_full_disk_condemns_nothing(store: SQLiteStore) -> None:
    [[pages]] = await ask(store, "PRAGMA page_count")
    await ask(store, f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable, match="full"):
        await store.add([job(f"{i}") for i in range(1000)])
    assert not await is_in_transaction(store)
    await ask(store, "PRAGMA max_page_count = 100000")
    assert await store.page(Filter(), 10) == []
    assert await store.add([job("a")]) == set()


@pytest.mark.parametrize("poison", [job("\ud800"), Record("a", "b", "q", 2**70, "t", NOW, None, b"", b"")])
async def test_a_value_that_sqlite_cannot_keep_is_refused_for_good(
    store: SQLiteStore, poison: Record
) -> None:
    with pytest.raises(StoreError) as refusal:
        await store.add([job("good"), poison])
    assert not isinstance(refusal.value, StoreUnavailable)
    assert not await is_in_transaction(store)
    assert await store.page(Filter(), 10) == []


@contextlib.contextmanager
def put_aside(path: Path, is_replaced: bool) -> Iterator[None]:
    aside = path.rename(path.with_suffix(".aside"))
    if is_replaced:
        path.write_bytes(b"")
    yield
    aside.rename(path)


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_file_that_was_deleted_or_replaced_keeps_nothing_in_secret(
    path: Path, store: SQLiteStore, is_replaced: bool
) -> None:
    await store.add([job("a")])
    with put_aside(path, is_replaced):
        with pytest.raises(StoreUnavailable, match=r"jobs.db was deleted or replaced .*: put the file back"):
            await store.add([job("b")])
        with pytest.raises(StoreUnavailable):
            await claim(store)
    assert [r.id for r in await claim(store)] == ["a"]


async def test_a_relative_path_is_that_of_the_folder_in_which_the_store_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened(SQLiteStore("jobs.db")) as store:
        monkeypatch.chdir("/")
        assert await store.add([job("a")]) == set()
        async with opened(store.clone()) as clone:
            assert list(await clone.get(["a"])) == ["a"]
    async with opened(store):
        assert list(await store.get(["a"])) == ["a"]


async def test_a_store_that_is_not_open_says_so(path: Path) -> None:
    with pytest.raises(StoreError, match=r"jobs.db is not open: await its open\(\) first"):
        await SQLiteStore(path).get(["a"])


# ---- cancellation, loops and threads -------------------------------------------------------------------------------------


async def test_a_cancelled_call_leaves_no_transaction_open(path: Path, store: SQLiteStore) -> None:
    with locked(path):
        tasks = [asyncio.ensure_future(store.add([job(f"{i}")])) for i in range(3)]
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
    assert not await is_in_transaction(store)
    assert [r.id for r in await store.page(Filter(), 10)] == ["0", "1", "2"]
    with locked(path):
        pass


async def test_a_cancelled_call_that_wrote_still_gives_its_hint(path: Path, store: SQLiteStore) -> None:
    heard: list[float | None] = []
    store.on_hint(heard.append)
    with locked(path):
        task = asyncio.ensure_future(store.add([job("a", NOW + 5)]))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
    await store.get(["a"])
    assert heard == [NOW + 5]


@pytest.mark.parametrize("delay", [0, 1, 2, 5])
async def test_a_cancelled_open_leaves_no_thread(path: Path, delay: int) -> None:
    with no_thread_left():
        store = SQLiteStore(path)
        task = asyncio.ensure_future(store.open())
        for _ in range(delay):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await store.open()
        await store.add([job("a")])
        await store.close()


def test_a_store_is_opened_again_in_another_loop(path: Path) -> None:
    store = SQLiteStore(path)

    async def use(id: str) -> list[str]:
        async with opened(store):
            await store.add([job(id)])
            return [r.id for r in await store.page(Filter(), 10)]

    assert asyncio.run(use("a")) == ["a"]
    assert asyncio.run(use("b")) == ["a", "b"]


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


async def test_the_thread_ends_with_close(path: Path) -> None:
    with no_thread_left():
        store = SQLiteStore(path)
        for _ in range(3):
            await store.open()
            await store.open()
            clone = store.clone()
            await clone.open()
            assert await clone.add([job("a")]) == set()
            await clone.close()
            await store.close()
            await store.close()


def test_an_open_that_is_refused_leaves_no_thread_and_no_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with no_thread_left():
        for path in (tmp_path, tmp_path / "absent" / "jobs.db"):
            with pytest.raises(StoreError):
                asyncio.run(SQLiteStore(path).open())
    assert capfd.readouterr().err == ""


async def test_a_new_file_may_be_opened_by_many_at_once(path: Path) -> None:
    stores = [SQLiteStore(path) for _ in range(12)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        answers = await asyncio.gather(*(store.add([job(f"{i}")]) for i, store in enumerate(stores)))
        assert answers == [set()] * 12
    finally:
        for store in stores:
            await store.close()


# ---- processes -----------------------------------------------------------------------------------------------------------

WORKER = """
import asyncio, sys
from asyncsched.stores.sqlite import SQLiteStore

async def main(path, name):
    store = SQLiteStore(path)
    await store.open()
    print("ready", flush=True)
    sys.stdin.readline()
    turn = 0
    while records := (await store.claim(["default"], f"{name}-{turn}", 7, 60.0)).records:
        print(*(f"{r.id}:{r.fence}" for r in records), flush=True)
        turn += 1
    print("done", flush=True)
    sys.stdin.readline()
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def start_worker(
    path: Path,
) -> AsyncIterator[Callable[[str], Coroutine[Any, Any, asyncio.subprocess.Process]]]:
    workers: list[asyncio.subprocess.Process] = []

    async def start(name: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-c", WORKER, str(path), name)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        worker = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=env)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        if worker.returncode is None:
            worker.kill()
        await worker.communicate()


async def lines_until_done(worker: asyncio.subprocess.Process) -> list[str]:
    assert worker.stdout is not None
    lines: list[str] = []
    while (line := (await worker.stdout.readline()).decode().strip()) != "done":
        assert line, "the worker died"
        lines += line.split()
    return lines


async def begin(*workers: asyncio.subprocess.Process) -> None:
    """Let all *workers* go on at once, when each has come so far."""
    for worker in workers:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"\n")


async def test_processes_claim_each_job_once(store: SQLiteStore, start_worker: Any) -> None:
    await store.add([job(f"{i:03}", 1.0) for i in range(500)])
    workers = [await start_worker(f"worker{i}") for i in range(2)]
    await begin(*workers)
    taken = [pair.split(":") for worker in workers for pair in await lines_until_done(worker)]
    assert sorted(id for id, _ in taken) == [f"{i:03}" for i in range(500)]
    assert {r.id: r.fence for r in await store.page(Filter(), 1000)} == {
        id: int(fence) for id, fence in taken
    }


async def test_what_a_killed_process_held_is_taken_over_under_a_higher_fence(
    path: Path, store: SQLiteStore, start_worker: Any
) -> None:
    await store.add([job("a", 1.0)])
    worker = await start_worker("mortal")
    await begin(worker)
    [pair] = await lines_until_done(worker)
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    fence = int(pair.split(":")[1])
    lost = (await store.get(["a"]))["a"]
    assert (lost.holder, lost.fence) == ("mortal-0", fence)
    async with opened(SQLiteStore(path)) as later:
        await later.open(now=lambda: float(lost.wake_at or 0))
        [taken] = await claim(later)
    assert (taken.id, taken.prior, taken.tries) == ("a", fence, 2)
    assert taken.fence > fence
