"""What one case works with: a fresh namespace, its clients, its clock, and short ways to make values."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Awaitable, Callable, Sequence

from asyncsched.contract import (
    Claim,
    Claimed,
    Entry,
    Filter,
    JobStore,
    Record,
    Renewal,
    Settled,
    Settlement,
    Update,
)

__all__ = [
    "EVERYTHING",
    "LEASE_S",
    "NOW",
    "QUEUE",
    "Ear",
    "Trial",
    "claim_of",
    "entry",
    "job",
    "settlement",
    "unlike",
    "update_of",
]

#: When every trial begins. Whole seconds, so that sums of it are exact in whatever way a store keeps an instant.
NOW = 1_800_000_000.0
LEASE_S = 30.0
QUEUE = "default"
EVERYTHING = Filter()

MakeStore = Callable[[str], JobStore | Awaitable[JobStore]]


class Trial:
    """One namespace that nobody used before, with a clock that stands still until it is set."""

    #: The first client.
    store: JobStore

    def __init__(self, make_store: MakeStore, namespace: str, patience_s: float) -> None:
        self.now = NOW
        #: How long a hint may take.
        self.patience_s = patience_s
        self._make_store = make_store
        #: Every namespace that was opened; the first is the trial's own.
        self.namespaces = [namespace]
        self._clients: list[JobStore] = []
        self._numbers = itertools.count(1)

    # -- clients -------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        self.store = await self.client()

    async def close(self) -> None:
        """Close every client that was opened here."""
        while self._clients:
            await self._clients.pop().close()

    async def reopen(self) -> None:
        """Close all clients, and put a new one into ``store``."""
        await self.close()
        await self.open()

    async def client(self) -> JobStore:
        """Another opened client of the same namespace."""
        return await self._opened(self.namespaces[0])

    async def client_elsewhere(self) -> JobStore:
        """An opened client of another namespace."""
        elsewhere = f"{self.namespaces[0]}-else"
        if elsewhere not in self.namespaces:
            self.namespaces.append(elsewhere)
        return await self._opened(elsewhere)

    async def adopt(self, store: JobStore) -> JobStore:
        """Open *store* on this trial's clock; it is closed with the others."""
        self._clients.append(store)
        await store.open(now=self.time)
        return store

    async def _opened(self, namespace: str) -> JobStore:
        made = self._make_store(namespace)
        return await self.adopt(await made if inspect.isawaitable(made) else made)

    def time(self) -> float:
        """The clock that every client is opened with."""
        return self.now

    def token(self) -> str:
        """A holder that nobody has used."""
        return f"token-{next(self._numbers)}"

    # -- short ways ----------------------------------------------------------------------------------------------------

    async def add(self, *records: Record) -> None:
        """Add records whose ids must be free."""
        assert await self.store.add(records) == set()

    async def read(self, id: str) -> Record:
        """The record of that id, which must exist."""
        return (await self.store.get([id]))[id]

    async def claim(
        self,
        limit: int = 100,
        *,
        token: str | None = None,
        lease_s: float = LEASE_S,
        ahead_s: float = 0.0,
        queues: Sequence[str] = (QUEUE,),
    ) -> Claimed:
        """Claim with a new token, unless one is given."""
        return await self.store.claim(queues, token or self.token(), limit, lease_s, ahead_s)

    async def claim_ids(
        self, limit: int = 100, *, ahead_s: float = 0.0, queues: Sequence[str] = (QUEUE,)
    ) -> list[str]:
        return [r.id for r in (await self.claim(limit, ahead_s=ahead_s, queues=queues)).records]

    async def held(self, record: Record | None = None) -> Record:
        """Add a due record (``job()``), claim it, and return it as claimed. Nothing else may be due in its queue."""
        record = record or job()
        await self.add(record)
        return await self.claimed(record.queue)

    async def claimed(self, queue: str = QUEUE) -> Record:
        """Claim the one record that is due in *queue*."""
        [taken] = (await self.claim(queues=[queue])).records
        return taken

    async def settle(self, settlement: Settlement) -> Settled:
        [answer] = await self.store.settle([settlement])
        return answer

    async def renew(self, claim: Record | Claim, lease_s: float = LEASE_S) -> int | str:
        """Renew one claim; return its version, ``busy`` or ``lost``."""
        shown = claim_of(claim) if isinstance(claim, Record) else claim
        renewal: Renewal = await self.store.renew([shown], lease_s)
        return renewal.versions[shown.id]

    async def log(self) -> list[Entry]:
        """The whole log, newest first."""
        return await self.store.runs(limit=10_000)

    async def write_log(self, *entries: Entry) -> None:
        """Log *entries* by way of a job that is removed again."""
        writer = await self.held(job("writer", queue="writers"))
        assert await self.settle(settlement(writer, delete=True, entries=entries)) == "done"


