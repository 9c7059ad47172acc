"""The stores that many instances share, each on a real server that is started for it, beside what its driver can do at all.

Everything is done with what the tests hold it to: fsync on (Redis: an append-only file, synced each second), the log of runs
written, history kept. The measured processes and the server share the machine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncsched import JobSpec, Scheduler, once, store_from_url
from asyncsched.contract import Record, Settlement
from benchmarks import raw
from benchmarks.board import Board, until
from benchmarks.environments import NotInstalled, python_of
from benchmarks.table import Line, table, verdict
from tests.servers.running import SERVERS, url_given_for
from tests.servers.server import Server

__all__ = ["KINDS", "MEASURES", "measure_stores"]

KINDS = ("redis", "postgres", "mariadb", "mysql", "mongodb", "zookeeper", "etcd", "firestore")
_FLEET = [sys.executable, "-m", "benchmarks.fleet"]
#: The fastest peer on each server, at what it does; and who keeps recurring jobs there.
_DRAINING_PEERS = {"postgres": "pgqueuer", "redis": "taskiq"}
_RECURRING_PEERS = {"postgres": "apscheduler3", "redis": "apscheduler3"}
_ROOT = Path(__file__).absolute().parent.parent


@dataclass(frozen=True)
class Target:
    """*value* is compared with the figure itself, or with its ratio to the figure *over*."""

    sense: str
    value: float
    over: str = ""

    def words(self) -> str:
        return f"{self.sense} {self.value:g}{f' x {self.over}' if self.over else ''}"

    def verdict(self, name: str, found: Mapping[str, float]) -> str:
        figure = found.get(name)
        if self.over and figure is not None:
            figure = figure / found[self.over] if self.over in found else None
        return verdict("<=" if self.sense == "<=" else ">=", figure, self.value)


#: What is to be reached, by (kind, figure).
TARGETS: Mapping[tuple[str, str], Target] = {
    ("postgres", "drain-1"): Target(">=", 1.5, "peer-drain-1"),
    ("postgres", "drain-2"): Target(">=", 1.5, "peer-drain-2"),
    ("postgres", "add_jobs"): Target(">=", 70_000),
    ("postgres", "lag-p99"): Target("<=", 8.0),
    ("postgres", "lag-cpu"): Target("<=", 0.25),
    ("postgres", "pickup-p50"): Target("<=", 4.0),
    ("postgres", "pickup-p99"): Target("<=", 20.0),
    ("postgres", "tick-ratio"): Target("<=", 1.5),
    ("redis", "drain-1"): Target(">=", 25_000),
    ("redis", "drain-2"): Target(">=", 40_000),
    ("redis", "add_jobs"): Target(">=", 60_000),
    ("redis", "lag-p99"): Target("<=", 2.0),
    ("redis", "lag-cpu"): Target("<=", 0.20),
    ("redis", "pickup-p50"): Target("<=", 4.0),
    ("redis", "pickup-p99"): Target("<=", 20.0),
    ("redis", "tick-ratio"): Target("<=", 1.5),
    ("mariadb", "drain-1"): Target(">=", 4_000),
    ("mariadb", "tick-ratio"): Target("<=", 1.5),
    **{(kind, "idle-queries"): Target("<=", 1.0) for kind in KINDS},
    **{
        target: value
        for kind in ("mongodb", "zookeeper", "etcd", "firestore")
        for target, value in {
            (kind, "drain-1"): Target(">=", 0.5, "raw"),
            (kind, "tick-ratio"): Target("<=", 1.5),
        }.items()
        # Firestore's emulator has no indexes: each query, of the driver's own too, costs what is stored.
        if (kind, target[1]) != ("firestore", "tick-ratio")
    },
}
#: (figure, processes, jobs)
_DRAINS = (("drain-1", 1, 30_000), ("drain-2", 2, 40_000), ("drain-4", 4, 40_000), ("backlog", 1, 100_000))
#: Starts a second that are asked of one process.
_SUSTAINED: Mapping[str, Sequence[int]] = {
    "redis": (6_000, 10_000),
    "postgres": (3_000, 6_000),
    "mariadb": (1_000,),
    "mysql": (1_000,),
    "mongodb": (300,),
    "zookeeper": (300,),
    "etcd": (300,),
    "firestore": (100,),
}
#: So many times less is asked of a server.
_SLOWER = {"redis": 1, "postgres": 1, "mongodb": 10, "zookeeper": 10, "etcd": 10, "firestore": 30}
_TITLES = {
    "add": "add_job, one by one, a second",
    "add_jobs": "add_jobs, a second",
    "drain-1": "drained a second, 1 process",
    "drain-cpu": "  CPU of one job in the worker, us",
    "drain-2": "drained a second, 2 processes",
    "drain-4": "drained a second, 4 processes",
    "backlog": "drained a second from a backlog of 100,000, 1 process",
    "peer-drain-1": "  the fastest peer (pgqueuer, taskiq), 1 process",
    "peer-drain-2": "  the same, 2 processes",
    "raw": "the driver's own batched claim and delete, a second",
    "pickup-p50": "pickup of a job from another process p50, ms",
    "pickup-p99": "  p99, ms",
    "lag-p50": "10,000 jobs (1,000 on the last four), each every 10 s: lag p50, ms",
    "lag-p99": "  p99, ms",
    "lag-cpu": "  share of a core",
    "peer-lag-p99": "  APScheduler 3: p99, ms",
    "peer-lag-cpu": "  APScheduler 3: share of a core",
    "idle-queries": "queries a second of an idle instance",
    "tick-small": "a tick with 1,000 stored jobs, us",
    "tick-large": "a tick with many stored jobs, us",
    "tick-ratio": "  ratio",
}

Figures = dict[str, float]


class Bench:
    """One server, and a fresh namespace for each measurement."""

    def __init__(self, kind: str, url: str, quick: bool) -> None:
        self.kind = kind
        self.quick = quick
        self._url = url

    def url(self) -> str:
        """The URL of a namespace that nobody has used."""
        mark = "&" if "?" in self._url else "?"
        return f"{self._url}{mark}namespace=b{uuid.uuid4().hex[:10]}"

    @property
    def server_url(self) -> str:
        return self._url

    def size(self, full: int) -> int:
        slower = _SLOWER.get(self.kind, 4)
        return max(full // slower // (10 if self.quick else 1), 100)

    @asynccontextmanager
    async def fleet(self, url: str, count: int, peer: str = "") -> AsyncIterator[Board]:
        """*count* worker processes of this project, or of a peer, that wait for go."""
        command = [python_of(peer), "-m", f"benchmarks.peers.{peer}", "work"] if peer else _FLEET
        with tempfile.TemporaryDirectory(prefix="asyncsched-bench-") as folder:
            path = Path(folder) / "board"
            board = Board(path)
            workers = [
                await asyncio.create_subprocess_exec(*command, url, str(path), str(row), cwd=_ROOT)
                for row in range(1, count + 1)
            ]
            try:
                await until(lambda: board.count_of_ready() == count)
                yield board
            finally:
                for worker in workers:
                    worker.terminate()
                for worker in workers:
                    await asyncio.wait_for(worker.wait(), 30)


# -- the measurements ------------------------------------------------------------------------------------------------------


async def adding(bench: Bench) -> Figures:
    async with _client(bench.url()) as client:
        singles = bench.size(2_000)
        began = time.perf_counter()
        for _ in range(singles):
            await client.add_job("job", once(delay=3600))
        one_by_one = singles / (time.perf_counter() - began)
        many = bench.size(50_000)
        specs = [JobSpec("job", once(delay=3600)) for _ in range(many)]
        began = time.perf_counter()
        await client.add_jobs(specs)
        return {"add": one_by_one, "add_jobs": many / (time.perf_counter() - began)}


async def draining(bench: Bench) -> Figures:
    figures: Figures = {}
    for name, processes, jobs in _DRAINS:
        rate, cpu_us = await _drain(bench, processes, bench.size(jobs))
        figures[name] = rate
        if name == "drain-1":
            figures["drain-cpu"] = cpu_us
    return figures


async def _drain(bench: Bench, processes: int, jobs: int) -> tuple[float, float]:
    url = bench.url()
    async with _client(url) as client:
        for start in range(0, jobs, 10_000):
            await client.add_jobs([JobSpec("job")] * min(10_000, jobs - start))
    return await _drained(bench, url, processes, jobs)


async def _drained(bench: Bench, url: str, processes: int, jobs: int, peer: str = "") -> tuple[float, float]:
    """Jobs a second, until the last has started; and microseconds of the workers' CPU for each."""
    async with bench.fleet(url, processes, peer) as board:
        cpu = board.cpu_s()
        began = time.time()
        board.go()
        await until(lambda: board.count() >= jobs)
        rate = jobs / (board.last_at() - began)
        await asyncio.sleep(0.6)
        count = board.count()
        if count != jobs:
            raise AssertionError(f"{jobs} jobs were added, and {count} were started")
        return rate, (board.cpu_s() - cpu) / jobs * 1e6


