"""The way to Firestore: its client, calls with a deadline, what its refusals mean, and its clock."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import google.auth
import grpc.aio
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore_v1 import AsyncClient, types
from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcAsyncIOTransport
from google.oauth2 import service_account

from asyncsched.clock import SystemClock
from asyncsched.errors import SchemaError, StoreError, StoreUnavailable
from asyncsched.outlast import cancellations
from asyncsched.stores.firestore import _wire as wire
from asyncsched.stores.firestore._names import SECOND, Names, to_us

__all__ = ["Conflict", "Place", "Server", "both", "in_parallel", "pause"]

T = TypeVar("T")
U = TypeVar("U")

#: Requests of one call that are on their way at a time.
_AT_ONCE = 4
#: Documents that are asked for in one request.
_GET = 500

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # As Google's own client has it: servers refuse clients that ask more often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A server that comes back is found soon; by default gRPC takes up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Two stores of one process, in two event loops, share no connection.
    ("grpc.use_local_subchannel_pool", 1),
]

#: Of one write: it was not applied, since its document is not as it was expected to be or someone else writes to it.
_CONFLICTS = frozenset({5, 6, 9, 10})
_PERMANENT = frozenset({3, 11, 12})
_FORBIDDEN = frozenset({7, 16})


class Conflict(Exception):
    """Nothing of a commit was written: one of its documents is not as it was expected to be, or someone else writes to it."""


class Place(NamedTuple):
    """Where a store's documents are."""

    project: str
    database: str
    collection: str
    namespace: str
    #: Address of the emulator; None: Google's service, or what the given client leads to.
    emulator: str | None

    @property
    def path(self) -> str:
        return f"projects/{self.project}/databases/{self.database}"

    @property
    def root(self) -> str:
        return f"{self.path}/documents/{self.collection}/{self.namespace}"

    @property
    def shown(self) -> str:
        by = f" of the emulator at {self.emulator}" if self.emulator else ""
        return f"{self.collection}/{self.namespace} in database {self.database} of project {self.project}{by}"


