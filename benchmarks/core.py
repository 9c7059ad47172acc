"""Run the cases: each part in a fresh process, the contestants by turns, and take the medians."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, LIMIT, OWN, Case, Figure, Part
from benchmarks.environments import NotInstalled, python_of
from benchmarks.table import Line, verdict

__all__ = ["measure", "report"]

_ROOT = Path(__file__).absolute().parent.parent
_LIMIT_S = 300
Key = tuple[str, str]
Report = dict[str, Any]


def measure(names: Sequence[str], quick: bool, tell: Callable[[str], None]) -> Report:
    """Everything that was asked for, as it goes into a file: the medians, what was read each time, and the machine."""
    sizes, cases = CASES["quick" if quick else "full"]
    began = time.time()
    found: dict[str, Any] = {}
    load_before = os.getloadavg()
    for name, case in cases.items():
        if not names or any(name.startswith(wanted) for wanted in names):
            found[name] = _measure(case, sizes.repeats, tell)
    return {
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)),
        "took_s": round(time.time() - began),
        "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "load": [round(load_before[0], 2), round(os.getloadavg()[0], 2)],
        "quick": quick,
        "repeats": sizes.repeats,
        "cases": found,
    }


def report(measured: Report) -> list[Line]:
    """The lines of the table."""
    _, cases = CASES["quick" if measured["quick"] else "full"]
    return [
        line
        for name, parts in measured["cases"].items()
        for line in _lines(cases[name], {(part["column"], part["key"]): part for part in parts})
    ]


def _measure(case: Case, repeats: int, tell: Callable[[str], None]) -> list[Report]:
    found: list[Report] = [
        {
            "column": part.column,
            "key": part.key,
            "measure": part.measure,
            "keywords": part.keywords,
            "median": {},
            "runs": [],
            "error": None,
        }
        for part in case.parts
    ]
    for turn in range(repeats):
        tell(f"{case.name}, {turn + 1} of {repeats}")
        for part, of_part in zip(case.parts, found, strict=True):
            if of_part["error"] is None:
                try:
                    of_part["runs"].append(_run(part))
                except (NotInstalled, _Failed) as error:
                    of_part["error"] = str(error)
                    tell(f"  {part.column}: {error}")
    for of_part in found:
        of_part["median"] = _medians(of_part["runs"])
    return found


def _run(part: Part) -> Report:
    python = python_of(part.peer) if part.peer else sys.executable
    command = [python, "-m", part.module, part.measure, json.dumps(part.keywords)]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise _Failed(f"no figure after {_LIMIT_S} s") from error
    if done.returncode:
        # The last line of an exception group is a mere frame.
        errors = re.findall(r"\w*(?:Error|Exception)\b.*", done.stderr)
        raise _Failed(errors[-1] if errors else f"exit code {done.returncode}")
    figures: Report = json.loads(done.stdout.splitlines()[-1])
    return figures


class _Failed(Exception):
    """A measurement gave no figures."""


def _medians(runs: list[Report]) -> Report:
    """Of each figure by itself; held only if it was held each time."""
    if not runs:
        return {}
    medians: Report = {
        name: statistics.median(values)
        for name in runs[0]
        if name != "is_held" and len(values := [run[name] for run in runs if name in run]) == len(runs)
    }
    if "is_held" in runs[0]:
        medians["is_held"] = all(run["is_held"] for run in runs)
    return medians


def _lines(case: Case, parts: dict[Key, Report]) -> list[Line]:
    columns = list(dict.fromkeys(column for column, _ in parts))
    return [
        Line(
            figure.title,
            {column: _cell(parts.get(_key(column, figure)), figure) for column in columns},
            *_judged(figure, parts),
        )
        for figure in case.figures
    ]


def _key(column: str, figure: Figure) -> Key:
    return column, figure.key if column == OWN else figure.peers_key


def _cell(part: Report | None, figure: Figure) -> str:
    if part is None:
        return ""
    value = part["median"].get(figure.name)
    if value is not None:
        return f"{value:{figure.form}}"
    if part["error"]:
        return f"no figure: {part['error']}"
    return "not held" if part["median"].get("is_held") is False else ""


def _judged(figure: Figure, parts: dict[Key, Report]) -> tuple[str, str, str]:
    """The ratio, the target in words, and whether it was reached."""
    target = figure.target
    if target is None:
        return "", "", ""
    value = _median(parts, (OWN, figure.key), figure)
    if not target.over:
        # For orientation only: how often it holds what the limit took.
        ratio = _ratio(value, _median(parts, (LIMIT, figure.peers_key), figure))
        wanted = f"{target.kind} {target.value:{figure.form}}"
        return _times(ratio), wanted, verdict(target.kind, value, target.value)
    ratio = _ratio(value, _median(parts, (target.over, ""), figure))
    beside = target.over if target.over != OWN else "without"
    return (
        _times(ratio),
        f"{target.kind} {target.value:g} x {beside}",
        verdict(target.kind, ratio, target.value),
    )


def _median(parts: dict[Key, Report], key: Key, figure: Figure) -> float | None:
    median: float | None = parts[key]["median"].get(figure.name) if key in parts else None
    return median


def _ratio(value: float | None, over: float | None) -> float | None:
    return value / over if value is not None and over else None


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"
