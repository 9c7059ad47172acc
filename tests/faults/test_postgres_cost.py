"""What a claim costs on PostgreSQL does not grow with what is stored, finished, or dead.

Costs are counted in pages that the server touches, which is the same at each run; how long that takes is not.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest

from asyncsched.contract import Claim, JobStore, Record, Settlement, Update
from asyncsched.stores.postgres import PostgresStore, statements
from tests.servers.running import Servers

pytestmark = pytest.mark.anyio

SMALL, LARGE = 1_000, 1_000_000
#: How much more a call may cost with a thousand times as much in the store.
RATIO = 1.5
NOW = 1_800_000_000.0
#: Stands in the statement that takes due jobs.
TAKES = "due AS MATERIALIZED"

_JOBS = """INSERT INTO {jobs} (space, id, birth, queue, priority, task, wake_at, body, cursor, version, fence, settled, tries)
    SELECT {space}, md5(i::text), 'birth', 'default', 5, 'task', {now} - 20000 + i * 0.01, 'body', '', 1, 0, 0, 0
    FROM generate_series({first}, {last}) AS i"""
_RUNS = """INSERT INTO {runs} (space, job_id, fence, kind, fire_at, at, body)
    SELECT {space}, md5(i::text), i, 'run', {now} - i, {now} - i * 0.01, 'log' FROM generate_series({first}, {last}) AS i"""


@pytest.fixture(scope="module")
def url(stores: Sequence[str], servers: Servers) -> str:
    if "postgres" not in stores:
        pytest.skip("postgres was left out by --stores")
    return servers.url("postgres")


class Bench:
    """A store on one connection, whose statements can be explained."""

    def __init__(self, store: PostgresStore, connection: asyncpg.Connection, place: str) -> None:
        self.store, self.connection = store, connection
        self.jobs, self.runs = f"{place}.asyncsched_jobs", f"{place}.asyncsched_runs"
        self.plans: list[str] = []
        connection.add_log_listener(lambda _, message: self.plans.append(message.message))

    async def fill(self, statement: str, first: int, last: int) -> None:
        values = {"jobs": self.jobs, "runs": self.runs, "space": self.store._space, "now": NOW}
        await self.connection.execute(statement.format(first=first, last=last, **values))

    async def vacuum(self) -> None:
        for table in (self.jobs, self.runs):
            await self.connection.execute(f"VACUUM ANALYZE {table}")

    async def claim(self, limit: int = 100) -> list[Record]:
        async with self.store.within(self.connection) as joined:
            return (await joined.claim(["default", "other"], secrets.token_hex(4), limit, 30.0)).records

    async def settle(self, records: Sequence[Record]) -> None:
        batch = [
            Settlement(
                id=r.id,
                fence=r.fence,
                holder=str(r.holder),
                version=r.version,
                delete=i % 2 == 0,
                wake_at=NOW + 60,
            )
            for i, r in enumerate(records)
        ]
        async with self.store.within(self.connection) as joined:
            assert await joined.settle(batch) == ["done"] * len(batch)

    async def pages(self) -> tuple[int, int, int]:
        """How many pages a claim of 100, the settlement of these and a claim of none touch."""
        counted = []
        self.plans.clear()
        held = await self.claim()
        assert len(held) == 100
        counted.append(self.touched("claim_1"))
        await self.settle(held)
        counted.append(self.touched("settle_1"))
        await self.claim(limit=0)
        counted.append(self.touched("claim_1"))
        return counted[0], counted[1], counted[2]

    def touched(self, function: str) -> int:
        """The pages of the last call of *function*: its plan is told last, and counts what was done inside."""
        [*_, plan] = [
            plan for plan in self.plans if "Query Text: SELECT * FROM" in plan and f'{function}"(' in plan
        ]
        self.plans.clear()
        found = re.search(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?", plan)
        assert found is not None, plan
        return sum(int(pages or 0) for pages in found.groups())


@pytest.fixture
async def bench(url: str) -> AsyncIterator[Bench]:
    async with made(url) as bench:
        yield bench


@asynccontextmanager
async def made(url: str) -> AsyncIterator[Bench]:
    place = f"cost_{secrets.token_hex(6)}"
    store = PostgresStore(url, schema=place, timeout=120.0)
    await store.open(now=lambda: NOW)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("LOAD 'auto_explain'")
        for setting in (
            "log_min_duration = 0",
            "log_analyze = on",
            "log_buffers = on",
            "log_nested_statements = on",
            "log_timing = off",
        ):
            await connection.execute(f"SET auto_explain.{setting}")
        await connection.execute("SET client_min_messages = log")
        bench = Bench(store, connection, place)
        # It is the pages of reading that count here, so the disk may be left out.
        for table in (bench.jobs, bench.runs):
            await connection.execute(f"ALTER TABLE {table} SET UNLOGGED, SET (autovacuum_enabled = off)")
        yield bench
    finally:
        await store.close()
        await connection.execute(
            f"SET client_min_messages = error; SET auto_explain.log_min_duration = -1; DROP SCHEMA {place} CASCADE"
        )
        await connection.close()


def scans(plans: Sequence[str]) -> list[str]:
    """The steps of the store's own statements that read more of a table than an index points to."""
    own = [plan for plan in plans if "asyncsched_" in plan]
    wide = re.compile(r"Seq Scan on|Bitmap|Hash Join|Merge Join")
    return [line for plan in own for line in plan.splitlines() if wide.search(line)]


