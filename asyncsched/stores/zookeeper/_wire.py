"""The way to the servers: one connection with a session of its own, requests in flight side by side, a deadline for each.

The driver's session repeats what was cut off, waits for ever, and does not tell that it was lost. So its connection and its
requests are used, and what goes around them is here: connecting, pings, and the end of a connection, which is told to whoever
waits for an answer. Nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from aiozk import exc, protocol
from aiozk.connection import Connection
from aiozk.states import States

from asyncsched.clock import SystemClock
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.outlast import cancellations

__all__ = ["Failed", "Wire", "logger"]

logger = logging.getLogger("asyncsched.stores.zookeeper")

#: Answers that are part of the game: what they mean is decided where they arrive.
_ANSWERS = (exc.NoNode, exc.NodeExists, exc.BadVersion, exc.NotEmpty)
_PASSING = (
    exc.ConnectionLoss,
    exc.OperationTimeout,
    exc.SessionExpired,
    exc.SessionMoved,
    exc.NotReadOnly,
    exc.UnknownSession,
)
#: A server that has said nothing for so long is asked whether it is there; and so long it may take to say so.
_SILENCE_S, _PATIENCE_S = 3.0, 1.5
#: Whoever is refused everywhere for so long takes any server: it may have been restored, and know less than it did.
_FORGET_S = 60.0
_monotonic = SystemClock.monotonic


class Failed(Exception):
    """A multi of which nothing was done, since the operation at *index* could not be."""

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(index, error)
        self.index = index
        self.error = error


class _Connection(Connection):  # type: ignore[misc]  # aiozk has no annotations
    """The driver's connection, without a task and a timer for each piece that is read: whoever asks has a deadline."""

    reader: Any

    async def _read(self, size: int = -1) -> bytes:
        return bytes(await self.reader.readexactly(size))


class _Session:
    """One connection, from its first word to its last."""

    def __init__(
        self,
        connection: Any,
        timeout_s: float,
        seen: int,
        on_event: Callable[[Any], None],
        on_end: Callable[[], None],
    ) -> None:
        self.connection = connection
        #: The last transaction that an answer knew of.
        self.seen = seen
        #: As the server granted it.
        self.timeout_s = timeout_s
        self.is_alive = True
        self._xid = 0
        self._on_event = on_event
        self._on_end = on_end
        self._heard_at = _monotonic()
        self._cork = connection.writer = _Cork(connection.writer)
        loop = asyncio.get_running_loop()
        self._reading = loop.create_task(self._read(), name="asyncsched-zookeeper-read")
        self._pinging = loop.create_task(self._ping(), name="asyncsched-zookeeper-ping")

    def send(self, requests: Sequence[Any]) -> list[asyncio.Future[Any]]:
        """Send them in one go; the futures are answered in that order."""
        sent = []
        for request in requests:
            self._xid = self._xid % 0x7FFFFFFF + 1
            sent.append(self.connection.send(request, xid=self._xid))
        self._cork.flush()
        return sent

    def end(self) -> None:
        """Whoever waits for an answer is told; may be called again."""
        if not self.is_alive:
            return
        self.is_alive = False
        for task in (self._reading, self._pinging):
            if task is not asyncio.current_task():
                task.cancel()
        host, port = self.connection.host, self.connection.port
        for waiting in self.connection.drain_all_pending():
            if not waiting.done():
                waiting.set_exception(exc.ConnectError(host, port))
        self._cork.close()
        self._on_end()

    async def leave(self) -> None:
        """End it in good order, so that the server forgets the session at once."""
        if self.is_alive:
            with contextlib.suppress(Exception):
                self.connection.send(protocol.CloseRequest()).cancel()
                self._cork.flush()
        self.end()
        await asyncio.gather(self._reading, self._pinging, return_exceptions=True)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._cork.wait_closed()

    async def _read(self) -> None:
        connection = self.connection
        try:
            while True:
                xid, zxid, response = await connection.read_response()
                self._heard_at = _monotonic()
                self.seen = max(self.seen, zxid)
                if xid == protocol.WATCH_XID:
                    self._on_event(response)
                    continue
                is_special = xid in protocol.SPECIAL_XIDS
                waiting = (
                    connection.pending_specials[xid].pop(0) if is_special else connection.pending.pop(xid)
                )
                if waiting.done():
                    continue
                if isinstance(response, Exception):
                    waiting.set_exception(response)
                else:
                    waiting.set_result((zxid, response))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.debug("the connection to %s:%s ended: %r", connection.host, connection.port, error)
        finally:
            self.end()

    async def _ping(self) -> None:
        """The server gives the session up unless it hears something; and so do we."""
        silence_s = min(self.timeout_s / 3, _SILENCE_S)
        while True:
            left_s = self._heard_at + silence_s - _monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            answer = self.connection.send(protocol.PingRequest())
            self._cork.flush()
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await answer
            except (TimeoutError, exc.ZKError):
                logger.debug("%s:%s has gone silent", self.connection.host, self.connection.port)
                self.end()
                return


