"""Runs that are settled in a transaction of the user's, so that their effect and their completion are one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, cast

from asyncsched.contract import JobStore, Record, Settlement, TransactionalStore
from asyncsched.errors import DefinitionError, LeaseLost
from asyncsched.execution import Execution
from asyncsched.ids import base_id
from asyncsched.ledger import Ledger
from asyncsched.link import Link
from asyncsched.plan import Ended

__all__ = ["Commits", "transactional"]

#: Of the claims of a job that were lost, the newest.
_LOOKED_AT = 10


def transactional(store: JobStore, alias: str) -> TransactionalStore:
    """*store*, if it can join a user's transaction; raises DefinitionError."""
    if not store.capabilities.transactional_add:
        raise DefinitionError(
            f"store {alias!r} ({type(store).__name__}) cannot join a transaction of yours: keep the job in the database that "
            f"the transaction is in, with a PostgreSQL or MySQL store",
            store=alias,
        )
    return cast(TransactionalStore, store)


class Commits:
    """Settles runs of one store in their users' transactions, and finds out afterwards what became of those."""

    def __init__(self, store: JobStore, alias: str, link: Link, ledger: Ledger) -> None:
        self._store = store
        self._alias = alias
        self._link = link
        self._ledger = ledger

    @asynccontextmanager
    async def commit(self, execution: Execution, connection: object) -> AsyncIterator[None]:
        """Settle the run as succeeded, as the last write of the block; raises LeaseLost, and DefinitionError where it is settled
        already: not where the transaction of the block before was rolled back."""
        async with transactional(self._store, self._alias).within(connection) as joined:
            if execution.committed is not None:
                record = execution.record
                if not _is_held((await joined.get([record.id])).get(record.id), record):
                    raise DefinitionError(
                        f"run {record.id}@{record.fence} has committed already: one block of commit() makes up a run"
                    )
            yield
            end = Ended("succeeded", execution.started, max(execution.owner.now(), execution.started))
            settlement = self._settlement(execution, end)
            [answer] = await joined.settle([settlement])
            if answer not in ("done", "stale"):
                raise LeaseLost(
                    f"run {settlement.id}@{settlement.fence} no longer holds its job ({answer}): its transaction must not commit",
                    job_id=settlement.id,
                    store=self._alias,
                )
            execution.committed = end

    def _settlement(self, execution: Execution, end: Ended) -> Settlement:
        """With the result of the block. The run itself has none before it has ended, and may have to be settled otherwise."""
        before, execution.result = execution.result, execution.offered
        try:
            settlement, _ = self._ledger.of_run(execution, end)
        finally:
            execution.result = before
        return settlement

    async def confirm(self, execution: Execution) -> Literal["committed", "rolled back", "lost"]:
        """What became of the transaction of a run that has ended; ``execution.end`` is made to say how the run ended by that."""
        record, end, committed = execution.record, execution.end, execution.committed
        assert end is not None
        assert committed is not None
        there = (await self._link.persist(partial(self._store.get, [record.id]))).get(record.id)
        # One that was adopted meanwhile was claimed anew, which nothing is that is settled.
        if execution.record is not record or _is_held(there, record):
            if execution.reason == "lost" and not execution.is_held_again:
                return "lost"
            if end.outcome == "succeeded":
                execution.fail("the transaction that it committed in was rolled back")
            return "rolled back"
        if there is not None and there.settled < record.fence:
            return "lost"
        if (there is None or there.settled > record.fence) and await self._was_lost(record):
            return "lost"
        if end.outcome != "succeeded":
            execution.host.logger.warning(
                "run %s@%s had committed before it ended otherwise (%s): it counts as succeeded",
                record.id, record.fence, end.error or end.outcome,
            )  # fmt: skip
        execution.end = committed
        execution.result, execution.traceback = execution.offered, None
        return "committed"

    async def _was_lost(self, record: Record) -> bool:
        """Whether a successor has settled the job since, and with it that this claim was lost."""
        ask = partial(self._store.runs, base_id(record.id), ("lost",), _LOOKED_AT)
        return any(entry.fence == record.fence for entry in await self._link.persist(ask))


def _is_held(there: Record | None, record: Record) -> bool:
    """Whether the claim that brought *record* is not settled, nor taken by another."""
    return there is not None and (there.fence, there.holder) == (record.fence, record.holder)
