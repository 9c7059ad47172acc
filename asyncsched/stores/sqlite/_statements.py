"""The statements: {p} is the prefix of the tables, {list} one mark or one row of marks for each item.

A plus before a column keeps the planner from looking for an index by it: another one is to be used.
"""

from __future__ import annotations

from asyncsched.contract import Entry, Record

__all__ = [
    "ADD",
    "BIRTHS",
    "CREATE",
    "CROWDED",
    "DELETE",
    "DUE",
    "EXTEND_CLAIMS",
    "FORGET",
    "GET",
    "HAND_BACK",
    "HELD",
    "LANES",
    "LEASES",
    "LOG",
    "MOVE",
    "NEXT_FENCE",
    "PAGE",
    "PRUNE_JOB",
    "PRUNE_OLD",
    "QUEUES",
    "RAISE_FENCE",
    "RELEASE",
    "REMOVE",
    "RUNS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SET_LEASE",
    "SET_META",
    "STILL_HELD",
    "STRETCH_END",
    "SWEEP_END",
    "TABLE",
    "TAKE",
    "UNPARK",
    "UPDATE",
    "UPDATE_UNHELD",
    "USE_WAL",
]

SCHEMA_VERSION = 1

# The rows are small and the ids may be random: a table in order of rowid takes new rows at its end, where WITHOUT ROWID
# would spread them over all of its pages. Blobs stand last, so that the other columns are found without reading past them.
CREATE = (
    "CREATE TABLE {p}meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    """CREATE TABLE {p}jobs (id TEXT NOT NULL PRIMARY KEY, queue TEXT NOT NULL, priority INTEGER NOT NULL, wake_at REAL,
        holder TEXT, fence INTEGER NOT NULL, version INTEGER NOT NULL, settled INTEGER NOT NULL, tries INTEGER NOT NULL,
        prior INTEGER, hold TEXT, birth TEXT NOT NULL, task TEXT NOT NULL, cursor BLOB NOT NULL, body BLOB NOT NULL)""",
    "CREATE INDEX {p}jobs_lane ON {p}jobs (queue, priority, wake_at, id)",
    "CREATE INDEX {p}jobs_hold ON {p}jobs (hold, wake_at, id) WHERE hold IS NOT NULL",
    "CREATE INDEX {p}jobs_holder ON {p}jobs (holder) WHERE holder IS NOT NULL",
    """CREATE TABLE {p}runs (seq INTEGER PRIMARY KEY, job_id TEXT NOT NULL, fence INTEGER NOT NULL, kind TEXT NOT NULL,
        fire_at REAL NOT NULL, at REAL NOT NULL, body BLOB NOT NULL, UNIQUE (job_id, fence, kind, fire_at))""",
    "CREATE INDEX {p}runs_at ON {p}runs (at)",
    "CREATE INDEX {p}runs_job ON {p}runs (job_id, at)",
    "CREATE TABLE {p}leases (key TEXT PRIMARY KEY, holder TEXT NOT NULL, fence INTEGER NOT NULL, until REAL NOT NULL)",
)
USE_WAL = "PRAGMA journal_mode = WAL"
# A write, since SQLite opens and even locks a file that it may only read.
SCHEMA = "UPDATE {p}meta SET value = value WHERE key = 'schema' RETURNING value"
NEXT_FENCE = "UPDATE {p}meta SET value = value + 1 WHERE key = 'fence' RETURNING value"
RAISE_FENCE = "UPDATE {p}meta SET value = max(value, ?) WHERE key = 'fence'"
SET_META = "REPLACE INTO {p}meta (key, value) VALUES (?, ?)"
TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{p}meta'"

_FIELDS = ", ".join(Record.__struct_fields__)
ADD = f"INSERT INTO {{p}}jobs ({_FIELDS}) VALUES {{list}} ON CONFLICT (id) DO NOTHING"
GET = f"SELECT {_FIELDS} FROM {{p}}jobs WHERE id IN ({{list}})"
BIRTHS = "SELECT id, birth FROM {p}jobs WHERE id IN ({list})"
REMOVE = "DELETE FROM {p}jobs WHERE id IN ({list})"
UPDATE = """UPDATE {p}jobs SET body = ?, version = version + 1, queue = ?, priority = ?,
    task = coalesce(?, task) WHERE id = ? AND version = ?"""
UPDATE_UNHELD = """UPDATE {p}jobs SET hold = ?, wake_at = ?, holder = NULL
    WHERE id = ? AND (holder IS NULL OR ?)"""

# A loose index scan: one probe for each lane of the queue, and one for its earliest record.
LANES = """WITH RECURSIVE lane (priority) AS (
        SELECT max(priority) FROM {p}jobs WHERE queue = :queue
        UNION ALL SELECT (SELECT max(j.priority) FROM {p}jobs AS j WHERE j.queue = :queue AND j.priority < lane.priority)
        FROM lane WHERE lane.priority IS NOT NULL)
    SELECT priority, coalesce(
        (SELECT min(j.wake_at) FROM {p}jobs AS j WHERE j.queue = :queue AND j.priority = lane.priority), 9e999)
    FROM lane WHERE priority IS NOT NULL"""
QUEUES = """WITH RECURSIVE found (queue) AS (
        SELECT min(queue) FROM {p}jobs
        UNION ALL SELECT (SELECT min(j.queue) FROM {p}jobs AS j WHERE j.queue > found.queue)
        FROM found WHERE found.queue IS NOT NULL)
    SELECT queue FROM found WHERE queue IS NOT NULL"""
DUE = """SELECT rowid, id, birth, task, hold, body, cursor, version, fence, holder, settled, tries, prior
    FROM {p}jobs WHERE queue = ? AND priority = ? AND wake_at <= ? AND (holder IS NULL OR wake_at <= ?)
    ORDER BY wake_at, id LIMIT ?"""
TAKE = """UPDATE {p}jobs SET prior = CASE WHEN holder IS NOT NULL THEN fence ELSE prior END,
    wake_at = ?, fence = ?, holder = ?, tries = tries + 1 WHERE rowid IN ({list})"""
STILL_HELD = f"SELECT {_FIELDS} FROM {{p}}jobs WHERE holder = ? AND wake_at > ?"
HELD = "SELECT id, fence, holder, version, wake_at FROM {p}jobs WHERE id IN ({list})"
EXTEND_CLAIMS = "UPDATE {p}jobs SET wake_at = ? WHERE id IN ({list})"
DELETE = "DELETE FROM {p}jobs WHERE fence = ? AND +holder = ? AND version = ? AND id IN ({list})"
MOVE = """UPDATE {p}jobs SET wake_at = ?, hold = ?, cursor = ?,
    holder = NULL, settled = fence, tries = 0, prior = NULL WHERE id = ? AND fence = ? AND +holder = ? AND version = ?"""
HAND_BACK = """UPDATE {p}jobs SET wake_at = ?,
    holder = NULL, tries = max(tries - 1, 0) WHERE id = ? AND fence = ? AND +holder = ? AND version = ?"""
UNPARK = "UPDATE {p}jobs SET hold = NULL, wake_at = ? WHERE id IN ({list})"

PAGE = f"SELECT {_FIELDS} FROM {{p}}jobs WHERE {{source}} AND {{behind}} LIMIT ?"
LEASES = "SELECT key, holder, fence, until FROM {p}leases WHERE key IN ({list})"
SET_LEASE = "REPLACE INTO {p}leases (key, holder, fence, until) VALUES (?, ?, ?, ?)"
RELEASE = "DELETE FROM {p}leases WHERE key = ? AND holder = ? AND fence = ?"
STRETCH_END = "SELECT key FROM {p}leases WHERE key > ? ORDER BY key LIMIT 1 OFFSET ?"
FORGET = "DELETE FROM {p}leases WHERE key > ? AND key <= coalesce(?, CAST(x'ff' AS TEXT)) AND +until < ?"
_ENTRY = ", ".join(Entry.__struct_fields__)
LOG = f"INSERT INTO {{p}}runs ({_ENTRY}) VALUES {{list}} ON CONFLICT DO NOTHING"
RUNS = f"""SELECT {_ENTRY} FROM {{p}}runs WHERE {{where}}
    ORDER BY at DESC, job_id DESC, fence DESC, kind DESC, fire_at DESC LIMIT ?"""
PRUNE_OLD = "DELETE FROM {p}runs WHERE seq IN (SELECT seq FROM {p}runs WHERE at < ? ORDER BY at LIMIT ?)"
SWEEP_END = "SELECT job_id FROM {p}runs WHERE job_id > ? ORDER BY job_id LIMIT 1 OFFSET ?"
CROWDED = """SELECT job_id, count(*) FROM {p}runs WHERE job_id > ? AND job_id <= coalesce(?, CAST(x'ff' AS TEXT))
    GROUP BY job_id HAVING count(*) > ?"""
PRUNE_JOB = """DELETE FROM {p}runs WHERE seq IN (
    SELECT seq FROM {p}runs WHERE job_id = ? ORDER BY at, fence, kind, fire_at LIMIT ?)"""
