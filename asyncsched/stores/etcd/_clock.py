"""A clock for all instances of a namespace, since etcd tells nobody the time.

The first instance to come sets it by its host's clock, and keeps it: it holds the key ``signal/clock``, which is bound to a lease
of the server's that it refreshes. Whoever comes later asks what time it is, takes the answer for the time, whatever its own host
says, and goes on asking now and then. When the keeper goes, another one keeps the same clock on. Only when all are gone, and the
key with them, the next to come sets it anew. So instances whose clocks are hours apart agree on what is due and on
which leases have ended; that the time which they agree on is right depends on the first one's clock.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable

import msgspec
from aetcd import rpc

from asyncsched.clock import SystemClock, host_time, uptime
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.etcd._keys import Keys
from asyncsched.stores.etcd._line import Line, logger
from asyncsched.stores.etcd._ops import delete, is_absent, is_at, put

__all__ = ["AgreedClock"]

#: The key outlives its keeper by so much; the keeper tells the time, and refreshes the lease, so often.
_TTL_S = 24
_BEAT_S = 8.0
#: So often do others ask.
_ASK_S = 45.0
#: How long an answer may take, and how long one that does not keep the clock leaves it to the one that does.
_ANSWER_S = 1.0
_POLITE_S = 0.1
#: A host's clock that has gone so much farther than the machine has been up was set, and that is not followed.
_STEP_S = 0.5

_monotonic = SystemClock.monotonic


class AgreedClock:
    """The clock that the instances of one namespace agree on."""

    def __init__(self, line: Line, keys: Keys, host: Callable[[], float] = host_time) -> None:
        self._host_time = host
        self._line = line
        self._keys = keys
        self._me = secrets.token_hex(6)
        #: The clock less the host's.
        self._ahead_s = 0.0
        self._host_at, self._uptime_at = host(), uptime()
        #: Whether the time is known here, and the revision at which this instance told it last, if it keeps the clock.
        self._is_set = False
        self._kept_at = 0
        self._lease = 0
        self._asked_at: float | None = None
        self._answered = asyncio.Event()
        #: Something has happened: someone asks, or the keeper has gone.
        self._stirred = asyncio.Event()
        self._is_asked = False
        #: The monotonic instant at which somebody asked.
        self._heard_at = 0.0
        self._is_orphan = False
        #: A reply was lost, or the key is another's.
        self._is_unsure = False

    def now(self) -> float:
        """The time, which goes as the host's clock goes but for its steps."""
        host, up = self._host_time(), uptime()
        step_s = (host - self._host_at) - (up - self._uptime_at)
        if abs(step_s) > _STEP_S:
            self._ahead_s -= step_s
            # It may be that this machine stood still instead: the others know.
            self._stirred.set()
        self._host_at, self._uptime_at = host, up
        return host + self._ahead_s

    # -- coming and going ----------------------------------------------------------------------------------------------

    async def start(self, is_hearing: asyncio.Event) -> None:
        """Know the time; raises StoreUnavailable."""
        try:
            async with asyncio.timeout(self._line.timeout_s):
                await is_hearing.wait()
        except TimeoutError:
            raise StoreUnavailable(f"{self._line.name} does not watch keys at present") from None
        until = _monotonic() + _TTL_S + 2 * _ANSWER_S
        while _monotonic() < until:
            found = await self._line.within_deadline(self._line.range(rpc.RangeRequest(key=self._keys.clock)))
            if not found.kvs:
                if await self._line.within_deadline(self._set()):
                    return
                continue
            if await self._line.within_deadline(self._ask()):
                return
            # Nobody answers: its keeper has just died, or is held up.
            told_at = _told(found.kvs[0].value)[1]
            if -_STEP_S < self._host_time() - told_at < _TTL_S + _BEAT_S:
                self._is_set = True
                return
        raise StoreUnavailable(
            f"{self._line.name}: the clock of the other instances is not this host's, and none of them tells it; try again"
        )

    async def leave(self) -> None:
        """Let another keep the clock, or the next to come set it."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                if self._is_unsure:
                    await self._look()
                kept_at, self._kept_at = self._kept_at, 0
                if kept_at:
                    compares = [is_at(self._keys.clock, kept_at)]
                    await self._line.txn(rpc.TxnRequest(compare=compares, success=[delete(self._keys.clock)]))
        except (StoreError, TimeoutError) as error:
            logger.debug("%s: the clock is left as it is: %s", self._line.name, error)

    async def run(self) -> None:
        """Keep the clock or follow it until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_BEAT_S if self._kept_at else _ASK_S * random.uniform(0.8, 1.0)):
                    await self._stirred.wait()
            except TimeoutError:
                pass
            self._stirred.clear()
            try:
                async with asyncio.timeout(self._line.timeout_s):
                    await self._turn()
            except (StoreError, TimeoutError) as error:
                logger.debug("%s: the clock goes on by itself: %s", self._line.name, error)
                await asyncio.sleep(random.uniform(0.2, 0.6))
                if self._is_unsure:
                    # It may be the keeper still, and must not let the key end.
                    self._stirred.set()

    async def _turn(self) -> None:
        if self._is_unsure:
            await self._look()
        if self._kept_at:
            await self._beat()
        elif self._is_orphan:
            await asyncio.sleep(random.uniform(0.0, 2 * _POLITE_S))
            if self._is_orphan:
                await self._set()
        elif self._is_asked:
            self._answered.clear()
            await asyncio.sleep(random.uniform(_POLITE_S, 3 * _POLITE_S))
            self._is_asked = False
            if not self._answered.is_set():
                telling = self._telling(_monotonic() - self._heard_at)
                await self._line.txn(rpc.TxnRequest(success=[put(self._keys.told_clock, telling)]))
        elif not await self._ask():
            await self._look()

    # -- keeping -------------------------------------------------------------------------------------------------------

    async def _set(self) -> bool:
        """Keep the clock from here on, if nobody does."""
        self._lease = await self._line.grant(_TTL_S)
        clock = self._keys.clock
        request = rpc.TxnRequest(
            compare=[is_absent(clock)], success=[put(clock, self._telling(), self._lease)]
        )
        self._is_unsure = True
        answer = await self._line.txn(request)
        self._is_unsure = self._is_orphan = False
        if not answer.succeeded:
            return False
        self._kept_at = answer.header.revision
        self._is_set = True
        return True

    async def _beat(self) -> None:
        """Tell the time, and make sure that the key stays."""
        self._is_asked = False
        clock = self._keys.clock
        request = rpc.TxnRequest(
            compare=[is_at(clock, self._kept_at)], success=[put(clock, self._telling(), self._lease)]
        )
        self._kept_at, self._is_unsure = 0, True
        answer, is_alive = await asyncio.gather(self._line.txn(request), self._line.refresh(self._lease))
        if answer.succeeded and is_alive:
            self._kept_at, self._is_unsure = answer.header.revision, False
        else:
            self._stirred.set()

    async def _look(self) -> None:
        """Find out who keeps the clock."""
        found = await self._line.range(rpc.RangeRequest(key=self._keys.clock))
        self._is_unsure, self._is_orphan = False, not found.kvs
        if self._is_orphan:
            self._stirred.set()
        elif _told(found.kvs[0].value)[0] == self._me:
            self._kept_at = found.kvs[0].mod_revision

    def _telling(self, waited_s: float = 0.0) -> bytes:
        """Who tells it, the time, and for how long the one who asked was kept waiting, which is no part of the way."""
        return msgspec.msgpack.encode((self._me, self.now(), waited_s))

    # -- following -----------------------------------------------------------------------------------------------------

    async def _ask(self) -> bool:
        """Ask the others for the time; False if none of them tells it."""
        self._answered.clear()
        self._asked_at = self.now()
        try:
            await self._line.txn(rpc.TxnRequest(success=[put(self._keys.ask_clock, self._me.encode())]))
            async with asyncio.timeout(_ANSWER_S):
                await self._answered.wait()
        except TimeoutError:
            return False
        finally:
            self._asked_at = None
        return True

    def hear(self, key: bytes, value: bytes | None) -> None:
        """What another instance did with a key about the clock."""
        if key == self._keys.ask_clock:
            if value is not None and value != self._me.encode():
                self._is_asked, self._heard_at = True, _monotonic()
                self._stirred.set()
        elif value is None:
            if key == self._keys.clock and not self._kept_at:
                self._is_orphan = True
                self._stirred.set()
        else:
            teller, told_at, waited_s = _told(value)
            if teller != self._me:
                self._follow(told_at, waited_s)

    def _follow(self, told_at: float, waited_s: float) -> None:
        """It was *told_at* before now, and so long after it was asked for."""
        now = self.now()
        earliest_s = told_at - now
        # What was told to another one may have waited for longer than this one has.
        latest_s = None if self._asked_at is None else max(told_at - self._asked_at - waited_s, earliest_s)
        if self._kept_at:
            return
        if not self._is_set:
            if latest_s is None:
                return
            self._is_set = True
            self._ahead_s += (earliest_s + latest_s) / 2
        elif earliest_s > 0:
            self._ahead_s += earliest_s
        elif latest_s is not None and latest_s < 0:
            self._ahead_s += latest_s
        self._is_orphan = False
        if latest_s is not None or not self._asked_at:
            self._answered.set()


def _told(value: bytes) -> tuple[str, float, float]:
    try:
        return msgspec.msgpack.decode(value, type=tuple[str, float, float])
    except msgspec.MsgspecError as error:
        raise StoreError(f"the clock that the instances tell each other cannot be read: {error}") from error
