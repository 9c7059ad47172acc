"""The way to the server: connections from a pool, a deadline around each call, and every error translated once.

A call is one packet of statements, and so is a transaction: it begins and ends in the same packet. An instance that freezes or
falls off the network in the midst of a call leaves no row locked behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import aiomysql
from pymysql.constants import CLIENT
from pymysql.err import InterfaceError, MySQLError

from asyncsched.errors import SchemaError, StoreError, StoreUnavailable

__all__ = ["Answer", "GuestLine", "Line", "NotApplied", "PoolLine", "code_of", "translated"]

_ISOLATION = "TRANSACTION ISOLATION LEVEL READ COMMITTED"

#: Lost against another transaction, and undone: a deadlock, and a lock that was waited for too long. So it may be sent again.
_LOST_AGAINST_ANOTHER = frozenset({1213, 1205})
#: How long connections may take to end.
_LEAVE_S = 1.0
_PAUSES_S = (0.005, 0.02, 0.08, 0.3)
#: What a statement says for us: a guard's subquery gave two rows, or a key was there already.
_NOT_APPLIED = frozenset({1242, 1062})
#: The server may be read only since a failover: --read-only, a read only transaction, read only mode.
_READ_ONLY = frozenset({1290, 1792, 1836})
#: The fault of the server, the network or the hour, not of what was asked: it may succeed when repeated, and condemns no job.
#: With 1105, an unknown error, MySQL answers a join that was killed while it wrote.
_PASSING = _LOST_AGAINST_ANOTHER | _READ_ONLY | frozenset(
    {
        1015, 1020, 1021, 1030, 1037, 1038, 1040, 1041, 1047, 1053, 1077, 1078, 1079, 1080, 1105, 1114, 1129, 1135, 1152, 1154,
        1155, 1156, 1157, 1158, 1159, 1160, 1161, 1180, 1184, 1203, 1206, 1226, 1317, 1412, 1637, 1927, 1969, 3024, 3058, 3100,
        3101, 3168, 3169, 3572, 4031,
    }
)  # fmt: skip
_LOGIN = frozenset({1045, 1130, 1251, 1275, 1396, 1698, 1820, 1862, 3118, 3159, 3878, 4151})
_PRIVILEGE = frozenset({1044, 1142, 1143, 1227, 1370, 1410})
_MISSING = frozenset({1146, 1054, 1932})


class Answer(NamedTuple):
    """What one statement brought: how many rows it changed or found, and those it found."""

    changed: int
    rows: Sequence[tuple[Any, ...]]


class NotApplied(Exception):
    """The transaction was undone, since a guard in it did not hold."""


class Line(Protocol):
    """What the store sends its statements by."""

    #: Whether it is a transaction of the user's that they join.
    is_guest: bool
    #: The largest packet that the server takes.
    max_packet: int

    async def read(self, *statements: str) -> Sequence[Answer]:
        """Send *statements* that change nothing."""
        ...

    async def write(self, *statements: str, after: Sequence[str] = ()) -> Sequence[Answer]:
        """Send *statements* as one transaction, and those *after* it; raises NotApplied if it had to be undone."""
        ...


class PoolLine:
    """A pool of connections: an own one made with *options*, or the *given* one, which is not closed here."""

    is_guest = False

    def __init__(
        self, options: Mapping[str, Any], size: int, timeout_s: float, given: Any, place: str
    ) -> None:
        self.max_packet = 1 << 20
        #: Whether a server has been found fit: what it refuses from then on is its own to mend.
        self.is_ready = False
        self._options = options
        self._size = size
        self.timeout_s = timeout_s
        self._given = given
        self.place = place
        self._pool: Any = given
        #: On their way to those who wait for a connection.
        self._news: set[asyncio.Future[None]] = set()
        #: What a session is told once where it is ours has to be told with each transaction where it is not; and without
        #: autocommit a mere SELECT of whoever had the connection before has begun one.
        begin = "START TRANSACTION"
        self._begin = [begin] if given is None else ["ROLLBACK", f"SET {_ISOLATION}", begin]
        self._end = [] if given is None else ["COMMIT"]

    async def open(self) -> None:
        if self._given is not None:
            return
        # Locks are given up well before the call is, so that the transaction is tried again and its connection is kept.
        wait_s = max(1, int(self.timeout_s / 3))
        session = (
            f"SET SESSION {_ISOLATION}; SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', "
            f"SESSION innodb_lock_wait_timeout = {wait_s}"
        )
        # Nothing is connected to before the first call: an error then has the call's deadline and translation.
        self._pool = await aiomysql.create_pool(
            minsize=0,
            maxsize=self._size,
            charset="utf8mb4",
            autocommit=True,
            client_flag=CLIENT.FOUND_ROWS,
            init_command=session,
            program_name="asyncsched",
            **self._options,
        )

    async def close(self) -> None:
        pool, self._pool = self._pool, self._given
        if self._given is not None or pool is None:
            return
        try:
            with contextlib.suppress(MySQLError, OSError):
                async with asyncio.timeout(_LEAVE_S):
                    # Idle connections take their leave, as a server's log wants it. The driver does not wait for their end,
                    # and with TLS that takes a few turns of the loop.
                    writers = [connection._writer for connection in pool._free]
                    await pool.clear()
                    for writer in writers:
                        await writer.wait_closed()
        finally:
            _evict(pool)
            pool.terminate()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_LEAVE_S):
                await pool.wait_closed()

    async def read(self, *statements: str) -> Sequence[Answer]:
        if self._given is None:
            return await self._call(statements)
        answers = await self._call([*self._begin, *statements, "COMMIT"])
        return answers[len(self._begin) : -1]

    async def write(self, *statements: str, after: Sequence[str] = ()) -> Sequence[Answer]:
        answers = await self._call([*self._begin, *statements, "COMMIT", *after, *self._end])
        start, end = len(self._begin), len(self._begin) + len(statements)
        return [*answers[start:end], *answers[end + 1 : end + 1 + len(after)]]

    async def _call(self, statements: Sequence[str]) -> Sequence[Answer]:
        try:
            packet = _packed(statements, self.max_packet)
            async with asyncio.timeout(self.timeout_s):
                for pause in _PAUSES_S:
                    try:
                        return await self._call_once(packet)
                    except MySQLError as error:
                        if code_of(error) not in _LOST_AGAINST_ANOTHER:
                            raise
                    await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                return await self._call_once(packet)
        except Exception as error:
            if isinstance(error, TimeoutError) and self._pool is not None:
                _evict(self._pool)
            raise translated(error, self.place, self.timeout_s, self.is_ready) from error

    async def _call_once(self, packet: bytes) -> Sequence[Answer]:
        pool = self._pool
        if pool is None:
            raise StoreError(f"the store on {self.place} is not open: await its open() first")
        try:
            connection = await pool.acquire()
        except BaseException:
            # It may have been told of a connection just now, and does not take it.
            self._tell(pool._wakeup())
            raise
        try:
            answers = await _ask(connection, packet)
        except BaseException as error:
            await self._mend(pool, connection, error)
            raise
        self._give_back(pool, connection)
        return answers

    def _give_back(self, pool: Any, connection: Any) -> None:
        """Of a connection that was closed the pool tells nobody, though another may be made in its place; and whoever were
        cancelled while it tells would keep the news to himself."""
        news = pool.release(connection)
        self._tell(pool._wakeup() if news.done() else news)

    def _tell(self, telling: Awaitable[None]) -> None:
        news = asyncio.ensure_future(telling)
        self._news.add(news)
        news.add_done_callback(self._news.discard)

    async def _mend(self, pool: Any, connection: Any, error: BaseException) -> None:
        """Give a connection back whose call failed: fit for use, or closed."""
        code = code_of(error)
        try:
            if code in _NOT_APPLIED or code in _LOST_AGAINST_ANOTHER:
                await _ask(connection, b"ROLLBACK")
                return
            connection.close()
            if code in _READ_ONLY:
                _evict(pool)
        except BaseException:
            connection.close()
            raise
        finally:
            self._give_back(pool, connection)


def _evict(pool: Any) -> None:
    """Close the idle connections: they may lead to where no primary is any more. The next call makes a new one.

    The pool's own way takes its leave from the server, and waits for whoever is connecting.
    """
    while pool._free:
        pool._free.popleft().close()


class GuestLine:
    """One *connection* of the user's, in his transaction; nothing is sent twice, and nothing is thrown away."""

    is_guest = True

    def __init__(self, connection: Any, timeout_s: float, place: str, max_packet: int) -> None:
        self.max_packet = max_packet
        #: Whether the server refuses to lock what another transaction has changed since this one began (MariaDB, by default
        #: from 11.6 on). A claim that was renewed meanwhile is still the claim that it was: the statements say so themselves.
        self.is_strict = False
        self._connection = connection
        self.timeout_s = timeout_s
        self.place = place

    async def read(self, *statements: str) -> Sequence[Answer]:
        return await self._call(statements)

    async def write(self, *statements: str, after: Sequence[str] = ()) -> Sequence[Answer]:
        # What a guard undoes is what was done here, not what the user has done before.
        point = "SAVEPOINT asyncsched"
        answers = await self._call(
            [point, *statements, f"RELEASE {point}", *after], undo=f"ROLLBACK TO {point}"
        )
        end = 1 + len(statements)
        return [*answers[1:end], *answers[end + 1 :]]

    async def begin(self) -> None:
        await self._call([f"SET {_ISOLATION}", "START TRANSACTION"])

    async def end(self, how: str) -> None:
        """``COMMIT`` or ``ROLLBACK``; a connection that was cut needs no more of it."""
        if not self._connection.closed:
            await self._call([how])

    async def leave(self) -> None:
        """Roll back; where that cannot be said, the connection is closed, which says it as well."""
        try:
            await self.end("ROLLBACK")
        except StoreError:
            self._connection.close()

    async def _call(self, statements: Sequence[str], undo: str = "") -> Sequence[Answer]:
        try:
            async with asyncio.timeout(self.timeout_s):
                try:
                    written = [_lenient(s) for s in statements] if self.is_strict else statements
                    return await _ask(self._connection, _packed(written, self.max_packet))
                except MySQLError as error:
                    await self._undo(undo, error)
                    raise
        except Exception as error:
            raise translated(error, self.place, self.timeout_s) from error

    async def _undo(self, undo: str, error: MySQLError) -> None:
        """All that was done of a call that failed goes, whatever it failed of: its user may catch that, and commit."""
        # A deadlock has undone the transaction as a whole, and so has any failure that a server is set to do that for.
        if undo and not self._connection.closed and code_of(error) != 1213:
            with contextlib.suppress(MySQLError):
                await _ask(self._connection, undo.encode())


