"""The tables and functions of the store, by version.

The functions are what each call runs: one round trip whatever happens, planned once for a connection even where a pooler
forbids prepared statements, and with settings of their own that keep the planner from ever choosing to read a whole table.
Their names carry the version in which they took this form, so that instances of two versions can work on one schema.

In the texts below ``@name`` stands for a table, sequence or function with its schema and prefix, ``@@name`` for an index.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

from asyncsched.contract import Record

__all__ = ["MIGRATIONS", "SCHEMA_VERSION", "Names"]


class Names:
    """What the objects of one *schema* with one *prefix* are called."""

    def __init__(self, schema: str, prefix: str) -> None:
        self.schema = schema
        self.prefix = prefix
        # A channel belongs to the database, not to a schema.
        place = zlib.crc32(f"{schema}.{prefix}".encode())
        self._channel = f"{prefix}{place:08x}_"

    def channel(self, space: int) -> str:
        """Where the writes to one namespace are told."""
        return f"{self._channel}{space}"

    def write_out(self, text: str) -> str:
        """*text* with the names in it written out."""
        text = text.replace("{channel}", self._channel).replace("{guard}", _GUARD)
        text = re.sub(r"@@(\w+)", lambda found: _quoted(self.prefix + found[1]), text)
        return re.sub(r"@(\w+)", lambda found: self.qualified(found[1]), text)

    def qualified(self, name: str) -> str:
        return f"{_quoted(self.schema)}.{_quoted(self.prefix + name)}"

    @property
    def create_schema(self) -> str:
        return f"CREATE SCHEMA IF NOT EXISTS {_quoted(self.schema)}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# Plans are made once, maybe while the tables are empty: without this they might be plans for empty tables.
_GUARD = """SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan SET jit = off"""

# Dead versions pile up at the front of the index by time faster than by share of the table: the autovacuum goes by number.
_VACUUM = """autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.05"""

_TABLES = (
    "CREATE TABLE @meta (key text PRIMARY KEY, value bigint NOT NULL)",
    """CREATE TABLE @spaces (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE)""",
    "CREATE SEQUENCE @fences AS bigint",
    f"""CREATE TABLE @jobs (
    wake_at double precision, fence bigint NOT NULL, settled bigint NOT NULL, prior bigint,
    space integer NOT NULL, version integer NOT NULL, tries integer NOT NULL, priority smallint NOT NULL,
    id text COLLATE "C" NOT NULL, birth text COLLATE "C" NOT NULL, queue text COLLATE "C" NOT NULL,
    task text COLLATE "C" NOT NULL, hold text COLLATE "C", holder text COLLATE "C",
    cursor bytea NOT NULL, body bytea NOT NULL) WITH ({_VACUUM})""",
    "CREATE INDEX @@jobs_lane ON @jobs (space, queue, priority, wake_at, id)",
    "CREATE INDEX @@jobs_hold ON @jobs (space, hold, wake_at, id) WHERE hold IS NOT NULL",
    # While a table is empty all of its indexes look just as good. The planner is to prefer this one, and of equals it seems to
    # take the one that was made last (PostgreSQL 15).
    "ALTER TABLE @jobs ADD CONSTRAINT @@jobs_pkey PRIMARY KEY (space, id)",
    # What each claim took, for those that are repeated: a row for a claim costs less than an index over all jobs. The list is too
    # long to stay in the row, and compressing it would cost more than it saves.
    f"""CREATE TABLE @claims (
    until double precision NOT NULL, space integer NOT NULL, token text COLLATE "C" NOT NULL,
    ids text[] COLLATE "C" NOT NULL) WITH ({_VACUUM})""",
    "ALTER TABLE @claims ALTER COLUMN ids SET STORAGE EXTERNAL",
    "CREATE INDEX @@claims_until ON @claims (space, until)",
    "ALTER TABLE @claims ADD CONSTRAINT @@claims_pkey PRIMARY KEY (space, token)",
    """CREATE TABLE @runs (
    fire_at double precision NOT NULL, at double precision NOT NULL, fence bigint NOT NULL, space integer NOT NULL,
    job_id text COLLATE "C" NOT NULL, kind text COLLATE "C" NOT NULL, body bytea NOT NULL,
    PRIMARY KEY (space, job_id, fence, kind, fire_at))""",
    "CREATE INDEX @@runs_at ON @runs (space, at)",
    "CREATE INDEX @@runs_job ON @runs (space, job_id, at)",
    """CREATE TABLE @leases (
    until double precision NOT NULL, fence bigint NOT NULL, space integer NOT NULL,
    key text COLLATE "C" NOT NULL, holder text COLLATE "C" NOT NULL,
    PRIMARY KEY (space, key))""",
)

_TELL = """CREATE FUNCTION @tell_1(space_ integer, tag text, wake_ double precision, now_ double precision) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Whoever waits looks again within a minute by itself.
    IF wake_ <= now_ + 60 THEN
        PERFORM pg_notify('{channel}' || space_, tag || ':' || wake_);
    END IF;
