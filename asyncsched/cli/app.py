"""The commands and their options."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, NoReturn

from msgspec.structs import replace

from asyncsched import (
    AsyncSchedError,
    Calendar,
    Cron,
    CronError,
    DefinitionError,
    Job,
    MissingExtra,
    SchedulerStarted,
    Trigger,
    __version__,
    cron,
    parse_trigger,
)
from asyncsched.clock import host_time
from asyncsched.model import JobState
from asyncsched.triggers.zones import zone_of
from asyncsched.units import to_datetime

try:
    import typer

    from asyncsched.cli.show import (
        one_line,
        print_coming,
        print_error,
        print_jobs,
        print_json,
        print_mark,
        print_note,
    )
except ImportError as error:
    raise MissingExtra('the command line needs typer and rich: pip install "asyncsched[cli]"') from error

from asyncsched.cli.backfill import backfill
from asyncsched.cli.deploy import apply, plan
from asyncsched.cli.explain import explain
from asyncsched.cli.migrate import migrate
from asyncsched.cli.preview import place_at_fault
from asyncsched.cli.reference import load_scheduler, reader
from asyncsched.cli.stores import stores
from asyncsched.coming import Coming, coming

__all__ = ["app", "serve"]

app = typer.Typer(
    name="asyncsched",
    help="Run a scheduler, look into a store, preview fire times.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.add_typer(stores, name="stores")
app.command()(migrate)
app.command()(explain)
app.command()(backfill)
app.command()(plan)
app.command()(apply)


class State(StrEnum):
    """The states of a job, as choices."""

    scheduled = "scheduled"
    running = "running"
    limited = "limited"
    paused = "paused"
    failed = "failed"
    quarantined = "quarantined"


class Level(StrEnum):
    """How much is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class Gap(StrEnum):
    """What becomes of a fixed time that the clocks skip."""

    run = "run"
    skip = "skip"
    shift = "shift"


class Fold(StrEnum):
    """Which pass of a fixed time counts that the clocks repeat."""

    first = "first"
    second = "second"
    both = "both"


class Day(StrEnum):
    """How the two day fields are joined."""

    either = "or"
    both = "and"


Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]

#: Well within what calendars and the tables of time zones have.
_YEARS = (100, 3500)


def serve(args: Sequence[str] | None) -> NoReturn:
    """Run the command that *args* name; what asyncsched refuses is printed as one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the encoding of a file or a terminal has no character for is shown as its number.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(args=None if args is None else list(args), prog_name="asyncsched")
    except AsyncSchedError as error:
        print_error(str(error))
        raise SystemExit(1) from None
    raise SystemExit(0)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asyncsched {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Run a scheduler, look into a store, preview fire times."""


# -- run -------------------------------------------------------------------------------------------------------------------


@app.command()
def run(
    reference: Annotated[
        str,
        typer.Argument(metavar="MODULE:SCHEDULER", help="Such as app:scheduler for app.py in this folder."),
    ],
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that runs may take to end after SIGINT or SIGTERM.")
    ] = 30.0,
    log_level: Annotated[
        Level, typer.Option(help="Logged from here on, unless the module sets logging up.")
    ] = Level.info,
) -> None:
    """Run a scheduler until SIGINT or SIGTERM, then let its runs end; a second signal ends the wait."""
    scheduler = load_scheduler(reference)
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )

    def say(event: SchedulerStarted) -> None:
        started()
        scheduler.logger.info("%s runs as %s; SIGINT (Ctrl-C) or SIGTERM stops it", reference, event.instance)

    started = scheduler.on(SchedulerStarted, say)
    asyncio.run(scheduler.run(drain))
    scheduler.logger.info("%s has stopped", reference)


# -- jobs ------------------------------------------------------------------------------------------------------------------


