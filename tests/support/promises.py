"""The map of promises to tests, and what is wrong with it: lines left out, tests that are not there or never run."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

__all__ = ["Promise", "Seed", "Seen", "collected", "faults", "read_map"]

ROOT = Path(__file__).resolve().parent.parent.parent
REPORT = "--collected-to"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What some lines of a document promise, in our own words, and the tests that show it."""

    lines: str
    says: str
    tests: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """One document: its number of lines, those that promise nothing, and the promises of the others."""

    title: str
    lines: int
    nothing: tuple[str, ...] = ()
    promise: tuple[Promise, ...] = ()


@dataclass(slots=True)
class Seen:
    """What pytest collected: ids with and without their parameters; and those among them that never run or may fail."""

    ids: set[str] = field(default_factory=set)
    idle: dict[str, str] = field(default_factory=dict)


def read_map(text: str) -> dict[str, Seed]:
    """The seeds of a map by name; TypeError for a key that a map has not, KeyError for one that is missing."""
    return {name: _seed(table) for name, table in tomllib.loads(text).items()}


def _seed(table: Mapping[str, object]) -> Seed:
    rest = {name: value for name, value in table.items() if name not in ("promise", "nothing")}
    promises = tuple(
        Promise(**{**entry, "tests": tuple(entry["tests"])})
        for entry in table.get("promise", ())  # type: ignore[attr-defined]  # tables of the map; another shape fails here
    )
    return Seed(**rest, nothing=tuple(table.get("nothing", ())), promise=promises)  # type: ignore[arg-type]  # likewise


def faults(seeds: Mapping[str, Seed], seen: Seen) -> list[str]:
    """Everything that is wrong with the map, one sentence each; an empty list is a map that holds."""
    found: list[str] = []
    for name, seed in seeds.items():
        found += [f"{name}: {fault}" for fault in _line_faults(seed)]
        for promise in seed.promise:
            found += [f"{name}, {promise.lines}: {fault}" for fault in _test_faults(promise, seen)]
    return found


def _line_faults(seed: Seed) -> Iterable[str]:
    times = dict.fromkeys(range(1, seed.lines + 1), 0)
    for lines in [*seed.nothing, *(promise.lines for promise in seed.promise)]:
        try:
            numbers = _numbers(lines)
        except ValueError:
            yield f"lines {lines!r} are neither 'N' nor 'N-M'"
            continue
        for number in numbers:
            if number in times:
                times[number] += 1
            else:
                yield f"line {number} is not one of its {seed.lines}"
    for number, count in times.items():
        if not count:
            yield f"line {number} is neither promised nor nothing"
        elif count > 1:
            yield f"line {number} is there {count} times"


def _numbers(lines: str) -> range:
    first, dash, last = lines.partition("-")
    numbers = range(int(first), int(last if dash else first) + 1)
    if not numbers:
        raise ValueError(lines)
    return numbers


def _test_faults(promise: Promise, seen: Seen) -> Iterable[str]:
    if not promise.says.strip():
        yield "says nothing"
    if not promise.tests:
        yield "has no test"
    for test in promise.tests:
        if test not in seen.ids:
            yield f"{test} is not a test that pytest collects"
        elif test in seen.idle:
            yield f"{test} shows nothing: {seen.idle[test]}"
    if len(set(promise.tests)) < len(promise.tests):
        yield "names a test twice"


def collected(files: Iterable[str], report: Path, root: Path = ROOT) -> Seen:
    """What pytest collects from *files*, paths under *root*, in a process of its own; files that are missing yield nothing."""
    there = sorted({name for name in files if (root / name).is_file()})
    if not there:
        return Seen()
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    command += [
        "-p",
        "tests.support.promises",
        f"{REPORT}={report}",
        "--continue-on-collection-errors",
        *there,
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    if not report.is_file():
        raise AssertionError(f"pytest collected nothing:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    ids, idle = json.loads(report.read_text(encoding="utf-8"))
    return Seen(set(ids), idle)


# As a plugin of that process:


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(REPORT, type=Path, help="write the ids of the collected tests here, and which never run")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Report what was collected, once all else has marked it: a long test is skipped by then."""
    report: Path | None = config.getoption(REPORT)
    if report is None:
        return
    ids: set[str] = set()
    idle: dict[str, str] = {}
    for item in items:
        names = {item.nodeid, item.nodeid.partition("[")[0]}
        ids |= names
        if why := _why_idle(item):
            idle |= dict.fromkeys(names, why)
    report.write_text(json.dumps([sorted(ids), idle]), encoding="utf-8")


def _why_idle(item: pytest.Item) -> str:
    for name in ("skip", "xfail"):
        for mark in item.iter_markers(name):
            return f"it is marked {name} ({mark.kwargs.get('reason', 'no reason given')})"
    code = getattr(inspect.unwrap(getattr(item, "function", None)), "__code__", None)
    return "" if code is None else _idle_functions(code.co_filename).get(code.co_firstlineno, "")


@functools.cache
def _idle_functions(path: str) -> dict[int, str]:
    """Why functions of a file show nothing, by the line that they, or their decorators, begin in."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {
        min([one.lineno, *(decorator.lineno for decorator in one.decorator_list)]): why
        for one in functions
        if (why := _why_empty(one))
    }


def _why_empty(test: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Whether a test skips itself whatever comes, or has nothing in it."""
    said = [line.value for line in test.body if isinstance(line, ast.Expr)]
    calls = [ast.unparse(value.func) for value in said if isinstance(value, ast.Call)]
    if "pytest.skip" in calls or "pytest.xfail" in calls:
        return "it skips itself whatever comes"
    passes = [line for line in test.body if isinstance(line, ast.Pass)]
    constants = [value for value in said if isinstance(value, ast.Constant)]
    if len(passes) + len(constants) == len(test.body):
        return "there is nothing in it"
    return ""
