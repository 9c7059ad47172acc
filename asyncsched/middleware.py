"""Middleware that comes with the scheduler: a circuit breaker, a log of runs, and a ceiling for their time.

``Scheduler(middleware=[log_runs(), circuit_breaker(threshold=5, cooldown=60)])``, the first one outermost.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from asyncsched.currentrun import CallNext, CurrentRun, Middleware
from asyncsched.errors import DefinitionError
from asyncsched.model import Finish, GiveUp, RetryLater, Snooze, Steering
from asyncsched.units import Duration, to_seconds

__all__ = ["CircuitBreaker", "CircuitOpen", "CircuitState", "circuit_breaker", "log_runs", "timeout"]

#: ``closed``: runs go through. ``open``: none does. ``half_open``: one does, to see whether the rest may.
CircuitState = Literal["closed", "open", "half_open"]

#: Of the cooldown: so much later than the first, or than a probe under way, do other refused runs come back.
_NEXT = 0.1
#: Of the cooldown: a run that comes back so little early has waited long enough. It waits by the store's clock.
_EARLY = 0.01
_MAX_ERROR = 500


@dataclass(eq=False)
class CircuitOpen(Snooze):
    """The circuit of a task is open: the run comes back at *until*, to the same fire time, and has spent no attempt."""

    until: datetime
    _: KW_ONLY
    reason: str = "the circuit is open"
    at: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.args = (f"{self.reason}; it comes back at {self.until.isoformat()}",)


def circuit_breaker(
    threshold: int, cooldown: Duration, *, on: tuple[type[Exception], ...] = (Exception,)
) -> CircuitBreaker:
    """Middleware that stops calling a task that fails again and again, and tries it with one run after a while.

    After *threshold* failed or timed-out runs of a task in a row its circuit opens for *cooldown* (seconds or timedelta). A run
    that comes meanwhile is not lost and not failed: it is snoozed, so it comes back to the same fire time and spends no attempt
    (history shows it as cancelled, with the reason). After the cooldown one run goes through, the probe: if it succeeds the
    circuit is closed, if it fails the circuit is open for another cooldown. Runs that come while the probe is under way are
    snoozed for a tenth of the cooldown.

    *on* says which errors count; others, and runs that were cancelled or snoozed, count neither way. Each task has a circuit of
    its own in each scheduler instance.
    """
    return CircuitBreaker(threshold, cooldown, on=on)


class CircuitBreaker:
    """What ``circuit_breaker`` makes: the middleware, and a handle on the circuits."""

    def __init__(
        self, threshold: int, cooldown: Duration, *, on: tuple[type[Exception], ...] = (Exception,)
    ) -> None:
        if type(threshold) is not int or threshold < 1:
            raise DefinitionError(f"circuit_breaker(threshold=) must be 1 or more, not {threshold!r}")
        kinds: tuple[Any, ...] = on if isinstance(on, tuple) else (on,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise DefinitionError(f"circuit_breaker(on=) takes exception classes, not {on!r}")
        self.threshold = threshold
        self.cooldown_s = to_seconds(cooldown, "circuit_breaker(cooldown=)", positive=True)
        self.on: tuple[type[Exception], ...] = kinds
        self._circuits: dict[tuple[str, str], _Circuit] = {}

    async def __call__(self, run: CurrentRun, call_next: CallNext) -> Any:
        circuit = self._circuits.get((run.instance, run.task))
        if circuit is None:
            circuit = self._circuits[run.instance, run.task] = _Circuit(self)
        turn = circuit.enter(run)
        verdict: bool | None = None
        try:
            result = await call_next()
            # A task that swallowed its cancellation has not succeeded by that.
            verdict = _verdict_of_cancelled(run)
            if verdict is None and not run.cancelled:
                verdict = True
        except asyncio.CancelledError:
            verdict = _verdict_of_cancelled(run)
            raise
        except Exception as error:
            verdict = _verdict_of_cancelled(run) if run.cancelled else self._verdict_of(error)
            raise
        finally:
            circuit.leave(run, turn, verdict)
        return result

    def state(self, task: str) -> CircuitState:
        """Of the circuit of the task of that name; with several instances in this process, of the one in the worst state."""
        states = {circuit.state for (_, name), circuit in self._circuits.items() if name == task}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    def reset(self, task: str | None = None) -> None:
        """Close the circuit of one task, or of all. Runs that were snoozed come back when they were to."""
        for (_, name), circuit in self._circuits.items():
            if task is None or name == task:
                circuit.close()

    def _verdict_of(self, error: Exception) -> bool | None:
        """True: it succeeded; False: it failed; None: it says nothing about the task's health."""
        if isinstance(error, Finish):
            return True
        if isinstance(error, RetryLater | GiveUp):
            return False
        if isinstance(error, Steering):
            return None
        return False if isinstance(error, self.on) else None


def _verdict_of_cancelled(run: CurrentRun) -> bool | None:
    return False if run.cancel_reason == "timeout" else None


