"""Stores for tests: the ordinary ones by kind, and a memory that several schedulers share as if it were a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from asyncsched import MemoryStore
from asyncsched.contract import JobStore
from asyncsched.stores.sqlite import SQLiteStore

__all__ = ["SharedMemory", "make_store"]


class SharedMemory(MemoryStore):
    """A memory with leases that end, as on a server: it outlives the schedulers that are closed, and serves several.

    Its clock is the first that it was opened with; with *now* it has a server's clock of its own.
    """

    capabilities = replace(MemoryStore.capabilities, durable=True, shared=True)

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        super().__init__()
        self._given_now = now
        if now is not None:
            self.capabilities = replace(self.capabilities, clock="server")

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if self._given_now is None:
            self._given_now = now
        await super().open(self._given_now)

    async def close(self) -> None:
        """Nothing: other schedulers may go on."""


def make_store(kind: str, folder: Path) -> JobStore:
    """A store of that kind; of SQLite, a file in *folder*, the same one at each call."""
    if kind == "memory":
        return MemoryStore()
    return SQLiteStore(folder / "jobs.db", busy_timeout=10.0)
