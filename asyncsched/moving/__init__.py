"""Jobs from one store to another: copied whole, and compared afterwards.

The source is only read: nothing of it is claimed, changed or removed. What is copied keeps its id, birth, version, fence and
progress, so that a copy which is repeated finds what was written before, and compares it. The target's fences go on above all
that the source has given.
"""

from __future__ import annotations

from asyncsched.contract import JobStore
from asyncsched.errors import ConflictError, StoreError
from asyncsched.instances import instances_of
from asyncsched.moving._history import compare_history, copy_history
from asyncsched.moving._reading import Ids, Progress, Sum, content, is_empty, pages, tell, tried
from asyncsched.moving._records import Comparison, copy, let_go, ran
from asyncsched.moving._tenure import Tenure, alone, raise_fences
from asyncsched.moving._values import Found, Migration, Survey

__all__ = ["Found", "Migration", "Progress", "Survey", "migrate", "survey"]


async def survey(
    source: JobStore, target: JobStore, *, exists: bool = True, progress: Progress | None = None
) -> Survey:
    """Look at both stores, which are open, and write nothing. A target that does not *exist* yet is not asked."""
    return await _look(source, target, await tried(source.now), exists, None, progress)


async def migrate(
    source: JobStore,
    target: JobStore,
    *,
    history: bool = False,
    while_running: bool = False,
    progress: Progress | None = None,
) -> Migration:
    """Copy the jobs of *source* to *target*, and with *history* its log; both are open. May be repeated at any time.

    Before anything is copied it raises ConflictError if instances were seen on the source within three of their heartbeats, or
    jobs of it are held under leases that have not ended (unless *while_running*), or another migration is at work on one of the
    stores, and StoreError if a record is too large for the target, or the target does not keep the contract's rule of fences.
    What else is amiss stands in the answer: see ``Migration.is_whole``.
    """
    async with alone(source, target) as tenure:
        now = await tried(source.now)
        first = await _look(source, target, now, True, tenure, progress)
        _refuse(first, target, while_running)
        await raise_fences(target, max(first.fence, tenure.fence), first.queues)
        added = done = 0
        async for page in pages(source):
            await tenure.keep()
            added += await copy([let_go(record, now) for record in page], target, source)
            done += len(page)
            tell(progress, "copying", done, first.jobs)
        if history:
            await copy_history(source, target, tenure, progress)
        return await _compare(source, target, first, added, now, history, tenure, progress)


async def _look(
    source: JobStore,
    target: JobStore,
    now: float,
    exists: bool,
    tenure: Tenure | None,
    progress: Progress | None,
) -> Survey:
    bound = target.capabilities.largest_record
    total, comparison, live, too_large = Sum(), Comparison(), Ids(), Ids()
    queues: set[str] = set()
    fence = 0
    async for page in pages(source):
        if tenure is not None:
            await tenure.keep()
        for record in page:
            queues.add(record.queue)
            fence = max(fence, record.fence)
            total.add(content(let_go(record, now)))
            if record.holder is not None and (record.wake_at is None or record.wake_at > now):
                live.add(record.id)
            if bound is not None and len(record.body) + len(record.cursor) > bound:
                too_large.add(record.id)
        if exists:
            await comparison.compare([let_go(record, now) for record in page], target, source)
        tell(progress, "reading", total.count, None)
    return Survey(
        jobs=total.count,
        digest=total.digest,
        to_add=comparison.missing.count if exists else total.count,
        same=comparison.same.count,
        different=comparison.different.found,
        taken=comparison.taken.found,
        ran=comparison.ran.found,
        live=live.found,
        instances=await _alive(source, now),
        too_large=too_large.found,
        fence=fence,
        queues=tuple(sorted(queues)),
        target_is_empty=not exists or await is_empty(target),
    )


async def _alive(source: JobStore, now: float) -> Found:
    """The instances that a store knows to be alive."""
    alive = Ids()
    for instance in await tried(instances_of, source, "", now):
        if instance.is_alive:
            alive.add(instance.id)
    return alive.found


def _refuse(first: Survey, target: JobStore, while_running: bool) -> None:
    if first.instances and not while_running:
        raise ConflictError(
            f"instances are alive on the source: {first.instances.count} were seen within three of their heartbeats "
            f"({first.instances}); stop them, or, where they are dead, wait until they are missed"
        )
    if first.live and not while_running:
        raise ConflictError(
            f"instances are alive on the source: they hold {first.live.count} of its jobs under leases that have not ended "
            f"({first.live}); stop the instances, or, where they are dead, wait for the leases to end"
        )
    if first.too_large:
        raise StoreError(
            f"larger than the {target.capabilities.largest_record} bytes that {type(target).__name__} takes of body and cursor "
            f"together: {first.too_large.count} of the jobs ({first.too_large}); nothing was copied"
        )


async def _compare(
    source: JobStore,
    target: JobStore,
    first: Survey,
    added: int,
    now: float,
    history: bool,
    tenure: Tenure,
    progress: Progress | None,
) -> Migration:
    """Read both sides once more, each against the other."""
    total, comparison, only_on_target, ran_on_source = Sum(), Comparison(), Ids(), Ids()
    async for page in pages(source):
        await tenure.keep()
        records = [let_go(record, now) for record in page]
        for record in records:
            total.add(content(record))
        await comparison.compare(records, target, source)
        tell(progress, "comparing", total.count, first.jobs)
    async for page in pages(target):
        await tenure.keep()
        there = await tried(source.get, [record.id for record in page])
        gone = [record for record in page if record.id not in there]
        ran_there = await ran(gone, source)
        for record in gone:
            (ran_on_source if record.id in ran_there else only_on_target).add(record.id)
    log = await compare_history(source, target, tenure, progress) if history else None
    return Migration(
        jobs=total.count,
        digest=total.digest,
        added=added,
        same=comparison.same.count,
        target_digest=comparison.same.digest,
        different=comparison.different.found,
        taken=comparison.taken.found,
        ran=comparison.ran.found,
        missing=comparison.missing.found,
        only_on_target=only_on_target.found,
        ran_on_source=ran_on_source.found,
        target_was_empty=first.target_is_empty,
        has_changed=(total.count, total.digest) != (first.jobs, first.digest),
        history=log,
    )
