"""A newer Debian in a folder, for servers that this one has no package of: made once, and kept in the user's cache.

What runs inside of it does so with chroot, which needs root.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers.server import CannotStart

__all__ = ["SmallDebian"]

#: No test run takes that long.
_STALE_S = 86_400.0
#: Named, since an older debootstrap knows no newer release; all of Debian's share this one.
_SCRIPT = "sid"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallDebian:
    """A Debian of the release *suite* with *packages* in it, in a folder of the cache that *name* and the release name."""

    name: str
    suite: str
    packages: Sequence[str]
    #: How messages call the server.
    server: str
    #: Why it is made at all, as a message begins.
    missing: str
    #: What makes it ahead of a test run.
    command: str
    #: What else can be done.
    remedy: str

    def make(self, say: Say = lambda _: None) -> Path:
        """The folder, made if it is not there yet. Raises CannotStart.

        What is half made never counts: it gets its name when it is whole, and one process makes it while others wait.
        """
        made = _cache() / f"{self.name}-{self.suite}"
        if made.is_dir():
            say(f"{made} is there already")
            return made
        mirror, keyring = self._source()
        made.parent.mkdir(parents=True, exist_ok=True)
        with _lock(made.with_suffix(".lock"), say) as lock:
            if not made.is_dir():
                self._make(made, mirror, keyring, say, lock)
        return made

    def sweep(self, root: Path) -> None:
        """Remove what servers of test runs that were killed have left in *root*."""
        for left in (root / "srv").glob("asyncsched-*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE_S:
                    shutil.rmtree(left, ignore_errors=True)

    def _make(self, made: Path, mirror: str, keyring: str | None, say: Say, lock: int) -> None:
        building = made.with_suffix(".building")
        shutil.rmtree(building, ignore_errors=True)
        say(f"a small Debian {self.suite} from {mirror} into {building} (a minute or so)")
        keys = [f"--keyring={keyring}"] if keyring else []
        words = ["debootstrap", "--variant=minbase", *keys, self.suite, str(building), mirror, _SCRIPT]
        self._run(lock, *words)
        # No package may start a service in there.
        policy = building / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        say(f"{', '.join(self.packages)} into it")
        install = "apt-get install -y --no-install-recommends " + " ".join(self.packages)
        # In a mount namespace of its own: however this ends, no mount is left.
        within = f'mount -t proc proc "$0/proc" && exec chroot "$0" sh -c "{install} && apt-get clean"'
        self._run(lock, "unshare", "--mount", "--propagation=private", "sh", "-c", within, str(building))
        (building / "srv").chmod(0o755)
        building.rename(made)
        say(f"{made} is ready")

    def _source(self) -> tuple[str, str | None]:
        """The mirror that this machine takes its packages from, and the keyring of it."""
        if (
            os.getuid() != 0
            or shutil.which("debootstrap") is None
            or not Path("/etc/debian_version").exists()
        ):
            raise CannotStart(
                f"{self.missing}; a copy in a folder can be made by root on Debian with the package debootstrap: "
                f"install it and run {self.command}, {self.remedy}"
            )
        release = dict(
            re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE)
        )
        codename = release.get("VERSION_CODENAME", self.suite)
        for source in _apt_sources():
            if codename in source["suites"].split() and "main" in source["components"].split():
                return source["uris"].split()[0], source.get("signed-by")
        raise CannotStart(
            f"{self.missing}, and apt's sources name no mirror of Debian {codename}: install {self.server}, {self.remedy}"
        )

    def _run(self, lock: int, *command: str) -> None:
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
            raise CannotStart(
                f"{' '.join(command[:3])} failed; install {self.server}, {self.remedy}:\n{said[-3000:]}"
            )


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "asyncsched" / "servers"


@contextlib.contextmanager
def _lock(path: Path, say: Say) -> Iterator[int]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another process is at it: waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


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
