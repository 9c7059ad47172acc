"""The way to the server: commands with a deadline, whole answers, and what refusals mean.

Both drivers take a command as a dictionary and repeat none by themselves, so the store speaks in commands alone: that is all it
needs of a client, whichever it is.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pymongo
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from pymongo.errors import InvalidURI as InvalidAddress

from asyncsched.errors import DefinitionError, StoreError, StoreUnavailable

__all__ = ["DUPLICATE", "Document", "Names", "Refused", "Server", "logger"]

logger = logging.getLogger("asyncsched")

Document = dict[str, Any]

DUPLICATE = 11000
#: MongoDB 4.4, by the number of its protocol: the first with all that the commands need.
_OLDEST = 9
#: So many documents stand in one page of an answer.
_PAGE = 1_000
_MAJORITY = {"w": "majority"}
_WRITES = frozenset({"insert", "update", "delete", "findAndModify", "createIndexes", "drop"})
_PLAIN: CodecOptions[Document] = CodecOptions()

_LOGIN = {
    11: "knows no such user",
    18: "refuses this user or password",
    334: "refuses this way of logging in",
}
_FORBIDDEN = {13, 8000}
#: The fault of the server, or of the moment: it may succeed when repeated.
_PASSING = {
    6, 7, 24, 43, 46, 50, 64, 79, 89, 91, 100, 112, 117, 133, 175, 189, 202, 225, 246, 251, 262, 263, 290, 314, 317, 358, 384,
    9001, 10058, 10107, 11600, 11602, 13388, 13435, 13436, 16500,
}  # fmt: skip
_TOO_LARGE = {10334, 17280, 17419, 17420}


class Refused(StoreError):
    """This user may not do it, and repeating it at once will not help."""


class Names:
    """What the collections are called."""

    def __init__(self, prefix: str) -> None:
        self.jobs = f"{prefix}_jobs"
        self.log = f"{prefix}_log"
        self.leases = f"{prefix}_leases"


class Server:
    """One database, by a client that is made here from a URL or that a user brought."""

    def __init__(
        self,
        url: str | None,
        client: Any,
        database: str,
        *,
        shown: str,
        timeout_s: float,
        connections: int,
        options: Mapping[str, Any],
    ) -> None:
        #: How messages call it.
        self.name = shown
        self.timeout_s = timeout_s
        self.database = database
        self._url = url
        self._given = client
        self._connections = connections
        self._options = options
        self._client: Any = None
        self._database: Any = None
        self._is_ready = False

    @property
    def is_open(self) -> bool:
        return self._client is not None

    @property
    def handle(self) -> Any:
        """The driver's own database."""
        if self._client is None:
            raise StoreError(f"the store on {self.name} is not open: await its open() first")
        return self._database

    def connect(self) -> None:
        """Have a client; it connects when it is first used."""
        self._is_ready = False
        self._client = self._given if self._given is not None else self._new_client()
        self._database = self._client.get_database(self.database, codec_options=_PLAIN)

    async def disconnect(self) -> None:
        """Close the client, unless a user brought it."""
        client, self._client = self._client, None
        if client is not None and client is not self._given:
            try:
                async with asyncio.timeout(self.timeout_s):
                    await client.close()
            except (PyMongoError, OSError, TimeoutError) as error:
                logger.debug("closing %s: %s", self.name, error)

    async def check(self) -> None:
        """Raise StoreError where the server cannot serve."""
        hello = await self.command({"hello": 1})
        spoken = hello.get("maxWireVersion", 0)
        if spoken < _OLDEST:
            raise StoreError(
                f"{self.name} speaks version {spoken} of MongoDB's protocol, and the store needs {_OLDEST} (MongoDB 4.4): "
                "upgrade it"
            )
        if hello.get("secondary"):
            raise StoreError(
                f"{self.name} is not the primary of its replica set: name the set, without directConnection"
            )

    def ready(self) -> None:
        """The store is open: from here on a refusal is the fault of the server, and condemns nothing that was asked."""
        self._is_ready = True

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def command(self, command: Document) -> Document:
        """Send *command* once and return its answer; raises StoreUnavailable where its outcome is unknown."""
        if next(iter(command)) in _WRITES:
            command["writeConcern"] = _MAJORITY
        try:
            async with asyncio.timeout(self.timeout_s):
                answer: Document = await self.handle.command(command, codec_options=_PLAIN)
        except (PyMongoError, BSONError, OSError, TimeoutError, OverflowError) as error:
            raise self.translated(error) from error
        concern = answer.get("writeConcernError")
        if concern is not None:
            raise StoreUnavailable(
                f"{self.name} has not told a majority of its members: the outcome is unknown ({concern.get('errmsg')})"
            )
        return answer

    async def write(self, command: Document, *, may_exist: bool = False) -> Document:
        """Send an insert, update or delete; every error that it tells of one document is raised.

        With *may_exist* documents of an id that is taken are passed over, and told in ``writeErrors``.
        """
        answer = await self.command(command)
        for error in answer.get("writeErrors", ()):
            if not (may_exist and error["code"] == DUPLICATE):
                raise self._refusal(error["code"], error.get("errmsg", ""), None)
        return answer

    async def rows(self, command: Document) -> list[Document]:
        """All documents that a find or an aggregate gives.

        The driver keeps the cursor: what is left of an answer is given to its own session alone, and by the server that has it.
        """
        command.setdefault(
            "batchSize" if "find" in command else "cursor",
            _PAGE if "find" in command else {"batchSize": _PAGE},
        )
        found: list[Document] = []
        try:
            async with asyncio.timeout(self.timeout_s):
                cursor = await self.handle.cursor_command(command, codec_options=_PLAIN)
                cursor.batch_size(_PAGE)
            while cursor.alive:
                async with asyncio.timeout(self.timeout_s):
                    found += await cursor.to_list(_PAGE)
        except (PyMongoError, BSONError, OSError, TimeoutError, OverflowError) as error:
            raise self.translated(error) from error
        return found

    async def aggregate(
        self, collection: str, stages: Sequence[Document], hint: str | None = None
    ) -> list[Document]:
        command: Document = {"aggregate": collection, "pipeline": list(stages)}
        if hint is not None:
            command["hint"] = hint
        return await self.rows(command)

    # -- below ---------------------------------------------------------------------------------------------------------

    def _new_client(self) -> Any:
        assert self._url is not None
        # A little less than a call has: the driver can say why it found no server.
        milliseconds = int(self.timeout_s * 900)
        settings = {
            "appname": "asyncsched",
            "serverSelectionTimeoutMS": milliseconds,
            "connectTimeoutMS": milliseconds,
            # What is lost is noticed by the calls, and the driver's watch is told by them to look for a new primary.
            "heartbeatFrequencyMS": 30_000,
            "maxPoolSize": self._connections,
        }
        asked = self._url.partition("?")[2].lower()
        settings = {name: value for name, value in settings.items() if f"{name.lower()}=" not in asked}
        try:
            with warnings.catch_warnings():
                # The driver only warns of an option that it does not know.
                warnings.simplefilter("error")
                return pymongo.AsyncMongoClient(self._url, **{**settings, **self._options})
        except (InvalidAddress, ConfigurationError, TypeError, ValueError, Warning) as error:
            raise DefinitionError(f"{self.name}: {_first_line(error)}") from error

    def translated(self, error: BaseException) -> StoreError:
        """What the driver's *error* means to whoever called the store."""
        name, said = self.name, _first_line(error)
        if isinstance(error, OperationFailure) and not isinstance(error, ExecutionTimeout):
            return self._refusal(error.code or 0, said, error)
        if isinstance(error, DocumentTooLarge | BSONError | OverflowError):
            return StoreError(f"{name} takes no document as large, or of such values: {said}")
        known = self._known_fault() if isinstance(error, TimeoutError) else None
        if known is not None:
            return StoreUnavailable(f"{name} cannot be reached, or has no primary ({_first_line(known)})")
        for kinds, means in _UNAVAILABLE:
            if isinstance(error, kinds):
                means = means.format(s=self.timeout_s)
                return StoreUnavailable(f"{name} {means} ({said})" if said else f"{name} {means}")
        return StoreError(f"{name} cannot be used as a store: {said}")

    def _refusal(self, code: int, said: str, error: OperationFailure | None) -> StoreError:
        name = self.name
        if code in _LOGIN:
            return self._refused(
                f"{name} {_LOGIN[code]} ({said}): correct it in the URL, and authSource= where it is another"
            )
        if code in _FORBIDDEN:
            return self._refused(
                f"{name} does not allow this user what the store needs ({said}): grant the role readWrite on {self.database!r}"
            )
        if code in _TOO_LARGE:
            return StoreError(f"{name} takes no document as large: {said}")
        is_passing = error is not None and (
            error.has_error_label("RetryableWriteError") or _is_transient(error)
        )
        if code in _PASSING or is_passing:
            return StoreUnavailable(f"{name} cannot do it at present: {said}")
        if not self._is_ready:
            return StoreError(f"{name} cannot be used as a store: {said}")
        return StoreError(f"{name} refused the call: {said}")

    def _known_fault(self) -> BaseException | None:
        """What the driver has found wrong with the servers, if it is still looking for one that serves."""
        topology = None if self._client is None else self._client.topology_description
        if topology is None or topology.has_writable_server():
            return None
        faults = [server.error for server in topology.server_descriptions().values()]
        return next((fault for fault in faults if fault is not None), None)

    def _refused(self, message: str) -> StoreError:
        return StoreUnavailable(message) if self._is_ready else Refused(message)


#: The fault of the server or of the way to it: it may succeed when repeated, and must condemn no job.
_UNAVAILABLE: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((ServerSelectionTimeoutError,), "cannot be reached, or has no primary"),
    ((WaitQueueTimeoutError,), "has all connections of this client in use"),
    (
        (NetworkTimeout, ExecutionTimeout, TimeoutError),
        "did not answer within {s:g} s: the outcome is unknown",
    ),
    ((AutoReconnect, ConnectionFailure, OSError), "cannot be reached, or has cut the connection"),
)


def _is_transient(error: OperationFailure) -> bool:
    return error.has_error_label("TransientTransactionError") or error.has_error_label(
        "SystemOverloadedError"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return (
        lines[0].partition(", full error:")[0].partition(", Topology Description:")[0][:300] if lines else ""
    )
