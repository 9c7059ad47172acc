"""Where all of a store's requests meet: reading records, applying changes, hints, and what this instance remembers."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from aetcd import rpc
from msgspec.structs import replace

from asyncsched.errors import StoreUnavailable
from asyncsched.stores.etcd._keys import Keys
from asyncsched.stores.etcd._line import Line
from asyncsched.stores.etcd._ops import Item, Packed, get, is_at, pack, put
from asyncsched.stores.etcd._rows import Kept, decoded

__all__ = ["Desk", "Floor", "fenced", "floor_of"]

#: Requests that are on their way at once, of one call.
_AT_ONCE = 8
#: Bytes of large bodies and cursors that are read by one request.
_LARGE_READ = 2_000_000
#: So often is something tried that others keep changing.
TRIES = 12
#: Claims that are remembered: what is not is read when it is needed.
_MOST_HELD = 50_000
_MOST_GARBAGE = 10_000
_MOST_WASTED = 64


class Floor(NamedTuple):
    """The highest fence that came with a record from another store, and the revision at which it was written."""

    fence: int
    revision: int


class Desk:
    """What every part of one opened store uses."""

    def __init__(self, line: Line, keys: Keys, now: Callable[[], float]) -> None:
        self.line = line
        self.keys = keys
        self.now = now
        #: Says who told a hint, so that nobody hears his own.
        self.sender = secrets.token_hex(6)
        self.listeners: list[Callable[[float | None], None]] = []
        #: Records that were claimed here, as they were written last: so a settlement need not read first.
        self.held: dict[str, Kept] = {}
        #: Keys of no more use; they are deleted with whatever is written next.
        self.garbage: list[bytes] = []
        #: The last ends of leases of which that is so; their keys may be there still.
        self.wasted: deque[bytes] = deque(maxlen=_MOST_WASTED)
        #: Ends of leases: key -> ids that are held until then, as far as is known here.
        self.ends: dict[bytes, set[str]] = {}
        self._end_of: dict[str, bytes] = {}

    # -- reading -------------------------------------------------------------------------------------------------------

    async def values(self, keys: Sequence[bytes], revision: int = 0) -> tuple[dict[bytes, Any], int]:
        """What is there of *keys*, and the revision at which that was so; for many of them, the least of several."""
        pieces = [keys[at : at + 128] for at in range(0, len(keys), 128)]

        async def read(piece: Sequence[bytes]) -> Any:
            ops = [get(key) for key in piece]
            if revision:
                for op in ops:
                    op.request_range.revision = revision
            return await self.line.txn(rpc.TxnRequest(success=ops))

        answers = await self.together([read(piece) for piece in pieces])
        found = {
            kv.key: kv for answer in answers for part in answer.responses for kv in part.response_range.kvs
        }
        return found, min((answer.header.revision for answer in answers), default=0)

    async def rows(self, ids: Iterable[str], revision: int = 0) -> tuple[dict[str, Kept], int]:
        """The records of *ids* that exist, without what is large, as at *revision* (0: now); and the revision."""
        found, revision = await self.values([self.keys.job(id) for id in dict.fromkeys(ids)], revision)
        kept = (decoded(kv.value, kv.mod_revision) for kv in found.values())
        return {k.record.id: k for k in kept}, revision

    async def read(self, ids: Sequence[str]) -> list[Kept]:
        """The records of *ids* that exist, whole: each as it was at one revision, in its small parts and in its large ones."""

        async def of(piece: Sequence[str]) -> list[Kept]:
            found, revision = await self.rows(piece)
            return await self.whole(list(found.values()), revision)

        pieces = [ids[at : at + 128] for at in range(0, len(ids), 128)]
        return [k for kept in await self.together(list(map(of, pieces))) for k in kept]

    async def whole(self, kept: Sequence[Kept], revision: int = 0) -> list[Kept]:
        """*kept* with their large parts, as at *revision*; 0: as they are now, which a later comparison makes sure of."""
        wanted: list[tuple[bytes, int]] = []
        for k in kept:
            if k.body_size and not k.record.body:
                wanted.append((self.keys.body(k.record.id), k.body_size))
            if k.cursor_size and not k.record.cursor:
                wanted.append((self.keys.cursor(k.record.id), k.cursor_size))
        if not wanted:
            return list(kept)
        found: dict[bytes, Any] = {}
        reads = [self.values(piece, revision) for piece in _pieces(wanted)]
        for values, _ in await self.together(reads):
            found |= values
        return [self._filled(k, found) for k in kept]

    def _filled(self, kept: Kept, found: dict[bytes, Any]) -> Kept:
        if kept.is_whole:
            return kept
        record = kept.record
        body = found.get(self.keys.body(record.id))
        cursor = found.get(self.keys.cursor(record.id))
        return kept._replace(
            record=replace(
                record,
                body=record.body if body is None else body.value,
                cursor=record.cursor if cursor is None else cursor.value,
            )
        )

    @staticmethod
    async def together(calls: Sequence[Any]) -> list[Any]:
        """What all *calls* bring; if one fails, or the caller is cancelled, all have ended before that is told."""
        if len(calls) == 1:
            return [await calls[0]]
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(call: Any) -> Any:
            async with room:
                return await call

        tasks = [asyncio.ensure_future(one(call)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            left = [task for task in tasks if not task.done()]
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
            for task in tasks:
                # Told by the first that failed.
                if not task.cancelled():
                    task.exception()
            for call in calls:
                # Such as never began would be warned of.
                call.close()

    # -- writing -------------------------------------------------------------------------------------------------------

    async def apply(self, items: Sequence[Item]) -> list[int]:
        """Apply *items*, each by itself: the revision at which it was, or 0 where a comparison did not hold."""
        packs = list(pack(items))
        for packed in packs:
            if (earliest := packed.earliest) is not None:
                packed.more.append(put(self.keys.hint, self._told(earliest)))
        answers = await self.together([self.send(packed) for packed in packs])
        done = [revision for answer in answers for revision in answer]
        earliest = min(
            (i.earliest for i, ok in zip(items, done, strict=True) if ok and i.earliest is not None),
            default=None,
        )
        if earliest is not None:
            self.hint(earliest if earliest > -math.inf else None)
        return done

    async def send(self, packed: Packed, *compares: Any) -> list[int]:
        """Send one transaction; for each of its items the revision, or 0, as for all of them where *compares* do not hold."""
        garbage = self.garbage.copy()
        request = packed.request(self.garbage, compares)
        taken = garbage[len(self.garbage) :]
        try:
            answer = await self.line.txn(request)
        except BaseException:
            self.garbage += taken
            raise
        if not answer.succeeded:
            self.garbage += taken
            return [0] * len(packed.items)
        revision = answer.header.revision
        parts = answer.responses
        return [revision if parts[i].response_txn.succeeded else 0 for i in range(len(packed.items))]

    def is_above(self, floor: Floor) -> Any:
        """Nobody has raised the floor of fences since it was read."""
        return is_at(self.keys.fence, floor.revision)

    async def raise_floor(self, fence: int) -> None:
        """See to it that all fences from here on, of whatever, are higher than *fence*."""
        turn = 0
        while True:
            await self.pause(turn)
            turn += 1
            found, _ = await self.values([self.keys.fence])
            floor = floor_of(list(found.values()))
            if fence <= floor.fence:
                return
            new = put(self.keys.fence, b"%d" % fence)
            answer = await self.line.txn(rpc.TxnRequest(compare=[self.is_above(floor)], success=[new]))
            if answer.succeeded:
                return

    async def pause(self, turn: int) -> None:
        """Before something is tried again that another has won; raises StoreUnavailable if it has been often enough."""
        if turn >= TRIES:
            raise StoreUnavailable(f"{self.line.name}: others keep changing the same records; try again")
        if turn > 1:
            await asyncio.sleep(random.uniform(0.0, min(0.002 * 2**turn, 0.1)))

    # -- hints ---------------------------------------------------------------------------------------------------------

    def _told(self, wake_at: float) -> bytes:
        return msgspec.msgpack.encode((self.sender, wake_at))

    def hear(self, told: bytes) -> None:
        """A hint has come from somewhere."""
        try:
            sender, wake_at = msgspec.msgpack.decode(told, type=tuple[str, float])
        except msgspec.MsgspecError:
            sender, wake_at = "", -math.inf
        if sender != self.sender:
            self.hint(wake_at if wake_at > -math.inf else None)

    def hint(self, wake_at: float | None) -> None:
        for listener in tuple(self.listeners):  # One of them may end itself.
            listener(wake_at)

    # -- what is remembered --------------------------------------------------------------------------------------------

    def remember(self, kept: Kept, end: bytes | None) -> None:
        """A record that is held by what was claimed here, until the lease end *end*; None: as it was. What was written after
        it stays, since one call may hear of its writes later than another that came behind it."""
        id = kept.record.id
        there = self.held.get(id)
        if there is not None and there.revision > kept.revision:
            return
        self.held.pop(id, None)
        self.held[id] = kept
        if end is not None:
            self._leave_end(id)
            self._end_of[id] = end
            self.ends.setdefault(end, set()).add(id)
        if len(self.held) > _MOST_HELD:
            self.forget(next(iter(self.held)), is_over=False)

    def forget(self, id: str, at: int | None = None, *, is_over: bool = True) -> None:
        """It is not held any more, since the revision *at*: a claim that was made after that stays; or, not *is_over*: it is not
        known here."""
        there = self.held.get(id)
        if at is not None and there is not None and there.revision > at:
            return
        self.held.pop(id, None)
        self._leave_end(id, is_over=is_over)

    def _leave_end(self, id: str, *, is_over: bool = True) -> None:
        end = self._end_of.pop(id, None)
        if end is None:
            return
        ids = self.ends.get(end)
        if ids is None:
            return
        if not is_over:
            # Whoever comes by when that lease ends will see.
            del self.ends[end]
            return
        ids.discard(id)
        if not ids:
            del self.ends[end]
            self.waste(end)

    def waste(self, key: bytes) -> None:
        if len(self.garbage) < _MOST_GARBAGE:
            self.garbage.append(key)
            self.wasted.append(key)


def _pieces(wanted: Sequence[tuple[bytes, int]]) -> Iterable[list[bytes]]:
    """In pieces that are not too large."""
    piece: list[bytes] = []
    size = 0
    for key, length in wanted:
        if piece and size + length > _LARGE_READ:
            yield piece
            piece, size = [], 0
        piece.append(key)
        size += length
    if piece:
        yield piece


def fenced(kept: Kept, floor: Floor) -> int:
    """A fence above all that this id had, under whatever birth: the revision at which the record was last written, which is
    what the claim compares. After a restored backup, which brings revisions back, at least its own fences go on rising."""
    return max(floor.fence + kept.revision, kept.record.fence + 1)


def floor_of(kvs: Sequence[Any]) -> Floor:
    return Floor(int(kvs[0].value), kvs[0].mod_revision) if kvs else Floor(0, 0)
