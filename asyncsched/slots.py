"""How many runs may be under way at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping

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
        #: Claimed for slots that another store's claim was quicker to take: the queue, and what begins it.
        self._line: dict[Hashable, tuple[str, Callable[[], None]]] = {}

    def serve(self, queue: str, limit: int | None) -> None:
        """Serve one more queue, or one with another limit."""
        self.queues = {**self.queues, queue: limit}
        self._plain = None
        self._limits.pop(queue, None)
        self._used.setdefault(queue, 0)
        if limit is not None:
            self._limits[queue] = limit

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

    def seat(self, run: Hashable, queue: str, begin: Callable[[], None]) -> None:
        """Have *begin* called once *run* has a slot: at once, unless the claims of several stores were promised the same one."""
        if self._has_room(queue):
            self.take(queue)
            begin()
        else:
            self._line[run] = (queue, begin)

    def take(self, queue: str) -> None:
        self.free -= 1
        if queue in self._used:
            self._used[queue] += 1

    def leave(self, run: Hashable, queue: str) -> None:
        """*run* is over, or is not to begin any more."""
        if self._line.pop(run, None) is None:
            self.give(queue)

    def give(self, queue: str) -> None:
        self.free += 1
        if queue in self._used:
            # A run that began before its queue was limited was not counted.
            self._used[queue] = max(self._used[queue] - 1, 0)
        if self._line:
            self._move_up()
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for wake in waiting:
                wake()

    def _move_up(self) -> None:
        for run, (queue, begin) in list(self._line.items()):
            if self._has_room(queue):
                del self._line[run]
                self.take(queue)
                begin()

    def _has_room(self, queue: str) -> bool:
        return self.free > 0 and (queue not in self._limits or self._used[queue] < self._limits[queue])
