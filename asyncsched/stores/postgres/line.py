"""The way to the server: connections from a pool, a deadline around each call, and every error translated once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import asyncpg

from asyncsched.errors import SchemaError, StoreError, StoreUnavailable

__all__ = ["Fetch", "GuestLine", "Line", "Rows", "translated"]

Rows = list[Any]

#: A statement that lost against another one was undone whole, so it may be sent again; so often.
_TRIES = 3
#: How long a connection whose call was given up may take to be fit for use again; else it is thrown away.
_MENDING_S = 2.0
#: For a change of the schema, or waiting for another's.
_LONG_S = 120.0

#: By class of SQLSTATE (two characters) or by SQLSTATE: it may succeed when it is repeated, and it condemns no job.
_PASSING = frozenset({"08", "53", "57", "58", "40", "55P03", "25P02", "25P03", "25P04"})
_LOST_AGAINST_ANOTHER = frozenset({"40001", "40P01"})
_READ_ONLY = "25006"
#: Classes of a login that is refused, and of a database that is not there.
_SHUT_OUT = frozenset({"28", "3D"})
_NO_PRIVILEGE = "42501"
_MISSING = frozenset({"42P01", "42883", "3F000"})
#: A prepared statement that is there twice, or not at all: the connection is another one than it was. (08P01, which says much
#: else as well: it is there, and is another statement.)
_STRANGE_STATEMENT = frozenset({"26000", "42P05"})


#: What the driver raises for a server or a connection, as opposed to a mistake of its caller.
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class Fetch(Protocol):
    """What sends one statement and brings its rows."""

    async def fetch(self, query: str, *values: object) -> Rows: ...


class _Plain(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no annotations
    """A connection that nothing leaves a trace on, so that giving it back to its pool costs no round trip."""

    def get_reset_query(self) -> str:
        return ""

    async def close(self, *, timeout: float | None = None) -> None:
        # The pool closes what it replaces in a task that nobody looks after. A server that is gone hears no farewell.
        with suppress(*_FAILURES):
            await super().close(timeout=timeout or _MENDING_S)


class Line:
    """A pool of connections: an own one made with *options*, or the *given* one, which is not closed here."""

    def __init__(
        self, url: str | None, options: Mapping[str, Any], size: int, timeout_s: float, given: Any, place: str
    ) -> None:
        self._url = url
        self._options = options
        self._size = size
        self._timeout_s = timeout_s
        self._given = given
        self._place = place
        self._pool: Any = given
        self._mending: set[asyncio.Task[None]] = set()
        #: Whether a server has been found fit: what it refuses from then on is its own to mend.
        self.is_ready = False

    async def open(self) -> None:
        if self._given is None:
            # Nothing is connected to before the first call: an error then has the call's deadline and translation.
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=self._size,
                connection_class=_Plain,
                timeout=self._timeout_s,
                **self._options,
            )

    async def close(self) -> None:
        if self._given is None and self._pool is not None:
            pool, self._pool = self._pool, None
            # Whatever is on its way is given up: waiting for a server that does not answer would take for ever.
            pool.terminate()
        for task in tuple(self._mending):
            task.cancel()
        await asyncio.gather(*self._mending, return_exceptions=True)

    async def fetch(self, query: str, *values: object) -> Rows:
        """The rows of *query*, within the deadline; raises StoreUnavailable or StoreError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in range(_TRIES - 1):
                    try:
                        return await self._fetch_once(query, values)
                    except asyncpg.PostgresError as error:
                        if getattr(error, "sqlstate", None) not in _LOST_AGAINST_ANOTHER:
                            raise
                return await self._fetch_once(query, values)
        except Exception as error:
            if isinstance(error, TimeoutError):
                await self._distrust(self._pool, error)
            failure = translated(error, self._place, self._timeout_s)
            if self.is_ready and _is_shut(error):
                # A password that is being changed, a right that is taken for a while: no job is to suffer from that.
                failure = StoreUnavailable(str(failure))
            raise failure from error

    async def in_transaction(self, work: Callable[[Any], Awaitable[None]]) -> None:
        """Do *work*, which may take its time, on one connection and in one transaction."""
        try:
            async with asyncio.timeout(max(self._timeout_s, _LONG_S)):
                pool = self._pool
                connection = await self._acquire(pool)
                try:
                    await connection.execute("BEGIN")
                    await work(connection)
                    await connection.execute("COMMIT")
                except BaseException:
                    # Its end rolls back, and asks nothing of a server that may not answer.
                    connection.terminate()
                    raise
                await pool.release(connection, timeout=_MENDING_S)
        except Exception as error:
            raise translated(error, self._place, self._timeout_s) from error

    async def _fetch_once(self, query: str, values: Sequence[object]) -> Rows:
        pool = self._pool
        connection = await self._acquire(pool)
        try:
            rows: Rows = await connection.fetch(query, *values)
        except BaseException as error:
            await self._mend(pool, connection, error)
            raise
        await pool.release(connection, timeout=_MENDING_S)
        return rows

    async def _acquire(self, pool: asyncpg.Pool) -> Any:
        try:
            return await pool.acquire()
        except Exception as error:
            await self._distrust(pool, error)
            raise

    async def _distrust(self, pool: asyncpg.Pool, error: BaseException) -> bool:
        """Whether *error* says that the server has gone, or cannot be written to any more: the pool's other connections are as
        dead, and would be found out one by one."""
        is_gone = _is_of_the_server(error)
        if is_gone and self._given is None and pool is not None:
            await pool.expire_connections()
        return is_gone

    async def _mend(self, pool: asyncpg.Pool, connection: Any, error: BaseException) -> None:
        """Give a connection back whose call failed or was given up; whoever gave up does not wait for it."""
        if await self._distrust(pool, error):
            with suppress(asyncpg.InterfaceError):  # It went back to its pool by itself.
                connection.terminate()
        task = asyncio.create_task(_give_back(pool, connection))
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)


