"""The statements of each call, written out. Nothing here sends one, and nothing reads a clock.

Rows are locked by ``SELECT .. FOR UPDATE SKIP LOCKED`` in a derived table, whose keys are kept as JSON in a variable of the
session: neither server can say of an UPDATE that it is to pass over locked rows, and MySQL cannot say which it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from asyncsched.contract import Claim, Entry, Filter, Lease, Record, Settlement, Update
from asyncsched.stores.mysql._schema import Names
from asyncsched.stores.mysql._text import (
    blob,
    choice,
    integer,
    json,
    listed,
    optional,
    real,
    text,
    wake,
)

__all__ = ["DONE", "SERVER_NOW", "Lane", "Statements", "guard"]

#: Whatever the session's time zone is.
SERVER_NOW = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)"

_NOW, _TAKEN, DONE = "@asyncsched_now", "@asyncsched_taken", "@asyncsched_done"
_RECORD = """j.id, j.birth, j.queue, j.priority, j.task, j.wake_at, j.hold, j.body, j.progress, j.version, j.fence, j.holder,
    j.settled, j.tries, j.prior_fence"""
_INSERTED = """space, id, birth, queue, priority, task, wake_at, parked_at, hold, body, progress, version, fence, holder,
    settled, tries, prior_fence"""
_LOGGED = "space, job_id, fence, kind, fire_at, settled_at, body"
_ENTRY = "r.job_id, r.fence, r.kind, r.fire_at, r.settled_at, r.body"
_LOG_ORDER = "settled_at DESC, job_id DESC, fence DESC, kind DESC, fire_at DESC"
_PRIORITIES = range(9, -1, -1)
#: More choices in one CASE cost more than another statement does.
_CHOICES = 100
#: Queues in one look.
_LOOKS = 10
#: A named lease that ended so long ago is forgotten: nobody renews it any more.
_FORGOTTEN_S = 3600.0


def guard(expected: int) -> str:
    """Fails, and with it the transaction, unless so many rows were done: a subquery of two rows is no value."""
    two = "SELECT 1 AS one UNION ALL SELECT 2"
    return f"SET {DONE} = (SELECT one FROM ({two}) AS two WHERE {DONE} <> {integer(expected)})"


class Lane(NamedTuple):
    queue: str
    priority: int
    earliest: float


class Statements:
    """The statements of one namespace (*space*) in the tables of *names*."""

    def __init__(self, names: Names, space: int) -> None:
        self._n = names
        self._jobs = f"{names.jobs} AS j"
        self._space = integer(space)
        self._varchar = f"VARCHAR(300) CHARACTER SET utf8mb4 COLLATE {names.collation}"
        self._taken = self._from_json(
            _TAKEN, f"id {self._varchar} PATH '$[0]', was DOUBLE PATH '$[1]', prior BIGINT PATH '$[2]'", "t"
        )
        self._join_taken = (
            f"{self._taken} STRAIGHT_JOIN {self._jobs} ON j.space = {self._space} AND j.id = t.id"
        )

    # -- records -------------------------------------------------------------------------------------------------------

    def insert(self, records: Sequence[Record], *, keep: bool) -> str:
        """Insert *records*; with *keep* those that exist are left alone, else one fails all."""
        alone = f" ON DUPLICATE KEY UPDATE id = {self._n.jobs}.id" if keep else ""
        rows = ",".join(map(self._row, records))
        return f"INSERT INTO {self._n.jobs} ({_INSERTED}) VALUES {rows}{alone}"

    def raise_fence(self, fence: int) -> list[str]:
        """Later fences are higher than *fence*: the counter goes on behind the highest that was inserted."""
        return [
            f"INSERT INTO {self._n.fences} (fence) VALUES ({integer(fence)}) ON DUPLICATE KEY UPDATE fence = fence",
            f"DELETE FROM {self._n.fences} WHERE fence = {integer(fence)}",
        ]

    def strangers(self, records: Sequence[Record]) -> str:
        """The ids among *records* that other births hold; as they are now, whatever the transaction has seen before."""
        births = self._from_json(
            json([(r.id, r.birth) for r in records]),
            f"id {self._varchar} PATH '$[0]', birth {self._varchar} PATH '$[1]'", "b",
        )  # fmt: skip
        return (
            f"SELECT j.id FROM {births} STRAIGHT_JOIN {self._jobs} ON j.space = {self._space} AND j.id = b.id "
            f"WHERE j.birth <> b.birth {self._n.for_share}"
        )

    def get(self, ids: Sequence[str], lock: str = "") -> str:
        return f"SELECT {_RECORD} FROM {self._by_ids(ids)}{lock}"

    def births(self, ids: Sequence[str]) -> str:
        return f"SELECT j.id, j.birth FROM {self._by_ids(ids)}"

    def states(self, ids: Sequence[str], lock: str = "") -> str:
        return f"SELECT j.id, j.fence, j.holder, j.version, j.settled FROM {self._by_ids(ids)}{lock}"

    def update(self, u: Update, now: str) -> list[str]:
        at = now if u.revoke else wake(u.wake_at)
        changes = {"hold": optional(u.hold), "wake_at": at, "parked_at": "NULL" if u.hold is None else at}
        if u.revoke:
            changes["holder"] = "NULL"
        else:
            changes = {name: f"IF(holder IS NULL, {value}, {name})" for name, value in changes.items()}
        if u.task is not None:
            changes["task"] = text(u.task)
        changed = ", ".join(f"{name} = {value}" for name, value in changes.items())
        return [
            f"UPDATE {self._n.jobs} SET {changed}, body = {blob(u.body)}, version = version + 1, "
            f"queue = {text(u.queue)}, priority = {integer(u.priority)} "
            f"WHERE space = {self._space} AND id = {text(u.id)} AND version = {integer(u.version)}",
            self.get([u.id]),
        ]

    def remove(self, ids: Sequence[str]) -> list[str]:
        return [
            self._take(f"SELECT j.id, 0 AS was, 0 AS prior FROM {self._by_ids(ids)} LIMIT 100000 FOR UPDATE"),
            f"DELETE j FROM {self._join_taken}",
            f"SELECT t.id FROM {self._taken}",
        ]

    # -- claims --------------------------------------------------------------------------------------------------------

    def look(self, queues: Sequence[str], now: str, token: str | None = None) -> str:
        """One row: the clock, how many claims the token has made, and of each queue the earliest wake_at of all ten lanes.
        Each is a probe of an index, whatever is stored."""
        made = "0" if token is None else f"(SELECT COUNT(*) FROM {self._claims_of(token)})"
        return f"SELECT {', '.join([now, made, *map(self._lanes, queues)])}"

    def looks(self, queues: Sequence[str], now: str, token: str | None = None) -> list[str]:
        """The same in several statements where there are many queues: what the servers need to make a plan of one grows with
        the square of its probes."""
        pieces = [queues[start : start + _LOOKS] for start in range(0, len(queues), _LOOKS)] or [queues]
        return [self.look(piece, now, token if i == 0 else None) for i, piece in enumerate(pieces)]

    def claims_of(self, token: str) -> str:
        """What the claims of *token* took."""
        return f"SELECT taken FROM {self._claims_of(token)} ORDER BY part"

    def take(
        self,
        lane: Lane,
        room: int,
        now: float,
        horizon: float,
        token: str,
        part: int,
        clock: str,
        lease_s: float,
    ) -> list[str]:
        """Claim up to *room* records of one lane that are due at *horizon*, and show them with the wake_at they had.

        Fails if that *part* of the token's claim has been made already.
        """
        fresh = f"AND (holder IS NULL OR wake_at <= {real(now)}) " if horizon > now else ""
        until = f"({_NOW} + {real(lease_s)})"
        return [
            self._take(
                "SELECT id, wake_at AS was, IF(holder IS NULL, prior_fence, fence) AS prior "
                f"FROM {self._n.jobs} FORCE INDEX (lane) WHERE space = {self._space} "
                f"AND queue = {text(lane.queue)} AND priority = {integer(lane.priority)} "
                f"AND wake_at >= {real(lane.earliest)} AND wake_at <= {real(horizon)} {fresh}"
                f"ORDER BY wake_at, id LIMIT {integer(room)} FOR UPDATE SKIP LOCKED"
            ),
            f"SET {_NOW} = {clock}",
            f"INSERT INTO {self._n.claims} (space, token, part, ends_at, taken) "
            f"VALUES ({self._space}, {text(token)}, {integer(part)}, {until}, COALESCE({_TAKEN}, '[]'))",
            f"INSERT INTO {self._n.fences} () VALUES ()",
            f"UPDATE {self._join_taken} SET j.prior_fence = t.prior, j.wake_at = {until}, "
            f"j.parked_at = IF(j.hold IS NULL, NULL, {until}), j.fence = LAST_INSERT_ID(), j.holder = {text(token)}, "
            f"j.tries = j.tries + 1",
            f"DELETE FROM {self._n.fences} WHERE fence = LAST_INSERT_ID()",
            "SELECT t.was, j.id, j.birth, j.task, j.wake_at, j.hold, j.body, j.progress, j.version, j.fence, j.settled, "
            f"j.tries, j.prior_fence FROM {self._join_taken}",
        ]  # fmt: skip

    def forget_claims(self, before: str, limit: int) -> str:
        old = (
            f"SELECT token, part FROM {self._n.claims} FORCE INDEX (by_end) WHERE space = {self._space} "
            f"AND ends_at < {before} ORDER BY ends_at LIMIT {integer(limit)} FOR UPDATE SKIP LOCKED"
        )
        key = f"c.space = {self._space} AND c.token = t.token AND c.part = t.part"
        return f"DELETE c FROM ({old}) AS t STRAIGHT_JOIN {self._n.claims} AS c ON {key}"

    def renew(self, claims: Sequence[Claim], now: str, lease_s: float) -> list[str]:
        until = f"({_NOW} + {real(lease_s)})"
        return [
            f"SET {_NOW} = {now}",
            self._take(
                f"SELECT j.id, 0 AS was, 0 AS prior FROM {self._holding(claims)} LIMIT 100000 "
                f"{self._n.for_update} SKIP LOCKED"
            ),
            f"UPDATE {self._join_taken} SET j.wake_at = GREATEST(j.wake_at, {until}), "
            f"j.parked_at = IF(j.hold IS NULL, NULL, GREATEST(j.wake_at, {until}))",
            # Locked already; so it is read as it is, whatever a user's transaction has seen before. Below as well.
            f"SELECT j.id, j.fence, j.version FROM {self._join_taken} {self._n.for_update}",
            f"SELECT {_NOW}",
        ]

    def holding(self, claims: Sequence[Claim]) -> str:
        """Which of *claims* still hold their record, locked or not."""
        return f"SELECT j.id, j.fence FROM {self._holding(claims)}"

    # -- settlements ---------------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement], stale: Sequence[Settlement], now: str) -> list[str]:
        """End the claims of *settlements*, and those of *stale* ones without their move; ends with the guard that all were
        there as they say."""
        changes = [
            *self._each(settlements, lambda s: s.delete, self._delete),
            *self._each(settlements, lambda s: s.hand_back and not s.delete, self._hand_back),
            *self._each(settlements, lambda s: not (s.delete or s.hand_back), self._move),
            *(self._end_stale(s, now) for s in stale),
        ]
        count = f"SET {DONE} = {DONE} + ROW_COUNT()"
        counted = [statement for change in changes for statement in (change, count)]
        return [f"SET {DONE} = 0", *counted, guard(len(settlements) + len(stale))]

    def log(self, entries: Sequence[Entry]) -> str:
        rows = ",".join(
            f"({self._space},{text(e.job_id)},{integer(e.fence)},{text(e.kind)},{real(e.fire_at)},{real(e.at)},{blob(e.body)})"
            for e in entries
        )
        alone = f"ON DUPLICATE KEY UPDATE fence = {self._n.runs}.fence"
        return f"INSERT INTO {self._n.runs} ({_LOGGED}) VALUES {rows} {alone}"

    def unpark(self, hold: str, limit: int, now: str) -> str:
        parked = (
            f"SELECT id FROM {self._n.jobs} FORCE INDEX (parked) WHERE space = {self._space} AND hold = {text(hold)} "
            f"AND holder IS NULL ORDER BY parked_at, id LIMIT {integer(limit)} FOR UPDATE SKIP LOCKED"
        )
        return (
            f"UPDATE ({parked}) AS t STRAIGHT_JOIN {self._jobs} ON j.space = {self._space} AND j.id = t.id "
            f"SET j.hold = NULL, j.parked_at = NULL, j.wake_at = {now}"
        )

    # -- pages ---------------------------------------------------------------------------------------------------------

    def next_queue(self, behind: str) -> str:
        """The first queue behind *behind*: one probe of the index."""
        return (
            f"SELECT MIN(queue) FROM {self._n.jobs} FORCE INDEX (lane) WHERE space = {self._space} "
            f"AND queue > {text(behind)}"
        )

    def page(self, where: Filter, lanes: Sequence[tuple[str, int]], limit: int, after: Record | None) -> str:
        """The first records behind *after*, from the stretches of an index that together hold what *where* asks for."""
        at = "parked_at" if where.hold and not where.id_prefix else "wake_at"
        behind = ""
        if after is not None:
            start, id = wake(after.wake_at), text(after.id)
            behind = f" AND ({at} > {start} OR ({at} = {start} AND id > {id}))"
        wanted = {"queue": where.queue, "task": where.task, "hold": where.hold or None}
        equal = {name: text(value) for name, value in wanted.items() if value is not None}
        filters = "".join(f" AND {name} = {value}" for name, value in equal.items())
        if where.hold == "":
            filters += " AND hold IS NULL"
        if where.id_prefix:
            index, leads = "PRIMARY", [_prefixed(where.id_prefix)]
        elif where.hold:
            index, leads = "parked", ["TRUE"]
        else:
            index, leads = "lane", [f"queue = {text(q)} AND priority = {integer(p)}" for q, p in lanes]
        end = f" ORDER BY {at}, id LIMIT {integer(limit)}"
        stretches = " UNION ALL ".join(
            f"(SELECT id, {at} AS at FROM {self._n.jobs} FORCE INDEX ({index}) "
            f"WHERE space = {self._space} AND {lead}{filters}{behind}{end})"
            for lead in leads
        )
        first = f"SELECT id, at FROM ({stretches}) AS s ORDER BY at, id LIMIT {integer(limit)}"
        return (
            f"SELECT {_RECORD} FROM ({first}) AS k STRAIGHT_JOIN {self._jobs} ON j.space = {self._space} AND j.id = k.id "
            "ORDER BY k.at, k.id"
        )

    # -- named leases --------------------------------------------------------------------------------------------------

    def acquire(
        self, keys: Sequence[str], holder: str, now: str, lease_s: float, limit: int | None
    ) -> list[str]:
        """A fence is drawn once the leases are locked: whoever had one of them before drew a lower one."""
        until, me, leases = f"({_NOW} + {real(lease_s)})", text(holder), self._n.leases
        these = f"space = {self._space} AND name IN ({listed(sorted(keys))})"
        mine, of_mine = f"{these} AND holder = {me}", ""
        if limit is None:
            rows = ",".join(f"({self._space},{text(key)},{me},0,{until})" for key in sorted(keys))
            take = [
                f"INSERT INTO {leases} (space, name, holder, fence, ends_at) VALUES {rows} ON DUPLICATE KEY UPDATE "
                f"fence = IF(ends_at <= {_NOW}, 0, fence), holder = IF(ends_at <= {_NOW}, {me}, holder), "
                f"ends_at = IF(ends_at <= {_NOW} OR holder = {me}, {until}, ends_at)"
            ]
        else:
            take = self._take_some(keys, me, until, limit)
            # Where more are the holder's than were wanted, those were renewed that stand first.
            of_mine = f" AND ends_at > {_NOW} ORDER BY FIELD(name, {listed(keys)}) LIMIT {integer(limit)}"
        return [
            f"SET {_NOW} = {now}",
            *take,
            f"INSERT INTO {self._n.fences} () VALUES ()",
            f"UPDATE {leases} SET fence = LAST_INSERT_ID() WHERE {mine} AND fence = 0",
            f"DELETE FROM {self._n.fences} WHERE fence = LAST_INSERT_ID()",
            f"SELECT name, holder, fence, ends_at FROM {leases} WHERE {mine}{of_mine} FOR UPDATE",
        ]

    def _take_some(self, keys: Sequence[str], me: str, until: str, limit: int) -> list[str]:
        """All that are asked for are locked, in one order: so those who compete take turns. Rows that were made for that go."""
        leases, name = self._n.leases, f"FIELD(name, {listed(keys)})"
        these = f"space = {self._space} AND name IN ({listed(sorted(keys))})"
        rows = ",".join(f"({self._space},{text(key)},'',0,0)" for key in sorted(keys))
        chosen = (
            f"SELECT name, IF(ends_at <= {_NOW}, 0, fence) AS fence FROM {leases} WHERE {these} "
            f"AND (ends_at <= {_NOW} OR holder = {me}) ORDER BY ends_at <= {_NOW}, {name} LIMIT {integer(limit)}"
        )
        return [
            f"INSERT INTO {leases} (space, name, holder, fence, ends_at) VALUES {rows} "
            "ON DUPLICATE KEY UPDATE fence = fence",
            f"UPDATE ({chosen}) AS t STRAIGHT_JOIN {leases} AS l ON l.space = {self._space} AND l.name = t.name "
            f"SET l.holder = {me}, l.fence = t.fence, l.ends_at = {until}",
            f"DELETE FROM {leases} WHERE {these} AND ends_at = 0",
        ]

    def extend(self, leases: Sequence[Lease], now: str, lease_s: float) -> list[str]:
        which = self._these(leases)
        return [
            f"UPDATE {self._n.leases} SET ends_at = GREATEST(ends_at, {now} + {real(lease_s)}) WHERE {which}",
            f"SELECT name, holder, fence, ends_at FROM {self._n.leases} WHERE {which} FOR UPDATE",
        ]

    def erase(self, limit: int) -> list[str]:
        """Each is to be repeated for as long as it deletes so many rows."""
        of_space = [self._n.jobs, self._n.runs, self._n.claims, self._n.leases]
        where = f"WHERE space = {self._space} LIMIT {integer(limit)}"
        erased = [f"DELETE FROM {table} {where}" for table in of_space]
        return [*erased, f"DELETE FROM {self._n.spaces} WHERE id = {self._space}"]

    def forget_leases(self, behind: str, now: str, many: int) -> list[str]:
        """Of so many behind that key, delete those that ended long ago; give the last of them, if there are so many."""
        next_ = (
            f"SELECT name FROM {self._n.leases} WHERE space = {self._space} AND name > {text(behind)} ORDER BY name "
            f"LIMIT {integer(many)}"
        )
        return [
            f"SELECT name FROM ({next_}) AS s ORDER BY name LIMIT 1 OFFSET {integer(many - 1)}",
            f"DELETE l FROM ({next_}) AS s STRAIGHT_JOIN {self._n.leases} AS l ON l.space = {self._space} "
            f"AND l.name = s.name WHERE l.ends_at < {now} - {real(_FORGOTTEN_S)}",
        ]

    def release(self, leases: Sequence[Lease]) -> str:
        return f"DELETE FROM {self._n.leases} WHERE {self._these(leases)}"

    # -- the log -------------------------------------------------------------------------------------------------------

    def runs(self, job_id: str | None, kinds: Sequence[str] | None, limit: int, before: Entry | None) -> str:
        index = "by_time" if job_id is None else "by_job"
        where = [f"space = {self._space}"]
        if job_id is not None:
            where.append(f"job_id = {text(job_id)}")
        if kinds is not None:
            where.append(f"kind IN ({listed(kinds) or 'NULL'})")
        if before is not None:
            at, key = real(before.at), (before.job_id, before.fence, before.kind, before.fire_at)
            key_ = f"{text(key[0])}, {integer(key[1])}, {text(key[2])}, {real(key[3])}"
            where.append(f"settled_at <= {at}")
            where.append(f"(settled_at < {at} OR (job_id, fence, kind, fire_at) < ({key_}))")
        return (
            f"SELECT {_ENTRY} FROM {self._n.runs} AS r FORCE INDEX ({index}) WHERE {' AND '.join(where)} "
            f"ORDER BY {_LOG_ORDER} LIMIT {integer(limit)}"
        )

    def prune_old(self, before: str, limit: int) -> str:
        return self._prune("by_time", f"settled_at < {before}", "settled_at, job_id", limit)

    def sweep_end(self, behind: str, count: int) -> str:
        """The job whose entry stands *count* behind the first of the jobs behind *behind*."""
        return (
            f"SELECT job_id FROM {self._n.runs} FORCE INDEX (by_job) WHERE space = {self._space} "
            f"AND job_id > {text(behind)} ORDER BY job_id LIMIT 1 OFFSET {integer(count)}"
        )

    def crowded(self, behind: str, end: str | None, per_job: int) -> str:
        upto = "" if end is None else f" AND job_id <= {text(end)}"
        return (
            f"SELECT job_id, COUNT(*) FROM {self._n.runs} FORCE INDEX (by_job) WHERE space = {self._space} "
            f"AND job_id > {text(behind)}{upto} GROUP BY job_id HAVING COUNT(*) > {integer(per_job)}"
        )

    def first_beyond(self, job_id: str, per_job: int) -> str:
        """Where in its log the newest entry of a job stands that is one too many."""
        return (
            f"SELECT settled_at, fence, kind, fire_at FROM {self._n.runs} FORCE INDEX (by_job) WHERE space = {self._space} "
            f"AND job_id = {text(job_id)} ORDER BY settled_at DESC, fence DESC, kind DESC, fire_at DESC "
            f"LIMIT 1 OFFSET {integer(per_job)}"
        )

    def prune_job(self, job_id: str, newest: tuple[Any, ...], count: int) -> str:
        """Delete so many entries of a job up to the *newest*."""
        at, fence, kind, fire_at = newest
        end = (
            f"settled_at <= {real(at)} AND (settled_at < {real(at)} OR (fence, kind, fire_at) <= "
            f"({integer(fence)}, {text(kind)}, {real(fire_at)}))"
        )
        return self._prune("by_job", f"job_id = {text(job_id)} AND {end}", "settled_at", count)

    # -- below ---------------------------------------------------------------------------------------------------------

    def _row(self, r: Record) -> str:
        at = wake(r.wake_at)
        return (
            f"({self._space},{text(r.id)},{text(r.birth)},{text(r.queue)},{integer(r.priority)},{text(r.task)},{at},"
            f"{'NULL' if r.hold is None else at},{optional(r.hold)},{blob(r.body)},{blob(r.cursor)},{integer(r.version)},"
            f"{integer(r.fence)},{optional(r.holder)},{integer(r.settled)},{integer(r.tries)},{optional(r.prior)})"
        )

    def _prune(self, index: str, where: str, order: str, limit: int) -> str:
        """A DELETE can be told of no index, and might read all of the log to delete a little; a join can."""
        old = (
            f"SELECT job_id, fence, kind, fire_at FROM {self._n.runs} FORCE INDEX ({index}) WHERE space = {self._space} "
            f"AND {where} ORDER BY {order}, fence, kind, fire_at LIMIT {integer(limit)} FOR UPDATE SKIP LOCKED"
        )
        key = "r.job_id = t.job_id AND r.fence = t.fence AND r.kind = t.kind AND r.fire_at = t.fire_at"
        return f"DELETE r FROM ({old}) AS t STRAIGHT_JOIN {self._n.runs} AS r ON r.space = {self._space} AND {key}"

    def _by_ids(self, ids: Iterable[str]) -> str:
        return f"{self._jobs} FORCE INDEX (PRIMARY) WHERE j.space = {self._space} AND j.id IN ({listed(sorted(ids))})"

    def _from_json(self, source: str, columns: str, alias: str) -> str:
        return f"JSON_TABLE(COALESCE({source}, '[]'), '$[*]' COLUMNS ({columns})) AS {alias}"

    def _take(self, locking: str) -> str:
        """Keep what the select *locking* locks. It has a limit, so that it is not merged into the rest of the statement."""
        keep = f"SELECT JSON_ARRAYAGG(JSON_ARRAY(id, was, prior)) INTO {_TAKEN} FROM ({locking}) AS locked"
        return f"{self._n.uncut}{keep}"

    def _claims_of(self, token: str) -> str:
        return f"{self._n.claims} WHERE space = {self._space} AND token = {text(token)}"

    def _holding(self, claims: Sequence[Claim]) -> str:
        columns = (
            f"id {self._varchar} PATH '$[0]', fence BIGINT PATH '$[1]', holder {self._varchar} PATH '$[2]'"
        )
        return (
            f"{self._from_json(json(sorted(claims)), columns, 'c')} STRAIGHT_JOIN {self._jobs} "
            f"ON j.space = {self._space} AND j.id = c.id WHERE j.fence = c.fence AND j.holder = c.holder"
        )

    def _lanes(self, queue: str) -> str:
        of_queue = f"{self._n.jobs} FORCE INDEX (lane) WHERE space = {self._space} AND queue = {text(queue)}"
        probes = (
            f"COALESCE((SELECT MIN(wake_at) FROM {of_queue} AND priority = {p}), '')" for p in _PRIORITIES
        )
        return f"CONCAT_WS(' ', {', '.join(probes)})"

    def _each(
        self,
        settlements: Iterable[Settlement],
        wanted: Callable[[Settlement], bool],
        change: Callable[[Sequence[Settlement], str], str],
    ) -> Iterator[str]:
        """The statements of *change* for those settlements that are *wanted*, by claim and version, in the order of ids."""
        claims: dict[tuple[int, str, int], list[Settlement]] = {}
        for s in settlements:
            if wanted(s):
                claims.setdefault((s.fence, s.holder, s.version), []).append(s)
        for (fence, holder, version), of_claim in claims.items():
            of_claim.sort(key=lambda s: s.id)
            for start in range(0, len(of_claim), _CHOICES):
                piece = of_claim[start : start + _CHOICES]
                where = (
                    f"WHERE space = {self._space} AND id IN ({listed(s.id for s in piece)}) AND fence = {integer(fence)} "
                    f"AND holder = {text(holder)} AND version = {integer(version)}"
                )
                yield change(piece, where)

    def _delete(self, _: Sequence[Settlement], where: str) -> str:
        return f"DELETE FROM {self._n.jobs} {where}"

    def _move(self, piece: Sequence[Settlement], where: str) -> str:
        at = choice("id", [(s.id, wake(s.wake_at)) for s in piece])
        hold = choice("id", [(s.id, optional(s.hold)) for s in piece])
        parked = "NULL" if hold == "NULL" else f"IF({hold} IS NULL, NULL, {at})"
        progress = choice("id", [(s.id, blob(s.cursor)) for s in piece])
        return (
            f"UPDATE {self._n.jobs} SET wake_at = {at}, hold = {hold}, parked_at = {parked}, progress = {progress}, "
            f"settled = fence, tries = 0, prior_fence = NULL, holder = NULL {where}"
        )

    def _hand_back(self, piece: Sequence[Settlement], where: str) -> str:
        at = choice("id", [(s.id, wake(s.wake_at)) for s in piece])
        return (
            f"UPDATE {self._n.jobs} SET wake_at = {at}, parked_at = IF(hold IS NULL, NULL, {at}), "
            f"tries = GREATEST(tries - 1, 0), holder = NULL {where}"
        )

    def _end_stale(self, s: Settlement, now: str) -> str:
        written = "tries = GREATEST(tries - 1, 0)"
        if not s.hand_back:
            written = f"progress = {blob(s.cursor)}, settled = fence, tries = 0, prior_fence = NULL"
        return (
            f"UPDATE {self._n.jobs} SET wake_at = {now}, parked_at = IF(hold IS NULL, NULL, {now}), {written}, "
            f"holder = NULL WHERE space = {self._space} AND id = {text(s.id)} "
            f"AND fence = {integer(s.fence)} AND holder = {text(s.holder)} AND version = {integer(s.version)}"
        )

    def _these(self, leases: Sequence[Lease]) -> str:
        each = " OR ".join(
            f"(name = {text(lease.key)} AND holder = {text(lease.holder)} AND fence = {integer(lease.fence)})"
            for lease in sorted(leases)
        )
        return f"space = {self._space} AND ({each})"


def _prefixed(prefix: str) -> str:
    """From the prefix to the first text behind all that begin with it; by code point, as the column compares."""
    for i in range(len(prefix) - 1, -1, -1):
        if ord(prefix[i]) < 0x10FFFF:
            following = ord(prefix[i]) + 1
            # Surrogates are no characters.
            end = prefix[:i] + chr(0xE000 if following == 0xD800 else following)
            return f"id >= {text(prefix)} AND id < {text(end)}"
    return f"id >= {text(prefix)}"
