"""PostgreSQL for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.servers.server import Server

__all__ = ["PLACES", "PostgresServer"]

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


class PostgresServer(Server):
    """One PostgreSQL with the superuser ``postgres``, who needs no password; *settings* are added to its command line."""

    needs = "postgresql (14 or later)"

    def __init__(self, folder: Path | None = None, **settings: str) -> None:
        super().__init__(folder)
        self._settings = settings

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def prepare(self) -> None:
        self.data = self.make_folder("data")
        self.run(
            self.find("initdb", *PLACES), "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip

    def command(self) -> Sequence[str | Path]:
        settings = {"listen_addresses": "127.0.0.1", "max_connections": "200", **self._settings}
        return [
            self.find("postgres", *PLACES), "-D", self.data, "-p", str(self.port), "-k", self.data,
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ]  # fmt: skip

    def is_ready(self) -> bool:
        probe = [str(self.find("pg_isready", *PLACES)), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(probe, check=False).returncode == 0
