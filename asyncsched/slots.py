"""How many runs may be under way at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

__all__ = ["Slots"]


class Slots:
    """How many runs may be under way at once: in this instance over all its stores, and in each limited queue."""

    def __init__(self, free: int, queues: Mapping[str, int | None]) -> None:
        self.free = free
        self.queues = queues
        self._limits = {name: limit for name, limit in queues.items() if limit is not None}
        self._used = dict.fromkeys(self._limits, 0)
        self._turn = 0
        #: The ordinary case: one queue without a limit.
        self._plain = list(queues) if len(queues) == 1 and not self._limits else None
        #: Called, once, when a slot becomes free.
        self._waiting: list[Callable[[], None]] = []

    def groups(self, paused: Collection[str], wake: Callable[[], None]) -> list[tuple[list[str], int]]:
        """What may be claimed: queues without a limit together, limited ones by themselves; their order rotates.

        Where something has no room now, *wake* is called when that may have changed.
        """
        if self.free <= 0:
            self.wait(wake)
            return []
        if self._plain is not None and not paused:
            return [(self._plain, self.free)]
        names = [name for name in self.queues if name not in paused]
        if len(names) > 1:
            self._turn = (self._turn + 1) % len(names)
            names = names[self._turn :] + names[: self._turn]
        if not self._limits:
            return [(names, self.free)] if names else []
        unlimited = [name for name in names if name not in self._limits]
        groups = [(unlimited, self.free)] if unlimited else []
        for name in names:
            if name not in self._limits:
                continue
            room = min(self.free, self._limits[name] - self._used[name])
            if room > 0:
                groups.append(([name], room))
            else:
                self.wait(wake)
        return groups

    def wait(self, wake: Callable[[], None]) -> None:
        """Have *wake* called when a slot becomes free."""
        if wake not in self._waiting:
            self._waiting.append(wake)

    def take(self, queue: str) -> None:
        self.free -= 1
        if queue in self._used:
            self._used[queue] += 1

    def give(self, queue: str) -> None:
        self.free += 1
        if queue in self._used:
            self._used[queue] -= 1
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for wake in waiting:
                wake()
