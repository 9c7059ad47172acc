"""What every contestant shares: the job that it runs, and how its rate, its lag, its CPU and its memory are read.

Only the standard library is used here, since peers import this from environments of their own.

**Rate** (:class:`Drain`): from the moment the scheduler is let go until the last job has *started*. The job counts down and
does nothing else.

**Lag** (:func:`recurring`): fire times stand on an even grid, so the k-th start belongs to the k-th fire time. The job only
notes the time (60 ns), and its fire time is worked out afterwards: reading it from the scheduler within each run would cost
more than some of what is measured. A start that is missing makes all later ones look later, one too many makes them look
earlier, so neither can flatter. CPU and lag thus come from the same starts.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import os
import resource
import sys
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = [
    "CONCURRENCY",
    "PERIOD_S",
    "Drain",
    "Grid",
    "Size",
    "drained_job",
    "idle",
    "main",
    "noted_job",
    "recurring",
    "sleeping_job",
    "timed",
]

#: How many runs each contestant may have under way.
CONCURRENCY = 100
#: The interval of every recurring job.
PERIOD_S = 10.0

Figures = dict[str, Any]

_left = 0
_over: asyncio.Event | None = None
_starts = array("d")


async def drained_job() -> None:
    """The one-shot: counts down, and says when none is left."""
    global _left
    _left -= 1
    if _left == 0 and _over is not None:
        _over.set()


async def noted_job() -> None:
    """The recurring job: notes when it started."""
    _starts.append(time.time())


async def sleeping_job() -> None:
    """A job that is never due while anybody looks."""


class Drain:
    """Times how fast *jobs* runs of :func:`drained_job` are started."""

    def __init__(self, jobs: int) -> None:
        global _left, _over
        _left, _over = jobs, asyncio.Event()
        self._jobs = jobs
        self._began, self._cpu = 0.0, 0.0

    def begin(self) -> None:
        """Everything is in place: the clock starts. What was left behind by the preparations is collected first."""
        gc.collect()
        self._began, self._cpu = time.perf_counter(), time.process_time()

    async def end(self, limit_s: float = 120.0) -> Figures:
        """Wait until the last job has started."""
        assert _over is not None
        await asyncio.wait_for(_over.wait(), limit_s)
        wall_s, cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu
        return {"per_s": self._jobs / wall_s, "cpu_us": cpu_s / self._jobs * 1e6}

    def check(self) -> None:
        """To be called after the scheduler has stopped: each job ran exactly once."""
        if _left:
            raise AssertionError(f"{self._jobs} jobs were added, and {self._jobs - _left} ran")


@contextmanager
def timed(jobs: int) -> Iterator[Figures]:
    """Fill in what the block took, for each of *jobs*."""
    figures: Figures = {}
    began, cpu = time.perf_counter(), time.process_time()
    yield figures
    figures["per_s"] = jobs / (time.perf_counter() - began)
    figures["cpu_us"] = (time.process_time() - cpu) / jobs * 1e6


class Grid:
    """The fire times of *jobs* jobs, each every :data:`PERIOD_S`, spread evenly.

    The first is so far off that all can be added before, at *adds_per_s*.
    """

    def __init__(self, jobs: int, adds_per_s: float = 15_000.0) -> None:
        self.jobs = jobs
        self.step_s = PERIOD_S / jobs
        self.first_at = round(time.time() + 1.5 + jobs / adds_per_s, 6)

    def phase(self, i: int) -> datetime:
        """When job *i* fires first."""
        return datetime.fromtimestamp(self.first_at, UTC) + timedelta(seconds=i * self.step_s)


async def recurring(grid: Grid, window_s: float, warm_s: float = 1.0) -> Figures:
    """Watch the jobs of *grid* for *window_s* seconds, once they have been running for *warm_s*."""
    spare_s = grid.first_at - time.time()
    if spare_s < 0.2:
        raise AssertionError(f"adding {grid.jobs} jobs took {0.2 - spare_s:.1f} s too long")
    gc.collect()
    del _starts[:]
    await _until(grid.first_at + warm_s)
    wall, cpu, count = time.time(), time.process_time(), len(_starts)
    await _until(grid.first_at + warm_s + window_s)
    wall, cpu, count = time.time() - wall, time.process_time() - cpu, len(_starts) - count
    await asyncio.sleep(0.25)
    due = range(round(warm_s / grid.step_s), round((warm_s + window_s) / grid.step_s))
    lags = sorted((_starts[k] - grid.first_at - k * grid.step_s) * 1e3 for k in due if k < len(_starts))
    is_held = len(lags) == len(due) and lags[len(lags) // 2] < 100
    figures: Figures = {
        "starts_per_s": count / wall,
        "cpu_share": cpu / wall,
        "is_held": is_held,
    }
    if is_held:
        figures |= {
            "min_ms": lags[0],
            "p50_ms": lags[len(lags) // 2],
            "p99_ms": lags[min(len(lags) - 1, len(lags) * 99 // 100)],
            "max_ms": lags[-1],
        }
    return figures


async def _until(at: float) -> None:
    await asyncio.sleep(at - time.time())


async def idle(window_s: float, settle_s: float = 2.0) -> Figures:
    """CPU, and how often any thread of this process was woken, while nothing is due."""
    gc.collect()
    await asyncio.sleep(settle_s)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await asyncio.sleep(window_s)
    after, wall_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Each time that a thread goes to sleep is a voluntary switch; one of them is this watcher's own.
    wakeups = after.ru_nvcsw - before.ru_nvcsw - 1
    return {"cpu_share": cpu_s / wall_s, "wakeups_per_s": wakeups / wall_s}


class Size:
    """How many bytes of Python objects were made since, and are still there."""

    def __init__(self) -> None:
        tracemalloc.start()
        gc.collect()
        self._before = tracemalloc.get_traced_memory()[0]

    def per(self, jobs: int) -> float:
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - self._before) / jobs


def main(measures: Mapping[str, Callable[..., Any]], leave: bool = True) -> None:
    """Run the measure named by the first argument, with the keywords that the second one holds, and print its figures."""
    name, keywords = sys.argv[1], json.loads(sys.argv[2])
    figures = measures[name](**keywords)
    if inspect.iscoroutine(figures):
        figures = asyncio.run(figures)
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()
    if leave:
        # Whatever a peer left running shall not hold up the next measurement.
        os._exit(0)
