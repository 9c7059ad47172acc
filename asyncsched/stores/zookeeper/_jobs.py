"""Records: add, get, page, update and remove."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from asyncsched.contract import Filter, Record, Update
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.zookeeper._ground import Ground, some
from asyncsched.stores.zookeeper._index import Group, Scan, Sheet, Trims, commit
from asyncsched.stores.zookeeper._names import key_of, text_of
from asyncsched.stores.zookeeper._rows import (
    Row,
    Seen,
    check_size,
    decode_row,
    new_row,
    place,
    read_nodes,
    read_rows,
)
from asyncsched.stores.zookeeper._wire import Failed

__all__ = ["ATTEMPTS", "Jobs", "new_seen", "pause"]

ATTEMPTS = 10
#: Operations, and bytes, of one multi.
OPERATIONS, BYTES = 120, 400_000
#: Multis in flight.
_WINDOW = 6
_BLOCK = 200
#: How often a page is looked for where sheets vanish in the midst of it.
_LOOKS = 5
#: Folders, and items, that one call tidies.
_FOLDERS, _TIDIED = 32, 250


async def pause(attempt: int) -> None:
    """Before another attempt, so that those who contend do not meet again."""
    await asyncio.sleep(min(0.2, 0.001 * 2**attempt) * (0.5 + random.random()))


def new_seen(ground: Ground, record: Record) -> tuple[Seen, bytes | None]:
    """A record that is to be created, and what goes into its folder."""
    check_size(record.id, record.body, record.cursor)
    row = new_row(record)
    large = place(row)
    return Seen(record.id, secrets.token_hex(6), row, 0, 0, ground.paths.job(record.id)), large


class Jobs:
    """The records of one namespace."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    # -- add -----------------------------------------------------------------------------------------------------------

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken: set[str] = set()
        left: dict[str, tuple[Seen, bytes | None]] = {}
        for record in records:
            made = new_seen(self._ground, record)
            first = left.setdefault(record.id, made)
            if first[0].row.birth != record.birth:
                taken.add(record.id)
        await self._ground.raise_floor(max((record.fence for record in records), default=0))
        earliest = math.inf
        for attempt in range(ATTEMPTS):
            failed: list[str] = []
            groups = self._creations(list(left.values()))
            for at in range(0, len(groups), _WINDOW):
                window = groups[at : at + _WINDOW]
                outcomes = await commit(
                    self._ground.wire, self._ground.folders, [group for group, _ in window]
                )
                for (group, added), outcome in zip(window, outcomes, strict=True):
                    if isinstance(outcome, Failed):
                        failed += (seen.id for seen in added)
                        continue
                    self._ground.done(group, outcome[1])
                    earliest = min(earliest, _earliest(added))
            if not failed:
                break
            there = await read_rows(self._ground.wire, self._ground.paths, failed)
            taken |= {id for id, seen in there.items() if seen.row.birth != left[id][0].row.birth}
            left = {id: left[id] for id in failed if id not in there}
            if attempt:
                await pause(attempt)
        else:
            raise StoreUnavailable(f"{self._ground.wire.name}: others add the same jobs just now; try again")
        if earliest < math.inf:
            self._ground.hints.give(earliest)
        return taken

    def _creations(self, new: Sequence[tuple[Seen, bytes | None]]) -> list[tuple[Group, list[Seen]]]:
        groups: list[tuple[Group, list[Seen]]] = []
        for seen, large in new:
            if not groups or len(groups[-1][0].operations) >= OPERATIONS or groups[-1][0].size >= BYTES:
                groups.append((Group(), []))
            group, made = groups[-1]
            self._ground.add_new(group, seen, large)
            made.append(seen)
        for group, made in groups:
            group.seal(self._ground.wire)
            self._ground.hint(group, _earliest(made))
        return groups

    # -- get, page -----------------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for at in range(0, len(ids), 500):
            seen = await read_rows(self._ground.wire, self._ground.paths, ids[at : at + 500])
            found.update((id, one.record()) for id, one in seen.items())
        return found

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        wire, paths = self._ground.wire, self._ground.paths
        found: list[Record] = []
        behind = (key_of(after.wake_at), after.id) if after is not None else (0, "")
        if after is None or after.wake_at is not None:
            await wire.ask([wire.sync(paths.due)])
            await self._collect(await self._lanes(where.queue), where, limit, behind, found, wakes=True)
            behind = (0, "")
        if len(found) < limit:
            await self._collect([paths.never], where, limit, behind, found, wakes=False)
        return found

    async def _lanes(self, queue: str | None) -> list[str]:
        wire, paths = self._ground.wire, self._ground.paths
        if queue is None:
            answer = await wire.ask_one(wire.children(paths.due))
            queues = [] if isinstance(answer, Exception) else [text_of(name) for name in answer.children]
        else:
            queues = [queue]
        listed = await wire.ask([wire.children(paths.lane(q, 0).rpartition("/")[0]) for q in queues])
        return [
            paths.lane(q, int(priority))
            for q, answer in zip(queues, listed, strict=True)
            if not isinstance(answer, Exception)
            for priority in answer.children
        ]

    async def _collect(
        self,
        roots: Sequence[str],
        where: Filter,
        limit: int,
        behind: tuple[int, str],
        found: list[Record],
        *,
        wakes: bool,
    ) -> None:
        """Add to *found* what matches behind that place. What is renewed or moved on meanwhile is shown where it was met last."""
        limit -= len(found)
        met: dict[str, Seen] = {}
        for _ in range(_LOOKS):
            scan = Scan(self._ground.wire, roots, start=behind[0])
            await self._walk(scan, where, limit, behind, met, wakes=wakes)
            if not scan.vanished:
                break
        found += [one.record() for one in sorted(met.values(), key=_place)[:limit]]

    async def _walk(
        self,
        scan: Scan,
        where: Filter,
        limit: int,
        behind: tuple[int, str],
        met: dict[str, Seen],
        *,
        wakes: bool,
    ) -> None:
        """Go through the tree once, until there are *limit* records in front of the last place that was read."""
        read = 0
        while read < limit:
            items = await scan.next(min(_BLOCK, max(8, limit - read)), 1 << 62)
            if not items:
                return
            wanted = [i for i, _ in items if (i.key, i.id) > behind and _may_match(i.id, where)]
            nodes = dict.fromkeys((i.id, self._ground.paths.job(i.id), i.nonce) for i in wanted)
            seen = await read_nodes(self._ground.wire, list(nodes))
            for item in wanted:
                one = seen.get(item.id)
                if (
                    one is not None
                    and one.nonce == item.nonce
                    and _matches(one, where)
                    # An old item may lead to a record that has its place in the other tree by now.
                    and (one.row.wake_at is not None) == wakes
                    and _place(one) > behind
                ):
                    met[item.id] = one
            last = (items[-1][0].key, items[-1][0].id)
            read = sum(_place(one) <= last for one in met.values())

    # -- update, remove ------------------------------------------------------------------------------------------------

    async def update(self, update: Update) -> Record | None:
        ground = self._ground
        for attempt in range(ATTEMPTS):
            seen = (await read_rows(ground.wire, ground.paths, [update.id])).get(update.id)
            if seen is None or seen.row.version != update.version:
                return None
            check_size(update.id, update.body, seen.row.cursor)
            row, wake_at = _updated(seen, update, await ground.now() if update.revoke else 0.0)
            large = place(row)
            group = Group()
            changed = ground.add_change(group, seen, row, large)
            ground.hint(group, wake_at)
            group.seal(ground.wire)
            [outcome] = await commit(ground.wire, ground.folders, [group])
            if isinstance(outcome, Failed):
                await pause(attempt)
                continue
            ground.done(group, outcome[1])
            changed.zxid = outcome[0]
            if update.id in ground.held.seen:
                if row.holder is None:
                    ground.held.forget(update.id)
                else:
                    ground.held.seen[update.id] = changed
            ground.hints.tell(wake_at)
            return changed.record()
        raise StoreUnavailable(f"{ground.wire.name}: job {update.id!r} is being written by others; try again")

    async def remove(self, ids: Sequence[str]) -> set[str]:
        ground, removed = self._ground, set[str]()
        left = list(dict.fromkeys(ids))
        for attempt in range(ATTEMPTS):
            there = list((await read_rows(ground.wire, ground.paths, left)).values())
            if not there:
                return removed
            groups: list[tuple[Group, list[Seen]]] = []
            for at in range(0, len(there), OPERATIONS // 2):
                group, of = Group(), there[at : at + OPERATIONS // 2]
                for seen in of:
                    group.add("state", seen.id, ground.wire.delete(seen.node))
                    group.add("folder", seen.id, ground.wire.delete(seen.path))
                ground.hint(group, math.inf)
                groups.append((group, of))
            outcomes = await commit(ground.wire, ground.folders, [group for group, _ in groups])
            left = []
            for (group, of), outcome in zip(groups, outcomes, strict=True):
                gone = [seen.id for seen in of]
                if isinstance(outcome, Failed):
                    left += gone
                    continue
                ground.done(group, outcome[1])
                removed.update(gone)
                for id in gone:
                    ground.held.let_go(id, outcome[0])
            if not left:
                return removed
            await pause(attempt)
        raise StoreUnavailable(f"{ground.wire.name}: these jobs are being written by others; try again")

    # -- tidying -------------------------------------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Drop some of the items that claims never come across: of records that never wake and of such as are held back."""
        paths = self._ground.paths
        holds = await self._below([paths.holds])
        branches = await self._below([paths.never, *some(holds, _FOLDERS)])
        leaves = await self._below(some(branches, _FOLDERS))
        sheets: list[Sheet] = []
        room = _TIDIED
        for path in some(found := await self._below(some(leaves, _FOLDERS)), len(found)):
            leaf, _, name = path.rpartition("/")
            sheet = Sheet(leaf, name)
            room -= sheet.count
            if sheets and room < 0:
                break
            sheets.append(sheet)
        await self._look_over(sheets)

    async def _below(self, folders: Sequence[str]) -> list[str]:
        """The nodes in these folders; such as are empty are removed."""
        ground, found = self._ground, list[str]()
        listed = await ground.wire.ask(list(map(ground.wire.children, folders)))
        for folder, answer in zip(folders, listed, strict=True):
            if isinstance(answer, Exception):
                continue
            found += (f"{folder}/{name}" for name in answer.children)
            if not answer.children and folder not in ground.paths.roots:
                ground.folders.forget(folder)
                ground.wire.discard(folder)
        return found

    async def _look_over(self, sheets: Sequence[Sheet]) -> None:
        """Drop the items of these whose records have moved on since: whatever comes back has an item of its own."""
        wire, paths = self._ground.wire, self._ground.paths
        for sheet, answer in zip(sheets, await wire.ask([wire.get(s.path) for s in sheets]), strict=True):
            sheet.fill(answer)
        items = [(item, sheet) for sheet in sheets for item in sheet.items or ()]
        nodes = [f"{paths.job(item.id)}/{item.nonce}" for item, _ in items]
        trims = Trims()
        for (item, sheet), answer in zip(items, await wire.ask(list(map(wire.get, nodes))), strict=True):
            row = None if isinstance(answer, Exception) else decode_row(answer.data)
            root = sheet.path.rsplit("/", 3)[0]
            is_borne_out = row is not None and key_of(row.wake_at) == item.key
            if row is not None and root != paths.never:
                hold = text_of(root.rpartition("/")[2])
                is_borne_out = is_borne_out and row.holder is None and row.hold == hold
            if not is_borne_out:
                trims.drop(item, sheet)
        group = Group()
        trims.apply(wire, group, is_bounded=False)
        if group.operations:
            await wire.multis([[operation] for operation in group.operations])


def _earliest(made: Sequence[Seen]) -> float:
    return min((s.row.wake_at for s in made if s.row.wake_at is not None), default=math.inf)


def _updated(seen: Seen, update: Update, now: float) -> tuple[Row, float]:
    """The row that an update makes, and from when on it is due (-inf: its holder decides, and is to look at it)."""
    was = seen.row
    row = replace(
        was,
        body=update.body,
        version=was.version + 1,
        queue=update.queue,
        priority=update.priority,
        task=was.task if update.task is None else update.task,
    )
    if was.holder is not None and not update.revoke:
        return row, -math.inf
    row.hold, row.holder = update.hold, None
    row.wake_at = now if update.revoke else update.wake_at
    return row, math.inf if row.wake_at is None else row.wake_at


def _may_match(id: str, where: Filter) -> bool:
    return where.id_prefix is None or id.startswith(where.id_prefix)


def _matches(seen: Seen, where: Filter) -> bool:
    row = seen.row
    return (
        (where.queue is None or row.queue == where.queue)
        and (where.task is None or row.task == where.task)
        and (where.hold is None or (row.hold or "") == where.hold)
    )


def _place(seen: Seen) -> tuple[int, str]:
    return (seen.key, seen.id)
