"""Where the time goes: the same measurements under py-spy where it is installed, else under cProfile.

py-spy looks from outside a thousand times a second and slows nothing down. cProfile pays for every call, so that small
functions look dearer than they are, and it sees one thread only: not the one that SQLite works in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

__all__ = ["SUBJECTS", "profile"]

SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "memory": ("drain", {"jobs": 150_000}),
    "history": ("drain", {"jobs": 150_000, "history": True}),
    "sqlite": ("drain", {"jobs": 60_000, "store": "sqlite:///FOLDER/jobs.db"}),
    "recurring": ("recurring", {"jobs": 100_000, "window_s": 10.0}),
    "adding": ("adding", {"jobs": 200_000}),
}
_LINES = 40
#: What is done before the clock starts, and while modules are loaded.
_PREPARATIONS = ("add_jobs", "importlib", "<listcomp> (benchmarks")


def profile(subject: str) -> None:
    """Print the functions that take most of the time."""
    measure, keywords = SUBJECTS[subject]
    arguments = [measure, json.dumps(keywords)]
    spy = shutil.which("py-spy", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if spy is None:
        program = "import cProfile; from benchmarks import own; cProfile.run('own.main(leave=False)', sort='tottime')"
        subprocess.run([sys.executable, "-c", program, *arguments], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "stacks.txt"
        record = [spy, "record", "--rate", "1000", "--format", "raw", "--output", str(raw), "--"]
        subprocess.run([*record, sys.executable, "-m", "benchmarks.own", *arguments], check=True)
        print(_summary(raw.read_text(encoding="utf-8"), () if subject == "adding" else _PREPARATIONS))


def _summary(stacks: str, leave_out: tuple[str, ...]) -> str:
    """The share of each function, by itself and with what it calls."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame.rpartition(":")[0] for frame in stack.split(";")]
        if any(part in frame for frame in frames for part in leave_out):
            continue
        alone[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    total = alone.total()
    rows = [f"{'alone':>6} {'within':>6}  function"]
    rows += [
        f"{n / total:6.1%} {within[name] / total:6.1%}  {name})" for name, n in alone.most_common(_LINES)
    ]
    return "\n".join(rows)
