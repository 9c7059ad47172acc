"""MariaDB and MySQL for tests."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.servers.server import Server

__all__ = ["MariaDBServer", "MySQLServer"]


class MariaDBServer(Server):
    """One MariaDB with the superuser ``root``, who needs no password, and the database ``test``."""

    needs = "mariadb-server (10.6 or later)"
    user = "mysql"

    @property
    def url(self) -> str:
        return f"mariadb://root@127.0.0.1:{self.port}/test"

    def prepare(self) -> None:
        if os.getuid() == 0:
            shutil.chown(self.folder, self.user)
        self.data = self.make_folder("data")
        self.run(
            self.find("mariadb-install-db"), "--no-defaults", f"--datadir={self.data}",
            "--auth-root-authentication-method=normal", "--skip-test-db",
        )  # fmt: skip
        test = self.data / "test"
        test.mkdir()
        if os.getuid() == 0:
            shutil.chown(test, self.user)

    def command(self) -> Sequence[str | Path]:
        return [
            self.find("mariadbd", "/usr/sbin"), "--no-defaults", f"--datadir={self.data}", f"--port={self.port}",
            "--bind-address=127.0.0.1", f"--socket={self.folder}/s.sock", f"--pid-file={self.folder}/pid",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
            # Its greeting: a packet header, then the protocol's version.
            return connection.recv(64)[4:5] == b"\x0a"


class MySQLServer(MariaDBServer):
    """One MySQL, in the place of MariaDB."""

    needs = "mysql-server-core (8.0 or later)"
