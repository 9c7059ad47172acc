"""The Lua scripts: each is the shared parts that it needs, and then itself."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

__all__ = [
    "ACQUIRE",
    "ADD",
    "ARRIVE",
    "CLAIM",
    "EXTEND",
    "FORGET",
    "FORGET_ARRIVED",
    "GET",
    "OPEN",
    "PAGE",
    "PRUNE",
    "RAISE",
    "RELEASE",
    "REMOVE",
    "RENEW",
    "RUNS",
    "SETTLE",
    "UNPARK",
    "UPDATE",
    "Script",
]


class Script(NamedTuple):
    name: str
    text: bytes
    #: What the server knows it by, once it has seen the text.
    digest: str


def _script(name: str, *parts: str) -> Script:
    folder = files("asyncsched.stores.redis").joinpath("lua")
    sources = (folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in ("base", *parts, name))
    text = "\n".join(sources).encode()
    return Script(name, text, sha1(text, usedforsecurity=False).hexdigest())


OPEN = _script("open")
ADD = _script("add", "records")
ARRIVE = _script("arrive", "records")
FORGET_ARRIVED = _script("forget_arrived")
RAISE = _script("raise")
GET = _script("get", "records")
PAGE = _script("page", "records")
UPDATE = _script("update", "records")
REMOVE = _script("remove", "records")
CLAIM = _script("claim", "records")
RENEW = _script("renew", "records")
SETTLE = _script("settle", "records", "parked", "log")
UNPARK = _script("unpark", "records", "parked")
RUNS = _script("runs", "log")
PRUNE = _script("prune", "log")
ACQUIRE = _script("acquire", "leases")
EXTEND = _script("extend", "leases")
RELEASE = _script("release", "leases")
FORGET = _script("forget", "leases")
