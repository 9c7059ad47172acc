"""The demonstration: jobs of every kind in a temporary SQLite store, and a worker process that is killed in mid-job.

All of it is real: what is printed comes from the scheduler's events, from the workers' own output and from the history.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from asyncsched import (
    Decision,
    Job,
    JobEvent,
    Retry,
    Run,
    RunFailed,
    RunSkipped,
    RunStarted,
    RunSucceeded,
    Scheduler,
    cron,
    current_run,
    every,
    manual,
    once,
)
from asyncsched.cli.demo_worker import LEASE_S, QUEUE, TASK, build_report
from asyncsched.cli.show import one_line, print_table
from asyncsched.clock import SystemClock, host_time
from asyncsched.stores.sqlite import SQLiteStore
from asyncsched.units import to_datetime

__all__ = ["run_demo"]

_LENGTH_S = 15.0
_REPORT = "report-42"
#: How long a step that waits for a worker may take before the demonstration has failed.
_PATIENCE_S = 20.0
_UPCOMING = 6
_STYLES = {
    "ran": "green",
    "failed": "red",
    "retry": "yellow",
    "skipped": "yellow",
    "killed": "bold red",
    "recovered": "bold green",
    "asks": "cyan",
}
_OUTCOME_STYLES = {"succeeded": "green", "failed": "red", "lost": "bold red"}


@dataclass
class Stage:
    """Where the demonstration is seen: on a terminal what is due next stands below the lines, elsewhere it is a line."""

    console: Console
    live: Live | None = None
    began_at: float = field(default_factory=SystemClock.monotonic)
    retries: int = 0

    @property
    def elapsed_s(self) -> float:
        return SystemClock.monotonic() - self.began_at

    def say(self, who: str, verb: str, what: str) -> None:
        line = Text(f"{self.elapsed_s:5.1f} s  {who:<9} ")
        line.append(f"{verb:<10}", style=_STYLES.get(verb, "")).append(one_line(what))
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def show_upcoming(self, jobs: list[Job]) -> None:
        due = [job for job in jobs if job.state == "scheduled" and job.next_fire_time is not None][:_UPCOMING]
        now = to_datetime(host_time())
        if self.live is not None:
            self.live.update(_panel(due, self.elapsed_s))
            return
        names = [f"{_short(job.name)} in {_until(job, now)}" for job in due]
        self.say("demo", "due next", ", ".join(names) or "nothing")


async def run_demo() -> int:
    """Play it; the exit code is 0 if the killed worker's job was recovered."""
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="asyncsched-demo-", ignore_cleanup_errors=True) as folder:
        path = str(Path(folder) / "jobs.db")
        scheduler = Scheduler(SQLiteStore(path), id="demo")
        stage = Stage(console)
        _listen(scheduler, stage)
        console.print(f"asyncsched: {_LENGTH_S:.0f} seconds of jobs in {path}", soft_wrap=True)
        async with scheduler:
            await _add_jobs(scheduler)
            await _play(scheduler, stage, path)
            is_recovered = await _show_history(scheduler, stage)
    return 0 if is_recovered else 1


async def _play(scheduler: Scheduler, stage: Stage, path: str) -> None:
    live = Live(console=stage.console, auto_refresh=False) if stage.console.is_terminal else None
    with live or contextlib.nullcontext():
        stage.live = live
        async with asyncio.TaskGroup() as tasks:
            progress = tasks.create_task(_show_progress(scheduler, stage))
            scenes = [_at_hand(scheduler, stage), _crash(scheduler, stage, path)]
            await asyncio.gather(*scenes, asyncio.sleep(_LENGTH_S))
            progress.cancel()
            await _rest(scheduler)
        if live is not None:
            live.update(Text(""))
        stage.live = None


async def _rest(scheduler: Scheduler) -> None:
    """Claim nothing more, and let what is under way end and be written."""
    await scheduler.pause()
    async with asyncio.timeout(_PATIENCE_S):
        for run in scheduler.running():
            await scheduler.wait_job(run.job_id)


# -- the jobs --------------------------------------------------------------------------------------------------------------


async def greet(name: str) -> str:
    return f"hello, {name}"


async def beat() -> None:
    return None


async def chime() -> str:
    return f"{current_run().fire_time:%H:%M:%S}"


async def sync_stock() -> str:
    """Slower than its interval: what falls due meanwhile is skipped, and the history says so."""
    await asyncio.sleep(2.4)
    return "in step"


