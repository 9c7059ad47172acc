"""Jobs in etcd, shared by any number of processes and hosts, and kept by as many members as etcd has."""

from __future__ import annotations

from asyncsched.errors import MissingExtra

try:
    import aetcd  # noqa: F401  # the driver, found missing here rather than in the midst of an import
except ImportError as error:
    raise MissingExtra('the etcd store needs aetcd: pip install "asyncsched[etcd]"') from error

from asyncsched.stores.etcd._store import EtcdStore

__all__ = ["EtcdStore"]