END $$"""

_NOW = "coalesce(now_, extract(epoch FROM clock_timestamp())::double precision)"


def _rows(names: str, arrays: str) -> str:
    """The rows of *arrays*, each with the namespace in it.

    Plans are made once, maybe while the tables are empty, when reading a namespace as a whole looks as good as anything. It is no
    choice where rows like these, which are made by themselves (OFFSET 0), are joined on ``space`` and what identifies them.
    """
    return f"(SELECT space_ AS space, given.* FROM unnest({arrays}) AS given ({names}) OFFSET 0)"


_RECORD_ARRAYS = """ids text[], births text[], queues text[], priorities smallint[], tasks text[],
    wakes double precision[], holds text[], bodies bytea[], cursors bytea[], versions integer[], fences bigint[],
    holders text[], settleds bigint[], triess integer[], priors bigint[]"""

_RECORDS_IN = f"""INSERT INTO @jobs (space, id, birth, queue, priority, task, wake_at, hold, body, cursor,
        version, fence, holder, settled, tries, prior)
    SELECT space_, r.id, r.birth, r.queue, r.priority, r.task, r.wake_at, r.hold, r.body, r.cursor,
        coalesce(r.version, 1), coalesce(r.fence, 0), r.holder, coalesce(r.settled, 0), coalesce(r.tries, 0), r.prior
    FROM {
    _rows(
        "id, birth, queue, priority, task, wake_at, hold, body, cursor, version, fence, holder, settled, tries, prior",
        "ids, births, queues, priorities, tasks, wakes, holds, bodies, cursors, versions, fences, holders, settleds, triess,"
        " priors",
    )
} AS r"""

# An insert that looks out for conflicts by itself costs nearly twice as much a row (measured on PostgreSQL 15), so many rows are
# looked up first, and that is left to the case that one of them comes in between. A few rows are not worth a transaction within
# the transaction.
_INSERT = f"""CREATE FUNCTION @insert_1(space_ integer, {_RECORD_ARRAYS}) RETURNS integer
LANGUAGE plpgsql {{guard}} AS $$
DECLARE
    added integer;
BEGIN
    IF cardinality(ids) > 10 THEN
        BEGIN
            {_RECORDS_IN}
            WHERE NOT EXISTS (SELECT FROM @jobs j WHERE j.space = r.space AND j.id = r.id);
            GET DIAGNOSTICS added = ROW_COUNT;
            RETURN added;
        EXCEPTION WHEN unique_violation THEN
            NULL;
        END;
    END IF;
    {_RECORDS_IN}
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END $$"""

_ADD = f"""CREATE FUNCTION @add_1(space_ integer, tag text, now_ double precision, {_RECORD_ARRAYS})
RETURNS SETOF text LANGUAGE plpgsql {{guard}} AS $$
DECLARE
    added integer;
BEGIN
    LOOP
        added := @insert_1(space_, ids, births, queues, priorities, tasks, wakes, holds, bodies, cursors,
            versions, fences, holders, settleds, triess, priors);
        EXIT WHEN added = cardinality(ids);
        -- What stood in the way of one may have been removed since.
        EXIT WHEN NOT EXISTS (SELECT FROM {_rows("id", "ids")} AS r
            WHERE NOT EXISTS (SELECT FROM @jobs j WHERE j.space = r.space AND j.id = r.id));
    END LOOP;
    IF added < cardinality(ids) THEN
        RETURN QUERY SELECT r.id FROM {_rows("id, birth", "ids, births")} AS r
            JOIN @jobs j ON j.space = r.space AND j.id = r.id WHERE j.birth <> r.birth;
    END IF;
    PERFORM @tell_1(space_, tag, (SELECT min(w) FROM unnest(wakes) AS w), {_NOW});