class Server:
    """Calls to one database. Each raises StoreUnavailable where the outcome is unknown; none is repeated by the driver."""

    def __init__(
        self,
        place: Place,
        client: AsyncClient | None,
        credentials: Any,
        endpoint: str | None,
        timeout_s: float,
    ) -> None:
        self.place = place
        self.names = Names(place.root)
        self.given_now: Callable[[], float] | None = None
        self._client = client
        self._credentials = credentials
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._api: Any = None
        self._is_ready = False
        self._metadata: Sequence[tuple[str, str]] = ()
        #: What is to be added to the monotonic clock to have the server's, in microseconds.
        self._ahead_us: int | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._api is not None

    async def connect(self) -> None:
        """Make the client; nothing is sent yet."""
        self._is_ready = False
        if self._client is not None:
            self._api = self._client._firestore_api
            self._metadata = tuple(self._client._rpc_metadata)
            return
        channel, host = await self._channel()
        transport = FirestoreGrpcAsyncIOTransport(host=host, channel=channel)
        self._api = FirestoreAsyncClient(transport=transport)
        metadata = [("google-cloud-resource-prefix", self.place.path)]
        if self.place.emulator:
            # The emulator lets its owner do everything, whatever rules it was given.
            metadata.append(("authorization", "Bearer owner"))
        self._metadata = tuple(metadata)

    def ready(self) -> None:
        """The store is open: from here on a refusal is the fault of the service, and condemns nothing that was asked."""
        self._is_ready = True

    async def _channel(self) -> tuple[Any, str]:
        if self.place.emulator:
            return grpc.aio.insecure_channel(self.place.emulator, options=_OPTIONS), self.place.emulator
        host = self._endpoint or FirestoreAsyncClient.DEFAULT_ENDPOINT
        credentials = self._credentials
        try:
            if isinstance(credentials, str):
                credentials = await asyncio.to_thread(_credentials_in, credentials)
            elif credentials is None:
                # It may ask the machine it runs on.
                credentials = await asyncio.to_thread(_credentials_around)
        except (GoogleAuthError, OSError, ValueError) as error:
            project = self.place.project
            if isinstance(credentials, str):
                raise StoreError(f"{credentials} is no key file for project {project}: {error}") from error
            raise StoreError(
                f"no credentials for project {project}: set GOOGLE_APPLICATION_CREDENTIALS to a key file, run "
                f"'gcloud auth application-default login', or give credentials= ({error})"
            ) from error
        channel = FirestoreGrpcAsyncIOTransport.create_channel(
            host, credentials=credentials, options=_OPTIONS
        )
        return channel, host

    async def disconnect(self) -> None:
        api, self._api = self._api, None
        self._is_ready = False
        self._ahead_us = None
        if api is not None and self._client is None:
            await api.transport.close()

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def get(
        self, names: Sequence[str], fields: Sequence[str] | None = None
    ) -> tuple[dict[str, Any], int]:
        """Those documents that are there, by name, and the server's time; with *fields*, these alone."""
        pieces = [names[i : i + _GET] for i in range(0, len(names), _GET)]
        answers = await in_parallel([partial(self._get, piece, fields) for piece in pieces])
        found: dict[str, Any] = {}
        for documents, _ in answers:
            found |= documents
        return found, answers[0][1] if answers else self.about_us()

    async def _get(self, names: Sequence[str], fields: Sequence[str] | None) -> tuple[dict[str, Any], int]:
        request = wire.BatchGet(database=self.place.path, documents=names)
        if fields is not None:
            request.mask.field_paths.extend(fields)
        found: dict[str, Any] = {}
        at_us = 0
        async for answer in self._stream("batch_get_documents", types.BatchGetDocumentsRequest, request):
            if answer.HasField("found"):
                found[answer.found.name] = answer.found
            at_us = wire.microseconds(answer.read_time)
        return found, self._seen(at_us)

    async def query(self, query: Any) -> tuple[list[Any], int]:
        """The documents that *query* finds, and the server's time."""
        request = wire.RunQuery(parent=self.place.root, structured_query=query)
        found: list[Any] = []
        at_us = 0
        async for answer in self._stream("run_query", types.RunQueryRequest, request):
            if answer.HasField("document"):
                found.append(answer.document)
            at_us = wire.microseconds(answer.read_time)
        return found, self._seen(at_us)

    async def commit(self, writes: Sequence[Any]) -> list[int]:
        """Write all or nothing; returns when each document was changed. Raises Conflict."""
        request = wire.Commit(database=self.place.path, writes=writes)
        with self._translated():
            try:
                answer = await self._call("commit", types.CommitRequest, request)
            except (
                exceptions.FailedPrecondition,
                exceptions.AlreadyExists,
                exceptions.NotFound,
                exceptions.Aborted,
            ) as error:
                raise Conflict(error.message) from error
        self._seen(wire.microseconds(answer.commit_time))
        return [wire.microseconds(result.update_time) for result in answer.write_results]

    async def batch(self, writes: Sequence[Any]) -> list[int | None]:
        """Write each by itself; returns when each document was changed, None for a write that met another document than it
        expected."""
        request = wire.BatchWrite(database=self.place.path, writes=writes)
        with self._translated():
            answer = await self._call("batch_write", types.BatchWriteRequest, request)
        for status in answer.status:
            if status.code and status.code not in _CONFLICTS:
                said = f"Firestore did not write to {self.place.shown}: {status.message}"
                if status.code in _FORBIDDEN:
                    raise self._refused(said)
                raise (StoreError if status.code in _PERMANENT else StoreUnavailable)(said)
        return [
            None if status.code else wire.microseconds(result.update_time)
            for status, result in zip(answer.status, answer.write_results, strict=True)
        ]

    async def _call(self, method: str, kind: Any, request: Any) -> Any:
        call = getattr(self._open_api(), method)
        answer = await call(kind.wrap(request), retry=None, timeout=self._timeout_s, metadata=self._metadata)
        return type(answer).pb(answer)

    async def _stream(self, method: str, kind: Any, request: Any) -> AsyncIterator[Any]:
        with self._translated():
            call = getattr(self._open_api(), method)
            answers = await call(
                kind.wrap(request), retry=None, timeout=self._timeout_s, metadata=self._metadata
            )
            async for answer in answers:
                yield type(answer).pb(answer)

    def _open_api(self) -> Any:
        if self._api is None:
            raise StoreError(f"the store of {self.place.shown} is not open: await its open()")
        return self._api

    # -- the clock -----------------------------------------------------------------------------------------------------

    async def now_us(self) -> int:
        """The server's time, or what was given instead: that of one read."""
        if self.given_now is not None:
            return to_us(self.given_now())
        _, at_us = await self.get([self.place.root], ["schema"])
        return at_us

    def about_us(self) -> int:
        """The server's time as the monotonic clock has gone on since its last answer; only questions are asked by it."""
        if self.given_now is not None:
            return to_us(self.given_now())
        return _monotonic_us() + (self._ahead_us or 0)

    def _seen(self, at_us: int) -> int:
        """Keep the server's time, and return what is to be taken for it."""
        if at_us:
            self._ahead_us = at_us - _monotonic_us()
        return at_us if self.given_now is None else to_us(self.given_now())

    # -- refusals ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        before = cancellations()
        try:
            yield
        except asyncio.CancelledError:
            if cancellations() > before:
                raise
            # Not this call was cancelled: its channel was closed.
            raise StoreUnavailable(f"the connection to {self.place.shown} was closed") from None
        except exceptions.GoogleAPICallError as error:
            raise self._meaning(error) from error
        except grpc.aio.UsageError as error:
            # The channel was closed by another task meanwhile.
            raise StoreUnavailable(f"the connection to {self.place.shown} was closed: {error}") from error

    def _meaning(self, error: exceptions.GoogleAPICallError) -> StoreError:
        here, said = self.place.shown, error.message
        if isinstance(error, exceptions.PermissionDenied):
            return self._refused(
                f"Firestore refuses access to {here}: give the account the role roles/datastore.user ({said})"
            )
        if isinstance(error, exceptions.Unauthenticated):
            return self._refused(f"Firestore refuses the credentials for {here} ({said})")
        if isinstance(error, exceptions.NotFound):
            return self._refused(
                f"there is no database {self.place.database!r} in project {self.place.project!r}, or no such project: "
                f"create it in Native mode, or name another with database= ({said})"
            )
        if isinstance(error, exceptions.FailedPrecondition):
            if "index" in said:
                return SchemaError(
                    f"{here} lacks an index, or is building it: deploy what 'asyncsched stores ddl' prints ({said})"
                )
            return StoreError(f"Firestore refuses a call to {here} ({said})")
        if isinstance(
            error,
            exceptions.ServerError | exceptions.Aborted | exceptions.Cancelled | exceptions.TooManyRequests,
        ):
            if isinstance(error, exceptions.DeadlineExceeded):
                said = f"no answer within {self._timeout_s:g} s"
            return StoreUnavailable(f"Firestore cannot be reached for {here}: {said}")
        return StoreError(f"Firestore refuses a call to {here}: {said}")

    def _refused(self, message: str) -> StoreError:
        return StoreUnavailable(message) if self._is_ready else StoreError(message)


def _credentials_in(file: str) -> Any:
    keys: Any = service_account.Credentials  # Annotated in part.
    return keys.from_service_account_file(file, scopes=FirestoreGrpcAsyncIOTransport.AUTH_SCOPES)


def _credentials_around() -> Any:
    return google.auth.default(scopes=FirestoreGrpcAsyncIOTransport.AUTH_SCOPES)[0]


def _monotonic_us() -> int:
    return int(SystemClock.monotonic() * SECOND)


async def in_parallel(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """The answers in the order given, with a few on their way at a time; the first error ends all."""
    if len(calls) == 1:
        return [await calls[0]()]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with slots:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def both(one: Callable[[], Awaitable[T]], other: Callable[[], Awaitable[U]]) -> tuple[T, U]:
    """The answers of both, which go on their way together."""
    calls: list[Callable[[], Awaitable[Any]]] = [one, other]
    first, second = await in_parallel(calls)
    return first, second


async def pause(attempt: int) -> None:
    """Between tries of those who write to the same documents: none at first, then longer and longer, each another time."""
    if attempt:
        await asyncio.sleep(random.random() * 0.01 * 2 ** min(attempt, 5))
