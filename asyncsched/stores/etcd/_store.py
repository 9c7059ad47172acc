"""The store: its address, its life, and the contract's methods, each of which is bounded in time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import aetcd

from asyncsched.address import keywords_of
from asyncsched.clock import host_time
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
from asyncsched.stores.etcd._address import FORM, KEYS, KEYWORDS, Address, credentials, endpoint, refuse
from asyncsched.stores.etcd._claims import Claims
from asyncsched.stores.etcd._clock import AgreedClock
from asyncsched.stores.etcd._desk import Desk
from asyncsched.stores.etcd._expiry import Expiry
from asyncsched.stores.etcd._keys import Keys, end_of
from asyncsched.stores.etcd._leases import Leases
from asyncsched.stores.etcd._line import Line, Login
from asyncsched.stores.etcd._listener import Listener
from asyncsched.stores.etcd._log import Log
from asyncsched.stores.etcd._opening import erase, prepare
from asyncsched.stores.etcd._pages import Pages
from asyncsched.stores.etcd._rows import LARGEST_RECORD
from asyncsched.stores.etcd._settlements import Settlements

__all__ = ["EtcdStore"]


class EtcdStore:
    """A job store in etcd (3.4 or later), for any number of instances.

    The members are named by *url*, or by *endpoints* (``host:port``), of which one is used until it fails; or the user's own
    *client* (``aetcd.Client``) is used, and never closed. All keys begin with *key_prefix* and *namespace*. A call that takes
    longer than *timeout* seconds raises StoreUnavailable; a member that cannot be reached within *dial_timeout* is left for the
    next. With *tls* (True, or a mapping with ``ca``, ``cert`` and ``key``, paths of files or their bytes) the way is encrypted;
    *options* are those of the gRPC channel.

    etcd tells nobody the time. The instances agree on a clock among themselves, see the page about this store.
    """

    capabilities = Capabilities(
        durable=True,
        shared=True,
        clock="server",
        push_hints=True,
        linearizable=True,
        transactional_add=False,
        largest_record=LARGEST_RECORD,
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        endpoints: Sequence[str] | None = None,
        client: aetcd.Client | None = None,
        namespace: str = "asyncsched",
        key_prefix: str | None = None,
        create_schema: bool = True,
        timeout: float = 10.0,
        dial_timeout: float = 5.0,
        username: str | None = None,
        password: str | None = None,
        tls: bool | Mapping[str, str | bytes] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        address = Address.of(url)
        given = [
            name
            for name, value in (("a URL", url), ("endpoints=", endpoints), ("client=", client))
            if value is not None
        ]
        refuse(
            len(given) != 1,
            f"an EtcdStore takes a URL, endpoints= or client=, and got {', '.join(given) or 'none'}: {FORM}",
        )
        refuse(
            client is not None and not isinstance(client, aetcd.Client),
            f"client= takes an aetcd.Client; this is {type(client)!r}",
        )
        hosts = address.endpoints if endpoints is None else tuple(endpoint(each) for each in endpoints)
        refuse(endpoints is not None and not hosts, f"endpoints= is empty: {FORM}")
        login = Login(username or address.username, password or address.password)
        refuse(
            (login.username is None) != (login.password is None),
            "username= and password= belong together: give both",
        )
        refuse(
            client is not None and (login.username is not None or bool(tls) or bool(options)),
            "client= is used as it is: give username, password, tls and options to it",
        )
        refuse(not namespace, "namespace cannot be '': it has a name")
        refuse(
            bool(address.prefix) and key_prefix is not None,
            f"key_prefix={key_prefix!r} and the path {address.prefix!r} of the URL say it twice: give one",
        )
        for name, value in (("timeout", timeout), ("dial_timeout", dial_timeout)):
            refuse(
                not 0 < value < math.inf, f"{name} cannot be {value!r}: a number of seconds above 0 is wanted"
            )
        self._arguments: dict[str, Any] = {
            "url": url, "endpoints": endpoints, "namespace": namespace, "key_prefix": key_prefix, "create_schema": create_schema,
            "timeout": timeout, "dial_timeout": dial_timeout, "username": username, "password": password, "tls": tls,
            "options": options,
        }  # fmt: skip
        self._client = client
        self._create_schema = create_schema
        prefix = (key_prefix or address.prefix or "").rstrip("/")
        self._keys = Keys(
            f"{prefix}/{quote(namespace, safe='')}/" if prefix else f"{quote(namespace, safe='')}/"
        )
        self._line = Line(
            hosts, client, timeout_s=timeout, dial_s=dial_timeout, login=login, tls=credentials(tls), options=options or {}
        )  # fmt: skip
        self._here = f"namespace {namespace!r} on {self._line.name}"
        self._given_now: Callable[[], float] | None = None
        self._host_time = host_time
        self._listeners: list[Callable[[float | None], None]] = []
        self._begin()

    @classmethod
    def from_url(cls, url: str) -> EtcdStore:
        """The store of ``etcd://user:password@host:2379,host2:2379/prefix``, with keywords behind a question mark; for TLS
        ``tls``, ``ca``, ``cert`` and ``key``."""
        address, keywords = keywords_of(url, KEYWORDS)
        files = {name: keywords.pop(name) for name in ("ca", "cert", "key") if name in keywords}
        if files:
            keywords["tls"] = files
        return cls(address, **keywords)

    @classmethod
    def from_client(cls, client: aetcd.Client, **keywords: Any) -> EtcdStore:
        """A store by the user's own client, which is never closed here."""
        return cls(client=client, **keywords)

    def _begin(self) -> None:
        """What belongs to one opened store."""
        self._clock = AgreedClock(self._line, self._keys, self._host_time)
        now = self._clock.now if self._given_now is None else self._given_now
        self._desk = desk = Desk(self._line, self._keys, now)
        desk.listeners = self._listeners
        expiry = Expiry(self._line)
        self._claims = Claims(desk, expiry)
        self._settlements = Settlements(desk)
        self._leases = Leases(desk, expiry, sweeps=self._given_now is None)
        self._log = Log(desk)
        self._pages = Pages(desk)
        self._tasks: list[asyncio.Task[None]] = []

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, now: Callable[[], float] | None = None) -> None:
        if now is not None:
            self._given_now = now
        if self._line.is_open:
            return
        self._begin()
        try:
            await self._line.open()
            await self._line.within_deadline(prepare(self._line, self._keys, self._here, self._create_schema))
            listener = Listener(
                self._line,
                self._keys.signals,
                end_of(self._keys.signals),
                self._hear,
                lambda: self._desk.hint(None),
            )
            self._spawn(listener.run(), "hints")
            if self._given_now is None:
                await self._clock.start(listener.is_hearing)
                self._spawn(self._clock.run(), "clock")
        except BaseException:
            await self.close()
            raise
        self._line.ready()

    def _spawn(self, work: Any, name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work, name=f"asyncsched-{name}-etcd"))

    async def close(self) -> None:
        self._listeners.clear()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
            if self._line.is_open:
                await self._clock.leave()
        finally:
            await self._line.close()

    def clone(self) -> EtcdStore | None:
        """None for a user's own client, whose connection belongs to one event loop."""
        if self._client is not None:
            return None
        clone = EtcdStore(**self._arguments)
        clone._given_now = self._given_now
        return clone

    async def now(self) -> float:
        return self._desk.now()

    def ddl(self) -> str:
        """etcd has no schema to be made beforehand: what the store keeps, and where."""
        return KEYS.format(prefix=self._keys.prefix.decode())

    async def erase(self) -> None:
        """Delete all that this namespace holds: jobs, log and leases. The store must be opened anew afterwards."""
        await erase(self._line, self._keys)
        self._desk.held.clear()

    async def compact(self) -> int:
        """Have the server forget what all its keys were before now, of whichever application; returns the revision. For a server
        that is not told to do so by itself (``--auto-compaction-retention``), once an hour or so."""
        revision = await self._line.within_deadline(self._line.compact())
        return int(revision)

    def _hear(self, key: bytes, value: bytes | None) -> None:
        if key == self._keys.hint:
            if value is not None:
                self._desk.hear(value)
        elif self._given_now is None:
            self._clock.hear(key, value)

    # -- records -------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        if not records:
            return set()
        return await self._line.within_deadline(self._settlements.add(records))

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        if not ids:
            return {}
        found = await self._line.within_deadline(self._desk.read(ids))
        return {k.record.id: k.record for k in found}

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        return await self._line.within_deadline(self._pages.page(where, limit, after))

    async def update(self, update: Update) -> Record | None:
        return await self._line.within_deadline(self._settlements.update(update))

    async def remove(self, ids: Sequence[str]) -> set[str]:
        if not ids:
            return set()
        return await self._line.within_deadline(self._settlements.remove(ids))

    # -- claims --------------------------------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        if not queues:
            return Claimed([], None, self._desk.now())
        return await self._line.within_deadline(self._claims.claim(queues, token, limit, lease_s, ahead_s))

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        return await self._line.within_deadline(self._claims.renew(claims, lease_s))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await self._line.within_deadline(self._settlements.settle(settlements))

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        listeners = self._listeners
        listeners.append(callback)

        def end() -> None:
            if callback in listeners:
                listeners.remove(callback)

        return end

    # -- named leases --------------------------------------------------------------------------------------------------

    async def acquire(
        self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
    ) -> dict[str, Lease]:
        return await self._line.within_deadline(self._leases.acquire(keys, holder, lease_s, limit))

    async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
        return await self._line.within_deadline(self._leases.extend(leases, lease_s))

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._line.within_deadline(self._leases.release(leases))

    # -- the log -------------------------------------------------------------------------------------------------------

    async def runs(
        self,
        job_id: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 100,
        before: Entry | None = None,
    ) -> list[Entry]:
        return await self._line.within_deadline(self._log.newest(job_id, kinds, limit, before))

    async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
        return await self._line.within_deadline(self._log.prune(older_than_s, per_job, limit))
