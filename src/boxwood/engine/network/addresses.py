"""Which addresses the internet has, and which are somebody's own: the one list that packets and names are judged by.

Sources: the IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890 and what followed), and what clouds
answer to on addresses that look public.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PRIVATE_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network: Linux takes 0.0.0.0 for loopback
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host, on an address that looks public
        "169.254.0.0/16",  # link-local; everybody's metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks; boxes themselves
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the limited broadcast
    )
)
PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")  # all that has been given out so far
PRIVATE_V6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them: an IPv4 address is hidden in it
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address is hidden in it
        "3fff::/20",
    )
)


def is_public(address: Address) -> bool:
    """Is it one of the internet's, whatever it may carry inside? IPv4 that is mapped, translated (NAT64) or tunnelled
    in IPv6 is not: whoever means IPv4 can say so."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in PRIVATE_V4)
    return address in PUBLIC_V6 and not any(address in network for network in PRIVATE_V6)
