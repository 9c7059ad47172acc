"""The store: its keywords, its life, and each call handed to the part that does it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from aiozk import ZKClient, exc, protocol

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
from asyncsched.errors import DefinitionError, SchemaError, StoreError
from asyncsched.stores.zookeeper._claims import Claims
from asyncsched.stores.zookeeper._ground import Ground
from asyncsched.stores.zookeeper._jobs import Jobs
from asyncsched.stores.zookeeper._leases import Leases
from asyncsched.stores.zookeeper._listener import Listener
from asyncsched.stores.zookeeper._log import Log
from asyncsched.stores.zookeeper._names import Paths, name_of
from asyncsched.stores.zookeeper._rows import LARGEST
from asyncsched.stores.zookeeper._settle import Settling
from asyncsched.stores.zookeeper._wire import Wire

__all__ = ["ZooKeeperStore"]

_SCHEMA = 1
_PORT = 2181
#: Looks at the server's clock when a store is opened.
_SAMPLES = 3
_KEYWORDS: dict[str, Callable[[str], object]] = {
    "namespace": str,
    "base_path": str,
    "create_schema": flag,
    "timeout": float,
    "session_timeout": float,
}
_decode_int = msgspec.msgpack.Decoder(int).decode


class ZooKeeperStore:
    """A job store on a ZooKeeper ensemble (3.5 or later).

    The ensemble is named by *url*, or reached by the user's own started *client* (``aiozk.ZKClient``), which is never closed
    here, and whose session is used for as long as it says that it is connected. Two applications share an ensemble under
    different *namespace*; all nodes are below *base_path*, which a path in the URL names as well. A request that is not
    answered within *timeout* seconds raises StoreUnavailable. The server ends a session that it has not heard of for
    *session_timeout* seconds; nothing that is stored depends on it, since all leases are data with an end.

    With a user and password in the URL the store logs in by ``digest``, and all nodes that it makes are that user's alone,
    unless *acl* (a list of ``aiozk.ACL``) says otherwise.
    """

    capabilities = Capabilities(
        durable=True,
        shared=True,
        clock="server",
        push_hints=True,
        linearizable=True,
        transactional_add=False,
        largest_record=LARGEST,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        client: ZKClient | None = None,
        namespace: str = "asyncsched",
        base_path: str = "",
        create_schema: bool = True,
        timeout: float = 10.0,
        session_timeout: float = 10.0,
        acl: Sequence[Any] | None = None,
    ) -> None:
        _check(url, client, namespace, timeout, session_timeout)
        hosts, login, path = _address(url)
        _refuse(bool(path and base_path), "the URL has a path and base_path= is given: one of them is enough")
        self._arguments: dict[str, Any] = {
            "url": url, "namespace": namespace, "base_path": base_path, "create_schema": create_schema,
            "timeout": timeout, "session_timeout": session_timeout, "acl": acl,
        }  # fmt: skip
        self._client = client
        self._namespace = namespace
        self._base_path = _clean(base_path or path)
        self._create_schema = create_schema
        if acl is None and login is not None:
            acl = [protocol.AUTHED_UNRESTRICTED]
        self._wire = Wire(
            hosts,
            client,
            shown="the ZooKeeper of the given client" if url is None else without_password(url),
            timeout_s=timeout,
            session_timeout_s=session_timeout,
            login=login,
            acl=acl if acl is not None or client is None else client.default_acl,
        )
        self._ground = ground = Ground(self._wire)
        ground.settle_in(self._base())
        self._log = Log(ground)
        self._jobs = Jobs(ground)
        self._claims = Claims(ground)
        self._settling = Settling(ground, self._log)
        self._leases = Leases(ground)
        self._listener = Listener(ground)
        self._wire.on_event = self._listener.event
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    def from_client(cls, client: ZKClient, **keywords: Any) -> ZooKeeperStore:
        """A store by the user's own client, which is never closed here."""
        return cls(client=client, **keywords)

    @classmethod
    def from_url(cls, url: str) -> ZooKeeperStore:
        """The store of ``zk://[user:password@]host:2181,host2:2181/path``, with keywords behind a question mark."""
        address, keywords = keywords_of(url, _KEYWORDS)
        return cls(address, **keywords)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._ground.clock.given = now
        if self._wire.is_open:
            return
        self._wire.open()
        try:
            await self._wire.connect()
            self._ground.settle_in(self._base())
            await self._open_namespace()
            await self._ground.read_floor()
            for _ in range(_SAMPLES):
                await self._ground.read_clock()
        except BaseException:
            await self.close()
            raise
        self._wire.is_ready = True
        if self._ground.hints.listeners:
            self._listen()

    def _base(self) -> str:
        chroot = "" if self._client is None else _clean(self._client.chroot or "")
        return f"{chroot}{self._base_path}/{name_of(self._namespace)[1:]}"

    async def _open_namespace(self) -> None:
        wire, paths = self._wire, self._ground.paths
        here = f"namespace {self._namespace!r} on {wire.name}"
        _, found = await wire.ask([wire.sync("/"), wire.get(paths.schema)])
        if isinstance(found, exc.NoNode):
            if not self._create_schema:
                raise SchemaError(
                    f"{here} has no schema (no node {paths.schema}): open it once with create_schema=True"
                )
            await self._make(paths)
            found = await wire.ask_one(wire.get(paths.schema))
        if isinstance(found, Exception):
            raise SchemaError(f"{here} has no schema: others remove it just now")
        try:
            schema = _decode_int(found.data)
        except msgspec.MsgspecError:
            raise SchemaError(
                f"{here} is not the store's: {paths.schema} is another's node; choose another"
            ) from None
        if schema != _SCHEMA:
            raise SchemaError(f"{here} has schema {schema}, this code {_SCHEMA}: upgrade asyncsched")

    async def _make(self, paths: Paths) -> None:
        """The folders, and last of all what says that they are there. Any number of clients may do so at once."""
        wire = self._wire
        parts = paths.base.split("/")[1:]
        folders = [f"/{'/'.join(parts[: i + 1])}" for i in range(len(parts))]
        folders += [*paths.roots, *paths.shards(paths.jobs), *paths.shards(paths.entries)]
        answers = await wire.ask(list(map(wire.create, folders)))
        missing = [
            path for path, answer in zip(folders, answers, strict=True) if isinstance(answer, exc.NoNode)
        ]
        if missing:
            raise StoreError(
                f"{wire.name} has no node for {missing[0]}, and none could be made: check base_path"
            )
        await wire.ask([wire.create(paths.schema, msgspec.msgpack.encode(_SCHEMA))])

    async def close(self) -> None:
        listening, self._listening = self._listening, None
        self._ground.hints.listeners.clear()
        try:
            if listening is not None:
                listening.cancel()
                # Unlike the task itself this tells its cancellation from that of the caller.
                await asyncio.wait([listening])
        finally:
            await self._wire.close()

    def clone(self) -> ZooKeeperStore | None:
        """None for a user's own client, whose connection belongs to one event loop."""
        if self._client is not None:
            return None
        clone = ZooKeeperStore(**self._arguments)
        clone._ground.clock.given = self._ground.clock.given
        return clone

    async def now(self) -> float:
        if self._ground.clock.given is None:
            await self._ground.read_clock()
        return self._ground.clock.now()

    def ddl(self) -> str:
        """ZooKeeper has no schema to be made beforehand: what the store keeps, and where."""
        return _NODES.format(base=self._base())

    async def erase(self) -> None:
        """Delete all that this namespace holds: jobs, log and leases. The store must be opened anew afterwards."""
        wire, base = self._wire, self._ground.paths.base
        # First of all what says that the rest is there: whoever opens it meanwhile makes it anew.
        await wire.ask([wire.delete(self._ground.paths.schema)])
        for _ in range(10):
            if not await self._erase_below(base):
                return
        raise StoreError(f"{base} on {wire.name} is being written by others: stop them first")

    async def _erase_below(self, base: str) -> int:
        """Delete it with all below it; return how many nodes were left."""
        wire = self._wire
        level, all_paths = [base], [base]
        while level:
            below: list[str] = []
            for at in range(0, len(level), 500):
                part = level[at : at + 500]
                for path, answer in zip(part, await wire.ask(list(map(wire.children, part))), strict=True):
                    if not isinstance(answer, Exception):
                        below += (f"{path}/{name}" for name in answer.children)
            all_paths += below
            level = below
        left = 0
        for at in range(0, len(all_paths), 500):
            part = all_paths[::-1][at : at + 500]
            left += sum(isinstance(a, exc.NotEmpty) for a in await wire.ask(list(map(wire.delete, part))))
        return left

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
        return await self._claims.claim(queues, token, limit, lease_s, ahead_s)

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        return await self._claims.renew(claims, lease_s)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await self._settling.settle(settlements)

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        listeners = self._ground.hints.listeners
        listeners.append(callback)
        if self._wire.is_open and self._listening is None:
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
        return await self._leases.acquire(keys, holder, lease_s, limit)

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        return await self._leases.extend(leases, lease_s)

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._leases.release(leases)

    # -- the log -------------------------------------------------------------------------------------------------------

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        return await self._log.runs(job_id, kinds, limit, before)

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        pruned = 0
        if older_than_s is not None:
            pruned = await self._log.prune_older(await self._ground.now() - older_than_s, limit)
        if per_job is not None and pruned < limit:
            pruned += await self._log.prune_crowded(per_job, limit - pruned)
        await self._leases.tidy()
        await self._claims.tidy()
        await self._jobs.tidy()
        return pruned


