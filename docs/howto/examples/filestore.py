"""A job store in one file: each call locks it, reads it whole, and writes it whole."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from msgspec.structs import replace

from asyncsched import DefinitionError, SchemaError, StoreError, StoreUnavailable
from asyncsched.contract import (
    Capabilities,
    Claim,
    Claimed,
    Entry,
    Filter,
    Lease,
    Record,
    Renewal,
    Settled,
    Settlement,
    Update,
)

__all__ = ["FileStore"]

T = TypeVar("T")
FORMAT = 1


class State(msgspec.Struct):
    """All that is stored."""

    format: int = FORMAT
    #: The last fence that was given, to a claim or to a named lease.
    fence: int = 0
    records: dict[str, Record] = {}
    leases: dict[str, Lease] = {}
    #: Oldest first.
    log: list[Entry] = []


class FileStore:
    """Jobs in the file *namespace*.jobs of *folder*, for the processes of one host."""

    capabilities = Capabilities(
        durable=True, shared=True, clock="host", push_hints=False, linearizable=True, transactional_add=False
    )

    def __init__(self, folder: str | Path, namespace: str = "asyncsched") -> None:
        self._path = Path(folder) / f"{namespace}.jobs"
        self._arguments = (folder, namespace)
        self._is_open = False
        self._now: Callable[[], float] = time.time
        self._listeners: list[Callable[[float | None], None]] = []

    @classmethod
    def from_url(cls, url: str) -> FileStore:
        """The store of ``mine:///relative/folder`` or ``mine:////absolute/folder``, with ``?namespace=``."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        folder = unquote(parts.path.removeprefix("/"))
        if parts.netloc or not folder or options.keys() - {"namespace"}:
            raise DefinitionError(f"{url!r} is no file store; write mine:///folder?namespace=name")
        return cls(folder, **options)

    # -- life --------------------------------------------------------------------------------------

    async def open(self, now: Callable[[], float] | None = None) -> None:
        self._now = now or self._now
        self._is_open = True
        try:
            await self._do(lambda state: None)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._is_open = False
        self._listeners.clear()

    def clone(self) -> FileStore:
        """It renews leases from the keeper's own event loop, so that a task which blocks cannot lose them."""
        return FileStore(*self._arguments)

    async def now(self) -> float:
        return self._now()

    async def erase(self) -> None:
        """Remove this namespace; ``asyncsched stores check`` does so with those that it made."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".lock").unlink(missing_ok=True)

    # -- records -----------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken, due = await self._do(lambda state: _insert(state, records), writes=bool(records))
        self._hint(due)
        return taken

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        return await self._do(lambda state: {id: state.records[id] for id in ids if id in state.records})

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        def find(state: State) -> list[Record]:
            found = [r for r in state.records.values() if _matches(r, where)]
            if after is not None:
                found = [r for r in found if _place(r) > _place(after)]
            return sorted(found, key=_place)[:limit]

        return await self._do(find)

    async def update(self, update: Update) -> Record | None:
        u = update

        def write(state: State) -> Record | None:
            there = state.records.get(u.id)
            if there is None or there.version != u.version:
                return None
            new = replace(there, body=u.body, version=u.version + 1, queue=u.queue, priority=u.priority)
            if u.task is not None:
                new = replace(new, task=u.task)
            if there.holder is None or u.revoke:
                # Until it is let go, when it wakes and why it is held back are its holder's to say.
                wake_at = self._now() if u.revoke else u.wake_at
                new = replace(new, hold=u.hold, wake_at=wake_at, holder=None)
            state.records[u.id] = new
            return new

        record = await self._do(write, writes=True)
        if record is not None and record.holder is None:
            self._hint([record.wake_at])
        elif record is not None:
            self._tell(None)
        return record

    async def remove(self, ids: Sequence[str]) -> set[str]:
        def write(state: State) -> set[str]:
            return {id for id in ids if state.records.pop(id, None) is not None}

        return await self._do(write, writes=True)

    # -- claims ------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        order = {queue: place for place, queue in reversed(list(enumerate(queues)))}

        def take(state: State) -> Claimed:
            now = self._now()
            # A claim whose reply was lost is repeated, and gets what it has taken already.
            taken = [r for r in state.records.values() if r.holder == token and (r.wake_at or 0) > now]
            due = [r for r in state.records.values() if r.queue in order and _is_due(r, now, ahead_s)]
            due.sort(key=lambda r: (-r.priority, order[r.queue], _place(r)))
            for r in due[: max(0, limit - len(taken))]:
                state.fence += 1
                # Who held it until now has lost it: its next run will say so.
                prior = r.prior if r.holder is None else r.fence
                new = replace(
                    r, wake_at=now + lease_s, fence=state.fence, holder=token, tries=r.tries + 1, prior=prior
                )
                state.records[r.id] = new
                taken.append(new)
            wakes = [r.wake_at for r in state.records.values() if r.queue in order and r.wake_at is not None]
            return Claimed(taken, min(wakes, default=None), now)

        return await self._do(take, writes=True)

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        def write(state: State) -> Renewal:
            now = self._now()
            answer = Renewal({}, now)
            for claim in claims:
                r = state.records.get(claim.id)
                if r is None or (r.fence, r.holder) != (claim.fence, claim.holder):
                    answer.versions[claim.id] = "lost"
                    continue
                answer.versions[claim.id] = r.version
                if r.wake_at is None or r.wake_at < now + lease_s:
                    state.records[r.id] = replace(r, wake_at=now + lease_s)
            return answer

        return await self._do(write, writes=bool(claims))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        def write(state: State) -> tuple[list[Settled], list[float | None]]:
            wakes: list[float | None] = []
            answers = [_settle(state, s, self._now(), wakes) for s in settlements]
            _log(
                state,
                (e for s, a in zip(settlements, answers, strict=True) for e in s.entries if a in _LOGGED),
            )
            return answers, wakes

        answers, wakes = await self._do(write, writes=bool(settlements))
        self._hint(wakes)
        return answers

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        """Of what this object has written; what other processes write is found by polling."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback) if callback in self._listeners else None

    # -- named leases ------------------------------------------------------------------------------

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        def write(state: State) -> dict[str, Lease]:
            now = self._now()
            held = {key: there for key, there in state.leases.items() if there.until > now}
            own = [key for key in dict.fromkeys(keys) if key in held and held[key].holder == holder]
            free = [key for key in dict.fromkeys(keys) if key not in held]
            taken = {}
            for key in [*own, *free][:limit]:
                if key in held:
                    fence = held[key].fence
                else:
                    fence = state.fence = state.fence + 1
                taken[key] = Lease(key, holder, fence, now + lease_s)
            # What nobody holds any more is forgotten: the next fence is higher all the same.
            state.leases = held | taken
            return taken

        return await self._do(write, writes=bool(keys))

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        def write(state: State) -> dict[str, Lease]:
            until = self._now() + lease_s
            held = [state.leases[lease.key] for lease in leases if _is_held(state, lease)]
            new = {lease.key: lease._replace(until=max(lease.until, until)) for lease in held}
            state.leases |= new
            return new

        return await self._do(write, writes=bool(leases))

    async def release(self, leases: Sequence[Lease]) -> None:
        def write(state: State) -> None:
            for lease in leases:
                if _is_held(state, lease):
                    del state.leases[lease.key]

        await self._do(write, writes=bool(leases))

    # -- the log -----------------------------------------------------------------------------------

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        def find(state: State) -> list[Entry]:
            found = [e for e in reversed(state.log) if job_id in (None, e.job_id)]
            if kinds is not None:
                found = [e for e in found if e.kind in kinds]
            if before is not None:
                found = [e for e in found if _log_place(e) < _log_place(before)]
            return found[:limit]

        return await self._do(find)

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        def write(state: State) -> int:
            oldest = self._now() - older_than_s if older_than_s is not None else None
            newer: dict[str, int] = {}
            goes: list[Entry] = []
            for entry in reversed(state.log):
                newer[entry.job_id] = newer.get(entry.job_id, 0) + 1
                is_crowded = per_job is not None and newer[entry.job_id] > per_job
                if is_crowded or (oldest is not None and entry.at < oldest):
                    goes.append(entry)
            keys = set(map(_key, goes[-limit:] if limit else ()))
            state.log = [entry for entry in state.log if _key(entry) not in keys]
            return len(keys)

        return await self._do(write, writes=True)

    # -- the file ----------------------------------------------------------------------------------

    async def _do(self, work: Callable[[State], T], writes: bool = False) -> T:
        """Do *work* in a thread. Whoever is cancelled leaves it to end: it is done whole, or not at all."""
        if not self._is_open:
            raise StoreError(f"the store {self._path} is not open: await its open() first")
        try:
            return await asyncio.to_thread(self._do_locked, work, writes)
        except OSError as error:
            raise StoreUnavailable(f"{self._path} cannot be used at present: {error}") from error

    def _do_locked(self, work: Callable[[State], T], writes: bool) -> T:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if writes else fcntl.LOCK_SH)
            state = self._read()
            answer = work(state)
            if writes:
                self._write(state)
            return answer

    def _read(self) -> State:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return State()
        try:
            found = msgspec.msgpack.decode(content, type=_Format).format
            if found == FORMAT:
                return msgspec.msgpack.decode(content, type=State)
        except msgspec.DecodeError as error:
            raise StoreError(f"{self._path} is damaged ({error}): restore a backup") from error
        raise SchemaError(f"{self._path} has format {found}, this code {FORMAT}: upgrade it")

    def _write(self, state: State) -> None:
        """A file of that name has the old state or the new one, whenever the process or the machine stops."""
        try:
            content = msgspec.msgpack.encode(state)
        except (UnicodeEncodeError, OverflowError) as error:
            raise StoreError(f"this cannot be stored: {error}") from error
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)

    def _hint(self, wakes: Iterable[float | None]) -> None:
        earliest = min((at for at in wakes if at is not None), default=None)
        if earliest is not None:
            self._tell(earliest)

    def _tell(self, wake_at: float | None) -> None:
        for listener in tuple(self._listeners):
            listener(wake_at)