class _Cork:
    """A stream writer that sends what was written since the last flush as one piece."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._pieces: list[bytes] = []
        self.close = writer.close
        self.wait_closed = writer.wait_closed

    def write(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces:
            self._writer.write(b"".join(pieces))


class _Guest:
    """The session of a client that a user brought: its connection is used as it is, and never closed here."""

    def __init__(self, client: Any, on_end: Callable[[], None]) -> None:
        self._session = client.session
        self._on_end = on_end
        self.connection = client.session.conn
        self._waiting: set[asyncio.Future[Any]] = set()
        # The driver answers nobody who waits when a connection has ended, and takes its time to notice.
        if self.connection is not None and self.connection.read_loop_task is not None:
            self.connection.read_loop_task.add_done_callback(self._ended)

    @property
    def is_alive(self) -> bool:
        session = self._session
        return bool(
            session.conn is self.connection
            and self.connection is not None
            and session.state.current_state == States.CONNECTED
            and not self._is_over()
        )

    def _is_over(self) -> bool:
        reading = self.connection.read_loop_task
        return reading is not None and reading.done()

    def _ended(self, _: object) -> None:
        for waiting in list(self._waiting):
            if not waiting.done():
                waiting.set_exception(exc.ConnectError(self.connection.host, self.connection.port))
        self._on_end()

    def send(self, requests: Sequence[Any]) -> list[asyncio.Future[Any]]:
        session, sent = self._session, []
        for request in requests:
            session.xid = session.xid % 0x7FFFFFFF + 1
            waiting = self.connection.send(request, xid=session.xid)
            self._waiting.add(waiting)
            waiting.add_done_callback(self._waiting.discard)
            sent.append(waiting)
        return sent

    def end(self) -> None:
        """Have the driver connect anew."""
        state = self._session.state
        if self._session.conn is self.connection and state.current_state == States.CONNECTED:
            state.transition_to(States.SUSPENDED)

    async def leave(self) -> None:
        """It is not ours."""


class Wire:
    """Requests to an ensemble, by a connection that is made when it is needed and made again when it was lost."""

    def __init__(
        self,
        hosts: Sequence[tuple[str, int]],
        client: Any,
        *,
        shown: str,
        timeout_s: float,
        session_timeout_s: float,
        login: bytes | None,
        acl: Sequence[Any] | None,
    ) -> None:
        #: How messages call it.
        self.name = shown
        self.timeout_s = timeout_s
        self.acl = list(acl or [protocol.UNRESTRICTED_ACCESS])
        #: Raised with each connection, so that what belongs to one can be told from what belongs to the next.
        self.connections = 0
        #: Called with the path of each watch event, and when a connection has ended (with None).
        self.on_event: Callable[[str | None], None] = lambda _: None
        #: Called with what a write's answer tells of the server's clock: sent at, answered at, milliseconds.
        self.on_time: Callable[[float, float, int], None] = lambda *_: None
        #: Requests sent so far, by the driver's name; for tests and benchmarks.
        self.sent: dict[str, int] = {}
        self._hosts = list(hosts)
        self._client = client
        self._session_timeout_s = session_timeout_s
        self._login = login
        self._session: _Session | _Guest | None = None
        self._discarded: list[str] = []
        self._connecting: asyncio.Task[None] | None = None
        self._refused_since: float | None = None
        self.is_open = False
        #: Whether the store was opened: a refusal is the fault of the server from then on, and condemns nothing.
        self.is_ready = False

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect with the next request."""
        self.is_open, self.is_ready = True, False

    async def close(self) -> None:
        self.is_open = self.is_ready = False
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            await asyncio.wait([connecting])
        session, self._session = self._session, None
        self._refused_since = None
        if session is not None:
            await session.leave()

    @property
    def is_connected(self) -> bool:
        return self._session is not None and self._session.is_alive

    async def connect(self) -> None:
        """Have a connection; raises StoreUnavailable, or StoreError where it is refused for good."""
        if not self.is_open:
            raise StoreError(f"the store on {self.name} is not open: await its open() first")
        if self.is_connected:
            return
        if self._client is not None:
            await self._borrow()
            return
        # Whoever asks meanwhile shares the attempt and its outcome.
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(
                self._connect(), name="asyncsched-zookeeper-connect"
            )
            self._connecting.add_done_callback(self._connected)
        connecting, before = self._connecting, cancellations()
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            if not connecting.cancelled() or cancellations() > before:
                raise
            # Not whoever asks was cancelled: the store was closed.
            raise StoreUnavailable(f"the store on {self.name} was closed meanwhile") from None

    def _connected(self, attempt: asyncio.Task[None]) -> None:
        self._connecting = None
        if not attempt.cancelled():
            attempt.exception()

    async def _borrow(self) -> None:
        client = self._client
        if not client.session.started:
            raise StoreError(f"{self.name} was not started: await its start() first")
        if self._session is not None and self._session.connection is client.session.conn:
            self._session.end()
        state = client.session.state.current_state
        if client.session.conn is None or state != States.CONNECTED:
            raise StoreUnavailable(f"{self.name} is {state} at present: its session connects anew by itself")
        self._session = _Guest(client, self._ended)
        if not self._session.is_alive:
            self._session.end()
            raise StoreUnavailable(
                f"{self.name} has lost its connection: its session connects anew by itself"
            )
        self.connections += 1

    async def _connect(self) -> None:
        problems = []
        seen = self._seen()
        for host, port in random.sample(self._hosts, len(self._hosts)):
            connection = _Connection(host, port, watch_handler=None, read_timeout=self.timeout_s)
            try:
                # One that starts leaves those who come too early without an answer.
                async with asyncio.timeout(
                    min(self.timeout_s / len(self._hosts), self._session_timeout_s / 5)
                ):
                    self._session = await self._begin(connection, seen)
                self.connections += 1
                self._refused_since = None
                return
            except (OSError, TimeoutError, exc.ZKError, asyncio.IncompleteReadError, TypeError) as error:
                # TypeError: the driver asks for the peer's address, and a connection that was reset at once has none.
                if connection.writer is not None:
                    connection.writer.close()
                problems.append(f"{host}:{port} {_said_of(error)}")
            except BaseException:
                if connection.writer is not None:
                    connection.writer.close()
                raise
        raise StoreUnavailable(f"{self.name} cannot be reached: {'; '.join(problems)}")

    def _seen(self) -> int:
        """What a server must have heard of to be asked: one that lags behind would not know what another has told before, and
        what it does not know would be taken for gone."""
        now = _monotonic()
        if self._refused_since is None:
            self._refused_since = now
        if not isinstance(self._session, _Session) or now - self._refused_since > _FORGET_S:
            return 0
        return self._session.seen

    async def _begin(self, connection: Any, seen: int) -> _Session:
        await connection.connect()
        if connection.start_read_only:
            raise exc.NotReadOnly
        if connection.version_info < (3, 5):
            found = ".".join(map(str, connection.version_info))
            raise StoreError(f"{self.name} is ZooKeeper {found}: 3.5 or later is needed")
        asked = protocol.ConnectRequest(
            protocol_version=0,
            last_seen_zxid=seen,
            timeout=int(self._session_timeout_s * 1000),
            session_id=0,
            password=b"\0" * 16,
            read_only=False,
        )
        connection.writer.write(_framed(asked.serialize()))
        _, _, granted = await connection.read_response(initial_connect=True)
        session = _Session(connection, granted.timeout / 1000, seen, self._event, self._ended)
        if self._login is not None:
            try:
                answer = connection.send(protocol.AuthRequest(type=0, scheme="digest", auth=self._login))
                connection.writer.flush()
                await answer
            except BaseException:
                session.end()
                raise
        return session

    def _event(self, event: Any) -> None:
        if event.type:
            self.on_event(event.path)

    def _ended(self) -> None:
        self.on_event(None)

    def watch(self, path: str) -> None:
        """Have ``on_event`` called for *path* on a connection of the user's, whose driver keeps the list itself."""
        if self._client is not None:
            session = self._client.session
            for kind in (protocol.WatchEvent.DATA_CHANGED, protocol.WatchEvent.DELETED):
                session.add_watch_callback(kind, path, self.on_event)

    def unwatch(self, path: str) -> None:
        if self._client is not None:
            session = self._client.session
            for kind in (protocol.WatchEvent.DATA_CHANGED, protocol.WatchEvent.DELETED):
                session.remove_watch_callback(kind, path, self.on_event)

    # -- requests ------------------------------------------------------------------------------------------------------

    async def ask(self, requests: Sequence[Any]) -> list[Any]:
        """The answer to each, in order: a response, or the error that is an answer (no such node, a version, ...).

        Raises StoreUnavailable where the outcome is unknown, StoreError for a refusal.
        """
        if not requests:
            return []
        if self._session is None or not self._session.is_alive:
            await self._reach()
        session = self._session
        assert session is not None
        count = len(requests)
        if self._discarded:
            requests = [*requests, *map(self.delete, self._discarded)]
            self._discarded = []
        for request in requests:
            name = type(request).__name__
            self.sent[name] = self.sent.get(name, 0) + 1
        sent = session.send(requests)
        answers: list[Any] = []
        try:
            async with asyncio.timeout(self.timeout_s):
                for waiting in sent:
                    try:
                        answers.append((await waiting)[1])
                    except _ANSWERS as answer:
                        answers.append(answer)
        except TimeoutError as error:
            # Whatever it answers from now on is of no use; the next call looks for a better server.
            session.end()
            raise StoreUnavailable(
                f"{self.name} did not answer within {self.timeout_s:g} s: the outcome is unknown"
            ) from error
        except (exc.ZKError, OSError) as error:
            if not isinstance(error, exc.ResponseError):
                session.end()
            raise self.translated(error) from error
        finally:
            _forget(sent[len(answers) :])
        return answers[:count]

    def discard(self, path: str) -> None:
        """Delete the node with the next requests, if it is there; it does not matter whether that works."""
        self._discarded.append(path)

    def dismiss(self, paths: Sequence[str]) -> None:
        """Delete the nodes at once, without waiting for that."""
        if paths and self._session is not None and self._session.is_alive:
            for waiting in self._session.send(list(map(self.delete, paths))):
                waiting.add_done_callback(_ignore)

    async def ask_one(self, request: Any) -> Any:
        return (await self.ask([request]))[0]

    async def multi(self, operations: Sequence[Any]) -> tuple[int, list[Any]]:
        """Do all or none; return the zxid of it and the responses. Raises Failed where one of them could not be done."""
        [answer] = await self.multis([operations])
        if isinstance(answer, Failed):
            raise answer
        return answer

    async def multis(self, batches: Sequence[Sequence[Any]]) -> list[tuple[int, list[Any]] | Failed]:
        """Several multis in flight side by side; they are done in this order, each by itself."""
        if self._session is None or not self._session.is_alive:
            await self._reach()
        session = self._session
        assert session is not None
        requests = []
        for operations in batches:
            request = protocol.TransactionRequest()
            request.requests = list(operations)
            requests.append(request)
            self.sent["operations"] = self.sent.get("operations", 0) + len(request.requests)
        self.sent["TransactionRequest"] = self.sent.get("TransactionRequest", 0) + len(requests)
        sent_at = _monotonic()
        sent = session.send(requests)
        outcomes: list[tuple[int, list[Any]] | Failed] = []
        try:
            for waiting in sent:
                async with asyncio.timeout(self.timeout_s):
                    zxid, response = await waiting
                outcomes.append(self._outcome(zxid, response.responses, sent_at))
        except TimeoutError as error:
            session.end()
            raise StoreUnavailable(
                f"{self.name} did not answer within {self.timeout_s:g} s: the outcome is unknown"
            ) from error
        except (exc.ZKError, OSError) as error:
            if not isinstance(error, exc.ResponseError):
                session.end()
            raise self.translated(error) from error
        finally:
            _forget(sent[len(outcomes) :])
        return outcomes

    def _outcome(self, zxid: int, responses: Sequence[Any], sent_at: float) -> tuple[int, list[Any]] | Failed:
        for index, response in enumerate(responses):
            if isinstance(response, Exception) and not isinstance(response, exc.RolledBack):
                if isinstance(response, _ANSWERS):
                    return Failed(index, response)
                raise response
        for response in responses:
            if isinstance(response, protocol.SetDataResponse):
                answer: Any = response
                self.on_time(sent_at, _monotonic(), answer.stat.modified)
                break
        return zxid, list(responses)

    async def _reach(self) -> None:
        await self.connect()

    # -- requests by name ----------------------------------------------------------------------------------------------

    def create(self, path: str, data: bytes = b"") -> Any:
        return protocol.CreateRequest(path=path, data=data, acl=self.acl, flags=0)

    @staticmethod
    def set_data(path: str, data: bytes, version: int = -1) -> Any:
        return protocol.SetDataRequest(path=path, data=data, version=version)

    @staticmethod
    def delete(path: str, version: int = -1) -> Any:
        return protocol.DeleteRequest(path=path, version=version)

    @staticmethod
    def get(path: str, *, watch: bool = False) -> Any:
        return protocol.GetDataRequest(path=path, watch=watch)

    @staticmethod
    def exists(path: str) -> Any:
        return protocol.ExistsRequest(path=path, watch=False)

    @staticmethod
    def children(path: str) -> Any:
        return protocol.GetChildrenRequest(path=path, watch=False)

    @staticmethod
    def sync(path: str) -> Any:
        """What follows it is answered by a server that has caught up with the leader."""
        return protocol.SyncRequest(path=path)

    # -- refusals ------------------------------------------------------------------------------------------------------

    def translated(self, error: BaseException) -> StoreError:
        """What the driver's *error* means to whoever called the store."""
        name, said = self.name, type(error).__name__
        if isinstance(error, exc.NoAuth | exc.AuthFailed | exc.InvalidACL):
            who = (
                "the user and password of the URL"
                if self._login is not None
                else "a client without a password"
            )
            means = f"{name} does not allow {who} what the store needs ({said}): grant it cdrw on its nodes, or log in"
            return StoreUnavailable(means) if self.is_ready else StoreError(means)
        if isinstance(error, _PASSING):
            return StoreUnavailable(f"{name} cannot do it at present: {said}")
        if not isinstance(error, exc.ResponseError):
            return StoreUnavailable(f"{name} has cut the connection: the outcome is unknown")
        return StoreError(f"{name} refused the call: {said}")


def _framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def _ignore(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


def _forget(waiting: Sequence[asyncio.Future[Any]]) -> None:
    """Nobody waits for these any more."""
    for future in waiting:
        if not future.cancel() and not future.cancelled():
            future.exception()


def _said_of(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "does not answer"
    if isinstance(error, exc.NotReadOnly):
        return "is cut off from its ensemble, and read-only"
    if type(error) is ConnectionError:
        return "does not answer srvr (is it on 4lw.commands.whitelist?) or is not serving yet"
    return (
        "cannot be reached"
        if isinstance(error, OSError)
        else f"ended the connection ({type(error).__name__})"
    )
