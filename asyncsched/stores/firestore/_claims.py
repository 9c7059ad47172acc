"""claim and renew: found by a query, taken by one write for each with the document's last change as its condition."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from asyncsched.contract import Claim, Claimed, Record, Renewal
from asyncsched.stores.firestore import _wire as wire
from asyncsched.stores.firestore._floor import Floor
from asyncsched.stores.firestore._held import Held
from asyncsched.stores.firestore._looking import SLACK_US, Found, Look, Looking
from asyncsched.stores.firestore._names import JOBS, NEVER, rank_of_held, to_seconds, to_us
from asyncsched.stores.firestore._records import record_of
from asyncsched.stores.firestore._server import Conflict, Server, both, in_parallel, pause

__all__ = ["Claims"]

#: Writes in one request; Firestore takes 500.
_PIECE = 400
#: A claim that others are faster than looks so often again.
_ROUNDS = 4
_RENEWALS = 5
#: Documents that one claim looks at beyond those that it may take, where others are at the same ones.
_CROWD = 4
_CROWDED = 500
#: Tokens of claims that have written something, and may be repeated.
_TOKENS = 10_000


class Claims:
    """Who holds a job is said by its own document alone. Its fence is the instant of the change that the claim has seen: it rises
    with each change of the document, also when that is removed and made again, and no other document is needed for it."""

    def __init__(self, server: Server, held: Held, floor: Floor) -> None:
        self._server = server
        self._floor = floor
        self._held = held
        self._tokens: dict[str, None] = {}
        #: By the queues that were asked for: nothing becomes due before, as far as this process knows.
        self._quiet: dict[tuple[str, ...], int] = {}
        self._looking = Looking(server)
        self._is_young = True
        #: As many claims seem to be at the same documents; each then takes some out of as many more.
        self._crowd = 1

    def hint(self, wake_us: int) -> None:
        """Something may become due at that instant."""
        for queues, quiet in self._quiet.items():
            self._quiet[queues] = min(quiet, wake_us)

    # -- claim ---------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float
    ) -> Claimed:
        asked = tuple(dict.fromkeys(queues))
        if not asked:
            return Claimed([], None, to_seconds(await self._server.now_us()))
        ahead_us = to_us(ahead_s)
        # A token that another process has used is looked up by a client that has just been opened, and may stand for it.
        is_repeated = token in self._tokens or self._is_young
        if not is_repeated and self._server.about_us() + ahead_us + SLACK_US < self._quiet.get(asked, 0):
            first_us, now_us = await self._looking.first(asked)
            if first_us > now_us + ahead_us:
                self._quiet[asked] = first_us
                return Claimed([], _instant(first_us), to_seconds(now_us))
        held: list[Record] = []
        if is_repeated:
            held = await self._still_held(token, limit)
            self._is_young = False
        taken, next_us, now_us = await self._take(asked, token, limit - len(held), to_us(lease_s), ahead_us)
        next_us = min([next_us, *(to_us(r.wake_at) for r in held)])
        self._quiet[asked] = next_us
        return Claimed(held + taken, _instant(next_us), to_seconds(now_us))

    async def _still_held(self, token: str, limit: int) -> list[Record]:
        """What a repeated claim gets again; a lease that has ended meanwhile is due and is claimed like any other."""
        documents, now_us = await self._server.query(wire.query(JOBS, [("holder", "==", token)], [], None))
        live = [(record_of(d), d) for d in documents if d.fields["wake"].integer_value > now_us]
        for record, document in live[:limit]:
            self._held.keep(record, wire.microseconds(document.update_time))
        return [record for record, _ in live[:limit]]

    async def _take(
        self, queues: tuple[str, ...], token: str, limit: int, lease_us: int, ahead_us: int
    ) -> tuple[list[Record], int, int]:
        """What was taken, when to come back, and the server's time."""
        attempt = 0
        while True:
            await pause(attempt)
            attempt += 1
            look = Look(self._server.about_us(), ahead_us)
            most = max(limit, min(limit * self._crowd, _CROWDED))
            (found, left_us, now_us), floor = await both(
                partial(self._looking.due, queues, most, look), self._floor.read
            )
            if len(found) > limit:
                found, left_us = _some(found, limit)
            until_us = min(now_us + lease_us, NEVER - 1)
            self._remember(token, found)
            write = partial(self._write, found, token, until_us, floor)
            if left_us is None:
                taken, next_us = await both(write, partial(self._looking.next, queues, look.horizon_us))
            else:
                taken, next_us = await write(), left_us
            for planned_us in (*look.passed, *([until_us] if taken else [])):
                next_us = min(next_us, planned_us)
            lost = len(found) - len(taken)
            self._crowd = (
                min(2 * self._crowd, _CROWD) if lost > len(taken) else max(self._crowd - (not lost), 1)
            )
            if taken or not lost or attempt == _ROUNDS:
                return taken, next_us, now_us

    async def _write(self, found: Sequence[Found], token: str, until_us: int, floor: int) -> list[Record]:
        """The records that could be taken, in the order of *found*; with the others someone else was faster."""
        pieces = [found[i : i + _PIECE] for i in range(0, len(found), _PIECE)]
        answers = await in_parallel(
            [partial(self._write_piece, piece, token, until_us, floor) for piece in pieces]
        )
        return [record for piece in answers for record in piece]

    async def _write_piece(
        self, found: Sequence[Found], token: str, until_us: int, floor: int
    ) -> list[Record]:
        taken: list[Record] = []
        writes: list[Any] = []
        until = to_seconds(until_us)
        for _, queue, priority, document in found:
            r = record_of(document)
            seen_us = wire.microseconds(document.update_time)
            fence = max(floor + seen_us, r.fence + 1)
            prior = r.fence if r.holder is not None else r.prior
            claimed = Record(
                r.id, r.birth, queue, priority, r.task, until, r.hold, r.body, r.cursor,
                r.version, fence, token, r.settled, r.tries + 1, prior,
            )  # fmt: skip
            fields: dict[str, wire.Value] = {
                "wake": until_us,
                "rank": rank_of_held(until_us),
                "fence": fence,
                "holder": token,
                "tries": r.tries + 1,
                "prior": prior,
            }
            writes.append(wire.update(document.name, fields, seen_us))
            taken.append(claimed)
        written = await self._written(writes)
        got: list[Record] = []
        for record, at_us in zip(taken, written, strict=True):
            if at_us is not None:
                self._held.keep(record, at_us)
                got.append(record)
        return got

    async def _written(self, writes: Sequence[Any]) -> Sequence[int | None]:
        """When each document was changed; None where someone else was faster. One commit costs the server less than as many
        writes, but is refused as a whole, so it is tried where no others are about."""
        if self._crowd == 1:
            try:
                return await self._server.commit(writes)
            except Conflict:
                pass
        return await self._server.batch(writes)

    def _remember(self, token: str, found: Sequence[Found]) -> None:
        """A claim that writes nothing leaves nothing to be looked up when it is repeated."""
        if not found:
            return
        self._tokens[token] = None
        if len(self._tokens) > _TOKENS:
            del self._tokens[next(iter(self._tokens))]

    # -- renew ---------------------------------------------------------------------------------------------------------

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        if not claims:
            return Renewal({}, to_seconds(await self._server.now_us()))
        pieces = [claims[i : i + _PIECE] for i in range(0, len(claims), _PIECE)]
        answers = await in_parallel([partial(self._renew, piece, to_us(lease_s)) for piece in pieces])
        versions: dict[str, int | Literal["busy", "lost"]] = {}
        for renewal in answers:
            versions |= renewal.versions
        return Renewal(versions, answers[0].now)

    async def _renew(self, claims: Sequence[Claim], lease_us: int) -> Renewal:
        versions: dict[str, int | Literal["busy", "lost"]] = {}
        left = {self._server.names.job(claim.id): claim for claim in claims}
        now_us = 0
        for attempt in range(_RENEWALS):
            await pause(attempt)
            there, now_us = await self._server.get(list(left), ["fence", "holder", "version", "wake"])
            until_us = min(now_us + lease_us, NEVER - 1)
            writes: dict[str, Any] = {}
            for name, claim in left.items():
                document = there.get(name)
                versions[claim.id] = _version(document, claim)
                if document is None or versions[claim.id] == "lost":
                    continue
                if document.fields["wake"].integer_value < until_us:
                    fields: dict[str, wire.Value] = {"wake": until_us, "rank": rank_of_held(until_us)}
                    writes[name] = wire.update(name, fields, wire.microseconds(document.update_time))
            if not writes:
                break
            written = await self._server.batch(list(writes.values()))
            # A claim of the same job by another token, which is lost, does not stand for this one.
            answers = dict(zip(writes, written, strict=True))
            for name, at_us in answers.items():
                version = versions[left[name].id]
                if at_us is not None and isinstance(version, int):
                    self._held.renewed(*left[name], version, at_us)
            left = {name: left[name] for name, at_us in answers.items() if at_us is None}
            if not left:
                break
        else:
            versions |= dict.fromkeys((claim.id for claim in left.values()), "busy")
        return Renewal(versions, to_seconds(now_us))


def _version(document: Any | None, claim: Claim) -> int | Literal["lost"]:
    if document is None:
        return "lost"
    fence, holder = wire.value_of(document, "fence"), wire.value_of(document, "holder")
    if (fence, holder) != (claim.fence, claim.holder):
        return "lost"
    return int(document.fields["version"].integer_value)


def _some(found: Sequence[Found], count: int) -> tuple[list[Found], int]:
    """So many of them by chance, in their order, and the earliest instant of the others."""
    chosen = set(random.sample(range(len(found)), count))
    left_us = min(each.wake for place, each in enumerate(found) if place not in chosen)
    return [found[place] for place in sorted(chosen)], left_us


def _instant(us: int) -> float | None:
    return None if us >= NEVER else to_seconds(us)
