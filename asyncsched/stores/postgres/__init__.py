"""Jobs in a PostgreSQL database, shared by any number of instances on any number of hosts."""

from __future__ import annotations

from asyncsched.errors import MissingExtra

try:
    import asyncpg  # noqa: F401
except ImportError as error:
    raise MissingExtra('the PostgreSQL store needs asyncpg: pip install "asyncsched[postgres]"') from error

from asyncsched.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
