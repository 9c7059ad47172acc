"""PostgreSQL for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.servers.server import Server

__all__ = ["PASSWORD", "PLACES", "PostgresServer"]

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")

#: Of the user ``guarded``.
PASSWORD = "s3cret/word"

#: The user guarded needs a password; everyone else is let in.
_ACCESS = """\
local all all trust
host all guarded 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""


class PostgresServer(Server):
    """One PostgreSQL with the superuser ``postgres``, who needs no password; *settings* are added to its command line.

    With *tls* it has a certificate of its own, for 127.0.0.1, and listens with and without TLS.
    """

    needs = "postgresql (14 or later)"

    def __init__(self, folder: Path | None = None, *, tls: bool = False, **settings: str) -> None:
        super().__init__(folder)
        self._settings = settings
        self._tls = tls

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def certificate(self) -> Path:
        """What a client must trust."""
        return self.data / "server.crt"

    def prepare(self) -> None:
        self.data = self.make_folder("data")
        self.run(
            self.find("initdb", *PLACES), "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip
        (self.data / "pg_hba.conf").write_text(_ACCESS)
        if self._tls:
            self.run(
                self.find("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-days", "30", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                "-keyout", self.data / "server.key", "-out", self.certificate,
            )  # fmt: skip
            self._settings["ssl"] = "on"

    def command(self) -> Sequence[str | Path]:
        settings = {"listen_addresses": "127.0.0.1", "max_connections": "200", **self._settings}
        return [
            self.find("postgres", *PLACES), "-D", self.data, "-p", str(self.port), "-k", self.data,
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ]  # fmt: skip

    def is_ready(self) -> bool:
        probe = [str(self.find("pg_isready", *PLACES)), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(probe, check=False).returncode == 0
