"""The network addresses from which pictures may be fetched: public ones, and others only if the user allows them.

Reads: the resolver. Writes nothing. A name is resolved once and the connection goes to the address that was checked, so
that a second answer of the resolver cannot lead elsewhere. Does not promise that a public address is harmless.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from pipeline.errors import ConfigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits

# Reserved by IANA, but public according to some versions of Python's ipaddress: the old 6to4 relays, documentation (RFC 9637),
# and the blocks of protocol assignments (RFC 6890), of which no address serves pictures.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.88.99.0/24", "3fff::/20", "192.0.0.0/24", "2001::/23")))

_COMPATIBLE = ipaddress.ip_network("::/96")  # RFC 4291: IPv4-compatible, deprecated


class Refused(Exception):
    """An address is not fetched. The text is `reason: detail`, as in a row's error column."""


def is_public(address: str) -> bool:
    """Whether an IP address is public: not private, loopback, link-local, shared (100.64/10), reserved,
    multicast or unspecified, nor an IPv6 form that contains such an IPv4 address (mapped, compatible, 6to4, NAT64, Teredo)."""
    try:
        ip = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        carried = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64 or ip in _COMPATIBLE:
            carried.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(inner is not None and not is_public(str(inner)) for inner in carried):
            return False
        if ip in _NAT64 or ip.ipv4_mapped is not None:  # the IPv4 address decides
            return True
        if ip.is_site_local:
            return False
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


def networks(written: Sequence[str]) -> tuple[Network, ...]:
    """Parse the networks of --allow-private: 10.1.0.0/16, 192.168.1.7, fd00::/8. Raises ConfigError."""
    try:
        return tuple(ipaddress.ip_network(text.strip(), strict=False) for text in written)
    except ValueError as error:
        raise ConfigError(
            f"--allow-private: {error}; give networks such as 10.1.0.0/16, separated by commas"
        ) from error


def resolve_address(host: str, port: int, allowed: Sequence[Network] = ()) -> list[str]:
    """The IP addresses of a host, each once, in the resolver's order. Spellings such as 127.1 or 0x7f000001 are resolved too.

    Raises Refused: `dns`, or `private_address` if any of them is neither public nor in one of the `allowed` networks.
    """
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"dns: {host}: {error}") from error
    found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    for address in found:
        if not is_public(address) and not any(_in(address, network) for network in allowed):
            raise Refused(f"private_address: {host}" + (f" is {address}" if address != host else ""))
    return found


def _in(address: str, network: Network) -> bool:
    return ipaddress.ip_address(address.split("%", 1)[0]) in network
