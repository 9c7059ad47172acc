"""runs and prune: a document for each entry of the log, named as it is unique."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

from asyncsched.contract import Entry
from asyncsched.stores.firestore import _wire as wire
from asyncsched.stores.firestore._names import LOG, to_us
from asyncsched.stores.firestore._records import entry_of
from asyncsched.stores.firestore._server import Server, in_parallel

__all__ = ["Log"]

_PIECE = 400
#: Kinds that one query may name.
_KINDS = 30
#: Entries that a prune by count looks at.
_SWEEP = 1_000


class Log:
    """Entries by time, and by job and time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._names = server.names
        #: The name up to which the log was looked at for jobs with too many entries.
        self._swept: str | None = None

    async def runs(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        filters: list[wire.Filter] = [] if job_id is None else [("job", "==", job_id)]
        behind: list[tuple[str, wire.Value]] | None = None
        if before is not None:
            behind = [("at", to_us(before.at)), ("__name__", self._names.entry(before))]
        if kinds is None:
            return await self._newest(filters, limit, behind)
        asked = list(dict.fromkeys(kinds))
        pieces = [asked[i : i + _KINDS] for i in range(0, len(asked), _KINDS)]
        answers = await in_parallel(
            [partial(self._newest, [*filters, ("kind", "in", piece)], limit, behind) for piece in pieces]
        )
        found = [entry for entries in answers for entry in entries]
        if len(answers) > 1:
            found.sort(key=lambda e: (to_us(e.at), self._names.entry(e)), reverse=True)
        return found[:limit]

    async def _newest(
        self, filters: Sequence[wire.Filter], limit: int, behind: Sequence[tuple[str, wire.Value]] | None
    ) -> list[Entry]:
        found, _ = await self._server.query(
            wire.query(LOG, filters, ["-at", "-__name__"], limit, behind=behind)
        )
        return [entry_of(document) for document in found]

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        if older_than_s is not None:
            before_us = await self._server.now_us() - to_us(older_than_s)
            old, _ = await self._server.query(
                wire.query(LOG, [("at", "<", before_us)], ["at", "__name__"], limit, fields=[])
            )
            pruned = await self._delete([document.name for document in old])
        if per_job is not None and pruned < limit:
            pruned += await self._prune_crowded(per_job, limit - pruned)
        return pruned

    async def _prune_crowded(self, per_job: int, limit: int) -> int:
        """Look at the next stretch of the log only, so that a call costs as much whatever the size of the log.

        The entries of one job stand together, as their names begin with it. The last in a stretch may go on behind it, so it is
        the first of the next; where it fills the whole stretch, its newest are asked for.
        """
        behind: list[tuple[str, wire.Value]] | None = (
            None if self._swept is None else [("__name__", self._swept)]
        )
        found, _ = await self._server.query(
            wire.query(LOG, [], ["__name__"], _SWEEP, fields=["job", "at"], behind=behind)
        )
        jobs = [list(group) for _, group in groupby(found, key=lambda d: wire.value_of(d, "job"))]
        is_end = len(found) < _SWEEP
        if not is_end and len(jobs) > 1:
            jobs.pop()
        crowded: list[str] = []
        for place, entries in enumerate(jobs):
            newest = sorted(map(_order, entries), reverse=True)
            if place == 0 and (self._swept is not None or (len(jobs) == 1 and not is_end)):
                kept = await self._newest_of(wire.value_of(entries[0], "job"), per_job)
                crowded += [
                    name for at, name in reversed(newest) if len(kept) == per_job and (at, name) not in kept
                ]
            else:
                crowded += [name for _, name in reversed(newest[per_job:])]
        pruned = await self._delete(crowded[:limit])
        if len(crowded) <= limit:
            self._swept = None if is_end else jobs[-1][-1].name
        return pruned

    async def _newest_of(self, job_id: str, count: int) -> set[tuple[int, str]]:
        if count < 1:
            return set()
        order = ["-at", "-__name__"]
        found, _ = await self._server.query(
            wire.query(LOG, [("job", "==", job_id)], order, count, fields=["at"])
        )
        return set(map(_order, found))

    async def _delete(self, names: Sequence[str]) -> int:
        """How many of them went; another may have deleted some meanwhile."""
        pieces = [names[i : i + _PIECE] for i in range(0, len(names), _PIECE)]
        answers: list[list[Any]] = await in_parallel(
            [partial(self._server.batch, [wire.deletion(name) for name in piece]) for piece in pieces]
        )
        return sum(at_us is not None for written in answers for at_us in written)


def _order(document: Any) -> tuple[int, str]:
    return (document.fields["at"].integer_value, document.name)
