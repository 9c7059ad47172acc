"""The store on MariaDB and MySQL."""

from __future__ import annotations

import asyncio
import math
import re
import ssl as tls
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from copy import copy
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import aiomysql
import msgspec
from msgspec.structs import replace

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
from asyncsched.errors import DefinitionError, StoreError, StoreUnavailable
from asyncsched.guest import driver_connection
from asyncsched.stores.mysql._line import Answer, GuestLine, Line, NotApplied, PoolLine
from asyncsched.stores.mysql._opening import (
    check_guest,
    check_schema,
    check_server,
    ddl,
    mark_of,
    space_of,
)
from asyncsched.stores.mysql._schema import Names
from asyncsched.stores.mysql._statements import SERVER_NOW, Lane, Statements
from asyncsched.stores.mysql._text import NEVER, real

__all__ = ["MySQLStore"]

_T = TypeVar("_T")

#: So many items go into one statement, and so many records are claimed by one.
_PIECE = 500
_TLS_FILES = ("ssl_ca", "ssl_cert", "ssl_key")
#: Rows that go at a time when a namespace is erased.
_ERASED = 10_000
#: A call of prune looks at so many log entries for crowded jobs, and the next call goes on behind them.
_SWEEP = 10_000
#: So long behind the end of its lease a claim is remembered, and forgotten by the way by every so many-eth that is made.
_REMEMBER_S = 600.0
_FORGET_EVERY = 16
#: How long a renewal waits, all in all a moment, for records that another transaction has locked.
_BUSY_PAUSES_S = (0.005, 0.015, 0.03)
#: How often a batch of settlements is sorted anew because others wrote to its records meanwhile.
_SORTINGS = 10