async def peers(bench: Bench) -> Figures:
    """Each on a server of its own, since one of them empties the database."""
    figures: Figures = {}
    draining_peer = _DRAINING_PEERS.get(bench.kind)
    for processes in (1, 2) if draining_peer else ():
        jobs = bench.size(20_000 if draining_peer == "pgqueuer" else 8_000)
        with _server(bench.kind) as url:
            fill = [
                python_of(draining_peer),
                "-m",
                f"benchmarks.peers.{draining_peer}",
                "fill",
                url,
                str(jobs),
            ]
            await asyncio.to_thread(subprocess.run, fill, cwd=_ROOT, check=True, capture_output=True)
            rate, _ = await _drained(bench, url, processes, jobs, draining_peer)
        figures[f"peer-drain-{processes}"] = rate
    if bench.kind in _RECURRING_PEERS:
        with _server(bench.kind) as url:
            jobs = 1_000 if bench.quick else 10_000
            lag = _apart("recurring", _RECURRING_PEERS[bench.kind], jobs=jobs, window_s=5.0, url=url)
        if lag["is_held"]:
            figures |= {"peer-lag-p99": lag["p99_ms"], "peer-lag-cpu": lag["cpu_share"]}
    return figures


async def pickup(bench: Bench) -> Figures:
    url = bench.url()
    lags: list[float] = []
    async with bench.fleet(url, 1) as board:
        board.go()
        async with _client(url) as client:
            for number in range(bench.size(400)):
                await asyncio.sleep(0.01)
                began = time.time()
                await client.enqueue("job")
                await until(lambda: board.count() > number, every_s=0.001)  # noqa: B023  # awaited within the turn
                lags.append((board.last_at() - began) * 1e3)
    return {"pickup-p50": _percentile(lags, 50), "pickup-p99": _percentile(lags, 99)}


