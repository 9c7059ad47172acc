"""Jobs in a MariaDB or MySQL database, shared by any number of instances on any number of hosts."""

from __future__ import annotations

from asyncsched.errors import MissingExtra

try:
    import aiomysql  # noqa: F401
except ImportError as error:
    raise MissingExtra('the MySQL store needs aiomysql: pip install "asyncsched[mysql]"') from error

from asyncsched.stores.mysql._store import MySQLStore

__all__ = ["MySQLStore"]
