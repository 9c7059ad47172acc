"""The house of docs/design.md, section 7, as tables of data; the rules read the source and run nothing of it.

A *room* is a module of asyncsched, or a folder with all that is in it. Names below are relative to the package: ``""`` is
``asyncsched/__init__.py``.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "asyncsched"

# ---- the tables ----------------------------------------------------------------------------------------------------------

#: From the ground up. A room imports from lower floors, and within itself.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "clock", "version"),
    ("units", "ids", "values", "address", "guest", "rates", "outlast"),
    ("contract", "triggers"),
    ("model", "coming"),
    ("definition",),
    ("rules",),
    ("late",),
    ("plan", "codec", "events", "stores", "flowform"),
    ("registry", "flows", "changes", "health"),
    ("calls", "endings", "watch", "summary", "specs"),
    ("execution", "pool"),
    ("currentrun",),
    (
        "middleware",
        "keeper",
        "ledger",
        "announce",
        "link",
        "slots",
        "lifespans",
        "processes",
        "jobs",
        "storeclock",
        "settings",
    ),
    ("commits", "alarm", "news", "workflow", "flowwork", "instances", "buckets", "edits"),
    ("limits",),
    ("settler",),
    ("worker", "shelf", "locks", "history", "moving"),
    ("engine",),
    ("intake", "desk", "receipts", "explain", "backfill", "orphans"),
    ("jobcalls", "flowcalls", "declared", "monitor"),
    ("scheduler",),
    ("runner",),
    ("",),  # The public names.
    ("cli", "dashboard", "integrations", "testing", "tasks", "__main__"),
)

#: The stores, each a room of its own on the floor of ``stores``, with the packages of its own client.
CLIENTS: Mapping[str, frozenset[str]] = {
    "memory": frozenset(),
    "sqlite": frozenset({"sqlite3", "aiosqlite"}),
    "redis": frozenset({"redis"}),
    "postgres": frozenset({"asyncpg"}),
    "mysql": frozenset({"aiomysql", "pymysql"}),
    "mongodb": frozenset({"pymongo", "motor", "bson"}),
    "zookeeper": frozenset({"aiozk"}),
    "etcd": frozenset({"aetcd", "grpc"}),
    "firestore": frozenset({"google.cloud", "google.api_core", "google.auth", "google.oauth2", "grpc"}),
}

#: (importer, imported): the reason. Imports between rooms that the floors refuse and that are wanted all the same.
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("__main__", "cli"): "python -m asyncsched is the command line under another name",
    ("cli", "testing"): "asyncsched stores check holds a server to the cases of the contract",
}

#: The room that looks stores up by name, with importlib, when a URL asks for one.
LOOKUP_ROOM = "stores"

#: What a store may see of this package, and of others beside its own client: the contract's values are made with msgspec.
STORE_SEES = frozenset({"contract", "errors", "clock", "address", "guest", "outlast"})
STORE_USES = frozenset({"anyio", "msgspec"})

#: Pure rooms, and what would make them impure.
PURE_ROOMS = frozenset(
    {"rates", "model", "plan", "flowform", "late", "rules", "triggers", "units", "definition"}
)
IMPURE = frozenset({"asyncio", "anyio", "time", f"{PACKAGE}.clock"})

#: The room that reads the time, and the ways in which others could.
TIME_ROOM = "clock"
TIME_READERS = frozenset({"time", "anyio.current_time"})
DATETIME_READERS = frozenset({"now", "utcnow", "today"})

#: What only the top floor may import.
FACES = frozenset({"typer", "click", "rich", "fastapi", "starlette", "litestar", "aiohttp"})

MAX_FILE_LINES = 700
MAX_FUNCTION_LINES = 80

# ---- reading the source --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: ``from a.b import c`` has the base ``a.b`` and the name ``c``; ``import a.b`` has no name."""

    line: int
    base: str
    name: str = ""

    @property
    def full(self) -> str:
        return f"{self.base}.{self.name}" if self.name else self.base

    def is_of(self, packages: frozenset[str]) -> bool:
        return any(_is_within(self.full, package) for package in packages)


