"""``asyncsched explain``: what a job waits for, and why it did not run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer

from asyncsched import DefinitionError, Explanation, WhyNot
from asyncsched.cli.reference import reader
from asyncsched.cli.show import one_line, print_json

__all__ = ["explain"]


def explain(
    id: Annotated[str, typer.Argument(metavar="ID", help="The id of the job.")],
    store: Annotated[str, typer.Option(metavar="URL", help="Such as sqlite:///jobs.db.")],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="ISO",
            help="Say why it did not run at this fire time, in UTC unless it says another zone.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="So many coming runs.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs.")] = False,
) -> None:
    """Say what a job waits for or what holds it, and its next runs with their reasons. Nothing is run or changed."""
    told, why = asyncio.run(_ask(store, id, count, _instant(at)))
    if why is not None:
        if as_json:
            print_json({"kind": why.kind, "text": why.text})
        else:
            print(one_line(f"{why.kind}: {why.text}"))
    elif told is not None:
        _show(told, as_json)


async def _ask(
    url: str, id: str, count: int, at: datetime | None
) -> tuple[Explanation | None, WhyNot | None]:
    async with reader(url) as client:
        if at is not None:
            return None, await client.why_not(id, at)
        return await client.explain(id, count), None


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise DefinitionError(f"--at takes an instant such as 2026-03-29T09:00, not {text!r}") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _show(told: Explanation, as_json: bool) -> None:
    runs = [
        (run.fire_time.isoformat(), "" if run.due_at is None else run.due_at.isoformat(), run.note)
        for run in told.coming
    ]
    if as_json:
        print_json(
            {
                "id": told.job.id,
                "state": told.job.state,
                "summary": told.summary,
                "held_by": told.held_by,
                "held_until": None if told.held_until is None else told.held_until.isoformat(),
                "coming": [
                    {"fire_time": fire, "due_at": due or None, "note": note} for fire, due, note in runs
                ],
            }
        )
        return
    print(one_line(f"{told.job.id} ({told.job.state}): {told.summary}"))
    for fire, _, note in runs:
        print(f"  {fire}  {one_line(note)}".rstrip())