END $$"""

_FIELDS = ", ".join(f"j.{name}" for name in Record.__struct_fields__)
_RECORD = """id text, birth text, queue text, priority smallint, task text, wake_at double precision, hold text, body bytea,
    cursor bytea, version integer, fence bigint, holder text, settled bigint, tries integer, prior bigint"""

# The last two rows bring the clock and the next wake time as their wake_at.
_CLAIM = f"""CREATE FUNCTION @claim_1(space_ integer, queues text[], token_ text, room bigint,
    lease_s double precision, ahead_s double precision, now_ double precision, floor_ double precision,
    floor_end double precision)
RETURNS TABLE ({_RECORD}) LANGUAGE plpgsql {{guard}} AS $$
#variable_conflict use_column
DECLARE
    now_at double precision := {_NOW};
    -- Where the lanes begin, as far as the caller knows: before it lie dead entries of what was taken.
    start double precision := CASE WHEN floor_end >= now_at THEN floor_ ELSE '-Infinity' END;
    horizon double precision := now_at + ahead_s;
    until_ double precision := now_at + lease_s;
    next_at double precision;
    earliest double precision;
    taken bigint := 0;
    of_lane bigint;
    known text[];
    lane record;
BEGIN
    -- A claim that was given up may still be on its way: its repetition waits for what it takes.
    PERFORM pg_advisory_xact_lock(hashtextextended('@claims' || token_, space_));
    -- What ended is claimed anew, and stands there once more then.
    SELECT ARRAY(SELECT DISTINCT i FROM unnest(c.ids) AS i) INTO known FROM @claims c WHERE c.space = space_ AND c.token = token_;
    IF FOUND THEN
        RETURN QUERY SELECT {_FIELDS}
            FROM {_rows("id", "known")} AS r JOIN @jobs j ON j.space = r.space AND j.id = r.id
            WHERE j.holder = token_ AND j.wake_at > now_at
            ORDER BY j.fence, j.id;
        GET DIAGNOSTICS of_lane = ROW_COUNT;
        room := room - of_lane;
    END IF;
    FOR lane IN
        SELECT q.queue, p.priority, first.wake_at
        FROM generate_series(0, 9) AS p (priority), unnest(queues) WITH ORDINALITY AS q (queue, place),
            LATERAL (SELECT j.wake_at FROM @jobs j
                WHERE j.space = space_ AND j.queue = q.queue AND j.priority = p.priority AND j.wake_at >= start
                ORDER BY j.wake_at LIMIT 1) AS first
        ORDER BY p.priority DESC, q.place
    LOOP
        earliest := lane.wake_at;
        IF room > 0 AND earliest <= horizon THEN
            RETURN QUERY WITH due AS MATERIALIZED (
                SELECT j.ctid AS place, j.id, CASE WHEN j.holder IS NULL THEN j.prior ELSE j.fence END AS prior FROM @jobs j
                WHERE j.space = space_ AND j.queue = lane.queue AND j.priority = lane.priority
                    AND j.wake_at >= lane.wake_at AND j.wake_at <= horizon AND (j.holder IS NULL OR j.wake_at <= now_at)
                ORDER BY j.wake_at, j.id LIMIT room FOR UPDATE SKIP LOCKED
            ), stamp AS MATERIALIZED (
                -- Drawn once all rows are locked: whoever held one of them before drew a lower one.
                SELECT nextval('@fences') AS fence FROM (SELECT count(*) FROM due) AS locked
            ), kept AS (
                INSERT INTO @claims AS c (until, space, token, ids)
                SELECT until_, space_, token_, array_agg(due.id) FROM due HAVING count(*) > 0
                ON CONFLICT (space, token)
                    DO UPDATE SET until = greatest(c.until, excluded.until), ids = c.ids || excluded.ids
            )
            UPDATE @jobs j SET wake_at = until_, holder = token_, fence = stamp.fence, tries = j.tries + 1,
                prior = due.prior
            FROM due, stamp WHERE j.ctid = due.place
            RETURNING {_FIELDS};
            GET DIAGNOSTICS of_lane = ROW_COUNT;
            taken := taken + of_lane;
            room := room - of_lane;
            SELECT j.wake_at INTO earliest FROM @jobs j
            WHERE j.space = space_ AND j.queue = lane.queue AND j.priority = lane.priority
                AND j.wake_at >= least(lane.wake_at, until_)
            ORDER BY j.wake_at LIMIT 1;
        END IF;
        next_at := least(next_at, earliest);
    END LOOP;
    IF taken > 0 THEN
        -- What ended and was not renewed needs no repetition: it is due, and claimed like anything else.
        DELETE FROM @claims WHERE ctid = ANY (ARRAY(
            SELECT c.ctid FROM @claims c WHERE c.space = space_ AND c.until < now_at
            ORDER BY c.until LIMIT 2 FOR UPDATE SKIP LOCKED));
    END IF;
    wake_at := now_at;
    RETURN NEXT;
    wake_at := next_at;
    RETURN NEXT;
