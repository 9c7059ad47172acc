"""Runs that are settled in a transaction of the user's, so that their effect and their completion are one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, cast

from asyncsched.contract import JobStore, TransactionalStore
from asyncsched.errors import DefinitionError, LeaseLost
from asyncsched.execution import Execution
from asyncsched.ledger import Ledger
from asyncsched.link import Link
from asyncsched.plan import Ended

__all__ = ["Commits", "transactional"]


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
        """Settle the run as succeeded, as the last write of the block; raises LeaseLost."""
        async with transactional(self._store, self._alias).within(connection) as joined:
            yield
            end = Ended("succeeded", execution.started, max(execution.owner.now(), execution.started))
            settlement, _ = self._ledger.of_run(execution, end)
            [answer] = await joined.settle([settlement])
            if answer not in ("done", "stale"):
                raise LeaseLost(
                    f"run {settlement.id}@{settlement.fence} no longer holds its job ({answer}): its transaction must not commit",
                    job_id=settlement.id,
                    store=self._alias,
                )
            execution.committed = end

    async def confirm(self, execution: Execution) -> Literal["committed", "rolled back", "lost"]:
        """What became of the transaction of a run that has ended; ``execution.end`` is made to say how the run ended by that."""
        record, end, committed = execution.record, execution.end, execution.committed
        assert end is not None
        assert committed is not None
        there = (await self._link.persist(partial(self._store.get, [record.id]))).get(record.id)
        if there is not None and (there.fence, there.holder) == (record.fence, record.holder):
            if end.outcome == "succeeded":
                execution.fail("the transaction that it committed in was rolled back")
            return "rolled back"
        if there is not None and there.settled < record.fence:
            return "lost"
        if end.outcome != "succeeded":
            execution.host.logger.warning(
                "run %s@%s had committed before it ended otherwise (%s): it counts as succeeded",
                record.id, record.fence, end.error or end.outcome,
            )  # fmt: skip
        execution.end = committed
        execution.traceback = None
        return "committed"
