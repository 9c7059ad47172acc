"""Jobs in MongoDB, shared by any number of instances on any number of hosts.

A job is one document, and that document decides everything: who holds it, under which fence, and whether a claim was settled.
Each write is atomic for one document, and no transaction of several is needed, so a server without replicas will do as well.
What a settlement does elsewhere (log entries, children, parked jobs) is written down first, in one document for a whole batch;
the job's own document then says that it counts, and whoever comes by finishes what a dead instance has left.
"""

from __future__ import annotations

from asyncsched.errors import MissingExtra

try:
    import pymongo  # noqa: F401
except ImportError as error:
    raise MissingExtra('the MongoDB store needs pymongo: pip install "asyncsched[mongodb]"') from error

from asyncsched.stores.mongodb._store import MongoStore

__all__ = ["MongoStore"]
