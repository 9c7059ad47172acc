"""The store's methods: each is one call of a function of the schema, or one statement."""

from __future__ import annotations

import asyncio
import math
import secrets
import ssl as tls
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from copy import copy
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal
from weakref import WeakSet

import asyncpg
from msgspec.structs import astuple, replace

from asyncsched import contract
from asyncsched.address import flag, keywords_of, without_password
from asyncsched.contract import (
    Claim,
    Claimed,
    Entry,
    Filter,
    JobStore,
    Lease,
    Record,
    Renewal,
    Settled,
    Settlement,
)
from asyncsched.errors import DefinitionError, StoreError
from asyncsched.guest import driver_connection
from asyncsched.stores.postgres import statements
from asyncsched.stores.postgres.line import Fetch, GuestLine, Line, Rows
from asyncsched.stores.postgres.listener import Listener
from asyncsched.stores.postgres.schema import Names
from asyncsched.stores.postgres.setup import ddl, prepared_space

__all__ = ["PostgresStore"]

#: A call of prune looks at so many log entries for crowded jobs, and the next call goes on behind them.
_SWEEP = 10_000
#: A named lease that ended so long ago is forgotten: nobody renews it any more.
_FORGOTTEN_S = 3600.0
_LONGEST_PREFIX = 32
#: The last is how SQLAlchemy writes it.
_SCHEMES = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
_FORM = "write postgresql://user:password@host:port/database"
#: How long a claim may begin where the one before found that nothing earlier is left.
_FLOOR_S = 0.25
#: Lists of queues that are kept in mind.
_MANY = 64
#: What the store says to the driver by itself, and by which keyword of its own.
_OWN_OPTIONS = {
    "dsn": "url",
    "timeout": "timeout=",
    "min_size": "pool_size=",
    "max_size": "pool_size=",
    "connection_class": "pool=, a pool of your own",
}
#: Options of a pool that a connection by itself knows nothing of.
_POOL_OPTIONS = frozenset(
    {"init_size", "max_queries", "max_inactive_connection_lifetime", "connect", "setup", "init", "reset"}
)
#: Columns of records that mostly hold one value, which then need not be sent: (place, that value).
_MOSTLY = ((5, None), (6, None), (9, 1), (10, 0), (11, None), (12, 0), (13, 0), (14, None))


