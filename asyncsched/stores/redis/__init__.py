"""Jobs in Redis, or in a Redis Cluster, shared by any number of processes and hosts.

Each call is one script, which Redis runs in one go, so each is atomic; the scripts declare every key that they use. All keys of
a namespace carry one hash tag, so a namespace lives on one server of a cluster. With ``spread=True`` each queue has a tag of its
own, and the queues of a namespace live on several. See :class:`RedisStore` for what that costs.

**Durability.** Redis acknowledges before it has told its replicas, and before it has written to its disk unless it runs with
``appendfsync always``: a failover or a crash may lose the last moments. Clients notice that when they next claim, since the
server's fences are lower than those that they have seen: the counter is raised above them, so that fences never fall, each
client logs an error once, and the call raises StoreUnavailable, so that the scheduler shows the store as degraded.

**Time** is that of the server (``TIME``), read inside the script.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from asyncsched.address import flag, keywords_of, without_password
from asyncsched.contract import (
    Capabilities,
    Claim,
    Claimed,
    Entry,
    Filter,
    Lease,
    Record,
    Renewal,
    Settled,
    Settlement,
    Update,
)
from asyncsched.errors import MissingExtra, SchemaError

try:
    import redis.asyncio
except ImportError as error:
    raise MissingExtra('the Redis store needs redis: pip install "asyncsched[redis]"') from error

from asyncsched.stores.redis._listener import Listener
from asyncsched.stores.redis._server import Client, Server, refuse
from asyncsched.stores.redis._shard import Hints, Shard
from asyncsched.stores.redis._spread import BUSY, Spread

__all__ = ["RedisStore"]

_SCHEMA = 1
_SCHEMES = {
    "redis": ("redis", False),
    "rediss": ("rediss", False),
    "unix": ("unix", False),
    "redis+cluster": ("redis", True),
    "rediss+cluster": ("rediss", True),
}
_KEYWORDS: dict[str, Callable[[str], object]] = {
    "namespace": str,
    "spread": flag,
    "cluster": flag,
    "create_schema": flag,
    "timeout": float,
    "max_connections": int,
}
#: What a namespace may not have: it would end the hash tag, or look like the tag of a queue.
_RESERVED = frozenset("{}|")


class RedisStore:
    """A job store on one Redis (6.2 or later), or on a Redis Cluster.

    The server is named by *url*, or reached by the user's own *client* (``redis.asyncio.Redis`` or ``RedisCluster``), which is
    never closed here. Two applications share a server under different *namespace*. A call that takes longer than *timeout*
    seconds raises StoreUnavailable. Other *options* go to the client as they are, those for TLS among them.

    With *spread* each queue of a cluster may live on another server. Then an id is unique within its queue only, a call by
    id asks every queue, queues are claimed from one after the other whatever their priorities, a job cannot change its queue, and
    what a settlement does in other queues (children, parked jobs) follows at once but is not one step with it.
    """

    capabilities = Capabilities(
        durable=True,
        shared=True,
        clock="server",
        push_hints=True,
        linearizable=False,
        transactional_add=False,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Client | None = None,
        namespace: str = "asyncsched",
        spread: bool = False,
        cluster: bool = False,
        create_schema: bool = True,
        timeout: float = 10.0,
        max_connections: int = 10,
        **options: Any,
    ) -> None:
        _check(url, client, namespace, timeout, max_connections, options)
        address, is_cluster = _address(url, cluster)
        self._arguments = {
            "url": url, "namespace": namespace, "spread": spread, "cluster": cluster, "create_schema": create_schema,
            "timeout": timeout, "max_connections": max_connections, **options,
        }  # fmt: skip
        self._client = client
        self._namespace = namespace
        self._create_schema = create_schema
        self._server = Server(
            address,
            client,
            shown="the Redis of the given client" if url is None else without_password(url),
            is_cluster=is_cluster,
            timeout_s=timeout,
            connections=max_connections,
            options=options,
        )
        self._hints = Hints(f"{{{namespace}}}:hints", secrets.token_hex(8))
        self._given_now: Callable[[], float] | None = None
        self._base = Shard(self._server, namespace, self._hints, self._time)
        self._spread = (
            Spread(self._server, namespace, self._hints, self._time, self._base) if spread else None
        )
        self._jobs: Shard | Spread = self._spread or self._base
        self._listener = Listener(self._server, self._hints)
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    def from_client(cls, client: Any, **keywords: Any) -> RedisStore:
        """A store by the user's own client, which is never closed here."""
        return cls(client=client, **keywords)

    @classmethod
    def from_url(cls, url: str) -> RedisStore:
        """The store of ``redis://[user:password@]host:6379/0``, ``rediss://`` (TLS), ``redis+cluster://host,host`` or
        ``rediss+cluster://``, with keywords behind a question mark; those that are not the store's go to the client."""
        address, keywords = keywords_of(url, _KEYWORDS, others=True)
        return cls(address, **keywords)

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._given_now = now
        if self._server.is_open:
            return
        self._server.connect()
        try:
            await self._server.check()
            await self._open_namespace()
        except BaseException:
            await self.close()
            raise
        self._server.ready()
        if self._hints.listeners:
            self._listen()

    async def _open_namespace(self) -> None:
        layout = "one" if self._spread is None else "spread"
        schema, its_layout = await self._base.open(self._create_schema, _SCHEMA, layout)
        here = f"namespace {self._namespace!r} on {self._server.name}"
        if schema is None:
            raise SchemaError(f"{here} has no schema: open it once with create_schema=True")
        if schema != _SCHEMA:
            raise SchemaError(f"{here} has schema {schema}, this code {_SCHEMA}: upgrade asyncsched")
        if its_layout != layout:
            raise SchemaError(
                f"{here} was made with spread={its_layout == 'spread'}: open it so, or choose another namespace"
            )

    async def close(self) -> None:
        listening, self._listening = self._listening, None
        self._hints.listeners.clear()
        try:
            if listening is not None:
                listening.cancel()
                await asyncio.wait([listening])
        finally:
            await self._server.disconnect()

    def clone(self) -> RedisStore | None:
        """None for a user's own client, whose connections belong to one event loop."""
        if self._client is not None:
            return None
        clone = RedisStore(**self._arguments)
        clone._given_now = self._given_now
        return clone

    async def now(self) -> float:
        given = self._time()
        if given is not None:
            return given
        seconds, microseconds = await self._server.command("TIME", key=self._base.keys["meta"])
        return (int(seconds) * 1_000_000 + int(microseconds)) / 1e6

    def ddl(self) -> str:
        """Redis has no schema to be made beforehand: what the store keeps, and where."""
        base = f"{{{self._namespace}}}"
        if self._spread is None:
            return _KEYS.format(base=base, tag=base)
        return (_KEYS + _SPREAD_KEYS).format(base=base, tag=f"{{{self._namespace}|QUEUE}}")

    def _time(self) -> float | None:
        """The time to go by; None: the server's."""
        return None if self._given_now is None else self._given_now()

    async def erase(self) -> None:
        """Delete all that this namespace holds: jobs, log and leases. The store must be opened anew afterwards."""
        if self._spread is not None:
            await self._spread.erase()
        await self._base.erase()

    # -- records -------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        return await self._jobs.add(records)

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        return await self._jobs.get(ids)

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await self._jobs.page(where, limit, after)

    async def update(self, update: Update) -> Record | None:
        return await self._jobs.update(update)

    async def remove(self, ids: Sequence[str]) -> set[str]:
        return await self._jobs.remove(ids)

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        return await self._jobs.claim(queues, token, limit, lease_s, ahead_s)

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        answers, now = await self._jobs.renew(claims, lease_s)
        versions: dict[str, int | Literal["busy", "lost"]] = {}
        for claim, version in zip(claims, answers, strict=True):
            versions[claim.id] = version if version >= 0 else "busy" if version == BUSY else "lost"
        return Renewal(versions, now)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await self._jobs.settle(settlements)

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        listeners = self._hints.listeners
        listeners.append(callback)
        if self._server.is_open and self._listening is None:
            self._listen()

        def end() -> None:
            if callback in listeners:
                listeners.remove(callback)

        return end

    def _listen(self) -> None:
        self._listening = asyncio.get_running_loop().create_task(
            self._listener.run(), name=f"asyncsched-hints-{self._namespace}"
        )

    # -- named leases --------------------------------------------------------------------------------------------------

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        return await self._base.acquire(keys, holder, lease_s, limit)

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        return await self._base.extend(leases, lease_s)

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._base.release(leases)

    # -- the log -------------------------------------------------------------------------------------------------------

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        return await self._jobs.runs(job_id, kinds, limit, before)

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = await self._jobs.prune(older_than_s, per_job, limit)
        await self._base.forget_leases()
        return pruned


