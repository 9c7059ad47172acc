"""What is measured, by whom, and what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["CASES", "LIMIT", "OWN", "Case", "Figure", "Part", "Sizes", "Target"]

#: The columns of the table.
OWN = "asyncsched"
PEER_3, PEER_4, LIMIT = "APScheduler 3", "APScheduler 4", "limit"
_MODULES = {
    OWN: ("", "benchmarks.own"),
    PEER_3: ("apscheduler3", "benchmarks.peers.apscheduler3"),
    PEER_4: ("apscheduler4", "benchmarks.peers.apscheduler4"),
    LIMIT: ("", "benchmarks.limits"),
}


@dataclass(frozen=True)
class Sizes:
    """How much is done in one measurement."""

    repeats: int
    drained: int
    drained_sqlite: int
    drained_slow: int
    window_s: float
    added: int
    sized: int
    idle_s: float


FULL = Sizes(3, 30_000, 20_000, 1_000, 5.0, 100_000, 100_000, 10.0)
QUICK = Sizes(1, 10_000, 5_000, 200, 2.0, 20_000, 20_000, 5.0)


@dataclass(frozen=True)
class Part:
    """One contestant's measurement: a column, its function and keywords; *key* tells several of one column apart."""

    column: str
    measure: str
    keywords: dict[str, Any]
    key: str = ""

    @property
    def peer(self) -> str:
        """The environment that it needs; empty: this one."""
        return _MODULES[self.column][0]

    @property
    def module(self) -> str:
        return _MODULES[self.column][1]


@dataclass(frozen=True)
class Target:
    """*value* is compared with the figure itself, or with its ratio to what stands in the column *over*."""

    kind: Literal[">=", "<="]
    value: float
    over: str = ""


@dataclass(frozen=True)
class Figure:
    """One line of the table: the number *name* of the parts with this *key*, and of the peers' parts with *peers_key*."""

    title: str
    name: str
    form: str
    key: str = ""
    peers_key: str = ""
    target: Target | None = None


@dataclass(frozen=True)
class Case:
    """Measurements that are made in turns, and the lines that they give."""

    name: str
    parts: tuple[Part, ...]
    figures: tuple[Figure, ...]


_RATE, _MS, _SHARE, _US, _BYTES = ",.0f", ".2f", ".1%", ".1f", ",.0f"


def one_shots(sizes: Sizes) -> Case:
    jobs = {"jobs": sizes.drained}
    return Case(
        "one-shots",
        (
            Part(OWN, "drain", jobs),
            Part(OWN, "drain", jobs | {"history": True}, "history"),
            Part(PEER_3, "drain", jobs),
            Part(PEER_4, "drain", jobs),
            Part(LIMIT, "tasks", {"jobs": 4 * sizes.drained}),
        ),
        (
            Figure("memory: one-shots a second", "per_s", _RATE, target=Target(">=", 3.0, PEER_4)),
            Figure("  the same, against asyncio's tasks", "per_s", _RATE, target=Target(">=", 0.25, LIMIT)),
            Figure("  with history, against without", "per_s", _RATE, "history", "-", Target(">=", 0.6, OWN)),
            Figure("  CPU of one, us", "cpu_us", _US),
            Figure("  CPU of one with history, us", "cpu_us", _US, "history", "-"),
        ),
    )


def sqlite(sizes: Sizes) -> Case:
    parts: list[Part] = []
    figures: list[Figure] = []
    for synchronous in ("NORMAL", "FULL"):
        jobs = {"jobs": sizes.drained_sqlite, "store": f"sqlite:///FOLDER/jobs.db?synchronous={synchronous}"}
        parts += [
            Part(OWN, "drain", jobs, synchronous),
            Part(OWN, "drain", jobs | {"history": True}, f"{synchronous} history"),
            Part(
                LIMIT, "sqlite", {"jobs": sizes.drained_sqlite, "synchronous": synchronous}, key=synchronous
            ),
        ]
        target = Target(">=", 15_000) if synchronous == "NORMAL" else None
        title = f"SQLite {synchronous}: one-shots a second"
        figures += [
            Figure(title, "per_s", _RATE, synchronous, synchronous, target),
            Figure("  with history", "per_s", _RATE, f"{synchronous} history", "-"),
            Figure("  CPU of one, us", "cpu_us", _US, synchronous, synchronous),
        ]
    # SQLAlchemy sets neither mode: the peers write with what SQLite does by itself, a rollback journal and FULL.
    slow = {"jobs": sizes.drained_slow, "store": "sqlite"}
    parts += [Part(column, "drain", slow, "FULL") for column in (PEER_3, PEER_4)]
    return Case("sqlite", tuple(parts), tuple(figures))