@dataclass(frozen=True)
class Module:
    """One source file; ``name`` is relative to the package."""

    name: str
    source: str
    is_package: bool = False

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.source)))

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, wherever it stands: at the top, in a function, under TYPE_CHECKING, or by a written-out name."""
        return [found for node in self.nodes for found in self._imports_of(node)]

    def _imports_of(self, node: ast.AST) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(node.lineno, alias.name)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = self._absolute(module or "", level)
                for alias in names:
                    yield Import(node.lineno, base, alias.name)
            case ast.Call(
                func=ast.Name(id=caller) | ast.Attribute(attr=caller),
                args=[ast.Constant(value=str(target)), *_],
            ) if caller in {"import_module", "__import__"}:
                if self.name != LOOKUP_ROOM:
                    name = target.lstrip(".")
                    yield Import(node.lineno, self._absolute(name, len(target) - len(name)))

    def _absolute(self, name: str, level: int) -> str:
        if not level:
            return name
        here = [PACKAGE, *filter(None, self.name.split("."))]
        parents = here[: len(here) + self.is_package - level]
        return ".".join([*parents, *filter(None, [name])])

    def complain(self, line: int, what: str) -> str:
        return f"{PACKAGE}.{self.name}".rstrip(".") + f":{line}: {what}"


def modules_of_the_package() -> list[Module]:
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return found


def _is_within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


# ---- the rooms -----------------------------------------------------------------------------------------------------------

STORES = frozenset(f"stores.{name}" for name in CLIENTS)
FLOOR_OF: Mapping[str, int] = {
    **{room: floor for floor, rooms in enumerate(FLOORS) for room in rooms},
    **{store: floor for floor, rooms in enumerate(FLOORS) if "stores" in rooms for store in STORES},
}
TOP = len(FLOORS) - 1
#: Rooms of one file: what lies in their folder has, or needs, a line of its own.
HALLS = frozenset({"", "stores"})


def room_of(name: str) -> str | None:
    """The room in which a module (relative name) lies; None if the tables do not know it."""
    if name in FLOOR_OF:
        return name
    parent = name.rpartition(".")[0]
    return room_of(parent) if parent and parent not in HALLS else None


def rooms_imported(module: Module) -> Iterator[tuple[int, str]]:
    """(line, room) for each import from this package. A name that is no module belongs to where it is imported from."""
    for found in module.imports:
        if _is_within(found.base, PACKAGE):
            full, base = (name.removeprefix(PACKAGE).removeprefix(".") for name in (found.full, found.base))
            room = room_of(full) or room_of(base)
            yield found.line, room if room is not None else base


# ---- the rules: each takes a module and yields what it finds wrong ---------------------------------------------------------


def stands_in_the_table(module: Module) -> Iterator[str]:
    if room_of(module.name) is None:
        yield module.complain(1, "stands on no floor; give it a line in FLOORS, or a store one in CLIENTS")


def imports_downward(module: Module) -> Iterator[str]:
    here = room_of(module.name)
    if here is None:
        return
    for line, there in rooms_imported(module):
        is_lower = FLOOR_OF.get(there, TOP + 1) < FLOOR_OF[here]
        if not is_lower and there != here and (here, there) not in EXCEPTIONS:
            yield module.complain(line, f"imports {there or PACKAGE!r}, which is not on a lower floor")


def imports_only_public_names_at_the_top(module: Module) -> Iterator[str]:
    here = room_of(module.name)
    if here is None or FLOOR_OF[here] != TOP:
        return
    for found in module.imports:
        relative = found.full.removeprefix(f"{PACKAGE}.")
        parts = relative.split(".")
        is_foreign = _is_within(found.base, PACKAGE) and room_of(relative) != here
        if is_foreign and any(part.startswith("_") and not part.endswith("__") for part in parts):
            yield module.complain(found.line, f"imports {relative}, which is private to a lower floor")


def stores_see_only_the_contract(module: Module) -> Iterator[str]:
    if not _is_within(module.name, "stores"):
        return
    here = room_of(module.name)
    for line, there in rooms_imported(module):
        if there not in STORE_SEES and there != here:
            yield module.complain(
                line, f"imports {there or PACKAGE!r}; a store sees {', '.join(sorted(STORE_SEES))}"
            )


def stores_use_only_their_own_client(module: Module) -> Iterator[str]:
    if not _is_within(module.name, "stores"):
        return
    own = CLIENTS.get(module.name.removeprefix("stores.").partition(".")[0], frozenset())
    all_clients = frozenset[str]().union(*CLIENTS.values())
    free = frozenset(sys.stdlib_module_names) - all_clients | STORE_USES | {PACKAGE} | own
    for found in module.imports:
        if not found.is_of(free):
            yield module.complain(found.line, f"imports {found.full}, which is not its own client")


def pure_rooms_stay_pure(module: Module) -> Iterator[str]:
    if room_of(module.name) not in PURE_ROOMS:
        return
    for found in module.imports:
        if found.is_of(IMPURE):
            yield module.complain(found.line, f"imports {found.full}, but this room is pure")


def only_the_clock_reads_the_time(module: Module) -> Iterator[str]:
    if room_of(module.name) == TIME_ROOM:
        return
    for found in module.imports:
        if found.is_of(TIME_READERS):
            yield module.complain(found.line, f"imports {found.full}; ask {PACKAGE}.clock")
    aliases = _names_of_datetime(module)
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and _reads_the_time(node, aliases):
            yield module.complain(node.lineno, f"reads the time by {ast.unparse(node)}; ask {PACKAGE}.clock")


def _names_of_datetime(module: Module) -> frozenset[str]:
    """What the classes ``datetime`` and ``date`` are called in this module."""
    names = set()
    for node in module.nodes:
        match node:
            case ast.ImportFrom(module="datetime", names=aliases):
                names |= {
                    alias.asname or alias.name for alias in aliases if alias.name in {"datetime", "date"}
                }
            case ast.Import(names=aliases):
                modules = [alias.asname or alias.name for alias in aliases if alias.name == "datetime"]
                names |= {f"{found}.{kind}" for found in modules for kind in ("datetime", "date")}
    return frozenset(names)


def _reads_the_time(node: ast.Attribute, datetime_names: frozenset[str]) -> bool:
    """Whether this is ``datetime.now`` and its like, ``anyio.current_time``, or the time of an event loop."""
    owner = ast.unparse(node.value)
    if node.attr in DATETIME_READERS:
        return owner in datetime_names
    is_loop = owner.removesuffix("()").endswith("loop")
    return (node.attr == "time" and is_loop) or f"{owner}.{node.attr}" in TIME_READERS


def faces_live_on_the_top_floor(module: Module) -> Iterator[str]:
    here = room_of(module.name)
    if here is None or FLOOR_OF[here] == TOP:
        return
    for found in module.imports:
        if found.is_of(FACES):
            yield module.complain(
                found.line, f"imports {found.full}, a web or command-line library, below the top floor"
            )


def files_are_short(module: Module) -> Iterator[str]:
    lines = len(module.source.splitlines())
    if lines > MAX_FILE_LINES:
        yield module.complain(1, f"has {lines} lines; at most {MAX_FILE_LINES} make one room")


def functions_are_short(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield module.complain(
                    node.lineno,
                    f"{node.name} has {lines} lines; at most {MAX_FUNCTION_LINES} fit on a screen",
                )


# ---- the package keeps the rules -----------------------------------------------------------------------------------------

Rule = Callable[[Module], Iterator[str]]


def assert_all_keep(rule: Rule) -> None:
    complaints = list(
        dict.fromkeys(complaint for module in modules_of_the_package() for complaint in rule(module))
    )
    assert not complaints, "\n" + "\n".join(complaints)


def test_every_module_stands_in_the_table() -> None:
    assert_all_keep(stands_in_the_table)


def test_imports_go_strictly_downward() -> None:
    assert_all_keep(imports_downward)


def test_the_top_floor_imports_public_names_only() -> None:
    assert_all_keep(imports_only_public_names_at_the_top)


def test_a_store_sees_nothing_of_the_package_but_the_contract() -> None:
    assert_all_keep(stores_see_only_the_contract)


def test_a_store_uses_no_client_but_its_own() -> None:
    assert_all_keep(stores_use_only_their_own_client)


def test_plan_model_and_triggers_neither_wait_nor_read_a_clock() -> None:
    assert_all_keep(pure_rooms_stay_pure)


def test_nothing_but_the_clock_reads_the_time() -> None:
    assert_all_keep(only_the_clock_reads_the_time)


def test_nothing_below_the_top_floor_imports_a_web_or_command_line_library() -> None:
    assert_all_keep(faces_live_on_the_top_floor)


def test_no_file_is_too_long() -> None:
    assert_all_keep(files_are_short)


def test_no_function_is_too_long() -> None:
    assert_all_keep(functions_are_short)


def test_importing_the_package_loads_no_client_and_no_face() -> None:
    assert not heavy_modules_after(f"import {PACKAGE}")


def test_loading_a_client_is_noticed() -> None:
    assert "sqlite3" in heavy_modules_after("import sqlite3")


def heavy_modules_after(statement: str) -> list[str]:
    """The database clients, web and command-line libraries that a fresh interpreter holds after *statement*."""
    script = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    heavy = FACES.union(*CLIENTS.values())
    return [name for name in json.loads(answer.stdout) if any(_is_within(name, package) for package in heavy)]


# ---- and the rules catch who breaks them -----------------------------------------------------------------------------------

VIOLATIONS: list[tuple[Rule, str, str]] = [
    (stands_in_the_table, "misc", ""),
    (stands_in_the_table, "stores.sheet", ""),
    (imports_downward, "errors", "import asyncsched.scheduler"),
    (imports_downward, "plan", "from asyncsched import codec"),
    (imports_downward, "worker", "from . import scheduler"),
    (imports_downward, "worker", "from .scheduler import Scheduler"),
    (imports_downward, "worker", "from asyncsched import Scheduler"),
    (imports_downward, "triggers.cron", "from ..plan import decide"),
    (imports_downward, "contract", "def f():\n    from asyncsched.model import Job"),
    (imports_downward, "keeper", "if TYPE_CHECKING:\n    from asyncsched.worker import Worker"),
    (imports_downward, "locks", "importlib.import_module('asyncsched.runner')"),
    (imports_downward, "locks", "import_module('.runner', 'asyncsched')"),
    (imports_downward, "scheduler", "from asyncsched.unlisted import x"),
    (imports_downward, "testing.clock", "from asyncsched.cli import main"),
    (imports_only_public_names_at_the_top, "cli.main", "from asyncsched.scheduler import _secret"),
    (imports_only_public_names_at_the_top, "testing", "from asyncsched.triggers._grammar import parse"),
    (stores_see_only_the_contract, "stores.memory", "from asyncsched.model import Job"),
    (stores_see_only_the_contract, "stores.memory", "from asyncsched import codec"),
    (stores_see_only_the_contract, "stores.memory", "from ..triggers import cron"),
    (stores_see_only_the_contract, "stores.memory", "from ..plan import decide"),
    (stores_see_only_the_contract, "stores.redis.scripts", "from ..sqlite import SQLiteStore"),
    (stores_see_only_the_contract, "stores.redis", "from .. import sqlite"),
    (stores_use_only_their_own_client, "stores.redis", "import asyncpg"),
    (stores_use_only_their_own_client, "stores.memory", "import sqlite3"),
    (stores_use_only_their_own_client, "stores", "def f():\n    from google.cloud import firestore"),
    (pure_rooms_stay_pure, "plan", "import asyncio"),
    (pure_rooms_stay_pure, "model", "from asyncsched.clock import Clock"),
    (pure_rooms_stay_pure, "triggers.cron", "from .. import clock"),
    (pure_rooms_stay_pure, "triggers", "from time import time"),
    (only_the_clock_reads_the_time, "worker", "import time as t"),
    (only_the_clock_reads_the_time, "cli.demo", "from time import monotonic"),
    (only_the_clock_reads_the_time, "worker", "from datetime import datetime\ndatetime.now(UTC)"),
    (only_the_clock_reads_the_time, "worker", "from datetime import datetime as moment\nmoment.utcnow()"),
    (
        only_the_clock_reads_the_time,
        "worker",
        "import datetime as dt\nclass A:\n    at = field(default_factory=dt.datetime.now)",
    ),
    (only_the_clock_reads_the_time, "worker", "import datetime\ndatetime.date.today()"),
    (only_the_clock_reads_the_time, "worker", "asyncio.get_running_loop().time()"),
    (only_the_clock_reads_the_time, "worker", "self._loop.time()"),
    (only_the_clock_reads_the_time, "worker", "anyio.current_time()"),
    (only_the_clock_reads_the_time, "worker", "from anyio import current_time"),
    (faces_live_on_the_top_floor, "scheduler", "def f():\n    import typer"),
    (faces_live_on_the_top_floor, "", "from fastapi import FastAPI"),
    (faces_live_on_the_top_floor, "stores.memory", "from rich.table import Table"),
    (files_are_short, "worker", "\n" * (MAX_FILE_LINES + 1)),
    (functions_are_short, "worker", "async def f():" + "\n    x = 1" * MAX_FUNCTION_LINES),
]

ALLOWED: list[tuple[Rule, str, str]] = [
    (stands_in_the_table, "triggers.cron", ""),
    (stands_in_the_table, "stores.redis.scripts", ""),
    (stands_in_the_table, "", ""),
    (
        imports_downward,
        "worker",
        "from asyncsched import plan\nfrom .clock import Clock\nimport asyncsched.stores",
    ),
    (imports_downward, "triggers.cron", "from . import once\nfrom .interval import every"),
    (imports_downward, "stores", "import_module('asyncsched.stores.sqlite')"),
    (imports_downward, "", "from .scheduler import Scheduler"),
    (
        imports_downward,
        "cli.demo",
        "from asyncsched import Scheduler\nfrom .main import app\nfrom asyncsched.stores import sqlite",
    ),
    (
        imports_only_public_names_at_the_top,
        "cli.main",
        "from asyncsched import __version__\nfrom ._table import row",
    ),
    (
        stores_see_only_the_contract,
        "stores.redis.scripts",
        "from . import lua\nfrom asyncsched import errors, contract, clock",
    ),
    (stores_use_only_their_own_client, "stores.sqlite", "import sqlite3, asyncio, aiosqlite, msgspec"),
    (stores_use_only_their_own_client, "stores.firestore", "from google.cloud import firestore"),
    (stores_use_only_their_own_client, "stores", "import importlib\nimportlib.import_module(PATHS[scheme])"),
    (
        pure_rooms_stay_pure,
        "triggers.cron",
        "from datetime import datetime, time\nfrom ..errors import TriggerError",
    ),
    (only_the_clock_reads_the_time, "clock", "import time"),
    (only_the_clock_reads_the_time, "worker", "self._clock.now()\nstore.now()\nclock.time()\nmoment.time()"),
    (faces_live_on_the_top_floor, "cli.main", "import typer"),
    (files_are_short, "worker", "\n" * MAX_FILE_LINES),
    (functions_are_short, "worker", "def f():" + "\n    x = 1" * (MAX_FUNCTION_LINES - 1)),
]


def _as_module(name: str, source: str) -> Module:
    return Module(name, source, is_package=name in {"", "testing", "triggers", "stores", "stores.redis"})


@pytest.mark.parametrize(("rule", "name", "source"), VIOLATIONS)
def test_a_rule_catches_who_breaks_it(rule: Rule, name: str, source: str) -> None:
    assert list(rule(_as_module(name, source)))


@pytest.mark.parametrize(("rule", "name", "source"), ALLOWED)
def test_a_rule_lets_who_keeps_it_pass(rule: Rule, name: str, source: str) -> None:
    assert not list(rule(_as_module(name, source)))


def test_every_exception_is_between_known_rooms_and_has_a_reason() -> None:
    assert all(FLOOR_OF.keys() >= set(pair) and reason for pair, reason in EXCEPTIONS.items())
