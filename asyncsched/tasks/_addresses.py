"""Which addresses a request may be sent to, and connections to those alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import cast

import httpcore

from asyncsched import DefinitionError, RequestFailed, RequestRefused

__all__ = ["Guard", "Network", "is_permitted", "networks_of"]

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

#: RFC 6052: an IPv4 address in its last 32 bits. (The one of RFC 8215, for local use, counts as reserved.)
_NAT64 = IPv6Network("64:ff9b::/96")
#: Addresses of a name that are tried.
_MAX_TRIED = 8


def networks_of(given: Collection[str]) -> tuple[Network, ...]:
    """Raises DefinitionError for what is neither a network nor an address."""
    if isinstance(given, str):
        raise DefinitionError(f"allow_networks takes a list of networks, not the string {given!r}")
    try:
        return tuple(ip_network(text) for text in given)
    except ValueError as error:
        raise DefinitionError(f"allow_networks: {error}") from error


def is_permitted(address: Address, networks: Iterable[Network]) -> bool:
    """Whether it is in one of *networks*, or of the public Internet; of one that stands for an IPv4 address, that counts."""
    if any(address in network for network in networks):
        return True
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_permitted(inner, networks)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


class Guard(httpcore.AsyncNetworkBackend):
    """Resolves a name once, and connects to one of the addresses that it was given and that are permitted."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        # It is a stub where anyio is missing, which is not here.
        self._backend = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolved(host, port)
        permitted = [address for address in addresses if is_permitted(ip_address(address), self._networks)]
        if not permitted:
            raise RequestRefused(
                f"{host} is at {', '.join(addresses[:3])}, which is not of the public Internet: if it may be reached, say so "
                f"with allow_networks="
            )
        failure: Exception | None = None
        for address in permitted[:_MAX_TRIED]:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise RequestRefused("a request goes to no socket of this host")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


async def _resolved(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestFailed(f"the address of {host} cannot be found: {error}") from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
