"""The tables of the store, by version.

In the texts below ``@name`` stands for a table with its prefix. Ids and names compare by code point, a trailing space counted:
the collation of that kind bears another name on each of the two servers.

Every index that a claim reads is ordered as it is read, and ``wake_at`` is never NULL: see NEVER. ``parked_at`` repeats
``wake_at`` for the records with a hold alone, so that claims of the others need not touch that index.

What a token holds is found by way of ``claims``, a row for each claim, which costs less than an index by holder; its key also
sees to it that of a claim and its repetition one alone takes anything, however late the first comes through.

A fence is drawn by inserting into ``fences``, whose counter the server keeps across restarts, removals and rollbacks, and
advances on a replica with each row that it is sent; the row itself is deleted at once. So no claim waits for another's commit,
as it would for a counter in a row, and no clock is trusted. It is drawn when the records are locked already: whoever held one of
them before drew a lower one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["COLLATIONS", "MIGRATIONS", "SCHEMA_VERSION", "Names"]

#: By dialect.
COLLATIONS = {"mariadb": "utf8mb4_nopad_bin", "mysql": "utf8mb4_0900_bin"}

#: By dialect, for the table ``j`` of a join.
_LOCKS = {
    "mariadb": ("FOR UPDATE", "LOCK IN SHARE MODE"),
    "mysql": ("FOR UPDATE OF j", "FOR SHARE OF j"),
}

#: By dialect: MariaDB cuts an aggregate where its sessions say, and be that within a value.
_UNCUT = {"mariadb": "SET STATEMENT group_concat_max_len = 16777216 FOR ", "mysql": ""}

_KIND = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE={collation}"

#: A child's id is its parent's and a slot; a lease's name is a limit's key and a slot.
_TABLES = (
    f"CREATE TABLE IF NOT EXISTS @meta (name VARCHAR(64) NOT NULL PRIMARY KEY, value BIGINT NOT NULL) {_KIND}",
    f"""CREATE TABLE IF NOT EXISTS @spaces (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name VARCHAR(255) NOT NULL UNIQUE) {_KIND}""",
    f"CREATE TABLE IF NOT EXISTS @fences (fence BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY) {_KIND}",
    f"""CREATE TABLE IF NOT EXISTS @jobs (
    space INT NOT NULL, id VARCHAR(300) NOT NULL, queue VARCHAR(255) NOT NULL, priority TINYINT NOT NULL,
    wake_at DOUBLE NOT NULL, parked_at DOUBLE, hold VARCHAR(300), holder VARCHAR(300), fence BIGINT NOT NULL,
    version BIGINT NOT NULL, settled BIGINT NOT NULL, tries BIGINT NOT NULL, prior_fence BIGINT,
    birth VARCHAR(255) NOT NULL, task VARCHAR(255) NOT NULL, progress LONGBLOB NOT NULL, body LONGBLOB NOT NULL,
    PRIMARY KEY (space, id),
    KEY lane (space, queue, priority, wake_at, id),
    KEY parked (space, hold, parked_at, id)) {_KIND}""",
    # What each claim took: JSON of [id, wake_at before, fence before].
    f"""CREATE TABLE IF NOT EXISTS @claims (
    space INT NOT NULL, token VARCHAR(300) NOT NULL, part INT NOT NULL, ends_at DOUBLE NOT NULL, taken LONGTEXT NOT NULL,
    PRIMARY KEY (space, token, part),
    KEY by_end (space, ends_at)) {_KIND}""",
    f"""CREATE TABLE IF NOT EXISTS @runs (
    space INT NOT NULL, job_id VARCHAR(300) NOT NULL, fence BIGINT NOT NULL, kind VARCHAR(64) NOT NULL,
    fire_at DOUBLE NOT NULL, settled_at DOUBLE NOT NULL, body LONGBLOB NOT NULL,
    PRIMARY KEY (space, job_id, fence, kind, fire_at),
    KEY by_time (space, settled_at, job_id, fence, kind, fire_at),
    KEY by_job (space, job_id, settled_at, fence, kind, fire_at)) {_KIND}""",
    f"""CREATE TABLE IF NOT EXISTS @leases (space INT NOT NULL, name VARCHAR(300) NOT NULL, holder VARCHAR(300) NOT NULL,
    fence BIGINT NOT NULL, ends_at DOUBLE NOT NULL, PRIMARY KEY (space, name)) {_KIND}""",
)

#: What makes of each version the next; what makes the first of nothing. Each statement may be run twice.
MIGRATIONS: Mapping[int, Sequence[str]] = {1: _TABLES}
SCHEMA_VERSION = 1


class Names:
    """What the tables with one *prefix* in one *database* are called; in the connection's own database if it is None."""

    def __init__(self, database: str | None, prefix: str, dialect: str) -> None:
        self.prefix = prefix
        self.collation = COLLATIONS[dialect]
        #: How one of several tables is locked: MySQL wants to be told which, and MariaDB does not know how to be told.
        self.for_update, self.for_share = _LOCKS[dialect]
        self.uncut = _UNCUT[dialect]
        self._start = ("" if database is None else f"{_quoted(database)}.", prefix)
        self.meta, self.spaces, self.fences = (
            self._named("meta"),
            self._named("spaces"),
            self._named("fences"),
        )
        self.jobs, self.runs, self.leases = self._named("jobs"), self._named("runs"), self._named("leases")
        self.claims = self._named("claims")

    def write_out(self, template: str) -> str:
        """*template* with the names in it written out."""
        written = re.sub(r"@(\w+)", lambda found: self._named(found[1]), template)
        return written.replace("{collation}", self.collation)

    def _named(self, table: str) -> str:
        place, prefix = self._start
        return place + _quoted(prefix + table)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