def _check(url: str | None, client: object, namespace: str, timeout: float, session_timeout: float) -> None:
    _refuse(
        (url is None) == (client is None),
        "a ZooKeeperStore takes a URL, such as zk://localhost:2181, or client=",
    )
    kind = f"{type(client).__module__}.{type(client).__qualname__}"
    _refuse(
        client is not None and not isinstance(client, ZKClient),
        f"client= takes an aiozk.ZKClient; this is {kind}",
    )
    _refuse(
        not namespace or "/" in namespace or namespace in (".", ".."),
        f"namespace cannot be {namespace!r}: it has a name, without /",
    )
    for name, value in (("timeout", timeout), ("session_timeout", session_timeout)):
        _refuse(
            not 0 < value < math.inf, f"{name} cannot be {value!r}: a number of seconds above 0 is wanted"
        )


def _address(url: str | None) -> tuple[list[tuple[str, int]], bytes | None, str]:
    """The servers, what to log in with, and the path of a URL."""
    if url is None:
        return [], None, ""
    parts, shown = urlsplit(url), without_password(url)
    forms = "write zk://host:2181, or zk://user:password@host:2181,host2:2181/path"
    _refuse(parts.scheme != "zk" or not parts.netloc, f"{shown!r} is no ZooKeeper URL: {forms}")
    _refuse(bool(parts.query), f"{shown!r} has keywords, which from_url() reads: {forms}")
    login, at, servers = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    _refuse(bool(at) and not (user and colon), f"{shown!r}: a login has a user and a password: {forms}")
    hosts = []
    for server in servers.split(","):
        host, colon, port = server.rpartition(":")
        if not colon or server.endswith("]"):
            host, port = server, str(_PORT)
        is_port = port.isdecimal() and int(port) < 2**16
        _refuse(not host or not is_port, f"{shown!r}: {server!r} is no server: {forms}")
        hosts.append((host.strip("[]"), int(port)))
    return hosts, f"{unquote(user)}:{unquote(password)}".encode() if at else None, unquote(parts.path)


