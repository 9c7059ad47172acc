"""Records in the order of their instants: a tree of time, whose leaves hold sorted sheets of items.

A tree is ``root/branch/leaf/sheet``. A leaf covers 18 minutes and a branch three days, so that no listing ever shows what is
planned for other times. What one call plans goes into one sheet for each leaf, so the index costs a node for each call and
not for each record, and a backlog of a hundred thousand is a thousand sheets.

**An item is a hint, the record is the truth.** Whoever moves a record adds an item for its new instant in the same
transaction; the old item is left where it is, and dropped when it comes up and the record does not bear it out. An item of a
small record has a copy of it, as it was written in that transaction: a claim compares and sets by that copy, and reads
nothing else. A sheet is never added to; it only shrinks.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiozk import exc

from asyncsched.errors import StoreUnavailable
from asyncsched.stores.zookeeper._names import leaf_of
from asyncsched.stores.zookeeper._rows import Seen
from asyncsched.stores.zookeeper._wire import Failed, Wire

__all__ = ["Folders", "Group", "Item", "Scan", "Sheet", "Trims", "commit", "compact", "item_of", "sheets_of"]

#: Items, and bytes, of one sheet.
_ITEMS, _BYTES = 128, 100_000
#: A copy of a record that is larger is not worth its place.
_COPY = 1024
_ATTEMPTS = 8
#: A leaf with more sheets than that has some of the small ones joined, so many at once, and no more bytes than that.
_MANY, _SMALL, _JOINED, _JOINED_BYTES = 256, 32, 128, 400_000
#: A server takes a mebibyte in one request: beyond so many bytes no sheet is trimmed in the same transaction.
_TRIMMED_BYTES = 700_000


class Item(msgspec.Struct, array_like=True, gc=False):
    """One record at one instant."""

    key: int
    id: str
    nonce: str
    #: What the record's node was when this was written; the zxid is the sheet's own, unless another is given.
    version: int = 0
    zxid: int = 0
    copy: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Item]).decode


def item_of(seen: Seen, version: int, state: bytes = b"") -> Item:
    """An item for the record as it is being written, whose node is then of that *version*."""
    copy = state if state and not seen.row.stamp and len(state) <= _COPY else b""
    return Item(seen.key, seen.id, seen.nonce, version, 0, copy)


class Sheet:
    """Some items of one leaf, read or not read yet. Its name says what it holds at the most."""

    __slots__ = ("count", "first", "items", "last", "path", "start", "version", "zxid")

    def __init__(self, leaf: str, name: str) -> None:
        first, last, count, start, _ = name.split("-")
        self.path = f"{leaf}/{name}"
        self.first, self.last, self.count = int(first, 16), int(last, 16), int(count, 16)
        #: What the first id begins with.
        self.start = bytes.fromhex(start).decode()
        self.items: list[Item] | None = None
        self.version = self.zxid = 0

    @property
    def bound(self) -> tuple[int, str]:
        """No item of it comes before."""
        return (self.first, self.start)

    def fill(self, answer: Any) -> None:
        self.items = []
        if not isinstance(answer, Exception):
            self.items = _decode(answer.data)
            self.version, self.zxid = answer.stat.version, answer.stat.created_zxid


def sheets_of(root: str, items: Iterable[Item]) -> list[tuple[str, str, bytes]]:
    """The sheets that hold *items*: leaf, name and content of each."""
    sheets: list[tuple[str, str, bytes]] = []
    sheet: list[Item] = []
    leaf, size = "", 0
    for item in sorted(items, key=_place):
        its_leaf, its_size = leaf_of(item.key), 60 + len(item.id) + len(item.copy)
        if sheet and (its_leaf != leaf or len(sheet) >= _ITEMS or size + its_size > _BYTES):
            sheets.append(_written(root, leaf, sheet))
            sheet, size = [], 0
        leaf, size = its_leaf, size + its_size
        sheet.append(item)
    if sheet:
        sheets.append(_written(root, leaf, sheet))
    return sheets


def _written(root: str, leaf: str, items: list[Item]) -> tuple[str, str, bytes]:
    start = items[0].id[:16].encode().hex()
    name = f"{items[0].key:016x}-{items[-1].key:016x}-{len(items):x}-{start}-{secrets.token_hex(6)}"
    return f"{root}/{leaf}", name, _encode(items)


def _place(item: Item) -> tuple[int, str]:
    return (item.key, item.id)


# -- reading ---------------------------------------------------------------------------------------------------------------


class Scan:
    """The items of one or several trees, in order, read as far as they are asked for."""

    def __init__(
        self, wire: Wire, roots: Sequence[str], primed: Mapping[str, list[str]] | None = None, start: int = 0
    ) -> None:
        self._wire = wire
        self._roots = list(roots)
        self._primed = dict(primed or {})
        self._start = leaf_of(start).split("/")
        self._branches: list[tuple[str, list[str]]] | None = None
        self._leaves: list[tuple[str, list[str]]] = []
        self._sheets: list[Sheet] = []
        self._at = 0
        self._ready: list[tuple[int, str, Item, Sheet]] = []
        #: Sheets that were removed before they could be read: what was in them has moved on.
        self.vanished = 0
        #: Whether there are leaves of its first branch before the start.
        self.has_earlier = False
        #: Leaves that were found empty.
        self.empty: list[str] = []
        #: The branch and the leaf that were looked at first; where to look at once the next time.
        self.head: tuple[str, ...] = ()
        #: The most sheets that a leaf was found to have, and its path.
        self.fullest: tuple[int, list[Sheet]] = (0, [])

    async def next(self, want: int, horizon: int) -> list[tuple[Item, Sheet]]:
        """*want* items or more, in order, as far as there are any up to *horizon*."""
        while True:
            bound = self._unread()
            count = self._safe(bound, horizon)
            if count >= want or (bound is not None and bound[0] > horizon):
                break
            if bound is not None:
                await self._read(want - count)
            elif count < len(self._ready) or not await self._next_leaf():
                break
        found, self._ready = self._ready[:count], self._ready[count:]
        return [(item, sheet) for _, _, item, sheet in found]

    async def peek(self) -> tuple[Item, Sheet] | None:
        """The first item that was not given yet."""
        while True:
            bound = self._unread()
            if self._ready and (bound is None or self._ready[0][:2] < bound):
                return self._ready[0][2], self._ready[0][3]
            if bound is not None:
                await self._read(1)
            elif not await self._next_leaf():
                return None

    async def next_key(self) -> int | None:
        """No item that was not given yet comes before; None: there is none."""
        while True:
            bound = self._unread()
            keys = [bound[0]] if bound is not None else []
            keys += [self._ready[0][0]] if self._ready else []
            if keys:
                return min(keys)
            if not await self._next_leaf():
                return None

    def pop(self) -> None:
        """Go past what ``peek`` gave."""
        del self._ready[0]

    def unread(self, found: Sequence[tuple[Item, Sheet]]) -> None:
        """Give these the next time: the last ones that ``next`` gave."""
        self._ready[:0] = [(item.key, item.id, item, sheet) for item, sheet in found]

    def first_sheet(self) -> str:
        """Where the item of ``next_key`` is."""
        bound = self._unread()
        if self._ready and (bound is None or self._ready[0][:2] < bound):
            return self._ready[0][3].path
        return self._sheets[self._at].path if bound is not None else ""

    def _unread(self) -> tuple[int, str] | None:
        return self._sheets[self._at].bound if self._at < len(self._sheets) else None

    def _safe(self, bound: tuple[int, str] | None, horizon: int) -> int:
        """How many of those read come before whatever was not."""
        count = bisect_left(self._ready, horizon + 1, key=_key)
        if bound is not None:
            count = min(count, bisect_left(self._ready, bound, key=_rank))
        return count

    async def _read(self, want: int) -> None:
        batch: list[Sheet] = []
        while self._at < len(self._sheets) and (want > 0 or not batch) and len(batch) < 64:
            batch.append(self._sheets[self._at])
            want -= self._sheets[self._at].count
            self._at += 1
        for sheet, answer in zip(
            batch, await self._wire.ask([self._wire.get(s.path) for s in batch]), strict=True
        ):
            sheet.fill(answer)
            self.vanished += isinstance(answer, Exception)
            self._ready.extend((item.key, item.id, item, sheet) for item in sheet.items or ())
        self._ready.sort(key=_rank)

    async def _next_leaf(self) -> bool:
        """Go on to the next leaf that has sheets; False: there is none."""
        while True:
            if not self._leaves and not await self._next_branch():
                return False
            leaf, roots = self._leaves.pop(0)
            paths = [f"{root}/{leaf}" for root in roots]
            sheets: list[Sheet] = []
            for path, names in zip(paths, await self._list(paths), strict=True):
                found = [Sheet(path, name) for name in names]
                if not found:
                    self.empty.append(path)
                elif len(found) > self.fullest[0]:
                    self.fullest = (len(found), found)
                sheets += found
            if sheets:
                if not self.head:
                    self.head = tuple(leaf.split("/"))
                self._sheets, self._at = sorted(sheets, key=_bound), 0
                return True

    async def _next_branch(self) -> bool:
        if self._branches is None:
            self._branches = _merged(self._roots, await self._list(self._roots), self._start[0])
        while self._branches:
            branch, roots = self._branches.pop(0)
            least = self._start[1] if branch == self._start[0] else ""
            listed = await self._list([f"{root}/{branch}" for root in roots])
            self.has_earlier = self.has_earlier or any(name < least for names in listed for name in names)
            self._leaves = [(f"{branch}/{leaf}", its) for leaf, its in _merged(roots, listed, least)]
            if self._leaves:
                return True
        return False

    async def _list(self, paths: Sequence[str]) -> list[list[str]]:
        asked = [path for path in paths if path not in self._primed]
        answers = dict(zip(asked, await self._wire.ask(list(map(self._wire.children, asked))), strict=True))
        lists = []
        for path in paths:
            answer = answers.get(path)
            if answer is None:
                lists.append(self._primed.pop(path))
            else:
                lists.append([] if isinstance(answer, exc.ZKError) else answer.children)
        return lists


def _merged(roots: Sequence[str], listed: Sequence[list[str]], least: str) -> list[tuple[str, list[str]]]:
    """The names from *least* on, in order, each with the roots that have it."""
    found: dict[str, list[str]] = {}
    for root, names in zip(roots, listed, strict=True):
        for name in names:
            if name >= least:
                found.setdefault(name, []).append(root)
    return sorted(found.items())


def _key(ready: tuple[int, str, Item, Sheet]) -> int:
    return ready[0]


def _rank(ready: tuple[int, str, Item, Sheet]) -> tuple[int, str]:
    return ready[:2]


def _bound(sheet: Sheet) -> tuple[int, str]:
    return sheet.bound


# -- writing ---------------------------------------------------------------------------------------------------------------


class Folders:
    """Leaves that are known to be there; whoever finds that one is not makes it anew."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._known: set[str] = set()

    async def ensure(self, leaves: Iterable[str]) -> None:
        wanted = [leaf for leaf in dict.fromkeys(leaves) if leaf not in self._known]
        if not wanted:
            return
        # root/branch/leaf, and above that a queue's lane has its queue.
        made: dict[str, None] = {}
        for leaf in wanted:
            branch = leaf.rpartition("/")[0]
            root = branch.rpartition("/")[0]
            made |= dict.fromkeys((root.rpartition("/")[0], root, branch, leaf))
        await self._wire.ask([self._wire.create(path) for path in made])
        if len(self._known) > 10_000:
            self._known.clear()
        self._known.update(wanted)

    def forget(self, leaf: str) -> None:
        self._known.discard(leaf)