class GuestLine:
    """One *connection* of the user's, in his transaction; nothing is sent twice, and nothing is thrown away."""

    def __init__(self, connection: Any, timeout_s: float, place: str) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._place = place

    async def fetch(self, query: str, *values: object) -> Rows:
        try:
            async with asyncio.timeout(self._timeout_s):
                rows: Rows = await self._connection.fetch(query, *values)
                return rows
        except Exception as error:
            raise translated(error, self._place, self._timeout_s) from error


def _is_of_the_server(error: BaseException) -> bool:
    """Whether the server has gone, has become one that cannot be written to, or may have gone: it does not answer."""
    state = str(getattr(error, "sqlstate", None) or "")
    if state == _READ_ONLY or state[:2] == "08" or state[:3] == "57P":
        return True
    return isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)


def _is_shut(error: BaseException) -> bool:
    """Whether the server does not let this role in, or not do what is asked."""
    state = str(getattr(error, "sqlstate", None) or "")
    return state[:2] in _SHUT_OUT or state == _NO_PRIVILEGE


async def _give_back(pool: asyncpg.Pool, connection: Any) -> None:
    # Where it cannot be mended in time, the pool itself throws it away.
    with suppress(*_FAILURES):
        await pool.release(connection, timeout=_MENDING_S)


def translated(error: Exception, place: str, timeout_s: float) -> StoreError:
    """What the failure *error* of a call to the server at *place* means to the caller."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"PostgreSQL at {place} did not answer within {timeout_s:g} s")
    state = getattr(error, "sqlstate", None)
    if state is None:
        return _client_failure(error, place)
    # The driver adds hints of its own, for users of the driver.
    said = str(error).partition("\n")[0]
    if state == _READ_ONLY:
        return StoreUnavailable(
            f"PostgreSQL at {place} has become read-only ({said}): connect to the primary"
        )
    if state in _MISSING:
        return SchemaError(
            f"the schema at {place} is gone or damaged ({said}): open the store again to create it"
        )
    if state == _NO_PRIVILEGE:
        return StoreError(f"PostgreSQL at {place} refuses it to this role ({said}): grant it that privilege")
    if state[:3] == "28P" or state == "28000":
        return StoreError(f"PostgreSQL at {place} refuses the login ({said}): check user and password")
    if state == "3D000":
        return StoreError(f"PostgreSQL at {place} has no such database ({said}): create it, or name another")
    if state in _STRANGE_STATEMENT or (state == "08P01" and "prepared statement" in said):
        return StoreError(f"a pooler at {place} mixes up statements ({said}): set statement_cache_size=0")
    if state in _PASSING or state[:2] in _PASSING or isinstance(error, asyncpg.InvalidCachedStatementError):
        return StoreUnavailable(f"PostgreSQL at {place} cannot be used at present ({state}): {said}")
    return StoreError(f"PostgreSQL at {place} refused the call ({state}): {said}")


def _client_failure(error: Exception, place: str) -> StoreError:
    """Of an error that is the driver's own or the network's."""
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return StoreUnavailable(f"no server at {place} can be written to: {error}")
    if isinstance(error, OSError | EOFError):
        return StoreUnavailable(f"PostgreSQL at {place} cannot be reached: {error}")
    if isinstance(error, OverflowError | UnicodeError | TypeError | ValueError):
        return StoreError(f"PostgreSQL at {place} cannot keep or use a value: {error}")
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return StoreUnavailable(f"the connection to PostgreSQL at {place} was lost: {error}")
    return StoreError(f"the call to PostgreSQL at {place} failed: {error!r}")