END $$"""

_HELD = f"""{_rows("id, fence, holder", "ids, fences, holders")} AS c
        JOIN @jobs j ON j.space = c.space AND j.id = c.id AND j.fence = c.fence AND j.holder = c.holder"""

_GET = f"""CREATE FUNCTION @get_1(space_ integer, ids text[]) RETURNS TABLE ({_RECORD}) LANGUAGE plpgsql {{guard}} AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT {_FIELDS} FROM {_rows("id", "ids")} AS r JOIN @jobs j ON j.space = r.space AND j.id = r.id;
END $$"""

_REMOVE = f"""CREATE FUNCTION @remove_1(space_ integer, ids text[]) RETURNS SETOF text LANGUAGE plpgsql {{guard}} AS $$
DECLARE
    found_ text[];
BEGIN
    -- In the order of ids, so that two batches wait for each other in one direction only.
    found_ := ARRAY(SELECT j.id FROM {_rows("id", "ids")} AS r JOIN @jobs j ON j.space = r.space AND j.id = r.id
        ORDER BY j.id FOR UPDATE OF j);
    RETURN QUERY DELETE FROM @jobs j USING {_rows("id", "found_")} AS r
        WHERE j.space = r.space AND j.id = r.id RETURNING j.id;
END $$"""

_UPDATE = f"""CREATE FUNCTION @update_1(space_ integer, tag text, now_ double precision, id_ text, version_ integer,
    body_ bytea, queue_ text, priority_ smallint, task_ text, revoke_ boolean, hold_ text, wake_ double precision)
RETURNS TABLE ({_RECORD}) LANGUAGE plpgsql {{guard}} AS $$
#variable_conflict use_column
DECLARE
    now_at double precision := {_NOW};
    j @jobs%ROWTYPE;
BEGIN
    UPDATE @jobs o SET body = body_, version = o.version + 1, queue = queue_, priority = priority_,
        task = coalesce(task_, o.task),
        hold = CASE WHEN o.holder IS NULL OR revoke_ THEN hold_ ELSE o.hold END,
        wake_at = CASE WHEN revoke_ THEN now_at WHEN o.holder IS NULL THEN wake_ ELSE o.wake_at END,
        holder = CASE WHEN revoke_ THEN NULL ELSE o.holder END
    WHERE o.space = space_ AND o.id = id_ AND o.version = version_ RETURNING o.* INTO j;
    IF FOUND THEN
        PERFORM @tell_1(space_, tag, CASE WHEN j.holder IS NULL THEN j.wake_at ELSE '-infinity' END, now_at);
        RETURN QUERY SELECT {_FIELDS};
    END IF;
END $$"""

_RENEW = f"""CREATE FUNCTION @renew_1(space_ integer, lease_s double precision, now_ double precision,
    ids text[], fences bigint[], holders text[])
RETURNS TABLE (id text, version integer, now_at double precision) LANGUAGE plpgsql {{guard}} AS $$
#variable_conflict use_column
DECLARE
    now_here double precision := {_NOW};
    until_ double precision := now_here + lease_s;
    free text[];