class PostgresStore:
    """A job store in the PostgreSQL database *url*, for any number of instances.

    Applications with different *namespace* share the tables without seeing each other; *schema* and *table_prefix* say which
    tables. With ``create_schema=False`` these must exist. *timeout* bounds each call in seconds, waiting for one of the
    *pool_size* connections included. *ssl* and *options* go to the driver as they are.

    *pool* is an asyncpg pool of the user's, which is used instead and never closed. Hints from other processes need one more
    connection that stays open: to *listener_url*, which a pooler in transaction mode makes necessary, else to *url*; with
    ``listen=False``, or a *pool* and no URL, there is none, and jobs of other processes are found by polling.
    """

    capabilities = contract.Capabilities(
        durable=True, shared=True, clock="server", push_hints=True, linearizable=False, transactional_add=True
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: asyncpg.Pool | None = None,
        namespace: str = "asyncsched",
        schema: str = "public",
        table_prefix: str = "asyncsched_",
        create_schema: bool = True,
        timeout: float = 10.0,
        pool_size: int = 4,
        statement_cache_size: int = 100,
        listen: bool = True,
        listener_url: str | None = None,
        ssl: tls.SSLContext | bool | str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        _refuse(url is None and pool is None, "a PostgreSQL store needs a URL or pool=")
        _refuse(not 1 <= len(namespace) <= 255 or "\0" in namespace, f"namespace is no name: {namespace!r}")
        _refuse(
            not schema or not schema.replace("-", "_").isidentifier() or len(schema.encode()) > 63,
            f"schema is no name: {schema!r}",
        )
        _refuse(not f"{table_prefix}x".isidentifier(), f"table_prefix is no name: {table_prefix!r}")
        _refuse(
            len(table_prefix.encode()) > _LONGEST_PREFIX,
            f"table_prefix has more than {_LONGEST_PREFIX} bytes: {table_prefix!r}",
        )
        _refuse(not 0 < timeout < math.inf, f"timeout is not a number of seconds above 0: {timeout!r}")
        _refuse(pool_size < 1, f"pool_size is below 1: {pool_size!r}")
        _refuse(statement_cache_size < 0, f"statement_cache_size is below 0: {statement_cache_size!r}")
        for name in _OWN_OPTIONS.keys() & (options or {}).keys():
            raise DefinitionError(f"options cannot have {name!r}: that is said by {_OWN_OPTIONS[name]}")
        self._options = {"statement_cache_size": statement_cache_size, **(options or {})}
        if ssl is not None:
            self._options["ssl"] = ssl
        self._url = url
        self._listener_url = (listener_url or url) if listen else None
        self._given_pool = pool
        self._namespace = namespace
        self._create_schema = create_schema
        self._timeout_s = timeout
        self._pool_size = pool_size
        self._place = "the given pool" if url is None else _place_of(url)
        self._names = Names(schema, table_prefix)
        self._sql = lru_cache(maxsize=64)(self._names.write_out)
        if self._listener_url is None:
            self.capabilities = _without_push(self.capabilities)
        self._now: Callable[[], float] | None = None
        self._begin()

    @classmethod
    def from_pool(cls, pool: Any, **keywords: Any) -> PostgresStore:
        """A store by the user's own pool, which is never closed here."""
        return cls(pool=pool, **keywords)

    @classmethod
    def from_url(cls, url: str) -> PostgresStore:
        """The store of ``postgresql://user:password@host:port/database``, with keywords behind a question mark; those that this
        store does not know are the driver's (``sslmode``, ``target_session_attrs``, ...)."""
        scheme, _, rest = url.partition("://")
        _refuse(scheme.lower() not in _SCHEMES, f"{without_password(url)!r} is no PostgreSQL URL: {_FORM}")
        bare, keywords = keywords_of(f"postgresql://{rest}", _KEYWORDS, others=True)
        return cls(bare, **keywords)

    def _begin(self) -> None:
        """What belongs to one opened store."""
        self._line: Line | None = None
        self._fetch: Fetch | None = None
        self._space = 0
        self._database = ""
        #: Connections of the user's that lead to that database.
        self._guests: WeakSet[asyncpg.Connection] = WeakSet()
        #: Says who told a hint, so that nobody hears his own.
        self._tag = secrets.token_hex(4)
        self._listeners: list[Callable[[float | None], None]] = []
        self._listener: Listener | None = None
        self._listening: asyncio.Task[None] | None = None
        self._floors = _Floors()
        #: The job behind which the next call of prune looks for crowded ones, and the lease behind which for old ones.
        self._swept = self._looked_at = ""

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._now = now
        if self._line is not None:
            return
        line = Line(self._url, self._options, self._pool_size, self._timeout_s, self._given_pool, self._place)
        try:
            await line.open()
            self._space = await prepared_space(
                line, self._names, self._namespace, self._place, self._create_schema
            )
            [[self._database]] = await line.fetch(statements.DATABASE)
        except BaseException:
            await line.close()
            raise
        line.is_ready = True
        self._line = self._fetch = line
        if self._listeners:
            self._listen()

    async def close(self) -> None:
        line, self._line, self._fetch = self._line, None, None
        listening, self._listening, self._listener = self._listening, None, None
        self._listeners.clear()
        try:
            if listening is not None:
                listening.cancel()
                await asyncio.wait([listening])
        finally:
            if line is not None:
                await line.close()

    def clone(self) -> PostgresStore | None:
        if self._url is None:
            # The user's pool lives in his event loop.
            return None
        clone = copy(self)
        clone._given_pool = None
        clone._begin()
        return clone

    def ddl(self) -> str:
        """The statements that ``open`` runs where there is no schema yet."""
        return ddl(self._names)

    async def erase(self) -> None:
        """Delete all that this namespace holds: jobs, log and leases. The store must be opened anew afterwards."""
        await self._of_space(statements.ERASE)

    @asynccontextmanager
    async def within(self, connection: object) -> AsyncIterator[JobStore]:
        own = await driver_connection(connection, asyncpg.Connection, "asyncpg")
        self._opened()
        line = GuestLine(own, self._timeout_s, self._place)
        if own not in self._guests:
            await self._refuse_stranger(line)
            self._guests.add(own)
        async with nullcontext() if own.is_in_transaction() else own.transaction():
            yield self._joined(line)

    async def _refuse_stranger(self, line: GuestLine) -> None:
        """Another database may have tables of the same names: what went there would be lost here."""
        [[database]] = await line.fetch(statements.DATABASE)
        _refuse(
            database != self._database,
            f"connection= leads to the database {database!r}, and the store at {self._place} is in {self._database!r}: "
            "give one to the database that keeps the jobs",
        )

    def _joined(self, line: GuestLine) -> PostgresStore:
        joined = copy(self)
        joined._fetch = line
        # What is written is told when the transaction commits, to this instance as to any other.
        joined._tag, joined._listeners = "", []
        # What is claimed here may be there again after a rollback.
        joined._listener, joined._floors = None, _Floors()
        return joined

    async def now(self) -> float:
        if self._now is not None:
            return self._now()
        [[now]] = await self._ask(statements.NOW)
        return float(now)

    # -- records -------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        if not records:
            return set()
        if fence := max(record.fence for record in records):
            # They come from another store, and have had fences there.
            await self._ask(statements.RAISE_FENCE, fence)
        # In the order of ids, so that two batches wait for each other in one direction only.
        columns = _columns(sorted(records, key=attrgetter("id")))
        taken = await self._write(statements.ADD, self._tag, self._given_now(), *columns)
        self._hint(record.wake_at for record in records)
        return {row[0] for row in taken}

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        if not ids:
            return {}
        return {row[0]: Record(*row) for row in await self._of_space(statements.GET, list(ids))}

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        found: list[Record] = []
        for is_waking in (True, False):
            if limit <= len(found) or (is_waking and after is not None and after.wake_at is None):
                continue
            room = limit - len(found)
            query, values = statements.page(self._space, where, room, after, is_waking=is_waking)
            found += [Record(*row) for row in await self._ask(query, *values)]
        return found

    async def update(self, update: contract.Update) -> Record | None:
        u = update
        rows = await self._write(
            statements.UPDATE, self._tag, self._given_now(),
            u.id, u.version, u.body, u.queue, u.priority, u.task, u.revoke, u.hold, u.wake_at,
        )  # fmt: skip
        if not rows:
            return None
        record = Record(*rows[0])
        if record.holder is None:
            self._hint([record.wake_at])
        else:
            self._tell_listeners(None)
        return record

    async def remove(self, ids: Sequence[str]) -> set[str]:
        if not ids:
            return set()
        return {row[0] for row in await self._of_space(statements.REMOVE, list(ids))}

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        floor, floor_end = self._floors.of(queues)
        hints = self._floors.hints
        rows = await self._of_space(
            statements.CLAIM,
            list(queues),
            token,
            limit,
            lease_s,
            ahead_s,
            self._given_now(),
            floor,
            floor_end,
        )
        now: float = rows[-2]["wake_at"]
        next_wake: float | None = rows[-1]["wake_at"]
        if next_wake == math.inf:
            next_wake = None
        if hints == self._floors.hints and self._is_hearing():
            self._floors.keep(queues, next_wake, floor_end if now <= floor_end else now + _FLOOR_S)
        del rows[-2:]
        return Claimed([Record(*row) for row in rows], next_wake, now)

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        ids, fences, holders = _lists(claims, 3)
        rows = await self._of_space(statements.RENEW, lease_s, self._given_now(), ids, fences, holders)
        *found, (_, _, now) = rows
        versions: dict[str, int | Literal["busy", "lost"]] = dict.fromkeys(ids, "lost")
        for id, version, _ in found:
            versions[id] = "busy" if version is None else version
        return Renewal(versions, now)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        if not settlements:
            return []
        times: list[float | None] = []
        if not any(s.hand_back or s.spawn or s.unpark for s in settlements):
            moves = [s for s in settlements if not s.delete]
            if await self._settle_together(settlements, moves):
                self._hint(s.wake_at for s in moves)
                return ["done"] * len(settlements)
        answers = await self._settle_each(settlements)
        for s, answer in zip(settlements, answers, strict=True):
            if answer in ("done", "stale"):
                times += [None if s.delete else s.wake_at, *(record.wake_at for record in s.spawn)]
        self._hint(times)
        if any(answer == "stale" or s.unpark for s, answer in zip(settlements, answers, strict=True)):
            self._hint_unknown()
        return answers

    async def _settle_together(self, settlements: Sequence[Settlement], moves: Sequence[Settlement]) -> bool:
        """Settle the ordinary batch; False, and nothing is written, where some do not apply as they are."""
        by_id = attrgetter("id")
        deletes = sorted((s for s in settlements if s.delete), key=by_id)
        moves = sorted(moves, key=by_id)
        [[done]] = await self._write(
            statements.SETTLE, self._tag, self._given_now(),
            *_lists([(s.id, s.fence, s.holder, s.version) for s in deletes], 4),
            *_lists([(s.id, s.fence, s.holder, s.version, s.wake_at, s.hold, s.cursor) for s in moves], 7),
            *_lists([astuple(entry) for s in settlements for entry in s.entries], 6),
        )  # fmt: skip
        return bool(done)

    async def _settle_each(self, settlements: Sequence[Settlement]) -> list[Settled]:
        numbered = list(enumerate(settlements, 1))
        of_settlement = [
            (s.id, s.fence, s.holder, s.version, 1 if s.delete else 2 if s.hand_back else 0, s.wake_at, s.hold, s.cursor)
            for s in settlements
        ]  # fmt: skip
        spawned = [(i, record) for i, s in numbered for record in s.spawn]
        rows = await self._write(
            statements.SETTLE_EACH, self._tag, self._given_now(), *_lists(of_settlement, 8),
            *_lists([(i, *astuple(entry)) for i, s in numbered for entry in s.entries], 7),
            [i for i, _ in spawned], *_columns([record for _, record in spawned]),
            *_lists([(i, *s.unpark) for i, s in numbered if s.unpark is not None], 3),
        )  # fmt: skip
        return [row[0] for row in rows]

    # -- hints ---------------------------------------------------------------------------------------------------------

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        self._listeners.append(callback)
        if self._line is not None:
            self._listen()

        def end() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return end

    def _listen(self) -> None:
        """Whoever asks for no hints needs no listening connection."""
        if self._listener_url is None or self._listening is not None:
            return
        channel = self._names.channel(self._space)
        self._listener = Listener(
            channel,
            self._tag,
            self._connect_listener,
            lambda word: self._ask(statements.TELL, channel, word),
            self._tell_listeners,
            _place_of(self._listener_url),
            is_direct=self._listener_url != self._url,
        )
        self._listening = asyncio.create_task(self._listener.run(), name="asyncsched-listen")

    async def _connect_listener(self) -> asyncpg.Connection:
        # Also the driver's own timeout, since it ends an attempt in better order.
        options: dict[str, Any] = {**self._options, "timeout": self._timeout_s}
        connect = options.get("connect") or asyncpg.connect
        return await connect(
            self._listener_url, **{name: options[name] for name in options.keys() - _POOL_OPTIONS}
        )

    def _is_hearing(self) -> bool:
        """Whether what others write is told here; by a clock of the caller's nobody else goes."""
        return self._listener is not None and self._listener.is_hearing and self._now is None

    def _tell_listeners(self, wake_at: float | None) -> None:
        self._floors.lower(wake_at)
        for listener in tuple(self._listeners):  # One of them may end itself.
            listener(wake_at)

    def _hint(self, times: Iterable[float | None]) -> None:
        """Tell the listeners here at once; the statement told all others."""
        earliest = min((at for at in times if at is not None), default=math.inf)
        if earliest < math.inf:
            self._tell_listeners(earliest)

    # -- named leases --------------------------------------------------------------------------------------------------

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        if not keys:
            return {}
        keys = list(dict.fromkeys(keys))
        rows = await self._of_space(statements.ACQUIRE, keys, holder, lease_s, self._given_now(), limit)
        return {row[0]: Lease(*row) for row in rows}

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        shown = _lists([lease[:3] for lease in leases], 3)
        rows = await self._of_space(statements.EXTEND, self._given_now(), lease_s, *shown)
        return {row[0]: Lease(*row) for row in rows}

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._of_space(statements.RELEASE, *_lists([lease[:3] for lease in leases], 3))

    # -- the log -------------------------------------------------------------------------------------------------------

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        of_kinds = None if kinds is None else list(kinds)
        query, values = statements.runs(self._space, job_id, of_kinds, limit, before)
        return [Entry(*row) for row in await self._ask(query, *values)]

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        if older_than_s is not None:
            rows = await self._of_space(statements.PRUNE_OLD, self._given_now(), older_than_s, limit)
            pruned = len(rows)
        if per_job is not None and pruned < limit:
            pruned += await self._prune_crowded(per_job, limit - pruned)
        last = await self._of_space(
            statements.FORGET_LEASES, self._looked_at, _SWEEP, self._given_now(), _FORGOTTEN_S
        )
        self._looked_at = last[0][0] if last else ""
        return pruned

    async def _prune_crowded(self, per_job: int, limit: int) -> int:
        """Look at the next stretch of the log only, so that a call takes as long whatever the log's size."""
        behind = await self._of_space(statements.SWEEP_END, self._swept, _SWEEP)
        end = behind[0][0] if behind else None
        pruned = len(await self._of_space(statements.PRUNE_CROWDED, self._swept, end, per_job, limit))
        if pruned < limit:
            self._swept = end or ""
        return pruned

    # -- below: how statements are sent ------------------------------------------------------------------------------------

    async def _ask(self, text: str, *values: object) -> Rows:
        return await self._opened().fetch(self._sql(text), *values)

    async def _of_space(self, text: str, *values: object) -> Rows:
        return await self._opened().fetch(self._sql(text), self._space, *values)

    async def _write(self, text: str, *values: object) -> Rows:
        """Send what may make something due. Where its outcome stays unknown, the listeners here had better look."""
        try:
            return await self._of_space(text, *values)
        except BaseException:
            self._hint_unknown()
            raise

    def _hint_unknown(self) -> None:
        self._tell_listeners(None)

    def _opened(self) -> Fetch:
        if self._fetch is None:
            raise StoreError(f"the PostgreSQL store at {self._place} is not open: await its open() first")
        return self._fetch

    def _given_now(self) -> float | None:
        return None if self._now is None else self._now()


class _Floors:
    """Before which instant nothing is left in the lanes of some queues, as this instance knows from its last claim.

    A claim that begins there does not walk over what was taken since the last vacuum, which after a minute at full speed would
    be a million dead entries. It holds for a moment only, while others' writes are heard, and no longer than until one is.
    """

    def __init__(self) -> None:
        #: How many hints there were; what a claim found is not kept if one came while it was on its way.
        self.hints = 0
        self._known: dict[tuple[str, ...], tuple[float, float]] = {}

    def of(self, queues: Sequence[str]) -> tuple[float, float]:
        """The floor of *queues*, and until when it holds."""
        return self._known.get(tuple(queues), (-math.inf, -math.inf))

    def keep(self, queues: Sequence[str], floor: float | None, end: float) -> None:
        if len(self._known) >= _MANY:
            self._known.clear()
        self._known[tuple(queues)] = (math.inf if floor is None else floor, end)

    def lower(self, wake_at: float | None) -> None:
        """Something became due at *wake_at*, or at an instant that is not known."""
        self.hints += 1
        for queues, (floor, end) in tuple(self._known.items()):
            if wake_at is None or wake_at < floor:
                self._known[queues] = (-math.inf if wake_at is None else wake_at, end)


_KEYWORDS: Mapping[str, Callable[[str], object]] = {
    "namespace": str,
    "schema": str,
    "table_prefix": str,
    "create_schema": flag,
    "timeout": float,
    "pool_size": int,
    "statement_cache_size": int,
    "listen": flag,
    "listener_url": str,
}


def _lists(rows: Sequence[Sequence[Any]], width: int) -> Sequence[Sequence[Any]]:
    """The columns of *rows*."""
    return list(zip(*rows, strict=True)) if rows else [[] for _ in range(width)]


def _columns(records: Sequence[Record]) -> list[Sequence[Any]]:
    """The columns of *records*; those that hold nothing but what they mostly do are left empty."""
    columns = [*_lists([astuple(record) for record in records], len(Record.__struct_fields__))]
    for place, value in _MOSTLY:
        if columns[place].count(value) == len(records):
            columns[place] = []
    return columns


def _without_push(capabilities: contract.Capabilities) -> contract.Capabilities:
    return replace(capabilities, push_hints=False)


def _place_of(url: str) -> str:
    """Host and database, for messages."""
    return without_password(url)


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise DefinitionError(message)
