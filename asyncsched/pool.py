"""A pool for work that is not worth a job: so many calls at once, and whoever asks for more waits its turn."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast, overload

from asyncsched.calls import without_stop
from asyncsched.clock import Clock, SystemClock
from asyncsched.errors import DefinitionError, PoolClosed, PoolError, PoolFull, WaitTimeout, WrongLoopError
from asyncsched.registry import is_async
from asyncsched.units import Duration, to_seconds

__all__ = ["Future", "Pool"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Future(asyncio.Future[T]):
    """What ``Pool.submit`` gives: the result of a call that may still be waiting or under way.

    It is an asyncio.Future, to be given to ``asyncio.wait``, ``gather`` or ``as_completed``, and ``done()`` says whether the
    call has ended. To await it is only to look: whoever is cancelled while waiting leaves the call as it is. ``cancel()``
    takes back a call that has not begun, and asks one that is under way to end.
    """

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._pool = pool
        self._work: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the call has ended, in whatever way: awaiting it returns or raises at once."""
        return self.done()

    async def wait(self, timeout: Duration | None = None) -> T:
        """The result of the call, or its error raised; may be called again, whatever it gave before.

        Raises WaitTimeout (a TimeoutError) after *timeout* (seconds or timedelta); the call goes on.
        """
        if timeout is not None:
            seconds = to_seconds(timeout, "timeout")
            if not await self._pool._wait_for(self, seconds):
                raise WaitTimeout(
                    f"the call has not ended within {seconds:g} s; it goes on, and may be awaited again"
                )
        return await self

    def cancel(self, msg: Any = None) -> bool:
        """Take the call back if it has not begun, else ask it to end; whether there was anything to cancel."""
        if self.done():
            return False
        if self._work is not None:
            return self._work.cancel(msg)
        self._pool._withdraw(self)
        return super().cancel(msg)

    def __await__(self) -> Generator[Any, None, T]:
        # A shield gives back what has ended already, as it is.
        return (
            super().__await__()
            if self.done()
            else asyncio.shield(cast("asyncio.Future[T]", self)).__await__()
        )

    __iter__ = __await__

    def _resolve(self, result: T) -> None:
        if not self.done():
            self.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.done():
            self.set_exception(error)

    def _drop(self) -> None:
        super().cancel()

    def _end_with(self, work: asyncio.Task[None]) -> None:
        """The work is over: whatever it did, nobody waits for it any more."""
        self._work = None
        if work.cancelled():
            super().cancel()
        elif (error := work.exception()) is not None:
            # It ends the event loop too.
            self._fail(error)


class _Call:
    """A function with its arguments, in the context of whoever asked for it."""

    __slots__ = ("context", "function", "future")

    def __init__(self, function: Callable[[], Any], future: Future[Any] | None = None) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        #: None: nobody waits for the result.
        self.future = future


