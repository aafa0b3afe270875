"""How the zygote's process comes up: what it lets go of and what it keeps, before it forks anything.

Started by exec from a clean interpreter, with an empty environment and no descriptors but its log, it has imported all
that an agent needs, and freezes its heap: what it has loaded then, all boxes have in common.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from boxwood.engine import birth, idmap
from boxwood.engine import kernel as k
from boxwood.engine.descriptors import close_all_but
from boxwood.engine.idmap import IdMap
from boxwood.engine.listener import Listener
from boxwood.engine.network import leaving
from boxwood.engine.nursery import Nursery, settle_memory
from boxwood.engine.overlay import Places, by_descriptor
from boxwood.engine.rehearsal import rehearse


class Serving(Protocol):
    def serve(self) -> None:
        """Until it is told to end."""


def start(make: Callable[..., Serving]) -> None:
    """`make`: given the nursery, the listener, the directories of data, images and locks, places if this kernel wants
    layers by path, the ids of boxes if we are not root, and then the porter of a network of our own, or why there is
    none."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--locks", type=Path, default=Path("/run/boxwood"))
    parser.add_argument("--overlay", choices=("auto", "descriptors", "paths"), default="auto")
    parser.add_argument("--ready", type=int, required=True, help="descriptor to write to when requests are taken")
    parser.add_argument("--rootless", type=IdMap.from_json, help="the ids of boxes, where we are not root")
    options = parser.parse_args()
    close_all_but(options.ready)
    os.umask(0o077)
    os.chdir("/")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # a terminal's keys are for the server; `end` is how this one ends
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    porter, no_network, locks = None, "", options.locks
    if options.rootless is not None:
        idmap.enter(options.rootless)
        k.unshare(k.NEWUTS)  # to come back to
        porter, no_network = _leave_network(str(options.data / "mnt"))
        locks = options.data / "log"  # the network is our own, and what is locked with it
    listener = Listener(options.data)
    paths = options.overlay == "paths" or (options.overlay == "auto" and not by_descriptor())
    places = Places(str(options.data / "layers"), str(options.images)) if paths else None
    stage = str(options.data / "rehearsal")
    nursery = Nursery(lambda: rehearse(stage), birth.live_as_box, may_return=options.rootless is None)
    serving = make(nursery, listener, options.data, options.images, locks, places, options.rootless, porter, no_network)
    listener.tell()
    k.prefer_short_turns()
    settle_memory()
    os.write(options.ready, b"ready")
    os.close(options.ready)
    del options
    try:
        serving.serve()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # its boxes die with it: they asked for that


def _leave_network(stage: str) -> tuple[tuple[socket.socket, int] | None, str]:
    """For one of our own, if pasta can connect it: the porter, or why there is none. Before anything is opened."""
    if lacking := leaving.missing():
        return None, lacking
    try:
        return leaving.leave(stage), ""
    except OSError as error:
        return None, f"a network of our own cannot be had: {error}"
