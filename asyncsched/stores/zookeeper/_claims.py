"""claim and renew.

A claim lists the heads of its lanes, reads the sheets that are due, and takes the records in them by one transaction for each
hundred: each record's node is compared and set, the end of the leases is put into the index, and the claim's own node keeps
what it took, so that a repeated claim finds it. Two that meet at the same head refuse each other, since the records have been
changed; whoever was refused takes the queue's claim lock for its next claims, and others wait while somebody has it. The lock
only spares work: each claim is a compare-and-set with it and without it.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from aiozk import exc
from msgspec.structs import replace

from asyncsched.clock import SystemClock
from asyncsched.contract import Claim, Claimed, Record, Renewal
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.zookeeper._ground import Ground, some
from asyncsched.stores.zookeeper._index import Group, Item, Scan, Sheet, Trims, commit, compact
from asyncsched.stores.zookeeper._jobs import ATTEMPTS, pause
from asyncsched.stores.zookeeper._names import instant_of, key_of
from asyncsched.stores.zookeeper._rows import Row, Seen, decode_row, read_nodes, read_rows
from asyncsched.stores.zookeeper._wire import Failed

__all__ = ["Claims"]

#: Records in one multi.
_GROUP = 100
#: How long the claim lock is held at the most, how long it is waited for, and for how long a contended queue takes it.
_LOCK_S, _PATIENCE_S, _CONTENDED_S = 2.0, 1.0, 5.0
#: A claim whose lease ended so long ago is not repeated any more.
_OVER_S = 3600.0
#: How often the claim lock is looked at before another attempt.
_LOOKS = 30
#: Items ahead that one claim looks behind where their records have moved on, in each lane.
_MOST_STALE = 64
_TIDIED = 500
_monotonic = SystemClock.monotonic

_encode = msgspec.msgpack.Encoder().encode
#: What the node of a claim says: the end of its lease, and the id and node of each record.
_decode_claim = msgspec.msgpack.Decoder(tuple[float, list[tuple[str, str]]]).decode
_decode_lock = msgspec.msgpack.Decoder(tuple[str, float]).decode


class _Lane(NamedTuple):
    queue: str
    priority: int
    root: str
    scan: Scan


class _Pick(NamedTuple):
    """A record that is to be claimed, and where it was found."""

    seen: Seen
    item: Item
    sheet: Sheet
    lane: _Lane


class _Turn:
    """One claim."""

    def __init__(self, token: str, limit: int, now: float, lease_s: float, ahead_s: float) -> None:
        self.token = token
        self.limit = limit
        self.now = now
        self.horizon = now + ahead_s
        self.until = now + lease_s
        #: The nodes of earlier claims of this token, by part: version and records.
        self.parts: dict[int, tuple[int, list[tuple[str, str]]]] = {}
        self.taken: list[Record] = []
        self.trims = Trims()
        #: The earliest wake_at that is known for certain.
        self.next_wake = math.inf
        #: By lane: the record that was first in it, as it is now.
        self.ahead: dict[str, Row] = {}
        #: The queues whose claim locks were taken for it.
        self.locks: list[str] = []
        self.was_refused = False
        self.is_patient = self.wants_lock = False
        #: The part that is being written: its number, and its version and records then.
        self.planned: tuple[int, int, list[tuple[str, str]]] | None = None

    def recall(self, seen: Seen) -> None:
        """The token holds it already."""
        if all(record.id != seen.id for record in self.taken):
            self.taken.append(seen.record())
            self.knows(seen.row.wake_at or math.inf)

    def keep_part(self) -> None:
        """The claim's node was written as planned."""
        if self.planned is not None:
            part, version, names = self.planned
            self.parts[part] = (version, names)

    def knows(self, wake_at: float) -> None:
        self.next_wake = min(self.next_wake, wake_at)

    def is_claimable(self, row: Row) -> bool:
        if row.wake_at is None:
            return False
        return row.wake_at <= (self.now if row.holder is not None else self.horizon)


