"""The log: an entry is a node whose name is its key, so there can be no second one; sheets by time lead to them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

import msgspec
from aiozk import exc

from asyncsched.contract import Entry
from asyncsched.stores.zookeeper._ground import Ground
from asyncsched.stores.zookeeper._index import Group, Item, Scan, Sheet, Trims
from asyncsched.stores.zookeeper._names import key_of, leaf_of

__all__ = ["Log"]

_BLOCK = 200
_MOST = 1 << 62


class _Place(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entry without its body, as the sheets have it."""

    job_id: str
    fence: int
    kind: str
    fire_at: float
    at: float


class _Kept(msgspec.Struct, array_like=True, gc=False):
    """An entry, as its node has it."""

    job_id: str
    fence: int
    kind: str
    fire_at: float
    at: float
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_place = msgspec.msgpack.Decoder(_Place).decode
_decode_kept = msgspec.msgpack.Decoder(_Kept).decode
_Rank = tuple[float, str, int, str, float]


class Log:
    """The entries of one namespace."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        #: Folders in which no job had too many entries, as they were then.
        self._orderly: dict[str, tuple[int, int]] = {}

    # -- writing -------------------------------------------------------------------------------------------------------

    def path(self, entry: Entry | _Place) -> str:
        return self._ground.paths.entry(entry.job_id, entry.fence, entry.kind, entry.fire_at)

    def add(self, group: Group, entries: Iterable[Entry], there: set[str]) -> None:
        """Write those that are not *there*."""
        for e in entries:
            path = self.path(e)
            if path in there:
                continue
            there.add(path)
            kept = _Kept(e.job_id, e.fence, e.kind, e.fire_at, e.at, e.body)
            group.add("entry", path, self._ground.wire.create(path, _encode(kept)))
            place = _encode(_Place(e.job_id, e.fence, e.kind, e.fire_at, e.at))
            group.insert(self._ground.paths.times, Item(key_of(e.at), "", secrets.token_hex(4), 0, 0, place))

    # -- reading -------------------------------------------------------------------------------------------------------

    async def runs(
        self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None
    ) -> list[Entry]:
        wire = self._ground.wire
        await wire.ask([wire.sync(self._ground.paths.entries)])
        floor = None if before is None else _rank(before)
        if job_id is not None:
            found = [e for e in await self._of_job(job_id) if floor is None or _rank(e) < floor]
            found = [e for e in found if kinds is None or e.kind in kinds]
            return sorted(found, key=_rank, reverse=True)[:limit]
        return await self._newest(kinds, limit, floor)

    async def _of_job(self, job_id: str) -> list[Entry]:
        wire = self._ground.wire
        folder, start = self._ground.paths.entries_of(job_id)
        listed = await wire.ask_one(wire.children(folder))
        if isinstance(listed, Exception):
            return []
        entries = await self._read([f"{folder}/{name}" for name in listed.children if name.startswith(start)])
        return [e for e in entries if e is not None and e.job_id == job_id]

    async def _newest(self, kinds: Sequence[str] | None, limit: int, floor: _Rank | None) -> list[Entry]:
        found: list[Entry] = []
        walk = _Backwards(self._ground, None if floor is None else key_of(floor[0]))
        while len(found) < limit:
            places = await walk.next(limit - len(found))
            if not places:
                break
            wanted = [
                place
                for place in sorted(places, key=_rank, reverse=True)
                if (floor is None or _rank(place) < floor) and (kinds is None or place.kind in kinds)
            ]
            for at in range(0, len(wanted), _BLOCK):
                part = wanted[at : at + _BLOCK]
                for place, entry in zip(part, await self._read(list(map(self.path, part))), strict=True):
                    # A place outlives its entry where that was pruned, and is not the one of an entry written since.
                    if entry is not None and entry.at == place.at and len(found) < limit:
                        found.append(entry)
                if len(found) >= limit:
                    break
        return found

    async def _read(self, paths: Sequence[str]) -> list[Entry | None]:
        wire = self._ground.wire
        entries: list[Entry | None] = []
        for at in range(0, len(paths), 500):
            for answer in await wire.ask(list(map(wire.get, paths[at : at + 500]))):
                if isinstance(answer, Exception):
                    entries.append(None)
                    continue
                k = _decode_kept(answer.data)
                entries.append(Entry(k.job_id, k.fence, k.kind, k.fire_at, k.at, k.body))
        return entries

    # -- pruning -------------------------------------------------------------------------------------------------------

    async def prune_older(self, at: float, limit: int) -> int:
        """Delete up to *limit* entries that are older."""
        scan, trims, pruned = Scan(self._ground.wire, [self._ground.paths.times]), Trims(), 0
        while pruned < limit:
            found = await scan.next(min(limit - pruned, _BLOCK), key_of(at))
            old: list[tuple[_Place, Item, Sheet]] = []
            for item, sheet in found[: limit - pruned]:
                place = _decode_place(item.copy)
                if place.at < at:
                    old.append((place, item, sheet))
            scan.unread(found[limit - pruned :])
            if not old:
                break
            pruned += await self._delete([place for place, _, _ in old])
            for _, item, sheet in old:
                trims.drop(item, sheet)
        await self._trim(trims)
        for path in scan.empty:
            self._ground.folders.forget(path)
            self._ground.wire.discard(path)
            self._ground.wire.discard(path.rpartition("/")[0])
        return pruned

    async def prune_crowded(self, per_job: int, limit: int) -> int:
        """Delete up to *limit* entries beyond the newest *per_job* of their job."""
        wire = self._ground.wire
        pruned, places = 0, list[_Place]()
        folders = self._ground.paths.shards(self._ground.paths.entries)
        for folder, told in zip(folders, await wire.ask(list(map(wire.exists, folders))), strict=True):
            if isinstance(told, Exception) or told.stat.num_children <= per_job:
                continue
            found = (told.stat.child_version, per_job)
            if self._orderly.get(folder) == found:
                continue  # Nothing was written since nothing was found here.
            listed = await wire.ask_one(wire.children(folder))
            names: dict[str, list[str]] = {}
            for name in [] if isinstance(listed, exc.ZKError) else listed.children:
                names.setdefault(name.partition(".")[0], []).append(f"{folder}/{name}")
            crowded = [of_job for of_job in names.values() if len(of_job) > per_job]
            for of_job in crowded:
                if len(places) >= limit:
                    break
                old = await self._oldest(of_job, per_job, limit - len(places))
                pruned += await self._delete(old)
                places += old
            if len(places) >= limit:
                break
            if not crowded:
                self._orderly[folder] = found
        await self._drop_places(places)
        return pruned

    async def _oldest(self, paths: Sequence[str], per_job: int, limit: int) -> list[_Place]:
        """Of the entries of one job, those that are too many."""
        entries = sorted((e for e in await self._read(paths) if e is not None), key=_rank)
        old = entries[: max(len(entries) - per_job, 0)][:limit]
        return [_Place(e.job_id, e.fence, e.kind, e.fire_at, e.at) for e in old]

    async def _drop_places(self, places: Sequence[_Place]) -> None:
        """Their sheets have nothing to lead to any more. Each leaf is gone through once, for all jobs together."""
        by_leaf: dict[str, set[tuple[int, _Place]]] = {}
        for place in places:
            key = key_of(place.at)
            by_leaf.setdefault(leaf_of(key), set()).add((key, place))
        for gone in by_leaf.values():
            await self._drop_from_leaf(gone)

    async def _drop_from_leaf(self, gone: set[tuple[int, _Place]]) -> None:
        first, last = min(key for key, _ in gone), max(key for key, _ in gone)
        scan = Scan(self._ground.wire, [self._ground.paths.times], start=first)
        trims = Trims()
        while found := await scan.next(_BLOCK, last):
            for item, sheet in found:
                if item.key >= first and (item.key, _decode_place(item.copy)) in gone:
                    trims.drop(item, sheet)
        await self._trim(trims)

    async def _delete(self, places: Sequence[_Place]) -> int:
        """How many of them were there."""
        wire = self._ground.wire
        answers = await wire.ask([wire.delete(self.path(place)) for place in places])
        return sum(not isinstance(answer, Exception) for answer in answers)

    async def _trim(self, trims: Trims) -> None:
        group = Group()
        trims.apply(self._ground.wire, group, is_bounded=False)
        for at in range(0, len(group.operations), 50):
            await self._ground.wire.multis([[op] for op in group.operations[at : at + 50]])


class _Backwards:
    """The places of entries from the newest on."""

    def __init__(self, ground: Ground, start: int | None) -> None:
        self._wire = ground.wire
        self._root = ground.paths.times
        self._start = _MOST if start is None else start
        self._branches: list[str] | None = None
        self._leaves: list[str] = []
        self._sheets: list[Sheet] = []
        self._ready: list[tuple[int, _Place]] = []

    async def next(self, want: int) -> list[_Place]:
        """*want* or more, as far as there are any; whatever was not given yet is older than all that was."""
        found: list[_Place] = []
        while len(found) < want:
            if not self._sheets and not self._ready and not await self._next_leaf():
                break
            if self._sheets:
                await self._read_some()
            bound = self._sheets[0].last if self._sheets else -1
            found += [place for key, place in self._ready if key > bound]
            self._ready = [ready for ready in self._ready if ready[0] <= bound]
        return found

    async def _read_some(self) -> None:
        part, self._sheets = self._sheets[:8], self._sheets[8:]
        for sheet, answer in zip(
            part, await self._wire.ask([self._wire.get(s.path) for s in part]), strict=True
        ):
            sheet.fill(answer)
            self._ready += ((i.key, _decode_place(i.copy)) for i in sheet.items or () if i.key <= self._start)

    async def _next_leaf(self) -> bool:
        while True:
            while not self._leaves:
                if self._branches is None:
                    self._branches = sorted(await self._list(self._root))
                if not self._branches:
                    return False
                branch = f"{self._root}/{self._branches.pop()}"
                self._leaves = [f"{branch}/{leaf}" for leaf in sorted(await self._list(branch))]
            leaf = self._leaves.pop()
            sheets = [Sheet(leaf, name) for name in await self._list(leaf)]
            self._sheets = sorted((s for s in sheets if s.first <= self._start), key=_newest_first)
            if self._sheets:
                return True

    async def _list(self, path: str) -> list[str]:
        answer = await self._wire.ask_one(self._wire.children(path))
        return [] if isinstance(answer, exc.ZKError) else list(answer.children)


def _newest_first(sheet: Sheet) -> int:
    return -sheet.last


def _rank(entry: Entry | _Place) -> _Rank:
    return (entry.at, entry.job_id, entry.fence, entry.kind, entry.fire_at)
