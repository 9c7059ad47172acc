"""The way to the server: one endpoint at a time, with the next in reserve; a deadline around each call; errors translated once.

The driver's client has one endpoint and no way to bound what is read, so its stubs are called directly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import aetcd
from aetcd import rpc

from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.outlast import cancellations

__all__ = ["Line", "Login"]

logger = logging.getLogger("asyncsched")

T = TypeVar("T")

#: A member that has lost the others refuses, instead of waiting for them.
_NEEDS_LEADER = ("hasleader", "true")
_CODES: Any = rpc.StatusCode
_ERROR: Any = rpc.AioRpcError
#: How long what is left of a channel that was given up may take to end.
_ENDING_S = 2.0
#: How long the driver takes to hear of what was cancelled.
_UNTIDY_S = 0.02
_LOOSE_S = 0.2
#: Its task that waits for the end of a stream.
_DRIVERS_OWN = "_handle_status_once_received"


class Login:
    """Who asks."""

    __slots__ = ("password", "username")

    def __init__(self, username: str | None, password: str | None) -> None:
        self.username = username
        self.password = password


class Way:
    """One channel to one member, and what is called by it."""

    def __init__(self, endpoint: str, channel: Any, *, is_own: bool = True) -> None:
        self.endpoint = endpoint
        self.channel = channel
        self.kv: Any = rpc.KVStub(channel)
        self.lease: Any = rpc.LeaseStub(channel)
        self.watch: Any = rpc.WatchStub(channel)
        self.auth: Any = rpc.AuthStub(channel)
        self.maintenance: Any = rpc.MaintenanceStub(channel)
        self.token: str | None = None
        self.is_own = is_own
        #: Calls on their way, and whether it is to be closed after the last of them.
        self.calls = 0
        self.is_given_up = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (_NEEDS_LEADER,) if self.token is None else (_NEEDS_LEADER, ("token", self.token))


class Line:
    """The members at *endpoints*, or the one of a *client* of the user's, which is never closed here."""

    def __init__(
        self,
        endpoints: Sequence[str],
        client: aetcd.Client | None,
        *,
        timeout_s: float,
        dial_s: float,
        login: Login,
        tls: Any,
        options: Mapping[str, Any],
    ) -> None:
        self.name = "etcd of the given client" if client is not None else f"etcd at {','.join(endpoints)}"
        self.timeout_s = timeout_s
        self._endpoints = tuple(endpoints)
        self._client = client
        self._dial_s = dial_s
        self._login = login
        self._tls = tls
        self._options = dict(options)
        self._at = 0
        self._way: Way | None = None
        self._is_ready = False
        self._entering = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        #: A call was cancelled, whose end the driver has still to hear of: in this event loop, so it is not to be closed yet.
        self.is_untidy = False

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._way is not None

    async def open(self) -> None:
        """Reach one of the members, and log in; raises StoreError."""
        failures: list[str] = []
        for _ in range(len(self._endpoints) or 1):
            way = await self.new_way()
            self._way = way
            try:
                await self._dial(way)
                await self._log_in(way)
                return
            except (_ERROR, StoreUnavailable, OSError, TimeoutError) as error:
                failed = self.translated(error)
                await self.drop(way)
                self._way = None
                if not isinstance(failed, StoreUnavailable):
                    raise failed from error
                failures.append(str(failed))
                self._at += 1
            except BaseException:
                await self.drop(way)
                self._way = None
                raise
        raise StoreUnavailable("; ".join(dict.fromkeys(failures)))

    async def _dial(self, way: Way) -> None:
        try:
            async with asyncio.timeout(self._dial_s):
                await way.channel.channel_ready()
        except TimeoutError:
            self.is_untidy = True
            raise StoreUnavailable(
                f"{self.name}: {way.endpoint} cannot be reached within {self._dial_s:g} s (dial_timeout)"
            ) from None

    def ready(self) -> None:
        """The store is open: from here on a refusal is the fault of the server, and condemns nothing that was asked."""
        self._is_ready = True

    async def close(self) -> None:
        way, self._way = self._way, None
        self._is_ready = False
        if way is not None:
            await self.drop(way)
        if self._closing:
            await asyncio.wait(self._closing, timeout=_ENDING_S)
            for task in self._closing:
                task.cancel()
        if self.is_untidy:
            self.is_untidy = False
            await _driver_has_heard()

    async def drop(self, way: Way) -> None:
        if way.is_own:
            await way.channel.close()

    async def new_way(self) -> Way:
        """A channel of its own to the member whose turn it is; it connects when it is first used."""
        client = self._client
        if client is None:
            return self._fresh_way()
        await self._connect_client(client)
        way = Way("the given client", client.channel, is_own=False)
        way.token = dict(client.metadata or ()).get("token")
        return way

    def _fresh_way(self) -> Way:
        endpoint = self._endpoints[self._at % len(self._endpoints)]
        options = {
            # No limit on what is read: what is asked for is bounded.
            "grpc.max_receive_message_length": -1,
            # Each store has connections of its own, which share no fate.
            "grpc.use_local_subchannel_pool": 1,
            "grpc.http2.bdp_probe": 0,
            "grpc.initial_reconnect_backoff_ms": 100,
            "grpc.max_reconnect_backoff_ms": 1000,
            # So long may one attempt to connect take.
            "grpc.min_reconnect_backoff_ms": int(self._dial_s * 1000),
            **self._options,
        }
        if self._tls is None:
            channel = rpc.insecure_channel(endpoint, options=list(options.items()))
        else:
            channel = rpc.secure_channel(endpoint, self._tls, options=list(options.items()))
        return Way(endpoint, channel)

    async def way_to_listen(self) -> Way:
        """A connection of its own to the member that is in use; the caller drops it."""
        way = await self.new_way()
        if way.is_own:
            way.token = self.way.token
        return way

    async def _connect_client(self, client: aetcd.Client) -> None:
        try:
            async with asyncio.timeout(self._dial_s):
                await client.connect()
        except aetcd.ClientError as error:
            raise self.translated(error.__cause__ or error) from error
        except TimeoutError as error:
            raise self.translated(error) from error

    async def _log_in(self, way: Way) -> None:
        """Get a token, where there is a user; raises the driver's error."""
        username, password = self._login.username, self._login.password
        if way.is_own is False:
            username = getattr(self._client, "_username", None)
            password = getattr(self._client, "_password", None)
        if username is None or password is None:
            return
        request = rpc.AuthenticateRequest(name=username, password=password)
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await way.auth.Authenticate(request)
        except _ERROR as error:
            if "authentication is not enabled" in said_by(error):
                logger.warning("%s asks nobody for a password: whoever reaches it may change jobs", self.name)
                return
            raise
        way.token = answer.token

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def within_deadline(self, call: Awaitable[T]) -> T:
        """What *call*, which may be several requests, brings within the deadline; raises StoreError."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await call
        except TimeoutError as error:
            if self._way is not None:
                # It may be a connection whose other end is gone in silence.
                self.give_up(self._way)
            raise self.translated(error) from error

    async def txn(self, request: Any) -> Any:
        return await self.ask(lambda way: way.kv.Txn, request)

    async def range(self, request: Any) -> Any:
        return await self.ask(lambda way: way.kv.Range, request)

    async def grant(self, ttl_s: int) -> int:
        """A new lease of the server's own, which takes its keys with it when it ends."""
        answer = await self.ask(lambda way: way.lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s))
        return int(answer.ID)

    async def compact(self) -> int:
        """Have the server forget what was before its present revision; returns that."""
        found = await self.range(rpc.RangeRequest(key=b"\0", count_only=True))
        revision = int(found.header.revision)
        try:
            await self.ask(lambda way: way.kv.Compact, rpc.CompactionRequest(revision=revision))
        except StoreUnavailable as error:
            if "has been compacted" not in str(error):
                raise
        return revision

    async def refresh(self, lease: int) -> bool:
        """Have a lease of the server's last its full time again; False if it has ended."""
        way = self.way
        before = cancellations()
        stream = way.lease.LeaseKeepAlive(metadata=way.metadata)
        try:
            await stream.write(rpc.LeaseKeepAliveRequest(ID=lease))
            answer = await stream.read()
        except (_ERROR, asyncio.InvalidStateError) as error:
            raise self.translated(error) from error
        except asyncio.CancelledError:
            if cancellations() > before:
                raise
            # Not this call was cancelled: its channel was closed.
            raise StoreUnavailable(f"{self.name}: the connection was closed") from None
        finally:
            self.is_untidy = True
            stream.cancel()
        return bool(getattr(answer, "TTL", 0) > 0)

    async def ask(self, method: Callable[[Way], Any], request: Any) -> Any:
        """Send *request* once; it is sent anew only where the server has refused its token, and so has done nothing."""
        way = self.way
        token = way.token
        try:
            return await self._ask_once(way, method, request)
        except _ERROR as error:
            if not _is_token_refused(error):
                raise self._failed(way, error) from error
        try:
            async with self._entering:
                if way.token == token:
                    await self._log_in(way)
            return await self._ask_once(way, method, request)
        except _ERROR as error:
            raise self._failed(way, error) from error

    async def _ask_once(self, way: Way, method: Callable[[Way], Any], request: Any) -> Any:
        way.calls += 1
        before = cancellations()
        try:
            return await method(way)(request, metadata=way.metadata)
        except asyncio.CancelledError:
            self.is_untidy = True
            if cancellations() > before:
                raise
            # Not this call was cancelled: its channel was closed.
            raise StoreUnavailable(
                f"{self.name}: the connection was closed, the outcome is unknown"
            ) from None
        finally:
            way.calls -= 1
            if way.is_given_up and not way.calls:
                self._end(way)

    @property
    def way(self) -> Way:
        if self._way is None:
            raise StoreError(f"the store on {self.name} is not open: await its open() first")
        return self._way

    def _failed(self, way: Way, error: Any) -> StoreError:
        failed = self.translated(error)
        if isinstance(failed, StoreUnavailable) and len(self._endpoints) > 1 and _is_of_member(error):
            self.give_up(way)
        return failed

    def give_up(self, way: Way) -> None:
        """Whatever comes next goes to the next member, or by a new connection where there is one member only."""
        if way is not self._way or not way.is_own:
            return
        self._at += 1
        way.is_given_up = True
        self._way = fresh = self._fresh_way()
        fresh.token = way.token
        if not way.calls:
            self._end(way)

    def _end(self, way: Way) -> None:
        task = asyncio.get_running_loop().create_task(self.drop(way))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # -- what errors mean ----------------------------------------------------------------------------------------------

    def translated(self, error: BaseException) -> StoreError:
        """What the driver's *error* means to whoever called the store."""
        name = self.name
        if isinstance(error, StoreError):
            return error
        if isinstance(error, TimeoutError):
            return StoreUnavailable(
                f"{name} did not answer within {self.timeout_s:g} s: the outcome is unknown"
            )
        if not isinstance(error, _ERROR):
            return StoreUnavailable(f"{name} cannot be used at present: {error}")
        failed: Any = error
        code, said = failed.code(), said_by(failed)
        for words, means in _REFUSALS:
            if words in said:
                return self._refused(f"{name} {means} ({said})")
        for words, means in _PERMANENT:
            if words in said:
                return StoreError(f"{name} {means} ({said})")
        for kind, means in _PASSING:
            if code is kind:
                return StoreUnavailable(f"{name} {means} ({said})")
        return StoreError(f"{name} refused the call ({code.name}): {said}")

    def _refused(self, message: str) -> StoreError:
        return StoreUnavailable(message) if self._is_ready else StoreError(message)


