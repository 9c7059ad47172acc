"""What README.md and docs/ say of the package is what the package says."""

import importlib
import re
import shlex
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, cast

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import asyncsched
from asyncsched import errors
from asyncsched.cli.app import app
from asyncsched.contract import Capabilities
from asyncsched.stores.etcd import EtcdStore
from asyncsched.stores.firestore import FirestoreStore
from asyncsched.stores.memory import MemoryStore
from asyncsched.stores.mongodb import MongoStore
from asyncsched.stores.mysql import MySQLStore
from asyncsched.stores.postgres import PostgresStore
from asyncsched.stores.redis import RedisStore
from asyncsched.stores.sqlite import SQLiteStore
from asyncsched.stores.zookeeper import ZooKeeperStore

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("memory", MemoryStore),
        ("SQLite", SQLiteStore),
        ("Redis", RedisStore),
        ("PostgreSQL", PostgresStore),
        ("MySQL, MariaDB", MySQLStore),
        ("MongoDB", MongoStore),
        ("ZooKeeper", ZooKeeperStore),
        ("etcd", EtcdStore),
        ("Firestore", FirestoreStore),
    ],
)
def test_the_table_of_stores_says_what_the_stores_can_do(name: str, store: type) -> None:
    [row] = re.findall(rf"^\| {name} \|(.*)\|$", read("README.md"), re.M)
    cells = [cell.strip() for cell in row.split("|")]
    can: Capabilities = store.capabilities  # type: ignore[attr-defined]  # each is a store
    assert cells[2:] == ["yes" if can.durable else "no", "yes" if can.shared else "no", can.clock]
    url = cells[0].strip("`")
    assert isinstance(asyncsched.store_from_url(url), store)


def test_the_first_page_warns_of_memory_in_several_processes() -> None:
    assert "A memory store runs every job once in each process" in read("README.md")


def test_the_package_has_the_readme_as_its_description() -> None:
    assert 'readme = "README.md"' in read("pyproject.toml")


def test_the_design_draws_the_floors_that_the_architecture_holds() -> None:
    [drawn] = re.findall(r"From the top:\n\n```text\n(.*?)\n```", read("docs/design.md"), re.S)
    spec = spec_from_file_location("architecture", ROOT / "tests" / "test_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    architecture = module_from_spec(spec)
    sys.modules[spec.name] = architecture
    try:
        spec.loader.exec_module(architecture)
    finally:
        del sys.modules[spec.name]
    built = [
        [room or "(the public names)" for room in floor if is_built(room)] for floor in architecture.FLOORS
    ]
    assert [line.split("  ") for line in drawn.splitlines()] == [floor for floor in reversed(built) if floor]


def is_built(room: str) -> bool:
    place = ROOT / "asyncsched" / room
    return place.is_dir() or place.with_suffix(".py").is_file()


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE)
    documented = set(re.findall(r"auto(?:class|function|exception|data):: ([\w.]+)", text))
    names = {name.rpartition(".")[2] for name in documented}
    for module in re.findall(r"automodule:: ([\w.]+)", text):
        names |= set(importlib.import_module(module).__all__)
    assert set(asyncsched.__all__) - {"__version__"} <= names


def test_the_tree_of_errors_has_each_error_below_its_own_base() -> None:
    drawn = re.findall(r"^    ([│├└─ ]*)(\w+)(?: \((\w+)\))?", str(errors.__doc__), re.M)
    path: list[str] = []
    found = {}
    for branch, name, also in drawn:
        depth = len(branch) // 4
        path[depth:] = [name]
        found[name] = [path[depth - 1] if depth else "Exception", *filter(None, [also])]
    assert found == {
        name: [base.__name__ for base in getattr(errors, name).__bases__] for name in errors.__all__
    }


def test_every_option_of_the_command_line_is_in_the_reference() -> None:
    page = read("docs/reference/cli.md")
    group = cast(Any, get_command(app))
    for name, command in group.commands.items():
        section = page.partition(f"## `asyncsched {name}")[2].partition("\n## ")[0]
        assert section, f"{name} has no section"
        for parameter in command.params:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                assert not option.startswith("-") or option == "--help" or f"`{option}`" in section, (
                    name,
                    option,
                )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_another_page_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    lost = [target for target in targets if not (page.parent / target).exists()]
    assert not lost


def test_what_pages_show_of_fire_times_is_what_the_command_prints() -> None:
    shown = [
        (command, answer)
        for page in PAGES
        for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)
        for command, answer in re.findall(r"^\$ (asyncsched next [^\n]*)\n((?:(?!\$ ).+\n)+)", block, re.M)
    ]
    assert len(shown) >= 5
    for command, answer in shown:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.stdout + result.stderr == answer, command