class Ear:
    """Listens for hints, and waits for one within bounds."""

    def __init__(self, patience_s: float) -> None:
        self.heard: list[float | None] = []
        self.patience_s = patience_s
        self._woken = asyncio.Event()

    def __call__(self, wake_at: float | None) -> None:
        self.heard.append(wake_at)
        self._woken.set()

    def forget(self) -> None:
        """Begin again with nothing heard."""
        self.heard.clear()
        self._woken.clear()

    async def hears(self, patience_s: float | None = None) -> bool:
        """Whether a hint was heard, or is heard in time."""
        try:
            async with asyncio.timeout(self.patience_s if patience_s is None else patience_s):
                await self._woken.wait()
        except TimeoutError:
            return False
        return True


def job(
    id: str = "a",
    *,
    wake_at: float | None = NOW,
    queue: str = QUEUE,
    priority: int = 5,
    task: str = "task",
    hold: str | None = None,
    body: bytes = b"body",
    cursor: bytes = b"cursor",
    birth: str | None = None,
) -> Record:
    """A new record, due at once, whose birth follows from its id."""
    return Record(
        id=id,
        birth=birth or f"birth of {id}"[:255],
        queue=queue,
        priority=priority,
        task=task,
        wake_at=wake_at,
        hold=hold,
        body=body,
        cursor=cursor,
    )


def claim_of(record: Record) -> Claim:
    """What the holder of a claimed record shows."""
    assert record.holder is not None
    return Claim(record.id, record.fence, record.holder)


def settlement(
    record: Record,
    *,
    wake_at: float | None = None,
    cursor: bytes = b"",
    hold: str | None = None,
    delete: bool = False,
    hand_back: bool = False,
    entries: Sequence[Entry] = (),
    spawn: Sequence[Record] = (),
    unpark: tuple[str, int] | None = None,
) -> Settlement:
    """How the claim of *record* ends."""
    id, fence, holder = claim_of(record)
    return Settlement(
        id=id,
        fence=fence,
        holder=holder,
        version=record.version,
        cursor=cursor,
        wake_at=wake_at,
        hold=hold,
        delete=delete,
        hand_back=hand_back,
        entries=tuple(entries),
        spawn=tuple(spawn),
        unpark=unpark,
    )


def update_of(record: Record, *, body: bytes = b"new body", revoke: bool = False) -> Update:
    """A new body for *record*, with everything else as it is."""
    return Update(
        id=record.id,
        version=record.version,
        body=body,
        queue=record.queue,
        priority=record.priority,
        wake_at=record.wake_at,
        hold=record.hold,
        revoke=revoke,
    )


def entry(
    job_id: str = "a",
    *,
    fence: int = 1,
    kind: str = "run",
    fire_at: float = NOW,
    at: float = NOW,
    body: bytes = b"log",
) -> Entry:
    """One line of the log."""
    return Entry(job_id=job_id, fence=fence, kind=kind, fire_at=fire_at, at=at, body=body)


def unlike(found: Sequence[object], expected: Sequence[object]) -> list[tuple[object, object]]:
    """The first places in which two long sequences differ. A test runner that shows how thousands of items differ takes minutes
    to find out, or for ever."""
    pairs = itertools.zip_longest(found, expected, fillvalue="(nothing)")
    return list(itertools.islice((pair for pair in pairs if pair[0] != pair[1]), 5))
