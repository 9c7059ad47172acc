"""Stores for tests: the ordinary ones by kind, and a memory that several schedulers share as if it were a server."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from asyncsched import MemoryStore
from asyncsched.contract import JobStore
from asyncsched.stores import store_from_url
from tests.servers.running import SERVERS, Servers

__all__ = ["SharedMemory", "make_store", "namespaced", "url_of"]


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


def url_of(kind: str, folder: Path, servers: Servers) -> str:
    """A store of that kind with nothing in it: a file in *folder*, or a namespace of its own on the server of this run."""
    if kind in SERVERS:
        return namespaced(servers.url(kind))
    return "memory://" if kind == "memory" else f"sqlite:///{folder}/jobs.db?busy_timeout=10"


def namespaced(url: str) -> str:
    """*url* with a namespace of its own, so that tests on one server see nothing of each other."""
    return f"{url}{'&' if '?' in url else '?'}namespace=t{secrets.token_hex(6)}"


def make_store(kind: str, folder: Path, servers: Servers) -> JobStore:
    """A store of that kind with nothing in it."""
    return store_from_url(url_of(kind, folder, servers))
