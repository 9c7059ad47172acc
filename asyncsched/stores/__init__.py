"""The stores by URL. A store's module, and with it its database client, is loaded when a URL asks for it."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from asyncsched.address import without_password
from asyncsched.contract import JobStore
from asyncsched.errors import UnknownStoreError

__all__ = ["SCHEMES", "store_class", "store_from_url"]

#: scheme: (module, class). Each class has ``from_url``.
SCHEMES = {
    "memory": ("asyncsched.stores.memory", "MemoryStore"),
    "sqlite": ("asyncsched.stores.sqlite", "SQLiteStore"),
    "redis": ("asyncsched.stores.redis", "RedisStore"),
    "rediss": ("asyncsched.stores.redis", "RedisStore"),
    "unix": ("asyncsched.stores.redis", "RedisStore"),
    "redis+cluster": ("asyncsched.stores.redis", "RedisStore"),
    "rediss+cluster": ("asyncsched.stores.redis", "RedisStore"),
    "postgresql": ("asyncsched.stores.postgres", "PostgresStore"),
    "postgresql+asyncpg": ("asyncsched.stores.postgres", "PostgresStore"),
    "postgres": ("asyncsched.stores.postgres", "PostgresStore"),
    "mysql": ("asyncsched.stores.mysql", "MySQLStore"),
    "mariadb": ("asyncsched.stores.mysql", "MySQLStore"),
}


def store_from_url(url: str) -> JobStore:
    """The store that *url* names, not opened yet. Other packages add schemes by the entry point group ``asyncsched.stores``.

    Raises UnknownStoreError for a scheme that nothing serves, MissingExtra where its client is not installed.
    """
    store: JobStore = store_class(url).from_url(url)
    return store


def store_class(url: str) -> Any:
    """The class that serves *url*; raises as ``store_from_url`` does."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise UnknownStoreError(
            f"{without_password(url)!r} is no store URL; write memory://, or sqlite:///jobs.db for a file"
        )
    known = SCHEMES.get(scheme.lower())
    if known is None:
        return _from_entry_point(scheme.lower())
    return getattr(importlib.import_module(known[0]), known[1])


def _from_entry_point(scheme: str) -> Any:
    for point in entry_points(group="asyncsched.stores"):
        if point.name == scheme:
            return point.load()
    known = ", ".join(f"{name}://" for name in SCHEMES)
    raise UnknownStoreError(
        f"no store serves {scheme}:// (known: {known}, and entry points 'asyncsched.stores')"
    )