async def _driver_has_heard() -> None:
    """Return once the driver knows of the end of what was cancelled: it would tell an event loop that is closed by then."""
    await asyncio.sleep(_UNTIDY_S)
    loose = [
        task for task in asyncio.all_tasks() if _DRIVERS_OWN in getattr(task.get_coro(), "__qualname__", "")
    ]
    if loose:
        await asyncio.wait(loose, timeout=_LOOSE_S)


def said_by(error: Any) -> str:
    lines = str(error.details() or "").splitlines()
    return lines[0][:300] if lines else error.code().name


def _is_token_refused(error: Any) -> bool:
    return error.code() is _CODES.UNAUTHENTICATED or "auth token" in said_by(error)


def _is_of_member(error: Any) -> bool:
    """Whether another member may do better."""
    return error.code() in (_CODES.UNAVAILABLE, _CODES.DEADLINE_EXCEEDED, _CODES.INTERNAL, _CODES.CANCELLED)


#: By what the server says: who asks is not known, or may not.
_REFUSALS = (
    ("invalid user ID or password", "refuses this user or password: correct username= and password="),
    ("user name is empty", "asks for a user: give username= and password="),
    ("user name not found", "does not know this user: correct username="),
    ("permission denied", "does not allow this user what the store needs: grant it readwrite on all keys with its prefix"),
    ("invalid auth token", "does not accept its token any more"),
)  # fmt: skip
_PERMANENT = (
    ("request is too large", "takes no request of this size: raise its --max-request-bytes"),
    ("too many operations", "takes fewer operations in one transaction than 128: raise its --max-txn-ops"),
    (
        "larger than max",
        "answers more than the given client takes: raise its grpc.max_receive_message_length",
    ),
)
_PASSING = (
    (_CODES.RESOURCE_EXHAUSTED, "has no room or too much to do: compact and defragment it, then disarm its alarm"),
    (_CODES.DEADLINE_EXCEEDED, "did not answer in time: the outcome is unknown"),
    (_CODES.UNAVAILABLE, "cannot be reached, or has no leader at present"),
    (_CODES.UNAUTHENTICATED, "does not accept its token at present"),
    (_CODES.INTERNAL, "has broken off: the outcome is unknown"),
    (_CODES.CANCELLED, "has broken off: the outcome is unknown"),
    (_CODES.UNKNOWN, "failed: the outcome is unknown"),
    (_CODES.ABORTED, "is busy with the same keys"),
    (_CODES.OUT_OF_RANGE, "has forgotten that revision"),
    (_CODES.DATA_LOSS, "has lost data"),
    (_CODES.NOT_FOUND, "has ended the lease"),
)  # fmt: skip
