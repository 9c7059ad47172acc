"""Worker processes: one for each run that asks for one, kept for the next, killed with a run that is cancelled."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import anyio
import anyio.to_process
from anyio.lowlevel import checkpoint

from asyncsched.calls import text_of

__all__ = ["ProcessPool", "is_one_of_many"]

T = TypeVar("T")


class ProcessPool:
    """anyio's worker processes, as many as the scheduler has slots, with an end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._limiter: anyio.CapacityLimiter | None = None
        self._busy = 0
        #: Processes that are alive, busy or idle.
        self._alive = 0

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call *function* in a process, which is killed if this is cancelled."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._size)
        self._busy += 1
        self._alive = max(self._alive, self._busy)
        try:
            return await anyio.to_process.run_sync(
                _alone, function, args, cancellable=True, limiter=self._limiter
            )
        except _Sent as error:
            raise _arrived(error) from None
        except KeyboardInterrupt as error:
            # That process was interrupted, and not this one.
            raise RuntimeError("the worker process was interrupted") from error
        except (anyio.get_cancelled_exc_class(), anyio.BrokenWorkerProcess):
            self._alive -= 1
            raise
        finally:
            self._busy -= 1

    async def close(self) -> None:
        """End the idle processes. anyio keeps them until the event loop ends and has no call for this: each is told to exit."""
        for _ in range(self._alive):
            try:
                await anyio.to_process.run_sync(os._exit, 0, cancellable=True, limiter=self._limiter)
            except anyio.BrokenWorkerProcess:
                await checkpoint()
        self._alive = 0
        self._limiter = None


def is_one_of_many() -> bool:
    """Whether this process looks like one of several workers of a service: started by one that starts many (uvicorn, gunicorn),
    or told how many there are."""
    told = os.environ.get("WEB_CONCURRENCY", "")
    return (told.isdigit() and int(told) > 1) or multiprocessing.parent_process() is not None


class _Sent(Exception):
    """An error that its class does not make again from its pickle: the class, the arguments, and what else it holds."""

    def __init__(self, kind: type[Exception], args: tuple[Any, ...], state: Mapping[str, Any]) -> None:
        super().__init__(kind, args, state)


def _alone(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    """In the worker process: Ctrl-C goes to all processes of a terminal, and the one that this belongs to says what becomes of
    its runs. What the function starts is interrupted as ever."""
    signal.signal(signal.SIGINT, _ignore)
    try:
        return function(*args)
    except Exception as error:
        raise _sent(error) from None


def _ignore(*_: object) -> None:
    """As SIG_IGN, which programs would inherit."""


def _sent(error: Exception) -> Exception:
    """*error*, or what brings most of it to the process that waits for it."""
    text = text_of(error)
    for candidate in _candidates(error, text):
        try:
            if text_of(_arrived(pickle.loads(pickle.dumps(candidate)))) == text:
                return candidate
        except Exception:
            continue
    return RuntimeError(text)


def _candidates(error: Exception, text: str) -> Iterator[Exception]:
    yield error
    yield _Sent(type(error), error.args, vars(error))
    yield _Sent(type(error), (text.partition(": ")[2],), {})


def _arrived(error: Exception) -> Exception:
    if not isinstance(error, _Sent):
        return error
    kind, args, state = error.args
    made: Exception = kind.__new__(kind)
    made.args = args
    vars(made).update(state)
    return made
