"""``asyncsched plan`` and ``asyncsched apply``: what a deploy does to the declared jobs, shown first, and done."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from asyncsched import Change, DefinitionError, FireTimes, Plan, Scheduler
from asyncsched.cli.reference import check_file, load_scheduler
from asyncsched.cli.show import one_line, print_json, print_note

__all__ = ["apply", "plan"]

#: The exit code that says that there are changes. Not 2: so ends a command line that is wrong.
CHANGES = 3

Reference = Annotated[
    str, typer.Argument(metavar="MODULE:SCHEDULER", help="Such as app:scheduler for app.py in this folder.")
]
Store = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="In the place of the scheduler's default store, such as sqlite:///copy.db."
    ),
]
Hours = Annotated[float, typer.Option(min=0, max=24 * 366, help="Fire times are counted for so many hours.")]
Rollback = Annotated[
    bool, typer.Option("--rollback", help="Go back to this revision though a newer one was applied.")
]
ShowArguments = Annotated[
    bool,
    typer.Option("--show-arguments", help="Show arguments and metadata that change; they may be secret."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]


def plan(
    reference: Reference,
    store: Store = None,
    hours: Hours = 24.0,
    rollback: Rollback = False,
    show_arguments: ShowArguments = False,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help=f"Exit with {CHANGES} where there are changes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a start of this scheduler, or `asyncsched apply`, would change of the stored jobs. Nothing is run or changed."""
    found = asyncio.run(
        _with_plan(reference, store, rollback, show_arguments, lambda found: _show(found, hours, as_json))
    )
    if detailed_exitcode and not found.is_empty:
        raise typer.Exit(CHANGES)


def apply(
    reference: Reference,
    store: Store = None,
    hours: Hours = 24.0,
    rollback: Rollback = False,
    show_arguments: ShowArguments = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is to change of the stored jobs, ask, and change it. Nothing is run.

    What has changed between the plan and the answer is refused.
    """

    def agree(found: Plan) -> bool:
        _show(found, hours, as_json)
        if found.is_empty or yes:
            return True
        if sys.stdin is None or not sys.stdin.isatty():
            raise DefinitionError("nobody is there to be asked: give --yes to apply these changes")
        return _confirm("Apply these changes?")

    asyncio.run(_with_plan(reference, store, rollback, show_arguments, agree, applies=True))


def _confirm(question: str) -> bool:
    """Ask on the terminal, within an event loop, whose own way with Ctrl-C is to end what waits for it, which this does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return typer.confirm(question, err=True)
    finally:
        signal.signal(signal.SIGINT, before)


async def _with_plan(
    reference: str,
    store: str | None,
    rollback: bool,
    show_arguments: bool,
    look: Callable[[Plan], bool],
    *,
    applies: bool = False,
) -> Plan:
    """The plan of a scheduler, looked at, and applied if that agrees. The stores are opened by a client, which runs nothing."""
    client = _client_of(load_scheduler(reference), store, applies)
    async with client:
        found = await client.plan(rollback=rollback, show_arguments=show_arguments)
        # This runs nothing, so nothing waits while somebody thinks about it.
        agreed = look(found)
        if not applies:
            return found
        if not agreed:
            print_note("nothing was applied")
            raise typer.Exit(1)
        await client.apply(found)
        if not found.is_empty:
            print_note("applied")
        return found


def _client_of(scheduler: Scheduler, store: str | None, applies: bool) -> Scheduler:
    if store is not None and not applies:
        check_file(store)
    client = scheduler.client(store)
    for alias, one in client.stores.items():
        if not one.capabilities.shared:
            raise DefinitionError(
                f"the store {alias!r} lives and dies with the process that made it, so there is nothing to compare with; name a "
                f"shared one (--store for the default store)"
            )
    return client


def _show(found: Plan, hours: float, as_json: bool) -> bool:
    if as_json:
        print_json(_form_of(found, hours))
    else:
        for line in found.describe(hours).splitlines():
            print(line[: len(line) - len(line.lstrip())] + one_line(line))
    return True


def _form_of(found: Plan, hours: float) -> dict[str, object]:
    effects = {(one.store, one.id): one for one in found.effect(hours)}

    def change_of(change: Change) -> dict[str, object]:
        form: dict[str, object] = {
            "id": change.id,
            "store": change.store,
            "task": change.task,
            "kind": change.kind,
            "action": change.action,
            "reason": change.reason or None,
            "fields": [{"name": name, "old": old, "new": new} for name, old, new in change.fields],
        }
        effect = effects.get((change.store, change.id))
        if effect is not None:
            form["fire_times"] = {"before": _times_of(effect.before), "after": _times_of(effect.after)}
        return form

    return {
        "application": found.application,
        "revision": found.revision,
        "stored_revisions": dict(found.stored_revisions),
        "made_at": found.made_at.isoformat(),
        "hours": hours,
        "is_empty": found.is_empty,
        "changes": [change_of(change) for change in found.changes],
        "orphans": [
            {"task": one.task, "store": one.store, "since": one.since.isoformat()} for one in found.orphans
        ],
    }


def _times_of(times: FireTimes) -> dict[str, object]:
    return {
        "count": times.count,
        "more": times.more,
        "first": [instant.isoformat() for instant in times.first],
    }
