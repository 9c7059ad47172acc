"""Jobs in one SQLite file, shared by any number of processes of one host.

Every operation is one transaction and runs in one go in the connection's thread: a cancelled caller leaves nothing half done,
and pays for one change of threads instead of one for each statement. All writes begin with ``BEGIN IMMEDIATE``: SQLite has
one writer at a time, and a transaction that only later turned into a writer could not wait for its turn.

**Durability.** The file is in WAL mode. With ``synchronous="NORMAL"`` nothing that was acknowledged is lost when a process
dies, but the last transactions may be lost when the *machine* loses power (the file stays sound). ``synchronous="FULL"``
waits for the disk at each commit and loses nothing. WAL needs a local file system; it does not work over a network.

**Time** is the host's clock, read once the write lock is held. ``on_hint`` hears only of what this object wrote, since SQLite
has no notifications; polling covers what other processes write.
"""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from functools import lru_cache, partial, wraps
from heapq import merge
from itertools import chain, islice
from operator import attrgetter
from threading import Event
from types import CoroutineType
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar, cast
from urllib.parse import unquote, urlsplit

from msgspec.structs import astuple, replace

from asyncsched import contract
from asyncsched.address import flag, keywords_of
from asyncsched.clock import host_time
from asyncsched.contract import Claim, Claimed, Entry, Filter, Lease, Record, Renewal, Settled, Settlement
from asyncsched.errors import DefinitionError, MissingExtra, SchemaError, StoreError, StoreUnavailable

try:
    import aiosqlite
except ImportError as error:
    raise MissingExtra('the SQLite store needs aiosqlite: pip install "asyncsched[sqlite]"') from error

