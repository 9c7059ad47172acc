"""redis-server for tests: one, one with a password, a replica, and a cluster of three."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path

from tests.servers.server import CannotStart, Server, free_port

__all__ = ["RedisCluster", "RedisReplica", "RedisServer"]

_SLOTS = 16384
_CLUSTER_S = 30.0


class RedisServer(Server):
    """One redis-server that logs each write to its disk; *arguments* are added to its command line."""

    needs = "redis-server"
    reads_still = False

    def __init__(self, folder: Path | None = None, *arguments: str, password: str = "") -> None:
        super().__init__(folder)
        self._arguments = arguments
        self._password = password

    @property
    def url(self) -> str:
        login = f":{self._password}@" if self._password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def prepare(self) -> None:
        self.data = self.make_folder("data")

    def command(self) -> Sequence[str | Path]:
        password = ["--requirepass", self._password] if self._password else []
        return [
            self.find("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.data,
            "--save", "", "--appendonly", "yes", "--daemonize", "no", *password, *self._arguments,
        ]  # fmt: skip

    def is_ready(self) -> bool:
        wanted = b"-LOADING" if self.reads_still else (b"+PONG", b"-NOAUTH")
        return self.ask("PING").startswith(wanted)

    def start_loading(self) -> None:
        """Start it again such that it takes its time to read its data, and return while it does."""
        arguments, self._arguments = self._arguments, (*self._arguments, "--key-load-delay", "300")
        self.reads_still = True
        self.start()
        self._arguments, self.reads_still = arguments, False

    def ask(self, *words: str | int) -> bytes:
        """The first part of the answer to a command, as it came over the wire."""
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as connection:
            if self._password and words != ("PING",):
                connection.sendall(_packed("AUTH", self._password))
                connection.recv(64)
            connection.sendall(_packed(*words))
            return connection.recv(65536)


class RedisReplica(RedisServer):
    """A replica of *primary*, until it is promoted."""

    def __init__(self, primary: RedisServer) -> None:
        super().__init__(None, "--replicaof", "127.0.0.1", str(primary.port))

    def is_ready(self) -> bool:
        return super().is_ready() and b"master_link_status:up" in self.ask("INFO", "replication")

    def promote(self) -> None:
        assert self.ask("REPLICAOF", "NO", "ONE").startswith(b"+OK")


class RedisCluster:
    """Three primaries, each with a third of the slots."""

    def __init__(self, nodes: int = 3) -> None:
        # The other nodes take a primary that does not answer for dead after so many milliseconds.
        self.bus_ports = [free_port() for _ in range(nodes)]
        self.nodes = [
            RedisServer(
                None, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
                "--cluster-port", str(bus), "--cluster-node-timeout", "2000",
            )
            for bus in self.bus_ports
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"

    def start(self) -> None:
        """Start all, and join them; raises CannotStart."""
        for i, node in enumerate(self.nodes):
            node.start()
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            count = len(self.nodes)
            node.ask("CLUSTER", "ADDSLOTSRANGE", i * _SLOTS // count, (i + 1) * _SLOTS // count - 1)
        for node, bus in zip(self.nodes[1:], self.bus_ports[1:], strict=True):
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Return once every node sees every slot served; raises CannotStart."""
        end = time.monotonic() + _CLUSTER_S
        while not all(self._is_whole(node) for node in self.nodes):
            if time.monotonic() > end:
                raise CannotStart(f"the cluster did not come together:\n{self.nodes[0].log[-2000:]}")
            time.sleep(0.05)  # No event tells when other processes agree. Bounded by the line above.

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()

    def _is_whole(self, node: RedisServer) -> bool:
        seen = node.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in seen and b"cluster_known_nodes:%d\r" % len(self.nodes) in seen


def _packed(*words: str | int) -> bytes:
    parts = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
