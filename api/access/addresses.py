"""The client's address behind proxies, and what a limit or a log uses of it. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAX_HOPS: Final = 20


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """The networks of a setting; ValueError for one that is none."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def parse_address(text: str) -> Address | None:
    """The address, without port and brackets, IPv4 also when mapped into IPv6; None when it is none."""
    value = text.strip()
    if value.startswith("["):
        value = value[1:].partition("]")[0]
    elif value.count(":") == 1:
        value = value.partition(":")[0]
    try:
        found = ipaddress.ip_address(value.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def client_address(peer: str | None, forwarded_for: str, trusted: Sequence[Network]) -> str:
    """Who asks: the peer, or behind trusted proxies the last address of X-Forwarded-For that is not one of them.

    What stands to the left of that address was written by the client and is not believed. `local` without a peer
    (a Unix socket or an in-process call).
    """
    current = parse_address(peer) if peer else None
    if current is None:
        return peer or "local"
    hops = [hop for hop in forwarded_for.split(",") if hop.strip()][-_MAX_HOPS:]
    while hops and any(current in network for network in trusted):
        hop = parse_address(hops.pop())
        if hop is None:
            break
        current = hop
    return str(current)


def limit_key(address: str) -> str:
    """What a limit counts against: an IPv4 address, or the /64 of an IPv6 one, since a client owns all of that."""
    found = parse_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address


def coarse(address: str) -> str:
    """The address cut to /24 or /48, for logs."""
    found = parse_address(address)
    if found is None:
        return address
    return str(ipaddress.ip_network((found, 24 if found.version == 4 else 48), strict=False))
