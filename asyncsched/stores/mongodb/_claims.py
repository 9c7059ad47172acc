"""Claims and renewals.

A claim is two round trips, look and take; a third, where others took some of it; and one alone, where nothing is due.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from asyncsched.contract import Claim, Claimed, Renewal
from asyncsched.errors import SchemaError
from asyncsched.stores.mongodb._batches import GRACE_S, Batches
from asyncsched.stores.mongodb._documents import Keys, literal, record_of
from asyncsched.stores.mongodb._server import Document, Names, Server
from asyncsched.stores.mongodb._time import ServerTime

__all__ = ["Claims"]

#: Queues of one look. MongoDB reads up to 200 lanes of an index side by side in one order.
_QUEUES = 20
#: Claims that one command renews.
_PIECE = 500
#: Jobs of so many different states are taken as they were seen.
_STATES = 5
#: Fence, holder and version.
_State = tuple[int, str | None, int]
_INFINITY = float("inf")


class _Look(NamedTuple):
    """What was found: held by the token already, due, and the earliest wake time of what is neither.

    More may be due of priorities from *cut* on (their digit in a lane's name); None: this is all.
    """

    held: list[Document]
    due: list[Document]
    cut: str | None
    head: float | None
    #: The batches that are under way, and those of them that were left.
    pending: set[str]
    left: list[str]
    #: The instant to go by, and the least fence of a claim that is made now.
    now: float
    fence: int


class Claims:
    """Claims of one namespace."""

    def __init__(self, server: Server, names: Names, keys: Keys, time: ServerTime, batches: Batches) -> None:
        self._server, self._names, self._keys, self._time, self._batches = server, names, keys, time, batches

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float
    ) -> Claimed:
        holder = self._keys.of(token)
        look = await self._look(queues, holder, limit, ahead_s)
        if look.left:
            await self._batches.finish_quietly(look.left)
        # What has expired meanwhile is claimed anew, with all else that is due.
        taken = [d for d in look.held if d["wake"] is not None and d["wake"] > look.now]
        room = limit - len(taken)
        wanted = await self._in_order(look, queues, room, ahead_s) if look.due and room > 0 else []
        await self._finish_pending([*taken, *wanted], look.pending)
        head = look.head
        if wanted:
            more, head = await self._take(wanted, look, queues, holder, lease_s, ahead_s)
            taken += more
        elif look.due:  # There was no room for any.
            head = _earliest([head, *(d["wake"] for d in look.due)])
        head = None if head is None or head == _INFINITY else head
        return Claimed([record_of(d, self._keys) for d in taken], head, look.now)

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        versions: dict[str, int | Literal["busy", "lost"]] = {}
        now = None
        for start in range(0, max(len(claims), 1), _PIECE):
            piece = claims[start : start + _PIECE]
            found, at = await self._renew(piece, lease_s)
            now = at if now is None else now
            for id, fence, holder in piece:
                document = found.get(self._keys.of(id))
                is_held = (
                    document is not None
                    and document["fence"] == fence
                    and document["holder"] == self._keys.of(holder)
                )
                versions[id] = document["version"] if document is not None and is_held else "lost"
        assert now is not None
        return Renewal(versions, now)

    # -- looking -------------------------------------------------------------------------------------------------------

    async def _look(self, queues: Sequence[str], holder: str, limit: int, ahead_s: float) -> _Look:
        now = self._time.estimate()
        held: list[Document] = []
        due: list[Document] = []
        own: dict[str, Document] = {}
        heads: list[float] = []
        cuts: list[str] = []
        for start in range(0, len(queues), _QUEUES):
            lanes = self._keys.lanes(queues[start : start + _QUEUES])
            others = _head(lanes, _unclaimable(now, ahead_s))
            stages = [*self._due(lanes, limit + 1, now, ahead_s), _and(self._names.jobs, others)]
            if not start:
                mine: list[Document] = [{"$match": {"holder": holder}}, {"$set": {"mine": True}}]
                stages.append(_and(self._names.jobs, mine))
            # Behind what was found: what had been settled by then has a batch that is seen, or over.
            stages.append(_and(self._names.jobs, self._own()))
            found = 0
            for d in await self._server.aggregate(self._names.jobs, stages, hint="lane"):
                if "head" in d:
                    heads.append(d["head"])
                elif "birth" not in d:
                    own[d["_id"]] = d
                elif "mine" in d:
                    held.append(d)
                else:
                    due.append(d)
                    found += 1
            if found > limit:
                cuts.append(self._digit(due[-1]["lane"]))
        told = own.pop(self._keys.own, None)
        if told is None:
            raise SchemaError(
                f"namespace {self._keys.namespace!r} of {self._server.name} was erased: open the store anew"
            )
        at = self._time.anchor(told["now"])
        self._time.lead_us = max(self._time.lead_us, int(told.get("lead", 0)))
        fence = int(told["now"]) * 1000 + self._time.lead_us
        left = [id for id, d in own.items() if d["at"] < now - GRACE_S]
        return _Look(held, due, min(cuts, default=None), _earliest(heads), set(own), left, at, fence)

    def _own(self) -> list[Document]:
        """The namespace's own document, which is always there, tells the time; and its batches, of which there are few."""
        shown = {"at": 1, "lead": 1, "now": {"$toLong": "$$NOW"}}
        return [{"$match": {"_id": self._keys.owned()}}, {"$project": shown}]

    def _digit(self, lane: str) -> str:
        return lane[len(self._keys.namespace) + 1]

    def _due(self, lanes: Sequence[str], limit: int, now: float, ahead_s: float) -> list[Document]:
        return [
            {"$match": {"lane": {"$in": list(lanes)}, **_claimable(now, ahead_s)}},
            {"$sort": {"lane": 1, "wake": 1, "_id": 1}},
            {"$limit": limit},
        ]

    async def _in_order(
        self, look: _Look, queues: Sequence[str], room: int, ahead_s: float
    ) -> list[Document]:
        """The first *room* due ones: from the highest priority down, and queues in the order given.

        A look gives lanes in the order of their names. Where it is full, those of the last priority in it are read anew, in the
        order that was asked for.
        """
        rank = {queue: place for place, queue in reversed(list(enumerate(queues)))}
        start = len(self._keys.namespace) + 1

        def place(d: Document) -> tuple[str, int, float, str]:
            lane = d["lane"]
            return lane[start], rank[lane[start + 1 :]], d["wake"], d["_id"]

        due = sorted(look.due, key=place)
        cut = look.cut
        if len(queues) == 1 or cut is None:
            return due[:room]
        chosen = [d for d in due if d["lane"][start] < cut][:room]
        lanes = [f"{self._keys.of(cut)}{queue}" for queue in sorted(rank, key=rank.__getitem__)]
        for first in range(0, len(lanes), _QUEUES):
            if len(chosen) < room:
                pieces = [
                    self._due([lane], room - len(chosen), look.now, ahead_s)
                    for lane in lanes[first : first + _QUEUES]
                ]
                stages = [
                    *pieces[0],
                    *(_and(self._names.jobs, piece) for piece in pieces[1:]),
                    {"$limit": room - len(chosen)},
                ]
                # What was settled since the look has batches that were not seen there.
                stages.append(_and(self._names.jobs, self._own()))
                found = await self._server.aggregate(self._names.jobs, stages, hint="lane")
                chosen += sorted((d for d in found if "birth" in d), key=place)
                look.pending.update(d["_id"] for d in found if "birth" not in d)
        return chosen

    # -- taking --------------------------------------------------------------------------------------------------------

    async def _take(
        self,
        wanted: Sequence[Document],
        look: _Look,
        queues: Sequence[str],
        holder: str,
        lease_s: float,
        ahead_s: float,
    ) -> tuple[list[Document], float | None]:
        """Take those that are claimable still; with the earliest wake time that is then left."""
        ids = [d["_id"] for d in wanted]
        lanes = self._keys.lanes(queues)
        still = {"lane": {"$in": lanes}, **_claimable(look.now, ahead_s)}
        states: dict[_State, list[Document]] = {}
        for d in wanted:
            states.setdefault((d["fence"], d["holder"], d["version"]), []).append(d)
        # Where they are in a few states, each is taken as it was seen, and nothing needs to be read again.
        few = len(states) <= _STATES
        if few:
            updates = [
                _as_seen(group, state, look, still, holder, lease_s) for state, group in states.items()
            ]
        else:
            updates = [self._as_they_are(ids, still, holder, lease_s)]
        answer = await self._server.write({"update": self._names.jobs, "updates": updates, "ordered": False})
        lost: list[Document] = []
        if few and answer["n"] == len(wanted):
            taken = [_taken(d, look, holder, lease_s) for d in wanted]
        else:
            which = {"_id": {"$in": ids}}
            found = await self._server.rows({"find": self._names.jobs, "filter": which})
            there = {d["_id"]: d for d in found if d["holder"] == holder}
            taken = [there[id] for id in ids if id in there]
            # What others hold now, or have changed and left due.
            lost = [d for d in found if d["holder"] != holder and d["lane"] in lanes]
            if _batches_of(taken):
                await self._finish_pending(taken, await self._batches.of(_batches_of(taken)))
        # Where more is due than was asked for, one of it was seen, and that it is due is all that its wake time tells.
        chosen = set(ids)
        others = [d["wake"] for d in look.due if d["_id"] not in chosen]
        return taken, _earliest([look.head, *others, *(d["wake"] for d in [*taken, *lost])])

    def _as_they_are(self, ids: Sequence[str], still: Document, holder: str, lease_s: float) -> Document:
        """The statement that takes those that are claimable still, whatever else has become of them meanwhile."""
        change = {
            "holder": literal(holder),
            "fence": {"$max": [{"$add": ["$fence", 1]}, self._time.fence()]},
            "wake": {"$add": [self._time.expression(), lease_s]},
            "tries": {"$add": ["$tries", 1]},
            "prior": {"$cond": [{"$gt": ["$holder", None]}, "$fence", "$prior"]},
        }
        return {"q": {"_id": {"$in": list(ids)}, **still}, "u": [{"$set": change}], "multi": True}

    async def _finish_pending(self, taken: Sequence[Document], pending: Iterable[str]) -> None:
        """A job is handed out only once what its last settlement did is done: the next one will put its own mark over that."""
        unfinished = _batches_of(taken) & set(pending)
        if unfinished:
            await self._batches.finish(unfinished)

    async def _renew(self, claims: Sequence[Claim], lease_s: float) -> tuple[dict[str, Document], float]:
        groups: dict[tuple[int, str], list[str]] = {}
        for id, fence, holder in claims:
            groups.setdefault((fence, self._keys.of(holder)), []).append(self._keys.of(id))
        end = {"$add": [self._time.expression(), lease_s]}
        updates = [
            {
                "q": {"_id": {"$in": ids}, "fence": fence, "holder": holder},
                "u": [{"$set": {"wake": {"$max": ["$wake", end]}}}],
                "multi": True,
            }
            for (fence, holder), ids in groups.items()
        ]
        if updates:
            await self._server.write({"update": self._names.jobs, "updates": updates, "ordered": False})
        stages: list[Document] = [
            {"$match": {"_id": {"$in": [self._keys.of(claim.id) for claim in claims]}}},
            {"$project": {"version": 1, "fence": 1, "holder": 1}},
            _and(
                self._names.jobs,
                [{"$match": {"_id": self._keys.own}}, {"$project": {"now": {"$toLong": "$$NOW"}}}],
            ),
        ]
        found = {d["_id"]: d for d in await self._server.aggregate(self._names.jobs, stages)}
        told = found.pop(self._keys.own, None)
        if told is None or self._time.given is not None:
            return found, self._time.estimate()
        return found, self._time.anchor(told["now"])


def _claimable(now: float, ahead_s: float) -> Document:
    if ahead_s <= 0:
        return {"wake": {"$lte": now}}
    return {"wake": {"$lte": now + ahead_s}, "$or": [{"holder": None}, {"wake": {"$lte": now}}]}


def _unclaimable(now: float, ahead_s: float) -> Document:
    if ahead_s <= 0:
        return {"wake": {"$gt": now}}
    return {"wake": {"$gt": now}, "$or": [{"holder": {"$gt": ""}}, {"wake": {"$gt": now + ahead_s}}]}


def _as_seen(
    group: Sequence[Document], state: _State, look: _Look, still: Document, holder: str, lease_s: float
) -> Document:
    """The statement that takes those that are as they were seen. One that was removed and added anew has another birth."""
    fence, before, version = state
    seen = {
        "fence": fence,
        "holder": before,
        "version": version,
        "birth": {"$in": [d["birth"] for d in group]},
    }
    change: Document = {"holder": holder, "fence": max(fence + 1, look.fence), "wake": look.now + lease_s}
    if before is not None:
        change["prior"] = fence
    which = {"_id": {"$in": [d["_id"] for d in group]}, **seen, **still}
    return {"q": which, "u": {"$set": change, "$inc": {"tries": 1}}, "multi": True}


def _taken(d: Document, look: _Look, holder: str, lease_s: float) -> Document:
    """What that statement makes of one."""
    return {
        **d,
        "holder": holder,
        "fence": max(d["fence"] + 1, look.fence),
        "wake": look.now + lease_s,
        "tries": d["tries"] + 1,
        "prior": d["prior"] if d["holder"] is None else d["fence"],
    }


def _head(lanes: Sequence[str], which: Document) -> list[Document]:
    return [
        {"$match": {"lane": {"$in": list(lanes)}, **which}},
        {"$sort": {"wake": 1}},
        {"$limit": 1},
        {"$project": {"_id": 0, "head": "$wake"}},
    ]


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((at for at in times if at is not None), default=None)


def _and(collection: str, stages: Sequence[Document]) -> Document:
    return {"$unionWith": {"coll": collection, "pipeline": list(stages)}}


def _batches_of(documents: Sequence[Document]) -> set[str]:
    return {d["batch"] for d in documents if d.get("batch") is not None}