class Pool:
    """Makes calls, *workers* at a time: coroutine functions in the event loop, plain functions in threads.

    ::

        async with Pool(10) as pool:
            await pool.go(notify, user)                     # waits for a free worker
            future = pool.submit(fetch, "https://...")      # takes its turn; the result is in the future
            pages = await pool.map(fetch, urls)

    Nothing here is durable: what must survive this process is a job. Everything that was accepted ends before the block does,
    also where the block is left by an error; only when the block is cancelled are the calls cancelled with it.

    It belongs to the event loop that it is first used in (WrongLoopError in another).

    :param workers: how many calls may be under way at once.
    :param queue_size: how many submitted calls may wait for a worker; ``submit`` raises PoolFull beyond that.
    :param logger: is told of errors that nobody else hears of.
    :param clock: what timeouts are measured by; tests give a ManualClock.
    """

    def __init__(
        self,
        workers: int = 4,
        *,
        queue_size: int = 1000,
        logger: logging.Logger | None = None,
        clock: Clock | None = None,
    ) -> None:
        for name, value in (("workers", workers), ("queue_size", queue_size)):
            if type(value) is not int or value < 1:
                raise DefinitionError(f"Pool({name}=) must be 1 or more, not {value!r}")
        self.workers = workers
        self.queue_size = queue_size
        self._logger = logger or logging.getLogger("asyncsched.pool")
        self._clock = clock or SystemClock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = workers
        #: In the order in which they came: calls that were accepted, and callers of ``go`` who wait to be.
        self._line: deque[_Call | asyncio.Future[None]] = deque()
        self._queued = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._is_closed = False
        self._threads: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        state = " closed" if self._is_closed else ""
        return f"<Pool {self.running} of {self.workers} workers, {self._queued} waiting{state}>"

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """How many calls are under way."""
        return len(self._tasks)

    @property
    def waiting(self) -> int:
        """How many submitted calls wait for a worker."""
        return self._queued

    @property
    def is_closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._is_closed

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def go(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Begin a call as soon as a worker is free, and return then. Its result goes nowhere, and an error into the log.

        Cancelled while it waits, it has not begun anything. Raises PoolClosed.
        """
        call = _Call(functools.partial(function, *args, **kwargs))
        await self._take_worker()
        self._begin(call)

    def try_go(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """As ``go``, if a worker is free now and nobody waits for it; else False, and nothing is begun. Raises PoolClosed."""
        self._check_open()
        call = _Call(functools.partial(function, *args, **kwargs))
        if not self._free:
            return False
        self._free -= 1
        self._begin(call)
        return True

    @overload
    def submit(
        self, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]: ...

    @overload
    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a call made when its turn comes; the future has its result or its error.

        Raises PoolFull where ``queue_size`` calls wait already, and PoolClosed.
        """
        loop = self._check_open()
        if not self._free and self._queued >= self.queue_size:
            raise PoolFull(
                f"{self._queued} calls wait for a worker of this pool already (queue_size={self.queue_size}): "
                f"await some of their futures first, or use map(), which takes only what it has room for"
            )
        future = Future[Any](self, loop)
        call = _Call(functools.partial(function, *args, **kwargs), future)
        if self._free:
            self._free -= 1
            self._begin(call)
        else:
            self._line.append(call)
            self._queued += 1
        return future

    @overload
    async def map(
        self, function: Callable[[T], Awaitable[R]], items: Iterable[T] | AsyncIterable[T]
    ) -> list[R]: ...

    @overload
    async def map(self, function: Callable[[T], R], items: Iterable[T] | AsyncIterable[T]) -> list[R]: ...

    async def map(
        self, function: Callable[[Any], Any], items: Iterable[Any] | AsyncIterable[Any]
    ) -> list[Any]:
        """Call *function* with each item; return the results in the order of the items.

        An item is taken when there is a worker for it, so *items* may be long, or come in slowly. After an error nothing
        further begins; what is under way ends, and then the error is raised (others of the same map go into the log).
        Cancelled, it cancels its own calls and waits for them.
        """
        futures: list[Future[Any]] = []
        loop = self._check_open()
        errors: list[BaseException] = []

        def note(future: asyncio.Future[Any]) -> None:
            error = self._cancelled() if future.cancelled() else future.exception()
            if error is not None:
                errors.append(error)

        try:
            async for item in _each(items):
                # What cannot be called takes no worker.
                call = functools.partial(function, item)
                await self._take_worker()
                if errors:
                    self._release()
                    break
                future = Future[Any](self, loop)
                future.add_done_callback(note)
                futures.append(future)
                self._begin(_Call(call, future))
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                _cancel(futures)
            await self._settled(futures)
            for unheard in errors:
                self._tell(unheard)
            raise
        await self._settled(futures)
        if errors:
            for unheard in errors[1:]:
                self._tell(unheard)
            raise errors[0]
        return [future.result() for future in futures]

    async def _settled(self, futures: list[Future[Any]]) -> None:
        """Return when all have ended; cancelled meanwhile, they are cancelled, and waited for all the same."""
        cancelled: asyncio.CancelledError | None = None
        while pending := [future for future in futures if not future.done()]:
            try:
                await asyncio.wait(pending)
            except asyncio.CancelledError as error:
                cancelled = error
                _cancel(pending)
        if cancelled is not None:
            raise cancelled

    # -- the end -------------------------------------------------------------------------------------------------------

    async def wait(self, timeout: Duration | None = None) -> bool:
        """Return True once everything that was accepted has ended, or False after *timeout* (seconds or timedelta; 0: at once).

        The pool stays open. Raises PoolError in a call of its own, which would wait for itself.
        """
        seconds = None if timeout is None else to_seconds(timeout, "timeout")
        self._refuse_own_call("wait()")
        if not self._tasks and not self._queued:
            return True
        if seconds == 0:
            return False
        idle = asyncio.get_running_loop().create_future()
        self._idle_waiters.append(idle)
        try:
            return await self._wait_for(idle, seconds)
        finally:
            if idle in self._idle_waiters:
                self._idle_waiters.remove(idle)

    async def close(self, timeout: Duration | None = None) -> bool:
        """Take nothing more, and return when everything that was accepted has ended; True: it ended by itself.

        After *timeout* (seconds or timedelta) what waits is not begun, what is under way is cancelled and waited for, and
        their futures say so. Cancelled itself, it does the same at once. A thread cannot be cancelled, and is waited for.
        """
        seconds = None if timeout is None else to_seconds(timeout, "timeout")
        self._refuse_own_call("close()")
        self._shut()
        try:
            if await self.wait(seconds):
                return True
        except asyncio.CancelledError:
            await self._cancel_all()
            raise
        finally:
            if not self._tasks:
                self._end_threads()
        await self._cancel_all()
        return False

    async def __aenter__(self) -> Pool:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(timeout=0 if isinstance(error, asyncio.CancelledError) else None)

    def _shut(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        # Whoever waits in go() has not been accepted yet.
        for place in [place for place in self._line if not isinstance(place, _Call)]:
            self._line.remove(place)
            if not place.done():
                place.set_exception(self._closed())

    async def _cancel_all(self) -> None:
        """Cancel what is accepted and return when it has ended; cancelled again meanwhile, it lets go of threads."""
        dropped = [place for place in self._line if isinstance(place, _Call)]
        self._line.clear()
        self._queued = 0
        for call in dropped:
            if call.future is not None:
                call.future._drop()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if dropped or tasks:
            self._logger.warning(
                "the pool was closed with calls under way (%d, cancelled) and waiting (%d, not begun)",
                len(tasks),
                len(dropped),
            )
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            self._end_threads()

    def _end_threads(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None

    # -- workers -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise WrongLoopError("this pool belongs to another event loop; make one for each")
        if self._is_closed:
            raise self._closed()
        return loop

    def _cancelled(self) -> PoolError:
        return self._closed() if self._is_closed else PoolError("a call of this map was cancelled")

    def _closed(self) -> PoolClosed:
        return PoolClosed("this pool is closed and takes no calls any more; make a new one")

    def _refuse_own_call(self, what: str) -> None:
        if asyncio.current_task() in self._tasks:
            raise PoolError(f"{what} in a call of the pool itself would wait for its own end")

    async def _take_worker(self) -> None:
        """Return with a worker taken, in turn; cancelled, none is taken."""
        loop = self._check_open()
        if self._free:
            self._free -= 1
            return
        turn = loop.create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It was given one in the same instant.
                self._release()
            elif turn in self._line:
                self._line.remove(turn)
            raise
        if self._is_closed:
            self._release()
            raise self._closed()

    def _release(self) -> None:
        """A worker is free: the next in line has it."""
        while self._line:
            place = self._line.popleft()
            if isinstance(place, _Call):
                self._queued -= 1
                self._begin(place)
                return
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def _begin(self, call: _Call) -> None:
        """Make the call with a worker that was taken for it."""
        assert self._loop is not None
        task = self._loop.create_task(self._work(call), name="asyncsched-pool", context=call.context)
        if call.future is not None:
            call.future._work = task
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._ended, call))

    def _ended(self, call: _Call, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if call.future is not None:
            call.future._end_with(task)
        self._release()
        if not self._tasks and not self._queued:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _withdraw(self, future: Future[Any]) -> None:
        for place in self._line:
            if isinstance(place, _Call) and place.future is future:
                self._line.remove(place)
                self._queued -= 1
                return

    async def _work(self, call: _Call) -> None:
        future = call.future
        try:
            if is_async(call.function):
                result = await call.function()
            else:
                result = await self._in_thread(call.function)
                if inspect.isawaitable(result):
                    result = await result
        except Exception as error:
            if future is None:
                self._tell(error)
            else:
                future._fail(error)
        else:
            if future is not None:
                future._resolve(result)

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """A thread cannot be cancelled: it keeps its worker until it returns, and what it returns then is dropped."""
        assert self._loop is not None
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers, "asyncsched-pool")
        context = contextvars.copy_context()
        running = self._loop.run_in_executor(self._threads, lambda: context.run(without_stop, function))
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            if not running.cancelled() and (unheard := running.exception()) is not None:
                self._tell(unheard)
            raise cancelled
        return running.result()

    def _tell(self, error: BaseException) -> None:
        self._logger.error("a call of the pool failed: %s", type(error).__name__, exc_info=error)

    async def _wait_for(self, future: asyncio.Future[Any], timeout_s: float | None) -> bool:
        """Wait until *future* has ended, which is left alone; False after the timeout."""
        if future.done():
            return True
        if timeout_s is None:
            await asyncio.wait([future])
            return True
        over = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(
            self._clock.monotonic() + timeout_s, lambda: None if over.done() else over.set_result(None)
        )
        try:
            await asyncio.wait([future, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        return future.done()


def _cancel(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