def recurring(sizes: Sizes, jobs: int) -> Case:
    keywords = {"jobs": jobs, "window_s": sizes.window_s}
    parts = [
        Part(column, "recurring", keywords, key)
        for column, key in ((OWN, ""), (PEER_3, ""), (PEER_4, ""), (LIMIT, ""))
    ]
    is_top = jobs == 100_000
    figures = [
        Figure(f"{jobs:,} jobs, each every 10 s: starts a second", "starts_per_s", _RATE),
        Figure("  lag p50, ms", "p50_ms", _MS),
        Figure("  lag p99, ms", "p99_ms", _MS, target=Target("<=", 1.5) if is_top else None),
        Figure("  lag max, ms", "max_ms", _MS),
        Figure("  share of a core", "cpu_share", _SHARE, target=Target("<=", 0.25) if is_top else None),
    ]
    if is_top:
        parts.append(Part(OWN, "recurring", keywords | {"history": True}, "history"))
        figures += [
            Figure("  lag p99 with history, ms", "p99_ms", _MS, "history", "-"),
            Figure("  share of a core with history", "cpu_share", _SHARE, "history", "-"),
        ]
    return Case(f"recurring-{jobs}", tuple(parts), tuple(figures))


def size(sizes: Sizes) -> Case:
    parts = [Part(column, "size", {"jobs": sizes.sized}) for column in (OWN, PEER_3, PEER_4)]
    figures = (
        Figure("bytes of a stored recurring job", "bytes", _BYTES, target=Target("<=", 800)),
        Figure("  after its first run", "bytes_after_a_run", _BYTES, target=Target("<=", 800)),
    )
    return Case("bytes", tuple(parts), figures)


def adding(sizes: Sizes) -> Case:
    parts = [Part(column, "adding", {"jobs": sizes.added}) for column in (OWN, PEER_3, PEER_4)]
    on_disk = {"jobs": sizes.added, "store": "sqlite:///FOLDER/jobs.db"}
    parts.append(Part(OWN, "adding", on_disk, "sqlite"))
    figures = (
        Figure("memory: jobs added a second", "per_s", _RATE, target=Target(">=", 100_000)),
        Figure("  CPU of one, us", "cpu_us", _US),
        Figure("SQLite NORMAL: jobs added a second", "per_s", _RATE, "sqlite", "-"),
    )
    return Case("adding", tuple(parts), figures)


def idle(sizes: Sizes) -> Case:
    keywords = {"jobs": 10_000, "window_s": sizes.idle_s}
    parts = [Part(column, "idle", keywords) for column in (OWN, PEER_3, PEER_4)]
    parts.append(Part(OWN, "idle", keywords | {"store": "sqlite:///FOLDER/jobs.db"}, "sqlite"))
    figures = (
        # Below half of a tenth of a percent is shown as 0.0 %.
        Figure("memory, 10,000 future jobs: CPU", "cpu_share", _SHARE, target=Target("<=", 0.0005)),
        Figure("  wake-ups a second", "wakeups_per_s", _MS, target=Target("<=", 0.1)),
        Figure("SQLite, 10,000 future jobs: CPU", "cpu_share", _SHARE, "sqlite", "-"),
        Figure("  wake-ups a second", "wakeups_per_s", _MS, "sqlite", "-"),
    )
    return Case("idle", tuple(parts), figures)


def _cases(sizes: Sizes) -> dict[str, Case]:
    cases = [one_shots(sizes), sqlite(sizes)]
    cases += [recurring(sizes, jobs) for jobs in (1_000, 10_000, 100_000)]
    cases += [size(sizes), adding(sizes), idle(sizes)]
    return {case.name: case for case in cases}


CASES = {"full": (FULL, _cases(FULL)), "quick": (QUICK, _cases(QUICK))}
