"""redis-server for tests."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from tests.servers.server import Server

__all__ = ["RedisServer"]


class RedisServer(Server):
    """One redis-server that logs each write to its disk; *arguments* are added to its command line."""

    needs = "redis-server"

    def __init__(self, folder: Path | None = None, *arguments: str) -> None:
        super().__init__(folder)
        self._arguments = arguments

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def prepare(self) -> None:
        self.data = self.make_folder("data")

    def command(self) -> Sequence[str | Path]:
        return [
            self.find("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.data,
            "--save", "", "--appendonly", "yes", "--daemonize", "no", *self._arguments,
        ]  # fmt: skip

    def is_ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
