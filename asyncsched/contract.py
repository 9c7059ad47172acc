"""What a store promises: one protocol, the few values that cross it, and nothing of policy.

**A lease is a later wake time plus a higher fence.** A job is one record with one time, ``wake_at``. To claim a job is to
move ``wake_at`` to the end of the lease and to raise ``fence``, atomically, for records whose ``wake_at`` has come. To renew
is to push ``wake_at`` further. To settle is to set ``wake_at`` to the next due time, or to delete the record, and to let go.
A job whose instance died is simply due again when its lease ends.

Instants are UTC seconds by the *store's* clock (float, microseconds survive); arguments that say how long are durations, so
that a caller with a wrong clock can neither steal a lease nor write one that is born expired. ``body`` and ``cursor`` are
opaque to a store. Everything that can be batched takes a sequence; an item is atomic by itself, a batch is not.

Each rule here has a case in :class:`asyncsched.testing.StoreContract`, and a mutant that the case catches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol

import msgspec

__all__ = [
    "Capabilities",
    "Claim",
    "Claimed",
    "Entry",
    "Filter",
    "JobStore",
    "Lease",
    "Record",
    "Renewal",
    "Settled",
    "Settlement",
    "TransactionalStore",
    "Update",
]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One job as the store keeps it. Frozen: what a store hands out is never changed under the reader."""

    id: str
    #: Made by the client for each add, so that an own add whose reply was lost is told from a conflict.
    birth: str
    queue: str
    #: 0 to 9; higher goes first.
    priority: int
    task: str
    #: When the record wants attention: its due time, the end of its lease, or when to remove it. None: never by itself.
    wake_at: float | None
    #: Why it is held back: None, ``paused``, ``quarantined``, ``failed`` or a limit's key. Stores compare it in filters only.
    hold: str | None
    #: Definition and requests. Only ``update`` changes it.
    body: bytes
    #: Progress. Only ``settle`` changes it.
    cursor: bytes
    #: Raised by each ``update``.
    version: int = 1
    #: Assigned by each claim; rises, and never falls, not even across remove and re-add. 0 before the first.
    fence: int = 0
    #: The token of the claim that holds it, expired or not; None: unheld.
    holder: str | None = None
    #: The last fence that was settled.
    settled: int = 0
    #: Claims since the last settlement; above one means that an earlier claim was lost.
    tries: int = 0
    #: The fence of the expired claim that was taken over since the last settlement; None: there was none. A hand-back and an
    #: update keep it, and so does the claim after them, since nobody has written down yet that a claim was lost.
    prior: int | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One line of the log: a run, or a decision not to run. Unique by (job_id, fence, kind, fire_at)."""

    job_id: str
    fence: int
    #: ``run``, ``lost``, or a decision's reason.
    kind: str
    fire_at: float
    #: When it was settled; the log's order, and what retention goes by.
    at: float
    body: bytes


class Claim(NamedTuple):
    """What a holder shows to renew or settle: both the fence and the token must match."""

    id: str
    fence: int
    holder: str


class Claimed(NamedTuple):
    """What a claim brought."""

    records: list[Record]
    #: The earliest ``wake_at`` of the asked queues after this claim, leased ones included; None: nothing is planned.
    next_wake_at: float | None
    #: The store's clock.
    now: float


class Renewal(NamedTuple):
    """For each id the record's version (the lease was extended, or was already longer), ``busy`` (its row is locked by
    another transaction: try again) or ``lost`` (claimed by another, revoked, settled or removed)."""

    versions: dict[str, int | Literal["busy", "lost"]]
    now: float


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """How one claim ends. Atomic by itself.

    With ``hand_back`` the record returns as if it had not been claimed: the cursor and ``settled`` stay and the try is
    undone; ``prior`` stays, and only ``wake_at`` is taken from here. With ``delete`` the record goes. Else cursor, hold and
    ``wake_at`` are written.
    """

    id: str
    fence: int
    holder: str
    #: The version that was planned under; a higher one at the store makes the settlement *stale*.
    version: int
    cursor: bytes = b""
    wake_at: float | None = None
    hold: str | None = None
    delete: bool = False
    hand_back: bool = False
    entries: tuple[Entry, ...] = ()
    #: Records to add in the same step; existing ids are left alone.
    spawn: tuple[Record, ...] = ()
    #: (hold, limit): so many records with that hold, the earliest first, become due now and lose the hold.
    unpark: tuple[str, int] | None = None


#: done: applied. already: this fence was settled before, nothing changed. stale: the record was updated meanwhile: entries and
#: cursor are written, the move or delete is not, and it is due now. gone: it was removed; the entries are kept. lost: claimed
#: by another or revoked; nothing is written.
Settled = Literal["done", "already", "stale", "lost", "gone"]


class Update(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A new body for a record of the given version, and where it belongs. ``wake_at`` and ``hold`` are taken only while the
    record is unheld: until then they are its holder's."""

    id: str
    version: int
    body: bytes
    queue: str
    priority: int
    wake_at: float | None
    hold: str | None
    #: Take the record from its holder, and make it due now.
    revoke: bool = False
    #: Another task; None: as it is.
    task: str | None = None


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which records ``page`` gives; every field that is set must match."""

    queue: str | None = None
    task: str | None = None
    #: A hold, or ``""`` for records without one.
    hold: str | None = None
    id_prefix: str | None = None


class Lease(NamedTuple):
    """A named lease, for locks and limits."""

    key: str
    holder: str
    fence: int
    until: float


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a store can promise; the table in the docs is made from these."""

    #: Its records outlive this process.
    durable: bool
    #: Several processes can work on one set of jobs.
    shared: bool
    #: Whose clock decides: ``host`` or ``server``.
    clock: Literal["host", "server"]
    #: ``on_hint`` hears of other processes' writes.
    push_hints: bool
    #: What was acknowledged survives a failover.
    linearizable: bool
    #: Jobs can be added in the user's own transaction.
    transactional_add: bool
    #: So many bytes may body and cursor of a record have together; a larger one is refused with a StoreError that names its id,
    #: its size and this bound. None: no bound that a job comes near (a mebibyte each and more).
    largest_record: int | None = None


