"""The network of VMs on the wire: what forks ask for, in the words of every generation, and what is answered."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from boxwood.core import clock, model
from boxwood.core.errors import Unsupported
from boxwood.core.sshkeys import SshKey
from boxwood.core.words import refuse
from boxwood.engine import api
from boxwood.server.schema.common import UNSET, Answer, UnsetType, asks

Mode = Literal["internet", "none"]
_WORDS = {"type": "string", "enum": ["internet", "none"]}
_OBJECT = {"type": "object", "properties": {"mode": _WORDS}, "additionalProperties": False}

Asked = Annotated[
    Any,
    Meta(
        description="Absent: as the source, else as the server is set. Old clients say true (internet), false (none).",
        extra_json_schema={"anyOf": [_WORDS, _OBJECT, {"type": "boolean"}, {"type": "null"}]},
    ),
]
Egress = Annotated[
    Any,
    Meta(
        description="Of old clients: true for internet, false for none; goes before a boolean network.",
        extra_json_schema={"deprecated": True},
    ),
]
SshKeys = Annotated[
    Any,
    Meta(
        description="Who may log in over SSH: keys by ids, merged (null takes one away), or a list, which replaces.",
        extra_json_schema={
            "anyOf": [{"type": "object"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]
        },
    ),
]
Changed = Annotated[
    Any,
    Meta(description="A VM keeps the network that it was made with: refused if it asks for anything. Fork the VM."),
]


class SshPublicKey(Answer, frozen=True, kw_only=True):
    id: str
    public_key: str
    fingerprint: str
    name: str | UnsetType = UNSET
    expires_at: datetime | UnsetType = UNSET


class Network(Answer, frozen=True, kw_only=True):
    """`address`: while the VM has a box that is on the network. `ssh_public_keys`: who may log in, if anybody may."""

    mode: Mode
    address: str | UnsetType = UNSET
    ssh_public_keys: list[SshPublicKey] | UnsetType = UNSET


class Denial(Answer, frozen=True, kw_only=True):
    at: datetime
    protocol: Annotated[str, Meta(description="tcp, udp, icmp, dns or a number.")]
    address: Annotated[str, Meta(description="Where to; empty where a name was asked for.")]
    port: int
    name: Annotated[str, Meta(description="What was asked for, or what the address had been given out for.")]
    reason: Annotated[str, Meta(description="private, name, policy or flood; of `http`: the rule that refused it.")]


class NetworkAnswer(Answer, frozen=True, kw_only=True):
    """Over all boxes that the VM has had, the present one included."""

    mode: Mode
    address: Annotated[str | None, Meta(description="null while the VM is parked, or if it is on no network.")]
    sent_bytes: int
    received_bytes: int
    connections: int
    denied: int
    denials: Annotated[list[Denial], Meta(description="The latest, at most 50, the newest last.")]


def asked(network: Any, egress: Any, *, old: bool) -> str | None:
    """The mode that a fork asks for; None: none. BadRequest.

    `old`: a client that may be of releases 0.5 to 0.8.3. Objects of theirs say who may come in: nobody may, here. In
    0.6 to 0.8.3 that is also what a boolean `network` says; who may go out is in `egress`.
    """
    if isinstance(network, dict) and not (old and "mode" not in network):
        for name in network.keys() - {"mode"}:
            raise refuse(f"network.{name}", "there is no such member")
        if network.get("mode") is not None:
            return _mode("network.mode", network["mode"])
    elif network is not None and not isinstance(network, bool | dict):
        return _mode("network", network)
    return of_booleans(egress, network)


def of_booleans(*said: Any) -> str | None:
    """The mode that the first boolean among them stands for."""
    for word in said:
        if isinstance(word, bool):
            return "internet" if word else "none"
    return None


def _mode(field: str, value: Any) -> str:
    if value not in ("internet", "none"):
        raise refuse(field, "must be internet or none")
    return str(value)


def refuse_change(network: Any, *, old: bool) -> None:
    """Of a VM that is there. Unsupported. `old`: as for `asked`."""
    members = network if isinstance(network, dict) else {"reachable" if old else "mode": network}
    if members.get("mode") is not None:
        raise Unsupported("network.mode: a VM keeps the network that it was made with; fork it with another one")
    if asks(members):
        raise Unsupported("network: who may reach a VM from outside is said by its policies", "public_ingress")


def network(of: model.VM) -> Network:
    return Network(
        mode=of.network,  # type: ignore[arg-type]  # the core's modes are those of the wire
        address=of.address if of.address is not None else UNSET,
        ssh_public_keys=[_ssh_key(ident, key) for ident, key in of.ssh_keys.items()] or UNSET,
    )


def _ssh_key(ident: str, of: SshKey) -> SshPublicKey:
    return SshPublicKey(
        id=ident,
        public_key=of.public_key,
        fingerprint=of.fingerprint,
        name=UNSET if of.name is None else of.name,
        expires_at=UNSET if of.expires_at is None else clock.shown(of.expires_at),
    )


def answer(of: model.Network) -> NetworkAnswer:
    usage = of.usage
    return NetworkAnswer(
        mode=of.mode,  # type: ignore[arg-type]
        address=of.address,
        sent_bytes=usage.sent,
        received_bytes=usage.received,
        connections=usage.connections,
        denied=usage.denied,
        denials=[_denial(one) for one in usage.denials],
    )


def _denial(of: api.Denial) -> Denial:
    return Denial(
        at=datetime.fromtimestamp(of.at, UTC),
        protocol=of.protocol,
        address=of.address,
        port=of.port,
        name=of.name,
        reason=of.reason,
    )
