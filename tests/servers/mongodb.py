"""DocumentDB for tests: a MongoDB engine within PostgreSQL, behind a gateway that speaks MongoDB's protocol.

Debian has no MongoDB, and DocumentDB in its newest release only. So a small Debian is made in a folder once and kept in the
user's cache; the engine runs inside of it with chroot, which needs root. ``python -m tests.servers.mongodb`` gets it ready ahead
of a test run, and tells what it does.
"""

from __future__ import annotations

import contextlib
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import bson

from tests.servers.debian import SmallDebian
from tests.servers.server import CannotStart, Server, _children_of

__all__ = ["MongoServer", "prepare_mongodb"]

_PROJECT = Path(__file__).parents[2]
_BIN = "/usr/lib/postgresql/18/bin"
_LIBRARIES = "pg_cron,pg_documentdb_core,pg_documentdb,pg_documentdb_extended_rum"
#: The second extension has the indexes that are read in their order, as MongoDB reads its own.
_EXTENSIONS = "CREATE EXTENSION documentdb CASCADE; CREATE EXTENSION documentdb_extended_rum"
_SETTINGS = {
    "shared_preload_libraries": _LIBRARIES,
    "cron.database_name": "postgres",
    "documentdb.alternate_index_handler_name": "extended_rum",
    "documentdb.enable_merge_sort_for_in_prefix": "on",
    # Plans as MongoDB has them: by the one index that gives the order, whatever is known of the collection yet.
    "enable_bitmapscan": "off",
    # A folder has no /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    "max_connections": "100",
    "listen_addresses": "127.0.0.1",
    "jit": "off",
}

_DEBIAN = SmallDebian(
    name="documentdb",
    suite="sid",
    packages=("postgresql-18-documentdb",),
    server="MongoDB",
    missing="DocumentDB is not in this release of Debian, or not installed",
    command="python -m tests.servers.mongodb",
    remedy="or name a server of yours in ASYNCSCHED_TEST_MONGODB_URL, or leave its tests out with --stores",
)


def prepare_mongodb(say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of a small Debian that has DocumentDB, made if it is not there yet. Raises CannotStart."""
    return _DEBIAN.make(say)


class MongoServer(Server):
    """One DocumentDB and its gateway, which are started, killed and frozen together; the database of the URL is ``test``.

    With a *password* users need it, whatever they are called; with *tls* it has a certificate of its own, for 127.0.0.1.
    """

    needs = "debootstrap, as root"

    def __init__(self, folder: Path | None = None, *, password: str | None = None, tls: bool = False) -> None:
        super().__init__(folder)
        self._engine = _Engine()
        self._password = password
        self._tls = tls

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/test"

    @property
    def certificate(self) -> Path:
        """What a client must trust, with *tls*."""
        return self.folder / "server.crt"

    def start(self) -> None:
        if not self._engine.is_alive:
            self._engine.start()
        super().start()

    def stop(self) -> None:
        super().stop()
        self._engine.stop()

    def kill(self) -> None:
        super().kill()
        self._engine.kill()

    def freeze(self) -> None:
        super().freeze()
        self._engine.freeze()

    def thaw(self) -> None:
        self._engine.thaw()
        super().thaw()

    def remove(self) -> None:
        super().remove()
        self._engine.remove()

    def kill_gateway(self) -> None:
        """Cut every connection, and leave the engine and its data alone."""
        super().kill()

    def prepare(self) -> None:
        if self._tls:
            self.run(
                self.find("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-days", "30", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                "-keyout", self.folder / "server.key", "-out", self.certificate,
            )  # fmt: skip

    def as_user(self, command: Sequence[str | Path]) -> list[str]:
        return [str(word) for word in command]  # The interpreter may be where only root can read.

    def command(self) -> Sequence[str | Path]:
        words: list[str | Path] = [
            sys.executable, "-m", "tests.servers.mongo_gateway", "--port", str(self.port), "--engine", self._engine.url,
        ]  # fmt: skip
        if self._password is not None:
            words += ["--password", self._password]
        if self._tls:
            words += ["--certificate", self.certificate, "--key", self.folder / "server.key"]
        return words

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "PYTHONPATH": str(_PROJECT)}

    def is_ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as connection:
            if self._tls:
                return True
            connection.settimeout(5.0)
            document = bson.encode({"hello": 1, "$db": "admin"})
            message = struct.pack("<iiiiIb", 21 + len(document), 1, 0, 2013, 0, 0) + document
            connection.sendall(message)
            return bool(connection.recv(16))


class _Engine(Server):
    """PostgreSQL with DocumentDB in it."""

    needs = "postgresql-18-documentdb"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def prepare(self) -> None:
        self._root = prepare_mongodb()
        _DEBIAN.sweep(self._root)
        # What the server writes lies within its root, and is removed with the server.
        self._place = Path(tempfile.mkdtemp(prefix="asyncsched-", dir=self._root / "srv"))
        self._place.chmod(0o755)
        shutil.chown(self._place, self.user)
        self._seen = Path("/", self._place.relative_to(self._root))
        self.run(
            f"{_BIN}/initdb", "-D", self._seen / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
            "--no-sync", "-c", "dynamic_shared_memory_type=mmap",
        )  # fmt: skip

    def start(self) -> None:
        is_new = self._process is None
        super().start()
        if is_new:
            at = f"{self.url}?connect_timeout=10"
            self.run("psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--command={_EXTENSIONS}", at)

    def kill(self) -> None:
        """With its children, which would serve on for a moment, and hold what the next start needs."""
        assert self._process is not None
        children = _children_of(self._process.pid)
        self._signal_all(signal.SIGKILL)
        super().kill()
        self._wait(lambda: all(map(_has_ended, children)), 10.0)

    def command(self) -> Sequence[str | Path]:
        return [
            f"{_BIN}/postgres", "-D", self._seen / "data", "-p", str(self.port), "-k", self._seen,
            *(word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")),
        ]  # fmt: skip

    def as_user(self, command: Sequence[str | Path]) -> list[str]:
        found = pwd.getpwnam(self.user)
        words = map(str, command)
        return ["chroot", f"--userspec={found.pw_uid}:{found.pw_gid}", str(self._root), *words]

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "LC_ALL": "C.UTF-8"}

    def is_ready(self) -> bool:
        probe = ["chroot", str(self._root), f"{_BIN}/pg_isready", "-q", "-U", "postgres", "-h", "127.0.0.1"]
        return subprocess.run([*probe, "-p", str(self.port)], check=False).returncode == 0

    def remove(self) -> None:
        super().remove()
        with contextlib.suppress(AttributeError):  # It was never prepared.
            shutil.rmtree(self._place, ignore_errors=True)


def _has_ended(pid: int) -> bool:
    """Whether it is gone, or waits for a parent that does not ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


if __name__ == "__main__":
    try:
        prepare_mongodb(print)
    except CannotStart as error:
        sys.exit(str(error))