def _clean(path: str) -> str:
    names = [name for name in path.split("/") if name]
    _refuse(
        any(name in (".", "..") for name in names),
        f"base_path cannot be {path!r}: it has names, without . and ..",
    )
    return "".join(f"/{name}" for name in names)


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise DefinitionError(message)


_NODES = """\
-- ZooKeeper needs no schema. The store keeps these nodes, none of which is ephemeral:
-- {base}/schema  the layout's number
-- {base}/clock  written for the time that a write bears
-- {base}/fences  what is added to the number of a transaction to make a fence
-- {base}/hints  written with each change, and watched by all instances
-- {base}/jobs/SHARD/ID  a record's folder, with what is large of it; in it one node, the record
-- {base}/due/QUEUE/PRIORITY/BRANCH/LEAF/SHEET  what is due when: a leaf covers 18 minutes
-- {base}/never/BRANCH/LEAF/SHEET  records that are never due by themselves
-- {base}/holds/HOLD/BRANCH/LEAF/SHEET  records that are held back
-- {base}/claims/TOKEN.PART  what a claim took
-- {base}/locks/QUEUE  who claims from a contended queue just now
-- {base}/leases/KEY  named leases
-- {base}/entries/SHARD/ENTRY  the log
-- {base}/times/BRANCH/LEAF/SHEET  the log by time
"""