def _lenient(statement: str) -> str:
    if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
        return f"SET STATEMENT innodb_snapshot_isolation = 0 FOR {statement}"
    if statement.startswith("SET STATEMENT "):
        return f"SET STATEMENT innodb_snapshot_isolation = 0, {statement.removeprefix('SET STATEMENT ')}"
    return statement


def _packed(statements: Sequence[str], limit: int) -> bytes:
    packet = ";".join(statements).encode()
    if len(packet) + 1 > limit:
        raise StoreError(
            f"a packet of {len(packet):,} bytes is more than the {limit:,} that the server takes (bytes go in hexadecimal, "
            "two for each): raise its max_allowed_packet, or store less in arguments and results"
        )
    return packet


async def _ask(connection: Any, packet: bytes) -> Sequence[Answer]:
    """Send one packet of statements, and read the answers to all of them.

    The driver's cursors ask for the warnings of a statement, one more round trip, and repeat them as Python's: so its query,
    next_result and the one private name of it that they use themselves are used here.
    """
    await connection.query(packet)
    answers = []
    while True:
        result = connection._result
        answers.append(Answer(result.affected_rows, result.rows or ()))
        if not result.has_next:
            return answers
        await connection.next_result()


def code_of(error: BaseException) -> int | None:
    """The number that the server or the driver gave an error."""
    code = error.args[0] if isinstance(error, MySQLError) and error.args else None
    return code if isinstance(code, int) else None


