"""Jobs in one SQLite file, shared by any number of processes of one host.

Every operation is one transaction and runs in one go in the connection's thread: a cancelled caller leaves nothing half done,
and pays for one change of threads instead of one for each statement. All writes begin with ``BEGIN IMMEDIATE``: SQLite has
one writer at a time, and a transaction that only later turned into a writer could not wait for its turn.

**Durability.** The file is in WAL mode. With ``synchronous="NORMAL"`` nothing that was acknowledged is lost when a process
dies, but the last transactions may be lost when the *machine* loses power (the file stays sound). ``synchronous="FULL"``
waits for the disk at each commit and loses nothing. WAL needs a local file system; it does not work over a network.

**Time** is the host's clock, read once the write lock is held. ``on_hint`` hears only of what this object wrote, since SQLite
has no notifications; polling covers what other processes write.
"""

from __future__ import annotations

from asyncsched.errors import MissingExtra

try:
    import aiosqlite  # noqa: F401
except ImportError as error:
    raise MissingExtra('the SQLite store needs aiosqlite: pip install "asyncsched[sqlite]"') from error

from asyncsched.stores.sqlite._store import SQLiteStore

__all__ = ["SQLiteStore"]
