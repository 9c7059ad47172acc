"""The statements of the calls that are no function of the schema, in the notation of :mod:`.schema`."""

from __future__ import annotations

from asyncsched.contract import Entry, Filter, Record

__all__ = [
    "ACQUIRE",
    "ADD",
    "CLAIM",
    "DATABASE",
    "ERASE",
    "EXTEND",
    "FORGET_LEASES",
    "GET",
    "NOW",
    "PRUNE_CROWDED",
    "PRUNE_OLD",
    "RAISE_FENCE",
    "RELEASE",
    "REMOVE",
    "RENEW",
    "SETTLE",
    "SETTLE_EACH",
    "SWEEP_END",
    "TELL",
    "UPDATE",
    "page",
    "runs",
]


def _call(function: str, values: int) -> str:
    return f"SELECT * FROM @{function}({', '.join(f'${i + 1}' for i in range(values))})"


_FIELDS = ", ".join(f"j.{name}" for name in Record.__struct_fields__)
_NOW = "coalesce({}::double precision, extract(epoch FROM clock_timestamp())::double precision)"

DATABASE = "SELECT current_database()::text"
NOW = "SELECT extract(epoch FROM clock_timestamp())::double precision"
TELL = "SELECT pg_notify($1, $2)::text"
ADD = _call("add_1", 18)
#: With a margin for the claims of this moment. Under a lock, since a sequence can be set lower, too.
RAISE_FENCE = """WITH alone AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtextextended('@fences', 0)) IS NULL AS locked)
    SELECT setval('@fences', $1::bigint + 1000000) FROM alone
    CROSS JOIN LATERAL (SELECT last_value FROM @fences WHERE alone.locked IS NOT NULL OFFSET 0) AS f
    WHERE f.last_value < $1"""
CLAIM = _call("claim_1", 9)
RENEW = _call("renew_1", 6)
SETTLE = _call("settle_1", 20)
SETTLE_EACH = _call("settle_each_1", 37)
ACQUIRE = _call("acquire_1", 6)

GET = _call("get_1", 2)
REMOVE = _call("remove_1", 2)
UPDATE = _call("update_1", 12)
EXTEND = _call("extend_1", 6)
RELEASE = _call("release_1", 4)

ERASE = """WITH jobs AS (DELETE FROM @jobs WHERE space = $1), runs AS (DELETE FROM @runs WHERE space = $1),
    claims AS (DELETE FROM @claims WHERE space = $1), leases AS (DELETE FROM @leases WHERE space = $1)
    DELETE FROM @spaces WHERE id = $1"""

PRUNE_OLD = f"""DELETE FROM @runs WHERE ctid = ANY (ARRAY(
    SELECT e.ctid FROM @runs e WHERE e.space = $1 AND e.at < {_NOW.format("$2")} - $3
    ORDER BY e.at LIMIT $4 FOR UPDATE SKIP LOCKED)) RETURNING 1"""
#: Of the leases behind $2, the next $3 are looked at, and those deleted that ended $5 seconds ago. Said once more at the end
#: for one that is taken meanwhile: servers before 15.15, 16.11 and 17.7 follow it to its new place without a look at that.
FORGET_LEASES = f"""WITH stretch AS MATERIALIZED (
        SELECT l.ctid AS place, l.key, l.until FROM @leases l WHERE l.space = $1 AND l.key > $2 ORDER BY l.key LIMIT $3),
    gone AS (DELETE FROM @leases WHERE ctid = ANY (ARRAY(
        SELECT s.place FROM stretch s WHERE s.until < {_NOW.format("$4")} - $5::double precision))
        AND until < {_NOW.format("$4")} - $5::double precision)
    SELECT s.key FROM stretch s ORDER BY s.key OFFSET $3 - 1"""
SWEEP_END = """SELECT e.job_id FROM @runs e WHERE e.space = $1 AND e.job_id > $2
    ORDER BY e.job_id OFFSET $3 LIMIT 1"""
#: Of the stretch of jobs behind $2 up to $3, what is beyond the newest $4 of each.
PRUNE_CROWDED = """DELETE FROM @runs WHERE ctid = ANY (ARRAY(
    SELECT e.ctid FROM (
        SELECT c.job_id, count(*) - $4 AS surplus FROM @runs c
        WHERE c.space = $1 AND c.job_id > $2 AND ($3::text IS NULL OR c.job_id <= $3)
        GROUP BY c.job_id HAVING count(*) > $4) AS crowded,
    LATERAL (SELECT r.ctid FROM @runs r WHERE r.space = $1 AND r.job_id = crowded.job_id
        ORDER BY r.at, r.fence, r.kind, r.fire_at LIMIT crowded.surplus) AS e
    LIMIT $5)) RETURNING 1"""

