"""A user's own database connection, in whatever wrapping it comes: what a store needs of it is the driver's connection."""

from __future__ import annotations

from inspect import iscoroutinefunction
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
    if _is_of_sqlalchemy(found) or hasattr(found, "get_raw_connection"):
        found = await _unwrapped(found)
    # A pool lends its connections in a proxy of its own.
    found = getattr(found, "_con", found)
    if not isinstance(found, kind):
        raise DefinitionError(
            f"connection= takes a connection of {driver}, or an AsyncConnection or AsyncSession of SQLAlchemy on {driver}; "
            f"this is {type(given).__module__}.{type(given).__qualname__}"
        )
    return found


def _is_of_sqlalchemy(found: object) -> bool:
    """A session of a class of the user's, or of another library's, is one of SQLAlchemy all the same."""
    return any(kind.__module__.startswith("sqlalchemy.") for kind in type(found).__mro__)


async def _unwrapped(found: Any) -> Any:
    if not hasattr(found, "get_raw_connection"):
        # A blocking session has one, too.
        if not iscoroutinefunction(getattr(found, "connection", None)):
            return found
        found = await found.connection()
    await found.exec_driver_sql("SELECT 1")
    raw = await found.get_raw_connection()
    return raw.driver_connection
