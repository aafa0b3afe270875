"""The firewall of a router: one nftables table, whose rules name no box but those that have policies (ruleset.py).

They know boxes by the group of their interfaces, so a fork changes nothing here. A packet is let out if it comes from
the address that is routed to its interface, and goes to the internet or to where the operator allows; names are asked
for at our resolver, whatever server a box wants to ask; nothing comes in but answers. The host itself, other boxes and
every private network are refused, at once and with a word, so that nobody waits for a timeout. What cannot be counted,
for want of memory, goes nowhere: who has not been counted has left nothing with the host (departures.py).

The table stays when its router dies: without it a box could reach the host. It is replaced by the next one, and removed
when the last interface is gone. If somebody else removes it (`nft flush ruleset` does), the router puts it up again at
once, and ends what was opened meanwhile to where nobody may go.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from boxwood.engine.network import behind, ruleset
from boxwood.engine.network.addresses import PRIVATE_V4
from boxwood.engine.network.exceptions import METADATA
from boxwood.engine.network.wire import BOXES, POOL, PROXY_PORT, group_of, resolver_of

QUESTIONS = 400  # of a box in a second: more would crowd out others' before the resolver sees them
MOST_CONNECTIONS = 4096  # of a box at once: the host's table of connections is for all
_NFT_SECONDS = 30
_CHAINS = (
    "arriving", "counted", "names", "through", "here", "leaving", "out", "allowed", "new", "opened", "barred", "flood",
    "denied", "refuse", "diverting", "excepted", "divert", "proxied", "permitted",
)  # fmt: skip
_COUNTERS = {"sent": "bytes", "received": "bytes", "opened": "packets", "refused": "packets"}  # sets, and what counts


class NftError(RuntimeError):
    """nft is not there, or refused; the text says what it said."""


def nft(script: str) -> None:
    """Run a script of nft's, as one transaction. NftError."""
    _run(("-f", "-"), script)


def listed(*what: str, terse: bool = False) -> list[dict[str, Any]]:
    """What `nft list` tells; `terse`: not what is in sets. NftError."""
    options = ("-j", "-t") if terse else ("-j",)
    found: list[dict[str, Any]] = json.loads(_run((*options, "list", *what)))["nftables"]
    return found


