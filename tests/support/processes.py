"""Worker processes of a test: started, killed, and always ended with it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from asyncsched import Scheduler
from tests.support.waiting import eventually

__all__ = ["HEARS_TROUBLE", "Line", "WorkerProcess", "Workers", "client", "workers"]

ROOT = Path(__file__).resolve().parents[2]


class Line(NamedTuple):
    """What a worker wrote down."""

    event: str
    job_id: str
    fence: int
    instance: str
    at: float
    #: The fire time of the run that wrote it; 0: it is not about a run.
    fire: float


#: What a worker with this in its command line writes down about its leases and its store.
HEARS_TROUBLE = ("--hear", "RunLost,StoreDegraded,StoreRecovered")


class WorkerProcess:
    """One ``python -m tests.integration.worker``."""

    def __init__(
        self, name: str, folder: Path, url: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._errors = folder / f"{name}.err"
        #: Lines that were read, where the next begins, and an index of the first so many of them.
        self._lines: list[Line] = []
        self._read = 0
        self._written: set[tuple[str, str | None]] = set()
        self._indexed = 0
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.worker",
                 "--store", url, "--log", str(self._log), "--id", name, *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, **environment},
            )  # fmt: skip

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def lines(self) -> Sequence[Line]:
        """What it has written down so far; only what is new is read."""
        if self._log.exists():
            with self._log.open("rb") as log:
                log.seek(self._read)
                new = log.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.decode().splitlines():
                event, job_id, fence, by, at, fire = line.split()
                self._lines.append(Line(event, job_id, int(fence), by, float(at), float(fire)))
        return self._lines

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def wrote(self, event: str, job_id: str | None = None) -> bool:
        written = self._written
        for line in self.lines[self._indexed :]:
            written |= {(line.event, None), (line.event, line.job_id)}
        self._indexed = len(self._lines)
        return (event, job_id) in written

    async def ready(self) -> None:
        """Return once it serves."""
        await eventually(lambda: self.wrote("ready") or not self.is_alive, what=f"worker {self.name}")
        assert self.wrote("ready"), self.errors

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    async def stop(self) -> None:
        """Let it drain and end."""
        self.process.terminate()
        await eventually(lambda: not self.is_alive, what=f"the end of worker {self.name}")


class Workers:
    """The worker processes of one test, on one store: that of *url*, or a SQLite file in *folder*."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.url = url or f"sqlite:///{folder}/jobs.db"
        self.all: list[WorkerProcess] = []
        self._folder = folder
        self._numbers = itertools.count(1)

    def start(self, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> WorkerProcess:
        name = f"worker-{next(self._numbers)}"
        worker = WorkerProcess(name, self._folder, self.url, arguments, environment)
        self.all.append(worker)
        return worker

    async def start_ready(
        self, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
    ) -> WorkerProcess:
        worker = self.start(*arguments, environment=environment)
        await worker.ready()
        return worker

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.all if worker.is_alive))

    @property
    def lines(self) -> list[Line]:
        """What all of them wrote down, in the order of time."""
        return sorted((line for worker in self.all for line in worker.lines), key=lambda line: line.at)


def client(url: str) -> Scheduler:
    """A scheduler that only adds and looks; it knows the workers' tasks by name and signature."""
    scheduler = Scheduler(url, queues=(), id="client")

    @scheduler.task(name="work")
    async def work(seconds: float) -> None: ...

    @scheduler.task(name="die")
    async def die() -> None: ...

    @scheduler.task(name="freeze")
    async def freeze() -> str:
        return ""

    return scheduler


@contextmanager
def workers(folder: Path, url: str | None = None) -> Iterator[Workers]:
    """Workers whose processes are gone when this ends, however it ends."""
    started = Workers(folder, url)
    try:
        yield started
    finally:
        for worker in started.all:
            with suppress(ProcessLookupError):
                worker.signal(signal.SIGCONT)
            worker.kill()