class JobStore(Protocol):
    """The server-side memory of jobs, leases and runs.

    Every method may be cancelled, and may raise :class:`~asyncsched.errors.StoreUnavailable`: then its outcome is unknown and
    the call may be repeated as it was. A permanent refusal is another :class:`~asyncsched.errors.StoreError`. No store
    repeats a write by itself.
    """

    capabilities: Capabilities

    async def open(self, now: Callable[[], float] | None = None) -> None:
        """Connect, and create the schema if absent, or check its version. *now* replaces the store's clock (for tests)."""
        ...

    async def close(self) -> None:
        """Release what ``open`` opened; a client that was passed in is left open. May be called twice."""
        ...

    def clone(self) -> JobStore | None:
        """The same store on a connection of its own, unopened, for another event loop; None where that cannot be."""
        ...

    async def now(self) -> float:
        """The store's clock."""
        ...

    async def add(self, records: Sequence[Record]) -> set[str]:
        """Insert *records*; return the ids that another birth holds already, which are left as they are.

        A record is written whole. One that has lived in another store brings its version, fence, settled, tries and prior with
        it, and no later fence of the namespace, of a claim or of a named lease, is as low as a fence that was added.
        """
        ...

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        """The records of those *ids* that exist."""
        ...

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        """Up to *limit* records that match, ordered by (wake_at, id) with ``None`` last, strictly behind *after*."""
        ...

    async def update(self, update: Update) -> Record | None:
        """Write a new body if the version matches; return the record as it is now, or None if it did not match.

        The fence is left alone, so a run under way can still settle (as *stale*); with ``revoke`` it no longer can.
        """
        ...

    async def remove(self, ids: Sequence[str]) -> set[str]:
        """Delete records, held or not; return the ids that were found. A holder finds out when it renews or settles."""
        ...

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        """Take up to *limit* due records of *queues* for *lease_s* seconds.

        Claimable: unheld and ``wake_at <= now + ahead_s``, or held and ``wake_at <= now``: looking ahead never steals a live
        lease. Taken from the highest priority down, and within one lane (queue, priority) by (wake_at, id); queues are
        served in the order given. A claim repeated with its token first returns what that token still holds. The cost grows
        with what is taken and with the number of lanes, never with what is stored or due.
        """
        ...

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        """Push the end of each lease to now + *lease_s*, in one call; never shortens, never waits for a locked row."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """End claims, each by itself; the answers stand in the order given.

        Needs fence *and* holder. An expired lease alone refuses nothing; a successor, a revoke or a remove does.
        """
        ...

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        """Call *callback* in the loop of ``open`` whenever something may have become due sooner, with its ``wake_at`` where
        that is known, and with None whenever a record that stays held was updated, so that its holder can look at it at once;
        return what ends it. Hints may be lost (a listener that is down), so whoever waits polls as well."""
        ...

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        """Take the named leases that are free or already *holder*'s (renewed, with the same fence); return those.

        At most *limit* of them: first those that the holder has already, then free ones, both in the order of *keys*. Nothing
        beyond is touched, and of two that compete for the last one, one gets it.
        """
        ...

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        """Push the end of leases still held by their holder and fence; return those, the others are lost."""
        ...

    async def release(self, leases: Sequence[Lease]) -> None:
        """Free leases, if still held by their holder and fence."""
        ...

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        """The log of one job, or of all: newest first by (at, job_id, fence, kind, fire_at), strictly behind *before*."""
        ...

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        """Delete up to *limit* log entries older than *older_than_s*, or beyond the newest *per_job* of their job;
        return how many went. Bounded, so that it never holds up a claim. Named leases that ended long ago, by an hour or
        more, may be forgotten here, uncounted, so that keys which nobody asks for any more do not stay; their fences outlive
        them all the same."""
        ...


class TransactionalStore(JobStore, Protocol):
    """A store in a database that users write to as well; ``capabilities.transactional_add`` says that it is one."""

    def within(self, connection: object) -> AbstractAsyncContextManager[JobStore]:
        """This store as part of the transaction that is open on the user's *connection*: nothing of what is done through it
        is visible, or told to anyone as a hint, before that transaction commits, and nothing is left if it rolls back.

        *connection* is the driver's, or a SQLAlchemy AsyncConnection or AsyncSession on it; raises DefinitionError for anything
        else. Where the driver's has none open one is begun, and committed or rolled back at the end of the block. SQLAlchemy
        begins one with the first statement, which may be this store's, and its user ends it. The clock, ``open``,
        ``close`` and hints are those of this store. No call through it is repeated.
        """
        ...