_QUEUES = """WITH RECURSIVE found (queue) AS (
        SELECT min(j.queue) FROM @jobs j WHERE j.space = $1
        UNION ALL SELECT (SELECT min(j.queue) FROM @jobs j WHERE j.space = $1 AND j.queue > found.queue)
        FROM found WHERE found.queue IS NOT NULL)
    SELECT page.* FROM (SELECT queue FROM found WHERE queue IS NOT NULL) AS q"""
_LANES = f"""{{queues}} CROSS JOIN generate_series(0, 9) AS p (priority) CROSS JOIN LATERAL (
        SELECT {_FIELDS} FROM @jobs j WHERE j.space = $1 AND j.queue = q.queue AND j.priority = p.priority AND {{where}}
        ORDER BY j.wake_at, j.id LIMIT $2) AS page
    ORDER BY page.wake_at, page.id LIMIT $2"""
_STRETCH = f"SELECT {_FIELDS} FROM @jobs j WHERE j.space = $1 AND {{where}} ORDER BY j.wake_at, j.id LIMIT $2"


class _Terms:
    """Conditions joined by AND, and the values in them."""

    def __init__(self, *values: object) -> None:
        self.values = list(values)
        self.terms: list[str] = []

    def mark(self, value: object) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    def add(self, term: str, *values: object) -> None:
        self.terms.append(term.format(*map(self.mark, values)))

    def joined(self) -> str:
        return " AND ".join(self.terms)


def page(
    space: int, where: Filter, limit: int, after: Record | None, *, is_waking: bool
) -> tuple[str, list[object]]:
    """What gives a page of the records that wake by themselves, or of those that do not."""
    terms = _Terms(space, limit)
    if not is_waking:
        terms.add("j.wake_at IS NULL")
        if after is not None and after.wake_at is None:
            terms.add("j.id > {}", after.id)
    elif after is None:
        terms.add("j.wake_at IS NOT NULL")
    else:
        terms.add("(j.wake_at, j.id) > ({}::double precision, {}::text)", after.wake_at, after.id)
    if where.task is not None:
        terms.add("j.task = {}", where.task)
    if where.hold is not None:
        terms.add("j.hold = {}" if where.hold else "j.hold IS NULL", *filter(None, [where.hold]))
    if where.id_prefix:
        terms.add("j.id >= {}", where.id_prefix)
        if (end := _end_of(where.id_prefix)) is not None:
            terms.add("j.id < {}", end)
    if where.id_prefix or where.hold:
        if where.queue is not None:
            terms.add("j.queue = {}", where.queue)
        return _STRETCH.format(where=terms.joined()), terms.values
    of_one = "SELECT page.* FROM (SELECT {}::text AS queue) AS q"
    queues = _QUEUES if where.queue is None else of_one.format(terms.mark(where.queue))
    return _LANES.format(queues=queues, where=terms.joined()), terms.values


def _end_of(prefix: str) -> str | None:
    """The least text that stands behind all that begin with *prefix*, in the order of code points."""
    while prefix:
        code = ord(prefix[-1]) + 1
        if code <= 0x10FFFF:
            # Behind the last character below the surrogates come those above them.
            return prefix[:-1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)
        prefix = prefix[:-1]
    return None


def runs(
    space: int, job_id: str | None, kinds: list[str] | None, limit: int, before: Entry | None
) -> tuple[str, list[object]]:
    """What gives a page of the log."""
    terms = _Terms()
    terms.add("e.space = {}", space)
    if job_id is not None:
        terms.add("e.job_id = {}", job_id)
    if kinds is not None:
        terms.add("e.kind = ANY ({}::text[])", kinds)
    if before is not None:
        terms.add("e.at <= {}", before.at)
        terms.add(
            "(e.at, e.job_id, e.fence, e.kind, e.fire_at) < ({}, {}, {}, {}, {})",
            before.at, before.job_id, before.fence, before.kind, before.fire_at,
        )  # fmt: skip
    text = f"""SELECT e.job_id, e.fence, e.kind, e.fire_at, e.at, e.body FROM @runs e WHERE {terms.joined()}
        ORDER BY e.at DESC, e.job_id DESC, e.fence DESC, e.kind DESC, e.fire_at DESC LIMIT {terms.mark(limit)}"""
    return text, terms.values