__all__ = ["SQLiteStore"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Row = tuple[Any, ...]
_Source = tuple[str, tuple[object, ...]]

_NO_ACCESS = frozenset({"CANTOPEN", "READONLY", "PERM", "AUTH"})
#: The fault of the disk or the host, not of what was asked: it may succeed when repeated, and must condemn no job.
_PASSING = _NO_ACCESS | {"IOERR", "FULL", "NOMEM", "INTERRUPT", "PROTOCOL"}
_SCHEMA_VERSION = 1
#: A call of prune looks at so many log entries for crowded jobs, and the next call goes on behind them.
_SWEEP = 10_000
#: Lists are bound in pieces of a power of two, so that few statements are ever prepared and no parameter limit is met.
_PIECE = 256

# -- SQL: {p} is the prefix of the tables, {list} one mark or one row of marks for each item -----------------------------
# A plus before a column keeps the planner from looking for an index by it: another one is to be used.

# The rows are small and the ids may be random: a table in order of rowid takes new rows at its end, where WITHOUT ROWID
# would spread them over all of its pages. Blobs stand last, so that the other columns are found without reading past them.
_CREATE = (
    "CREATE TABLE {p}meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    """CREATE TABLE {p}jobs (id TEXT NOT NULL PRIMARY KEY, queue TEXT NOT NULL, priority INTEGER NOT NULL, wake_at REAL,
        holder TEXT, fence INTEGER NOT NULL, version INTEGER NOT NULL, settled INTEGER NOT NULL, tries INTEGER NOT NULL,
        prior INTEGER, hold TEXT, birth TEXT NOT NULL, task TEXT NOT NULL, cursor BLOB NOT NULL, body BLOB NOT NULL)""",
    "CREATE INDEX {p}jobs_lane ON {p}jobs (queue, priority, wake_at, id)",
    "CREATE INDEX {p}jobs_hold ON {p}jobs (hold, wake_at, id) WHERE hold IS NOT NULL",
    "CREATE INDEX {p}jobs_holder ON {p}jobs (holder) WHERE holder IS NOT NULL",
    """CREATE TABLE {p}runs (seq INTEGER PRIMARY KEY, job_id TEXT NOT NULL, fence INTEGER NOT NULL, kind TEXT NOT NULL,
        fire_at REAL NOT NULL, at REAL NOT NULL, body BLOB NOT NULL, UNIQUE (job_id, fence, kind, fire_at))""",
    "CREATE INDEX {p}runs_at ON {p}runs (at)",
    "CREATE INDEX {p}runs_job ON {p}runs (job_id, at)",
    "CREATE TABLE {p}leases (key TEXT PRIMARY KEY, holder TEXT NOT NULL, fence INTEGER NOT NULL, until REAL NOT NULL)",
)
_USE_WAL = "PRAGMA journal_mode = WAL"
# A write, since SQLite opens and even locks a file that it may only read.
_SCHEMA = "UPDATE {p}meta SET value = value WHERE key = 'schema' RETURNING value"
_NEXT_FENCE = "UPDATE {p}meta SET value = value + 1 WHERE key = 'fence' RETURNING value"
_SET_META = "REPLACE INTO {p}meta (key, value) VALUES (?, ?)"
_TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{p}meta'"

_FIELDS = ", ".join(Record.__struct_fields__)
_ADD = f"INSERT INTO {{p}}jobs ({_FIELDS}) VALUES {{list}} ON CONFLICT (id) DO NOTHING"
_GET = f"SELECT {_FIELDS} FROM {{p}}jobs WHERE id IN ({{list}})"
_BIRTHS = "SELECT id, birth FROM {p}jobs WHERE id IN ({list})"
_REMOVE = "DELETE FROM {p}jobs WHERE id IN ({list})"
_UPDATE = """UPDATE {p}jobs SET body = ?, version = version + 1, queue = ?, priority = ?,
    task = coalesce(?, task) WHERE id = ? AND version = ?"""
_UPDATE_UNHELD = """UPDATE {p}jobs SET hold = ?, wake_at = ?, holder = NULL, prior = NULL
    WHERE id = ? AND (holder IS NULL OR ?)"""

# A loose index scan: one probe for each lane of the queue, and one for its earliest record.
_LANES = """WITH RECURSIVE lane (priority) AS (
        SELECT max(priority) FROM {p}jobs WHERE queue = :queue
        UNION ALL SELECT (SELECT max(j.priority) FROM {p}jobs AS j WHERE j.queue = :queue AND j.priority < lane.priority)
        FROM lane WHERE lane.priority IS NOT NULL)
    SELECT priority, coalesce(
        (SELECT min(j.wake_at) FROM {p}jobs AS j WHERE j.queue = :queue AND j.priority = lane.priority), 9e999)
    FROM lane WHERE priority IS NOT NULL"""
_QUEUES = """WITH RECURSIVE found (queue) AS (
        SELECT min(queue) FROM {p}jobs
        UNION ALL SELECT (SELECT min(j.queue) FROM {p}jobs AS j WHERE j.queue > found.queue)
        FROM found WHERE found.queue IS NOT NULL)
    SELECT queue FROM found WHERE queue IS NOT NULL"""
_DUE = """SELECT rowid, id, birth, task, hold, body, cursor, version, fence, holder, settled, tries, prior
    FROM {p}jobs WHERE queue = ? AND priority = ? AND wake_at <= ? AND (holder IS NULL OR wake_at <= ?)
    ORDER BY wake_at, id LIMIT ?"""
_TAKE = """UPDATE {p}jobs SET prior = CASE WHEN holder IS NOT NULL THEN fence ELSE prior END,
    wake_at = ?, fence = ?, holder = ?, tries = tries + 1 WHERE rowid IN ({list})"""
_STILL_HELD = f"SELECT {_FIELDS} FROM {{p}}jobs WHERE holder = ? AND wake_at > ?"
_HELD = "SELECT id, fence, holder, version, wake_at FROM {p}jobs WHERE id IN ({list})"
_EXTEND_CLAIMS = "UPDATE {p}jobs SET wake_at = ? WHERE id IN ({list})"
_DELETE = "DELETE FROM {p}jobs WHERE fence = ? AND +holder = ? AND version = ? AND id IN ({list})"
_MOVE = """UPDATE {p}jobs SET wake_at = ?, hold = ?, cursor = ?,
    holder = NULL, settled = fence, tries = 0, prior = NULL WHERE id = ? AND fence = ? AND +holder = ? AND version = ?"""
_HAND_BACK = """UPDATE {p}jobs SET wake_at = ?,
    holder = NULL, tries = max(tries - 1, 0) WHERE id = ? AND fence = ? AND +holder = ? AND version = ?"""
_UNPARK = "UPDATE {p}jobs SET hold = NULL, wake_at = ? WHERE id IN ({list})"

_PAGE = f"SELECT {_FIELDS} FROM {{p}}jobs WHERE {{source}} AND {{behind}} LIMIT ?"
_LEASES = "SELECT key, holder, fence, until FROM {p}leases WHERE key IN ({list})"
_SET_LEASE = "REPLACE INTO {p}leases (key, holder, fence, until) VALUES (?, ?, ?, ?)"
_RELEASE = "DELETE FROM {p}leases WHERE key = ? AND holder = ? AND fence = ?"
_ENTRY = ", ".join(Entry.__struct_fields__)
_LOG = f"INSERT INTO {{p}}runs ({_ENTRY}) VALUES {{list}} ON CONFLICT DO NOTHING"
_RUNS = f"""SELECT {_ENTRY} FROM {{p}}runs WHERE {{where}}
    ORDER BY at DESC, job_id DESC, fence DESC, kind DESC, fire_at DESC LIMIT ?"""
_PRUNE_OLD = "DELETE FROM {p}runs WHERE seq IN (SELECT seq FROM {p}runs WHERE at < ? ORDER BY at LIMIT ?)"
_SWEEP_END = "SELECT job_id FROM {p}runs WHERE job_id > ? ORDER BY job_id LIMIT 1 OFFSET ?"
_CROWDED = """SELECT job_id, count(*) FROM {p}runs WHERE job_id > ? AND job_id <= coalesce(?, CAST(x'ff' AS TEXT))
    GROUP BY job_id HAVING count(*) > ?"""
_PRUNE_JOB = """DELETE FROM {p}runs WHERE seq IN (
    SELECT seq FROM {p}runs WHERE job_id = ? ORDER BY at, fence, kind, fire_at LIMIT ?)"""


def _in_thread(
    work: Callable[Concatenate[SQLiteStore, _P], _T],
) -> Callable[Concatenate[SQLiteStore, _P], CoroutineType[Any, Any, _T]]:
    """Make of *work*, which is one transaction, a coroutine function that does it in the connection's thread."""

    @wraps(work)
    async def call(self: SQLiteStore, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._hop(partial(work, self, *args, **kwargs))

    return cast("Callable[Concatenate[SQLiteStore, _P], CoroutineType[Any, Any, _T]]", call)


class SQLiteStore:
    """A job store in the file *path*, for any number of processes of this host.

    ``synchronous="FULL"`` survives the loss of power without losing what was acknowledged, at the cost of a disk flush for
    each commit. A call that waits longer than *busy_timeout* seconds for another writer raises StoreUnavailable. Stores with
    different *table_prefix* live in one file without seeing each other. With ``create_schema=False`` the tables must exist.
    """

    capabilities = contract.Capabilities(
        durable=True, shared=True, clock="host", push_hints=False, linearizable=True, transactional_add=False
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        table_prefix: str = "asyncsched_",
        synchronous: str = "NORMAL",
        busy_timeout: float = 30.0,
        create_schema: bool = True,
    ) -> None:
        self._path = os.fspath(path)
        self._prefix = table_prefix
        self._synchronous = synchronous.upper()
        self._busy_timeout_s = busy_timeout
        self._create_schema = create_schema
        _refuse(self._path in ("", ":memory:"), "an SQLite store needs a file; for memory use memory://")
        _refuse(not f"{table_prefix}x".isidentifier(), f"table_prefix is no name: {table_prefix!r}")
        _refuse(self._synchronous not in ("NORMAL", "FULL"), f"not NORMAL or FULL: {synchronous!r}")
        _refuse(not 0 <= busy_timeout < math.inf, f"busy_timeout is not 0 or more seconds: {busy_timeout!r}")
        self._now: Callable[[], float] = host_time
        self._connection: aiosqlite.Connection | None = None
        self._loop: asyncio.AbstractEventLoop
        #: Used in the connection's thread only.
        self._db: sqlite3.Connection
        self._listeners: list[Callable[[float | None], None]] = []
        #: The job behind which the next call of prune begins to look for crowded ones.
        self._swept = ""
        self._sql = lru_cache(maxsize=256)(self._written_out)

    @classmethod
    def from_url(cls, url: str) -> SQLiteStore:
        """The store of ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with keywords behind a question mark."""
        _, keywords = keywords_of(url, _KEYWORDS)
        return cls(_path_of(url), **keywords)

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._now = now
        if self._connection is not None:
            return
        made: list[tuple[sqlite3.Connection, sqlite3.Error | None]] = []
        self._connection = await aiosqlite.Connection(partial(self._connect, made), 64)
        self._db, refused = made[0]
        self._loop, self._is_ready = asyncio.get_running_loop(), False
        try:
            await self._hop(partial(self._prepare, refused))
        except BaseException:
            await self.close()
            raise
        self._is_ready = True

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        self._listeners.clear()
        if connection is not None:
            await connection.close()

    def clone(self) -> SQLiteStore:
        clone = copy(self)
        clone._connection, clone._listeners = None, []
        return clone

    async def now(self) -> float:
        return self._now()

    def ddl(self) -> str:
        """The statements that make the schema."""
        rows = f"INSERT INTO {{p}}meta (key, value) VALUES ('schema', {_SCHEMA_VERSION}), ('fence', 0)"
        return "".join(f"{self._sql(statement)};\n" for statement in (*_CREATE, rows))

    # -- records -------------------------------------------------------------------------------------------------------

    @_in_thread
    def add(self, records: Sequence[Record]) -> set[str]:
        taken: set[str] = set()
        with self._transaction():
            if self._insert(_ADD, records) < len(records):
                births: dict[str, str] = dict(self._select(_BIRTHS, [r.id for r in records]))
                taken = {r.id for r in records if births[r.id] != r.birth}
        self._hint(r.wake_at for r in records)
        return taken

    @_in_thread
    def get(self, ids: Sequence[str]) -> dict[str, Record]:
        with self._transaction("BEGIN"):
            return {row[0]: Record(*row) for row in self._select(_GET, ids)}

    @_in_thread
    def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        with self._transaction("BEGIN"):
            return self._first(self._sources(where), limit, after)

    @_in_thread
    def update(self, update: contract.Update) -> Record | None:
        u = update
        with self._transaction():
            if not self._do(_UPDATE, (u.body, u.queue, u.priority, u.task, u.id, u.version)).rowcount:
                return None
            wake_at = self._now() if u.revoke else u.wake_at
            self._do(_UPDATE_UNHELD, (u.hold, wake_at, u.id, u.revoke))
            [record] = (Record(*row) for row in self._select(_GET, [u.id]))
        if record.holder is None:
            self._hint([record.wake_at])
        return record

    @_in_thread
    def remove(self, ids: Sequence[str]) -> set[str]:
        with self._transaction():
            found = {id for id, _ in self._select(_BIRTHS, ids)}
            self._change(_REMOVE, list(found))
        return found

    # -- claims --------------------------------------------------------------------------------------------------------

    @_in_thread
    def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        now = self._now()
        lanes = self._lanes(queues)
        if all(lane.earliest > now + ahead_s for lane in lanes):
            # Nothing to take: the write lock is left to others.
            return Claimed(self._still_held(token, now), _earliest(lane.earliest for lane in lanes), now)
        with self._transaction():
            now = self._now()
            taken = self._still_held(token, now)
            for lane in lanes:
                if len(taken) < limit and lane.earliest <= now + ahead_s:
                    room = limit - len(taken)
                    taken += self._claim_lane(lane, token, room, now, now + ahead_s, now + lease_s)
            return Claimed(taken, _earliest(lane.earliest for lane in self._lanes(queues)), now)

    @_in_thread
    def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        versions: dict[str, int | Literal["busy", "lost"]] = {}
        shorter: list[str] = []
        with self._transaction():
            now = self._now()
            there = {row[0]: row for row in self._select(_HELD, [claim.id for claim in claims])}
            for claim in claims:
                *found, version, wake_at = there.get(claim.id, (None, None))
                versions[claim.id] = version if tuple(found) == claim else "lost"
                if tuple(found) == claim and (wake_at is None or wake_at < now + lease_s):
                    shorter.append(claim.id)
            self._change(_EXTEND_CLAIMS, shorter, now + lease_s)
        return Renewal(versions, now)

    @_in_thread
    def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: list[Settled] = ["done" for _ in settlements]
        times: list[float | None] = []
        try:
            with self._transaction():
                self._settle_together(settlements, times)
        except _NotAllDone:
            times.clear()
            with self._transaction():
                answers = [self._settle_alone(settlement, times) for settlement in settlements]
        self._hint(times)
        return answers

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        self._listeners.append(callback)

        def end() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return end

    # -- named leases --------------------------------------------------------------------------------------------------

    @_in_thread
    def acquire(self, keys: Sequence[str], holder: str, lease_s: float) -> dict[str, Lease]:
        taken: dict[str, Lease] = {}
        with self._transaction():
            now = self._now()
            there = {row[0]: Lease(*row) for row in self._select(_LEASES, keys)}
            for key in keys:
                lease = there.get(key)
                if lease is None or lease.until <= now:
                    [(fence,)] = self._do(_NEXT_FENCE)
                    lease = Lease(key, holder, fence, now)
                if lease.holder == holder:
                    taken[key] = there[key] = lease._replace(until=now + lease_s)
            self._many(_SET_LEASE, list(taken.values()))
        return taken

    @_in_thread
    def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        kept: dict[str, Lease] = {}
        with self._transaction():
            until = self._now() + lease_s
            there = {row[0]: Lease(*row) for row in self._select(_LEASES, [lease.key for lease in leases])}
            for lease in leases:
                current = there.get(lease.key)
                if current is not None and current[:3] == lease[:3]:
                    kept[lease.key] = current._replace(until=max(current.until, until))
            self._many(_SET_LEASE, list(kept.values()))
        return kept

    @_in_thread
    def release(self, leases: Sequence[Lease]) -> None:
        with self._transaction():
            self._many(_RELEASE, [lease[:3] for lease in leases])

    # -- the log -------------------------------------------------------------------------------------------------------

    @_in_thread
    def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        where, values = ["1"], list[object]()
        if job_id is not None:
            where.append("job_id = ?")
            values.append(job_id)
        if kinds is not None:
            where.append(f"+kind IN ({', '.join('?' * len(kinds))})")
            values += kinds
        if before is not None:
            where.append("at <= ? AND (at, job_id, fence, kind, fire_at) < (?, ?, ?, ?, ?)")
            values += (before.at, before.at, before.job_id, before.fence, before.kind, before.fire_at)
        rows = self._do(_RUNS.replace("{where}", " AND ".join(where)), [*values, limit])
        return [Entry(*row) for row in rows]

    @_in_thread
    def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        with self._transaction():
            if older_than_s is not None:
                pruned = self._do(_PRUNE_OLD, (self._now() - older_than_s, limit)).rowcount
            if per_job is not None:
                pruned += self._prune_crowded(per_job, limit - pruned)
        return pruned

    # -- below: the thread, transactions and their steps --------------------------------------------------------------------

    async def _hop(self, work: Callable[[], _T]) -> _T:
        """Do *work* in the connection's thread, and translate what SQLite raises."""
        if self._connection is None:
            raise StoreError(f"the SQLite store {self._path} is not open: await its open() first")
        # The one private name of aiosqlite that is used here. Through its public ones each statement is a change of threads
        # of its own, between which a caller can be cancelled and leave a transaction open.
        execute = cast("Callable[[Callable[[], _T]], Awaitable[_T]]", self._connection._execute)
        try:
            return await execute(work)
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            raise self._translated(error) from error

    def _hint(self, times: Iterable[float | None]) -> None:
        """Tell the listeners, in their loop; also if the caller was cancelled, since the write was done."""
        wake_at = _earliest(times) if self._listeners else None
        for listener in () if wake_at is None else tuple(self._listeners):
            with suppress(RuntimeError):  # The loop was closed meanwhile.
                self._loop.call_soon_threadsafe(listener, wake_at)

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """One transaction: all of it is kept, or nothing, and afterwards none is open."""
        self._db.execute(begin)
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            raise

    def _written_out(self, text: str, items: int = 0, row: str = "") -> str:
        return text.replace("{p}", self._prefix).replace("{list}", ",".join([row] * items))

    def _do(self, text: str, parameters: Sequence[object] | dict[str, object] = ()) -> sqlite3.Cursor:
        return self._db.execute(self._sql(text), parameters)

    def _many(self, text: str, rows: Sequence[_Row]) -> int:
        return self._db.executemany(self._sql(text), rows).rowcount if rows else 0

    def _each(self, text: str, items: Sequence[object], *head: object) -> Iterator[sqlite3.Cursor]:
        for piece in _pieces(items):
            yield self._db.execute(self._sql(text, len(piece), "?"), (*head, *piece))

    def _select(self, text: str, items: Sequence[object]) -> Iterator[_Row]:
        return chain.from_iterable(self._each(text, items))

    def _change(self, text: str, items: Sequence[object], *head: object) -> int:
        return sum(cursor.rowcount for cursor in self._each(text, items, *head))

    def _insert(self, text: str, items: Sequence[Record] | Sequence[Entry]) -> int:
        """Insert *items* that are not there yet; return how many that were."""
        inserted = 0
        for piece in _pieces(items):
            values = tuple(chain.from_iterable(map(astuple, piece)))
            row = f"({','.join('?' * (len(values) // len(piece)))})"
            inserted += self._db.execute(self._sql(text, len(piece), row), values).rowcount
        return inserted

    def _sources(self, where: Filter) -> list[_Source]:
        """The stretches of indexes, each in order by itself, that together hold what *where* asks for."""
        wanted = {"queue": where.queue, "task": where.task, "hold": where.hold or None}
        values = {f" AND +{name} = ?": value for name, value in wanted.items() if value is not None}
        filters = "".join(values) + (" AND hold IS NULL" if where.hold == "" else "")
        if where.id_prefix:
            # No UTF-8 text has the byte ff, so the prefix with it stands behind every id that begins with the prefix.
            with_prefix = "id >= ? AND id < CAST(? || x'ff' AS TEXT)"
            leads: list[_Source] = [(with_prefix, (where.id_prefix, where.id_prefix))]
        elif where.hold:
            leads = [("hold = ?", (where.hold,))]
        else:
            queues = [row[0] for row in self._do(_QUEUES)] if where.queue is None else [where.queue]
            leads = [("queue = ? AND priority = ?", lane[:2]) for lane in self._lanes(queues)]
        return [(lead + filters, (*of, *values.values())) for lead, of in leads]

    def _first(self, sources: list[_Source], limit: int, after: Record | None = None) -> list[Record]:
        """The first records behind *after* of all *sources* together, read lazily; those that never wake come last."""
        found: list[Record] = []
        if after is None or after.wake_at is not None:
            start: _Row = (-math.inf, "") if after is None else (after.wake_at, after.id)
            found = self._merged(sources, "(wake_at, id) > (?, ?) ORDER BY wake_at, id", start, limit)
        if room := limit - len(found):
            start = (after.id if after is not None and after.wake_at is None else "",)
            found += self._merged(sources, "wake_at IS NULL AND id > ? ORDER BY id", start, room)
        return found

    def _merged(self, sources: list[_Source], behind: str, start: _Row, limit: int) -> list[Record]:
        text = _PAGE.replace("{behind}", behind)
        cursors = [self._do(text.replace("{source}", of), (*values, *start, limit)) for of, values in sources]
        streams = [(Record(*row) for row in cursor) for cursor in cursors]
        found = list(islice(merge(*streams, key=attrgetter("wake_at", "id")), limit))
        for cursor in cursors:
            cursor.close()
        return found

    def _lanes(self, queues: Sequence[str]) -> list[_Lane]:
        """The lanes of *queues*, high priority first, queues in the order given."""
        lanes = [_Lane(queue, *row) for queue in queues for row in self._do(_LANES, {"queue": queue})]
        if len(queues) > 1:
            lanes.sort(key=attrgetter("priority"), reverse=True)
        return lanes

    def _still_held(self, token: str, now: float) -> list[Record]:
        """What a repeated claim gets again; a lease that has ended meanwhile is due and is claimed like any other."""
        held = [Record(*row) for row in self._do(_STILL_HELD, (token, now))]
        return sorted(held, key=attrgetter("fence", "id"))

    def _claim_lane(
        self, lane: _Lane, token: str, room: int, now: float, horizon: float, until: float
    ) -> list[Record]:
        queue, priority, _ = lane
        if not (due := self._do(_DUE, (queue, priority, horizon, now, room)).fetchall()):
            return []
        [(fence,)] = self._do(_NEXT_FENCE)
        self._change(_TAKE, [row[0] for row in due], until, fence, token)
        # Positional, since this is the hottest line of the store: the order of Record's fields.
        return [
            Record(
                id, birth, queue, priority, task, until, hold, body, cursor,
                version, fence, token, settled, tries + 1, prior if holder is None else last,
            )
            for _, id, birth, task, hold, body, cursor, version, last, holder, settled, tries, prior in due
        ]  # fmt: skip

    def _settle_together(self, settlements: Sequence[Settlement], times: list[float | None]) -> None:
        """Apply *settlements* by kind of write, or raise _NotAllDone: the ordinary case costs few statements."""
        deletes: dict[tuple[int, str, int], list[str]] = {}
        moves: list[_Row] = []
        returns: list[_Row] = []
        for s in settlements:
            if s.delete:
                deletes.setdefault((s.fence, s.holder, s.version), []).append(s.id)
            elif s.hand_back:
                returns.append((s.wake_at, s.id, s.fence, s.holder, s.version))
            else:
                moves.append((s.wake_at, s.hold, s.cursor, s.id, s.fence, s.holder, s.version))
        done = sum(self._change(_DELETE, ids, *claim) for claim, ids in deletes.items())
        done += self._many(_MOVE, moves) + self._many(_HAND_BACK, returns)
        spawned = [record for s in settlements for record in s.spawn]
        # Where one settles what another spawns, their order matters.
        ids = {s.id for s in settlements}
        if done < len(settlements) or (len(ids) > 1 and any(record.id in ids for record in spawned)):
            raise _NotAllDone
        self._insert(_LOG, [entry for s in settlements for entry in s.entries])
        self._insert(_ADD, spawned)
        times += [row[0] for row in moves + returns] + [record.wake_at for record in spawned]
        times += [self._unpark(*s.unpark) for s in settlements if s.unpark is not None]

    def _settle_alone(self, s: Settlement, times: list[float | None]) -> Settled:
        record = next((Record(*row) for row in self._select(_GET, [s.id])), None)
        if record is None:
            self._insert(_LOG, s.entries)
            return "gone"
        if (record.fence, record.holder) != (s.fence, s.holder):
            return "already" if record.settled == s.fence else "lost"
        stale = record.version != s.version
        if stale:
            s = replace(s, version=record.version, wake_at=self._now(), hold=record.hold, delete=False)
        self._settle_together([s], times)
        return "stale" if stale else "done"

    def _unpark(self, hold: str, limit: int) -> float | None:
        parked = self._first([("hold = ? AND holder IS NULL", (hold,))], limit)
        now = self._now()
        return now if self._change(_UNPARK, [r.id for r in parked], now) else None

    def _prune_crowded(self, per_job: int, limit: int) -> int:
        """Look at the next stretch of the log only, so that a call takes as long whatever the log's size."""
        pruned = 0
        end = next((job_id for (job_id,) in self._do(_SWEEP_END, (self._swept, _SWEEP))), None)
        for job_id, count in self._do(_CROWDED, (self._swept, end, per_job)).fetchall():
            pruned += self._do(_PRUNE_JOB, (job_id, min(count - per_job, limit - pruned))).rowcount
        if pruned < limit:
            self._swept = end or ""
        return pruned

    def _connect(self, made: list[tuple[sqlite3.Connection, sqlite3.Error | None]]) -> sqlite3.Connection:
        try:
            made.append((sqlite3.connect(self._path, timeout=0.0, isolation_level=None), None))
        except sqlite3.Error as error:
            # aiosqlite ends its thread in good order only if it was given some connection.
            made.append((sqlite3.connect(":memory:"), error))
        return made[0][0]

    def _prepare(self, refused: sqlite3.Error | None) -> None:
        if refused is not None:
            raise refused
        if (mode := self._switched_to_wal()) != "wal":
            raise StoreError(f"{self._path} stays in journal mode {mode}: WAL needs a local file system")
        self._do(f"PRAGMA busy_timeout = {round(1000 * self._busy_timeout_s)}")
        self._do(f"PRAGMA synchronous = {self._synchronous}")
        # 32 MB: the inner pages of the indexes of some millions of jobs.
        self._do("PRAGMA cache_size = -32000")
        here = f"{self._path} (tables {self._prefix}*)"
        with self._transaction():
            if self._do(_TABLE).fetchone() is None:
                if not self._create_schema:
                    raise SchemaError(f"{here} has no schema: open it once with create_schema=True")
                for statement in _CREATE:
                    self._do(statement)
                self._many(_SET_META, [("schema", _SCHEMA_VERSION), ("fence", 0)])
            [(found,)] = self._do(_SCHEMA)
        if found != _SCHEMA_VERSION:
            raise SchemaError(f"{here} has schema {found}, this code {_SCHEMA_VERSION}: upgrade asyncsched")

    def _switched_to_wal(self) -> str:
        """The journal mode. Where several processes open a new file at once, SQLite refuses the switch without waiting."""
        for _ in range(round(100 * self._busy_timeout_s)):
            try:
                return str(self._do(_USE_WAL).fetchone()[0])
            except sqlite3.OperationalError as error:
                if _kind(error) != "BUSY":
                    raise
                Event().wait(0.01)
        return str(self._do(_USE_WAL).fetchone()[0])

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


class _NotAllDone(Exception):
    """Some settlement of a batch did not apply as it is; nothing of the batch was kept."""


class _Lane(NamedTuple):
    queue: str
    priority: int
    earliest: float


def _earliest(times: Iterable[float | None]) -> float | None:
    earliest = min((at for at in times if at is not None), default=math.inf)
    return earliest if earliest < math.inf else None


def _pieces(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """*items* in pieces whose lengths are powers of two."""
    start = 0
    while left := len(items) - start:
        size = min(_PIECE, 1 << (left.bit_length() - 1))
        yield items[start : start + size]
        start += size


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


_KEYWORDS: Mapping[str, Callable[[str], object]] = {
    "synchronous": str,
    "busy_timeout": float,
    "create_schema": flag,
    "table_prefix": str,
}


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise DefinitionError(message)


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    forms = "write sqlite:///relative.db or sqlite:////absolute.db"
    _refuse(parts.scheme != "sqlite" or bool(parts.fragment), f"{url!r} is no SQLite URL: {forms}, # as %23")
    _refuse(bool(parts.netloc), f"{url!r} names the host {parts.netloc!r}, and SQLite has none: {forms}")
    return unquote(parts.path.removeprefix("/"))
