"""``asyncsched stores``: what each store can do, the schema it needs, and whether a server keeps the contract."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console
from rich.progress import track
from rich.text import Text

from asyncsched import DefinitionError, MissingExtra, StoreError, UnknownStoreError, store_from_url
from asyncsched.address import without_password
from asyncsched.cli.reference import with_query
from asyncsched.cli.show import one_line, print_error, print_json, print_note, print_table
from asyncsched.contract import Capabilities, JobStore
from asyncsched.stores import ENTRY_POINTS, SCHEMES, store_class

__all__ = ["stores"]

stores = typer.Typer(
    help="What each store can do, the schema it needs, and whether a server keeps the contract."
)

Url = Annotated[str, typer.Argument(metavar="URL", help="Such as postgresql://app@db.example/app.")]
#: Of the rules that are broken so many are named.
_NAMED = 5
_FIELDS = Capabilities.__struct_fields__


@stores.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Show the stores, how their URLs begin, and what each can do."""
    found = list(_stores())
    if as_json:
        print_json(
            [
                {"store": name, "schemes": schemes, "missing": missing or None}
                | ({} if can is None else {field: getattr(can, field) for field in _FIELDS})
                for name, schemes, can, missing in found
            ]
        )
        return
    rows = [[Text(name), Text(", ".join(schemes)), *_cells(can)] for name, schemes, can, _ in found]
    columns = ("store", "schemes", *(field.replace("_", " ") for field in _FIELDS))
    print_table(columns, rows, Console())
    for _, _, _, missing in found:
        if missing:
            print_note(missing)


def _stores() -> Iterator[tuple[str, list[str], Capabilities | None, str]]:
    """Each store's class name, its URL schemes, its capabilities, or else why they are not known here."""
    for place in dict.fromkeys(SCHEMES.values()):
        schemes = [f"{scheme}://" for scheme, of in SCHEMES.items() if of == place]
        try:
            yield place[1], schemes, store_class(schemes[0]).capabilities, ""
        except MissingExtra as error:
            yield place[1], schemes, None, str(error)
    for point in entry_points(group=ENTRY_POINTS):
        scheme = f"{point.name}://"
        if point.name in SCHEMES:
            continue
        try:
            can = getattr(store_class(scheme), "capabilities", None)
            missing = "" if can else f"{point.value} does not tell what it can do"
        except (MissingExtra, UnknownStoreError) as error:
            can, missing = None, str(error)
        yield point.value.rpartition(":")[2], [scheme], can, missing


def _cells(can: Capabilities | None) -> list[Text]:
    if can is None:
        return [Text("not known", style="dim")] + [Text("")] * (len(_FIELDS) - 1)
    shown = {True: "yes", False: "no"}
    return [Text(shown.get(getattr(can, field), str(getattr(can, field)))) for field in _FIELDS]


@stores.command()
def ddl(url: Url) -> None:
    """Print what open() would run to make the schema; nothing is connected to, and nothing is changed."""
    store = store_from_url(url)
    text: Callable[[], str] | None = getattr(store, "ddl", None)
    if text is None:
        print_note(f"{type(store).__name__} needs no schema")
    else:
        sys.stdout.write(text().rstrip() + "\n")


@stores.command()
def check(
    url: Url,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Name each case, and show what failed.")
    ] = False,
) -> None:
    """Hold the server at URL to the store contract: all but the heavy cases, in a namespace of their own that is removed."""
    failed = asyncio.run(_check(url, verbose))
    if failed:
        named = ", ".join(failed[:_NAMED]) + (", ..." if len(failed) > _NAMED else "")
        print_error(
            f"{without_password(url)} breaks {len(failed)} rules: {named} (-v names each, with its failure)"
        )
        raise typer.Exit(1)


async def _check(url: str, verbose: bool) -> list[str]:
    """The names of the cases that failed."""
    try:
        from asyncsched.testing.contract import StoreContract
    except ImportError as error:
        raise MissingExtra("the contract's cases need pytest: pip install pytest") from error
    import pytest

    await _greet(url)
    failed: list[str] = []
    skipped = 0
    cases = sorted(set(StoreContract.cases()) - StoreContract.heavy_cases)
    with _places(url) as place:
        left: set[str] = set()

        class Checked(StoreContract):
            def make_store(self, namespace: str) -> JobStore:
                left.add(namespace)
                return store_from_url(place(namespace))

            async def drop_namespace(self, namespace: str) -> None:
                await _erase(store_from_url(place(namespace)))
                left.discard(namespace)

        checked: Any = Checked()
        try:
            for case in track(cases, "checking", console=Console(stderr=True), transient=True):
                said = "kept"
                try:
                    await checked.run_case(case)
                except pytest.skip.Exception as skip:
                    skipped += 1
                    said = f"does not apply: {skip.msg}"
                except (Exception, pytest.fail.Exception) as error:
                    # A store that is being written may raise anything.
                    failed.append(case)
                    said = f"BROKEN: {type(error).__name__}: {error}"
                    if verbose:
                        traceback.print_exc()
                if verbose:
                    print(f"{case.removeprefix('test_').replace('_', ' ')}: {one_line(said)[:300]}")
        finally:
            # Of a case that was interrupted, or whose store could not be cleared at once.
            for namespace in left:
                with suppress(StoreError):
                    await _erase(store_from_url(place(namespace)))
    print(
        f"{len(cases) - skipped - len(failed)} rules are kept, {skipped} do not apply to this store, {len(failed)} are broken"
    )
    return failed


async def _greet(url: str) -> None:
    """Open the store itself once: what is wrong with its address, its login or its schema is said first."""
    store = store_from_url(url)
    if not store.capabilities.durable:
        raise DefinitionError(
            f"{without_password(url)} lives and dies with its process: there is no server to check"
        )
    try:
        await store.open()
        print(f"{type(store).__name__} at {without_password(url)}: reached, and its schema is in order")
    finally:
        await store.close()


class _places:
    """Where the cases may work: URLs by namespace. SQLite's are files beside the given one, for it is the file system there that
    is to be trusted; all of them are gone when the block ends."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._mark = uuid.uuid4().hex[:6]

    def __enter__(self) -> Callable[[str], str]:
        parts = urlsplit(self._url)
        if parts.scheme != "sqlite":
            return lambda namespace: with_query(self._url, namespace=f"{namespace}-{self._mark}")
        beside = Path(unquote(parts.path.removeprefix("/"))).absolute().parent
        self._folder = tempfile.TemporaryDirectory(prefix=".asyncsched-check-", dir=beside)
        folder = self._folder.name
        query = f"?{parts.query}" if parts.query else ""
        return lambda namespace: f"sqlite:///{folder}/{namespace}.db{query}"

    def __exit__(self, *error: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


async def _erase(store: JobStore) -> None:
    """Leave nothing of a namespace on the server."""
    erase = getattr(store, "erase", None)
    if erase is None:
        return
    await store.open()
    try:
        await erase()
    finally:
        await store.close()
