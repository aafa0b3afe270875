"""Rules beside a table's own where the way out is another program's: without root, behind pasta.

A table judges where packets go. Behind it, as root, the kernel sends them there; pasta reads them, and opens sockets of
the host for what it has understood. So nothing may reach pasta that it could understand in another way, and what would
be the host itself is refused here, for no rule of the host's input is passed any more:

* the host's own addresses, public ones too, as the porter tells them (porter.py), whatever the operator allows;
* pieces of packets: pasta may take the beginning of a piece for the head of another packet, to another port;
* datagrams leave from high ports alone, since pasta takes the same port of the host for them, with SO_REUSEADDR: a box
  could else take those of the host's services;
* nothing that pasta brings is for this network itself: the router's own sockets are the host's.
"""

from __future__ import annotations

from collections.abc import Sequence

UPLINK, ADDRESS, GATEWAY, PREFIX = "uplink0", "198.19.255.2", "198.19.255.1", 30  # of pasta, as this network sees it
MTU = 65520  # pasta ends connections: how small packets are on the way is the host's business
PORTS = "61000-65535"  # above those that Linux gives to who asks for any
PATH = "/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin"  # where pasta is looked for


def rules(table: str, boxes: int, resolver: int, own: Sequence[str]) -> str:
    """For nft, behind the script of a table of this name. `boxes`, `resolver`: groups of interfaces; `own`: addresses
    and networks of the host."""
    return f"""
table inet {table} {{
    set own {{ type ipv4_addr; flags interval; auto-merge; }}
    chain pieces {{ type filter hook prerouting priority -450; policy accept; }}
    chain host {{ type filter hook forward priority filter - 1; policy accept; }}
    chain uplink {{ type filter hook input priority filter - 1; policy accept; }}
    chain ports {{ type nat hook postrouting priority srcnat - 1; policy accept; }}
}}
flush chain inet {table} pieces
flush chain inet {table} host
flush chain inet {table} uplink
flush chain inet {table} ports
table inet {table} {{
    chain pieces {{
        ip frag-off & 0x3fff != 0 drop
    }}
    chain host {{
        iifgroup {{ {boxes}, {resolver} }} ip daddr @own goto denied
    }}
    chain uplink {{
        iifname "{UPLINK}" drop
    }}
    chain ports {{
        oifname "{UPLINK}" meta l4proto udp masquerade to :{PORTS}
    }}
}}
{closing(table, own)}"""


def closing(table: str, own: Sequence[str]) -> str:
    """Close these from now on, and no others."""
    elements = f"add element inet {table} own {{ {', '.join(own)} }}\n" if own else ""
    return f"flush set inet {table} own\n{elements}"