@app.command()
def jobs(
    store: Annotated[str, typer.Option(metavar="URL", help="Such as sqlite:///jobs.db.")],
    queue: Annotated[str | None, typer.Option(help="Of this queue only.")] = None,
    task: Annotated[str | None, typer.Option(help="Of the task with this name only.")] = None,
    state: Annotated[State | None, typer.Option(help="In this state only.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """Show the jobs of a store by next fire time, paused and failed ones last. Nothing is run or changed."""
    found = asyncio.run(_read_jobs(store, queue, task, state, limit + 1))
    shown = found[:limit]
    if as_json:
        print_json([_form_of(job) for job in shown])
    else:
        print_jobs(shown)
    if len(found) > limit:
        print_note(f"there are more than these {limit}; --limit shows more")
    elif not found:
        print_note("no job matches")


async def _read_jobs(
    url: str, queue: str | None, task: str | None, state: State | None, limit: int
) -> list[Job]:
    async with reader(url) as client:
        return await client.get_jobs(queue=queue, task=task, state=_state(state), limit=limit)


def _state(choice: State | None) -> JobState | None:
    return None if choice is None else choice.value


def _form_of(job: Job) -> dict[str, object]:
    """What is shown of a job as JSON. Arguments and metadata are left out: they may be secret."""
    return {
        "id": job.id,
        "name": job.name,
        "task": job.task,
        "trigger": str(job.trigger),
        "state": job.state,
        "queue": job.queue,
        "priority": job.priority,
        "tags": list(job.tags),
        "next_fire_time": _iso(job.next_fire_time),
        "last_run": _iso(job.last_run),
        "last_success": _iso(job.last_success),
        "last_error": job.last_error,
        "consecutive_failures": job.consecutive_failures,
        "created_at": _iso(job.created_at),
        "updated_at": _iso(job.updated_at),
        "version": job.version,
    }


def _iso(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat()


# -- next ------------------------------------------------------------------------------------------------------------------


@app.command("next")
def next_(
    expression: Annotated[
        str,
        typer.Argument(
            metavar="EXPR",
            help="A cron expression, a macro such as @daily, an interval such as '@every 5m', or what str() of a trigger gives.",
        ),
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="So many.")] = 5,
    tz: Annotated[
        str | None,
        typer.Option(metavar="ZONE", help="The time zone, such as Europe/Berlin; else that of EXPR, or UTC."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="ISO", help="After this instant, in ZONE unless it says; else now."),
    ] = None,
    dst_gap: Annotated[Gap, typer.Option(help="What becomes of a time that the clocks skip.")] = Gap.run,
    dst_fold: Annotated[
        Fold, typer.Option(help="Which pass of a time counts that the clocks repeat.")
    ] = Fold.first,
    day: Annotated[Day, typer.Option(help="How day of month and day of week are joined.")] = Day.either,
    as_json: Json = False,
) -> None:
    """Show what an expression means, its coming fire times, and what the clocks do to them."""
    text = one_line(expression)
    policies = {"dst_gap": dst_gap.value, "dst_fold": dst_fold.value, "day": day.value}
    _check_zone(tz)
    try:
        trigger = _trigger(text, tz, policies)
    except CronError as error:
        print_error(str(error))
        place = place_at_fault(text, error)
        if place is not None:
            print_mark(text, *place)
        raise typer.Exit(1) from None
    zone = tz or trigger.zone
    begin = _instant(start, zone)
    bound = trigger.bind(begin.timestamp())
    found = coming(bound, count, begin, zone)
    if as_json:
        print_json(_form_of_times(bound, trigger, found))
    else:
        print_coming(bound.describe(), found, begin)
        for warning in trigger.warnings:
            print_note(f"note: {warning}")
    times = sum(not one.skipped for one in found)
    if times < count:
        print_note("there are no further ones" if times else f"{text!r} never fires by itself")


def _form_of_times(bound: Trigger, trigger: Trigger, found: Sequence[Coming]) -> dict[str, object]:
    return {
        "trigger": str(trigger),
        "description": bound.describe(),
        "warnings": list(trigger.warnings),
        "times": [
            {"fire_time": one.at.isoformat(), "note": one.note or None} for one in found if not one.skipped
        ],
        "skipped": [{"local_time": one.at.isoformat(), "note": one.note} for one in found if one.skipped],
    }


def _trigger(text: str, tz: str | None, policies: dict[str, Any]) -> Trigger:
    """The trigger of an expression; what the expression says itself comes before the policies."""
    trigger = parse_trigger(text)
    if isinstance(trigger, Cron):
        return cron(text, tz=tz or "UTC", **policies)
    if isinstance(trigger, Calendar) and tz is not None and " tz=" not in text:
        return replace(trigger, tz=tz)
    return trigger


def _check_zone(name: str | None) -> None:
    """Refuse an unknown zone as a trigger does, for intervals too."""
    try:
        cron("@daily", tz=name or "UTC")
    except CronError as error:
        raise DefinitionError(f"--tz: {error}") from None


def _instant(text: str | None, zone: str) -> datetime:
    if text is None:
        return to_datetime(float(int(host_time())))
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise DefinitionError(
            f"--from: {text!r} is no ISO 8601 instant; write it like 2026-03-29T00:00 or 2026-03-29T00:00+01:00"
        ) from None
    if not _YEARS[0] <= instant.year <= _YEARS[1]:
        raise DefinitionError(
            f"--from: {text!r} is too far away: its year is one from {_YEARS[0]} to {_YEARS[1]}"
        )
    if instant.tzinfo is not None:
        return instant
    known = zone_of(zone)
    return instant.astimezone() if known is None else instant.replace(tzinfo=known)


# -- demo ------------------------------------------------------------------------------------------------------------------


@app.command()
def demo() -> None:
    """See it at work: about 15 seconds of jobs in a temporary SQLite store, with a worker process that is killed."""
    from asyncsched.cli.demo import run_demo

    raise typer.Exit(asyncio.run(run_demo()))
