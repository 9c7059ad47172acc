"""Requests to etcd, and transactions of many items, each of which is applied or refused by itself.

An item is a transaction inside of the one that is sent: its comparisons decide about its own operations only. So an item that
another instance has changed does not keep the others of its batch from being applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from aetcd import rpc

from asyncsched.errors import StoreError

__all__ = ["Item", "Packed", "delete", "get", "is_absent", "is_at", "pack", "put", "within"]

#: What the server takes: operations of a transaction (``--max-txn-ops``), and somewhat less than bytes of a request
#: (``--max-request-bytes`` is 1.5 MiB).
MOST_OPS = 128
MOST_BYTES = 1_200_000
#: Items of one transaction: more of them would leave less room inside of each.
_MOST_ITEMS = 100

_COMPARE: Any = rpc.Compare
_CREATE, _MOD = _COMPARE.CREATE, _COMPARE.MOD
_OP: Any = rpc.RequestOp


def put(key: bytes, value: bytes, lease: int = 0) -> Any:
    return _OP(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes) -> Any:
    return _OP(request_delete_range=rpc.DeleteRangeRequest(key=key))


def get(key: bytes) -> Any:
    return _OP(request_range=rpc.RangeRequest(key=key))


def between(key: bytes, end: bytes, limit: int, *, keys_only: bool = False) -> Any:
    return _OP(request_range=rpc.RangeRequest(key=key, range_end=end, limit=limit, keys_only=keys_only))


def within(compares: list[Any], ops: list[Any], otherwise: Iterable[Any] = ()) -> Any:
    """A transaction in a transaction."""
    return _OP(request_txn=rpc.TxnRequest(compare=compares, success=ops, failure=otherwise))


def is_at(key: bytes, revision: int) -> Any:
    """Nobody has written *key* since *revision*; 0: it does not exist."""
    return _COMPARE(result=_COMPARE.EQUAL, target=_COMPARE.MOD, key=key, mod_revision=revision)


def is_absent(key: bytes) -> Any:
    return _COMPARE(result=_COMPARE.EQUAL, target=_COMPARE.CREATE, key=key, create_revision=0)


def is_empty(key: bytes, end: bytes) -> Any:
    """No key is there in all of the range."""
    return _COMPARE(result=_COMPARE.EQUAL, target=_COMPARE.CREATE, key=key, range_end=end, create_revision=0)


def is_below(key: bytes, bound: bytes) -> Any:
    """The key exists, and its value is less than *bound*."""
    return _COMPARE(result=_COMPARE.LESS, target=_COMPARE.VALUE, key=key, value=bound)


def is_value(key: bytes, value: bytes) -> Any:
    return _COMPARE(result=_COMPARE.EQUAL, target=_COMPARE.VALUE, key=key, value=value)


def never(key: bytes) -> Any:
    """What is never so of *key*."""
    return _COMPARE(result=_COMPARE.LESS, target=_COMPARE.VERSION, key=key, version=0)


class Item:
    """What is done together if all comparisons hold, and else not at all."""

    __slots__ = ("_ops", "_since", "earliest", "name", "places", "size", "touched", "weight")

    def __init__(self, name: str) -> None:
        #: For messages.
        self.name = name
        #: (key, revision): as ``is_at``, or -1 as ``is_absent``; and operations, as arguments of these.
        self._since: list[tuple[bytes, int]] = []
        self._ops: list[tuple[bytes, bytes, int] | bytes | Item] = []
        #: Keys that are written; no transaction may write one twice.
        self.touched: list[bytes] = []
        #: Of each lane (its key), the first place that is taken: nothing may take its beginning for later.
        self.places: dict[bytes, bytes] = {}
        #: The earliest wake time that came in; minus infinity: some holder is to look at its record.
        self.earliest: float | None = None
        self.size = 0
        #: Operations of the largest transaction inside of this one.
        self.weight = 0

    def if_at(self, key: bytes, revision: int) -> None:
        """Only if nobody has written *key* since *revision*; 0: if it does not exist."""
        self._since.append((key, revision))

    def if_absent(self, key: bytes) -> None:
        self._since.append((key, -1))

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        self._ops.append((key, value, lease))
        self.touched.append(key)
        self.size += len(key) + len(value) + 32

    def delete(self, key: bytes) -> None:
        self._ops.append(key)
        self.touched.append(key)
        self.size += len(key) + 32

    def inside(self, other: Item) -> None:
        """*other* is applied with this one, if its own comparisons hold too."""
        self._ops.append(other)
        self.touched += other.touched
        self.size += other.size + 16
        self.weight = max(self.weight, other.count)
        for lane, place in other.places.items():
            self.takes(lane, place)
        self.wakes(other.earliest)

    def takes(self, lane: bytes, place: bytes) -> None:
        there = self.places.get(lane)
        if there is None or place < there:
            self.places[lane] = place

    def wakes(self, wake_at: float | None) -> None:
        if wake_at is not None and (self.earliest is None or wake_at < self.earliest):
            self.earliest = wake_at

    @property
    def writes(self) -> bool:
        return bool(self._ops)

    @property
    def count(self) -> int:
        """How many operations etcd takes it for."""
        return max(len(self._ops), len(self._since))

    def write_to(self, request: Any) -> None:
        """Add all of it to a transaction. In place, since a message that is put into another is copied."""
        compares, ops = request.compare, request.success
        for key, revision in self._since:
            if revision < 0:
                compares.add(target=_CREATE, key=key, create_revision=0)
            else:
                compares.add(target=_MOD, key=key, mod_revision=revision)
        for op in self._ops:
            if isinstance(op, tuple):
                there = ops.add().request_put
                there.key, there.value, there.lease = op
            elif isinstance(op, bytes):
                ops.add().request_delete_range.key = op
            else:
                op.write_to(ops.add().request_txn)


class Packed:
    """One transaction of several items."""

    __slots__ = ("_most", "_per_lane", "_size", "_touched", "_weight", "items", "more", "places")

    def __init__(self, spare: int, per_lane: int) -> None:
        self.items: list[Item] = []
        #: What is done whatever becomes of the items.
        self.more: list[Any] = []
        self.places: dict[bytes, bytes] = {}
        self._touched: set[bytes] = set()
        self._size = 0
        self._weight = 0
        self._most = MOST_OPS - spare
        self._per_lane = 1 + per_lane

    def takes(self, item: Item) -> bool:
        """Take *item*, if it fits."""
        lanes = self._per_lane * (len(self.places) + sum(lane not in self.places for lane in item.places))
        own = item.count + item.weight
        weight = own if own > self._weight else self._weight
        if self.items and (
            len(self.items) >= _MOST_ITEMS
            or len(self.items) + 1 + lanes + weight > self._most
            or self._size + item.size > MOST_BYTES
            or not self._touched.isdisjoint(item.touched)
        ):
            return False
        if not self.items and 1 + lanes + weight > self._most:
            needs = 1 + lanes + weight + MOST_OPS - self._most
            raise StoreError(
                f"{item.name} needs {needs} operations of one transaction, and etcd takes {MOST_OPS}: let it do less at once"
            )
        self.items.append(item)
        self._touched.update(item.touched)
        self._size += item.size
        self._weight = weight
        for lane, place in item.places.items():
            there = self.places.get(lane)
            if there is None or place < there:
                self.places[lane] = place
        return True

    def request(self, garbage: list[bytes], compares: Iterable[Any] = ()) -> Any:
        """What is to be sent; as many of the keys of *garbage* as there is room for are taken from there, and deleted with it."""
        request: Any = rpc.TxnRequest(compare=compares)
        ops = request.success
        for item in self.items:
            item.write_to(ops.add().request_txn)
        ops.extend(ensure(lane, place) for lane, place in self.places.items())
        ops.extend(self.more)
        while garbage and len(ops) + self._weight < MOST_OPS:
            ops.append(delete(garbage.pop()))
        return request

    @property
    def earliest(self) -> float | None:
        """The earliest wake time that comes in."""
        return min((item.earliest for item in self.items if item.earliest is not None), default=None)


def ensure(lane: bytes, place: bytes) -> Any:
    """See to it that *lane* begins no later than at *place*."""
    return within([is_below(lane, place + b"\0")], [], [put(lane, place)])


def pack(items: Iterable[Item], spare: int = 1, per_lane: int = 0) -> Iterator[Packed]:
    """*items* in few transactions, in their order, each with room for *spare* operations more, and *per_lane* for each lane."""
    packed = Packed(spare, per_lane)
    for item in items:
        if not packed.takes(item):
            yield packed
            packed = Packed(spare, per_lane)
            packed.takes(item)
    if packed.items:
        yield packed