class _Format(msgspec.Struct):
    format: int


_LOGGED = frozenset({"done", "stale", "gone"})


def _insert(state: State, records: Sequence[Record]) -> tuple[set[str], list[float | None]]:
    """Add what is not there; the ids that another birth has, and when the others wake."""
    taken, wakes = set(), []
    for record in records:
        there = state.records.setdefault(record.id, record)
        if there is record:
            wakes.append(record.wake_at)
            # It may come from another store: later fences are higher than those it has had there.
            state.fence = max(state.fence, record.fence)
        elif there.birth != record.birth:
            taken.add(record.id)
    return taken, wakes


def _settle(state: State, s: Settlement, now: float, wakes: list[float | None]) -> Settled:
    r = state.records.get(s.id)
    if r is None:
        return "gone"
    if (r.fence, r.holder) != (s.fence, s.holder):
        return "already" if r.settled == s.fence else "lost"
    is_stale = r.version != s.version
    wake_at = now if is_stale else s.wake_at
    if s.delete and not is_stale:
        del state.records[s.id]
    elif s.hand_back:
        state.records[s.id] = replace(r, wake_at=wake_at, holder=None, tries=max(r.tries - 1, 0))
        wakes.append(wake_at)
    else:
        hold = r.hold if is_stale else s.hold
        new = replace(r, wake_at=wake_at, hold=hold, cursor=s.cursor, holder=None)
        state.records[s.id] = replace(new, settled=r.fence, tries=0, prior=None)
        wakes.append(wake_at)
    wakes += _insert(state, s.spawn)[1]
    if s.unpark is not None:
        hold, limit = s.unpark
        parked = [r for r in state.records.values() if r.hold == hold and r.holder is None]
        for r in sorted(parked, key=_place)[:limit]:
            state.records[r.id] = replace(r, hold=None, wake_at=now)
            wakes.append(now)
    return "stale" if is_stale else "done"


