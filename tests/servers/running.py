"""The servers of one test run: each is started when the first test asks for it, and all end with the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import pytest

from tests.servers.etcd import EtcdServer
from tests.servers.firestore import FirestoreServer
from tests.servers.mongodb import MongoServer
from tests.servers.mysql import MariaDBServer, MySQLServer
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer
from tests.servers.server import CannotStart, Server
from tests.servers.zookeeper import ZooKeeperServer

__all__ = ["SERVERS", "Servers", "url_given_for", "variable_of"]

#: By the kind of store, as --stores names it.
SERVERS: Mapping[str, Callable[[], Server]] = {
    "redis": RedisServer,
    "postgres": PostgresServer,
    "mariadb": MariaDBServer,
    "mysql": MySQLServer,
    "mongodb": MongoServer,
    "firestore": FirestoreServer,
    "etcd": EtcdServer,
    "zookeeper": ZooKeeperServer,
}


def variable_of(kind: str) -> str:
    """The environment variable that may name a server of that kind: ``ASYNCSCHED_TEST_REDIS_URL`` and its like."""
    return f"ASYNCSCHED_TEST_{kind.upper()}_URL"


def url_given_for(kind: str) -> str | None:
    """The URL of a server that is there already."""
    return os.environ.get(variable_of(kind)) or None


class Servers:
    """One server of each kind, for tests that do it no harm; a test that does makes one of its own from ``SERVERS``."""

    def __init__(self) -> None:
        self._started: dict[str, Server] = {}

    def url(self, kind: str) -> str:
        """The URL of a server of that *kind*; a server that cannot be started fails the test."""
        given = url_given_for(kind)
        if given is not None:
            return given
        if kind not in self._started:
            server = SERVERS[kind]()
            try:
                server.start()
            except CannotStart as error:
                server.remove()
                pytest.fail(f"no {kind} server for this test: {error}", pytrace=False)
            self._started[kind] = server
        return self._started[kind].url

    def remove(self) -> None:
        for server in self._started.values():
            server.remove()
        self._started.clear()
