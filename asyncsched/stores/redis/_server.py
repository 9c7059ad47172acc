"""The way to the server: its client, scripts with a deadline, and what its refusals mean."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from asyncsched.errors import DefinitionError, StoreError, StoreUnavailable
from asyncsched.stores.redis._scripts import Script

__all__ = ["Client", "Server", "logger", "refuse"]

Client = Redis | RedisCluster

logger = logging.getLogger("asyncsched.stores.redis")

_OLDEST = (6, 2)
_GONE = (ReadOnlyError, BusyLoadingError, RedisConnectionError, OSError)
#: What the client raises, and what comes through it.
_DRIVER_ERRORS = (RedisError, RedisClusterException, OSError, TimeoutError)


class Server:
    """One Redis, or a cluster of them, by a client that is made here from a URL or that a user brought."""

    def __init__(
        self,
        url: str,
        client: Client | None,
        *,
        shown: str,
        is_cluster: bool,
        timeout_s: float,
        connections: int,
        options: Mapping[str, Any],
    ) -> None:
        #: How messages call it.
        self.name = shown
        self._url = url
        self._given = client
        self._is_cluster = is_cluster
        self.timeout_s = timeout_s
        self._connections = connections
        self._options = options
        self._client: Client | None = None
        self._is_ready = False

    @property
    def is_open(self) -> bool:
        return self._client is not None

    @property
    def client(self) -> Client:
        if self._client is None:
            raise StoreError(f"the store on {self.name} is not open: await its open() first")
        return self._client

    def connect(self) -> None:
        """Have a client; it connects when it is first used."""
        self._is_ready = False
        # The client of a cluster, or of a user, refuses a call that finds all connections in use; one listens for hints.
        pool = getattr(self._given, "connection_pool", None)
        most = min(self._connections, getattr(pool, "max_connections", self._connections))
        self._room = asyncio.Semaphore(max(most - 1, 1))
        if self._given is not None:
            self._client = self._given
        else:
            try:
                self._client = self._new_cluster() if self._is_cluster else self._new_client()
            except ValueError as error:
                raise DefinitionError(f"{self.name} cannot be read: {error}") from error
            except TypeError as error:
                raise self.translated(error) from error

    async def disconnect(self) -> None:
        """Close the client, unless a user brought it."""
        client, self._client = self._client, None
        if client is not None and client is not self._given:
            try:
                async with asyncio.timeout(self.timeout_s):
                    await client.aclose()
            except _DRIVER_ERRORS as error:
                logger.debug("closing %s: %s", self.name, error)

    async def check(self) -> None:
        """Raise StoreError where the server cannot serve, and warn where it may lose what it is given."""
        try:
            facts = await self._facts()
        except NoPermissionError:
            return  # Who may not ask is served all the same.
        if facts.get("redis_mode") == "cluster" and not isinstance(self._client, RedisCluster):
            raise StoreError(self._needs_cluster())
        version = tuple(
            int(part) for part in facts.get("redis_version", "999").split(".")[:2] if part.isdigit()
        )
        if version < _OLDEST:
            found = facts.get("redis_version")
            raise StoreError(f"{self.name} is Redis {found}: 6.2 or later is needed")
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys"):
            logger.warning(
                "%s deletes jobs when its memory is full (maxmemory-policy is %s): set it to noeviction",
                self.name, policy,
            )  # fmt: skip

    def ready(self) -> None:
        """The store is open: from here on a refusal is the fault of the server, and condemns nothing that was asked."""
        self._is_ready = True

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def run(self, script: Script, keys: Sequence[bytes], argument: bytes) -> Any:
        """Run *script* once; raises StoreUnavailable if its outcome is unknown."""
        try:
            async with asyncio.timeout(self.timeout_s):
                try:
                    answer = await self._send(
                        "EVALSHA", script.digest, len(keys), *keys, argument, key=keys[0]
                    )
                except NoScriptError:
                    answer = await self._send("EVAL", script.text, len(keys), *keys, argument, key=keys[0])
        except _DRIVER_ERRORS as error:
            raise self.translated(error) from error
        return answer

    async def command(self, *command: str | bytes, key: bytes) -> Any:
        """Send one *command* about *key*; its answer, not decoded."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._send(*command, key=key)
        except _DRIVER_ERRORS as error:
            raise self.translated(error) from error

    async def _send(self, *command: Any, key: bytes) -> Any:
        """Send *command* to the server that has *key*, once: whatever becomes of it, it is not repeated here."""
        client = self.client
        if isinstance(client, RedisCluster):
            await client.initialize()
            # With a node named, the client follows the cluster's redirections and repeats nothing else.
            async with self._room:
                node = client.get_node_from_key(key.decode())
                return await _execute(client, *command, target_nodes=node)
        if client.connection is not None or client.single_connection_client:
            return await _execute(client, *command)
        if self._given is None:
            return await self._by_connection(client.connection_pool, *command)
        async with self._room:
            return await self._by_connection(client.connection_pool, *command)

    async def _by_connection(self, pool: Any, *command: Any) -> Any:
        """By a connection of the *pool*, since a client's own way may be told to repeat what was cut off."""
        connection = await pool.get_connection()
        try:
            await connection.send_command(*command)
            return await connection.read_response(disable_decoding=True)
        except _GONE as error:
            # It became a replica, starts anew, or is gone: the other idle ones of the pool lead to it too.
            if self._given is None or isinstance(error, ReadOnlyError | BusyLoadingError):
                await connection.disconnect()
                await pool.disconnect(inuse_connections=False)
            raise
        finally:
            await pool.release(connection)

    async def _facts(self) -> dict[str, str]:
        facts: dict[str, str] = {}
        for section in ("server", "memory"):
            try:
                async with asyncio.timeout(self.timeout_s):
                    answer = await self._send("INFO", section, key=b"")
            except NoPermissionError:
                raise
            except (*_DRIVER_ERRORS, TypeError) as error:
                raise self.translated(error) from error
            if isinstance(answer, dict):  # Some clients have read it already.
                facts.update((str(name), str(value)) for name, value in answer.items())
                continue
            lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines())
            facts.update((name, value.strip()) for name, _, value in lines)
        return facts

    # -- below ---------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            "socket_timeout": None,
            "socket_connect_timeout": self.timeout_s,
            "retry": Retry(NoBackoff(), 0),
            # With the newer one, a pool of the driver lends connections without a look at whether the server has closed them.
            "protocol": 2,
            **self._options,
        }

    def _new_client(self) -> Redis:
        # No deadline of the driver's own: each call has one as a whole, and the driver's cost a task for each write.
        pool = BlockingConnectionPool.from_url(
            self._url, max_connections=self._connections, timeout=self.timeout_s, **self._settings()
        )
        return Redis.from_pool(pool)

    def _new_cluster(self) -> RedisCluster:
        parts = urlsplit(self._url)
        login, at, hosts = parts.netloc.rpartition("@")
        first, *others = hosts.split(",")
        nodes = [ClusterNode(host or "localhost", int(port or 6379)) for host, _, port in map(_split, others)]
        return RedisCluster.from_url(
            urlunsplit(parts._replace(netloc=login + at + first)),
            startup_nodes=nodes,
            max_connections=self._connections,
            **self._settings(),
        )

    def translated(self, error: BaseException) -> StoreError:
        """What the driver's *error* means to whoever called the store."""
        name, said = self.name, _first_line(error)
        if isinstance(error, TypeError):
            options = ", ".join(sorted(self._options)) or "none"
            return StoreError(f"{name}: the driver does not take these options ({options}): {said}")
        if isinstance(error, AuthenticationError | AuthorizationError) or any(
            word in said for word in _LOGIN
        ):
            return self._refused(f"{name} refuses this user or password ({said}): correct it in the URL")
        if isinstance(error, NoPermissionError) or any(word in said for word in _FORBIDDEN):
            needs = "keys {namespace}* ({namespace* with spread=True), channel {namespace}*, and the commands of its scripts"
            return self._refused(
                f"{name} does not allow this user what the store needs ({said}): grant it {needs}"
            )
        if "Cluster mode is not enabled" in said:
            return self._refused(f"{name} is no Redis Cluster: leave out cluster=true, or write redis://")
        if isinstance(error, MovedError) and not isinstance(self._client, RedisCluster):
            return self._refused(self._needs_cluster())
        for kinds, means in _PASSING:
            if isinstance(error, kinds):
                means = means.format(s=self.timeout_s)
                return StoreUnavailable(f"{name} {means} ({said})" if said else f"{name} {means}")
        if said.startswith(_REFUSALS):
            return StoreUnavailable(f"{name} cannot do it at present: {said}")
        if not self._is_ready:
            return StoreError(f"{name} cannot be used as a store: {said}")
        return StoreError(f"{name} refused the call: {said}")

    def _needs_cluster(self) -> str:
        return f"{self.name} is a node of a Redis Cluster: write redis+cluster://, or cluster=true"

    def _refused(self, message: str) -> StoreError:
        return StoreUnavailable(message) if self._is_ready else StoreError(message)


_LOGIN = ("invalid username-password", "Authentication required")
#: What a script is told whose user may not do what is in it.
_FORBIDDEN = ("The user executing the script", "ACL failure in script")
#: The fault of the server or of the way to it: it may succeed when repeated, and must condemn no job.
_PASSING: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((BusyLoadingError,), "is starting, and reads its data still"),
    ((ReadOnlyError,), "is a replica now and takes no writes: connections to it were given up"),
    ((OutOfMemoryError,), "is out of memory and takes no writes: raise its maxmemory"),
    ((ClusterError, MovedError, RedisClusterException), "is a cluster that is not whole at present"),
    ((RedisTimeoutError, TimeoutError), "did not answer within {s:g} s: the outcome is unknown"),
    ((RedisConnectionError, InvalidResponse, OSError), "cannot be reached, or has cut the connection"),
)
_REFUSALS = (
    "OOM",
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY",
)


async def _execute(client: Any, *command: Any, **options: Any) -> Any:
    return await client.execute_command(*command, **{NEVER_DECODE: True}, **options)


def _split(address: str) -> tuple[str, str, str]:
    return address.rpartition(":") if ":" in address else (address, "", "")


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines else ""


def refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise DefinitionError(message)
