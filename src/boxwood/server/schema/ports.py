"""Ports of VMs on the wire."""

from __future__ import annotations

from boxwood.server.schema.common import Answer, Request


class PortTicketBody(Request, frozen=True, kw_only=True):
    """Nothing yet."""


class PortTicketAnswer(Answer, frozen=True, kw_only=True):
    """`url`: for a browser, good for `expires_in` seconds; what it is exchanged for is good for longer."""

    url: str
    expires_in: int
