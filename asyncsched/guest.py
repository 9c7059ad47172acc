"""A user's own database connection, in whatever wrapping it comes: what a store needs of it is the driver's connection."""

from __future__ import annotations

from typing import Any, TypeVar

from asyncsched.errors import DefinitionError

__all__ = ["driver_connection"]

T = TypeVar("T")


async def driver_connection(given: Any, kind: type[T], driver: str) -> T:
    """The *kind* of connection that is *given*, or that a SQLAlchemy AsyncConnection or AsyncSession holds.

    SQLAlchemy begins its transaction with the first statement that goes through it, so one is sent. Raises DefinitionError
    where there is no such connection in what is given.
    """
    found = given
    if type(found).__module__.startswith("sqlalchemy.") or hasattr(found, "get_raw_connection"):
        found = await _unwrapped(found)
    # A pool lends its connections in a proxy of its own.
    found = getattr(found, "_con", found)
    if not isinstance(found, kind):
        raise DefinitionError(
            f"connection= takes a connection of {driver}, or an AsyncConnection or AsyncSession of SQLAlchemy on {driver}; "
            f"this is {type(given).__module__}.{type(given).__qualname__}"
        )
    return found


async def _unwrapped(found: Any) -> Any:
    if not hasattr(found, "get_raw_connection"):
        if not hasattr(found, "connection"):
            return found
        found = await found.connection()
    await found.exec_driver_sql("SELECT 1")
    raw = await found.get_raw_connection()
    return raw.driver_connection