async def send_mail(to: str) -> str:
    attempt = current_run().attempt
    if attempt < 3:
        raise ConnectionError("the mail server is busy")
    return f"sent to {to} at attempt {attempt}"


async def back_up() -> str:
    await asyncio.sleep(0.3)
    return "done"


async def resize(image: str) -> str:
    await asyncio.sleep(0.1)
    return f"{image} is smaller"


async def _add_jobs(scheduler: Scheduler) -> None:
    """One of each kind; ``resize`` is enqueued later, and the report is for the workers."""
    retry = Retry(max_attempts=4, base=0.8)
    await scheduler.add_job(beat, every(seconds=2), id="beat", name="beat (every 2 s)")
    await scheduler.add_job(chime, cron("*/5 * * * * *"), id="chime", name="chime (cron, seconds)")
    await scheduler.add_job(greet, once(delay=3), args=["world"], id="greet", name="greet (once)")
    await scheduler.add_job(sync_stock, every(seconds=1), id="sync", name="sync (overlaps itself)")
    await scheduler.add_job(
        send_mail, once(delay=1), args=["ada"], id="mail", name="mail (fails twice)", retry=retry
    )
    await scheduler.add_job(back_up, manual(), id="backup", name="backup (manual)")


# -- the scenes ------------------------------------------------------------------------------------------------------------


async def _at_hand(scheduler: Scheduler, stage: Stage) -> None:
    """What a service does by itself: run a job now that waits for that, and enqueue work."""
    await asyncio.sleep(4)
    stage.say("demo", "asks", "run_job('backup'), which has no times of its own")
    await scheduler.run_job("backup")
    await asyncio.sleep(2)
    stage.say("demo", "asks", "enqueue(resize, 'cat.png')")
    await scheduler.enqueue(resize, "cat.png")


async def _crash(scheduler: Scheduler, stage: Stage, path: str) -> None:
    """A worker takes a job and is killed in the midst of it; another one has it when the lease ends."""
    scheduler.register(build_report, TASK)
    await asyncio.sleep(2.5)
    async with _worker(path, "worker-1", stage) as first:
        await scheduler.add_job(TASK, id=_REPORT, args=["Ada"], queue=QUEUE, name="report (in a worker)")
        await _wait_for(scheduler, "running")
        await asyncio.sleep(1.2)
        first.kill()
        await first.wait()
        killed_at = stage.elapsed_s
        stage.say("demo", "killed", f"worker-1 with SIGKILL in mid-job; its lease ends within {LEASE_S:g} s")
    async with _worker(path, "worker-2", stage):
        await _wait_for(scheduler, None)
        later_s = stage.elapsed_s - killed_at
        stage.say(
            "demo", "recovered", f"{_REPORT}: worker-2 has made it, {later_s:.1f} s after worker-1 died"
        )


@contextlib.asynccontextmanager
async def _worker(path: str, name: str, stage: Stage) -> AsyncIterator[Process]:
    """A worker process, and what it says; it ends with this block however that is left."""
    command = [sys.executable, "-m", "asyncsched.cli.demo_worker", path, name]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_relay(process, name, stage))
            stage.say("demo", "starts", f"{name}, process {process.pid}")
            yield process
            assert process.stdin is not None
            process.stdin.close()
            async with asyncio.timeout(_PATIENCE_S):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _relay(process: Process, name: str, stage: Stage) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        stage.say(name, "says", line.decode())


async def _wait_for(scheduler: Scheduler, state: str | None) -> None:
    """Until the report is in *state*; None: until it is gone, because it has run."""
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            jobs = [job for job in await scheduler.get_jobs(queue=QUEUE) if job.id == _REPORT]
            if (jobs[0].state if jobs else None) == state:
                return
            await asyncio.sleep(0.05)


# -- what is seen meanwhile ------------------------------------------------------------------------------------------------


