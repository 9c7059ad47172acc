"""What a worker hears of its store, and what it does when a record that it holds was updated: perhaps its run is to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress

from asyncsched.clock import Clock, Timer
from asyncsched.codec import decode_definition
from asyncsched.contract import JobStore, Record
from asyncsched.errors import SerializationError
from asyncsched.execution import Execution
from asyncsched.keeper import Keeper

__all__ = ["News"]

#: Between two hints without a time that are followed.
_HUSH_S = 0.1


class News:
    """Of one store, for the runs that are *held*."""

    def __init__(
        self,
        store: JobStore,
        clock: Clock,
        held: Mapping[str, Execution],
        on_error: Callable[[Exception], None],
        spawn: Callable[[Coroutine[None, None, None]], object],
    ) -> None:
        self._store = store
        self._clock = clock
        self._held = held
        self._on_error = on_error
        self._spawn = spawn
        self._keeper: Keeper | None = None
        self._hint: Callable[[float | None], None]
        self._timer: Timer | None = None
        self._quiet_until = -math.inf

    def listen(self, hint: Callable[[float | None], None], keeper: Keeper | None) -> Callable[[], None]:
        """Pass hints on to *hint* from now on; return what ends that.

        One without a time may mean anything, so the held records are looked at too: by *keeper*, which renews at once, or
        straight away where there is none. However many of them come, they are followed once in a tenth of a second, and after
        the last one.
        """
        self._hint, self._keeper = hint, keeper
        end_hints = self._store.on_hint(self._hear)

        def end() -> None:
            end_hints()
            if self._timer is not None:
                self._timer.cancel()

        return end

    def cancel(self, record: Record) -> None:
        """End the run that *record* names, if it is here."""
        held = self._held.get(record.id)
        if held is None or held.record.fence != record.fence:
            return
        is_new = decode_definition(held.record.body).cancel != record.fence
        if is_new and record.version == held.record.version + 1:
            # Nothing else was changed: its settlement is not stale for that.
            held.record = record
        held.cancel("cancel")

    async def look_at(self, executions: Sequence[Execution]) -> None:
        """Their records may have been updated since: perhaps to have a run cancelled. Raises StoreError."""
        records = await self._store.get([execution.record.id for execution in executions])
        for execution in executions:
            record = records.get(execution.record.id)
            if record is None or record.fence != execution.record.fence:
                continue
            if record.version > max(execution.record.version, execution.seen):
                execution.seen = record.version
                with suppress(SerializationError):
                    if decode_definition(record.body).cancel == record.fence:
                        self.cancel(record)

    # -- below ---------------------------------------------------------------------------------------------------------

    def _hear(self, wake_at: float | None) -> None:
        if wake_at is not None:
            self._hint(wake_at)
        elif self._timer is None:
            if self._clock.monotonic() < self._quiet_until:
                self._timer = self._clock.call_at(self._quiet_until, self._follow)
            else:
                self._follow()

    def _follow(self) -> None:
        self._timer = None
        self._quiet_until = self._clock.monotonic() + _HUSH_S
        self._hint(None)
        if not self._held:
            return
        if self._keeper is not None:
            self._keeper.notice(at_once=True)
        else:
            self._spawn(self._look_around())

    async def _look_around(self) -> None:
        try:
            await self.look_at(list(self._held.values()))
        except Exception as error:
            self._on_error(error)
