"""Decides which IP addresses results may be downloaded from: public ones, and those a user allows."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNICAST = ipaddress.ip_network("2000::/3")

# Of RFC 6052: the last 32 bits are the address that the translator connects to. Other prefixes of NAT64 are
# chosen by networks themselves, and where the address lies in them is not known here.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_FAKE_NETWORKS = (ipaddress.ip_network("198.18.0.0/15"),)
"""What proxies such as Clash and Surge answer in the place of every real address."""

_INTERNAL_NETWORKS = (
    ipaddress.ip_network("2002::/16"),  # 6to4, which may wrap any IPv4 address
    ipaddress.ip_network("192.0.0.0/24"),  # Oracle's metadata service lies here
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's
)


class NotPublicError(OSError):
    """The address is not public, so no connection is opened to it."""

    def __init__(self, address: str) -> None:
        # The same words for every address: of several failures with one text the connector raises the first.
        super().__init__(errno.EACCES, "not a public address")
        self.address = address

    def advice(self) -> str:
        """Return what is wrong, and the way round it for whoever knows the network."""
        network = next((net for net in _FAKE_NETWORKS if _is_in(self.address, net)), self.address)
        return (
            f"{self.address} is not a public address; if it is of your network: Network(allow=['{network}'])"
        )


def _is_in(address: str, network: IPNetwork) -> bool:
    try:
        return ipaddress.ip_address(address) in network
    except ValueError:
        return False


def may_connect(address: str, *, allow_loopback: bool, allow: Iterable[IPNetwork] = ()) -> bool:
    """Return whether an IP address lies on the public internet, in *allow*, or here if that may be.

    Of IPv6 only global unicast is public, and NAT64 of a public IPv4 address: mapped and tunnelled IPv4 could
    lead anywhere.
    """
    try:
        host = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inside = _behind_nat64(host)
    if any(host in network or inside in network for network in allow):
        return True
    return allow_loopback if host.is_loopback else _is_public(inside)


def _behind_nat64(host: IPAddress) -> IPAddress:
    """Return the address that a host stands for where addresses are translated, else the host itself."""
    return ipaddress.IPv4Address(int(host) & 0xFFFFFFFF) if host in _NAT64 else host


def _is_public(host: IPAddress) -> bool:
    if host.version == 6 and host not in _UNICAST:
        return False
    return host.is_global and not host.is_multicast and not any(host in net for net in _INTERNAL_NETWORKS)