BEGIN
    free := ARRAY(SELECT j.id FROM {_HELD} FOR UPDATE OF j SKIP LOCKED);
    UPDATE @jobs j SET wake_at = until_ FROM {_rows("id", "free")} AS r
    WHERE j.space = r.space AND j.id = r.id AND (j.wake_at IS NULL OR j.wake_at < until_);
    UPDATE @claims k SET until = greatest(k.until, until_) WHERE k.ctid = ANY (ARRAY(
        SELECT c.ctid FROM {_rows("token", "holders")} AS h JOIN @claims c ON c.space = h.space AND c.token = h.token
        FOR UPDATE OF c SKIP LOCKED));
    -- Of what is still held, that which is not free is locked by others: it has no version here.
    RETURN QUERY SELECT c.id, CASE WHEN c.id = ANY (free) THEN j.version END, now_here
        FROM {_HELD};
    RETURN QUERY SELECT NULL::text, NULL::integer, now_here;
END $$"""

_UNPARK = """CREATE FUNCTION @unpark_1(space_ integer, hold_ text, room bigint, now_ double precision) RETURNS boolean
LANGUAGE plpgsql {guard} AS $$
BEGIN
    UPDATE @jobs j SET hold = NULL, wake_at = now_ WHERE j.ctid = ANY (ARRAY(
        SELECT p.ctid FROM @jobs p WHERE p.space = space_ AND p.hold = hold_ AND p.holder IS NULL
        ORDER BY p.wake_at, p.id LIMIT room FOR UPDATE SKIP LOCKED));
    RETURN FOUND;
END $$"""

_ENTRY_ARRAYS = """log_ids text[], log_fences bigint[], log_kinds text[], log_fires double precision[],
    log_ats double precision[], log_bodies bytea[]"""

_LOG = """INSERT INTO @runs (space, job_id, fence, kind, fire_at, at, body)
        SELECT space_, e.job_id, e.fence, e.kind, e.fire_at, e.at, e.body
        FROM unnest(log_ids, log_fences, log_kinds, log_fires, log_ats, log_bodies)
            AS e (job_id, fence, kind, fire_at, at, body)
        ON CONFLICT DO NOTHING"""

# The ordinary batch: deletes and moves that all apply as they are; else nothing is written and the answer is false.
_SETTLE = f"""CREATE FUNCTION @settle_1(space_ integer, tag text, now_ double precision,
    gone_ids text[], gone_fences bigint[], gone_holders text[], gone_versions integer[],
    ids text[], fences bigint[], holders text[], versions integer[], wakes double precision[], holds text[],
    cursors bytea[], {_ENTRY_ARRAYS})
RETURNS boolean LANGUAGE plpgsql {{guard}} AS $$
DECLARE
    done bigint := 0;
    more bigint := 0;
BEGIN
    BEGIN
        IF cardinality(gone_ids) > 0 THEN
            DELETE FROM @jobs j
            USING {
    _rows("id, fence, holder, version", "gone_ids, gone_fences, gone_holders, gone_versions")
} AS s
            WHERE j.space = s.space AND j.id = s.id AND j.fence = s.fence AND j.holder = s.holder AND j.version = s.version;
            GET DIAGNOSTICS done = ROW_COUNT;
        END IF;
        IF cardinality(ids) > 0 THEN
            UPDATE @jobs j SET wake_at = s.wake_at, hold = s.hold, cursor = s.cursor,
                holder = NULL, settled = j.fence, tries = 0, prior = NULL
            FROM {
    _rows(
        "id, fence, holder, version, wake_at, hold, cursor",
        "ids, fences, holders, versions, wakes, holds, cursors",
    )
} AS s
            WHERE j.space = s.space AND j.id = s.id AND j.fence = s.fence AND j.holder = s.holder AND j.version = s.version;
            GET DIAGNOSTICS more = ROW_COUNT;
        END IF;
        IF done + more < cardinality(gone_ids) + cardinality(ids) THEN
            RAISE EXCEPTION SQLSTATE 'AS001';
        END IF;
        {_LOG.replace("ON CONFLICT DO NOTHING", "")};
    EXCEPTION WHEN SQLSTATE 'AS001' OR unique_violation THEN
        RETURN false;
    END;
    IF more > 0 THEN
        PERFORM @tell_1(space_, tag, (SELECT min(w) FROM unnest(wakes) AS w), {_NOW});
    END IF;
    RETURN true;
