"""What is added to Firestore's own times to have fences above those of jobs that came from another store."""

from __future__ import annotations

from collections.abc import Iterable

from asyncsched.contract import Record
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.firestore import _wire as wire
from asyncsched.stores.firestore._server import Conflict, Server, pause

__all__ = ["Floor"]

_TRIES = 8


class Floor:
    """A field of the namespace's own document, which is read with each claim and written only where jobs are moved in."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.name = server.place.root

    async def read(self) -> int:
        found, _ = await self._server.get([self.name], ["floor"])
        return self.of(found)

    def of(self, found: dict[str, object]) -> int:
        """The floor in what was read, the namespace's document among it."""
        return int(wire.value_of(found[self.name], "floor") or 0) if self.name in found else 0

    async def lift(self, records: Iterable[Record]) -> None:
        """See to it that each later fence is higher than any of *records*, before they are added.

        Every document was made after that of the namespace: no time is earlier than its, and no fence lower.
        """
        highest = max((record.fence for record in records), default=0)
        if not highest:
            return
        for attempt in range(_TRIES):
            await pause(attempt)
            found, _ = await self._server.get([self.name], ["floor"])
            document = found.get(self.name)
            if document is None:
                return
            needed = highest + 1 - wire.microseconds(document.create_time)
            if needed <= self.of(found):
                return
            try:
                write = wire.update(self.name, {"floor": needed}, wire.microseconds(document.update_time))
                await self._server.commit([write])
            except Conflict:
                continue
            return
        raise StoreUnavailable(
            f"{self._server.place.shown} changed again and again while jobs were moved into it"
        )