class Group:
    """The operations of one multi, each with what it is for, and the items that go with them."""

    def __init__(self) -> None:
        self.operations: list[Any] = []
        self.tags: list[tuple[str, Any]] = []
        self.items: dict[str, list[Item]] = {}
        self.leaves: list[str] = []
        self.size = 0

    def add(self, kind: str, of: Any, operation: Any) -> None:
        self.operations.append(operation)
        self.tags.append((kind, of))
        self.size += 60 + len(operation.path) + len(getattr(operation, "data", None) or b"")

    def insert(self, root: str, item: Item) -> None:
        self.items.setdefault(root, []).append(item)

    def seal(self, wire: Wire) -> list[str]:
        """Turn the items into sheets; return the paths of those."""
        paths = []
        for root, items in self.items.items():
            for leaf, name, data in sheets_of(root, items):
                self.leaves.append(leaf)
                paths.append(f"{leaf}/{name}")
                self.add("sheet", leaf, wire.create(paths[-1], data))
        self.items = {}
        return paths


async def commit(
    wire: Wire, folders: Folders, groups: Sequence[Group]
) -> list[tuple[int, list[Any]] | Failed]:
    """Do each group, all of it or none; leaves that are missing are made. The outcome of each, in order."""
    outcomes: dict[int, tuple[int, list[Any]] | Failed] = {}
    left = list(range(len(groups)))
    for _ in range(_ATTEMPTS):
        await folders.ensure(leaf for at in left for leaf in groups[at].leaves)
        answers = await wire.multis([groups[at].operations for at in left])
        again = []
        for at, answer in zip(left, answers, strict=True):
            outcomes[at] = answer
            if isinstance(answer, Failed):
                kind, leaf = groups[at].tags[answer.index]
                if kind == "sheet":
                    folders.forget(leaf)
                    again.append(at)
        if not again:
            return [outcomes[at] for at in range(len(groups))]
        left = again
    raise StoreUnavailable(
        f"{wire.name}: the folders of its times are removed faster than they are made; try again"
    )