async def recurring(bench: Bench) -> Figures:
    lag = _apart(
        "recurring",
        store=bench.url(),
        history=True,
        jobs=10_000 if _SLOWER.get(bench.kind, 4) < 10 else 1_000,
        window_s=3.0 if bench.quick else 10.0,
    )
    figures = (
        {"lag-p50": lag["p50_ms"], "lag-p99": lag["p99_ms"], "lag-cpu": lag["cpu_share"]}
        if lag["is_held"]
        else {}
    )
    for rate in () if bench.quick else _SUSTAINED[bench.kind]:
        found = _apart("recurring", store=bench.url(), history=True, jobs=rate * 10, window_s=8.0)
        figures[f"held-{rate}"] = found["starts_per_s"]
        if found["is_held"]:
            figures[f"held-{rate}-p99"] = found["p99_ms"]
    return figures


def _apart(measure: str, peer: str = "", **keywords: Any) -> dict[str, Any]:
    """One of asyncsched's own measurements, or of a peer's, in a process of its own."""
    place = (
        [python_of(peer), "-m", f"benchmarks.peers.{peer}"]
        if peer
        else [sys.executable, "-m", "benchmarks.own"]
    )
    done = subprocess.run(
        [*place, measure, json.dumps(keywords)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise AssertionError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def idle(bench: Bench) -> Figures:
    url = bench.url()
    window_s = 3.0 if bench.quick else 15.0
    async with _client(url) as client:
        await client.add_jobs([JobSpec("job", once(delay=3600))] * 1_000)
    # What the server does by itself is counted there, too.
    before = await raw.queries(bench.kind, bench.server_url)
    if before is None:
        return {}
    await asyncio.sleep(window_s)
    own = await raw.queries(bench.kind, bench.server_url) - before
    async with bench.fleet(url, 1) as board:
        board.go()
        # A PostgreSQL connection may report up to ten seconds late what it did: the start is not to be counted.
        await asyncio.sleep(2.0 if bench.quick else 12.0)
        before = await raw.queries(bench.kind, bench.server_url)
        await asyncio.sleep(window_s)
        after = await raw.queries(bench.kind, bench.server_url)
    return {"idle-queries": max(after - before - own, 0) / window_s}


async def ticks(bench: Bench) -> Figures:
    """The median time of claiming one job and settling it, with few and with many stored."""
    small, large = 1_000, 10_000 if bench.kind == "firestore" else max(bench.size(1_000_000), 10_000)
    few, many = await _tick_us(bench, small), await _tick_us(bench, large)
    return {"tick-small": few, "tick-large": many, "tick-ratio": many / few}


async def _tick_us(bench: Bench, stored: int) -> float:
    store = store_from_url(bench.url())
    await store.open()
    try:
        now = await store.now()
        for start in range(0, stored, 10_000):
            await store.add(
                [_record(f"later-{n}", now + 3600 + n) for n in range(start, min(stored, start + 10_000))]
            )
        await store.add([_record("now", now)])
        took: list[float] = []
        for number in range(300):
            began = time.perf_counter()
            [record] = (await store.claim(["default"], f"tick-{number}", 10, 30.0)).records
            await store.settle([_moved(record, now)])
            took.append((time.perf_counter() - began) * 1e6)
        return statistics.median(took[50:])
    finally:
        await store.close()


def _record(id: str, wake_at: float) -> Record:
    return Record(id, "b", "default", 0, "job", wake_at, None, b"x" * 60, b"")


def _moved(record: Record, wake_at: float) -> Settlement:
    return Settlement(
        record.id, record.fence, record.holder or "", record.version, cursor=b"c" * 20, wake_at=wake_at
    )


async def limit(bench: Bench) -> Figures:
    return {"raw": await raw.claim_and_delete(bench.kind, bench.server_url, bench.size(30_000))}


def _client(url: str) -> Scheduler:
    client = Scheduler(url, queues=())

    async def job() -> None: ...

    client.register(job, "job")
    return client


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


# -- all of them -----------------------------------------------------------------------------------------------------------

MEASURES: Mapping[str, Callable[[Bench], Awaitable[Figures]]] = {
    "adding": adding,
    "limit": limit,
    "draining": draining,
    "pickup": pickup,
    "recurring": recurring,
    "idle": idle,
    "ticks": ticks,
    "peers": peers,
}


def measure_stores(
    kinds: Sequence[str], names: Sequence[str], repeats: int, quick: bool, tell: Callable[[str], None]
) -> str:
    """The table of the medians, one column for each kind of server."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind in kinds:
        of_kind = found[kind] = {}
        with _server(kind) as url:
            bench = Bench(kind, url, quick)
            for turn in range(repeats):
                for name in names or list(MEASURES):
                    tell(f"{kind}: {name}, {turn + 1} of {repeats}")
                    for figure, value in _found(MEASURES[name], bench, tell).items():
                        of_kind.setdefault(figure, []).append(value)
    return table(
        _lines(
            {
                kind: {name: statistics.median(of) for name, of in values.items()}
                for kind, values in found.items()
            }
        )
    )


def _found(
    measured: Callable[[Bench], Awaitable[Figures]], bench: Bench, tell: Callable[[str], None]
) -> Figures:
    """What one measurement brings; one that fails leaves its figures out, and the others go on."""

    async def run() -> Figures:
        return await measured(bench)

    try:
        figures = asyncio.run(run())
    except (AssertionError, TimeoutError, NotInstalled, subprocess.SubprocessError) as error:
        tell(f"  no figure: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}")
        return {}
    tell("  " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return figures


@contextmanager
def _server(kind: str) -> Iterator[str]:
    given = url_given_for(kind)
    if given is not None:
        yield given
        return
    server: Server = SERVERS[kind]()
    server.start()
    try:
        yield server.url
    finally:
        server.remove()


def _lines(found: Mapping[str, Figures]) -> list[Line]:
    names = [*_TITLES, *sorted({name for figures in found.values() for name in figures} - set(_TITLES))]
    lines = []
    for name in names:
        cells = {
            kind: _shown(name, figures[name]) if name in figures else "" for kind, figures in found.items()
        }
        if not any(cells.values()):
            continue
        targets = {kind: TARGETS[kind, name] for kind in found if (kind, name) in TARGETS}
        wanted = ", ".join(f"{kind} {of.words()}" for kind, of in targets.items())
        verdicts = ", ".join(of.verdict(name, found[kind]) for kind, of in targets.items())
        lines.append(Line(_title(name), cells, "", wanted, verdicts))
    return lines


def _title(name: str) -> str:
    if name in _TITLES:
        return _TITLES[name]
    rate = int(name.split("-")[1])
    return "  p99 of that, ms" if name.endswith("p99") else f"{rate:,} starts a second asked: held"


def _shown(name: str, value: float) -> str:
    if name.endswith("lag-cpu"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
