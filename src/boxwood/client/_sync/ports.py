# Made from ../_async/ports.py by tools/unasync.py: change that one.
"""The ports of a VM: brought to this machine, or looked at by URL."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from boxwood.client import calls
from boxwood.client._sync.forward import Forward
from boxwood.client._sync.transport import Transport
from boxwood.client.errors import BadRequest, BoxwoodError, Unsupported
from boxwood.client.fields import VMFields, port_url
from boxwood.client.models import Anything, VMRecord


class _Ticket(msgspec.Struct, frozen=True):
    url: str


class Ports(VMFields):
    """What can be done with what listens in a VM."""

    _transport: Transport

    def forward(
        self,
        port: int,
        local_port: int = 0,
        *,
        address: str = "127.0.0.1",
        on_error: Callable[[BoxwoodError], object] | None = None,
    ) -> Forward:
        """Brings a port of the VM to this machine: TCP, any number of connections, until it is closed.

        :param port: where something listens in the VM, on its loopback or on all addresses.
        :param local_port: 0: any that is free; `port` of what is returned says which.
        :param address: of this machine, to listen on.
        :param on_error: called with why a connection could not be made.
        :raises NotFound: there is no such VM. :raises ConnectionFailed: the local port is taken.
        """
        path = calls.vm_path(self.id, "ports", str(_checked(port)), "forward")
        self._transport.call(calls.get(calls.vm_path(self.id)), Anything)
        target = self._transport.socket_target(path)
        return Forward.open(target, port, address, local_port, on_error)

    def url(self, port: int, *, ticket: bool = False) -> str:
        """Where what listens on a port of the VM is reached over HTTP. The key must be sent (as `X-Boxwood-Key`),
        unless a rule of the VM's policies opens the port.

        :param ticket: a URL that lets a browser in, for a minute, instead.
        :raises Unsupported: the server shows no ports.
        """
        if ticket:
            call = calls.Call("POST", calls.vm_path(self.id, "ports", str(_checked(port)), "ticket"), {})
            return (self._transport.call(call, _Ticket)).url
        record = self._transport.call(calls.get(calls.vm_path(self.id)), VMRecord)
        if record.hostname is None:
            raise Unsupported("unsupported_operation", "this server shows no ports of VMs over HTTP")
        return port_url(self._transport.url, record.hostname, _checked(port))


def _checked(port: int) -> int:
    if not 1 <= port <= 65535:
        raise BadRequest("bad_request", f"port: a number from 1 to 65535, not {port}")
    return port