class MySQLStore:
    """A job store in a MariaDB (10.6 or later) or MySQL (8.0.17 or later) database.

    *namespace* keeps applications apart in the same tables, *table_prefix* in tables of their own. With
    ``create_schema=False`` the tables must exist; ``ddl()`` tells what makes them. A call that takes longer than *timeout*
    seconds raises StoreUnavailable. *pool* is an aiomysql pool of the user's, and is not closed here; without it up to
    *pool_size* connections are made as needed. *ssl* is True or an SSLContext.
    """

    capabilities = contract.Capabilities(
        durable=True,
        shared=True,
        clock="server",
        push_hints=False,
        linearizable=False,
        transactional_add=True,
    )

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 3306,
        user: str | None = None,
        password: str = "",
        database: str | None = None,
        unix_socket: str | None = None,
        ssl: bool | tls.SSLContext = False,
        pool: aiomysql.Pool | None = None,
        pool_size: int = 8,
        namespace: str = "asyncsched",
        table_prefix: str = "asyncsched_",
        create_schema: bool = True,
        timeout: float = 10.0,
        dialect: Literal["mysql", "mariadb"] = "mysql",
    ) -> None:
        _refuse(not 1 <= len(namespace) <= 255, f"namespace must have 1 to 255 characters: {namespace!r}")
        _refuse(
            re.fullmatch(r"\w{0,50}", table_prefix, re.ASCII) is None,
            f"table_prefix is no name: {table_prefix!r}",
        )
        _refuse(not 0 < timeout < math.inf, f"timeout is not more than 0 seconds: {timeout!r}")
        _refuse(pool_size < 1, f"pool_size is not 1 or more: {pool_size!r}")
        _refuse(pool is None and not database, "name a database: mysql://user:password@host/database")
        _refuse(
            pool is not None and not isinstance(pool, aiomysql.Pool),
            f"pool= takes a pool of aiomysql, not {pool!r}",
        )
        context = tls.create_default_context() if ssl is True else ssl or None
        self._options = {
            "host": host, "port": port, "user": user, "password": password, "db": database, "unix_socket": unix_socket,
            "ssl": context, "connect_timeout": timeout,
        }  # fmt: skip
        self._place = (
            "the database of pool=" if pool is not None else f"{unix_socket or f'{host}:{port}'}/{database}"
        )
        self._pool = pool
        self._pool_size = pool_size
        self._namespace = namespace
        self._prefix = table_prefix
        self._create_schema = create_schema
        self._timeout_s = timeout
        self._dialect: Literal["mariadb", "mysql"] = dialect
        self._now: Callable[[], float] | None = None
        self._line: Line = self._new_line()
        self._is_open = False
        self._names = Names(None, table_prefix, dialect)
        self._sql = Statements(self._names, 0)
        self._mark = 0
        self._listeners: list[Callable[[float | None], None]] = []
        #: The job behind which the next call of prune looks for crowded ones, and the lease behind which for old ones.
        self._swept = self._looked_at = ""
        self._takes = 0
        #: In a transaction of the user's: what was found to be there, or newer, while the transaction may see the table as it
        #: was when it began. A locking read sees it as it is. It is kept to these: where it finds nothing it locks out inserts.
        self._doubted: set[str] = set()

    @classmethod
    def from_pool(cls, pool: Any, **keywords: Any) -> MySQLStore:
        """A store by the user's own pool, which is never closed here."""
        return cls(pool=pool, **keywords)

    @classmethod
    def from_url(cls, url: str) -> MySQLStore:
        """The store of ``mysql://user:password@host:port/database``, with keywords behind a question mark; ``mariadb://`` is
        the same."""
        _, keywords = keywords_of(url, _KEYWORDS)
        parts = urlsplit(url)
        shown = without_password(url)
        _refuse(parts.scheme not in ("mysql", "mariadb"), f"{shown!r} is no URL of MySQL or MariaDB")
        _refuse(bool(parts.fragment), f"{shown!r} has a #: write it as %23")
        database = unquote(parts.path.removeprefix("/"))
        _refuse(not database, f"{shown!r} names no database: mysql://user:password@host/database")
        files: dict[str, str] = {name: keywords.pop(name) for name in _TLS_FILES if name in keywords}
        if files:
            keywords["ssl"] = _context(files)
        try:
            port = parts.port or 3306
        except ValueError:
            raise DefinitionError(f"{shown!r} has a port that is no number") from None
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=port,
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password or ""),
            database=database,
            dialect="mariadb" if parts.scheme == "mariadb" else "mysql",
            **keywords,
        )

    def ddl(self) -> str:
        """The statements by which ``open`` makes the tables."""
        return ddl(self._prefix, self._dialect)

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._now = now
        if self._is_open:
            return
        self._line = line = self._new_line()
        await line.open()
        try:
            names, self._dialect = await check_server(line, self._prefix, self._options["ssl"] is not None)
            await check_schema(line, names, self._create_schema)
            self._names, self._mark = names, await mark_of(line, names)
            self._sql = Statements(names, await space_of(line, names, self._namespace))
            line.is_ready = True
        except BaseException:
            await line.close()
            raise
        self._is_open = True

    async def close(self) -> None:
        if isinstance(self._line, PoolLine):
            self._listeners.clear()
            self._is_open = False
            await self._line.close()

    def clone(self) -> MySQLStore | None:
        """The same store on connections of its own; None where the connections are the user's, which stay in their loop."""
        if self._pool is not None:
            return None
        clone = copy(self)
        clone._is_open, clone._listeners, clone._line = False, [], self._new_line()
        return clone

    async def now(self) -> float:
        if self._now is not None:
            return self._now()
        [answer] = await self._read(f"SELECT {SERVER_NOW}")
        return float(answer.rows[0][0])

    async def erase(self) -> None:
        """Delete all that this namespace holds: jobs, log and leases. The store must be opened anew afterwards."""
        for statement in self._sql.erase(_ERASED):
            # In pieces: all at once may take longer than a call may, and would be undone each time.
            while (await self._write(statement))[0].changed == _ERASED:
                pass

    # -- records -------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        if fence := max((r.fence for r in records), default=0):
            # They come from another store, and have had fences there.
            await self._write(*self._sql.raise_fence(fence))
        first = {r.id: r for r in reversed(records)}
        taken = {r.id for r in records if r.birth != first[r.id].birth}
        ordered = sorted(first.values(), key=lambda r: r.id)
        for piece in self._pieces(ordered, _size_of_record):
            taken |= await self._add(piece)
        self._hint(r.wake_at for r in records)
        return taken

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for piece in _cut(ids):
            [answer] = await self._read(self._sql.get(piece))
            found |= {row[0]: _record(row) for row in answer.rows}
        if doubted := [id for id in ids if id in self._doubted]:
            [answer] = await self._read(self._sql.get(doubted, " LOCK IN SHARE MODE"))
            found = {id: r for id, r in found.items() if id not in self._doubted}
            found |= {row[0]: _record(row) for row in answer.rows}
        return found

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        lanes: list[tuple[str, int]] = []
        if not where.id_prefix and not where.hold:
            queues = await self._queues() if where.queue is None else [where.queue]
            for piece in _cut(queues):
                _, _, found = _seen(await self._read(*self._sql.looks(piece, "0")))
                lanes += [lane[:2] for lane in _lanes(piece, found)]
            if not lanes:
                return []
        [answer] = await self._read(self._sql.page(where, lanes, limit, after))
        return [_record(row) for row in answer.rows]

    async def update(self, update: contract.Update) -> Record | None:
        first, there = await self._write(*self._sql.update(update, self._clock()))
        if not first.changed:
            self._doubt({update.id})
            return None
        record = _record(there.rows[0])
        self._hint([record.wake_at if record.holder is None else -math.inf])
        return record

    async def remove(self, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for piece in _cut(sorted(ids)):
            *_, answer = await self._write(*self._sql.remove(piece))
            found |= {row[0] for row in answer.rows}
        return found

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        for _ in range(_SORTINGS):
            with suppress(NotApplied):
                return await self._claim(queues, token, limit, lease_s, ahead_s)
        raise StoreUnavailable(
            f"a claim in {self._place} was made by another again and again: give each its own token"
        )

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        versions: dict[str, int | Literal["busy", "lost"]] = {}
        now = None
        for piece in _cut(claims):
            found = await self._renew(piece, lease_s)
            now = found.now if now is None else now
            for pause_s in _BUSY_PAUSES_S:
                busy = [c for c in piece if found.versions[c.id] == "busy"]
                if not busy:
                    break
                # Most such transactions are over in a moment: another call of this store, or one that was cancelled.
                await asyncio.sleep(pause_s)
                found.versions.update((await self._renew(busy, lease_s)).versions)
            versions |= found.versions
        return Renewal(versions, await self.now() if now is None else now)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: list[Settled] = []
        times: list[float | None] = []
        try:
            for batch in self._batches(settlements):
                answers += await self._settle(batch, times)
        finally:
            self._hint(times)
        return answers

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        self._listeners.append(callback)

        def end() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return end

    @asynccontextmanager
    async def within(self, connection: object) -> AsyncIterator[JobStore]:
        """See :class:`~asyncsched.contract.TransactionalStore`. A deadlock, or a call that is cut at its deadline, ends the
        transaction as a whole, as it does for the user's own statements."""
        if not self._is_open:
            raise StoreError(f"the store on {self._place} is not open: await its open() first")
        found: Any = await driver_connection(connection, aiomysql.Connection, "aiomysql")
        line = GuestLine(found, self._timeout_s, self._place, self._line.max_packet)
        guest = copy(self)
        guest._line, guest._doubted = line, set()
        is_ours = found.get_autocommit() and not found.get_transaction_status()
        await check_guest(line, self._names, self._mark)
        if is_ours:
            await line.begin()
        try:
            yield guest
        except BaseException:
            if is_ours:
                await line.leave()
            raise
        if is_ours:
            await line.end("COMMIT")

    # -- named leases --------------------------------------------------------------------------------------------------

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        taken: dict[str, Lease] = {}
        unique = list(dict.fromkeys(keys))
        # What is limited is decided by one transaction.
        for piece in _cut(unique) if limit is None else [unique] * bool(unique):
            *_, answer = await self._write(*self._sql.acquire(piece, holder, self._clock(), lease_s, limit))
            taken |= {row[0]: Lease(*row) for row in answer.rows}
        return taken

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        kept: dict[str, Lease] = {}
        for piece in _cut(leases):
            _, answer = await self._write(*self._sql.extend(piece, self._clock(), lease_s))
            kept |= {row[0]: Lease(*row) for row in answer.rows}
        return kept

    async def release(self, leases: Sequence[Lease]) -> None:
        for piece in _cut(leases):
            await self._write(self._sql.release(piece))

    # -- the log -------------------------------------------------------------------------------------------------------

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        [answer] = await self._read(self._sql.runs(job_id, kinds, limit, before))
        return [Entry(*row) for row in answer.rows]

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        if older_than_s is not None:
            before = f"{self._clock()} - {real(older_than_s)}"
            [answer] = await self._write(self._sql.prune_old(before, limit))
            pruned = answer.changed
        if per_job is not None:
            pruned += await self._prune_crowded(per_job, limit - pruned)
        last, _ = await self._write(*self._sql.forget_leases(self._looked_at, self._clock(), _SWEEP))
        self._looked_at = last.rows[0][0] if last.rows else ""
        return pruned

    # -- below: how it is done -----------------------------------------------------------------------------------------

    async def _read(self, *statements: str) -> Sequence[Answer]:
        return await self._line.read(*statements)

    async def _write(self, *statements: str, after: Sequence[str] = ()) -> Sequence[Answer]:
        return await self._line.write(*statements, after=after)

    def _new_line(self) -> PoolLine:
        return PoolLine(self._options, self._pool_size, self._timeout_s, self._pool, self._place)

    def _clock(self) -> str:
        return SERVER_NOW if self._now is None else real(self._now())

    def _hint(self, times: Iterable[float | None]) -> None:
        """Tell the listeners of the earliest of *times*; minus infinity: of no known one. A guest's writes are not told of."""
        if self._line.is_guest or not self._listeners:
            return
        earliest = _earliest(times)
        if earliest is not None:
            for listener in tuple(self._listeners):  # One of them may end itself.
                listener(None if earliest == -math.inf else earliest)

    def _pieces(self, items: Sequence[_T], size_of: Callable[[_T], int]) -> Iterator[list[_T]]:
        """*items* in pieces that fit into a packet; one that does not is a piece of its own, and is refused when it is sent."""
        piece: list[_T] = []
        size = 0
        for item in items:
            more = size_of(item)
            if piece and (len(piece) == _PIECE or size + more > self._line.max_packet // 2):
                yield piece
                piece, size = [], 0
            piece.append(item)
            size += more
        if piece:
            yield piece

    async def _add(self, records: list[Record]) -> set[str]:
        taken: set[str] = set()
        if self._line.is_guest:
            # An insert that meets a record locks it until the user's transaction ends, and its renewal is busy till then.
            [there] = await self._read(self._sql.births([r.id for r in records]))
            births = {id: birth for id, birth in there.rows if id not in self._doubted}
            taken = {r.id for r in records if births.get(r.id, r.birth) != r.birth}
            records = [r for r in records if r.id not in births]
        if not records:
            return taken
        try:
            await self._write(self._sql.insert(records, keep=False))
        except NotApplied:
            _, strangers = await self._write(
                self._sql.insert(records, keep=True), self._sql.strangers(records)
            )
            taken |= {id for (id,) in strangers.rows}
            self._doubt(taken)
        return taken

    def _doubt(self, ids: set[str]) -> None:
        if self._line.is_guest:
            self._doubted |= ids

    async def _claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float
    ) -> Claimed:
        """Raises NotApplied where an earlier claim of that token, whose reply was lost, has come through meanwhile."""
        clock = self._clock()
        now, part, found = _seen(await self._read(*self._sql.looks(queues, clock, token)))
        # By id: what was let go while the lanes are walked may be met again in another one.
        taken = {r.id: r for r in await self._still_held(token, now)} if part else {}
        looks = self._sql.looks(queues, clock)
        for lane in _lanes(queues, found):
            if lane.earliest > now + ahead_s:
                continue
            while (room := min(limit - len(taken), _PIECE)) > 0:
                statements = self._sql.take(lane, room, now, now + ahead_s, token, part, clock, lease_s)
                answers = await self._write(*self._forgetting(), *statements, after=looks)
                rows = answers[-1 - len(looks)]
                taken |= {r.id: r for r in _taken(rows.rows, lane, token)}
                now, _, found = _seen(answers[-len(looks) :])
                part += 1
                if len(rows.rows) < room:
                    break
        return Claimed([*taken.values()], _earliest(lane.earliest for lane in _lanes(queues, found)), now)

    async def _still_held(self, token: str, now: float) -> list[Record]:
        """What a repeated claim gets again; a lease that has ended meanwhile is due and is claimed like any other."""
        [answer] = await self._read(self._sql.claims_of(token))
        ids = [item[0] for (taken,) in answer.rows for item in msgspec.json.decode(taken)]
        there = (await self.get(ids)).values()
        held = [r for r in there if r.holder == token and r.wake_at is not None and r.wake_at > now]
        return sorted(held, key=lambda r: (r.fence, r.id))

    def _forgetting(self) -> list[str]:
        """Now and then a claim forgets some that were made long ago: their replies can no longer be on their way."""
        self._takes += 1
        if self._takes % _FORGET_EVERY:
            return []
        return [self._sql.forget_claims(f"{self._clock()} - {real(_REMEMBER_S)}", 4 * _FORGET_EVERY)]

    async def _renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        *_, rows, clock = await self._write(*self._sql.renew(claims, self._clock(), lease_s))
        kept: dict[tuple[str, int], int | Literal["busy", "lost"]]
        kept = {(id, fence): version for id, fence, version in rows.rows}
        if left := [c for c in claims if (c.id, c.fence) not in kept]:
            [there] = await self._read(self._sql.holding(left))
            kept |= {(id, fence): "busy" for id, fence in there.rows}  # noqa: C420 - rows are not typed
        return Renewal({c.id: kept.get((c.id, c.fence), "lost") for c in claims}, clock.rows[0][0])

    async def _queues(self) -> list[str]:
        """Every queue that has records: one probe of the index for each."""
        queues: list[str] = []
        behind = ""
        while True:
            [answer] = await self._read(self._sql.next_queue(behind))
            behind = answer.rows[0][0]
            if behind is None:
                return queues
            queues.append(behind)

    def _batches(self, settlements: Sequence[Settlement]) -> Iterator[list[Settlement]]:
        """Batches in which no settlement touches what another of them settles, so that their order does not matter."""
        for piece in self._pieces(settlements, _size_of_settlement):
            batch: list[Settlement] = []
            settled: set[str] = set()
            touched: set[str] = set()
            for s in piece:
                spawned = {r.id for r in s.spawn}
                if s.id in touched or not settled.isdisjoint(spawned):
                    yield batch
                    batch, settled, touched = [], set(), set()
                batch.append(s)
                settled.add(s.id)
                touched |= {s.id} | spawned
            if batch:
                yield batch

    async def _settle(self, batch: list[Settlement], times: list[float | None]) -> list[Settled]:
        answers: list[Settled] = ["done" for _ in batch]
        sorted_batch = batch
        for _ in range(_SORTINGS):
            try:
                await self._apply(sorted_batch, answers, times)
                return answers
            except NotApplied:
                sorted_batch, answers = await self._sorted_out(batch)
        raise StoreUnavailable(
            f"the records of a batch in {self._place} changed again and again while it was settled"
        )

    async def _apply(
        self, batch: Sequence[Settlement], answers: Sequence[Settled], times: list[float | None]
    ) -> None:
        """Write what each settlement of *batch* writes under its answer, in one transaction; NotApplied if one was wrong."""
        told = list(zip(batch, answers, strict=True))
        done = [s for s, answer in told if answer == "done"]
        stale = [s for s, answer in told if answer == "stale"]
        clock = self._clock()
        statements = self._sql.settle(done, stale, clock) if done or stale else []
        if entries := [e for s, answer in told if answer in ("done", "stale", "gone") for e in s.entries]:
            statements.append(self._sql.log(entries))
        spawned = [r for s in (*done, *stale) for r in s.spawn]
        if spawned:
            by_id = {r.id: r for r in reversed(spawned)}
            statements.append(self._sql.insert([by_id[id] for id in sorted(by_id)], keep=True))
        unparked = [s.unpark for s in (*done, *stale) if s.unpark is not None]
        statements += [self._sql.unpark(hold, limit, clock) for hold, limit in unparked]
        if not statements:
            return
        results = await self._write(*statements)
        times += [s.wake_at for s in done if not s.delete]
        times += [r.wake_at for r in spawned]
        if stale or any(result.changed for result in results[len(results) - len(unparked) :]):
            times.append(-math.inf)

    async def _sorted_out(self, batch: list[Settlement]) -> tuple[list[Settlement], list[Settled]]:
        """What becomes of each settlement of *batch* as the records are now; a stale one takes their version."""
        lock = " FOR UPDATE" if self._line.is_guest else ""
        [answer] = await self._read(self._sql.states([s.id for s in batch], lock))
        states = {row[0]: row[1:] for row in answer.rows}
        sorted_batch: list[Settlement] = []
        answers: list[Settled] = []
        for s in batch:
            state = states.get(s.id)
            if state is None:
                answers.append("gone")
            elif (state[0], state[1]) != (s.fence, s.holder):
                answers.append("already" if state[3] == s.fence else "lost")
            elif state[2] != s.version:
                s = replace(s, version=state[2])
                answers.append("stale")
            else:
                answers.append("done")
            sorted_batch.append(s)
        return sorted_batch, answers

    async def _prune_crowded(self, per_job: int, limit: int) -> int:
        """Look at the next stretch of the log only, so that a call takes as long whatever the log's size."""
        [answer] = await self._read(self._sql.sweep_end(self._swept, _SWEEP))
        end = answer.rows[0][0] if answer.rows else None
        [answer] = await self._read(self._sql.crowded(self._swept, end, per_job))
        crowds: list[tuple[str, int]] = []
        chosen = pruned = 0
        for job_id, count in answer.rows:
            if chosen < limit:
                crowds.append((job_id, min(count - per_job, limit - chosen)))
                chosen += crowds[-1][1]
        for piece in _cut(crowds):
            # By its place in the log, since another instance may be pruning the same job, and so many less are there by then.
            newest = await self._read(*(self._sql.first_beyond(job_id, per_job) for job_id, _ in piece))
            deletes = [
                self._sql.prune_job(job_id, answer.rows[0], count)
                for (job_id, count), answer in zip(piece, newest, strict=True)
                if answer.rows
            ]
            if deletes:
                pruned += sum(answer.changed for answer in await self._write(*deletes))
        if chosen < limit:
            self._swept = end or ""
        return pruned


def _seen(looks: Sequence[Answer]) -> tuple[float, int, list[str]]:
    """The clock, how many claims the token has made, and what was found of each queue."""
    now, made = looks[0].rows[0][:2]
    return now, made, [of_queue for look in looks for of_queue in look.rows[0][2:]]


def _lanes(queues: Sequence[str], found: Sequence[str]) -> list[Lane]:
    """The lanes of *queues* that have records: high priority first, queues in the order given."""
    each = [
        Lane(queue, 9 - place, float(earliest))
        for queue, of_queue in zip(queues, found, strict=True)
        for place, earliest in enumerate(of_queue.split(" "))
        if earliest
    ]
    return sorted(each, key=lambda lane: -lane.priority)


def _record(row: tuple[Any, ...]) -> Record:
    id, birth, queue, priority, task, wake_at, *rest = row
    return Record(id, birth, queue, priority, task, None if wake_at >= NEVER else wake_at, *rest)


def _taken(rows: Sequence[tuple[Any, ...]], lane: Lane, token: str) -> list[Record]:
    """The records of a claim, in the order of the lane. Positional, since this is the hottest line of the store."""
    queue, priority, _ = lane
    return [
        Record(
            id, birth, queue, priority, task, wake_at, hold, body, cursor,
            version, fence, token, settled, tries, prior,
        )
        for _, id, birth, task, wake_at, hold, body, cursor, version, fence, settled, tries, prior in sorted(rows)
    ]  # fmt: skip


def _earliest(times: Iterable[float | None]) -> float | None:
    earliest = min((at for at in times if at is not None), default=NEVER)
    return earliest if earliest < NEVER else None


def _cut(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + _PIECE] for start in range(0, len(items), _PIECE))


