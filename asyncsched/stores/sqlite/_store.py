"""The store: each call as one transaction, in the connection's thread."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import partial, wraps
from heapq import merge
from itertools import islice
from operator import attrgetter
from types import CoroutineType
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar, cast
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from asyncsched import contract
from asyncsched.address import flag, keywords_of, without_password
from asyncsched.clock import host_time
from asyncsched.contract import Claim, Claimed, Entry, Filter, Lease, Record, Renewal, Settled, Settlement
from asyncsched.errors import DefinitionError
from asyncsched.stores.sqlite import _statements as sql
from asyncsched.stores.sqlite._line import Line

__all__ = ["SQLiteStore"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Row = tuple[Any, ...]
_Source = tuple[str, tuple[object, ...]]

#: A call of prune looks at so many log entries for crowded jobs, and at so many leases; the next call goes on behind them.
_SWEEP = 10_000
#: A named lease that ended so long ago is forgotten: nobody renews it any more.
_FORGOTTEN_S = 3600.0


def _in_thread(
    work: Callable[Concatenate[SQLiteStore, _P], _T],
) -> Callable[Concatenate[SQLiteStore, _P], CoroutineType[Any, Any, _T]]:
    """Make of *work*, which is one transaction, a coroutine function that does it in the connection's thread."""

    @wraps(work)
    async def call(self: SQLiteStore, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._line.hop(partial(work, self, *args, **kwargs))

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
        file, flushes = os.fspath(path), synchronous.upper()
        _refuse(file in ("", ":memory:"), "an SQLite store needs a file; for memory use memory://")
        _refuse(not f"{table_prefix}x".isidentifier(), f"table_prefix is no name: {table_prefix!r}")
        _refuse(flushes not in ("NORMAL", "FULL"), f"not NORMAL or FULL: {synchronous!r}")
        _refuse(not 0 <= busy_timeout < math.inf, f"busy_timeout is not 0 or more seconds: {busy_timeout!r}")
        self._line = Line(file, table_prefix, flushes, busy_timeout, create_schema=create_schema)
        self._now: Callable[[], float] = host_time
        self._listeners: list[Callable[[float | None], None]] = []
        #: The job behind which the next call of prune begins to look for crowded ones.
        self._swept = ""
        #: The named lease behind which the next call of prune begins to look for those that ended long ago.
        self._looked_at = ""

    @classmethod
    def from_url(cls, url: str) -> SQLiteStore:
        """The store of ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with keywords behind a question mark."""
        _, keywords = keywords_of(url, _KEYWORDS)
        return cls(_path_of(url), **keywords)

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._now = now
        await self._line.open()

    async def close(self) -> None:
        self._listeners.clear()
        await self._line.close()

    def clone(self) -> SQLiteStore:
        clone = copy(self)
        clone._line, clone._listeners = self._line.clone(), []
        return clone

    async def now(self) -> float:
        return self._now()

    def ddl(self) -> str:
        """The statements that make the schema."""
        rows = f"INSERT INTO {{p}}meta (key, value) VALUES ('schema', {sql.SCHEMA_VERSION}), ('fence', 0)"
        return "".join(f"{self._line.written(statement)};\n" for statement in (*sql.CREATE, rows))

    # -- records -------------------------------------------------------------------------------------------------------

    @_in_thread
    def add(self, records: Sequence[Record]) -> set[str]:
        taken: set[str] = set()
        # A job that comes from another store has had fences there.
        fence = max((r.fence for r in records), default=0)
        with self._line.transaction():
            if fence:
                self._line.do(sql.RAISE_FENCE, (fence,))
            if self._line.insert(sql.ADD, records) < len(records):
                births: dict[str, str] = dict(self._line.select(sql.BIRTHS, [r.id for r in records]))
                taken = {r.id for r in records if births[r.id] != r.birth}
        self._hint(r.wake_at for r in records)
        return taken

    @_in_thread
    def get(self, ids: Sequence[str]) -> dict[str, Record]:
        with self._line.transaction("BEGIN"):
            return {row[0]: Record(*row) for row in self._line.select(sql.GET, ids)}

    @_in_thread
    def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        with self._line.transaction("BEGIN"):
            return self._first(self._sources(where), limit, after)

    @_in_thread
    def update(self, update: contract.Update) -> Record | None:
        u = update
        with self._line.transaction():
            if not self._line.do(sql.UPDATE, (u.body, u.queue, u.priority, u.task, u.id, u.version)).rowcount:
                return None
            wake_at = self._now() if u.revoke else u.wake_at
            self._line.do(sql.UPDATE_UNHELD, (u.hold, wake_at, u.id, u.revoke))
            [record] = (Record(*row) for row in self._line.select(sql.GET, [u.id]))
        self._hint([record.wake_at if record.holder is None else -math.inf])
        return record

    @_in_thread
    def remove(self, ids: Sequence[str]) -> set[str]:
        with self._line.transaction():
            found = {id for id, _ in self._line.select(sql.BIRTHS, ids)}
            self._line.change(sql.REMOVE, list(found))
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
        with self._line.transaction():
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
        with self._line.transaction():
            now = self._now()
            there = {row[0]: row for row in self._line.select(sql.HELD, [claim.id for claim in claims])}
            for claim in claims:
                *found, version, wake_at = there.get(claim.id, (None, None))
                versions[claim.id] = version if tuple(found) == claim else "lost"
                if tuple(found) == claim and (wake_at is None or wake_at < now + lease_s):
                    shorter.append(claim.id)
            self._line.change(sql.EXTEND_CLAIMS, shorter, now + lease_s)
        return Renewal(versions, now)

    @_in_thread
    def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: list[Settled] = ["done" for _ in settlements]
        times: list[float | None] = []
        try:
            with self._line.transaction():
                self._settle_together(settlements, times)
        except _NotAllDone:
            times.clear()
            with self._line.transaction():
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
    def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        taken: dict[str, Lease] = {}
        keys = list(dict.fromkeys(keys))
        with self._line.transaction():
            now = self._now()
            rows = (Lease(*row) for row in self._line.select(sql.LEASES, keys))
            there = {lease.key: lease for lease in rows if lease.until > now}
            own = [key for key in keys if key in there and there[key].holder == holder]
            free = [key for key in keys if key not in there]
            for key in [*own, *free][:limit]:
                if key in there:
                    fence = there[key].fence
                else:
                    [(fence,)] = self._line.do(sql.NEXT_FENCE)
                taken[key] = Lease(key, holder, fence, now + lease_s)
            self._line.many(sql.SET_LEASE, list(taken.values()))
        return taken

    @_in_thread
    def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        kept: dict[str, Lease] = {}
        with self._line.transaction():
            until = self._now() + lease_s
            there = {
                row[0]: Lease(*row) for row in self._line.select(sql.LEASES, [lease.key for lease in leases])
            }
            for lease in leases:
                current = there.get(lease.key)
                if current is not None and current[:3] == lease[:3]:
                    kept[lease.key] = current._replace(until=max(current.until, until))
            self._line.many(sql.SET_LEASE, list(kept.values()))
        return kept

    @_in_thread
    def release(self, leases: Sequence[Lease]) -> None:
        with self._line.transaction():
            self._line.many(sql.RELEASE, [lease[:3] for lease in leases])

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
        rows = self._line.do(sql.RUNS.replace("{where}", " AND ".join(where)), [*values, limit])
        return [Entry(*row) for row in rows]

    @_in_thread
    def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        with self._line.transaction():
            if older_than_s is not None:
                pruned = self._line.do(sql.PRUNE_OLD, (self._now() - older_than_s, limit)).rowcount
            if per_job is not None:
                pruned += self._prune_crowded(per_job, limit - pruned)
            self._forget_leases()
        return pruned

    # -- below: the thread, transactions and their steps --------------------------------------------------------------------

    def _hint(self, times: Iterable[float | None]) -> None:
        """Tell the listeners, in their loop, of the earliest of *times*; minus infinity stands for no known one. Also if the
        caller was cancelled, since the write was done."""
        wake_at = _earliest(times) if self._listeners else None
        for listener in () if wake_at is None else tuple(self._listeners):
            with suppress(RuntimeError):  # The loop was closed meanwhile.
                self._line.loop.call_soon_threadsafe(listener, None if wake_at == -math.inf else wake_at)

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
            queues = [row[0] for row in self._line.do(sql.QUEUES)] if where.queue is None else [where.queue]
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
        text = sql.PAGE.replace("{behind}", behind)
        cursors = [
            self._line.do(text.replace("{source}", of), (*values, *start, limit)) for of, values in sources
        ]
        streams = [(Record(*row) for row in cursor) for cursor in cursors]
        found = list(islice(merge(*streams, key=attrgetter("wake_at", "id")), limit))
        for cursor in cursors:
            cursor.close()
        return found

    def _lanes(self, queues: Sequence[str]) -> list[_Lane]:
        """The lanes of *queues*, high priority first, queues in the order given."""
        lanes = [_Lane(queue, *row) for queue in queues for row in self._line.do(sql.LANES, {"queue": queue})]
        if len(queues) > 1:
            lanes.sort(key=attrgetter("priority"), reverse=True)
        return lanes

    def _still_held(self, token: str, now: float) -> list[Record]:
        """What a repeated claim gets again; a lease that has ended meanwhile is due and is claimed like any other."""
        held = [Record(*row) for row in self._line.do(sql.STILL_HELD, (token, now))]
        return sorted(held, key=attrgetter("fence", "id"))

    def _claim_lane(
        self, lane: _Lane, token: str, room: int, now: float, horizon: float, until: float
    ) -> list[Record]:
        queue, priority, _ = lane
        if not (due := self._line.do(sql.DUE, (queue, priority, horizon, now, room)).fetchall()):
            return []
        [(fence,)] = self._line.do(sql.NEXT_FENCE)
        self._line.change(sql.TAKE, [row[0] for row in due], until, fence, token)
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
        done = sum(self._line.change(sql.DELETE, ids, *claim) for claim, ids in deletes.items())
        done += self._line.many(sql.MOVE, moves) + self._line.many(sql.HAND_BACK, returns)
        spawned = [record for s in settlements for record in s.spawn]
        # Where one settles what another spawns, their order matters.
        ids = {s.id for s in settlements}
        if done < len(settlements) or (len(ids) > 1 and any(record.id in ids for record in spawned)):
            raise _NotAllDone
        self._line.insert(sql.LOG, [entry for s in settlements for entry in s.entries])
        self._line.insert(sql.ADD, spawned)
        times += [row[0] for row in moves + returns] + [record.wake_at for record in spawned]
        times += [self._unpark(*s.unpark) for s in settlements if s.unpark is not None]

    def _settle_alone(self, s: Settlement, times: list[float | None]) -> Settled:
        record = next((Record(*row) for row in self._line.select(sql.GET, [s.id])), None)
        if record is None:
            self._line.insert(sql.LOG, s.entries)
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
        return now if self._line.change(sql.UNPARK, [r.id for r in parked], now) else None

    def _forget_leases(self) -> None:
        """Of the next stretch of the named leases, those that ended long ago."""
        end = next((key for (key,) in self._line.do(sql.STRETCH_END, (self._looked_at, _SWEEP))), None)
        self._line.do(sql.FORGET, (self._looked_at, end, self._now() - _FORGOTTEN_S))
        self._looked_at = end or ""

    def _prune_crowded(self, per_job: int, limit: int) -> int:
        """Look at the next stretch of the log only, so that a call takes as long whatever the log's size."""
        pruned = 0
        end = next((job_id for (job_id,) in self._line.do(sql.SWEEP_END, (self._swept, _SWEEP))), None)
        for job_id, count in self._line.do(sql.CROWDED, (self._swept, end, per_job)).fetchall():
            pruned += self._line.do(sql.PRUNE_JOB, (job_id, min(count - per_job, limit - pruned))).rowcount
        if pruned < limit:
            self._swept = end or ""
        return pruned


class _NotAllDone(Exception):
    """Some settlement of a batch did not apply as it is; nothing of the batch was kept."""


class _Lane(NamedTuple):
    queue: str
    priority: int
    earliest: float


def _earliest(times: Iterable[float | None]) -> float | None:
    earliest = min((at for at in times if at is not None), default=math.inf)
    return earliest if earliest < math.inf else None


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
    shown = without_password(url)
    _refuse(
        parts.scheme != "sqlite" or bool(parts.fragment), f"{shown!r} is no SQLite URL: {forms}, # as %23"
    )
    host = parts.netloc.rpartition("@")[2]
    _refuse(bool(parts.netloc), f"{shown!r} names the host {host!r}, and SQLite has none: {forms}")
    return unquote(parts.path.removeprefix("/"))
