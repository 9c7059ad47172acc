"""What open() makes sure of: a server that can do it, sessions that mean the same, and tables of the right version."""

from __future__ import annotations

import re
import secrets
import zlib
from typing import Literal

from asyncsched.errors import DefinitionError, SchemaError, StoreError, StoreUnavailable
from asyncsched.stores.mysql._line import GuestLine, NotApplied, PoolLine
from asyncsched.stores.mysql._schema import MIGRATIONS, SCHEMA_VERSION, Names
from asyncsched.stores.mysql._statements import DONE, guard
from asyncsched.stores.mysql._text import integer, text

__all__ = ["check_guest", "check_schema", "check_server", "ddl", "mark_of", "space_of"]

Dialect = Literal["mariadb", "mysql"]

#: The first release of each that has what the statements need.
_NEEDED = {"mariadb": (10, 6), "mysql": (8, 0, 17)}
_SESSION = "@@character_set_client, @@character_set_connection, @@character_set_results, @@sql_mode"


def ddl(prefix: str, dialect: Dialect) -> str:
    """The statements that make the tables."""
    names = Names(None, prefix, dialect)
    title = f"-- For {'MariaDB' if dialect == 'mariadb' else 'MySQL'}; the other one has another collation of this kind.\n"
    return title + "".join(f"{statement};\n" for statement in [*_steps(names, 0), _set_version(names)])


async def check_server(line: PoolLine, prefix: str, wants_tls: bool) -> tuple[Names, Dialect]:
    """What the tables are called there, and which server it is; the line learns how large a packet may be."""
    [answer, secured] = await line.read(
        f"SELECT VERSION(), DATABASE(), @@max_allowed_packet, {_SESSION}",
        "SHOW SESSION STATUS LIKE 'Ssl_cipher'",
    )
    version, database, packet, *session = answer.rows[0]
    dialect: Dialect = "mariadb" if "mariadb" in version.lower() else "mysql"
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < _NEEDED[dialect]:
        raise StoreError(
            f"{line.place} is {version}, and the store needs MariaDB 10.6 or MySQL 8.0.17 or later: upgrade it"
        )
    if database is None:
        raise StoreError(f"the connections of {line.place} use no database: make the pool with db=")
    if wants_tls and not secured.rows[0][1]:
        raise StoreError(
            f"{line.place} offers no TLS, and the driver went on without it: enable it there, or ssl=false"
        )
    if problem := _unfit(*session):
        raise StoreError(f"the connections of {line.place} {problem}")
    line.max_packet = packet
    return Names(database, prefix, dialect), dialect


async def check_schema(line: PoolLine, names: Names, may_create: bool) -> None:
    """Make the tables, or bring them to this version, where that is allowed; raises SchemaError."""
    here = f"{line.place} (tables {names.prefix}*)"
    found = await _version(line, names)
    if found < SCHEMA_VERSION:
        if not may_create:
            missing = f"schema {found}, and this code needs {SCHEMA_VERSION}" if found else "no schema"
            raise SchemaError(
                f"{here} has {missing}: open it once with create_schema=True, or run what ddl() tells"
            )
        await _migrate(line, names)
        found = await _version(line, names)
    if found > SCHEMA_VERSION:
        raise SchemaError(
            f"{here} has schema {found}, and this code knows {SCHEMA_VERSION}: upgrade asyncsched"
        )


async def space_of(line: PoolLine, names: Names, namespace: str) -> int:
    """The number of *namespace* in the tables."""
    name = text(namespace)
    there = f"SELECT id FROM {names.spaces} WHERE name = {name}"
    [answer] = await line.read(there)
    if not answer.rows:
        alone = f"ON DUPLICATE KEY UPDATE name = {names.spaces}.name"
        _, answer = await line.write(f"INSERT INTO {names.spaces} (name) VALUES ({name}) {alone}", there)
    return int(answer.rows[0][0])


async def mark_of(line: PoolLine, names: Names) -> int:
    """A number that these tables have, and those of the same name on another server have not."""
    there = _marked(names)
    [answer] = await line.read(there)
    if not answer.rows:
        alone = f"ON DUPLICATE KEY UPDATE name = {names.meta}.name"
        mark = integer(secrets.randbits(62))
        insert = f"INSERT INTO {names.meta} (name, value) VALUES ('mark', {mark}) {alone}"
        _, answer = await line.write(insert, there)
    return int(answer.rows[0][0])


def _marked(names: Names) -> str:
    return f"SELECT value FROM {names.meta} WHERE name = 'mark'"


async def check_guest(line: GuestLine, names: Names, mark: int) -> None:
    """Whether the statements mean the same on a connection of the user's, and what makes them; raises DefinitionError."""
    answer, strict, marked = await line.read(
        f"SELECT {_SESSION}", "SHOW VARIABLES LIKE 'innodb_snapshot_isolation'", _marked(names)
    )
    line.is_strict = any(value == "ON" for _, value in strict.rows)
    if problem := _unfit(*answer.rows[0]):
        raise DefinitionError(f"connection= is one of those that {problem}")
    if [(mark,)] != list(marked.rows):
        raise DefinitionError(
            f"connection= leads to another server than that of {line.place}, with tables of the same names: give one to the "
            "database that keeps the jobs"
        )


def _unfit(client: str, between: str, results: str, mode: str) -> str:
    if {client, between, results} != {"utf8mb4"}:
        return f"speak {client}, {between} and {results}, not utf8mb4: make them with charset='utf8mb4'"
    if "EMPTY_STRING_IS_NULL" in mode:
        return "take an empty text for none (sql_mode EMPTY_STRING_IS_NULL): set another sql_mode for them"
    return ""


async def _version(line: PoolLine, names: Names) -> int:
    """0: there is no schema."""
    try:
        [answer] = await line.read(f"SELECT value FROM {names.meta} WHERE name = 'schema'")
    except SchemaError:
        return 0
    return int(answer.rows[0][0]) if answer.rows else 0


async def _migrate(line: PoolLine, names: Names) -> None:
    """Make or change the tables, one instance at a time. What another one has made meanwhile is made again, in vain."""
    lock = text(f"asyncsched {zlib.crc32(names.meta.encode()):08x}")
    wait_s = max(1, int(line.timeout_s / 2))
    steps = [*_steps(names, await _version(line, names)), _set_version(names)]
    try:
        await line.read(
            f"SET {DONE} = COALESCE(GET_LOCK({lock}, {wait_s}), 0)",
            guard(1),
            *steps,
            f"DO RELEASE_LOCK({lock})",
        )
    except NotApplied:
        raise StoreUnavailable(
            f"another instance has been changing the schema of {line.place} for {wait_s} s"
        ) from None


def _steps(names: Names, found: int) -> list[str]:
    versions = range(found + 1, SCHEMA_VERSION + 1)
    return [names.write_out(statement) for version in versions for statement in MIGRATIONS[version]]


def _set_version(names: Names) -> str:
    return f"REPLACE INTO {names.meta} (name, value) VALUES ('schema', {integer(SCHEMA_VERSION)})"