def _size_of_record(r: Record) -> int:
    """About as many bytes as it takes in a statement, at most."""
    return (
        2 * (len(r.body) + len(r.cursor)) + 8 * (len(r.id) + len(r.birth) + len(r.queue) + len(r.task)) + 400
    )


def _size_of_settlement(s: Settlement) -> int:
    entries = sum(2 * len(e.body) + 8 * len(e.job_id) + 200 for e in s.entries)
    return 2 * len(s.cursor) + 24 * len(s.id) + 400 + entries + sum(map(_size_of_record, s.spawn))


def _context(files: dict[str, str]) -> tls.SSLContext:
    _refuse("ssl_key" in files and "ssl_cert" not in files, "ssl_key without ssl_cert: name both files")
    try:
        context = tls.create_default_context(cafile=files.get("ssl_ca"))
        if "ssl_cert" in files:
            context.load_cert_chain(files["ssl_cert"], files.get("ssl_key"))
    except OSError as error:
        named = ", ".join(f"{name}={path}" for name, path in files.items())
        raise DefinitionError(
            f"TLS cannot be set up with {named} ({error}): name readable PEM files"
        ) from error
    return context


_KEYWORDS: dict[str, Callable[[str], object]] = {
    "namespace": str, "table_prefix": str, "create_schema": flag, "timeout": float, "pool_size": int, "unix_socket": str,
    "ssl": flag, "ssl_ca": str, "ssl_cert": str, "ssl_key": str,
}  # fmt: skip


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise DefinitionError(message)
