"""``asyncsched backfill``: run fire times of the past after the event."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer

from asyncsched import Backfill, DefinitionError
from asyncsched.cli.reference import reader
from asyncsched.cli.show import one_line, print_json, print_note

__all__ = ["backfill"]


def backfill(
    id: Annotated[str, typer.Argument(metavar="ID", help="The id of the job.")],
    store: Annotated[str, typer.Option(metavar="URL", help="Such as sqlite:///jobs.db.")],
    begin: Annotated[
        str,
        typer.Option(
            "--from", metavar="ISO", help="Where the range begins, in UTC unless it says another zone."
        ),
    ],
    end: Annotated[
        str | None, typer.Option("--to", metavar="ISO", help="Where it ends, exclusive; now unless given.")
    ] = None,
    rate: Annotated[str | None, typer.Option(metavar="RATE", help="Such as 10/minute.")] = None,
    parallel: Annotated[int, typer.Option(min=1, max=100, help="So many runs at once.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Those that have succeeded too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Refuse a range with more fire times.")] = 10_000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run; add nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs.")] = False,
) -> None:
    """Have the fire times of a job between two instants run, beside its schedule, by the instances that run its jobs."""
    filling = asyncio.run(
        _ask(store, id, _instant("--from", begin), None if end is None else _instant("--to", end),
             rate, parallel, again, limit, dry_run)
    )  # fmt: skip
    if as_json:
        print_json(
            {
                "id": filling.id,
                "job_id": filling.job_id,
                "from": filling.start.isoformat(),
                "to": filling.end.isoformat(),
                "count": filling.count,
                "left_out": filling.left_out,
                "known_since": None if filling.known_since is None else filling.known_since.isoformat(),
                "jobs": list(filling.jobs),
            }
        )
        return
    _show(filling, dry_run)


async def _ask(
    url: str,
    id: str,
    begin: datetime,
    end: datetime | None,
    rate: str | None,
    parallel: int,
    again: bool,
    limit: int,
    dry_run: bool,
) -> Backfill:
    async with reader(url) as client:
        return await client.backfill(
            id,
            begin,
            end,
            rate=rate,
            overlap="allow" if parallel > 1 else "queue_all",
            max_instances=parallel if parallel > 1 else None,
            again=again,
            limit=limit,
            dry_run=dry_run,
        )


def _show(filling: Backfill, dry_run: bool) -> None:
    verb = "would run" if dry_run else "will run"
    text = f"{filling.count} fire times of {filling.job_id} {verb}, from {filling.start.isoformat()} to {filling.end.isoformat()}"
    if filling.left_out:
        text += f"; {filling.left_out} ran already"
    print(one_line(text))
    for job in filling.jobs:
        print(f"  {one_line(job)}")
    if filling.known_since is not None:
        print_note(
            f"what ran before {filling.known_since.isoformat()} is not known: the history does not reach further back"
        )


def _instant(option: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise DefinitionError(f"{option} takes an instant such as 2026-03-29T09:00, not {text!r}") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
