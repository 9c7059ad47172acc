"""MariaDB and MySQL for tests. ``python -m tests.servers.mysql`` gets MySQL ready ahead of a test run, and tells what it does.

Debian 12 has no MySQL. There a small Debian sid is made in a folder once, with MySQL in it, and kept in the user's cache; the
server runs inside of it with chroot, which needs root. Elsewhere the ``mysqld`` on PATH is used.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.servers.debian import SmallDebian
from tests.servers.server import CannotStart, Server

__all__ = ["MariaDBServer", "MySQLServer", "prepare_mysql"]


class MariaDBServer(Server):
    """One MariaDB with the superuser ``root``, who needs no password, and the database ``test``; *settings* are added to its
    command line, with dashes for underscores."""

    needs = "mariadb-server (10.6 or later)"
    user = "mysql"

    def __init__(self, folder: Path | None = None, **settings: str) -> None:
        super().__init__(folder)
        self._settings = settings

    @property
    def url(self) -> str:
        return f"mariadb://root@127.0.0.1:{self.port}/test"

    def prepare(self) -> None:
        if os.getuid() == 0:
            shutil.chown(self.folder, self.user)
        self.data = self.make_folder("data")
        self.run(
            self.find("mariadb-install-db"), "--no-defaults", f"--datadir={self.data}",
            "--auth-root-authentication-method=normal", "--skip-test-db", f"--tmpdir={self.folder}",
        )  # fmt: skip
        test = self.data / "test"
        test.mkdir()
        if os.getuid() == 0:
            shutil.chown(test, self.user)

    def command(self) -> Sequence[str | Path]:
        return [
            self.find("mariadbd", "/usr/sbin"), "--no-defaults", f"--datadir={self.data}", f"--port={self.port}",
            "--bind-address=127.0.0.1", f"--socket={self.folder}/s.sock", f"--pid-file={self.folder}/pid",
            # Of its own: a server that starts deletes what it takes for leftovers there.
            f"--tmpdir={self.folder}", *self.options(),
        ]  # fmt: skip

    def options(self) -> Sequence[str]:
        return [f"--{name.replace('_', '-')}={value}" for name, value in self._settings.items()]

    def is_ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
            # Its greeting: a packet header, then the protocol's version.
            return connection.recv(64)[4:5] == b"\x0a"


class MySQLServer(MariaDBServer):
    """One MySQL, with the same superuser and database as MariaDB's."""

    needs = "mysql-server-core (8.0 or later)"
    user = "nobody"

    @property
    def url(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}/test"

    def prepare(self) -> None:
        self._root = prepare_mysql()
        if self._root is not None:
            _DEBIAN.sweep(self._root)
        # What the server writes lies within its root, and is removed with the server.
        self._place = Path(tempfile.mkdtemp(prefix="asyncsched-", dir=self._root and self._root / "srv"))
        self._place.chmod(0o755)
        self._own(self._place)
        start = self._place / "init.sql"
        start.write_text(
            "CREATE USER IF NOT EXISTS root@'127.0.0.1'; CREATE USER IF NOT EXISTS root@'%';\n"
            "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION; GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;\n"
            "CREATE DATABASE test;\n"
        )
        self._own(start)
        self.run(*self._mysqld(), "--initialize-insecure", f"--init-file={self._seen}/init.sql")

    def command(self) -> Sequence[str | Path]:
        return [
            *self._mysqld(), f"--port={self.port}", "--bind-address=127.0.0.1", "--mysqlx=OFF",
            f"--socket={self._seen}/s.sock", f"--pid-file={self._seen}/pid", *self.options(),
        ]  # fmt: skip

    def as_user(self, command: Sequence[str | Path]) -> list[str]:
        if self._root is None:
            return super().as_user(command)
        found = pwd.getpwnam(self.user)
        words = map(str, command)
        return ["chroot", f"--userspec={found.pw_uid}:{found.pw_gid}", str(self._root), *words]

    def remove(self) -> None:
        super().remove()
        with contextlib.suppress(AttributeError):  # It was never prepared.
            shutil.rmtree(self._place, ignore_errors=True)

    def _mysqld(self) -> list[str | Path]:
        program = self.find("mysqld") if self._root is None else "/usr/sbin/mysqld"
        return [
            program,
            "--no-defaults",
            f"--datadir={self._seen}/data",
            f"--tmpdir={self._seen}",
            "--secure-file-priv=NULL",
        ]

    @property
    def _seen(self) -> Path:
        """The server's place as the server itself sees it."""
        return self._place if self._root is None else Path("/", self._place.relative_to(self._root))

    def _own(self, path: Path) -> None:
        if os.getuid() == 0:
            shutil.chown(path, self.user)


# -- a small Debian with MySQL in it -------------------------------------------------------------------------------------------

_DEBIAN = SmallDebian(
    name="mysql",
    suite="sid",
    packages=("mysql-server-core",),  # The server alone.
    server="MySQL",
    missing="MySQL is not installed (no mysqld on PATH)",
    command="python -m tests.servers.mysql",
    remedy="or name a server of yours in ASYNCSCHED_TEST_MYSQL_URL, or leave its tests out with --stores",
)


def prepare_mysql(say: Callable[[str], None] = lambda _: None) -> Path | None:
    """The folder of a small Debian that has MySQL, made if it is not there yet; None where mysqld is on PATH.

    Raises CannotStart.
    """
    if _is_mysql(shutil.which("mysqld")):
        say("mysqld is on PATH: nothing to prepare")
        return None
    return _DEBIAN.make(say)


def _is_mysql(program: str | None) -> bool:
    """Whether *program* is MySQL's; MariaDB installs itself under the same name."""
    if program is None:
        return False
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return "MariaDB" not in said


if __name__ == "__main__":
    try:
        prepare_mysql(print)
    except CannotStart as error:
        sys.exit(str(error))
