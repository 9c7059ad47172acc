"""Claiming: look, compare and set, and look again for what others were quicker to take."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from asyncsched.contract import Claim, Claimed, Record, Renewal
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.etcd._desk import Desk, Floor, fenced
from asyncsched.stores.etcd._expiry import Expiry
from asyncsched.stores.etcd._keys import LEASE, Lane, digits, micros
from asyncsched.stores.etcd._lanes import Front, Lanes, LeaseEnd, Look, ends_at, instant_of
from asyncsched.stores.etcd._ops import Item, Packed, pack, put
from asyncsched.stores.etcd._rows import Kept, changed

__all__ = ["Claims"]

#: How often a claim looks again where others were quicker.
_TURNS = 4
#: The more often others are quicker, the farther from the head of the line what is taken is chosen; so many batches at the most.
_MOST_RIVALS = 4
#: A claim's key outlives its lease by so much, for a claim that is repeated after a lost reply.
_KEPT_S = 60.0
#: Stale ends of leases that one claim looks behind.
_MOST_STALE = 64


class Claims:
    """Claims and renewals of one store."""

    def __init__(self, desk: Desk, expiry: Expiry) -> None:
        self._desk = desk
        self._expiry = expiry
        self._lanes = Lanes(desk)
        self._rivals = 0

    # -- claim ---------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float
    ) -> Claimed:
        taken: list[Kept] = []
        mine: list[Kept] = []
        turn = 0
        while True:
            turn += 1
            now = self._desk.now()
            horizon = now + ahead_s
            room = max(limit - len(taken) - len(mine), 0)
            need = room * (1 + self._rivals)
            look = await self._lanes.look(queues, token, need, horizon)
            if turn == 1 and look.ids:
                mine = await self._still_held(look.ids, token, now)
                room = max(limit - len(mine), 0)
            wanted = await self._wanted(look, room, need, now, horizon)
            won = (
                await self._take(self._chosen(wanted, room), token, look.floor, now + lease_s, lease_s)
                if wanted
                else []
            )
            taken += won
            if len(won) >= min(room, len(wanted)):
                self._rivals = max(self._rivals - 1, 0)
                break
            self._rivals = min(self._rivals + 1, _MOST_RIVALS)
            if turn == _TURNS:
                break
            await asyncio.sleep(random.uniform(0.0, 0.01 * (turn - 1)))
        records = [k.record for k in (*mine, *taken)]
        next_wake = await self._next_wake(look, {k.record.id for k in taken}, records, horizon)
        gone = Counter((k.record.queue, k.record.priority) for k in taken)
        for front in look.fronts:
            await self._lanes.tidy(front, gone[front.lane], now)
        return Claimed(records, next_wake, now)

    async def _still_held(self, ids: Sequence[str], token: str, now: float) -> list[Kept]:
        """What a claim of this token holds already; it is asked again when its reply was lost."""
        held = [
            k
            for k in await self._desk.read(list(dict.fromkeys(ids)))
            if k.record.holder == token and k.record.wake_at is not None and k.record.wake_at > now
        ]
        for k in held:
            self._desk.remember(k, None)
        return held

    async def _wanted(self, look: Look, room: int, need: int, now: float, horizon: float) -> list[Kept]:
        """What may be claimed, in the order of the lanes, and in each by (wake_at, id)."""
        wanted: list[Kept] = []
        for front in look.fronts:
            if len(wanted) >= max(need, room) or not room:
                break
            while True:
                found = [k for k in front.rows if _is_due(k.record, horizon)]
                expired = [end for end in front.leases if int(end.at, 16) <= micros(now)]
                if expired:
                    found += await self._expired(front, expired, now)
                if len(wanted) + len(found) >= max(need, room) or not await self._lanes.more(
                    front, need + 1, horizon
                ):
                    break
            found.sort(key=_place)
            wanted += found
        return wanted

    async def _expired(self, front: Front, ends: Sequence[LeaseEnd], now: float) -> list[Kept]:
        """What is held still by whoever let its lease end."""
        rows, _ = await self._desk.rows(id for end in ends for id in end.ids)
        found: list[Kept] = []
        for end in ends:
            held = [
                k for id in end.ids if (k := rows.get(id)) is not None and ends_at(k.record, front.lane, end)
            ]
            if not held:
                self._drop(front, end)
            found += [k for k in held if k.record.wake_at is not None and k.record.wake_at <= now]
        return list({k.record.id: k for k in found}.values())

    def _drop(self, front: Front, end: LeaseEnd) -> None:
        """An end of leases that has ended for all of them in another way."""
        if end in front.leases:
            front.leases.remove(end)
        self._desk.ends.pop(end.key, None)
        self._desk.waste(end.key)

    def _chosen(self, wanted: list[Kept], room: int) -> list[Kept]:
        """The first; where others take the same ones, some that stand farther behind."""
        spare = len(wanted) - room
        if self._rivals and spare > 0:
            at = room * random.randrange(1 + math.ceil(spare / room))
            at = min(at, spare)
            return wanted[at : at + room]
        return wanted[:room]

    async def _take(
        self, wanted: Sequence[Kept], token: str, floor: Floor, until: float, lease_s: float
    ) -> list[Kept]:
        """Claim what nobody has changed since."""
        desk = self._desk
        wanted = await desk.whole(wanted)
        expiry = await self._expiry.lease_for(2 * lease_s + _KEPT_S)
        made: list[tuple[Item, Kept]] = []
        place = digits(until) + LEASE
        for k in wanted:
            r = k.record
            claimed = Record(
                r.id, r.birth, r.queue, r.priority, r.task, until, r.hold, r.body, r.cursor,
                r.version, fenced(k, floor), token, r.settled, r.tries + 1, r.fence if r.holder is not None else r.prior,
            )  # fmt: skip
            made.append(self._held_until(k, claimed, place))
        packs = list(pack((item for item, _ in made), spare=1, per_lane=1))
        at = 0
        calls, pieces = [], []
        for packed in packs:
            piece = made[at : at + len(packed.items)]
            at += len(piece)
            name = secrets.token_hex(8)
            ends = self._add_ends(packed, [new for _, new in piece], until, name)
            ids = [new.record.id for _, new in piece]
            packed.more.append(
                put(desk.keys.claim(token) + name.encode(), msgspec.msgpack.encode(ids), expiry)
            )
            pieces.append((piece, ends))
            calls.append(desk.send(packed, desk.is_above(floor)))
        try:
            answers = await desk.together(calls)
        except StoreUnavailable:
            # It may be that the server has ended that lease.
            self._expiry.forget()
            raise
        return [
            k
            for (piece, ends), done in zip(pieces, answers, strict=True)
            for k in self._keep(piece, ends, done)
        ]

    def _held_until(self, old: Kept, record: Record, place: bytes) -> tuple[Item, Kept]:
        item, new = changed(self._desk.keys, old, record)
        item.takes(self._desk.keys.lane((record.queue, record.priority)), place)
        return item, new

    def _add_ends(self, packed: Packed, kept: Iterable[Kept], until: float, name: str) -> dict[Lane, bytes]:
        """One place in line for the end of all leases in a lane."""
        ids: dict[Lane, list[str]] = {}
        for k in kept:
            ids.setdefault(Lane(k.record.queue, k.record.priority), []).append(k.record.id)
        ends = {}
        for lane, of_lane in ids.items():
            ends[lane] = self._desk.keys.lease_end(lane, until, name)
            packed.more.append(put(ends[lane], msgspec.msgpack.encode(of_lane)))
        return ends

    def _keep(
        self, piece: Sequence[tuple[Item, Kept]], ends: dict[Lane, bytes], done: Sequence[int]
    ) -> list[Kept]:
        kept = []
        for (_, new), revision in zip(piece, done, strict=True):
            if revision:
                there = new._replace(revision=revision)
                self._desk.remember(there, ends[Lane(there.record.queue, there.record.priority)])
                kept.append(there)
        return kept

    # -- when to come back ---------------------------------------------------------------------------------------------

    async def _next_wake(
        self, look: Look, taken: set[str], records: Sequence[Record], horizon: float
    ) -> float | None:
        """The earliest wake time of all lanes."""
        earliest = min((r.wake_at for r in records if r.wake_at is not None), default=math.inf)
        for front in look.fronts:
            earliest = min(earliest, await self._next_in(front, taken, look.beyond.get(front.lane), horizon))
        return None if earliest == math.inf else earliest

    async def _next_in(self, front: Front, taken: set[str], first: Any, horizon: float) -> float:
        due = min(
            (
                k.record.wake_at
                for k in front.rows
                if k.record.id not in taken and k.record.wake_at is not None
            ),
            default=math.inf,
        )
        for end in sorted(front.leases, key=lambda end: end.at):
            at = await self._live_end(front, end)
            if at is not None:
                due = min(due, at)
                break
        if due < math.inf:
            return due
        if front.is_cut:
            # What was not read stands behind that.
            return instant_of(front.read_to)
        kvs, is_all = await self._lanes.next_beyond(front, first, horizon)
        for turn in itertools.count(1):
            if not kvs:
                break
            there = Front(front.lane, front.key, front.place)
            there.add(kvs[:1])
            if there.rows:
                wake_at = there.rows[0].record.wake_at
                return math.inf if wake_at is None else wake_at
            [end] = there.leases
            at = await self._live_end(front, end)
            if at is not None:
                return at
            self._drop(front, end)
            if turn == _MOST_STALE:
                # Too early, at the worst.
                return instant_of(end.at)
            kvs = kvs[1:]
            if not kvs and not is_all:
                kvs, is_all = await self._lanes.after(front, end.key, horizon)
        return math.inf

    async def _live_end(self, front: Front, end: LeaseEnd) -> float | None:
        """When the leases end that stand at this place; None if none of them does any more."""
        if end.key in self._desk.wasted:
            return None
        known = self._desk.ends.get(end.key)
        for id in known or ():
            k = self._desk.held.get(id)
            if k is not None and ends_at(k.record, front.lane, end):
                return k.record.wake_at
        # One of them is enough, and the last were claimed last.
        for ids in (end.ids[-1:], end.ids[:-1]):
            rows, _ = await self._desk.rows(ids)
            for k in rows.values():
                if ends_at(k.record, front.lane, end):
                    return k.record.wake_at
        return None

    # -- renew ---------------------------------------------------------------------------------------------------------

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        desk = self._desk
        now = desk.now()
        until = now + lease_s
        answers: dict[str, Any] = {}
        left = list(dict.fromkeys(claims))
        turn = 0
        while left:
            await desk.pause(turn)
            cached = (
                {} if turn else {c.id: k for c in left if (k := desk.held.get(c.id)) and _is_of(k.record, c)}
            )
            rows, _ = await desk.rows(c.id for c in left if c.id not in cached)
            held: list[tuple[Claim, Kept]] = []
            for claim in left:
                k = cached.get(claim.id) or rows.get(claim.id)
                if k is None or not _is_of(k.record, claim):
                    answers[claim.id] = "lost"
                else:
                    held.append((claim, k))
            left = await self._extend(held, until, answers)
            turn += 1
        return Renewal({claim.id: answers[claim.id] for claim in claims}, now)

    async def _extend(
        self, held: Sequence[tuple[Claim, Kept]], until: float, answers: dict[str, Any]
    ) -> list[Claim]:
        """Push the ends of these leases; return the claims whose records others have changed."""
        desk = self._desk
        made: list[tuple[Item, Kept]] = []
        for _, k in held:
            r = k.record
            if r.wake_at is not None and r.wake_at >= until:
                item = Item(f"renewing job {r.id!r}")
                item.if_at(desk.keys.job(r.id), k.revision)
                made.append((item, k))
            else:
                made.append(self._held_until(k, replace(r, wake_at=until), digits(until) + LEASE))
        at, calls, pieces = 0, [], []
        for packed in pack((item for item, _ in made), spare=1, per_lane=1):
            piece = made[at : at + len(packed.items)]
            at += len(piece)
            pushed = [new for item, new in piece if item.writes]
            ends = self._add_ends(packed, pushed, until, secrets.token_hex(8)) if pushed else {}
            pieces.append((piece, ends))
            calls.append(desk.send(packed))
        left: list[Claim] = []
        results = await desk.together(calls) if calls else []
        flat = [
            (pair, ends, ok)
            for (piece, ends), done in zip(pieces, results, strict=True)
            for pair, ok in zip(piece, done, strict=True)
        ]
        for (claim, _), ((item, new), ends, revision) in zip(held, flat, strict=True):
            if not revision:
                desk.forget(claim.id, is_over=False)
                left.append(claim)
                continue
            answers[claim.id] = new.record.version
            if item.writes:
                self._keep([(item, new)], ends, [revision])
        return left


def _is_due(record: Record, horizon: float) -> bool:
    return record.wake_at is not None and record.wake_at <= horizon


def _place(kept: Kept) -> tuple[float, str]:
    return (kept.record.wake_at or 0.0, kept.record.id)


def _is_of(record: Record, claim: Claim) -> bool:
    return record.fence == claim.fence and record.holder == claim.holder
