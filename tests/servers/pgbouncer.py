"""PgBouncer for tests: a pooler in front of a PostgreSQL, which hands out a connection for each transaction."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.server import Server

__all__ = ["PgBouncer"]

_SETTINGS = """\
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
"""


class PgBouncer(Server):
    """One pgbouncer that sends everyone to the PostgreSQL of *target*, over *size* connections, as the user postgres."""

    needs = "pgbouncer"

    def __init__(self, target: str, *, mode: str = "transaction", size: int = 5) -> None:
        super().__init__()
        self._target = urlsplit(target)
        self._mode = mode
        self._size = size

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}{self._target.path}"

    def prepare(self) -> None:
        self._settings = self.make_folder("settings") / "pgbouncer.ini"
        text = _SETTINGS.format(
            host=f"{self._target.hostname} user={self._target.username}",
            port=self._target.port,
            own_port=self.port,
            mode=self._mode,
            size=self._size,
        )
        self._settings.write_text(text)
        if os.getuid() == 0:
            shutil.chown(self._settings, self.user)

    def command(self) -> Sequence[str | Path]:
        return [self.find("pgbouncer", "/usr/sbin"), self._settings]

    def is_ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