END $$"""

# Any batch, one settlement after the other. ways: 0 moves, 1 deletes, 2 hands back. The arrays of entries, spawned records and
# unparked holds come with the number of the settlement that each belongs to.
_SETTLE_EACH = f"""CREATE FUNCTION @settle_each_1(space_ integer, tag text, now_ double precision,
    its_ids text[], its_fences bigint[], its_holders text[], its_versions integer[], ways smallint[],
    its_wakes double precision[], its_holds text[], its_cursors bytea[],
    log_of integer[], {_ENTRY_ARRAYS},
    spawn_of integer[], {_RECORD_ARRAYS},
    unpark_of integer[], unpark_holds text[], unpark_rooms bigint[])
RETURNS SETOF text LANGUAGE plpgsql {{guard}} AS $$
DECLARE
    now_at double precision;
    wake double precision;
    told double precision;
    stale boolean;
    keeps boolean[];
    answer text;
    r @jobs%ROWTYPE;
BEGIN
    -- In the order of ids, so that two batches wait for each other in one direction only.
    PERFORM FROM {
    _rows("id", "its_ids")
} AS its JOIN @jobs j ON j.space = its.space AND j.id = its.id ORDER BY j.id FOR UPDATE OF j;
    now_at := {_NOW};
    FOR i IN 1 .. cardinality(its_ids) LOOP
        SELECT * INTO r FROM @jobs j WHERE j.space = space_ AND j.id = its_ids[i] FOR UPDATE;
        stale := r.version IS DISTINCT FROM its_versions[i];
        answer := CASE
            WHEN r.id IS NULL THEN 'gone'
            WHEN r.fence = its_fences[i] AND r.holder IS NOT DISTINCT FROM its_holders[i]
                THEN CASE WHEN stale THEN 'stale' ELSE 'done' END
            WHEN r.settled = its_fences[i] THEN 'already'
            ELSE 'lost' END;
        RETURN NEXT answer;
        keeps[i] := answer IN ('gone', 'done', 'stale');
        CONTINUE WHEN answer NOT IN ('done', 'stale');
        wake := CASE WHEN stale THEN now_at ELSE its_wakes[i] END;
        IF ways[i] = 1 AND NOT stale THEN
            DELETE FROM @jobs j WHERE j.space = space_ AND j.id = r.id;
        ELSE
            UPDATE @jobs j SET wake_at = wake, holder = NULL, prior = CASE WHEN ways[i] = 2 THEN j.prior END,
                hold = CASE WHEN stale OR ways[i] = 2 THEN j.hold ELSE its_holds[i] END,
                cursor = CASE WHEN ways[i] = 2 THEN j.cursor ELSE its_cursors[i] END,
                settled = CASE WHEN ways[i] = 2 THEN j.settled ELSE j.fence END,
                tries = CASE WHEN ways[i] = 2 THEN greatest(j.tries - 1, 0) ELSE 0 END
            WHERE j.space = space_ AND j.id = r.id;
            told := least(told, wake);
        END IF;
        IF i = ANY (spawn_of) THEN
            PERFORM @insert_1(space_, array_agg(c.id), array_agg(c.birth), array_agg(c.queue), array_agg(c.priority),
                array_agg(c.task), array_agg(c.wake_at), array_agg(c.hold), array_agg(c.body), array_agg(c.cursor),
                array_agg(c.version), array_agg(c.fence), array_agg(c.holder), array_agg(c.settled), array_agg(c.tries),
                array_agg(c.prior))
            FROM unnest(spawn_of, ids, births, queues, priorities, tasks, wakes, holds, bodies, cursors, versions, fences,
                holders, settleds, triess, priors) AS c (of_, id, birth, queue, priority, task, wake_at, hold, body, cursor,
                version, fence, holder, settled, tries, prior)
            WHERE c.of_ = i;
            told := least(told, (SELECT min(c.wake_at) FROM unnest(spawn_of, wakes) AS c (of_, wake_at) WHERE c.of_ = i));
        END IF;
        IF i = ANY (unpark_of) THEN
            IF @unpark_1(space_, unpark_holds[array_position(unpark_of, i)], unpark_rooms[array_position(unpark_of, i)],
                    now_at) THEN
                told := least(told, now_at);
            END IF;
        END IF;
    END LOOP;
    {
    _LOG.replace("unnest(log_ids", "unnest(log_of, log_ids")
    .replace("AS e (job_id", "AS e (of_, job_id")
    .replace("ON CONFLICT", "WHERE keeps[e.of_] ON CONFLICT")
};
    PERFORM @tell_1(space_, tag, told, now_at);