def _log(state: State, entries: Iterable[Entry]) -> None:
    known = set(map(_key, state.log))
    for entry in entries:
        if _key(entry) not in known:
            known.add(_key(entry))
            state.log.append(entry)
    state.log.sort(key=_log_place)


def _is_due(r: Record, now: float, ahead_s: float) -> bool:
    """To look ahead never takes what is held under a lease that has not ended."""
    return r.wake_at is not None and r.wake_at <= (now + ahead_s if r.holder is None else now)


def _is_held(state: State, lease: Lease) -> bool:
    there = state.leases.get(lease.key)
    return there is not None and (there.holder, there.fence) == (lease.holder, lease.fence)


def _matches(r: Record, where: Filter) -> bool:
    return (
        where.queue in (None, r.queue)
        and where.task in (None, r.task)
        and where.hold in (None, r.hold or "")
        and r.id.startswith(where.id_prefix or "")
    )


def _place(r: Record) -> tuple[bool, float, str]:
    """Where it stands in pages and lanes; what never wakes comes last."""
    return (r.wake_at is None, r.wake_at or 0.0, r.id)


def _key(e: Entry) -> tuple[str, int, str, float]:
    return (e.job_id, e.fence, e.kind, e.fire_at)


def _log_place(e: Entry) -> tuple[float, str, int, str, float]:
    return (e.at, *_key(e))
