"""The buckets of rates: hidden records, changed by compare-and-set, one read and one write for a batch whatever its size."""

from __future__ import annotations

import random
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from asyncsched.clock import Clock
from asyncsched.contract import Filter, JobStore, Record, Update
from asyncsched.errors import StoreError
from asyncsched.ids import rate_mark
from asyncsched.link import Link
from asyncsched.rates import EMPTY, Rate

__all__ = ["Buckets"]

#: Their queue and task; nobody serves it.
_QUEUE = "#rate"
#: So often is a bucket tried that others change at the same time; then the starts come back after a while.
_TRIES = 30
_PAUSE_S = 0.002
_COME_BACK_S = (0.5, 1.5)
#: A bucket that has been full for so long is the same as none, and is forgotten; and how often to look for such.
_IDLE_S = 3600.0
_SWEEP_S = 900.0
_SWEEP = 500

#: Rates by bucket, the earliest instant, and whether it comes after an instant that it was given.
Wish = tuple[Mapping[str, Rate], float, bool]


class Given(NamedTuple):
    """The instant at which a start may be, and from how many of its buckets it has drawn."""

    at: float
    drawn: int


class Bucket(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """When all that was given away will have come back: of starts that were given instants, and of those that missed theirs.

    The second keeps starts in bounds that come late together, after an outage: what the first had given to them is gone.
    """

    full_at: float = EMPTY
    late_full_at: float = EMPTY

    def draw(self, rate: Rate, earliest: float, is_late: bool) -> tuple[float, Bucket]:
        at, full_at = rate.draw(self.late_full_at if is_late else self.full_at, earliest)
        return at, Bucket(self.full_at, full_at) if is_late else Bucket(full_at, self.late_full_at)


_NEW = Bucket()
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Bucket)


class Buckets:
    """The buckets of one store."""

    def __init__(self, store: JobStore, link: Link, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._clock = clock
        self._births = 0
        self._name = secrets.token_hex(8)
        #: As they were read last.
        self._records: dict[str, Record] = {}
        self._seen: dict[str, Bucket] = {}
        self._sweep_at: float | None = None

    async def read(self, names: Collection[str]) -> None:
        """Look at these."""
        ids = {rate_mark(name): name for name in names}
        found = await self._link.persist(lambda: self._store.get(list(ids)))
        for id, name in ids.items():
            self._records.pop(name, None)
            self._seen[name] = _NEW
            if id in found:
                self._records[name] = found[id]
                self._seen[name] = _read(found[id])

    def peek(self, rates: Mapping[str, Rate], earliest: float, is_late: bool, horizon: float) -> float:
        """When a start could be, as far as was read, after those that were asked about before."""
        for name in sorted(rates):
            if earliest <= horizon:
                earliest, self._seen[name] = self._seen[name].draw(rates[name], earliest, is_late)
        return earliest

    async def draw(self, wishes: Sequence[Wish], horizon: float) -> list[Given]:
        """The instants at which these may start, each from then on its own. The buckets have been read.

        Who is put off beyond *horizon* by one draws from no further one yet: a token for a far instant would take all those
        before it from the others. Keys come before tasks.
        """
        given = [Given(earliest, 0) for _, earliest, _ in wishes]
        for name in sorted({name for rates, _, _ in wishes for name in rates}):
            mine = [n for n, (rates, _, _) in enumerate(wishes) if name in rates and given[n].at <= horizon]
            if not mine:
                continue
            instants = await self._draw_of(
                name, [(wishes[n][0][name], given[n].at, wishes[n][2]) for n in mine]
            )
            for at, n in enumerate(mine):
                if instants is None:
                    given[n] = Given(horizon + random.uniform(*_COME_BACK_S), given[n].drawn)
                else:
                    given[n] = Given(instants[at], given[n].drawn + 1)
        self._records.clear()
        self._seen.clear()
        return given

    async def _draw_of(self, name: str, wanted: Sequence[tuple[Rate, float, bool]]) -> list[float] | None:
        """The instants; None: others changed the bucket each time."""
        for tries in range(_TRIES):
            if tries:
                await self._clock.sleep(_PAUSE_S * tries * random.random())
                await self.read([name])
            record = self._records.get(name)
            bucket = _NEW if record is None else _read(record)
            instants = []
            for rate, earliest, is_late in wanted:
                at, bucket = bucket.draw(rate, earliest, is_late)
                instants.append(at)
            if await self._write(name, record, bucket):
                return instants
        return None

    async def _write(self, name: str, record: Record | None, bucket: Bucket) -> bool:
        id, body = rate_mark(name), _encoder.encode(bucket)
        if record is None:
            self._births += 1
            new = Record(id, f"{self._name}:{self._births}", _QUEUE, 0, _QUEUE, None, "rate", body, b"")
            return not await self._link.persist(lambda: self._store.add([new]))
        update = Update(
            id=id, version=record.version, body=body, queue=_QUEUE, priority=0, wake_at=None, hold="rate"
        )
        return await self._link.persist(lambda: self._store.update(update)) is not None

    def is_sweep_due(self) -> bool:
        now = self._clock.monotonic()
        if self._sweep_at is None:
            # Only instances that have rates come here.
            self._sweep_at = now + _SWEEP_S * random.uniform(0.1, 1.0)
        if now < self._sweep_at:
            return False
        self._sweep_at = now + _SWEEP_S * random.uniform(0.5, 1.5)
        return True

    async def sweep(self, now: float) -> None:
        """Forget buckets that nobody has drawn from for long. Whoever draws from one in this very moment may begin with a full
        bucket once more, as it was full already."""
        try:
            after: Record | None = None
            while True:
                page = await self._store.page(Filter(queue=_QUEUE), _SWEEP, after)
                # Users may call a queue as they like.
                buckets = [record for record in page if record.id.startswith(rate_mark(""))]
                idle = [record.id for record in buckets if _is_idle(_read(record), now)]
                if idle:
                    await self._store.remove(idle)
                if len(page) < _SWEEP:
                    return
                after = page[-1]
        except StoreError:
            return


def _read(record: Record) -> Bucket:
    try:
        return _decoder.decode(record.body)
    except (msgspec.MsgspecError, ValueError):
        # Of a newer version, say; it is written anew.
        return _NEW


def _is_idle(bucket: Bucket, now: float) -> bool:
    return max(bucket.full_at, bucket.late_full_at) < now - _IDLE_S