def translated(error: Exception, place: str, timeout_s: float, is_ready: bool = False) -> Exception:
    """What the failure *error* of a call to the server at *place* means to the caller."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"{place} did not answer within {timeout_s:g} s")
    code, here = code_of(error), f"the server at {place}"
    if code in _NOT_APPLIED:
        return NotApplied()
    if code is None or code < 1000 or 2000 <= code < 3000:
        return _client_failure(error, code, place, is_ready)
    said = f"({code}: {error.args[1] if len(error.args) > 1 else ''})"
    if code in _READ_ONLY:
        return StoreUnavailable(f"{here} is read-only {said}: connect to the primary")
    if code in _PASSING:
        return StoreUnavailable(f"{here} cannot do it at present {said}")
    if message := _door(code, place, said):
        # A refusal for good would condemn the jobs whose ends were to be written.
        return StoreUnavailable(message) if is_ready else StoreError(message)
    if code in _MISSING:
        return SchemaError(
            f"the schema at {place} is gone or damaged {said}: open the store again to create it"
        )
    if code == 1153:
        return StoreError(f"a packet is larger than {here} takes {said}: raise its max_allowed_packet")
    return StoreError(f"{here} refused the call {said}")


def _door(code: int, place: str, said: str) -> str:
    """What is to be mended where a server lets nobody in, or does not allow what the store needs; empty: it is not that."""
    here = f"the server at {place}"
    if code in _LOGIN:
        return f"{here} refuses the login {said}: check user, password, host and TLS"
    if code in _PRIVILEGE:
        return f"{here} refuses it to this user {said}: grant it that privilege"
    if code == 1049:
        return f"there is no such database at {place} {said}: create it, or name another"
    if code == 1665:
        return f"{here} logs by statement {said}: set its binlog_format to ROW or MIXED"
    return ""


def _client_failure(error: Exception, code: int | None, place: str, is_ready: bool) -> StoreError:
    """Of an error that is the driver's own or the network's."""
    let_in = StoreUnavailable if is_ready else StoreError
    if isinstance(error, MySQLError):
        cause = error.__cause__ or error
        if isinstance(cause, ssl.SSLError):
            return let_in(f"TLS with {place} failed ({cause}): name its authority with ssl_ca=, or pass ssl=")
        if code == 2003:
            return StoreUnavailable(f"{place} cannot be reached: {cause}")
        if code is not None or isinstance(error, InterfaceError):
            return StoreUnavailable(f"the connection to {place} was lost: {error}")
        return StoreUnavailable(f"the call to {place} failed: {error}")
    if isinstance(error, OSError | EOFError):
        return StoreUnavailable(f"{place} cannot be reached: {error}")
    if isinstance(error, RuntimeError) and "cryptography" in str(error):
        return let_in(
            f"the login at {place} needs TLS or RSA: use ssl=true, or pip install cryptography ({error})"
        )
    if isinstance(error, OverflowError | UnicodeError | TypeError | ValueError):
        return StoreError(f"the server at {place} cannot keep a value: {error}")
    return StoreError(f"the call to {place} failed: {error!r}")
