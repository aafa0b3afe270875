"""The proxy's process: forked by its keeper (keeper.py), confined, and then at work until the router is gone."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket

from boxwood.engine import kernel as k
from boxwood.engine import landlock
from boxwood.engine.proxy.authority import Mint, make
from boxwood.engine.proxy.control import LINE, Control
from boxwood.engine.proxy.guests import Guests
from boxwood.engine.proxy.origins import Router
from boxwood.engine.proxy.standing import Standings
from boxwood.engine.proxy.upstream import Trust

_OPEN_FILES = 1 << 15
_MEMORY = 2 << 30  # bytes of address space


def run(ident: int, guests: socket.socket, server: socket.socket, router: socket.socket) -> None:
    """As the user with this id, who owns nothing. `guests`: where boxes' connections come in; `server`: where the
    server does; `router`: to the router."""
    os.environ.clear()
    Mint(*make()).context("warm.test", http2=True)  # all that is loaded late is loaded while files can be read
    trust = Trust()
    asyncio.run(_serve(ident, trust, guests, server, router))


def _confine(ident: int) -> None:
    for kind, most in ((resource.RLIMIT_NOFILE, _OPEN_FILES), (resource.RLIMIT_AS, _MEMORY)):
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    k.limit_bounding_set(0, k.last_capability())
    os.setgroups([])
    os.setresgid(ident, ident, ident)
    os.setresuid(ident, ident, ident)
    k.set_capabilities(0)
    k.no_new_privileges()
    k.set_dumpable(0)
    landlock.confine({}, reading=())


async def _serve(ident: int, trust: Trust, listener: socket.socket, server: socket.socket, sock: socket.socket) -> None:
    standings = Standings()
    router = Router(sock, lambda boxes: guests.gone(boxes))
    guests = Guests(standings, router, trust)
    control = Control(standings, guests, router)
    _confine(ident)
    gc.freeze()
    for one in (listener, server, sock):
        one.setblocking(False)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what it tells of broken connections is boxes' to provoke
    serving = await asyncio.start_unix_server(control.serve, sock=server, limit=LINE)
    work = asyncio.ensure_future(guests.serve(listener))
    try:
        await router.serve()
    finally:
        work.cancel()
        serving.close()
