"""Jobs in ZooKeeper, shared by any number of processes and hosts.

Each record is a node; what is due is found by a tree of time, claimed by one transaction (multi) for each hundred, and settled
by one for some dozen. Every write of a record compares the version of its node, whose name no other record ever has.
"""

from __future__ import annotations

from asyncsched.errors import MissingExtra

try:
    import aiozk  # noqa: F401
except ImportError as error:
    raise MissingExtra('the ZooKeeper store needs aiozk: pip install "asyncsched[zookeeper]"') from error

from asyncsched.stores.zookeeper._store import ZooKeeperStore

__all__ = ["ZooKeeperStore"]
