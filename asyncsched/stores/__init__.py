"""The stores by URL. A store's module, and with it its database client, is loaded when a URL asks for it."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from asyncsched.address import check_url, without_password
from asyncsched.contract import JobStore
from asyncsched.errors import DefinitionError, MissingExtra, UnknownStoreError

__all__ = ["ENTRY_POINTS", "SCHEMES", "made_store", "store_class", "store_from_url"]

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
    "mongodb": ("asyncsched.stores.mongodb", "MongoStore"),
    "mongodb+srv": ("asyncsched.stores.mongodb", "MongoStore"),
    "zk": ("asyncsched.stores.zookeeper", "ZooKeeperStore"),
    "etcd": ("asyncsched.stores.etcd", "EtcdStore"),
    "firestore": ("asyncsched.stores.firestore", "FirestoreStore"),
}


#: The group in which other packages name a class for a scheme.
ENTRY_POINTS = "asyncsched.stores"


def made_store(given: str | JobStore) -> JobStore:
    """The store that a user gave, or that his URL names; raises DefinitionError for what is neither."""
    if isinstance(given, str):
        return store_from_url(given)
    if isinstance(given, type) or not hasattr(given, "capabilities"):
        raise DefinitionError(
            f"a store is a URL such as sqlite:///jobs.db, or an object such as MemoryStore(); not {given!r}"
        )
    return given


def store_from_url(url: str) -> JobStore:
    """The store that *url* names, not opened yet. Other packages add schemes by the entry point group ``asyncsched.stores``.

    Raises UnknownStoreError for a scheme that nothing serves, MissingExtra where its client is not installed, DefinitionError for
    what is no URL.
    """
    found = store_class(url)
    if url.partition("://")[0].lower() in SCHEMES:
        check_url(url)
    store: JobStore = found.from_url(url)
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
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == scheme:
            return _loaded(point)
    known = ", ".join(f"{name}://" for name in SCHEMES)
    raise UnknownStoreError(
        f"no store serves {scheme}:// (known: {known}, and entry points {ENTRY_POINTS!r})"
    )


def _loaded(point: EntryPoint) -> Any:
    try:
        found = point.load()
    except MissingExtra:
        raise
    except (ImportError, AttributeError) as error:
        raise UnknownStoreError(
            f"the entry point {point.name!r} of {ENTRY_POINTS!r} names {point.value!r}, which cannot be loaded: {error}"
        ) from error
    if not hasattr(found, "from_url"):
        raise UnknownStoreError(
            f"the entry point {point.name!r} of {ENTRY_POINTS!r} names {point.value!r}, which has no from_url()"
        )
    return found
