"""What this process holds, as it was when it was last written: then a settlement needs no read before it writes."""

from __future__ import annotations

from typing import NamedTuple

from asyncsched.contract import Record

__all__ = ["Held", "Holding"]

#: More are never held by one process for long; what was forgotten is read again.
_MOST = 50_000


class Holding(NamedTuple):
    """A record as far as its settlement has to know it."""

    #: When its document was last changed, which is what a write shows to be let in.
    at_us: int
    fence: int
    holder: str | None
    version: int
    settled: int
    tries: int
    priority: int
    #: Bytes; 0 where it was not read.
    body: int = 0


class Held:
    """By job id. Shared by a store and its clone, which work in two threads: each step here is one of a plain dict."""

    def __init__(self) -> None:
        self._held: dict[str, Holding] = {}

    def keep(self, r: Record, at_us: int) -> None:
        self._held[r.id] = Holding(
            at_us, r.fence, r.holder, r.version, r.settled, r.tries, r.priority, len(r.body)
        )
        if len(self._held) > _MOST:
            for id in list(self._held)[: _MOST // 2]:
                self._held.pop(id, None)

    def renewed(self, id: str, fence: int, holder: str, version: int, at_us: int) -> None:
        """A record that was updated since its claim is forgotten: its settlement has to read how it stands there now."""
        there = self.get(id, fence, holder)
        if there is not None and there.version == version:
            self._held[id] = there._replace(at_us=at_us)
        elif there is not None:
            self.forget(id, fence)

    def get(self, id: str, fence: int, holder: str) -> Holding | None:
        there = self._held.get(id)
        return None if there is None or (there.fence, there.holder) != (fence, holder) else there

    def forget(self, id: str, fence: int) -> None:
        there = self._held.get(id)
        if there is not None and there.fence <= fence:
            self._held.pop(id, None)
