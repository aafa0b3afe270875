"""The tests' own internet: that it counts visits rightly is what tests of policies stand on."""

from __future__ import annotations

import socket

import pytest

import internet
from internet import PUBLIC, Internet

HOST = "192.0.2.129"


def visit(port: int, to: int) -> socket.socket:
    """As a box comes, whose connections have the host's address: nobody listens at this port of the host then, so the
    host may use it too."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    sock.connect((PUBLIC, to))
    return sock


def test_a_visit_that_comes_from_the_port_of_the_mark_is_a_visit(
    world: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for the mark it would end the list, and what came behind it, allowed as it was, would be in the next one:
    18 of 20 visits, if it is the second."""
    world.seen()
    ports = []
    for _ in range(20):
        with visit(0, 80) as sock:
            ports.append(sock.getsockname()[1])
    with monkeypatch.context() as patch:
        patch.setattr(internet.socket, "create_connection", lambda place: visit(ports[1], place[1]))
        before = [(one["peer"][1], one["port"]) for one in world.seen()]
    assert before == [(port, 80) for port in ports]
    assert world.seen() == []