def _check(
    url: str | None,
    client: object,
    namespace: str,
    timeout: float,
    max_connections: int,
    options: dict[str, Any],
) -> None:
    refuse(
        (url is None) == (client is None),
        "a RedisStore takes a URL, such as redis://localhost:6379/0, or client=",
    )
    kinds = redis.asyncio.Redis | redis.asyncio.RedisCluster
    kind = f"{type(client).__module__}.{type(client).__qualname__}"
    refuse(
        client is not None and not isinstance(client, kinds),
        f"client= takes a Redis or RedisCluster of redis.asyncio; this is {kind}",
    )
    refuse(
        client is not None and bool(options),
        f"client= is used as it is: give {', '.join(sorted(options))} to it",
    )
    refuse(
        not namespace or not _RESERVED.isdisjoint(namespace),
        f"namespace cannot be {namespace!r}: it has a name, without {{, }} and |",
    )
    refuse(
        not 0 < timeout < math.inf, f"timeout cannot be {timeout!r}: a number of seconds above 0 is wanted"
    )
    # One listens for hints, and the others are for everything else.
    refuse(max_connections < 2, f"max_connections cannot be {max_connections}: a store needs 2 at the least")


def _address(url: str | None, cluster: bool) -> tuple[str, bool]:
    """The URL as the client takes it, and whether it is one of a cluster."""
    if url is None:
        return "", False
    parts, shown = urlsplit(url), without_password(url)
    forms = "write redis://localhost:6379/0, rediss:// for TLS, unix:///path, or redis+cluster://host:7000,host:7001"
    refuse(parts.scheme not in _SCHEMES, f"{shown!r} is no Redis URL: {forms}")
    scheme, is_cluster = _SCHEMES[parts.scheme]
    is_cluster = is_cluster or cluster
    refuse(
        "," in parts.netloc and not is_cluster,
        f"{shown!r} names several servers, as only a cluster has: {forms}",
    )
    refuse(is_cluster and parts.path not in ("", "/", "/0"), f"{shown!r}: a cluster has database 0 only")
    # The driver would take database 0 in the place of what it cannot read.
    refuse(
        scheme != "unix" and not parts.path.strip("/").isdecimal() and parts.path not in ("", "/"),
        f"{shown!r}: a database of Redis is a number, not {parts.path.strip('/')!r}; for names there is ?namespace=",
    )
    return urlunsplit(parts._replace(scheme=scheme)), is_cluster


