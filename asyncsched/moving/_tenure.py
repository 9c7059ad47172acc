"""One migration at a time, and fences that go on above those of the source."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from asyncsched.contract import JobStore, Lease, Record
from asyncsched.errors import ConflictError, StoreError
from asyncsched.moving._reading import MARK, tried

__all__ = ["Tenure", "alone", "raise_fences"]

#: Whoever migrates holds this lease in both stores. One that was killed is in the way for so many seconds.
_KEY, _LEASE_S = "#migrate", 30.0


class Tenure:
    """The leases of one migration."""

    def __init__(self, held: Sequence[tuple[JobStore, Lease]]) -> None:
        self._held = held
        #: Above all fences that the source gave before.
        self.fence = held[0][1].fence

    async def keep(self) -> None:
        for store, lease in self._held:
            if _KEY not in await tried(store.extend, [lease], _LEASE_S):
                raise ConflictError(
                    f"this migration stood still for {_LEASE_S:g} s, and another may have begun: run it again"
                )


@asynccontextmanager
async def alone(source: JobStore, target: JobStore) -> AsyncIterator[Tenure]:
    """Each store's lease has a holder of its own, so that no two migrations meet, and no store is its own target."""
    held: list[tuple[JobStore, Lease]] = []
    try:
        for store, place in ((source, "source"), (target, "target")):
            taken = await tried(store.acquire, [_KEY], secrets.token_hex(8), _LEASE_S)
            if _KEY not in taken:
                itself = "it is the source itself, or " if held else ""
                raise ConflictError(
                    f"the {place} is not free: {itself}another migration is at work on it, or was killed less than "
                    f"{_LEASE_S:g} s ago"
                )
            held.append((store, taken[_KEY]))
        yield Tenure(held)
    finally:
        for store, lease in held:
            with suppress(StoreError):
                await store.release([lease])


async def raise_fences(target: JobStore, fence: int, queues: Sequence[str]) -> None:
    """See to it that the target gives fences above *fence*, for jobs too that the source does not have any more.

    The contract says that a record which is added raises them; a store may count them by queue.
    """
    marks = [
        Record(f"{MARK}{queue}", secrets.token_hex(8), queue, 0, MARK, None, MARK, b"", b"", fence=fence)
        for queue in queues or ("default",)
    ]
    ids = [mark.id for mark in marks]
    await tried(target.remove, ids)
    await tried(target.add, marks)
    await tried(target.remove, ids)
    key = f"{_KEY}/{secrets.token_hex(8)}"
    lease = (await tried(target.acquire, [key], key, _LEASE_S))[key]
    await tried(target.release, [lease])
    if lease.fence <= fence:
        raise StoreError(
            f"{type(target).__name__} gave the fence {lease.fence} after a record with {fence} was added: it does not keep the "
            "contract, by which later fences are higher; nothing was copied"
        )