def _run(arguments: tuple[str, ...], script: str = "") -> str:
    try:
        done = subprocess.run(
            ["nft", *arguments], input=script, capture_output=True, text=True, timeout=_NFT_SECONDS,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError:
        raise NftError("nft is not installed (the package nftables)") from None
    except subprocess.TimeoutExpired:
        raise NftError(f"nft did not answer within {_NFT_SECONDS} s") from None
    except OSError as error:  # the host is short of processes, memory or descriptors
        raise NftError(f"nft could not be run: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"it ended with {done.returncode}"]
        raise NftError(f"nft: {said[0][:500]}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Count:
    """Of one box: bytes of packets, connections, and attempts that were refused."""

    sent: int = 0
    received: int = 0
    opened: int = 0
    refused: int = 0


class Table:
    """`router`: its number, unique on this host. `own`: the addresses and networks of the host, where the way out is
    pasta (behind.py); None where it is the kernel, which knows them."""

    def __init__(self, router: int, own: Sequence[str] | None = None) -> None:
        self.name = f"boxwood_{router}"
        self.log_group = 0xB000 + router
        self.proxy = f"{resolver_of(router)}:{PROXY_PORT}"
        self.crowded = False  # with policies, so that to list all of it takes long
        self._router = router
        self._own = own

    def put_up(self, guarded: Sequence[str] = (), more: str = "", *, anew: bool = False) -> None:
        """Make it, or replace the rules of the one that is there; what it has counted stays, and so do policies.
        `guarded`: interfaces from which nothing is forwarded but what somebody's rules have translated; `more`: what
        else is done in the same transaction; `anew`: nothing stays. NftError."""
        removal = self._removal() if anew else ""
        nft(removal + self._script(guarded) + self._behind() + more)

    def handle(self) -> int:
        """The kernel's number of the one that is there, which no other one of its name had or will have; 0: none is.
        NftError."""
        tables = (item.get("table", {}) for item in listed("tables", "inet"))
        return next((int(table["handle"]) for table in tables if table.get("name") == self.name), 0)

    def _behind(self) -> str:
        group = group_of(self._router)
        return "" if self._own is None else behind.rules(self.name, group, group + 1, self._own)

    def close(self, own: Sequence[str]) -> None:
        """These are the host's own from now on, where the way out is pasta. NftError."""
        self._own = own
        nft(behind.closing(self.name, own))

    def change(self, script: str) -> None:
        """NftError."""
        nft(script)

    def policed(self) -> dict[str, list[str]]:
        """The addresses of boxes that have policies, each with its sets. NftError."""
        sets, chains = self._named("sets"), self._named("chains")
        found = [address for chain in chains if (address := ruleset.address_of(chain))]
        return {address: [one for one in sets if one.startswith(ruleset.set_prefix(address))] for address in found}

    def _named(self, kind: str) -> list[str]:
        """Names of the table's own: its rules and what is in its sets would be long to hear."""
        found = (item.get(kind[:-1]) for item in listed(kind, "inet", terse=True))
        return [one["name"] for one in found if one is not None and one["table"] == self.name]

    def allow(self, exceptions: Iterable[tuple[str, int, int]]) -> None:
        """Let boxes reach these private places from now on: (address or CIDR, first port, last port). NftError."""
        lines = [f"flush chain inet {self.name} {chain}" for chain in ("allowed", "excepted", "permitted")]
        for place, first, last in exceptions:  # rules, not a set: entries may overlap
            where = f"ip daddr {place} th dport {first}-{last}"
            lines.append(f"add rule inet {self.name} allowed {where} goto new")
            lines.append(f"add rule inet {self.name} excepted {where} goto divert")
            lines.append(f"add rule inet {self.name} permitted {where} accept")
        nft("\n".join(lines) + "\n")

    def counted(self) -> dict[str, Count]:
        """By the addresses of boxes. NftError."""
        found: dict[str, dict[str, int]] = {}
        for item in self._counters():
            if (unit := _COUNTERS.get(item.get("set", {}).get("name", ""))) is not None:
                for element in item["set"].get("elem", ()):
                    inner = element["elem"]
                    found.setdefault(inner["val"], {})[item["set"]["name"]] = inner["counter"][unit]
        return {address: Count(**counts) for address, counts in found.items()}

    def _counters(self) -> list[dict[str, Any]]:
        """In one go where that is quick."""
        if not self.crowded:
            return listed("table", "inet", self.name)
        return [item for name in _COUNTERS for item in listed("set", "inet", self.name, name)]

    def forget(self, addresses: Iterable[str]) -> None:
        """All that is known of these. NftError."""
        gone = ", ".join(sorted(set(addresses)))
        if gone:  # nft refuses to delete what is not there
            names = (*_COUNTERS, "complaints", "asking", "busy")
            changes = [
                f"{change} element inet {self.name} {n} {{ {gone} }}" for n in names for change in ("add", "delete")
            ]
            nft("\n".join(changes) + "\n")

    def remove(self) -> None:
        nft(self._removal())

    def _removal(self) -> str:
        return f"add table inet {self.name}\ndelete table inet {self.name}\n"

    def _script(self, guarded: Sequence[str]) -> str:
        boxes, resolver = group_of(self._router), group_of(self._router) + 1
        closed = ", ".join(str(place.network_address) for place in METADATA if place.version == 4)
        private = ", ".join(map(str, PRIVATE_V4))
        names = ", ".join(f'"{name}"' for name in guarded)
        guard = f"iifname {{ {names} }} ct state new ct status ! dnat drop" if guarded else ""
        limit = f"limit rate over {QUESTIONS}/second burst {QUESTIONS} packets"
        flushed = "\n".join(f"flush chain inet {self.name} {chain}" for chain in _CHAINS)
        log = f"log group {self.log_group} snaplen 64 queue-threshold 1"
        return f"""
table inet {self.name} {{
    set closed {{ type ipv4_addr; elements = {{ {closed} }}; }}
    set private {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {private} }}; }}
    set ported {{ type inet_proto; elements = {{ tcp, udp }}; }}
    set asking {{ type ipv4_addr; size 65536; flags dynamic; }}
    set sent {{ type ipv4_addr; size 65536; flags dynamic; counter; }}
    set received {{ type ipv4_addr; size 65536; flags dynamic; counter; }}
    set opened {{ type ipv4_addr; size 65536; flags dynamic; counter; }}
    set refused {{ type ipv4_addr; size 65536; flags dynamic; counter; }}
    set complaints {{ type ipv4_addr; size 65536; flags dynamic; }}
    set busy {{ type ipv4_addr; size 65536; flags dynamic; }}
    chain arriving {{ type filter hook prerouting priority raw; policy accept; }}
    chain counted {{ }}
    chain names {{ type nat hook prerouting priority dstnat - 1; policy accept; }}
    chain through {{ type filter hook forward priority filter; policy accept; }}
    chain here {{ type filter hook input priority filter; policy accept; }}
    chain leaving {{ type nat hook postrouting priority srcnat; policy accept; }}
    chain out {{ }}
    chain allowed {{ }}
    map policies {{ type ipv4_addr : verdict; }}
    map diverted {{ type ipv4_addr : verdict; }}
    chain diverting {{ }}
    chain excepted {{ }}
    chain divert {{ }}
    chain proxied {{ }}
    chain permitted {{ }}
    chain new {{ }}
    chain opened {{ }}
    chain barred {{ }}
    chain flood {{ }}
    chain denied {{ }}
    chain refuse {{ }}
}}
{flushed}
table inet {self.name} {{
    chain arriving {{
        iifgroup {boxes} meta nfproto ipv6 drop
        iifgroup {boxes} ip hdrlength > 5 drop
        iifgroup {boxes} fib saddr . iif oif 0 drop
        iifgroup {boxes} update @sent {{ ip saddr }} goto counted
        iifgroup {boxes} drop
    }}
    chain counted {{
        udp dport 53 update @asking {{ ip saddr {limit} }} drop
    }}
    chain names {{
        iifgroup {boxes} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {resolver_of(self._router)}:53
        iifgroup {boxes} meta l4proto tcp goto diverting
    }}
    chain diverting {{
        ip daddr @closed return
        jump excepted
        ip daddr @private return
        goto divert
    }}
    chain divert {{
        ip saddr vmap @diverted
    }}
    chain through {{
        oifgroup {boxes} update @received {{ ip daddr }}
        iifgroup {boxes} goto out
        iifgroup {resolver} oifgroup {boxes} ct state established accept
        iifgroup {resolver} ip saddr {resolver_of(self._router)} meta l4proto tcp goto proxied
        iifgroup {resolver} drop
        ip daddr {POOL} oifname != "bw*" drop
        oifgroup {{ {boxes}, {resolver} }} ct state established accept
        oifgroup {{ {boxes}, {resolver} }} ct state related meta l4proto icmp accept
        oifgroup {{ {boxes}, {resolver} }} drop
        {guard}
    }}
    chain here {{
        iifgroup {boxes} goto denied
        iifgroup {resolver} drop
    }}
    chain out {{
        ct state invalid drop
        tcp flags syn tcp option maxseg size set rt mtu
        ct state established accept
        ct state related meta l4proto icmp accept
        oifgroup {boxes} goto denied
        add @busy {{ ip saddr ct count over {MOST_CONNECTIONS} }} goto flood
        oifgroup {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept
        oifgroup {resolver} tcp dport {PROXY_PORT} ct status dnat goto opened
        ip daddr @closed goto denied
        meta l4proto {{ tcp, udp }} jump allowed
        ip daddr @private goto denied
        meta l4proto {{ tcp, udp, icmp }} goto new
        goto denied
    }}
    chain proxied {{
        ct state established accept
        oifgroup {{ {boxes}, {resolver} }} drop
        ip daddr @closed reject with tcp reset
        jump permitted
        ip daddr @private reject with tcp reset
        accept
    }}
    chain new {{
        ip saddr vmap @policies
        goto opened
    }}
    chain opened {{
        update @opened {{ ip saddr }} accept
    }}
    chain barred {{
        update @complaints {{ ip saddr limit rate 10/second burst 20 packets }} {log} prefix "policy"
        goto refuse
    }}
    chain flood {{
        update @complaints {{ ip saddr limit rate 10/second burst 20 packets }} {log} prefix "flood"
        goto refuse
    }}
    chain denied {{
        update @complaints {{ ip saddr limit rate 10/second burst 20 packets }} {log} prefix "private"
        goto refuse
    }}
    chain refuse {{
        update @refused {{ ip saddr }}
        meta l4proto tcp reject with tcp reset
        limit rate 1000/second burst 1000 packets reject with icmp admin-prohibited
        drop
    }}
    chain leaving {{
        ip saddr {{ {BOXES}, {resolver_of(self._router)} }} oifname != "bw*" masquerade
    }}
}}
"""  # noqa: S608 (rules, not SQL: of numbers and addresses of our own)


def tables() -> list[int]:
    """The numbers of the routers whose tables there are. NftError."""
    names = [item["table"]["name"] for item in listed("tables", "inet") if "table" in item]
    return [int(name[8:]) for name in names if name.startswith("boxwood_") and name[8:].isdigit()]