class Claims:
    """claim and renew of one namespace."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._nonce = secrets.token_hex(6)
        #: By queue: its lanes, as they were listed last, and where each lane began.
        self._heads: dict[str, tuple[str, ...]] = {}
        #: By lane: the first sheet, its first key, and the record's node that bore it out when it was looked at last.
        self._ahead: dict[str, tuple[str, int, str]] = {}
        self._contended_until = -math.inf
        #: Two claims of one client would only refuse each other.
        self._alone = asyncio.Lock()

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float
    ) -> Claimed:
        async with self._alone:
            return await self._claim(queues, token, limit, lease_s, ahead_s)

    async def _claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float
    ) -> Claimed:
        queues = list(dict.fromkeys(queues))
        patient_until = _monotonic() + _PATIENCE_S
        refusals = 0
        while True:
            turn = _Turn(token, limit, await self._ground.now(), lease_s, ahead_s)
            if not queues:
                return Claimed([], None, turn.now)
            turn.is_patient = _monotonic() < patient_until
            turn.wants_lock = refusals > 1 or _monotonic() < self._contended_until
            if await self._take(turn, queues):
                break
            refusals += turn.was_refused
            if refusals > 1:
                self._contended_until = _monotonic() + _CONTENDED_S
        next_wake = None if turn.next_wake == math.inf else turn.next_wake
        return Claimed(turn.taken, next_wake, turn.now)

    async def _take(self, turn: _Turn, queues: list[str]) -> bool:
        """One attempt; False: somebody else is at it, and nothing was taken."""
        lanes, is_locked = await self._look(turn, queues)
        picks = await self._pick_all(turn, lanes)
        if picks and turn.is_patient and (is_locked or turn.wants_lock):
            # What was seen before the lock was had may be gone.
            if not await self._lock(turn, queues):
                await self._wait_for_lock(queues)
                return False
            turn.trims = Trims()
            lanes, _ = await self._look(turn, queues)
            picks = await self._pick_all(turn, lanes)
        try:
            for at in range(0, len(picks), _GROUP):
                await self._commit(turn, picks[at : at + _GROUP])
            if turn.was_refused and not turn.taken and turn.is_patient:
                return False
        finally:
            self._ground.wire.dismiss([self._ground.paths.lock(queue) for queue in turn.locks])
        await self._find_next(turn, lanes)
        return True

    # -- looking -------------------------------------------------------------------------------------------------------

    async def _look(self, turn: _Turn, queues: list[str]) -> tuple[list[_Lane], bool]:
        """All that can be asked for at once: what the token has, the locks, the lanes and their heads as last seen."""
        wire, paths = self._ground.wire, self._ground.paths
        parts = range(max(1, math.ceil(turn.limit / _GROUP)))
        folders = [paths.lane(queue, 0).rpartition("/")[0] for queue in queues]
        guesses = [
            path
            for folder in folders
            for root, head in self._heads.items()
            if root.startswith(f"{folder}/")
            for path in (root, f"{root}/{head[0]}", f"{root}/{head[0]}/{head[1]}")
        ]
        ahead = [
            (root, found[2])
            for folder in folders
            for root, found in self._ahead.items()
            if root.startswith(f"{folder}/")
        ]
        requests = [wire.get(paths.claim(turn.token, part)) for part in parts]
        requests += [wire.get(paths.lock(queue)) for queue in queues]
        requests += [wire.get(node) for _, node in ahead]
        requests += map(wire.children, (*folders, *guesses))
        answers = await wire.ask(requests)
        mine, answers = answers[: len(parts)], answers[len(parts) :]
        locks, answers = answers[: len(queues)], answers[len(queues) :]
        nodes, answers = answers[: len(ahead)], answers[len(ahead) :]
        turn.ahead = {
            root: decode_row(answer.data)
            for (root, _), answer in zip(ahead, nodes, strict=True)
            if not isinstance(answer, Exception)
        }
        listed, guessed = answers[: len(queues)], answers[len(queues) :]
        primed = {
            path: [] if isinstance(answer, Exception) else answer.children
            for path, answer in zip(guesses, guessed, strict=True)
        }
        await self._recall(turn, mine)
        lanes = [
            _Lane(queue, int(name), root, Scan(wire, [root], primed))
            for queue, answer in zip(queues, listed, strict=True)
            if not isinstance(answer, Exception)
            for name in answer.children
            for root in [paths.lane(queue, int(name))]
        ]
        lanes.sort(key=lambda lane: -lane.priority)
        return lanes, any(map(self._is_locked, locks))

    def _is_locked(self, answer: Any) -> bool:
        if isinstance(answer, exc.ZKError) or not answer.data:
            return False
        holder, until = _decode_lock(answer.data)
        return holder != self._nonce and until > self._ground.clock.now()

    async def _lock(self, turn: _Turn, queues: list[str]) -> bool:
        """Take the claim locks of all these queues, or none."""
        wire, paths = self._ground.wire, self._ground.paths
        data = _encode((self._nonce, self._ground.clock.now() + _LOCK_S))
        found = await wire.ask([wire.get(paths.lock(queue)) for queue in queues])
        operations = []
        for queue, answer in zip(queues, found, strict=True):
            path = paths.lock(queue)
            if isinstance(answer, Exception):
                operations.append(wire.create(path, data))
            elif self._is_locked(answer):
                return False
            else:
                operations.append(wire.set_data(path, data, answer.stat.version))
        try:
            await wire.multi(operations)
        except Failed:
            return False
        turn.locks = queues
        return True

    async def _wait_for_lock(self, queues: list[str]) -> None:
        """Return once nobody else has it, or soon enough."""
        wire, paths = self._ground.wire, self._ground.paths
        for _ in range(_LOOKS):
            await asyncio.sleep(0.003 + 0.004 * random.random())
            found = await wire.ask([wire.get(paths.lock(queue)) for queue in queues])
            if not any(map(self._is_locked, found)):
                return

    async def _recall(self, turn: _Turn, answers: Sequence[Any]) -> None:
        """What the token holds already; what has expired of it is claimed anew, with all else that is due."""
        wire, paths, answers = self._ground.wire, self._ground.paths, list(answers)
        while not isinstance(answers[-1], Exception):
            # What was claimed anew once leases had ended stands behind what had been claimed before.
            answers.append(await wire.ask_one(wire.get(paths.claim(turn.token, len(answers)))))
        known: list[tuple[str, str, str]] = []
        for part, answer in enumerate(answers):
            if isinstance(answer, Exception):
                continue
            _, of = _decode_claim(answer.data)
            turn.parts[part] = (answer.stat.version, of)
            known += ((id, paths.job(id), nonce) for id, nonce in of)
        if not known:
            return
        seen = await read_nodes(wire, known)
        for id, _, nonce in known:
            one = seen.get(id)
            if one is not None and one.nonce == nonce and self._is_own(turn, one):
                turn.recall(one)
                self._ground.held.seen[id] = one

    @staticmethod
    def _is_own(turn: _Turn, seen: Seen) -> bool:
        wake_at = seen.row.wake_at
        return seen.row.holder == turn.token and wake_at is not None and wake_at > turn.now

    async def _pick_all(self, turn: _Turn, lanes: Iterable[_Lane]) -> list[_Pick]:
        picks: list[_Pick] = []
        for lane in lanes:
            room = turn.limit - len(turn.taken) - len(picks)
            if room <= 0:
                break
            picks += await self._pick(turn, lane, room)
        return picks

    async def _pick(self, turn: _Turn, lane: _Lane, room: int) -> list[_Pick]:
        """Up to *room* records of the lane that can be claimed, in order."""
        picks: dict[str, _Pick] = {}
        horizon = key_of(turn.horizon)
        while len(picks) < room:
            found = await lane.scan.next(room - len(picks), horizon)
            if not found:
                break
            seen = await self._seen(found[: room - len(picks) + _GROUP])
            for at, (item, sheet) in enumerate(found):
                if len(picks) >= room or at >= len(seen):
                    lane.scan.unread(found[at:])
                    break
                one = seen[at]
                if one is None or one.key != item.key or not _is_of(one.row, lane):
                    turn.trims.drop(item, sheet)
                elif not turn.is_claimable(one.row):
                    turn.knows(one.row.wake_at or math.inf)
                else:
                    self._prefer(turn, picks, _Pick(one, item, sheet, lane))
        return list(picks.values())

    @staticmethod
    def _prefer(turn: _Turn, picks: dict[str, _Pick], pick: _Pick) -> None:
        """Of several items of one record, which have copies of it from different times, the latest may be true."""
        id = pick.item.id
        other = picks.get(id)
        if other is not None and other.seen.zxid >= pick.seen.zxid:
            turn.trims.drop(pick.item, pick.sheet)
            return
        if other is not None:
            del picks[id]
            turn.trims.drop(other.item, other.sheet)
        picks[id] = pick

    async def _seen(self, found: Sequence[tuple[Item, Sheet]]) -> list[Seen | None]:
        """The records of items: by their copies, or read."""
        paths = self._ground.paths
        nodes = [(item.id, paths.job(item.id), item.nonce) for item, _ in found if not item.copy]
        read = await read_nodes(self._ground.wire, nodes) if nodes else {}
        seen: list[Seen | None] = []
        for item, sheet in found:
            if item.copy:
                row, zxid = decode_row(item.copy), item.zxid or sheet.zxid
                seen.append(Seen(item.id, item.nonce, row, item.version, zxid, paths.job(item.id)))
            else:
                one = read.get(item.id)
                seen.append(one if one is not None and one.nonce == item.nonce else None)
        return seen

    # -- taking --------------------------------------------------------------------------------------------------------

    async def _commit(self, turn: _Turn, picks: list[_Pick]) -> None:
        """Take these in one transaction; those that others were faster at are left out."""
        ground = self._ground
        for attempt in range(ATTEMPTS):
            if not picks:
                return
            group, taken, nodes = self._group(turn, picks, is_trimming=attempt < ATTEMPTS - 2)
            [outcome] = await commit(ground.wire, ground.folders, [group])
            if not isinstance(outcome, Failed):
                break
            kind, _ = group.tags[outcome.index]
            if kind == "state":
                picks = await self._still(turn, picks)
            elif kind == "claim":
                await self._reread(turn)
            elif kind == "floor":
                await ground.read_floor()
            # Whoever was faster has most likely trimmed the same sheets.
            await turn.trims.reread(ground.wire)
            if attempt > 1:
                await pause(attempt)
        else:
            turn.was_refused = True
            return
        turn.keep_part()
        turn.trims.confirm([(pick.item, pick.sheet) for pick in picks])
        for seen in taken:
            seen.zxid = outcome[0]
            turn.taken.append(seen.record())
        turn.knows(turn.until)
        ground.held.take(taken, nodes)

    def _group(
        self, turn: _Turn, picks: list[_Pick], *, is_trimming: bool
    ) -> tuple[Group, list[Seen], list[str]]:
        """The operations that take *picks*, what the records are then, and the nodes that go with their leases."""
        ground, group, taken = self._ground, Group(), []
        for pick in picks:
            seen, row = pick.seen, pick.seen.row
            claimed = replace(
                row,
                wake_at=turn.until,
                # Each write of a node has a higher zxid than the one before, also across a removal.
                fence=ground.floor + seen.zxid,
                holder=turn.token,
                tries=row.tries + 1,
                prior=row.fence if row.holder is not None else row.prior,
            )
            taken.append(ground.add_change(group, seen, claimed, None))
        group.add("floor", None, ground.check_floor())
        sheets = group.seal(ground.wire)
        part = next(p for p in range(1 << 20) if p not in turn.parts or len(turn.parts[p][1]) < _GROUP)
        path = ground.paths.claim(turn.token, part)
        names = [(seen.id, seen.nonce) for seen in taken]
        if part in turn.parts:
            version, before = turn.parts[part]
            names = [*before, *names]
            turn.planned = (part, version + 1, names)
            group.add("claim", None, ground.wire.set_data(path, _encode((turn.until, names)), version))
        else:
            turn.planned = (part, 0, names)
            group.add("claim", None, ground.wire.create(path, _encode((turn.until, names))))
        if is_trimming:
            turn.trims.apply(ground.wire, group, [(pick.item, pick.sheet) for pick in picks])
        return group, taken, [*sheets, path]

    async def _still(self, turn: _Turn, picks: list[_Pick]) -> list[_Pick]:
        """Those that can be claimed all the same, as they are now."""
        ground = self._ground
        now = await read_nodes(ground.wire, [(p.seen.id, p.seen.path, p.seen.nonce) for p in picks])
        still = []
        for pick in picks:
            seen = now.get(pick.seen.id)
            if seen is not None and seen.version != pick.seen.version and seen.row.holder is not None:
                turn.was_refused = turn.was_refused or seen.row.holder != turn.token
            if seen is not None and self._is_own(turn, seen):
                # An earlier try of this claim, whose reply was lost, has only now come through.
                turn.recall(seen)
                ground.held.seen[seen.id] = seen
            if seen is None or seen.key != pick.item.key or not _is_of(seen.row, pick.lane):
                turn.trims.drop(pick.item, pick.sheet)
            elif turn.is_claimable(seen.row):
                still.append(pick._replace(seen=seen))
        return still

    async def _reread(self, turn: _Turn) -> None:
        """The claim's own nodes: another claim of this token has written them."""
        ground = self._ground
        turn.parts.clear()
        for part in range(1 << 20):
            answer = await ground.wire.ask_one(ground.wire.get(ground.paths.claim(turn.token, part)))
            if isinstance(answer, Exception):
                return
            turn.parts[part] = (answer.stat.version, _decode_claim(answer.data)[1])

    # -- what is next --------------------------------------------------------------------------------------------------

    async def _find_next(self, turn: _Turn, lanes: Sequence[_Lane]) -> None:
        """The earliest instant of all lanes; what lies ahead is only believed if its record bears it out."""
        for lane in lanes:
            scan = lane.scan
            looks = 0
            while (key := await scan.next_key()) is not None and instant_of(key) < turn.next_wake:
                looks += 1
                if instant_of(key) <= turn.now or looks > _MOST_STALE or self._is_borne_out(turn, lane, key):
                    # Too early, at the worst.
                    turn.knows(instant_of(key))
                    break
                found = await scan.peek()
                if found is None:
                    break
                item, sheet = found
                node = (item.id, self._ground.paths.job(item.id), item.nonce)
                one = (await read_nodes(self._ground.wire, [node])).get(item.id)
                if one is not None and one.key == item.key and _is_of(one.row, lane):
                    turn.knows(one.row.wake_at or math.inf)
                    self._ahead[lane.root] = (sheet.path, item.key, one.node)
                    break
                scan.pop()
                turn.trims.drop(item, sheet)
            self._note(lane)
        await self._tidy(turn)
        for lane in lanes:
            await compact(self._ground.wire, lane.scan)

    def _is_borne_out(self, turn: _Turn, lane: _Lane, key: int) -> bool:
        """Whether the record that was first in the lane still is, as it was read with all else."""
        row, ahead = turn.ahead.get(lane.root), self._ahead.get(lane.root)
        is_first = ahead is not None and ahead[:2] == (lane.scan.first_sheet(), key)
        return is_first and row is not None and key_of(row.wake_at) == key and _is_of(row, lane)

    def _note(self, lane: _Lane) -> None:
        scan = lane.scan
        if scan.head:
            self._heads[lane.root] = scan.head
        self._ground.clear(scan.empty)

    async def _tidy(self, turn: _Turn) -> None:
        """Drop what was found to be over, as far as no claim did. It is no loss if somebody else was faster."""
        group = Group()
        turn.trims.apply(self._ground.wire, group, is_bounded=False)
        if group.operations:
            await self._ground.wire.multis([[operation] for operation in group.operations])

    async def tidy(self) -> None:
        """Remove the nodes of some claims whose process died with them, long after their leases have ended."""
        wire, paths = self._ground.wire, self._ground.paths
        listed = await wire.ask_one(wire.children(paths.claims))
        names = [] if isinstance(listed, Exception) else some(listed.children, _TIDIED)
        nodes = [f"{paths.claims}/{name}" for name in names]
        now, old = await self._ground.now(), []
        for path, answer in zip(nodes, await wire.ask(list(map(wire.get, nodes))), strict=True):
            if not isinstance(answer, Exception) and _decode_claim(answer.data)[0] + _OVER_S < now:
                old.append(wire.delete(path, answer.stat.version))
        await wire.ask(old)

    # -- renew ---------------------------------------------------------------------------------------------------------

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        ground = self._ground
        now = await ground.now()
        until = now + lease_s
        versions: dict[str, int | Literal["busy", "lost"]] = {}
        left = {claim.id: claim for claim in claims}
        known = {id: ground.held.seen.get(id) for id in left}
        for attempt in range(ATTEMPTS):
            to_read = [id for id, claim in left.items() if not _is_known(known.get(id), claim, until)]
            there = await read_rows(ground.wire, ground.paths, to_read)
            known.update((id, there.get(id)) for id in to_read)
            moves: list[Seen] = []
            for id, claim in left.items():
                seen = known.get(id)
                if seen is None or seen.row.fence != claim.fence or seen.row.holder != claim.holder:
                    versions[id] = "lost"
                elif seen.row.wake_at is not None and seen.row.wake_at >= until:
                    versions[id] = seen.row.version
                else:
                    moves.append(seen)
            left = {seen.id: left[seen.id] for seen in await self._move(moves, until, versions)}
            if not left:
                return Renewal(versions, now)
            for id in left:
                known.pop(id, None)
            await pause(attempt)
        raise StoreUnavailable(f"{ground.wire.name}: these leases are being written by others; try again")

    async def _move(
        self, moves: Sequence[Seen], until: float, versions: dict[str, int | Literal["busy", "lost"]]
    ) -> list[Seen]:
        """Push the ends of these leases; return those that were changed by somebody else meanwhile."""
        ground = self._ground
        batches = [moves[at : at + _GROUP] for at in range(0, len(moves), _GROUP)]
        groups, changed, sheets = [], [], []
        for batch in batches:
            group = Group()
            changed.append([ground.add_change(group, s, replace(s.row, wake_at=until), None) for s in batch])
            sheets.append(group.seal(ground.wire))
            groups.append(group)
        failed: list[Seen] = []
        for at, outcome in enumerate(await commit(ground.wire, ground.folders, groups) if groups else ()):
            if isinstance(outcome, Failed):
                failed += batches[at]
                continue
            for seen in changed[at]:
                seen.zxid = outcome[0]
                versions[seen.id] = seen.row.version
            ground.held.move(changed[at], sheets[at])
        return failed


def _is_known(seen: Seen | None, claim: Claim, until: float) -> bool:
    """Whether the lease can be renewed by what is known, without a look."""
    return (
        seen is not None
        and seen.row.fence == claim.fence
        and seen.row.holder == claim.holder
        and seen.row.wake_at is not None
        and seen.row.wake_at < until
    )


def _is_of(row: Row, lane: _Lane) -> bool:
    return row.queue == lane.queue and row.priority == lane.priority
