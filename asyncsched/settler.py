"""The ends of one store's runs: gathered, and written many in one call.

One round trip for a batch, not for a run: what ends while a settlement is on its way goes with the next one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from asyncsched.announce import Announcer
from asyncsched.contract import Claim, JobStore, Settled, Settlement
from asyncsched.execution import Execution, Host
from asyncsched.ledger import Ledger
from asyncsched.limits import Limits
from asyncsched.link import Link

__all__ = ["Item", "Settler"]

#: Settlements in one call.
_BATCH = 500
#: Of the pace: from one settlement to the next.
_PACE = 0.3
#: Ends that are worth a settlement at once.
_ENOUGH = 100

#: How often a store that answers late is asked again whether a lease is held.
_CHECKS = 3

Item = Execution | Settlement
Pairs = Sequence[tuple[Item, Settlement]]


class Owner(Protocol):
    """Whose ends they are."""

    host: Host
    held: dict[str, Execution]
    now: Callable[[], float]

    def lost(self, execution: Execution) -> None:
        """Another has its job: its end is not written."""

    def settled(self, item: Item, settlement: Settlement, answer: Settled) -> None:
        """The store has answered."""

    def written(self) -> None:
        """A batch is done with."""


class Settler:
    """Writes ends, in the order in which they came."""

    def __init__(
        self,
        owner: Owner,
        store: JobStore,
        link: Link,
        ledger: Ledger,
        announcer: Announcer,
        limits: Limits,
        lease_s: float,
        pace_s: float,
    ) -> None:
        self._owner = owner
        self._store = store
        self._link = link
        self._ledger = ledger
        self._announcer = announcer
        self._limits = limits
        self._lease_s = lease_s
        self._pace_s = pace_s * _PACE
        self._clock = owner.host.clock
        self._logger = owner.host.logger
        self._done: list[Item] = []
        self._settling = 0
        self._settled_at = -math.inf
        self._event = asyncio.Event()
        #: No end waits for others to go with.
        self.is_hurried = False

    def __len__(self) -> int:
        """How many ends are not written yet."""
        return len(self._done) + self._settling

    def close(self, item: Item) -> None:
        """Its end is to be written."""
        self._done.append(item)
        if len(self._done) == 1:
            self._event.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._event.wait()
            self._event.clear()
            while self._done:
                await self._pace()
                batch, self._done = self._done[:_BATCH], self._done[_BATCH:]
                self._settling = len(batch)
                self._settled_at = self._clock.monotonic()
                try:
                    await self.settle(batch)
                finally:
                    self._settling = 0
                self._owner.written()
                # A store in this process does not wait, and those who listen have room for so many events at a time.
                await asyncio.sleep(0)

    async def settle(self, items: Sequence[Item]) -> None:
        """Write these, at once."""
        await self._write([(item, self.settlement(item)) for item in items])

    async def _pace(self) -> None:
        """While other runs are under way, a settlement waits a little for their ends to go with it."""
        pause_s = self._settled_at + self._pace_s - self._clock.monotonic()
        if pause_s > 0 and len(self._done) < min(len(self._owner.held), _ENOUGH) and not self.is_hurried:
            await self._clock.sleep(pause_s)

    def settlement(self, item: Item) -> Settlement:
        """What is to be written of it."""
        if type(item) is Settlement:
            return item
        assert isinstance(item, Execution)
        assert item.end is not None
        try:
            settlement, spans = self._ledger.of_run(item, item.end)
        except Exception as error:
            # What cannot be written stays with its job.
            self._logger.exception("job %r is quarantined: its end cannot be told", item.record.id)
            return self._ledger.of_quarantine(item.record, error, self._owner.now())
        if spans and self._announcer.is_heard:
            self._announcer.skipped(item.record, item.definition, spans)
        return settlement

    async def _write(self, pairs: Pairs, *, is_again: bool = False) -> None:
        async def write() -> list[Settled]:
            nonlocal pairs
            pairs = await self._without_zombies(pairs)
            if self._limits.grants:
                # Kept whatever comes next: who has left once moves no line on again.
                pairs = await self._limits.leave(pairs)
                pairs = await self._without_zombies(pairs)
            return await self._store.settle([settlement for _, settlement in pairs]) if pairs else []

        try:
            answers = await self._link.persist(write)
        except Exception as error:
            await self._bisect(pairs, error, is_again=is_again)
            return
        if self._limits.is_used:
            self._limits.settled(pairs, answers)
        for (item, settlement), answer in zip(pairs, answers, strict=True):
            self._owner.settled(item, settlement, answer)

    async def _without_zombies(self, pairs: Pairs) -> Pairs:
        """What may reach the store after its lease is written only if the store says that it is held, and for longer: a successor
        may have run the job and deleted it, and then nothing there would refuse this one. An answer that was long on its way
        says nothing of now."""
        if self._lease_s == math.inf:
            return pairs
        for _ in range(_CHECKS):
            soon = (asked_at := self._clock.monotonic()) + self._lease_s / 4
            doubtful = [
                item for item, _ in pairs if isinstance(item, Execution) and item.trusted_until <= soon
            ]
            if not doubtful:
                break
            lost = await self._lost(doubtful)
            for execution in lost:
                self._owner.lost(execution)
            pairs = [pair for pair in pairs if pair[0] not in lost]
            if self._clock.monotonic() - asked_at < self._lease_s / 2:
                break
        return pairs

    async def _lost(self, doubtful: Sequence[Execution]) -> list[Execution]:
        """Those that the store does not know to be held any more; all others are renewed."""
        # By id: of a job that was removed and added again two runs may have ended, and an answer tells of one claim alone. The
        # older one is refused by its fence.
        records = {e.record.id: e.record for e in sorted(doubtful, key=lambda e: e.record.fence)}
        claims = [Claim(r.id, r.fence, r.holder or "") for r in records.values()]
        versions = (await self._store.renew(claims, self._lease_s)).versions
        # One that was adopted meanwhile stays: it is refused under the old fence, and written under the new one.
        return [
            execution
            for execution in doubtful
            if versions.get(execution.record.id, "lost") == "lost"
            and execution.record.fence == records[execution.record.id].fence
        ]

    async def _bisect(self, pairs: Pairs, error: Exception, *, is_again: bool) -> None:
        """The store refuses something in the batch for good: find it, and settle it without what it cannot take. A quarantine
        needs a person to end it, so nothing is put there that was refused only once."""
        if not pairs:
            return
        if len(pairs) > 1:
            half = len(pairs) // 2
            await self._write(pairs[:half])
            await self._write(pairs[half:])
            return
        if not is_again:
            await self._write(pairs, is_again=True)
            return
        item, refused = pairs[0]
        self._logger.error("the end of job %r cannot be written (%s): it is quarantined", refused.id, error)
        execution = item if isinstance(item, Execution) else None
        for bare in self._ledger.of_poison(execution, refused, error):
            try:
                [answer] = await self._link.persist(partial(self._store.settle, [bare]))
            except Exception:
                continue
            if execution is not None and self._announcer.is_heard:
                self._announcer.quarantined(execution.record, str(error))
            self._owner.settled(item, bare, answer)
            return
        self._logger.critical("job %r could not be settled at all; its lease will end by itself", refused.id)
        self._owner.settled(item, refused, "lost")
