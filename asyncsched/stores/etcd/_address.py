"""Where etcd is: URLs, endpoints, TLS; and what the store keeps there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from asyncsched.address import flag, without_password
from asyncsched.errors import DefinitionError

__all__ = ["FORM", "KEYS", "KEYWORDS", "Address", "credentials", "endpoint", "refuse"]

_PORT = 2379
FORM = "write etcd://host:2379, etcd://host:2379,host2:2379/prefix, or etcd://user:password@host:2379"

KEYWORDS: Mapping[str, Callable[[str], object]] = {
    "namespace": str,
    "key_prefix": str,
    "create_schema": flag,
    "timeout": float,
    "dial_timeout": float,
    "username": str,
    "password": str,
    "tls": flag,
    "ca": str,
    "cert": str,
    "key": str,
}

KEYS = """\
# etcd needs no schema. The store keeps these keys (ID: of a job; LANE: queue/9 less the priority):
# {prefix}meta  the schema's number
# {prefix}fence  above which all fences are: the highest that came with a record from another store
# {prefix}job/ID  a record: who holds it, and all else of it that is not large; body/ID and cursor/ID where these are
# {prefix}due/LANE/TIME1ID  where a record that nobody holds stands in line
# {prefix}due/LANE/TIME0NAME  where the end of leases stands in line, of all that were claimed or renewed together
# {prefix}never/ID  a record that does not wake by itself
# {prefix}hold/HOLD/TIME/ID  where a record stands in line that is held back
# {prefix}lane/LANE  before which place in line there is nothing
# {prefix}claim/TOKEN/NAME  what a claim took; deleted by the server some time after the leases' end
# {prefix}lock/KEY  a named lease; deleted by the server some time after its end
# {prefix}run/JOB... and {prefix}log/TIME...  the log, by job and by time
# {prefix}signal/hint  what was written last that may be due sooner
# {prefix}signal/clock, clock-ask, clock-told  what the instances tell each other of the time
# A user needs readwrite on all that begins with {prefix}
"""


class Address(NamedTuple):
    """What a URL says."""

    endpoints: tuple[str, ...] = ()
    prefix: str = ""
    username: str | None = None
    password: str | None = None

    @classmethod
    def of(cls, url: str | None) -> Address:
        if url is None:
            return cls()
        parts, shown = urlsplit(url), without_password(url)
        refuse(parts.scheme != "etcd" or not parts.netloc, f"{shown!r} is no etcd URL: {FORM}")
        refuse(
            bool(parts.query or parts.fragment),
            f"{shown!r} has keywords: give them as arguments, or use from_url",
        )
        login, at, hosts = parts.netloc.rpartition("@")
        username, colon, password = login.partition(":")
        refuse(bool(at) and not colon, f"{shown!r} names a user without a password: {FORM}")
        return cls(
            tuple(endpoint(host) for host in hosts.split(",")),
            unquote(parts.path),
            unquote(username) if at else None,
            unquote(password) if at else None,
        )


def endpoint(text: str) -> str:
    """``host:port``, whose port may be left out; an IPv6 address stands in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(_PORT)
    is_good = (
        bool(host) and port.isdecimal() and "/" not in text and (":" not in host or host.startswith("["))
    )
    refuse(not is_good, f"{text!r} is no endpoint: write host:{_PORT}")
    return f"{host}:{port}"


def credentials(tls: bool | Mapping[str, str | bytes] | None) -> Any:
    """What gRPC wants for TLS; None without."""
    if not tls:
        return None
    import grpc

    given = {} if tls is True else dict(tls)
    unknown = given.keys() - {"ca", "cert", "key"}
    refuse(bool(unknown), f"tls= has ca, cert and key, and not {', '.join(sorted(unknown))}")
    refuse(("cert" in given) != ("key" in given), "tls= needs cert and key together")
    ca, cert, key = (_bytes_of(name, given.get(name)) for name in ("ca", "cert", "key"))
    return grpc.ssl_channel_credentials(ca, key, cert)


def _bytes_of(name: str, given: str | bytes | None) -> bytes | None:
    if given is None or isinstance(given, bytes):
        return given
    try:
        return Path(given).read_bytes()
    except OSError as error:
        raise DefinitionError(f"{name} of tls cannot be read from {given!r}: {error}") from error


def refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise DefinitionError(message)