END $$"""

_ACQUIRE = f"""CREATE FUNCTION @acquire_1(space_ integer, keys text[], holder_ text, lease_s double precision,
    now_ double precision, most bigint)
RETURNS TABLE (key text, holder text, fence bigint, until double precision) LANGUAGE plpgsql {{guard}} AS $$
#variable_conflict use_column
DECLARE
    now_at double precision := {_NOW};
    chosen text[] := keys;
BEGIN
    IF most IS NOT NULL THEN
        -- Those who compete for some of the same keys take turns, so that each sees what the one before took.
        PERFORM pg_advisory_xact_lock(hashtextextended('@leases' || (SELECT min(k) FROM unnest(keys) AS k), space_));
        now_at := {_NOW};
        chosen := ARRAY(SELECT k.key
            FROM (SELECT space_ AS space, given.* FROM unnest(keys) WITH ORDINALITY AS given (key, place) OFFSET 0) AS k
            LEFT JOIN @leases l ON l.space = k.space AND l.key = k.key
            WHERE l.key IS NULL OR l.until <= now_at OR l.holder = holder_
            ORDER BY l.until > now_at IS TRUE DESC, k.place LIMIT most);
    END IF;
    -- A fence is drawn once the lease is locked: whoever had it before drew a lower one.
    RETURN QUERY WITH taken AS (
        INSERT INTO @leases AS l (space, key, holder, fence, until)
        SELECT space_, k, holder_, 0, now_at + lease_s FROM unnest(chosen) AS k ORDER BY k COLLATE "C"
        ON CONFLICT (space, key) DO UPDATE SET holder = excluded.holder, until = excluded.until,
            fence = CASE WHEN l.until <= now_at THEN 0 ELSE l.fence END
            WHERE l.until <= now_at OR l.holder = excluded.holder
        RETURNING l.key, l.fence)
    SELECT t.key, holder_, t.fence, now_at + lease_s FROM taken t WHERE t.fence > 0;
    RETURN QUERY UPDATE @leases l SET fence = nextval('@fences') FROM {_rows("key", "chosen")} AS k
    WHERE l.space = k.space AND l.key = k.key AND l.fence = 0
    RETURNING l.key, l.holder, l.fence, l.until;
END $$"""

#: Of the leases those that are still held, locked in the order that ``acquire`` locks them in: then none waits for the other.
_STILL_HELD = f"""ARRAY(SELECT l.key FROM {_rows("key, holder, fence", "keys, holders, fences")} AS c
        JOIN @leases l ON l.space = c.space AND l.key = c.key AND l.holder = c.holder AND l.fence = c.fence
        ORDER BY l.key FOR UPDATE OF l)"""

_EXTEND = f"""CREATE FUNCTION @extend_1(space_ integer, now_ double precision, lease_s double precision,
    keys text[], holders text[], fences bigint[])
RETURNS TABLE (key text, holder text, fence bigint, until double precision) LANGUAGE plpgsql {{guard}} AS $$
#variable_conflict use_column
DECLARE
    held text[] := {_STILL_HELD};
BEGIN
    RETURN QUERY UPDATE @leases l SET until = greatest(l.until, {_NOW} + lease_s) FROM {_rows("key", "held")} AS k
        WHERE l.space = k.space AND l.key = k.key RETURNING l.key, l.holder, l.fence, l.until;
END $$"""

_RELEASE = f"""CREATE FUNCTION @release_1(space_ integer, keys text[], holders text[], fences bigint[]) RETURNS void
LANGUAGE plpgsql {{guard}} AS $$
#variable_conflict use_column
DECLARE
    held text[] := {_STILL_HELD};
BEGIN
    DELETE FROM @leases l USING {_rows("key", "held")} AS k WHERE l.space = k.space AND l.key = k.key;
END $$"""

_FUNCTIONS = (
    _TELL, _INSERT, _ADD, _CLAIM, _GET, _REMOVE, _UPDATE, _RENEW, _UNPARK, _SETTLE, _SETTLE_EACH, _ACQUIRE, _EXTEND, _RELEASE,
)  # fmt: skip

#: What makes of each version the next; what makes the first of nothing.
MIGRATIONS: Mapping[int, Sequence[str]] = {1: (*_TABLES, *_FUNCTIONS)}
SCHEMA_VERSION = 1
