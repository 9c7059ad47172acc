"""A worker process for tests: ``python -m tests.integration.worker --store URL --log FILE``.

It serves until SIGTERM. What its runs do goes line by line into its log, each with one write to a file opened for appending,
so that a SIGKILL at any instant loses no line and cuts none in two.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import time

import asyncsched
from asyncsched import Event, RunEvent, Scheduler, SchedulerStarted, current_run

__all__ = ["main"]


#: What ``--hear`` without names stands for.
EVENTS = "RunStarted,RunLost,RunSucceeded"


class Log:
    """Lines of: event, job id, fence, instance, time, fire time."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(
        self, event: str, job_id: str = "-", fence: int = 0, instance: str = "-", fire: float = 0.0
    ) -> None:
        line = f"{event} {job_id} {fence} {instance} {time.time():.6f} {fire:.6f}\n"
        os.write(self._file, line.encode())

    def of_run(self, event: str) -> None:
        """A line about the run that writes it, under the fence that it has now."""
        run = current_run()
        self.write(event, run.job_id, run.fence, run.instance, run.fire_time.timestamp())

    def heard(self, event: Event) -> None:
        """A line about an event of the scheduler."""
        if isinstance(event, RunEvent):
            fire = event.fire_time.timestamp()
            self.write(type(event).__name__, event.job_id, event.fence, fire=fire)
        else:
            self.write(type(event).__name__)


def make_scheduler(options: argparse.Namespace, log: Log) -> Scheduler:
    scheduler = Scheduler(
        options.store,
        lease=options.lease,
        heartbeat=options.heartbeat,
        concurrency=options.concurrency,
        id=options.id or None,
    )

    @scheduler.task(name="work")
    async def work(seconds: float) -> None:
        log.of_run("begun")
        await asyncio.sleep(seconds)
        log.of_run("ended")

    @scheduler.task(name="die")
    async def die() -> None:
        log.of_run("begun")
        os._exit(9)

    @scheduler.task(name="freeze")
    async def freeze() -> str:
        """Stop this process in mid-run, if it is the one that is told to; whoever else runs it just returns."""
        log.of_run("begun")
        if options.freezes or (options.freezes_once and is_first(options.freezes_once)):
            os.kill(os.getpid(), signal.SIGSTOP)
        log.of_run("ended")
        return str(options.id)

    for name in filter(None, options.hear.split(",")):
        scheduler.on(getattr(asyncsched, name), log.heard)
    return scheduler


def is_first(path: str) -> bool:
    """Whether nobody has made this file before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


async def serve(options: argparse.Namespace) -> None:
    log = Log(options.log)
    scheduler = make_scheduler(options, log)

    scheduler.on(SchedulerStarted, lambda event: log.write("ready"))
    await scheduler.run(drain=5)
    log.write("stopped")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--lease", type=float, default=2.0)
    parser.add_argument("--heartbeat", type=float, default=30.0)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--id", default="")
    parser.add_argument("--freezes", action="store_true", help="let the task freeze stop this process")
    parser.add_argument("--freezes-once", metavar="FILE", help="the same, for whoever makes this file first")
    parser.add_argument(
        "--hear",
        nargs="?",
        default="",
        const=EVENTS,
        help="write these events of the scheduler into the log too",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
