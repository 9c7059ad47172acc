"""What the parts of the store share: the way to the servers, the clock, hints, and what this client holds."""

from __future__ import annotations

import contextlib
import math
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from aiozk import protocol

from asyncsched.errors import SchemaError
from asyncsched.stores.zookeeper._clock import ServerClock
from asyncsched.stores.zookeeper._index import Folders, Group, item_of
from asyncsched.stores.zookeeper._names import Paths, key_of
from asyncsched.stores.zookeeper._rows import Row, Seen, encode_row
from asyncsched.stores.zookeeper._wire import Wire

__all__ = ["Ground", "Held", "Hints", "some"]

_encode = msgspec.msgpack.Encoder().encode
_decode_int = msgspec.msgpack.Decoder(int).decode
T = TypeVar("T")


def some(of: Sequence[T], most: int) -> list[T]:
    """Up to *most* of them, in any order: who looks at a part each time gets to see all, whatever stays there."""
    return random.sample(of, min(len(of), most))


class Hints:
    """Who listens here, and which changes of the hint node are this client's own."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.sender = secrets.token_hex(6)
        self.listeners: list[Callable[[float | None], None]] = []
        self._own: dict[int, None] = {}
        #: The version of the node that was read last.
        self.seen = -1

    def operation(self, wire: Wire, wake_at: float) -> Any:
        """Tell the others; with inf they only learn that something has changed, and with -inf to look for what."""
        return wire.set_data(self.node, _encode((self.sender, wake_at if wake_at < math.inf else None)))

    def told(self, version: int) -> None:
        """A write of this client gave the node this version."""
        self._own[version] = None
        while len(self._own) > 1000:
            del self._own[next(iter(self._own))]

    def hear(self, version: int, data: bytes) -> None:
        """The node was read."""
        since, self.seen = self.seen, version
        others = [v for v in range(max(since + 1, version - 1000), version + 1) if v not in self._own]
        if since < 0 or version < since:
            self.give(None)
        elif len(others) == 1 and others[0] == version and data:
            _, wake_at = msgspec.msgpack.decode(data, type=tuple[str, float | None])
            if wake_at is not None:
                self.tell(wake_at)
        elif others:
            # Several at once: what the earlier ones said was written over.
            self.give(None)

    def tell(self, wake_at: float) -> None:
        """Something may be due then; -inf: that is not known, inf: nothing is."""
        if wake_at < math.inf:
            self.give(wake_at if wake_at > -math.inf else None)

    def give(self, wake_at: float | None) -> None:
        for listener in tuple(self.listeners):  # One of them may end itself.
            listener(wake_at)


class Held:
    """What this client has claimed, as it was written last, so that most settlements and renewals read nothing.

    Nothing depends on it: what is not here is read, and what is here and not so any more is refused by the server.
    """

    #: More than any client can hold at a time, so that what was lost does not stay for ever.
    _MOST = 20_000

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.seen: dict[str, Seen] = {}
        self._nodes: dict[str, tuple[str, ...]] = {}
        self._ids: dict[str, set[str]] = {}

    def take(self, seen: Iterable[Seen], nodes: Iterable[str]) -> None:
        """These are held; *nodes* (the sheet of their lease, the node of their claim) are of no use once none of them is."""
        paths = tuple(nodes)
        for one in seen:
            there = self.seen.get(one.id)
            if there is not None and there.zxid > one.zxid:
                continue  # A call that came behind this one has heard of its own write before.
            for path in paths:
                self._ids.setdefault(path, set()).add(one.id)
            self._leave(one.id, paths)
            self.seen[one.id] = one
            self._nodes[one.id] = paths
        while len(self.seen) > self._MOST:
            self.forget(next(iter(self.seen)))

    def move(self, seen: Iterable[Seen], sheets: Iterable[str]) -> None:
        """Their leases end later; the nodes of their claims stay."""
        paths = tuple(sheets)
        for one in seen:
            claims = tuple(p for p in self._nodes.get(one.id, ()) if "/claims/" in p)
            self.take([one], (*paths, *claims))

    def let_go(self, id: str, zxid: int) -> None:
        """It was settled by that transaction; what was claimed after it stays."""
        there = self.seen.get(id)
        if there is not None and there.zxid > zxid:
            return
        self.seen.pop(id, None)
        self._leave(id)

    def forget(self, id: str) -> None:
        """It is not known any more who holds it; its nodes are left to whoever comes across them."""
        self.seen.pop(id, None)
        for path in self._nodes.pop(id, ()):
            self._ids.pop(path, None)

    def _leave(self, id: str, stays: tuple[str, ...] = ()) -> None:
        for path in self._nodes.pop(id, ()):
            ids = self._ids.get(path)
            if ids is not None and path not in stays:
                ids.discard(id)
                if not ids:
                    del self._ids[path]
                    self._wire.discard(path)


class Ground:
    """One namespace on one ensemble, as one client sees it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.clock = ServerClock()
        self.folders = Folders(wire)
        self.held = Held(wire)
        #: What is added to a transaction's number to make a fence, and the version of the node that says so.
        self.floor = 0
        self._floor_version = 0
        #: The connection on which the server's clock was read last.
        self._told_on = 0
        wire.on_time = self.clock.read

    def settle_in(self, base: str) -> None:
        """The namespace is at this node."""
        self.paths = Paths(base)
        self.hints = getattr(self, "hints", None) or Hints(self.paths.hints)
        self.hints.node = self.paths.hints
        self.hints.seen = -1

    async def now(self) -> float:
        """The server's clock."""
        is_new = not self.wire.is_connected or self._told_on != self.wire.connections
        if self.clock.is_old or (is_new and self.clock.given is None):
            # A connection ends where this machine has slept, and its own clock with it.
            await self.read_clock()
            self._told_on = self.wire.connections
        return self.clock.now()

    async def read_clock(self) -> None:
        await self.wire.multi([self.wire.set_data(self.paths.clock, b"")])

    async def read_floor(self) -> None:
        answer = await self.wire.ask_one(self.wire.get(self.paths.fences))
        if isinstance(answer, Exception):
            raise SchemaError(f"{self.paths.fences} on {self.wire.name} is gone: open the store anew")
        self.floor = _decode_int(answer.data) if answer.data else 0
        self._floor_version = answer.stat.version

    async def raise_floor(self, fence: int) -> None:
        """Whatever is fenced from now on is fenced higher."""
        while fence > self.floor:
            data = _encode(fence)
            answer = await self.wire.ask_one(self.wire.set_data(self.paths.fences, data, self._floor_version))
            if isinstance(answer, Exception):
                await self.read_floor()
            else:
                self.floor, self._floor_version = fence, answer.stat.version

    def check_floor(self) -> Any:
        """Refused where the floor was raised since it was read."""
        return protocol.CheckVersionRequest(path=self.paths.fences, version=self._floor_version)

    def clear(self, leaves: Sequence[str]) -> None:
        """These were found empty: remove them, but for those of about now, which are filled again at once."""
        now_leaf = key_of(self.clock.now()) >> 30
        for path in leaves:
            branch, leaf = path.rsplit("/", 2)[1:]
            if abs((int(branch, 16) << 8) + int(leaf, 16) - now_leaf) > 2:
                self.folders.forget(path)
                self.wire.discard(path)
                self.wire.discard(path.rpartition("/")[0])

    # -- parts of a transaction ----------------------------------------------------------------------------------------

    def add_new(self, group: Group, seen: Seen, large: bytes | None) -> None:
        """Create a record."""
        state = encode_row(seen.row)
        group.add("record", seen.id, self.wire.create(seen.path, large or b""))
        group.add("node", seen.id, self.wire.create(seen.node, state))
        self.index(group, seen, 0, state, None)

    def add_change(self, group: Group, seen: Seen, row: Row, large: bytes | None, of: Any = None) -> Seen:
        """Write *row* over what was *seen*; return what will be seen then, but for the zxid."""
        state = encode_row(row)
        group.add(
            "state", of if of is not None else seen.id, self.wire.set_data(seen.node, state, seen.version)
        )
        if large is not None:
            group.add("large", seen.id, self.wire.set_data(seen.path, large))
        changed = Seen(seen.id, seen.nonce, row, seen.version + 1, 0, seen.path)
        self.index(group, changed, changed.version, state, seen.row)
        return changed

    def index(self, group: Group, seen: Seen, version: int, state: bytes, was: Row | None) -> None:
        """Add the items that a record needs, now that it is so, for what it *was* has some already."""
        row, item = seen.row, None
        has_moved = (
            was is None
            or row.wake_at != was.wake_at
            # The item of a lease goes with the lease, though the record may wake at the very instant of its end.
            or row.holder != was.holder
            or row.queue != was.queue
            or row.priority != was.priority
        )
        if has_moved:
            item = item_of(seen, version, b"" if row.holder is not None else state)
            root = self.paths.never if row.wake_at is None else self.paths.lane(row.queue, row.priority)
            group.insert(root, item)
        if row.hold is not None and row.holder is None:
            is_new = (
                was is None or was.hold != row.hold or was.holder is not None or was.wake_at != row.wake_at
            )
            if is_new:
                group.insert(self.paths.hold(row.hold), item_of(seen, version))

    def hint(self, group: Group, wake_at: float) -> None:
        group.add("hint", None, self.hints.operation(self.wire, wake_at))

    def done(self, group: Group, responses: list[Any]) -> None:
        """*group* was done: note which version of the hint node is this client's own."""
        for (kind, _), response in zip(group.tags, responses, strict=True):
            if kind == "hint":
                with contextlib.suppress(AttributeError):
                    self.hints.told(response.stat.version)
