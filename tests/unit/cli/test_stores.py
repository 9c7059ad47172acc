"""``asyncsched stores``: what each store can do, its schema, and whether a server keeps the contract."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.unit.cli.asking import Cli, refusal


def test_every_store_is_listed_with_its_schemes_and_capabilities(cli: Cli) -> None:
    listed = {row["store"]: row for row in json.loads(cli("stores", "list", "--json").stdout)}
    assert {"MemoryStore", "SQLiteStore", "RedisStore", "PostgresStore", "MySQLStore"} <= listed.keys()
    assert listed["MySQLStore"]["schemes"] == ["mysql://", "mariadb://"]
    assert listed["MemoryStore"]["durable"] is False
    assert listed["PostgresStore"]["transactional_add"] is True


def test_the_list_is_a_table_too(cli: Cli) -> None:
    head, *rows = cli("stores", "list").stdout.splitlines()
    assert head.startswith("store ")
    [sqlite] = [row for row in rows if row.startswith("SQLiteStore")]
    assert "sqlite://" in sqlite


def test_the_printed_schema_is_the_one_that_is_wanted(cli: Cli, tmp_path: Path) -> None:
    schema = cli("stores", "ddl", "sqlite:///jobs.db?table_prefix=my_").stdout
    with closing(sqlite3.connect(tmp_path / "by-hand.db")) as made, made:
        made.executescript(schema)
        tables = {name for (name,) in made.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    made.close()
    assert {"my_jobs", "my_runs", "my_leases", "my_meta"} <= tables
    assert not (tmp_path / "jobs.db").exists()


def test_the_indexes_that_firestore_needs_are_printed_as_its_tools_deploy_them(cli: Cli) -> None:
    made = json.loads(cli("stores", "ddl", "firestore://project/jobs").stdout)
    assert made.keys() == {"indexes", "fieldOverrides"}


def test_a_store_without_a_schema_says_so(cli: Cli) -> None:
    answer = cli("stores", "ddl", "memory://")
    assert (answer.returncode, answer.stdout) == (0, "")
    assert "MemoryStore needs no schema" in answer.stderr


def test_a_sound_store_is_found_to_keep_the_contract_and_nothing_is_left(cli: Cli, tmp_path: Path) -> None:
    answer = cli("stores", "check", "sqlite:///jobs.db")
    assert answer.returncode == 0
    assert "reached, and its schema is in order" in answer.stdout
    assert "0 are broken" in answer.stdout
    assert {path.name for path in tmp_path.iterdir()} <= {"jobs.db", "jobs.db-wal", "jobs.db-shm"}


def test_a_store_that_cannot_be_opened_is_said_before_any_rule(cli: Cli) -> None:
    assert "there is no server to check" in refusal(cli("stores", "check", "memory://"))
    said = refusal(cli("stores", "check", "sqlite:///nowhere/jobs.db"))
    assert "nowhere" in said
    assert "does not exist" in said


def test_a_password_in_a_url_is_never_printed(cli: Cli) -> None:
    answer = cli("stores", "check", "postgresql://app:hunter2@127.0.0.1:1/app")
    assert answer.returncode == 1
    assert "hunter2" not in answer.stdout + answer.stderr