async def test_plans_use_the_indexes_from_the_first_call_on_an_empty_store(bench: Bench) -> None:
    """The plans are made while there is nothing, and kept."""
    assert await bench.claim() == []
    await bench.fill(_JOBS, 1, SMALL)
    for _ in range(3):
        held = await bench.claim()
        await bench.settle(held)
    claims = [plan for plan in bench.plans if TAKES in plan]
    probes = [plan for plan in bench.plans if "WITH ORDINALITY" in plan]
    assert len(claims) >= 3
    assert len(probes) >= 4
    for plan in claims + probes:
        assert "asyncsched_jobs_lane" in plan, plan
    assert any("asyncsched_jobs_pkey" in plan for plan in bench.plans)
    assert scans(bench.plans) == []


async def test_what_was_planned_on_an_empty_store_costs_no_more_when_it_is_full(bench: Bench) -> None:
    """A connection keeps its plans, and nobody tells it that the tables have grown before their next analysis."""
    for turn in range(3):
        await costs_of_calls(bench, f"early-{turn}")
    await bench.fill(_JOBS, 1, 20_000)
    leases = bench.jobs.replace("jobs", "leases")
    await bench.connection.execute(
        f"INSERT INTO {leases} (space, key, holder, fence, until) "
        f"SELECT {bench.store._space}, i::text, 'other', i, 0 FROM generate_series(1, 20000) AS i"
    )
    for name, touched in (await costs_of_calls(bench, "late")).items():
        assert touched < 600, (name, touched)


async def costs_of_calls(bench: Bench, mark: str) -> dict[str, int]:
    """The pages that each call about 20 jobs touches."""
    costs: dict[str, int] = {}
    ids = [f"{mark}-{n}" for n in range(20)]
    added = [Record(id, "birth", mark, 5, "task", NOW - 1, None, b"body", b"") for id in ids]
    held: list[Record] = []

    async def claim(store: JobStore) -> None:
        held[:] = (await store.claim([mark], f"token {mark}", 20, 30.0)).records
        assert len(held) == 20

    async def settle(store: JobStore, *, fence: int) -> None:
        batch = [
            Settlement(id=r.id, fence=r.fence + fence, holder=str(r.holder), version=r.version, wake_at=NOW)
            for r in held
        ]
        assert set(await store.settle(batch)) == ({"lost"} if fence else {"done"})

    async def update(store: JobStore) -> None:
        changed = Update(id=ids[0], version=1, body=b"new", queue=mark, priority=5, wake_at=NOW, hold=None)
        assert await store.update(changed) is not None

    async def leases(store: JobStore) -> None:
        assert len(await store.acquire(ids, "me", 30.0)) == 20

    async def extend(store: JobStore) -> None:
        found = list((await store.acquire(ids, "me", 30.0)).values())
        assert len(await store.extend(found, 30.0)) == 20
        await store.release(found)

    calls: dict[str, Callable[[JobStore], Awaitable[object]]] = {
        "add_1": lambda store: store.add(added),
        "get_1": lambda store: store.get(ids),
        "claim_1": claim,
        "renew_1": lambda store: store.renew([Claim(r.id, r.fence, str(r.holder)) for r in held], 60.0),
        "settle_each_1": lambda store: settle(store, fence=1),
        "settle_1": lambda store: settle(store, fence=0),
        "update_1": update,
        "remove_1": lambda store: store.remove(ids),
        "acquire_1": leases,
        "extend_1": extend,
    }
    for name, call in calls.items():
        bench.plans.clear()
        async with bench.store.within(bench.connection) as joined:
            await call(joined)
        costs[name] = bench.touched(name)
    return costs


async def test_a_claim_costs_the_same_with_a_million_jobs_and_a_million_finished_runs(bench: Bench) -> None:
    await bench.fill(_JOBS, 1, SMALL)
    await bench.fill(_RUNS, 1, SMALL)
    await bench.vacuum()
    for _ in range(3):
        few = await bench.pages()
    await bench.fill(_JOBS, SMALL + 1, LARGE)
    await bench.fill(_RUNS, SMALL + 1, LARGE)
    await bench.vacuum()
    bench.plans.clear()
    held = await bench.claim()
    await bench.settle(held)
    claims = [plan for plan in bench.plans if TAKES in plan or "WITH ORDINALITY" in plan]
    assert claims
    assert [
        plan for plan in claims if "asyncsched_jobs_lane" not in plan and "asyncsched_claims" not in plan
    ] == []
    assert scans(bench.plans) == []
    many = await bench.pages()
    for before, after in zip(few, many, strict=True):
        assert after <= RATIO * before, (few, many)


async def test_a_claim_costs_the_same_after_hundreds_of_thousands_of_writes_without_a_vacuum(
    bench: Bench,
) -> None:
    """What was taken leaves dead entries at the front of its lane until the next vacuum; a claim that is told where the one
    before it stopped does not walk over them."""
    await bench.fill(_JOBS, 1, 150_000)
    await bench.vacuum()
    query = bench.store._sql(statements.CLAIM)
    floor = -math.inf

    async def claim_more(room: int) -> None:
        nonlocal floor
        rows = await bench.connection.fetch(
            query,
            bench.store._space,
            ["default"],
            secrets.token_hex(4),
            room,
            30.0,
            0.0,
            NOW,
            floor,
            math.inf,
        )
        floor = rows[-1]["wake_at"]
        assert len(rows) == room + 2

    for _ in range(3):
        await claim_more(100)
    fresh = bench.touched("claim_1")
    await bench.connection.execute("SET auto_explain.log_min_duration = -1")
    for _ in range(120):
        await claim_more(1000)
    await bench.connection.execute("SET auto_explain.log_min_duration = 0")
    for _ in range(3):
        await claim_more(100)
    worn = bench.touched("claim_1")
    floor = -math.inf
    await claim_more(100)
    assert worn <= RATIO * fresh
    # And this is what it is spared.
    assert bench.touched("claim_1") > 2 * fresh