_KEYS = """\
-- Redis needs no schema. The store keeps these keys, none of which ever expires:
-- {base}:meta  hash  schema, layout, epoch, fence
-- {base}:leases  hash  key of a named lease -> fence, end, holder
-- {base}:hints  pub/sub channel
-- {tag}:jobs  hash  id -> what changes of a record with each claim
-- {tag}:fixed  hash  id -> what does not
-- {tag}:lanes  zset  queue, priority, wake time, id
-- {tag}:holds  zset  hold, wake time, id
-- {tag}:claims  hash  token of a claim -> ids
-- {tag}:counts  hash  token of a claim -> how many it holds
-- {tag}:log  hash  key of a log entry -> body
-- {tag}:times  zset  time, key of a log entry
-- {tag}:of_jobs  zset  job, time, key of a log entry
"""
_SPREAD_KEYS = """\
-- {base}:queues  set  every queue that has ever had a job
-- {base}:log  hash  as above, of runs whose job was removed before they ended
-- {base}:times  zset  as above, of those runs
-- {base}:of_jobs  zset  as above, of those runs
-- {tag}:meta  hash  epoch, fence
-- {tag}:sent  hash  queue, id, id and fence of its parent -> record on its way to another queue
-- {tag}:arrived  zset  queue, key there: records that came from another queue, with the time when that is forgotten
"""
