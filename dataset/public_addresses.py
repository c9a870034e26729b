"""Which machines a URL out of somebody's table may lead to: public ones.

A table of URLs is somebody else's input. A request that it causes must not reach this machine,
its network or a cloud's metadata service, by whatever spelling of an address, by a redirect, or
by a name that resolves to another address the second time it is asked for (DNS rebinding). So the
check stands where a connection is made: on the very address that the socket is about to connect to.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

SCHEMES = ("http", "https")
NOT_PUBLIC = "not a public address"

# Prefixes in whose last 32 bits an IPv4 address stands: IPv4-mapped, IPv4-compatible, the
# translated form of RFC 6145, and NAT64 (RFC 6052).
_IPV4_INSIDE = [
    ip_network(text) for text in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96")
]
# All that IANA has given out of IPv6 for the public; site-local addresses, NAT64 of one's own
# network (RFC 8215) and whatever comes to be reserved lie outside.
_GLOBAL_UNICAST = ip_network("2000::/3")
# Public by Python's tables, but not by IANA's; and the address at which Azure's machines ask their
# host for metadata.
_REFUSED = [
    ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20")
]


class AddressRefused(OSError):
    """A connection to an address that is not public; nothing was sent."""


def is_public(address: str) -> bool:
    """Whether an IP address, as text, perhaps with a zone (`fe80::1%eth0`), is public.

    An IPv6 address that carries an IPv4 address (mapped, 6to4, Teredo, NAT64) is as public as that.

    Raises:
        ValueError: for anything that is no address.
    """
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner = _ipv4_inside(found)
        if inner is not None:
            return is_public(str(inner))
        if found not in _GLOBAL_UNICAST:
            return False
    # "Global" includes some multicast ranges.
    return found.is_global and not found.is_multicast and not any(found in net for net in _REFUSED)


def _ipv4_inside(address: IPv6Address) -> IPv4Address | None:
    if any(address in network for network in _IPV4_INSIDE):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    return address.teredo[1] if address.teredo is not None else None


def public_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for an entry of `getaddrinfo`; AddressRefused where its address is not public."""
    family, kind, protocol, _, address = info
    if family not in (socket.AF_INET, socket.AF_INET6) or not is_public(address[0]):
        raise AddressRefused(f"{address[0]} is {NOT_PUBLIC}")
    return socket.socket(family=family, type=kind, proto=protocol)


def url_problem(url: str) -> str | None:
    """What keeps a text from being an http(s) URL with a host, or None."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"not a URL: {error}"
    if parts.scheme.lower() not in SCHEMES:
        return f"not an http(s) URL: {url[:60]!r}"
    return None if host else f"a URL without a host: {url[:60]!r}"
