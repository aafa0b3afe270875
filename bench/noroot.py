"""The same steps on a server without root, in the same rounds as root's; neither VM has a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ours
import peers
from boxwood import VM, Boxwood
from measure import timed
from server import Server

UID = 61999  # nobody's
IMAGE_SECONDS = 900.0  # it copies what root's links


@contextmanager
def server() -> Iterator[Server]:
    """Of an unprivileged user, with an image of his own. peers.Unavailable."""
    _check()
    home = Path(tempfile.mkdtemp(prefix="boxwood-bench-rootless-"))
    os.chown(home, UID, UID)
    made = Server(home / "data", uid=UID)
    try:
        made.start(images=home / "images", network="none", kubernetes_port=0, start_seconds=IMAGE_SECONDS)
        yield made
    finally:
        made.down()
        shutil.rmtree(home, ignore_errors=True)


def _check() -> None:
    command = [sys.executable, "-c", "import boxwood.server.main"]
    done = subprocess.run(command, user=UID, group=UID, extra_groups=[], env={}, capture_output=True, check=False)
    if done.returncode:
        raise peers.Unavailable("other users cannot read this checkout, or its Python")


def steps(root: Boxwood, own: VM, rootless: Boxwood, theirs: VM) -> dict[str, Callable[[], float]]:
    """`own` and `theirs`: VMs with live shells, of the one server and of the other."""
    return {
        "fork + first command, with root": lambda: ours.fork_and_run(root, ":", network="none"),
        "fork + first command, without root": lambda: ours.fork_and_run(rootless, ":", network="none"),
        "run of /bin/true, with root": lambda: timed(lambda: own.run("/bin/true")),
        "run of /bin/true, without root": lambda: timed(lambda: theirs.run("/bin/true")),
        "exec of /bin/true, with root": lambda: timed(lambda: own.exec(["/bin/true"])),
        "exec of /bin/true, without root": lambda: timed(lambda: theirs.exec(["/bin/true"])),
    }