def _listen(scheduler: Scheduler, stage: Stage) -> None:
    lags: dict[tuple[str, int], float] = {}

    @scheduler.on(RunStarted)
    def note_lag(event: RunStarted) -> None:
        lags[event.job_id, event.fence] = (event.at - event.fire_time).total_seconds()

    @scheduler.on(RunSucceeded)
    def say_ran(event: RunSucceeded) -> None:
        lag = lags.pop((event.job_id, event.fence), 0.0)
        late = f"{lag * 1000:.0f} ms late" if event.attempt == 1 else f"attempt {event.attempt}"
        said = "" if event.result is None else f" -> {event.result}"
        stage.say("demo", "ran", f"{_name(event)}{said} ({late})")

    @scheduler.on(RunFailed)
    async def say_failed(event: RunFailed) -> None:
        stage.say("demo", "failed", f"{_name(event)}, attempt {event.attempt}: {event.error}")
        job = await scheduler.get_job(event.job_id)
        if job.next_fire_time is not None:
            stage.retries += 1
            wait = (job.next_fire_time - event.at).total_seconds()
            stage.say("demo", "retry", f"{_name(event)}: attempt {event.attempt + 1} follows in {wait:.1f} s")

    @scheduler.on(RunSkipped)
    def say_skipped(event: RunSkipped) -> None:
        stage.say("demo", "skipped", f"{_name(event)}: {event.count} fire time(s), {event.reason}")


def _name(event: JobEvent) -> str:
    return _short(event.name or event.task)


def _short(name: str) -> str:
    """A name that was given; of one that was made from a module and a function, the function."""
    return name.rpartition(":")[2]


async def _show_progress(scheduler: Scheduler, stage: Stage) -> None:
    pause_s = 0.1 if stage.live is not None else 3.0
    while True:
        stage.show_upcoming(await scheduler.get_jobs())
        if stage.live is not None:
            stage.live.refresh()
        await asyncio.sleep(pause_s)


def _panel(jobs: list[Job], elapsed_s: float) -> Group:
    now = to_datetime(host_time())
    rows = Table.grid(padding=(0, 2))
    for job in jobs:
        rows.add_row(
            Text("due next", style="dim"), Text(_short(job.name)), Text(_until(job, now), style="cyan")
        )
    return Group(Rule(f"{elapsed_s:.0f} of {_LENGTH_S:.0f} s", style="dim"), rows)


def _until(job: Job, now: datetime) -> str:
    assert job.next_fire_time is not None
    return f"{max(0.0, (job.next_fire_time - now).total_seconds()):.1f} s"


# -- what is left ----------------------------------------------------------------------------------------------------------


async def _show_history(scheduler: Scheduler, stage: Stage) -> bool:
    """The runs and decisions as the store keeps them; whether the report was lost once and then made."""
    runs = await scheduler.history.runs(limit=500)
    decisions = await scheduler.history.decisions(limit=500)
    stage.console.print(f"\nThe history: {len(runs)} runs, the oldest first", soft_wrap=True)
    columns = ("at (UTC)", "job", "outcome", "attempt", "fence", "by", "result or error")
    print_table(columns, [_run_row(run) for run in reversed(runs)], stage.console)
    stage.console.print("Why other fire times did not run")
    rows = [_decision_row(decision) for decision in reversed(decisions)]
    print_table(("job", "decision", "fire times", "from (UTC)", "to"), rows, stage.console)
    outcomes = [run.outcome for run in reversed(await scheduler.history.runs(_REPORT))]
    is_recovered = outcomes == ["lost", "succeeded"]
    verdict = (
        "was lost with its worker and recovered by another"
        if is_recovered
        else f"was NOT recovered: {outcomes}"
    )
    stage.console.print(f"{stage.retries} attempts were retried; {_REPORT} {verdict}.")
    return is_recovered


def _run_row(run: Run) -> list[Text]:
    style = _OUTCOME_STYLES.get(run.outcome or "", "")
    finished = "-" if run.finished_at is None else f"{run.finished_at:%H:%M:%S}"
    return [
        Text(finished),
        Text(_short_id(run.job_id)),
        Text(run.outcome or "-", style=style),
        Text(str(run.attempt)),
        Text(str(run.fence)),
        Text(run.instance or "-"),
        Text(one_line(str(run.error or run.result or "-")), style=style if run.error else ""),
    ]


def _decision_row(decision: Decision) -> list[Text]:
    more = " or more" if decision.more else ""
    return [
        Text(_short_id(decision.job_id)),
        Text(decision.reason, style="yellow"),
        Text(f"{decision.count}{more}"),
        Text(f"{decision.first:%H:%M:%S}"),
        Text(f"{decision.last:%H:%M:%S}"),
    ]


def _short_id(job_id: str) -> str:
    """An id that was made, not given, by its end: two that were made together begin alike."""
    return job_id if len(job_id) <= 12 else f"..{job_id[-8:]}"
