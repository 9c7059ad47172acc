"""A real server for tests: started on a free port with its data in a folder of its own, stopped, killed, frozen, restarted."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["CannotStart", "Server", "find_program", "free_port"]

#: A server that is not ready by then does not start any more.
_START_S = 60.0


class CannotStart(Exception):
    """The server is not installed, or did not come up; the message says what to do."""


class Server(ABC):
    """One server process.

    The same port and the same data are kept over ``stop``, ``kill`` and ``start``, so a test can take it away and bring it back.
    """

    #: What to install, for whoever has no package manager that this project knows.
    needs: str
    #: The user that the server runs as when this is root; several servers refuse to be root.
    user = "nobody"

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="asyncsched-server-"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The store URL of it."""

    @abstractmethod
    def prepare(self) -> None:
        """Make its data, once."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """What starts it in the foreground."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers; may raise OSError while it does not."""

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, for the first time or again, and return once it answers; raises CannotStart."""
        if self._process is None:
            self.prepare()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.as_user(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
            )
        self._wait(lambda: not self.is_alive or self._answers(), _START_S)
        if not self.is_alive or not self._answers():
            raise CannotStart(f"{type(self).__name__} did not start:\n{self.log[-3000:]}")

    def stop(self) -> None:
        """Have it end in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Have it end at once, with SIGKILL."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop it and its children in their tracks: connections stay open, and nothing answers."""
        self._signal_all(signal.SIGSTOP)
        assert self._process is not None
        pids = [self._process.pid, *_children_of(self._process.pid)]
        # The signal is on its way still, and a thread that has a processor may answer once more.
        self._wait(lambda: all(map(_is_stopped, pids)), 5.0)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def remove(self) -> None:
        """End it, and delete its data."""
        if self.is_alive:
            self.thaw()
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def log(self) -> str:
        """What it has written."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text(errors="replace")
        return ""

    # -- for subclasses ------------------------------------------------------------------------------------------------

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "HOME": str(self.folder)}

    def as_user(self, command: Sequence[str | Path]) -> list[str]:
        """*command*, run as ``user`` where this is root."""
        words = [str(word) for word in command]
        if os.getuid() != 0:
            return words
        found = pwd.getpwnam(self.user)
        return ["setpriv", f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--clear-groups", *words]

    def run(self, *command: str | Path) -> None:
        """Run a preparing command as the server's user; raises CannotStart with what it printed."""
        done = subprocess.run(
            self.as_user(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.environment(),
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise CannotStart(f"{command[0]} failed:\n{said[-3000:]}")

    def make_folder(self, name: str) -> Path:
        """A folder in the server's own, which belongs to its user."""
        made = self.folder / name
        made.mkdir()
        if os.getuid() == 0:
            shutil.chown(made, self.user)
        return made

    def find(self, program: str, *places: str) -> Path:
        """The path of *program*, looked for in *places* (patterns) and on PATH; raises CannotStart."""
        found = find_program(program, *places)
        if found is None:
            raise CannotStart(
                f"{program} is not installed: install {self.needs}, or leave its store out with --stores"
            )
        return found

    # -- below ---------------------------------------------------------------------------------------------------------

    def _answers(self) -> bool:
        try:
            return self.is_ready()
        except OSError:
            return False

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = _children_of(self._process.pid) if self.is_alive else []
        if self.is_alive:
            self._process.send_signal(number)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Children that end after it hold on to what the next one needs.
        self._wait(lambda: not _is_open(self.port) and not any(map(_is_there, children)), 10.0)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        for pid in [self._process.pid, *_children_of(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @staticmethod
    def _wait(condition: Callable[[], bool], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)  # No event tells that another process is ready. Bounded by the timeout.


def find_program(program: str, *places: str) -> Path | None:
    """The path of *program*, looked for in *places* (patterns), the last by name first, and then on PATH."""
    for place in places:
        found = sorted(Path("/").glob(f"{place.removeprefix('/')}/{program}"))
        if found:
            return found[-1]
    on_path = shutil.which(program)
    return None if on_path is None else Path(on_path)


def free_port() -> int:
    """A port that nobody uses just now, below those that systems give to clients: nobody gets it by chance later.

    Drawn by lot, so that two test runs at once do not hand out the same ones in the same order.
    """
    while True:
        port = random.SystemRandom().randint(15_000, 31_999)  # Hypothesis seeds the common one.
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_there(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has asked for its end yet has, too."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:
        # No /proc, or somebody else's: it is there.
        return sys.platform != "linux"


def _is_stopped(pid: int) -> bool:
    """Whether no thread of a process goes on, by /proc; elsewhere that is taken for granted."""
    if sys.platform != "linux":
        return True
    states = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            # Behind the name, which may hold anything.
            states.add(thread.read_text().rpartition(")")[2].split()[0])
    return states <= {"T", "Z"}


def _children_of(pid: int) -> list[int]:
    """All descendants, by /proc; elsewhere by ps."""
    if sys.platform != "linux":
        found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, check=False).stdout.split()
        return [int(child) for child in found]
    children = []
    # A process may end while it is looked at.
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children += [int(child) for child in task.read_text().split()]
    return [*children, *(grandchild for child in children for grandchild in _children_of(child))]
