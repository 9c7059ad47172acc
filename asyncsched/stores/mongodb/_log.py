"""The log: what was settled, newest first, for as long as it is kept."""

from __future__ import annotations

from collections.abc import Sequence

from asyncsched.contract import Entry
from asyncsched.stores.mongodb._batches import Batches
from asyncsched.stores.mongodb._documents import Keys, entry_of
from asyncsched.stores.mongodb._server import Document, Names, Server
from asyncsched.stores.mongodb._time import ServerTime

__all__ = ["Log"]

#: Entries that one call of prune looks at for crowded jobs; the next call goes on behind them.
_SWEEP = 10_000
_PIECE = 1_000


class Log:
    """The log of one namespace."""

    def __init__(self, server: Server, names: Names, keys: Keys, time: ServerTime, batches: Batches) -> None:
        self._server, self._names, self._keys, self._time, self._batches = server, names, keys, time, batches
        #: The place in the log by jobs up to which crowded ones were looked for.
        self._swept = ""

    async def runs(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        # What counts already is logged before the log is read: a job that is seen to be gone has its last run here.
        await self._batches.finish_quietly(await self._batches.pending())
        order = "by_time" if job_id is None else "by_job"
        which: Document = {order: self._keys.all() if job_id is None else self._keys.job_log(job_id)}
        if before is not None:
            which[order]["$lt"] = self._keys.behind(before, job_id)
        if kinds is not None:
            which["kind"] = {"$in": list(kinds)}
        command: Document = {
            "find": self._names.log, "filter": which, "sort": {order: -1}, "limit": limit, "hint": order,
        }  # fmt: skip
        return [entry_of(found) for found in await self._server.rows(command)] if limit > 0 else []

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        if older_than_s is not None:
            which = {"by_time": self._keys.times_before(self._time.estimate() - older_than_s)}
            pruned = await self._delete(which, "by_time", 1, 0, limit)
        if per_job is not None and pruned < limit:
            pruned += await self._prune_crowded(per_job, limit - pruned)
        return pruned

    async def _prune_crowded(self, per_job: int, limit: int) -> int:
        pruned = 0
        for job_id, count in await self._sweep():
            if count > per_job and pruned < limit:
                which = {"by_job": self._keys.job_log(job_id)}
                pruned += await self._delete(which, "by_job", -1, per_job, limit - pruned)
                if pruned >= limit:
                    self._swept = ""  # Look here again.
        return pruned

    async def _sweep(self) -> list[tuple[str, int]]:
        """The next jobs in the log, and how many entries of theirs were seen."""
        bounds = self._keys.all()
        if self._swept:
            bounds["$gt"] = self._swept
            del bounds["$gte"]
        command: Document = {
            "find": self._names.log, "filter": {"by_job": bounds}, "sort": {"by_job": 1}, "limit": _SWEEP, "hint": "by_job",
            "projection": {"job": 1, "by_job": 1, "_id": 0},
        }  # fmt: skip
        counts: dict[str, int] = {}
        starts: dict[str, str] = {}
        last = self._swept
        for found in await self._server.rows(command):
            starts.setdefault(found["job"], last)
            counts[found["job"]] = counts.get(found["job"], 0) + 1
            last = found["by_job"]
        if sum(counts.values()) < _SWEEP:
            self._swept = ""
        else:
            # The last one may be cut off: it comes first the next time, unless it is all that was seen.
            self._swept = starts[next(reversed(starts))] if len(starts) > 1 else last
        return list(counts.items())

    async def _delete(self, which: Document, order: str, direction: int, skip: int, limit: int) -> int:
        """Delete up to *limit* entries that match, in that order, after the first *skip*."""
        command: Document = {
            "find": self._names.log, "filter": which, "sort": {order: direction}, "skip": skip, "limit": limit,
            "projection": {"_id": 1}, "hint": order,
        }  # fmt: skip
        ids = [found["_id"] for found in await self._server.rows(command)] if limit > 0 else []
        deleted = 0
        for start in range(0, len(ids), _PIECE):
            chosen = {"_id": {"$in": ids[start : start + _PIECE]}}
            answer = await self._server.write(
                {"delete": self._names.log, "deletes": [{"q": chosen, "limit": 0}]}
            )
            deleted += answer["n"]
        return deleted
