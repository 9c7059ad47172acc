"""What open() does: look at the server, see whether it lets this user do what the store needs, and find or make the namespace."""

from __future__ import annotations

from aetcd import rpc

from asyncsched.errors import SchemaError, StoreError, StoreUnavailable
from asyncsched.stores.etcd._keys import Keys, end_of
from asyncsched.stores.etcd._line import Line
from asyncsched.stores.etcd._ops import is_absent, never, put

__all__ = ["SCHEMA", "erase", "prepare"]

SCHEMA = 1
#: The oldest that has transactions in transactions, comparisons of ranges and watches that answer.
_OLDEST = (3, 4)


async def prepare(line: Line, keys: Keys, here: str, create: bool) -> None:
    """Have the namespace ready under *keys*; raises StoreError where the server cannot serve or the schema is another."""
    await _check_version(line)
    found = await line.range(rpc.RangeRequest(key=keys.meta))
    # What is asked for here is done never, and refused to who may not do it.
    span = rpc.DeleteRangeRequest(key=keys.prefix, range_end=end_of(keys.prefix))
    await line.txn(
        rpc.TxnRequest(compare=[never(keys.meta)], success=[rpc.RequestOp(request_delete_range=span)])
    )
    if not found.kvs:
        if not create:
            raise SchemaError(f"{here} has no schema: open it once with create_schema=True")
        request = rpc.TxnRequest(compare=[is_absent(keys.meta)], success=[put(keys.meta, b"%d" % SCHEMA)])
        await line.txn(request)
        found = await line.range(rpc.RangeRequest(key=keys.meta))
    said = found.kvs[0].value.decode(errors="replace") if found.kvs else "none"
    if said != str(SCHEMA):
        raise SchemaError(f"{here} has schema {said}, this code {SCHEMA}: upgrade asyncsched")


async def _check_version(line: Line) -> None:
    try:
        status = await line.ask(lambda way: way.maintenance.Status, rpc.StatusRequest())
    except StoreUnavailable:
        raise
    except StoreError:
        return  # Who may not ask is served all the same.
    version = tuple(int(part) for part in status.version.split(".")[:2] if part.isdigit())
    if version < _OLDEST:
        raise StoreError(f"{line.name} is version {status.version}: 3.4 or later is needed")


async def erase(line: Line, keys: Keys) -> None:
    """Delete all that begins with the prefix, piece by piece, so that the server can do other things meanwhile."""
    end = end_of(keys.prefix)
    while True:
        found = await line.within_deadline(
            line.range(rpc.RangeRequest(key=keys.prefix, range_end=end, limit=2_000, keys_only=True))
        )
        if not found.kvs:
            return
        last = found.kvs[-1].key + b"\0"
        span = rpc.DeleteRangeRequest(key=keys.prefix, range_end=last)
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_delete_range=span)])
        await line.within_deadline(line.txn(request))
