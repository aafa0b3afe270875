"""Sockets that are made in the network of a box, by a child of the zygote, and handed to the server.

The server connects them itself, to the loopback in there: what lives in the box has no part in it, and a socket of a
box's network cannot be led anywhere else. Nothing but descriptors goes back.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import NoReturn

from boxwood.engine import kernel as k

FAMILIES = (socket.AF_INET, socket.AF_INET6)
MOST = 32  # of each family at once


def hand_out(entry: int, to: int, counts: list[int]) -> NoReturn:
    """The child's side: as many TCP sockets of each of FAMILIES as `counts` says, over the socket `to`. `entry`: what
    the box's network is entered by. An error is told as text."""
    try:
        answer = socket.socket(fileno=to)
        try:
            k.setns(entry, k.NEWNET)
            asked = zip(FAMILIES, counts, strict=True)
            made = [fd for family, count in asked for fd in _make(family, min(count, MOST))]
            answer.sendmsg([b"s"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", made))])
        except (OSError, ValueError) as error:
            answer.send(f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def _make(family: int, count: int) -> list[int]:
    """None where the host has no such family."""
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        return [socket.socket(family, kind).detach() for _ in range(count)]
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return []
        raise