class _Circuit:
    """One task's: how often it failed in a row, and since when nothing goes through."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._failures = 0
        #: The monotonic instant from which a probe may go through; None: closed.
        self._opens_until: float | None = None
        self._probe: CurrentRun | None = None
        #: Whether a refused run will come back at the end of this cooldown.
        self._has_candidate = False
        #: Rises whenever it opens or closes: what began before says nothing about what is now.
        self._turn = 0

    @property
    def state(self) -> CircuitState:
        if self._opens_until is None:
            return "closed"
        return "open" if self._probe is None else "half_open"

    def enter(self, run: CurrentRun) -> int:
        """Let the run through, and give what to leave by; raises CircuitOpen."""
        if self._opens_until is None:
            return self._turn
        cooldown_s = self._breaker.cooldown_s
        left_s = self._opens_until - run.clock.monotonic()
        if left_s > cooldown_s * _EARLY:
            if self._has_candidate:
                left_s += cooldown_s * _NEXT
            self._has_candidate = True
            why = f"the circuit of task {run.task!r} is open (failures in a row: {self._failures})"
        elif self._probe is not None and not self._probe.abandoned:
            left_s = cooldown_s * _NEXT
            why = f"the circuit of task {run.task!r} is being tried by run {self._probe.id}"
        else:
            self._probe = run
            run.logger.info("the circuit of task %r is tried by this run", run.task)
            return self._turn
        raise CircuitOpen(run.now() + timedelta(seconds=left_s), reason=why)

    def leave(self, run: CurrentRun, turn: int, verdict: bool | None) -> None:
        is_probe = self._probe is run
        if is_probe:
            self._probe = None
        if turn != self._turn or verdict is None:
            return
        if verdict:
            if is_probe:
                run.logger.warning("the circuit of task %r is closed again", run.task)
                self.close()
            elif self._opens_until is None:
                self._failures = 0
            return
        self._failures += 1
        if is_probe or (self._opens_until is None and self._failures >= self._breaker.threshold):
            self._open(run)

    def _open(self, run: CurrentRun) -> None:
        cooldown_s = self._breaker.cooldown_s
        self._opens_until = run.clock.monotonic() + cooldown_s
        self._has_candidate = False
        self._turn += 1
        run.logger.warning(
            "the circuit of task %r is open for %g s (failures in a row: %d)",
            run.task,
            cooldown_s,
            self._failures,
        )

    def close(self) -> None:
        self._failures = 0
        self._opens_until = self._probe = None
        self._turn += 1


def log_runs(logger: logging.Logger | None = None, level: int = logging.INFO) -> Middleware:
    """Middleware that logs the beginning and the end of each run: outcome and seconds; failures at WARNING or above.

    *logger* is the scheduler's unless given. Records carry job_id, task, attempt and fence. Arguments and results are not
    logged; of an error its class and the beginning of its text.
    """

    async def log(run: CurrentRun, call_next: CallNext) -> Any:
        to = run.logger if logger is None else logging.LoggerAdapter(logger, run.logger.extra)
        to.log(level, "run %s of task %s begins, attempt %d", run.id, run.task, run.attempt)
        began_at = run.clock.monotonic()

        def tell(at_level: int, end: str) -> None:
            seconds = run.clock.monotonic() - began_at
            to.log(at_level, "run %s of task %s %s after %.3f s", run.id, run.task, end, seconds)

        worse = max(level, logging.WARNING)
        try:
            result = await call_next()
        except asyncio.CancelledError:
            is_late = run.cancel_reason == "timeout"
            tell(
                worse if is_late else level,
                "timed out" if is_late else f"was cancelled ({run.cancel_reason})",
            )
            raise
        except (Finish, Snooze) as steering:
            tell(level, f"ended: {steering}")
            raise
        except Exception as error:
            tell(level if _is_ordinary(error) else worse, _failed(error))
            raise
        tell(level, "succeeded")
        return result

    return log


def _is_ordinary(error: Exception) -> bool:
    return isinstance(error, Steering) and not isinstance(error, RetryLater | GiveUp)


def _failed(error: Exception) -> str:
    # On one line, so that no error writes lines of its own into the log.
    text = " ".join(str(error).split())[:_MAX_ERROR]
    verb = "ended" if _is_ordinary(error) else "failed"
    return f"{verb} ({type(error).__name__}: {text})" if text else f"{verb} ({type(error).__name__})"


def timeout(seconds: Duration) -> Middleware:
    """Middleware that times a run out after *seconds* (or a timedelta), whatever its job says: a ceiling.

    A job's own shorter timeout counts as ever. The run ends as one that exceeded its own would: it is cancelled, has its grace,
    is settled as timed_out and retried. What middleware further out does before is not counted.
    """
    limit_s = to_seconds(seconds, "timeout(seconds=)", positive=True)

    async def limit(run: CurrentRun, call_next: CallNext) -> Any:
        timer = run.time_out_after(limit_s)
        try:
            return await call_next()
        finally:
            timer.cancel()

    return limit
