"""The way to one SQLite file: a connection in a thread of its own, transactions, and what SQLite raises in our words."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import chain
from threading import Event
from typing import Any, TypeVar, cast

import aiosqlite
from msgspec.structs import astuple

from asyncsched.contract import Entry, Record
from asyncsched.errors import SchemaError, StoreError, StoreUnavailable
from asyncsched.stores.sqlite import _statements as sql

__all__ = ["Line"]

_T = TypeVar("_T")
_Row = tuple[Any, ...]

_NO_ACCESS = frozenset({"CANTOPEN", "READONLY", "PERM", "AUTH"})
#: The fault of the disk or the host, not of what was asked: it may succeed when repeated, and must condemn no job.
_PASSING = _NO_ACCESS | {"IOERR", "FULL", "NOMEM", "INTERRUPT", "PROTOCOL"}
#: Lists are bound in pieces of a power of two, so that few statements are ever prepared and no parameter limit is met.
_PIECE = 256


class Line:
    """A connection to the file *path*. What is said to run in the thread is called by what ``hop`` does."""

    def __init__(
        self, path: str, prefix: str, synchronous: str, busy_timeout_s: float, *, create_schema: bool
    ) -> None:
        self._path = path
        self._prefix = prefix
        self._synchronous = synchronous
        self._busy_timeout_s = busy_timeout_s
        self._create_schema = create_schema
        #: Where that is, whatever folder the process moves to; and which file it is.
        self._place: str | None = None
        self._file: tuple[int, int] | None = None
        self._connection: aiosqlite.Connection | None = None
        #: The event loop of ``open``.
        self.loop: asyncio.AbstractEventLoop
        #: Used in the connection's thread only.
        self.db: sqlite3.Connection
        #: A statement with its names, and with so many marks or rows of them, written out.
        self.written = lru_cache(maxsize=256)(self._written_out)

    def clone(self) -> Line:
        """Another connection to the same file, unopened."""
        clone = Line(
            self._path,
            self._prefix,
            self._synchronous,
            self._busy_timeout_s,
            create_schema=self._create_schema,
        )
        clone._place = self._place
        return clone

    async def open(self) -> None:
        """Connect, and create the schema if absent, or check its version."""
        if self._connection is not None:
            return
        made: list[tuple[sqlite3.Connection, sqlite3.Error | None]] = []
        self._connection = await aiosqlite.Connection(partial(self._connect, made), 64)
        self.db, refused = made[0]
        self.loop, self._is_ready = asyncio.get_running_loop(), False
        try:
            await self.hop(partial(self._prepare, refused))
        except BaseException:
            await self.close()
            raise
        self._is_ready = True

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def hop(self, work: Callable[[], _T]) -> _T:
        """Do *work* in the connection's thread, and translate what SQLite raises."""
        if self._connection is None:
            raise StoreError(f"the SQLite store {self._path} is not open: await its open() first")
        # The one private name of aiosqlite that is used here. Through its public ones each statement is a change of threads
        # of its own, between which a caller can be cancelled and leave a transaction open.
        execute = cast("Callable[[Callable[[], _T]], Awaitable[_T]]", self._connection._execute)
        try:
            return await execute(partial(self._do, work))
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            raise self._translated(error) from error

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[], _T]) -> _T:
        # SQLite itself goes on in a file that has no name any more, and all of it is gone with the process.
        if self._is_ready and _file_at(str(self._place)) != self._file:
            raise StoreUnavailable(
                f"{self._path} was deleted or replaced while it was in use: put the file back, or restart with the new one"
            )
        return work()

    @contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """One transaction: all of it is kept, or nothing, and afterwards none is open."""
        self.db.execute(begin)
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                with suppress(sqlite3.Error):
                    self.db.execute("ROLLBACK")
            raise

    def _written_out(self, text: str, items: int = 0, row: str = "") -> str:
        return text.replace("{p}", self._prefix).replace("{list}", ",".join([row] * items))

    def do(self, text: str, parameters: Sequence[object] | dict[str, object] = ()) -> sqlite3.Cursor:
        return self.db.execute(self.written(text), parameters)

    def many(self, text: str, rows: Sequence[_Row]) -> int:
        return self.db.executemany(self.written(text), rows).rowcount if rows else 0

    def each(self, text: str, items: Sequence[object], *head: object) -> Iterator[sqlite3.Cursor]:
        for piece in _pieces(items):
            yield self.db.execute(self.written(text, len(piece), "?"), (*head, *piece))

    def select(self, text: str, items: Sequence[object]) -> Iterator[_Row]:
        return chain.from_iterable(self.each(text, items))

    def change(self, text: str, items: Sequence[object], *head: object) -> int:
        return sum(cursor.rowcount for cursor in self.each(text, items, *head))

    def insert(self, text: str, items: Sequence[Record] | Sequence[Entry]) -> int:
        """Insert *items* that are not there yet; return how many that were."""
        inserted = 0
        for piece in _pieces(items):
            values = tuple(chain.from_iterable(map(astuple, piece)))
            row = f"({','.join('?' * (len(values) // len(piece)))})"
            inserted += self.db.execute(self.written(text, len(piece), row), values).rowcount
        return inserted

    def _connect(self, made: list[tuple[sqlite3.Connection, sqlite3.Error | None]]) -> sqlite3.Connection:
        self._place = self._place or os.path.abspath(self._path)
        try:
            made.append((sqlite3.connect(self._place, timeout=0.0, isolation_level=None), None))
        except sqlite3.Error as error:
            # aiosqlite ends its thread in good order only if it was given some connection.
            made.append((sqlite3.connect(":memory:"), error))
        return made[0][0]

    def _prepare(self, refused: sqlite3.Error | None) -> None:
        if refused is not None:
            raise refused
        if (mode := self._switched_to_wal()) != "wal":
            raise StoreError(f"{self._path} stays in journal mode {mode}: WAL needs a local file system")
        self.do(f"PRAGMA busy_timeout = {round(1000 * self._busy_timeout_s)}")
        self.do(f"PRAGMA synchronous = {self._synchronous}")
        # 32 MB: the inner pages of the indexes of some millions of jobs.
        self.do("PRAGMA cache_size = -32000")
        here = f"{self._path} (tables {self._prefix}*)"
        with self.transaction():
            if self.do(sql.TABLE).fetchone() is None:
                if not self._create_schema:
                    raise SchemaError(f"{here} has no schema: open it once with create_schema=True")
                for statement in sql.CREATE:
                    self.do(statement)
                self.many(sql.SET_META, [("schema", sql.SCHEMA_VERSION), ("fence", 0)])
            [(found,)] = self.do(sql.SCHEMA)
        if found != sql.SCHEMA_VERSION:
            raise SchemaError(
                f"{here} has schema {found}, this code {sql.SCHEMA_VERSION}: upgrade asyncsched"
            )
        self._file = _file_at(str(self._place))

    def _switched_to_wal(self) -> str:
        """The journal mode. Where several processes open a new file at once, SQLite refuses the switch without waiting."""
        for _ in range(round(100 * self._busy_timeout_s)):
            try:
                return str(self.do(sql.USE_WAL).fetchone()[0])
            except sqlite3.OperationalError as error:
                if _kind(error) != "BUSY":
                    raise
                Event().wait(0.01)
        return str(self.do(sql.USE_WAL).fetchone()[0])

    def _translated(self, error: Exception) -> StoreError:
        path, kind = self._path, _kind(error)
        if kind in ("BUSY", "LOCKED"):
            waited = f"{path} stayed locked by another writer for {self._busy_timeout_s:g} s ({error})"
            return StoreUnavailable(f"{waited}: look for a long transaction, or raise busy_timeout")
        if kind in _NO_ACCESS and not self._is_ready:
            return StoreError(f"cannot open {path} ({error}); {_remedy(path)}")
        if kind in _PASSING:
            return StoreUnavailable(f"{path} cannot be used at present: {error}")
        if kind in ("CORRUPT", "NOTADB"):
            return StoreError(f"{path} is damaged or no SQLite database ({error}): restore a backup")
        return StoreError(f"{path} refused the call: {error}")


def _pieces(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """*items* in pieces whose lengths are powers of two."""
    start = 0
    while left := len(items) - start:
        size = min(_PIECE, 1 << (left.bit_length() - 1))
        yield items[start : start + size]
        start += size


def _file_at(place: str) -> tuple[int, int] | None:
    try:
        found = os.stat(place)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remedy(path: str) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        return f"the folder {folder} does not exist: create it"
    if os.path.isdir(path):
        return "it is a folder: name a file in it"
    return f"let this process read and write the file and its folder {folder}"


def _kind(error: Exception) -> str:
    """IOERR of SQLITE_IOERR_WRITE, say; nothing where the error is Python's own."""
    return str(getattr(error, "sqlite_errorname", "")).removeprefix("SQLITE_").partition("_")[0]
