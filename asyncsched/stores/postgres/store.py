"""The store's methods: each is one call of a function of the schema, or one statement."""

from __future__ import annotations

import asyncio
import math
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from operator import attrgetter
from typing import Any, Literal

import asyncpg
from msgspec.structs import astuple

from asyncsched import contract
from asyncsched.address import flag, keywords_of, without_password
from asyncsched.contract import Claim, Claimed, Entry, Filter, JobStore, Lease, Record, Renewal, Settled, Settlement
from asyncsched.errors import DefinitionError, StoreError
from asyncsched.guest import driver_connection
from asyncsched.stores.postgres import statements as sql
from asyncsched.stores.postgres.line import Fetch, GuestLine, Line
from asyncsched.stores.postgres.listener import Listener
from asyncsched.stores.postgres.schema import Names
from asyncsched.stores.postgres.setup import ddl, prepared_space

__all__ = ["PostgresStore"]

#: A call of prune looks at so many log entries for crowded jobs, and the next call goes on behind them.
_SWEEP = 10_000
_EMPTY: tuple[list[Any], ...] = tuple([] for _ in Record.__struct_fields__)
