"""How things look: tables on a terminal, plain lines elsewhere, JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncsched import Job
from asyncsched.coming import Coming

__all__ = [
    "distance",
    "one_line",
    "print_coming",
    "print_error",
    "print_jobs",
    "print_json",
    "print_mark",
    "print_note",
    "print_table",
]

_STATE_STYLES = {
    "running": "cyan",
    "limited": "yellow",
    "paused": "yellow",
    "failed": "red",
    "quarantined": "bold red",
}
#: No column is made narrower than this, unless it needs less.
_NARROW = 10
#: Of an expression so many characters are shown on either side of what is wrong in it.
_AROUND = 50
#: Of an error's text so many characters are shown.
_MAX_ERROR = 300
_JOB_COLUMNS = ("id", "task", "trigger", "state", "next fire time (UTC)", "last run (UTC)", "last error")


def one_line(text: str) -> str:
    """*text* on one line, and without anything that a terminal would obey."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def print_error(message: str) -> None:
    """One line on stderr, in red where that shows."""
    line = Text("asyncsched: ", style="bold red").append(one_line(message), style="default not bold")
    Console(stderr=True).print(line, soft_wrap=True)


def print_note(message: str) -> None:
    """One line on stderr, beside the answer."""
    Console(stderr=True).print(Text(one_line(message), style="dim"), soft_wrap=True)


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_jobs(jobs: Sequence[Job]) -> None:
    """One row for each job."""
    if jobs:
        print_table(_JOB_COLUMNS, [_job_row(job) for job in jobs], Console())


def print_coming(description: str, found: Sequence[Coming], start: datetime) -> None:
    """The plain English, then one line for each instant: its weekday, how far it is from *start*, and what the clocks do."""
    print(one_line(description))
    rows = [(_shown(one.at), f"{one.at:%a}", _ahead(one, start), one.note) for one in found]
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _ahead(one: Coming, start: datetime) -> str:
    # Within one zone datetimes are subtracted as the clocks show them; elapsed time is that of UTC.
    return "-" if one.skipped else f"in {distance(one.at.astimezone(UTC) - start.astimezone(UTC))}"


def print_mark(text: str, begin: int, end: int) -> None:
    """*text* on stderr, and carets below its characters from *begin* to *end*; of a long one what is around them."""
    cut = max(0, begin - _AROUND)
    piece = text[cut : end + _AROUND]
    before, marked = cell_len(piece[: begin - cut]), cell_len(text[begin:end])
    # What is missing is marked behind the end.
    before += max(0, begin - len(text))
    mark = " " * before + "^" * max(marked, 1)
    console = Console(stderr=True)
    console.print(Text(f"  {piece}"), soft_wrap=True)
    console.print(Text(f"  {mark}", style="bold red"), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Text]], console: Console) -> None:
    """A table whose wide columns fold where a terminal is narrow; elsewhere plain columns, two spaces apart, never cut."""
    if not console.is_terminal:
        _print_plain(columns, rows)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for at, column in enumerate(columns):
        longest = max(len(row[at]) for row in rows) if rows else 0
        table.add_column(column, overflow="fold", min_width=min(longest, _NARROW))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def distance(span: timedelta) -> str:
    """A span in its two largest units: 3 d 4 h, 5 min, 2.5 s."""
    seconds = abs(span.total_seconds())
    if seconds < 60:
        return f"{seconds:.3g} s"
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count:.0f} {unit}")
        if parts and (len(parts) == 2 or not count):
            break
    return " ".join(parts)


def _job_row(job: Job) -> list[Text]:
    error = one_line(job.last_error or "")[:_MAX_ERROR]
    return [
        Text(one_line(job.id)),
        Text(one_line(job.task)),
        Text(one_line(str(job.trigger))),
        Text(job.state, style=_STATE_STYLES.get(job.state, "")),
        _utc(job.next_fire_time),
        _utc(job.last_run),
        Text(error or "-", style="red" if error else ""),
    ]


def _utc(instant: datetime | None) -> Text:
    return Text("-" if instant is None else f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S}")


def _shown(instant: datetime) -> str:
    """ISO 8601 with a space; milliseconds only where there are any."""
    return instant.isoformat(sep=" ", timespec="milliseconds" if instant.microsecond else "seconds")


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
    lines = [list(columns), *([cell.plain for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
