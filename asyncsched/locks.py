"""Named locks and leaders, on leases that a store keeps: one holder among all processes, as long as its lease lasts.

A lease is a promise about time. A holder whose process stands still past its end is not stopped by anything here: another one
gets the lock, and both believe in it for a moment. Whatever must never be done twice is given the lock's ``fence``, which is
higher for each later holder, and refuses a lower one than it has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import random
import secrets
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Coroutine
from datetime import timedelta
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from asyncsched.clock import Clock, SystemClock, Timer
from asyncsched.contract import JobStore, Lease
from asyncsched.currentrun import CurrentRun, Middleware
from asyncsched.errors import (
    AsyncSchedError,
    DefinitionError,
    LockLost,
    LockNotAcquired,
    LockNotHeld,
    StoreError,
    StoreUnavailable,
)
from asyncsched.ids import check_name
from asyncsched.keeper import trust_end
from asyncsched.model import Skip, Snooze
from asyncsched.outlast import gone_astray, heeding
from asyncsched.units import Duration, to_seconds

__all__ = ["Leader", "Lock", "exclusive"]

P = ParamSpec("P")
R = TypeVar("R")

_LONGEST_NAME = 200
#: Between looks at a lock that others hold: at first, and at most.
_LOOK_S, _LONGEST_LOOK_S = 0.01, 0.25
#: How long the place in the line is kept for a process that has died there.
_PLACE_S = 2.0
#: Renewals per lease; and when one did not get through, so much of a lease later it is tried again.
_RENEWALS, _TRIES = 3, 10

_Turns = weakref.WeakKeyDictionary[JobStore, weakref.WeakValueDictionary[str, asyncio.Lock]]

#: Whose turn it is in this process, by event loop, store and name; with its loop a turn ends. asyncio's locks are fair.
_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = weakref.WeakKeyDictionary()


class Lock:
    """A lock that one holder has at a time, in whatever process, until it releases it or its lease of *ttl* ends.

    ``async with lock:`` waits for it and renews the lease until the block ends; if the lease can no longer be trusted the
    block is cancelled, and LockLost raised. ``acquire`` and ``try_acquire`` take it for one *ttl*; then it is for the caller to
    ``extend`` it. It is not re-entrant: whoever holds it and asks again waits for himself. *name* has 1 to 200 characters.

    *store* is an open store, or a function that gives one.
    """

    def __init__(
        self,
        store: JobStore | Callable[[], JobStore],
        name: str,
        ttl: Duration = 30,
        *,
        clock: Clock | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
            raise DefinitionError(f"a lock's name must have 1 to {_LONGEST_NAME} characters, not {name!r}")
        self.name = check_name(name, "a lock's name")
        self._ttl_s = to_seconds(ttl, "ttl", positive=True)
        self._store = store
        self._clock = clock or SystemClock()
        self.logger = logger or logging.getLogger("asyncsched")
        #: The lock itself, and the place in the line of those who wait for it.
        self._key, self._place = f"lock/{name}", f"lock-next/{name}"
        self._held: _Held | None = None
        #: By the task that is in it; a lost one may still be ending when another task has the next.
        self._blocks: dict[asyncio.Task[Any] | None, contextlib.AbstractAsyncContextManager[Lock]] = {}
        self._trouble: StoreUnavailable | None = None
        self._orphans: set[asyncio.Future[None]] = set()

    def copy(self) -> Lock:
        """The same lock for another holder: of one object only one at a time can be."""
        return Lock(self._store, self.name, self._ttl_s, clock=self._clock, logger=self.logger)

    def __repr__(self) -> str:
        return f"<Lock {self.name!r}{' held' if self.is_held else ''}>"

    @property
    def ttl(self) -> float:
        """Seconds of one lease."""
        return self._ttl_s

    @property
    def is_held(self) -> bool:
        """Whether this lock is held by this object, and its lease to be trusted still."""
        return self.remaining > 0

    @property
    def remaining(self) -> float:
        """For how many seconds the lease is to be trusted still, a fifth less than it lasts; 0 where it is not held."""
        if self._held is None or self._held.has_ended:
            return 0.0
        return max(self._held.trusted_until - self._clock.monotonic(), 0.0)

    @property
    def fence(self) -> int:
        """A number that is higher for each later holder of the lock; raises LockNotHeld."""
        return self._mine().lease.fence

    # -- taking it -----------------------------------------------------------------------------------------------------

    async def acquire(self, timeout: Duration | None = None) -> int:
        """Wait for the lock, and hold it for one ttl; returns its fence. Raises LockNotAcquired after *timeout* (None: never).

        A store that is away is waited for as well. Who waits longest in this process is served first; processes take turns.
        """
        limit_s = None if timeout is None else to_seconds(timeout, "timeout")
        if limit_s == 0:
            if not await self.try_acquire():
                raise self._not_acquired()
            return self.fence
        waiting = asyncio.ensure_future(self._wait())
        timer = None
        if limit_s is not None:
            timer = self._clock.call_at(self._clock.monotonic() + limit_s, waiting.cancel)
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            if not waiting.cancel() and not waiting.cancelled() and waiting.exception() is None:
                self._apart(self._give_up(waiting.result()))
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if waiting.cancelled():
            raise self._not_acquired() from self._trouble
        self._held = waiting.result()
        return self._held.lease.fence

    async def try_acquire(self) -> bool:
        """Take the lock for one ttl, if that can be done at once. Raises StoreUnavailable where the store does not answer."""
        turn = self._turn()
        try:
            # It may be free only for one who waits for it already.
            async with asyncio.timeout(0):
                await turn.acquire()
        except TimeoutError:
            return False
        held = None
        try:
            held = await self._attempt(turn, _new_holder())
        finally:
            if held is None:
                turn.release()
        if held is not None:
            self._held = held
        return held is not None

    async def extend(self, ttl: Duration | None = None) -> None:
        """Have the lease end *ttl* (by default the lock's own) from now; never sooner than it does. Raises LockNotHeld, or
        LockLost where another holder has it, or may have."""
        held = self._mine()
        ttl_s = self._ttl_s if ttl is None else to_seconds(ttl, "ttl", positive=True)
        asked_at = self._clock.monotonic()
        if held.lease.key not in await self._open().extend([held.lease], ttl_s):
            self._let_go(held)
            raise self._lost()
        self._trust(held, asked_at, ttl_s)

    async def release(self) -> None:
        """Let go of the lock. Raises LockNotHeld if it is not held, LockLost if its lease has ended, and StoreUnavailable where
        the store does not answer: then the lock frees itself when its lease ends."""
        held = self._mine()
        if self._clock.monotonic() >= held.ends_at:
            self._let_go(held)
            raise self._lost()
        held.has_ended = True
        # Whoever is cancelled now leaves no lock behind.
        await asyncio.shield(self._apart(self._set_free(held)))

    async def _set_free(self, held: _Held) -> None:
        # Whoever is next in this process asks for it after it is free.
        try:
            await self._open().release([held.lease])
        finally:
            self._let_go(held)

    # -- holding it ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Lock:
        block = self.hold()
        await block.__aenter__()
        self._blocks[asyncio.current_task()] = block
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        mine = asyncio.current_task()
        block = self._blocks.pop(mine) if mine in self._blocks else self._blocks.popitem()[1]
        return await block.__aexit__(kind, error, trace)

    @contextlib.asynccontextmanager
    async def hold(self, timeout: Duration | None = None) -> AsyncIterator[Lock]:
        """``async with lock.hold(timeout=5):`` is ``async with lock:`` that raises LockNotAcquired after *timeout*."""
        await self.acquire(timeout)
        held = self._mine()
        owner = held.owner = asyncio.current_task()
        assert owner is not None
        keeping = asyncio.create_task(self._keep(held), name=f"asyncsched-lock-{self.name}")
        try:
            yield self
            if held.is_lost:
                # The block ended before it could be told, or was told and has kept it to itself.
                await asyncio.sleep(0)
                raise asyncio.CancelledError
        except BaseException as error:
            if (
                held.is_lost
                and owner.uncancel() <= held.cancelling
                and isinstance(error, asyncio.CancelledError)
            ):
                raise self._lost() from error
            raise
        finally:
            held.owner = None
            keeping.cancel()
            was_held = held.has_ended or self._clock.monotonic() < held.trusted_until
            # Whoever is cancelled now leaves no lock behind.
            await asyncio.shield(self._apart(self._free(held, keeping)))
        if not was_held:
            raise self._lost()

    async def with_lock(
        self,
        function: Callable[P, Awaitable[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """What *function* returns, awaited while the lock is held as by ``async with``."""
        async with self.hold():
            return await function(*args, **kwargs)

    async def _keep(self, held: _Held) -> None:
        """Renew the lease until cancelled; cancel its owner once it is lost."""
        pause_s = self._ttl_s / _RENEWALS
        while True:
            left_s = held.trusted_until - self._clock.monotonic()
            await self._clock.sleep(max(min(pause_s, left_s), 0.0))
            if self._clock.monotonic() < held.trusted_until and not held.has_ended:
                asked_at, pause_s = self._clock.monotonic(), self._ttl_s / _RENEWALS
                try:
                    if held.lease.key in await heeding(self._open().extend([held.lease], self._ttl_s)):
                        self._trust(held, asked_at, self._ttl_s)
                        continue
                except Exception:
                    pause_s = self._ttl_s / _TRIES
                    continue
            self._lose(held)
            return

    def _lose(self, held: _Held) -> None:
        """Cancel the block that rests on it, if there is one."""
        if held.owner is not None and not held.is_lost and not held.has_ended:
            held.is_lost = True
            self.logger.warning("lock %r was lost: its lease could not be renewed in time", self.name)
            # Not as of the block's beginning: before Python 3.13 each TaskGroup that has failed in it adds to that.
            held.cancelling = held.owner.cancelling()
            held.owner.cancel()

    async def _free(self, held: _Held, keeping: asyncio.Task[None]) -> None:
        await asyncio.wait([keeping])
        if self._held is not held:
            return
        try:
            await self.release()
        except LockNotHeld:
            self._let_go(held)
        except AsyncSchedError as error:
            self.logger.warning("lock %r frees itself when its lease ends: %s", self.name, error)

    # -- below ---------------------------------------------------------------------------------------------------------

    def _open(self) -> JobStore:
        return self._store() if callable(self._store) else self._store

    def _turn(self) -> asyncio.Lock:
        of_loop = _turns.setdefault(asyncio.get_running_loop(), weakref.WeakKeyDictionary())
        of_store = of_loop.setdefault(self._open(), weakref.WeakValueDictionary())
        return of_store.setdefault(self.name, asyncio.Lock())

    def _mine(self) -> _Held:
        if self._held is None or self._held.has_ended:
            raise LockNotHeld(f"lock {self.name!r} is not held: acquire it first")
        return self._held

    def _lost(self) -> LockLost:
        return LockLost(f"lock {self.name!r} was lost: its lease ended, or another holder has it")

    def _not_acquired(self) -> LockNotAcquired:
        return LockNotAcquired(f"lock {self.name!r} was not to be had in time: another holds it")

    async def _wait(self) -> _Held:
        turn = self._turn()
        await turn.acquire()
        try:
            return await self._contend(turn)
        except BaseException:
            turn.release()
            raise

    async def _contend(self, turn: asyncio.Lock) -> _Held:
        """With other processes. Whoever waits keeps the next place in the line, so nobody goes past him."""
        holder, pause_s = _new_holder(), _LOOK_S
        self._trouble = None
        try:
            while True:
                try:
                    held = await self._attempt(turn, holder, stays=True)
                    if held is not None:
                        return held
                except StoreUnavailable as error:
                    self._trouble = error
                await self._clock.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 1.5, _LONGEST_LOOK_S, self._ttl_s / 2)
        except BaseException:
            self._apart(self._leave_line(holder))
            raise

    async def _attempt(self, turn: asyncio.Lock, holder: str, *, stays: bool = False) -> _Held | None:
        """Take the lock if it is free and nobody is in line before; with *stays* a place in the line is kept."""
        store = self._open()
        asking = asyncio.ensure_future(
            store.acquire([self._place, self._key], holder, min(self._ttl_s, _PLACE_S))
        )
        try:
            await asyncio.wait([asking])
        except asyncio.CancelledError:
            self._apart(self._give_back(asking))
            raise
        if asking.cancelled():
            raise StoreUnavailable(str(gone_astray()))
        taken = asking.result()
        place, lease = taken.get(self._place), taken.get(self._key)
        if lease is None or place is None:
            left = [one for one in (lease, None if stays else place) if one is not None]
            if left:
                await store.release(left)
            return None
        asked_at = self._clock.monotonic()
        try:
            extended, _ = await asyncio.gather(store.extend([lease], self._ttl_s), store.release([place]))
        except BaseException as error:
            freeing = self._apart(self._release([place, lease]))
            if isinstance(error, StoreError):
                # To be over before it is asked for again: the lease would be the same one, and freed under its holder.
                await asyncio.shield(freeing)
            raise
        if self._key not in extended:
            return None
        held = _Held(lease, turn)
        self._trust(held, asked_at, self._ttl_s)
        return held

    async def _leave_line(self, holder: str) -> None:
        with contextlib.suppress(StoreError):
            taken = await self._open().acquire([self._place], holder, _PLACE_S)
            await self._open().release(list(taken.values()))

    async def _give_back(self, asking: asyncio.Future[dict[str, Lease]]) -> None:
        with contextlib.suppress(StoreError):
            await self._release(list((await asking).values()))

    async def _give_up(self, held: _Held) -> None:
        """Nobody is there to take it."""
        try:
            await self._release([held.lease])
        finally:
            self._let_go(held)

    async def _release(self, leases: list[Lease]) -> None:
        with contextlib.suppress(StoreError):
            await self._open().release(leases)

    def _apart(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Have it done, whatever becomes of the caller; at worst a lease ends by itself."""
        task = asyncio.ensure_future(work)
        self._orphans.add(task)
        task.add_done_callback(self._orphans.discard)
        return task

    def _trust(self, held: _Held, asked_at: float, ttl_s: float) -> None:
        held.trusted_until = max(held.trusted_until, trust_end(asked_at, ttl_s))
        held.ends_at = max(held.ends_at, asked_at + ttl_s)
        if held.timer is not None:
            held.timer.cancel()
        held.timer = self._clock.call_at(held.trusted_until, lambda: self._run_out(held))

    def _run_out(self, held: _Held) -> None:
        """Its time is over, whatever has become of its renewal: its block ends, and nobody in this process waits for a holder who
        has forgotten about it."""
        if held.trusted_until <= self._clock.monotonic():
            self._lose(held)
            held.pass_on()

    def _let_go(self, held: _Held) -> None:
        held.has_ended = True
        if held.timer is not None:
            held.timer.cancel()
        held.pass_on()
        if self._held is held:
            self._held = None


def exclusive(lock: Lock | str, tasks: Container[str] | None = None, *, ttl: Duration = 30) -> Middleware:
    """A middleware under which one run at a time goes on, of all instances and of all jobs (or of *tasks*, by name).

    *lock* may be a name: then it is a lock of the scheduler that runs the job, in its default store, with *ttl*. A fire time that
    finds the lock taken does not run: history says ``locked``. A one-shot has no later one, and is put off. So is each fire time
    while the store of the lock is away.
    """

    async def middleware(run: CurrentRun, call_next: Callable[..., Awaitable[Any]]) -> Any:
        if tasks is not None and run.task not in tasks:
            return await call_next()
        mine = run.scheduler.lock(lock, ttl) if isinstance(lock, str) else lock.copy()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(mine.hold(timeout=0))
            except LockNotAcquired as error:
                raise Skip("locked", f"another run holds lock {mine.name!r}", put_off=1) from error
            except StoreUnavailable as error:
                # Nothing has begun, and the run is not to blame.
                raise Snooze(run.now() + timedelta(seconds=1)) from error
            return await call_next()

    return middleware


class _Held:
    """One holding of a lock."""

    def __init__(self, lease: Lease, turn: asyncio.Lock) -> None:
        self.lease = lease
        #: Monotonic instant after which another may have it.
        self.trusted_until = -math.inf
        #: Monotonic instant at which it has surely ended, unless it is extended.
        self.ends_at = -math.inf
        self.timer: Timer | None = None
        #: Who is in its block.
        self.owner: asyncio.Task[Any] | None = None
        self.has_ended = False
        self.is_lost = False
        #: How often its owner had been cancelled when it was lost.
        self.cancelling = 0
        self._turn: asyncio.Lock | None = turn

    def pass_on(self) -> None:
        """The next one in this process may ask for it."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.release()


def _new_holder() -> str:
    return secrets.token_hex(8)


class Leader:
    """One of all who stand for *name*, in whatever process, is the leader: as long as it lives, and its store says so.

    ``async with scheduler.leader("billing") as leader:`` stands for election until the block ends. *on_elected* and *on_lost*
    (sync or async) are called when this one becomes the leader, and when it is no longer: lost, or stepped down at the end of
    the block. An *on_elected* that still runs then is cancelled.
    """

    def __init__(
        self,
        lock: Lock,
        on_elected: Callable[[], object] | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self._lock = lock
        self._on_elected, self._on_lost = on_elected, on_lost
        self._elected = asyncio.Event()
        self._standing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Leader {self._lock.name!r}{' elected' if self.is_leader else ''}>"

    @property
    def name(self) -> str:
        return self._lock.name

    @property
    def is_leader(self) -> bool:
        """Whether this one is the leader, as far as can be known without asking."""
        return self._elected.is_set() and self._lock.is_held

    @property
    def fence(self) -> int:
        """A number that is higher for each later leader; raises LockNotHeld where this one is not the leader."""
        return self._lock.fence

    async def wait_elected(self) -> int:
        """Return the fence once this one is the leader. Raises LockNotHeld where its block ends before, and what else ended its
        standing."""
        standing = self._standing
        elected = asyncio.ensure_future(self._elected.wait())
        try:
            await asyncio.wait(
                {elected} if standing is None else {elected, standing}, return_when=asyncio.FIRST_COMPLETED
            )
            if standing is not None and standing.done():
                if not standing.cancelled():
                    standing.result()
                raise LockNotHeld(f"this one does not stand for {self.name!r} any more")
        finally:
            elected.cancel()
        return self._lock.fence

    async def __aenter__(self) -> Leader:
        if self._standing is not None:
            raise DefinitionError(f"this one stands for {self.name!r} already: make another Leader")
        self._lock._open()  # Raises at once what would end its standing.
        self._standing = asyncio.create_task(self._stand(), name=f"asyncsched-leader-{self.name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        standing, self._standing = self._standing, None
        assert standing is not None
        standing.cancel()
        await asyncio.wait([standing])
        if not standing.cancelled():
            standing.result()

    async def _stand(self) -> None:
        while True:
            try:
                async with self._lock.hold():
                    self._elected.set()
                    try:
                        await self._call(self._on_elected)
                        await asyncio.get_running_loop().create_future()
                    finally:
                        self._elected.clear()
                        await self._call(self._on_lost)
            except LockLost:
                continue
            except (StoreError, LockNotAcquired) as error:
                # The second where a call to the store was cancelled, though not by whoever waited for it.
                self._lock.logger.warning("leader %r stands again in a while: %s", self.name, error)
                await self._lock._clock.sleep(self._lock.ttl / _RENEWALS)

    async def _call(self, function: Callable[[], object] | None) -> None:
        """What it raises is no reason to lose an election."""
        if function is None:
            return
        try:
            answer = function()
            if inspect.isawaitable(answer):
                await heeding(answer)
        except Exception:
            self._lock.logger.exception("a callback of leader %r failed", self.name)
