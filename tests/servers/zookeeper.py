"""A ZooKeeper of one server for tests."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from tests.servers.server import CannotStart, Server

__all__ = ["JARS", "ZooKeeperServer"]

#: Where Debian's package puts the server.
JARS = "/usr/share/java"


class ZooKeeperServer(Server):
    """One server that is an ensemble by itself, writes each change to its disk, and runs as java: no script stands between.

    *options* are Java system properties, ``zookeeper.superUser`` among them.
    """

    needs = "zookeeper and a Java runtime"

    def __init__(self, folder: Path | None = None, **options: str) -> None:
        super().__init__(folder)
        self._options = options

    @property
    def url(self) -> str:
        return f"zk://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        data = self.make_folder("data")
        settings = {
            "tickTime": 500,
            "minSessionTimeout": 1000,
            "dataDir": data,
            "clientPort": self.port,
            "clientPortAddress": "127.0.0.1",
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "*",
            "maxClientCnxns": 0,
        }
        (self.folder / "zoo.cfg").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def command(self) -> Sequence[str | Path]:
        jars = [self.find(name, JARS) for name in ("zookeeper.jar", "slf4j-simple.jar")]
        options = [f"-D{name}={value}" for name, value in self._options.items()]
        return [
            self.find("java"), "-Xmx256m", *options, "-cp", ":".join(map(str, jars)),
            "org.apache.zookeeper.server.quorum.QuorumPeerMain", self.folder / "zoo.cfg",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        # It says "imok" before it serves, and leaves those who ask too early without an answer.
        return self.ask("srvr", patience_s=0.5).startswith("Zookeeper version")

    def ask(self, word: str, patience_s: float = 5.0) -> str:
        """The answer to a command of four letters."""
        with socket.create_connection(("127.0.0.1", self.port), patience_s) as connection:
            connection.sendall(word.encode())
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer.decode()

    def count(self, name: str) -> int:
        """A figure of ``mntr``, such as ``zk_packets_received``; raises CannotStart where it is not told."""
        for line in self.ask("mntr").splitlines():
            found, _, value = line.partition("\t")
            if found == name:
                return int(float(value))
        raise CannotStart(f"ZooKeeper does not tell {name}")