async def compact(wire: Wire, scan: Scan) -> None:
    """Join small sheets of a leaf that has many, so that what came one by one is not listed one by one for ever.

    Each item is joined once or twice. If somebody else has written one of the sheets meanwhile, nothing is done.
    """
    sheets = scan.fullest[1]
    if len(sheets) <= _MANY:
        return
    small = sorted((sheet for sheet in sheets if sheet.count <= _SMALL), key=_bound)[:_JOINED]
    if len(small) < _JOINED:
        return
    group, root, size = Group(), small[0].path.rsplit("/", 3)[0], 0
    for sheet, answer in zip(small, await wire.ask([wire.get(s.path) for s in small]), strict=True):
        sheet.fill(answer)
        if isinstance(answer, Exception):
            return
        size += len(answer.data)
        if size > _JOINED_BYTES:
            break
        group.add("trim", sheet.path, wire.delete(sheet.path, sheet.version))
        for item in sheet.items or ():
            item.zxid = item.zxid or sheet.zxid
            group.insert(root, item)
    group.seal(wire)
    await wire.multis([group.operations])


class Trims:
    """Items that came up and are done with: their sheets are written anew without them, or removed."""

    def __init__(self) -> None:
        self._gone: dict[str, tuple[Sheet, set[_Name]]] = {}
        self._changed: set[str] = set()
        #: What the last group has trimmed.
        self._applied: set[str] = set()

    def drop(self, item: Item, sheet: Sheet) -> None:
        """The item is of no use, whatever becomes of the next group."""
        self._of(sheet).add(_name(item))
        self._changed.add(sheet.path)

    def apply(
        self, wire: Wire, group: Group, taken: Sequence[tuple[Item, Sheet]] = (), *, is_bounded: bool = True
    ) -> None:
        """Have *group* remove what was dropped, and the items that are *taken* if it is done. What it has no room for is
        left for later: an item that stays is only a hint."""
        self._applied.clear()
        with_it: dict[str, set[_Name]] = {}
        for item, sheet in taken:
            self._of(sheet)
            with_it.setdefault(sheet.path, set()).add(_name(item))
        for path in sorted(self._changed | with_it.keys()):
            sheet, gone = self._gone[path]
            if not sheet.items:
                self._applied.add(path)
                continue  # Somebody else has removed it.
            gone = gone | with_it.get(path, set())
            left = [item for item in sheet.items if _name(item) not in gone]
            # A copy is of the transaction that made the sheet, whatever is done to the sheet.
            data = _encode(left) if left else b""
            if is_bounded and group.size + len(data) > _TRIMMED_BYTES:
                continue
            self._applied.add(path)
            if left:
                group.add("trim", path, wire.set_data(path, data, sheet.version))
            else:
                group.add("trim", path, wire.delete(path, sheet.version))

    async def reread(self, wire: Wire) -> None:
        """A group was refused: others may have trimmed the same sheets."""
        self._applied.clear()
        sheets = [sheet for sheet, _ in self._gone.values()]
        for sheet, answer in zip(sheets, await wire.ask([wire.get(s.path) for s in sheets]), strict=True):
            sheet.fill(answer)
            if isinstance(answer, Exception):
                self._changed.discard(sheet.path)

    def confirm(self, taken: Sequence[tuple[Item, Sheet]]) -> None:
        """That group was done, or will be before any that comes after it."""
        for item, sheet in taken:
            self.drop(item, sheet)
        for path in self._changed & self._applied:
            self._gone[path][0].version += 1
        self._changed -= self._applied
        self._applied.clear()

    def trimmed(self, taken: Iterable[tuple[Item, Sheet]]) -> list[tuple[Item, Sheet]]:
        """Those of *taken* that the last group removes."""
        return [(item, sheet) for item, sheet in taken if sheet.path in self._applied]

    def _of(self, sheet: Sheet) -> set[_Name]:
        return self._gone.setdefault(sheet.path, (sheet, set()))[1]


_Name = tuple[int, str, str]


def _name(item: Item) -> _Name:
    return (item.key, item.id, item.nonce)
