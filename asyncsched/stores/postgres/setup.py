"""What open() does: look at the server, bring the schema up to date, and find the namespace's number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from asyncsched.errors import SchemaError, StoreError, StoreUnavailable
from asyncsched.stores.postgres import schema
from asyncsched.stores.postgres.line import Line
from asyncsched.stores.postgres.schema import Names

__all__ = ["ddl", "prepared_space"]

#: The oldest server that has all that is used.
_OLDEST = 130000
#: Of the advisory lock that openers take while they change a schema; any number that others hardly use.
_LOCK = 4_171_962_202

_NO_PRIVILEGE = "42501"

_LOOK = """SELECT current_setting('server_version_num')::integer, current_setting('server_encoding'), pg_is_in_recovery(),
    current_setting('transaction_read_only') = 'on', to_regclass($1) IS NOT NULL, current_user::text"""
_TABLES_THERE = """SELECT c.relname::text FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r'
    WHERE n.nspname = $1"""
_VERSION = "SELECT value FROM @meta WHERE key = 'schema'"
_SET_VERSION = "INSERT INTO @meta (key, value) VALUES ('schema', {}) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_SPACE = "SELECT id FROM @spaces WHERE name = $1"
_NEW_SPACE = "INSERT INTO @spaces (name) VALUES ($1) ON CONFLICT (name) DO NOTHING"


class _Server(NamedTuple):
    version: int
    encoding: str
    is_standby: bool
    is_read_only: bool
    has_schema: bool
    role: str


def ddl(names: Names) -> str:
    """The statements that create the schema of the present version."""
    return "".join(f"{statement};\n\n" for statement in _steps(names, 0))


async def prepared_space(line: Line, names: Names, namespace: str, place: str, create: bool) -> int:
    """The number of *namespace*, once the schema is there in the version of this code."""
    [row] = await line.fetch(_LOOK, names.qualified("meta"))
    server = _Server(*row)
    _check(server, place)
    here = f"the schema {names.schema!r} at {place} (tables {names.prefix}*)"
    found = await _version(line, names) if server.has_schema else 0
    if found != schema.SCHEMA_VERSION:
        if found > schema.SCHEMA_VERSION:
            raise SchemaError(
                f"{here} has version {found}, this code {schema.SCHEMA_VERSION}: upgrade asyncsched"
            )
        if not create:
            what = "is not there" if not found else f"has version {found}, this code {schema.SCHEMA_VERSION}"
            raise SchemaError(
                f"{here} {what}: open it once with create_schema=True, or run the statements of ddl() as its owner"
            )
        await _bring_up_to_date(line, names, server)
    return await _space(line, names, namespace)


def _check(server: _Server, place: str) -> None:
    if server.version < _OLDEST:
        raise StoreError(
            f"PostgreSQL at {place} is version {server.version // 10000}; {_OLDEST // 10000} or later is needed"
        )
    if server.encoding != "UTF8":
        raise StoreError(
            f"the database at {place} is encoded in {server.encoding}: use one with encoding UTF8"
        )
    if server.is_standby or server.is_read_only:
        kind = "a standby" if server.is_standby else "read-only"
        raise StoreUnavailable(
            f"PostgreSQL at {place} is {kind}, and jobs need writing: connect to the primary"
        )


async def _version(line: Line, names: Names) -> int:
    rows = await line.fetch(names.write_out(_VERSION))
    return int(rows[0][0]) if rows else 0


async def _bring_up_to_date(line: Line, names: Names, server: _Server) -> None:
    """Create or migrate in one transaction, one opener after the other; the others then find it done."""

    async def look_again_and_migrate(connection: Any) -> None:
        await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        # By a query of the catalog: a look-up by name may answer from what was so before the lock was waited for.
        there = [row[0] for row in await connection.fetch(_TABLES_THERE, names.schema)]
        found = 0
        if names.prefix + "meta" in there:
            found = await connection.fetchval(names.write_out(_VERSION)) or 0
        if found < schema.SCHEMA_VERSION:
            # Who may create in a schema that is there need not be one who may create schemas.
            steps = [*_steps(names, found)][1 if there and not found else 0 :]
            await connection.execute(";\n".join(steps))

    try:
        await line.in_transaction(look_again_and_migrate)
    except StoreUnavailable:
        raise
    except StoreError as error:
        if getattr(error.__cause__, "sqlstate", None) != _NO_PRIVILEGE:
            raise StoreError(f"the schema {names.schema!r} cannot be created or migrated: {error}") from error
        raise StoreError(
            f"the role {server.role!r} cannot create the schema {names.schema!r}: {error}; grant it CREATE there, name another "
            "with schema=, or have an owner run the statements of ddl() and open with create_schema=False"
        ) from error


def _steps(names: Names, found: int) -> Iterator[str]:
    """The statements that lead from version *found* to the present one; to begin with, the schema."""
    if not found:
        yield names.create_schema
    for version in range(found + 1, schema.SCHEMA_VERSION + 1):
        yield from map(names.write_out, schema.MIGRATIONS[version])
    yield names.write_out(_SET_VERSION.format(schema.SCHEMA_VERSION))


async def _space(line: Line, names: Names, namespace: str) -> int:
    query = names.write_out(_SPACE)
    if not (rows := await line.fetch(query, namespace)):
        await line.fetch(names.write_out(_NEW_SPACE), namespace)
        rows = await line.fetch(query, namespace)
    return int(rows[0][0])
