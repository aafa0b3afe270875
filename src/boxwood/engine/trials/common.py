"""What both kinds of trials are made of: a check with its name, a child to try in, and what takes no root."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from boxwood.engine import kernel as k
from boxwood.engine import seccomp
from boxwood.engine.api import EngineUnavailable
from boxwood.engine.network.netlink import Netlink, add_address, bring_up
from boxwood.engine.network.table import Table
from boxwood.engine.network.wire import GATEWAY, Plug, Wire, address_of

OLDEST_KERNEL = (5, 19)
NETWORK = "network of VMs"
DISK = "disk limit"
DISK_SHARES = "disk shares"
LANDLOCK = "Landlock"
FREEZER = "cgroup freezer"
NAMESPACES = {
    "mount": (k.NEWNS, "mnt"),
    "pid": (k.NEWPID, "pid"),
    "network": (k.NEWNET, "net"),
    "ipc": (k.NEWIPC, "ipc"),
    "uts": (k.NEWUTS, "uts"),
    "cgroup": (k.NEWCGROUP, "cgroup"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried. `required`: without it no box runs here. `why`: what it is good for, or what failed."""

    name: str
    active: bool
    why: str
    fix: str = ""
    required: bool = True


class Wrong(Exception):
    """A trial went through, but not as it should."""


def tried(name: str, failure: str, good_for: str, fix: str = "", *, required: bool = True) -> Check:
    return Check(name, not failure, failure or good_for, fix if failure else "", required)


def kernel_release() -> Check:
    release, machine = os.uname().release, os.uname().machine
    check = Check("kernel", True, f"Linux {release} on {machine}")
    version = re.match(r"(\d+)\.(\d+)", release)
    if not k.supported():
        return replace(check, active=False, fix="Boxwood knows x86_64 and aarch64")
    if version is None or (int(version[1]), int(version[2])) < OLDEST_KERNEL:
        return replace(
            check, active=False, fix="a kernel from 5.19 on is needed (Debian 12, Ubuntu 22.04 HWE, RHEL 10)"
        )
    return check


def seccomp_filter(inside: Callable[[Callable[[], object]], object] = lambda work: work()) -> Check:
    """`inside`: does what it is given where boxes are made."""
    check = Check("seccomp", True, "system calls that no box needs are refused")
    try:
        program = seccomp.program()
    except EngineUnavailable as error:
        return replace(check, active=False, why=str(error), fix="apt install libseccomp2")

    def load() -> None:
        k.no_new_privileges()
        k.load_seccomp(program)
        try:
            k.unshare(k.NEWNS)
        except PermissionError:
            return
        raise Wrong("a refused system call went through")

    if failure := failure_of(lambda: inside(load)):
        return replace(check, active=False, why=failure, fix="a kernel with CONFIG_SECCOMP_FILTER is needed")
    return check


class Scratch:
    """A temporary directory on the file system of a directory that may not be there yet."""

    def __init__(self, wanted: Path) -> None:
        self._near = near(wanted)

    def __enter__(self) -> Path:
        self._made = tempfile.mkdtemp(prefix=".doctor-", dir=self._near)
        return Path(self._made)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._made)


def near(wanted: Path) -> Path:
    """A directory that is there, on the file system of one that may not be yet."""
    return next(place for place in (wanted, *wanted.absolute().parents) if place.is_dir())


def failure_of(work: Callable[[], object]) -> str:
    """Empty, or why `work` failed, in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "its process ended early"
        try:
            work()
            text = ""
        except Exception as error:
            text = str(error) or type(error).__name__
        finally:
            os.write(writing, text.encode()[:4096] or b"\0")
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as f:
        said = f.read()
    os.waitpid(pid, 0)
    return "" if said == b"\0" else said.decode(errors="replace") or "its process was killed"


def try_network(own: Sequence[str] | None = None) -> None:
    """A table and a wire, in network namespaces of their own. `own`: as for Table."""
    k.unshare(k.NEWNET)
    plug = Plug()
    Table(0, own).put_up()
    netlink = Netlink()
    netlink.ask(bring_up(socket.if_nametoindex("lo")), add_address(socket.if_nametoindex("lo"), GATEWAY))
    k.unshare(k.NEWNET)
    plug.settle(Wire(address_of(0), 0))
