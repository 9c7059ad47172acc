"""What is due, in the order of the lanes, in as few queries as may be; and when something is planned next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from asyncsched.stores.firestore import _wire as wire
from asyncsched.stores.firestore._names import HELD, JOBS, LANE, NEVER, SECOND
from asyncsched.stores.firestore._server import Server, both, in_parallel

__all__ = ["SLACK_US", "Found", "Look", "Looking"]

#: A query is made of so many plain ones at the most.
_COMBINATIONS = 30
_PRIORITIES = tuple(range(9, -1, -1))
#: The server's time may be so much later than is reckoned here: its answers take a while.
SLACK_US = SECOND // 10


class Found(NamedTuple):
    """A document, with what its place in the order is."""

    wake: int
    queue: str
    priority: int
    document: Any


class Lanes(NamedTuple):
    """Each of these queues with each of these priorities; both in the order in which they are served."""

    queues: tuple[str, ...]
    priorities: tuple[int, ...]


class _Busy(NamedTuple):
    """Lanes of a queue that have more than a claim may take."""

    #: This one has, and nothing stood in the way of it.
    plain: int | None
    #: From the highest down to this one.
    lowest: int | None


class Look:
    """What one round of a claim takes for due, and what it has passed over."""

    def __init__(self, about_us: int, ahead_us: int) -> None:
        self.ahead_us = ahead_us
        #: Up to where is asked; the server's own time, which comes with the answer, decides.
        self.horizon_us = min(about_us + ahead_us + SLACK_US, NEVER - 1)
        #: The instants of what is not due yet, or held by a live lease.
        self.passed: list[int] = []

    def is_claimable(self, found: Found, now_us: int) -> bool:
        if found.wake <= now_us:
            return True
        return found.wake <= now_us + self.ahead_us and wire.value_of(found.document, "holder") is None


class Looking:
    """Queries for what is due."""

    def __init__(self, server: Server) -> None:
        self._server = server
        #: By queue: where more was found than a claim could take, the last time.
        self._busiest: dict[str, _Busy] = {}
        #: By queue: when no lease had ended.
        self._none_expired: dict[str, int] = {}

    async def first(self, queues: tuple[str, ...]) -> tuple[int, int]:
        """The earliest instant at which something is planned, held or not, and the server's time."""
        found, now_us = await self._by_time(queues, [("wake", "<", NEVER)], 1, fields=["wake"])
        return (found[0].wake if found else NEVER), now_us

    async def next(self, queues: tuple[str, ...], behind_us: int) -> int:
        """The earliest instant behind *behind_us* at which something is planned."""
        wakes: list[wire.Filter] = [("wake", ">", behind_us), ("wake", "<", NEVER)]
        found, _ = await self._by_time(queues, wakes, 1, fields=["wake"])
        return found[0].wake if found else NEVER

    async def due(
        self, queues: tuple[str, ...], limit: int, look: Look
    ) -> tuple[list[Found], int | None, int]:
        """Up to *limit* claimable documents in the order of the lanes; the instant of one that is left, None if there is none;
        and the server's time.

        All lanes are asked at once, by time alone: no more than may be taken is all there is. Of more, what stands first is asked
        for. A queue that had as much the last time is asked for that at once.
        """
        queue = queues[0] if len(queues) == 1 and limit else None
        if queue is not None and queue in self._busiest:
            found, now_us = await self._first_of(queue, self._busiest.pop(queue), limit, look)
            if len(found) > limit:
                return found[:limit], found[limit].wake, now_us
        sample, now_us = await self._claimable(partial(self._due_by_time, queues, look), limit + 1, look)
        if len(sample) <= limit:
            return _in_order(sample, queues), None, now_us
        if not limit:
            return [], sample[0].wake, now_us
        priorities = {found.priority for found in sample}
        taken: list[Found] = []
        if queue is not None:
            taken, _ = await self._first_of(queue, _Busy(max(priorities), min(priorities)), limit, look)
        if len(taken) < limit:
            taken, expired = await both(
                partial(self._walk, Lanes(queues, _PRIORITIES), limit, look),
                partial(self._expired, queues, limit, look),
            )
            taken = _in_order([*taken, *expired], queues)
        names = {found.document.name for found in taken[:limit]}
        left_us = min((found.wake for found in sample if found.document.name not in names), default=now_us)
        return taken[:limit], left_us, now_us

    async def _first_of(self, queue: str, busy: _Busy, limit: int, look: Look) -> tuple[list[Found], int]:
        """More than *limit* claimable documents that stand first in the queue, or fewer if there are not so many down to the end
        of the lanes that are *busy*."""
        (found, now_us), expired = await both(
            partial(self._unheld_first_of, queue, busy, limit, look),
            partial(self._expired, (queue,), limit, look),
        )
        if len(found) <= limit:
            return [], now_us
        return _in_order([*found, *expired], (queue,)), now_us

    async def _unheld_first_of(
        self, queue: str, busy: _Busy, limit: int, look: Look
    ) -> tuple[list[Found], int]:
        if busy.plain is not None:
            # All down to the due end of that lane, at a single place of the index. It is of no use where higher lanes have many
            # that are not due.
            within = [(0, (9 - busy.plain) * LANE + look.horizon_us)]
            found, now_us = await self._by_rank((queue,), within, limit + 1)
            claimable = [each for each in found if look.is_claimable(each, now_us)]
            if len(claimable) > limit:
                self._busiest[queue] = _Busy(busy.plain, None)
            if len(claimable) > limit or busy.lowest is None:
                return claimable, now_us
        assert busy.lowest is not None
        lanes = Lanes((queue,), tuple(range(9, busy.lowest - 1, -1)))
        found, now_us = await self._claimable(partial(self._due_by_rank, lanes, look), limit + 1, look)
        if len(found) > limit:
            self._busiest[queue] = _Busy(None, found[limit].priority)
        return found, now_us

    async def _expired(self, queues: tuple[str, ...], limit: int, look: Look) -> list[Found]:
        """The first of those whose lease has ended. Where there was none they are looked for again a second later only."""
        about_us = look.horizon_us
        if all(about_us < self._none_expired.get(queue, 0) + SECOND for queue in queues):
            return []
        found, now_us = await self._by_rank(queues, [(HELD, HELD + about_us)], limit)
        expired = [each for each in found if each.wake <= now_us]
        for queue in queues:
            self._none_expired[queue] = 0 if expired else about_us
        return expired

    async def _walk(self, lanes: Lanes, room: int, look: Look) -> list[Found]:
        """The first *room* claimable documents of *lanes* that nobody holds."""
        if room < 1 or not lanes.queues or not lanes.priorities:
            return []
        # Of the lane that comes first in it, and of each before, this has the beginning.
        sample, _ = await self._claimable(partial(self._due_by_rank, lanes, look), room + 1, look)
        if len(sample) <= room or len(lanes.queues) == 1:
            return _in_order(sample, lanes.queues)[:room]
        # What is over may be of another queue than the one that is served first.
        lowest = sample[-1].priority
        taken = _in_order([each for each in sample if each.priority > lowest], lanes.queues)
        for queue in lanes.queues:
            taken += await self._walk(Lanes((queue,), (lowest,)), room - len(taken), look)
        return taken

    # -- queries -------------------------------------------------------------------------------------------------------

    async def _claimable(
        self,
        ask: Callable[[int, Found | None], Awaitable[tuple[list[Found], int]]],
        limit: int,
        look: Look,
    ) -> tuple[list[Found], int]:
        """Up to *limit* claimable documents of those that *ask* gives, and the server's time.

        Leases that end within the look ahead are left out here, and what stands behind them is asked for.
        """
        claimable: list[Found] = []
        last: Found | None = None
        while True:
            room = limit - len(claimable)
            found, now_us = await ask(room, last)
            claimable += _claimable_of(found, look, now_us)
            if len(claimable) >= limit or len(found) < room:
                return claimable, now_us
            last = found[-1]

    async def _due_by_time(
        self, queues: tuple[str, ...], look: Look, limit: int, last: Found | None
    ) -> tuple[list[Found], int]:
        behind = None if last is None else _behind("wake", last)
        return await self._by_time(queues, [("wake", "<=", look.horizon_us)], limit, behind=behind)

    async def _due_by_rank(
        self, lanes: Lanes, look: Look, limit: int, last: Found | None
    ) -> tuple[list[Found], int]:
        starts = [(9 - priority) * LANE for priority in lanes.priorities]
        within = [(start, start + look.horizon_us) for start in starts]
        return await self._by_rank(
            lanes.queues, within, limit, None if last is None else _behind("rank", last)
        )

    async def _by_time(
        self,
        queues: tuple[str, ...],
        wakes: Sequence[wire.Filter],
        limit: int,
        *,
        fields: Sequence[str] | None = None,
        behind: Sequence[tuple[str, wire.Value]] | None = None,
    ) -> tuple[list[Found], int]:
        return await self._ask(
            queues,
            "wake",
            _COMBINATIONS,
            limit,
            lambda some: wire.query(
                JOBS,
                [("queue", "in", some), *wakes],
                ["wake", "__name__"],
                limit,
                fields=fields,
                behind=behind,
            ),
        )

    async def _by_rank(
        self,
        queues: tuple[str, ...],
        within: Sequence[tuple[int, int]],
        limit: int,
        behind: Sequence[tuple[str, wire.Value]] | None = None,
    ) -> tuple[list[Found], int]:
        return await self._ask(
            queues,
            "rank",
            _COMBINATIONS // len(within),
            limit,
            lambda some: wire.query(
                JOBS,
                [("queue", "in", some)],
                ["rank", "__name__"],
                limit,
                behind=behind,
                within=("rank", within),
            ),
        )

    async def _ask(
        self,
        queues: tuple[str, ...],
        order: str,
        step: int,
        limit: int,
        query: Callable[[tuple[str, ...]], Any],
    ) -> tuple[list[Found], int]:
        """The first of what the queries for *step* queues each give together, and the server's time."""
        some = [queues[start : start + step] for start in range(0, len(queues), step)]
        answers = await in_parallel([partial(self._server.query, query(each)) for each in some])
        documents = [document for found, _ in answers for document in found]
        if len(answers) > 1:
            documents.sort(key=lambda d: (d.fields[order].integer_value, d.name))
        return [_found(document) for document in documents[:limit]], answers[0][1]


def _found(document: Any) -> Found:
    fields = document.fields
    return Found(
        fields["wake"].integer_value, fields["queue"].string_value, fields["priority"].integer_value, document
    )


def _claimable_of(found: Iterable[Found], look: Look, now_us: int) -> list[Found]:
    claimable = []
    for each in found:
        if look.is_claimable(each, now_us):
            claimable.append(each)
        else:
            look.passed.append(each.wake)
    return claimable


def _behind(order: str, last: Found) -> list[tuple[str, wire.Value]]:
    return [(order, last.document.fields[order].integer_value), ("__name__", last.document.name)]


def _in_order(found: Iterable[Found], queues: tuple[str, ...]) -> list[Found]:
    """In the order of the lanes, and within one by (wake_at, id); one that has moved between two queries is there once."""
    places = {queue: place for place, queue in enumerate(queues)}
    once = {each.document.name: each for each in found}
    return sorted(
        once.values(),
        key=lambda each: (-each.priority, places[each.queue], each.wake, each.document.name),
    )
