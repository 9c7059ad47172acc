"""MariaDB and MySQL for tests. ``python -m tests.servers.mysql`` gets MySQL ready ahead of a test run, and tells what it does.

Debian 12 has no MySQL. There a small Debian sid is made in a folder once, with MySQL in it, and kept in the user's cache; the
server runs inside of it with chroot, which needs root. Elsewhere the ``mysqld`` on PATH is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.servers.server import CannotStart, Server

__all__ = ["MariaDBServer", "MySQLServer", "prepare_mysql"]

#: The release of Debian that has MySQL, and the packages with the server alone.
_SUITE = "sid"
_PACKAGES = ("mysql-server-core",)
#: No test run takes that long.
_STALE_S = 86_400.0
_REMEDY = "or name a server of yours in ASYNCSCHED_TEST_MYSQL_URL, or leave its tests out with --stores"


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
            *self.options(),
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
            _sweep(self._root / "srv")
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
        return [program, "--no-defaults", f"--datadir={self._seen}/data", "--secure-file-priv=NULL"]

    @property
    def _seen(self) -> Path:
        """The server's place as the server itself sees it."""
        return self._place if self._root is None else Path("/", self._place.relative_to(self._root))

    def _own(self, path: Path) -> None:
        if os.getuid() == 0:
            shutil.chown(path, self.user)


# -- a small Debian with MySQL in it -------------------------------------------------------------------------------------------


def prepare_mysql(say: Callable[[str], None] = lambda _: None) -> Path | None:
    """The folder of a small Debian that has MySQL, made if it is not there yet; None where mysqld is on PATH.

    Raises CannotStart. What is half made never counts: it gets its name when it is whole, and one process makes it while others
    wait.
    """
    if _is_mysql(shutil.which("mysqld")):
        say("mysqld is on PATH: nothing to prepare")
        return None
    made = _cache() / f"mysql-{_SUITE}"
    if made.is_dir():
        say(f"{made} is there already")
        return made
    mirror, keyring = _needs_for_making()
    made.parent.mkdir(parents=True, exist_ok=True)
    with _lock(made.with_suffix(".lock"), say) as lock:
        if not made.is_dir():
            _make(made, mirror, keyring, say, lock)
    return made


def _make(made: Path, mirror: str, keyring: str | None, say: Callable[[str], None], lock: int) -> None:
    building = made.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    say(f"a small Debian {_SUITE} from {mirror} into {building} (a minute or so)")
    keys = [f"--keyring={keyring}"] if keyring else []
    _run(lock, "debootstrap", "--variant=minbase", *keys, _SUITE, str(building), mirror)
    # No package may start a service in there.
    policy = building / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    say(f"{', '.join(_PACKAGES)} into it")
    install = "apt-get install -y --no-install-recommends " + " ".join(_PACKAGES)
    # In a mount namespace of its own: however this ends, no mount is left.
    within = f'mount -t proc proc "$0/proc" && exec chroot "$0" sh -c "{install} && apt-get clean"'
    _run(lock, "unshare", "--mount", "--propagation=private", "sh", "-c", within, str(building))
    (building / "srv").chmod(0o755)
    building.rename(made)
    say(f"{made} is ready")


def _sweep(folder: Path) -> None:
    """Remove what servers of test runs that were killed have left in *folder*."""
    for left in folder.glob("asyncsched-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def _needs_for_making() -> tuple[str, str | None]:
    """The mirror that this machine takes its packages from, and the keyring of it."""
    start = "MySQL is not installed (no mysqld on PATH)"
    if os.getuid() != 0 or shutil.which("debootstrap") is None or not Path("/etc/debian_version").exists():
        raise CannotStart(
            f"{start}; a copy in a folder can be made by root on Debian with the package debootstrap: "
            f"install it and run python -m tests.servers.mysql, {_REMEDY}"
        )
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    codename = release.get("VERSION_CODENAME", _SUITE)
    for source in _apt_sources():
        if codename in source["suites"].split() and "main" in source["components"].split():
            return source["uris"].split()[0], source.get("signed-by")
    raise CannotStart(
        f"{start}, and apt's sources name no mirror of Debian {codename}: install MySQL, {_REMEDY}"
    )


def _apt_sources() -> Iterator[Mapping[str, str]]:
    """What apt is told of package sources, in either of the two forms."""
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for place in places:
        text = place.read_text() if place.is_file() else ""
        if place.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)):
                fields = {
                    name.lower(): value.strip()
                    for name, value in re.findall(r"^([\w-]+):(.*)$", stanza, re.M)
                }
                if {"uris", "suites", "components"} <= fields.keys() and "deb" in fields.get(
                    "types", ""
                ).split():
                    yield fields
        elif place.suffix == ".list":
            for options, uri, suite, components in re.findall(
                r"^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)$", text, re.MULTILINE
            ):
                signed = re.search(r"signed-by=(\S+)", options)
                yield {"uris": uri, "suites": suite, "components": components} | (
                    {"signed-by": signed[1]} if signed else {}
                )


def _is_mysql(program: str | None) -> bool:
    """Whether *program* is MySQL's; MariaDB installs itself under the same name."""
    if program is None:
        return False
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return "MariaDB" not in said


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "asyncsched" / "servers"


@contextlib.contextmanager
def _lock(path: Path, say: Callable[[str], None]) -> Iterator[int]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another process is at it: waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _run(lock: int, *command: str) -> None:
    """Run *command*; should this process be killed, the *lock* stays with it until it has ended."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment,
        check=False,
        pass_fds=(lock,),
    )
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise CannotStart(f"{' '.join(command[:3])} failed; install MySQL, {_REMEDY}:\n{said[-3000:]}")


if __name__ == "__main__":
    try:
        prepare_mysql(print)
    except CannotStart as error:
        sys.exit(str(error))
