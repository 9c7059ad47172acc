"""Peers in environments of their own: they cannot live in one, and none of them belongs into that of this project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["PEERS", "NotInstalled", "python_of"]

#: What is installed for each peer. 4.0.0a6 imports sniffio and does not ask for it, and with later versions of anyio it is
#: half as fast; it is shown at its best.
PEERS = {
    "apscheduler3": ("apscheduler>=3.11,<4", "sqlalchemy>=2", "redis[hiredis]", "psycopg2-binary"),
    "apscheduler4": ("apscheduler==4.0.0a6", "sqlalchemy[asyncio]>=2", "aiosqlite", "sniffio", "anyio<4.13"),
    "pgqueuer": ("pgqueuer[asyncpg]==1.6.*", "uvloop"),
    "taskiq": ("taskiq==0.13.*", "taskiq-redis", "redis[hiredis]"),
}


class NotInstalled(Exception):
    """A peer's environment could not be made; the figures are shown without it."""


def python_of(peer: str) -> str:
    """The interpreter of the environment of *peer*, which is made at first use and kept in the user's cache folder."""
    folder = _cache() / peer
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    mark = folder / "installed.txt"
    wanted = "\n".join((sys.version, *PEERS[peer]))
    if not mark.exists() or mark.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _call([sys.executable, "-m", "venv", str(folder)], peer)
        _call([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEERS[peer]], peer)
        mark.write_text(wanted, encoding="utf-8")
    return str(python)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asyncsched" / "bench"


def _call(command: list[str], peer: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no reason given"]
        raise NotInstalled(f"{peer} cannot be installed: {lines[-1]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{peer} cannot be installed: {error}") from error
