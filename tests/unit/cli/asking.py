"""The command line as a user meets it: in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
Answer = subprocess.CompletedProcess[str]
Cli = Callable[..., Answer]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "120"}


def ask(folder: Path, *args: str, seconds: float = 20.0) -> Answer:
    """``asyncsched`` with *args*, run in *folder* to its end."""
    return ask_python(folder, "-m", "asyncsched", *args, seconds=seconds)


def ask_python(folder: Path, *args: str, seconds: float = 20.0, encoding: str | None = None) -> Answer:
    return subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env={
            **environment(),
            "TMPDIR": str(folder),
            **({} if encoding is None else {"PYTHONIOENCODING": encoding}),
        },
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def refusal(answer: Answer) -> str:
    """The one line that says why, of a command that could not do what was asked."""
    assert answer.returncode == 1, answer
    assert answer.stdout == ""
    [line] = answer.stderr.splitlines()
    assert line.startswith("asyncsched: ")
    return line.removeprefix("asyncsched: ")
