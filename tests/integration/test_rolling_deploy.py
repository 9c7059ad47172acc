"""Two revisions of a service side by side, as real processes: the older one, started again later, undoes nothing."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncsched import Job, Scheduler, every
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
APP = """
from asyncsched import Scheduler, every

scheduler = Scheduler(
    "sqlite:///jobs.db?busy_timeout=10", application="shop", revision=%(revision)d, gone="remove", id="r%(revision)d",
    poll_interval=0.2, lease=5,
)

def note(line):
    with open("notes", "a") as notes:
        notes.write(line + "\\n")

@scheduler.job(every(seconds=%(every)s), id="common")
async def common():
    note("common by r%(revision)d")

if %(revision)d == 1:
    @scheduler.job(every(seconds=3600), id="old")
    async def old(): ...
else:
    @scheduler.job(every(seconds=0.3), id="new")
    async def new():
        note("new by r%(revision)d")
"""


@contextmanager
def service(folder: Path, revision: int) -> Iterator[subprocess.Popen[bytes]]:
    """``asyncsched run`` of that revision; its log is the file ``rN.log``."""
    with (folder / f"r{revision}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncsched", "run", f"app{revision}:scheduler"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


async def test_an_older_process_that_starts_beside_a_newer_one_undoes_nothing(
    stores: tuple[str, ...], tmp_path: Path
) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")
    for revision, seconds in ((1, 3600), (2, 7200)):
        (tmp_path / f"app{revision}.py").write_text(APP % {"revision": revision, "every": seconds})

    def log(revision: int) -> str:
        return (tmp_path / f"r{revision}.log").read_text()

    def lines(line: str) -> int:
        notes = tmp_path / "notes"
        return notes.read_text().splitlines().count(line) if notes.exists() else 0

    async with asyncio.timeout(60):
        with service(tmp_path, 1) as first:
            await eventually(lambda: "runs as r1" in log(1), what="the first revision")
            with service(tmp_path, 2) as second:
                await eventually(lambda: "runs as r2" in log(2), what="the second revision")
                first.send_signal(signal.SIGTERM)
                await eventually(lambda: first.poll() is not None, what="the end of the first revision")
                before = await read(tmp_path)
                assert {id: job.trigger.unbound() for id, job in before.items()} == {
                    "common": every(seconds=7200),
                    "new": every(seconds=0.3),
                }
                with service(tmp_path, 1):
                    # A straggler of the deploy: it starts once more, and has old code.
                    await eventually(lambda: "stay as revision 2" in log(1), what="the straggler")
                    await eventually(
                        lambda: "job 'new' is handed back" in log(1), what="a job that it does not know"
                    )
                    ran = lines("new by r2")
                    await eventually(lambda: lines("new by r2") >= ran + 2, what="runs by the newer one")
                    after = await read(tmp_path)
                    assert second.poll() is None
        assert {id: (job.version, job.created_at) for id, job in after.items()} == {
            id: (job.version, job.created_at) for id, job in before.items()
        }
        assert "new by r1" not in (tmp_path / "notes").read_text()


async def read(folder: Path) -> dict[str, Job]:
    async with Scheduler(f"sqlite:///{folder}/jobs.db?busy_timeout=10", queues=(), heartbeat=None) as client:
        return {job.id: job for job in await client.get_jobs()}
