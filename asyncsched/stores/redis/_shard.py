"""The jobs under one hash tag, which live on one server of a cluster: calls as the scripts read them, and answers decoded."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from asyncsched.contract import (
    Claim,
    Claimed,
    Entry,
    Filter,
    Lease,
    Record,
    Settled,
    Settlement,
    Update,
)
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.redis import _scripts as scripts
from asyncsched.stores.redis._server import Server, logger

__all__ = ["Hints", "Shard", "moment", "place_of"]

#: How many items one script takes, so that it holds up the server for some milliseconds at the most; and how many bytes.
_CLAIMS, _SETTLEMENTS, _ITEMS, _LOOKS = 250, 200, 300, 1000
_BYTES = 4 << 20
#: What the server takes as one argument, unless told otherwise.
_MOST = 512 << 20
#: Calls of the script in one prune of crowded jobs, each of which looks at so many jobs.
_SWEEPS, _SWEPT_JOBS = 20, 500
#: A named lease that ended so long ago is forgotten: nobody renews it any more.
_FORGOTTEN_S = 3600.0
#: That a record came from another queue is remembered for so long where nobody says that it is not on its way any more.
_REMEMBERED_S = 30 * 86400.0

_encode = msgspec.msgpack.Encoder().encode
_fixed = msgspec.msgpack.Decoder(tuple[str, str, str, int, str, bytes]).decode
_claimed = msgspec.msgpack.Decoder(tuple[float, float | None, int, int, bool | None, int]).decode
_ids = msgspec.msgpack.Decoder(list[str]).decode
_renewed = msgspec.msgpack.Decoder(tuple[float, list[int]]).decode
_page = msgspec.msgpack.Decoder(tuple[bool, bytes]).decode
_entries = msgspec.msgpack.Decoder(tuple[bool, bytes, list[tuple[str, int, str, float, float, bytes]]]).decode
_pruned = msgspec.msgpack.Decoder(tuple[int, bytes]).decode
_acquired = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, int, float]]]).decode
_extended = msgspec.msgpack.Decoder(list[tuple[str, int, float]]).decode
_count = msgspec.msgpack.Decoder(int).decode
_opened = msgspec.msgpack.Decoder(tuple[int | None, str | None, int, int]).decode

_ANSWERS: dict[int, Settled] = {
    ord("d"): "done",
    ord("a"): "already",
    ord("s"): "stale",
    ord("l"): "lost",
    ord("g"): "gone",
}


class Hints:
    """Who is to hear of something that is due sooner: those here at once, those elsewhere by a channel."""

    def __init__(self, channel: str, sender: str) -> None:
        self.channel = channel
        self.sender = sender
        self.listeners: list[Callable[[float | None], None]] = []

    def give(self, wake_at: float | None) -> None:
        for listener in tuple(self.listeners):  # One of them may end itself.
            listener(wake_at)

    def read(self, answer: bytes) -> bytes:
        """Give the hint that an answer begins with, if it is one; return the rest."""
        (wake_at,) = _HINT(answer)
        if wake_at < math.inf:
            self.tell(wake_at)
        return answer[8:]

    def tell(self, wake_at: float) -> None:
        """Give the hint as it is written: minus infinity stands for no known time."""
        self.give(None if wake_at == -math.inf else wake_at)


_HINT = struct.Struct(">d").unpack_from
_HEAD = struct.Struct(">dQQQIIIII")


_Raw = msgspec.Raw
_SHORT = [bytes((0xD9, size)) for size in range(256)]


def _raw(blob: bytes) -> msgspec.Raw:
    """Bytes as msgpack's text, which is the only kind of string that the server's decoder knows."""
    size = len(blob)
    if size < 256:
        return _Raw(_SHORT[size] + blob)
    if size < 65536:
        return _Raw(b"\xda" + size.to_bytes(2, "big") + blob)
    return _Raw(b"\xdb" + size.to_bytes(4, "big") + blob)


def _of_record(r: Record) -> tuple[object, ...]:
    fixed = _raw(_encoded((r.id, r.birth, r.queue, r.priority, r.task, r.body)))
    return (
        r.id, fixed, r.queue, r.priority, r.wake_at, r.hold, _raw(r.cursor),
        r.version, r.fence, r.holder, r.settled, r.tries, r.prior,
    )  # fmt: skip


def _records(parts: Sequence[bytes]) -> list[Record]:
    """The records of an answer, from both parts of each."""
    found: list[Record] = []
    unpack, size = _HEAD.unpack_from, _HEAD.size
    for fixed, value in zip(parts[::2], parts[1::2], strict=True):
        id, birth, queue, priority, task, body = _fixed(fixed)
        wake_at, fence, settled, prior, version, tries, of_lane, of_hold, of_cursor = unpack(value)
        hold_at = size + of_lane
        cursor_at = hold_at + of_hold
        holder_at = cursor_at + of_cursor
        # Positional, since this is the hottest line of the store: the order of Record's fields.
        found.append(Record(
            id, birth, queue, priority, task, wake_at if wake_at < math.inf else None,
            value[hold_at:cursor_at].decode() if of_hold else None, body, value[cursor_at:holder_at],
            version, fence, value[holder_at:].decode() or None, settled, tries, prior or None,
        ))  # fmt: skip
    return found


def _of_settlement(s: Settlement, queue: str | None) -> tuple[object, ...]:
    entries = [(e.job_id, e.fence, e.kind, e.fire_at, e.at, _raw(e.body)) for e in s.entries]
    kind = 1 if s.delete else 2 if s.hand_back else 0
    plain = (s.id, s.fence, s.holder, s.version, _raw(s.cursor), s.wake_at, s.hold, kind, entries)
    if not s.spawn and s.unpark is None:
        return plain
    if queue is None:
        return (*plain, [_of_record(r) for r in s.spawn], s.unpark)
    here = [_of_record(r) for r in s.spawn if r.queue == queue]
    sent = {
        f"{r.queue}\0{r.id}\0{s.id}\0{s.fence}": _raw(_encoded(_of_record(r)))
        for r in s.spawn
        if r.queue != queue
    }
    return (*plain, here, None, sent)


def _of_update(u: Update) -> tuple[object, ...]:
    return (u.id, u.version, _raw(u.body), u.queue, u.priority, u.wake_at, u.hold, u.revoke, u.task)


class Shard:
    """The jobs, the log and the fences under the hash tag *tag*."""

    def __init__(
        self,
        server: Server,
        tag: str,
        hints: Hints,
        now: Callable[[], float | None],
        queue: str | None = None,
    ) -> None:
        names = (
            "jobs", "fixed", "lanes", "holds", "claims", "counts", "log", "times", "of_jobs", "meta", "leases", "sent",
            "arrived",
        )  # fmt: skip
        keys = {name: f"{{{tag}}}:{name}".encode() for name in names}
        self.keys = keys
        self._own = tuple(keys[name] for name in names[:6])
        self._all = tuple(keys[name] for name in names[:9])
        self._with_meta = (*self._own, keys["meta"])
        self._leases = (keys["leases"], keys["meta"])
        if queue is not None:
            self._with_meta += (keys["sent"],)
            self._all += (keys["sent"],)
        self._server = server
        self._tag = tag
        #: The only queue here; None: all of the namespace are.
        self.queue = queue
        #: Records of other queues that were found here on their way.
        self.on_their_way = 0
        self._hints = hints
        self._now = now
        #: The highest fence that this client has heard of, and the epoch: both are the server's to keep, and it may lose them.
        self._seen = 0
        self._epoch: int | None = None
        #: Behind which job the next call of prune goes on.
        self._swept = b""
        #: The cursor with which the next call of prune begins to look for leases that ended long ago.
        self._looked_at = "0"

    async def open(self, create: bool, schema: int, layout: str) -> tuple[int | None, str | None]:
        """Make the schema, if it is to be made; return the one that is there, and the layout."""
        keys = (self.keys["meta"], self.keys["lanes"])
        argument = _encode((create, schema, layout, self._hints.channel))
        answer = await self._server.run(scripts.OPEN, keys, argument)
        found, its_layout, epoch, fence = _opened(answer)
        # A store that is opened again remembers what it has seen.
        self._epoch = epoch if self._epoch is None else self._epoch
        self._seen = max(self._seen, fence)
        return found, its_layout

    async def erase(self) -> None:
        await self._server.command("UNLINK", *self.keys.values(), key=self.keys["meta"])
        self._seen, self._epoch = 0, None

    # -- records -------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken: set[str] = set()
        hints = self._hints
        await self.raise_fence(records)
        for argument in _chunks((hints.channel, hints.sender), list(map(_of_record, records)), _ITEMS):
            answer = await self._server.run(scripts.ADD, self._own, argument)
            taken.update(_ids(hints.read(answer)))
        return taken

    async def raise_fence(self, records: Sequence[Record]) -> None:
        """See to it that later fences are higher than those that *records* bring from another store."""
        fence = max((r.fence for r in records), default=0)
        if fence:
            await self._server.run(scripts.RAISE, (self.keys["meta"],), _encode((fence,)))

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for at in range(0, len(ids), _ITEMS):
            answer = await self._server.run(scripts.GET, self._own, _encoded(ids[at : at + _ITEMS]))
            found.update((record.id, record) for record in _records(answer))
        return found

    async def page(self, where: Filter, limit: int, after: Record | None) -> list[Record]:
        found: dict[str, Record] = {}
        behind = None if after is None else place_of(after)
        is_done = limit <= 0
        while not is_done:
            filters = (where.queue, where.task, where.hold, where.id_prefix or None)
            argument = _encoded((*filters, limit - len(found), behind and _raw(behind), _LOOKS, _BYTES))
            head, *parts = await self._server.run(scripts.PAGE, self._own, argument)
            is_done, behind = _page(head)
            found.update((record.id, record) for record in _records(parts))
        return list(found.values())

    async def update(self, update: Update) -> Record | None:
        hints = self._hints
        argument = _checked(
            _encoded((self._now(), hints.channel, hints.sender, _of_update(update))), update.id
        )
        head, *parts = await self._server.run(scripts.UPDATE, self._own, argument)
        hints.read(head)
        return next(iter(_records(parts)), None)

    async def remove(self, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for at in range(0, len(ids), _ITEMS):
            answer = await self._server.run(scripts.REMOVE, self._own, _encoded(ids[at : at + _ITEMS]))
            found.update(_ids(answer))
        return found

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float
    ) -> Claimed:
        records: list[Record] = []
        while True:
            asked = min(limit - len(records), _CLAIMS)
            epoch = self._epoch
            argument = _encode(
                (
                    self._now(),
                    token,
                    asked,
                    lease_s,
                    ahead_s,
                    _BYTES,
                    bool(records),
                    queues,
                    self._seen,
                    epoch,
                )
            )
            head, *parts = await self._server.run(scripts.CLAIM, self._with_meta, argument)
            now, next_wake_at, self._epoch, self._seen, is_whole, self.on_their_way = _claimed(head)
            if is_whole is None:
                raise self._lost_writes(epoch)
            taken = _records(parts)
            records += taken
            if len(taken) < asked or len(records) >= limit or not is_whole:
                return Claimed(records, next_wake_at, now)

    def _lost_writes(self, before: int | None) -> StoreUnavailable:
        """The server knows less than this client has heard from it: it was restored, emptied, or replaced by a replica that had
        not received all. Said once, by each client."""
        message = (
            f"{self._server.name} has lost writes in {self._tag!r} that it had acknowledged (epoch {before} became "
            f"{self._epoch}): jobs and ends of runs of its last moments may be missing, and some may run again; fences go on "
            f"from {self._seen}"
        )
        logger.error("%s", message)
        return StoreUnavailable(message)

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> tuple[list[int], float]:
        """A version for each claim, or -1 where it is lost."""
        versions: list[int] = []
        now = math.nan
        for at in range(0, len(claims), _ITEMS) or (0,):
            argument = _encode((self._now(), lease_s, claims[at : at + _ITEMS]))
            now, answers = _renewed(await self._server.run(scripts.RENEW, self._own, argument))
            versions += answers
        return versions, now

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: list[Settled] = []
        hints = self._hints
        head = (self._now(), hints.channel, hints.sender)
        items = [_of_settlement(s, self.queue) for s in settlements]
        for argument in _chunks(head, items, _SETTLEMENTS):
            answer = await self._server.run(scripts.SETTLE, self._all, argument)
            answers.extend(_ANSWERS[letter] for letter in hints.read(answer))
        return answers

    async def unpark(self, hold: str, limit: int) -> int:
        """Make so many records with that hold due, the earliest first; return how many there were."""
        hints = self._hints
        argument = _encode((self._now(), hints.channel, hints.sender, hold, limit))
        return _count(hints.read(await self._server.run(scripts.UNPARK, self._own, argument)))

    # -- records on their way to another queue -----------------------------------------------------------------------------

    async def sent(self) -> dict[str, list[tuple[bytes, bytes]]]:
        """By queue, the records that were spawned here for it and are not known to have come there, each with its key."""
        answer = await self._server.command("HGETALL", self.keys["sent"], key=self.keys["sent"])
        pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
        found: dict[str, list[tuple[bytes, bytes]]] = {}
        for key, record in pairs:
            queue, _, _ = key.partition(b"\0")
            found.setdefault(queue.decode(), []).append((key, record))
        return found

    async def arrive(self, sender: str, sent: Sequence[tuple[bytes, bytes]]) -> None:
        """Add records that were *sent* from the queue *sender*, each with its key there, unless their ids are taken. One that
        came before, by whomever, is left out, even if it has run by now."""
        hints = self._hints
        keys = (*self._own, self.keys["arrived"])
        head = (self._now(), _REMEMBERED_S, hints.channel, hints.sender, sender)
        for argument in _chunks(head, [(_raw(key), msgspec.Raw(record)) for key, record in sent], _ITEMS):
            hints.read(await self._server.run(scripts.ARRIVE, keys, argument))

    async def forget_arrived(self, sender: str, sent: Sequence[bytes]) -> None:
        """What had those keys at the queue *sender* is not there any more; only who has read it before may still bring it."""
        argument = _encode((self._now(), _FORGOTTEN_S, sender, list(map(_raw, sent))))
        await self._server.run(scripts.FORGET_ARRIVED, (self.keys["arrived"],), argument)

    async def forget_sent(self, keys: Sequence[bytes]) -> None:
        await self._server.command("HDEL", self.keys["sent"], *keys, key=self.keys["sent"])

    # -- named leases --------------------------------------------------------------------------------------------------

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None
    ) -> dict[str, Lease]:
        argument = _encoded((self._now(), lease_s, holder, keys, self._seen, self._epoch, limit))
        self._seen, rows = _acquired(await self._server.run(scripts.ACQUIRE, self._leases, argument))
        return {key: Lease(key, holder, fence, until) for key, fence, until in rows}

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        argument = _encode((self._now(), lease_s, leases))
        ends = _extended(await self._server.run(scripts.EXTEND, self._leases, argument))
        holders = {(lease.key, lease.fence): lease.holder for lease in leases}
        return {key: Lease(key, holders[key, fence], fence, until) for key, fence, until in ends}

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._server.run(scripts.RELEASE, self._leases, _encode(leases))

    async def forget_leases(self) -> None:
        """Those that ended long ago; of very many, the next stretch."""
        for _ in range(_SWEEPS):
            argument = _encode((self._now(), _FORGOTTEN_S, self._looked_at))
            # As text: a number of Lua's has fewer digits.
            self._looked_at = str(int(await self._server.run(scripts.FORGET, self._leases, argument)))
            if self._looked_at == "0":
                break

    # -- the log -------------------------------------------------------------------------------------------------------

    async def runs(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        found: list[Entry] = []
        behind = None if before is None else _place_of_entry(before, job_id)
        is_done = limit <= 0
        while not is_done:
            argument = _encoded((job_id, kinds, limit - len(found), behind and _raw(behind), _LOOKS, _BYTES))
            is_done, behind, rows = _entries(await self._server.run(scripts.RUNS, self._all, argument))
            found += (Entry(*row) for row in rows)
        return found

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        while older_than_s is not None and pruned < limit:
            asked = min(limit - pruned, _ITEMS)
            went, _ = await self._prune(older_than_s, None, asked)
            pruned += went
            if went < asked:
                break
        for _ in range(_SWEEPS if per_job is not None else 0):
            if pruned >= limit:
                break
            went, self._swept = await self._prune(None, per_job, min(limit - pruned, _ITEMS))
            pruned += went
            if not self._swept:
                break
        return pruned

    async def _prune(self, older_s: float | None, per_job: int | None, limit: int) -> tuple[int, bytes]:
        argument = _encode((self._now(), older_s, per_job, limit, _raw(self._swept), _SWEPT_JOBS))
        return _pruned(await self._server.run(scripts.PRUNE, self._all, argument))


# -- below -----------------------------------------------------------------------------------------------------------------


def _chunks(head: tuple[object, ...], items: Sequence[Any], most: int) -> Iterator[bytes]:
    """Arguments with *head* and as many items as are good for one script; an item is never split."""
    for at in range(0, len(items), most):
        yield from _halved(head, items[at : at + most])


def _halved(head: tuple[object, ...], items: Sequence[Any]) -> Iterator[bytes]:
    argument = _encoded((*head, items))
    if len(argument) <= _BYTES or len(items) == 1:
        yield _checked(argument, items[0])
        return
    half = len(items) // 2
    yield from _halved(head, items[:half])
    yield from _halved(head, items[half:])


def _encoded(value: object) -> bytes:
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError, TypeError, msgspec.MsgspecError) as error:
        raise StoreError(f"this cannot be stored: {error}") from error


def _checked(argument: bytes, item: Any) -> bytes:
    if len(argument) >= _MOST:
        id = item[0] if isinstance(item, tuple) else item
        raise StoreError(f"{id!r} has {len(argument)} bytes: Redis takes no more than {_MOST} at once")
    return argument


def moment(at: float) -> bytes:
    """An instant as the sorted sets have it: its bytes stand in the order of time."""
    return struct.pack(">d", at if at > 0 else 0.0)


def place_of(record: Record) -> bytes:
    """Where a record stands in the order of pages."""
    return moment(math.inf if record.wake_at is None else record.wake_at) + record.id.encode()


def _place_of_entry(entry: Entry, job_id: str | None) -> bytes:
    """Where an entry stands in the log of *job_id*, or in the whole."""
    at, id = moment(entry.at), entry.job_id.encode()
    rest = struct.pack(">d", entry.fence) + entry.kind.encode() + b"\0" + moment(entry.fire_at)
    if job_id is None:
        return at + id + b"\0" + rest
    own = job_id.encode()
    base = struct.pack(">H", len(own)) + own + at
    if own == id:
        return base + rest
    return base + b"\xff" if own < id else base
