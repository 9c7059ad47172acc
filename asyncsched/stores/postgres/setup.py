"""What open() does: look at the server, bring the schema up to date, and find the namespace's number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from asyncsched.errors import SchemaError, StoreError, StoreUnavailable
from asyncsched.stores.postgres import schema
from asyncsched.stores.postgres.line import Line
from asyncsched.stores.postgres.schema import Names

__all__ = ["ddl", "prepared_space"]

#: The oldest server that has all that is used.
_OLDEST = 130000
#: Of the advisory lock that openers take while they change a schema; any number that others hardly use.
_LOCK = 4_171_962_202

_LOOK = """SELECT current_setting('server_version_num')::integer, current_setting('server_encoding'), pg_is_in_recovery(),
    current_setting('transaction_read_only') = 'on', to_regclass($1) IS NOT NULL, current_user::text, to_regnamespace($2) IS NOT NULL"""
_VERSION = "SELECT value FROM @meta WHERE key = 'schema'"
_SET_VERSION = (
    "INSERT INTO @meta (key, value) VALUES ('schema', {}) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
_SPACE = "SELECT id FROM @spaces WHERE name = $1"
_NEW_SPACE = "INSERT INTO @spaces (name) VALUES ($1) ON CONFLICT (name) DO NOTHING"


class _Server(NamedTuple):
    version: int
    encoding: str
    is_standby: bool
    is_read_only: bool
    has_schema: bool
    role: str
    has_namespace: bool


def ddl(names: Names) -> str:
    """The statements that create the schema of the present version."""
    return "".join(f"{statement};\n\n" for statement in _steps(names, 0))


async def prepared_space(line: Line, names: Names, namespace: str, place: str, create: bool) -> int:
    """The number of *namespace*, once the schema is there in the version of this code."""
    [row] = await line.fetch(_LOOK, names.qualified("meta"), _literal(names.schema))
    server = _Server(*row)
    _check(server, place)
    here = f"the schema {names.schema!r} at {place} (tables {names.prefix}*)"
    found = await _version(line, names) if server.has_schema else 0
    if found != schema.SCHEMA_VERSION:
        if found > schema.SCHEMA_VERSION:
            raise SchemaError(f"{here} has version {found}, this code {schema.SCHEMA_VERSION}: upgrade asyncsched")
        if not create:
            what = "is not there" if not found else f"has version {found}, this code {schema.SCHEMA_VERSION}"
            raise SchemaError(
                f"{here} {what}: open it once with create_schema=True, or run the statements of ddl() as its owner"
            )
        await _bring_up_to_date(line, names, server)
    return await _space(line, names, namespace)
