"""``asyncsched migrate``: the jobs of one store, copied into another, and both compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from asyncsched import DefinitionError, JobStore, LookupFailed, SchemaError, store_from_url
from asyncsched import moving as rooms
from asyncsched.address import without_password
from asyncsched.cli.reference import existing
from asyncsched.cli.show import print_error, print_json, print_note
from asyncsched.moving import Found, Migration, Progress, Survey

__all__ = ["migrate"]


def migrate(
    source: Annotated[
        str, typer.Option("--from", metavar="URL", help="The store that has the jobs; it is only read.")
    ],
    target: Annotated[str, typer.Option("--to", metavar="URL", help="The store that gets them.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at both, and say what would be done; copy nothing.")
    ] = False,
    history: Annotated[bool, typer.Option("--history", help="Copy what was logged of runs, too.")] = False,
    while_running: Annotated[
        bool,
        typer.Option("--while-running", help="Copy although instances of the source are alive."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """Copy the jobs of one store into another, and compare both. Stop the instances of both stores first; may be run again."""
    for url in (source, target):
        if not store_from_url(url).capabilities.durable:
            raise DefinitionError(
                f"{without_password(url)} lives and dies with its process: name a store that does not"
            )
    if source == target:
        raise DefinitionError(f"--from and --to are both {without_password(source)}: name two stores")
    try:
        if dry_run:
            is_well = asyncio.run(_look(source, target, as_json))
        else:
            is_well = asyncio.run(_migrate(source, target, history, while_running, as_json))
    except KeyboardInterrupt:
        print_error("interrupted: what was copied is kept, and the same command goes on from there")
        is_well = False
    if not is_well:
        raise typer.Exit(1)


async def _look(source_url: str, target_url: str, as_json: bool) -> bool:
    async with _there(source_url) as source, _there_or_not(target_url) as (target, exists):
        with _bar() as progress:
            found = await rooms.survey(source, target, exists=exists, progress=progress)
    _note_if_empty(found)
    if as_json:
        _print_json(source_url, target_url, found, found.is_clear)
    else:
        _print_survey(found)
    return found.is_clear


async def _migrate(
    source_url: str, target_url: str, history: bool, while_running: bool, as_json: bool
) -> bool:
    async with _there(source_url) as source, _opened(store_from_url(target_url)) as target:
        with _bar() as progress:
            done = await rooms.migrate(
                source, target, history=history, while_running=while_running, progress=progress
            )
    _note_if_empty(done)
    if as_json:
        _print_json(source_url, target_url, done, done.is_whole)
    else:
        _print_migration(done)
    return done.is_whole


# -- stores ------------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _opened(store: JobStore) -> AsyncIterator[JobStore]:
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def _there(url: str) -> AsyncIterator[JobStore]:
    """The store at *url*, opened; where there is none, none is made."""
    async with _opened(existing(url)) as store:
        yield store


@asynccontextmanager
async def _there_or_not(url: str) -> AsyncIterator[tuple[JobStore, bool]]:
    """The store at *url*, and whether it is there; else unopened."""
    store, exists = store_from_url(url), False
    async with AsyncExitStack() as stack:
        try:
            store, exists = await stack.enter_async_context(_there(url)), True
        except (LookupFailed, SchemaError) as error:
            print_note(f"the target is taken as empty: {error}")
        yield store, exists


# -- how it looks ------------------------------------------------------------------------------------------------------------


@contextmanager
def _bar() -> Iterator[Progress]:
    """What is being done, on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(doing: str, done: int, total: int | None) -> None:
            if doing not in tasks:
                tasks[doing] = bar.add_task(doing, total=total)
            bar.update(tasks[doing], completed=done)

        yield tell


def _note_if_empty(found: Survey | Migration) -> None:
    if not found.jobs:
        print_note("the source has no jobs: see whether --from names the right namespace")


def _print_json(source_url: str, target_url: str, found: Survey | Migration, is_well: bool) -> None:
    head = {
        "from": without_password(source_url),
        "to": without_password(target_url),
        "dry_run": isinstance(found, Survey),
        "is_well": is_well,
    }
    print_json(head | msgspec.to_builtins(found))


def _print_survey(found: Survey) -> None:
    print(f"jobs on the source: {found.jobs}, digest {found.digest}")
    print(f"to be copied: {found.to_add}; on the target already: {found.same}")
    _print_findings(found)
    _print_finding("instances that are alive; stop those first", found.instances)
    _print_finding("held by instances that are alive; stop those first", found.live)
    _print_finding("larger than the target can store", found.too_large)


def _print_migration(done: Migration) -> None:
    print(f"jobs on the source: {done.jobs}, digest {done.digest}")
    print(f"of these on the target: {done.same}, digest {done.target_digest}; copied now: {done.added}")
    if done.history is not None:
        log = done.history
        print(f"history on the source: {log.entries}, digest {log.digest}")
        print(f"of this on the target: {log.same}, digest {log.target_digest}")
        _print_finding("in the history of the source only", log.missing)
    _print_findings(done)
    _print_finding("on the source only", done.missing)
    what = "copied before, and gone from the source since by a run; on the target they would run again"
    _print_finding(what, done.ran_on_source)
    if done.target_was_empty:
        what = "on the target only, though it was empty (gone from the source since, or added by others)"
        _print_finding(what, done.only_on_target)
    elif done.only_on_target:
        print_note(f"on the target only: {done.only_on_target.count} ({done.only_on_target})")
    if done.has_changed:
        print_error(
            "the source was changed while it was copied: instances or clients of it are alive; stop them and run this again"
        )


def _print_findings(found: Survey | Migration) -> None:
    _print_finding("on the target, but not as on the source", found.different)
    _print_finding("other jobs on the target, under the same ids", found.taken)
    _print_finding("copied before, and run on the target since; not copied again", found.ran)


def _print_finding(what: str, found: Found) -> None:
    if found:
        print_error(f"{what}: {found.count} ({found})")
