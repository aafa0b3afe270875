"""What this host gives to boxes: every layer of isolation is tried, none is guessed from a version or a file.

`python -m boxwood.engine.doctor` tries them in forked children of a clean, single-threaded process, so that `checks`
can be asked for from a server with threads.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from boxwood.engine import kernel as k
from boxwood.engine import quota, seccomp
from boxwood.engine.api import EngineUnavailable, Limits
from boxwood.engine.cgroup import Cgroups
from boxwood.engine.disk import files, image
from boxwood.engine.disk.projects import Projects
from boxwood.engine.network.netlink import Netlink, add_address, bring_up
from boxwood.engine.network.table import Table
from boxwood.engine.network.wire import GATEWAY, Plug, Wire, address_of
from boxwood.engine.overlay import Places, attach_views, by_descriptor, mount_root, prepare_top
from boxwood.engine.uidrange import FIRST, SIZE, Range, user_namespace

OLDEST_KERNEL = (5, 19)
NETWORK = "network of VMs"
DISK = "disk limit"
NAMESPACES = {
    "mount": (k.NEWNS, "mnt"),
    "pid": (k.NEWPID, "pid"),
    "network": (k.NEWNET, "net"),
    "ipc": (k.NEWIPC, "ipc"),
    "uts": (k.NEWUTS, "uts"),
    "cgroup": (k.NEWCGROUP, "cgroup"),
}
_BASE = FIRST - SIZE  # a range that no box has
_SECONDS = 60
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


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


def checks(data: Path, images: Path) -> list[Check]:
    """Try everything for boxes whose layers lie in `data` and `images`. Takes about 0.3 s."""
    command = [
        sys.executable,
        "-I",
        "-m",
        "boxwood.engine.doctor",
        "--json",
        "--data",
        str(data),
        "--images",
        str(images),
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False, env={}
    )
    try:
        return [Check(**found) for found in json.loads(done.stdout)["checks"]]
    except (ValueError, KeyError, TypeError):
        text = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return [Check("doctor", False, f"the trials could not be made: {text[-1]}", "see the log of the server")]


def missing(found: Sequence[Check]) -> list[Check]:
    """Those without which no box runs."""
    return [check for check in found if check.required and not check.active]


def try_all(data: Path, images: Path) -> list[Check]:
    """The trials themselves; forks, so not in a process with threads."""
    found = [_root(), _kernel()]
    if not all(check.active for check in found):
        return found
    return [*found, *_namespaces(), *_overlay(data, images), _seccomp(), *_cgroups(), _network(), _disk(data)]


def _disk(data: Path) -> Check:
    """By project quotas, or in a file system in a file; made, bounded and filled by the code that does it for VMs."""
    layers = data / "layers"
    quotas, why_not, _ = quota.told(layers)
    if quotas:
        with _Scratch(layers) as scratch:
            failure = _failure(lambda: _try_quota(scratch))
        return _tried(DISK, failure, f"each VM with disk_mib is limited by {why_not}", quota.POOL, required=False)
    with _Scratch(data) as scratch:
        failure = _failure(lambda: _try_disk(scratch))
    good_for = (
        "each VM with disk_mib writes into a file system of its own, an ext4 image on a loop device "
        f"(no project quotas, which would be quicker: {why_not})"
    )
    fix = "mkfs.ext4 (apt install e2fsprogs), loop devices (`modprobe loop`; in a container: --privileged), ext4"
    return _tried(DISK, failure, good_for, fix, required=False)


def _try_disk(scratch: Path) -> None:
    """What is written stops at the limit."""
    top, limit = _new_id(), 1 << 20
    files.make(scratch, scratch / "disks", top, limit)
    attached = image.Disks(os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)).attach(top, read_only=False)
    if attached is None:
        raise Wrong("a disk was made and is not there")
    root = image.mount(attached)
    k.mount_setattr(root, k.ATTR_IDMAP, userns=user_namespace(_BASE))
    image.hold_back(os.open(image.SYSFS, os.O_PATH | os.O_DIRECTORY), attached.number, root, limit)
    _fill("upper/full", root, limit)


def _try_quota(scratch: Path) -> None:
    layers, top, limit = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY), _new_id(), 1 << 20
    project = Projects(layers).prepare(top, Limits(disk=limit))
    prepare_top(layers, top)
    os.chmod(scratch, 0o711)
    os.chown(f"{top}/upper", _BASE, _BASE, dir_fd=layers)
    try:
        _fill(f"{top}/upper/full", layers, limit)
    finally:
        quota.set_limits(layers, project, 0, 0)


def _fill(name: str, at: int, limit: int) -> None:
    """What is written by somebody without privileges stops at the limit."""
    permitted = k.capabilities()
    k.setfsids(_BASE)
    k.set_capabilities(0, permitted)
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=at)
        for _ in range(3):
            os.write(fd, bytes(limit))
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return
    finally:
        k.setfsids(0)
        k.set_capabilities(permitted)
    raise Wrong("more could be written than the limit allows")


def _network() -> Check:
    """A table of nftables and a wire, in a network namespace of their own, made by the code that makes those of boxes.
    What is not there costs VMs their network, and nothing else."""
    failure = _failure(_try_network)
    fix = "install nftables; the kernel needs nf_tables, nf_conntrack and veth"
    return _tried(NETWORK, failure, "the internet, and nothing else", fix, required=False)


def _try_network() -> None:
    k.unshare(k.NEWNET)
    plug = Plug()
    Table(0).put_up()
    netlink = Netlink()
    netlink.ask(bring_up(socket.if_nametoindex("lo")), add_address(socket.if_nametoindex("lo"), GATEWAY))
    k.unshare(k.NEWNET)
    plug.settle(Wire(address_of(0), 0))


def _root() -> Check:
    check = Check("root", True, "runs as root")
    if os.geteuid() != 0:
        return replace(check, active=False, why=f"runs as uid {os.geteuid()}", fix="run as root: `sudo boxwood up`")
    if not k.capabilities() & k.capability_mask("sys_admin"):
        fix = "run it outside of the container, or give the container CAP_SYS_ADMIN (`docker run --privileged`)"
        return replace(check, active=False, why="root without CAP_SYS_ADMIN", fix=fix)
    return check


def _kernel() -> Check:
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


def _namespaces() -> list[Check]:
    found = []
    for name, (flag, file) in NAMESPACES.items():
        failure = _failure(lambda flag=flag: k.unshare(flag))  # type: ignore[misc]
        fix = f"the kernel lacks it or a policy forbids it: is /proc/self/ns/{file} there?"
        found.append(_tried(f"{name} namespace", failure, "each box has its own", fix))
    return found


def _overlay(data: Path, images: Path) -> list[Check]:
    """A user namespace, idmapped layers, and an overlay of them, made by the code that makes those of boxes."""
    with _Scratch(data) as layers, _Scratch(images) as golden:
        image, layer = _new_id(), _new_id()
        for at, ident in ((golden, image), (layers, layer)):
            (at / ident / "upper").mkdir(parents=True)
        (golden / image / "upper/low").write_text("low")
        os.mknod(golden / image / "upper/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chmod(golden / image / "upper/null", 0o666)
        steps = _Steps(layers, golden, (("data", layer), ("image", image)))
        user = _failure(steps.namespace)
        mapped = user or _failure(steps.range)
        mounted = mapped or _failure(steps.mount)
        dead = mounted or _failure(steps.device)
    disk = f"the file system of {data} or {images}"
    fixes = {
        "user": "allow user namespaces: sysctl user.max_user_namespaces",
        "idmap": f"{disk} must allow idmapped mounts: ext4, XFS, btrfs",
        "overlay": f"load the module (`modprobe overlay`); {disk} must be fit for an upper directory",
    }
    return [
        _tried("user namespace", user, "root in a box is nobody outside", fixes["user"]),
        _tried("idmapped mounts", mapped, "layers on disk are owned as inside", fixes["idmap"]),
        _tried("overlay", mounted, "a VM is a stack of layers, whatever it holds", fixes["overlay"]),
        _tried("nodev, nosuid", dead, "device nodes and setuid files of layers mean nothing outside of a box"),
    ]


def _tried(name: str, failure: str, good_for: str, fix: str = "", *, required: bool = True) -> Check:
    return Check(name, not failure, failure or good_for, fix if failure else "", required)


@dataclass(frozen=True, slots=True)
class _Steps:
    """How far towards a box's root this host goes."""

    layers: Path
    images: Path
    stack: tuple[tuple[str, str], ...]

    def namespace(self) -> None:
        k.unshare(k.NEWUSER)

    def range(self) -> Range:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return Range(_BASE, os.open(self.layers, flags), os.open(self.images, flags))

    def mount(self) -> int:
        """The overlay works, is written to as an unprivileged uid, and what is written is canonical on disk."""
        range_, top = self.range(), _new_id()
        layers = os.open(self.layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        prepare_top(layers, top)
        k.unshare(k.NEWNS)
        k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
        by_path = not by_descriptor()
        k.mount("stage", "/mnt", "tmpfs")
        os.chdir("/mnt")
        os.mkdir("root")
        if by_path:
            attach_views(range_, Places(str(self.layers), str(self.images)))
        root = mount_root(self.stack, top, range_, by_path=by_path)
        k.setfsids(_BASE)
        with open("root/low", "a") as f:
            f.write(", and written to")
        k.setfsids(0)
        written = os.stat(self.layers / top / "upper/low")
        if (written.st_uid, os.stat("root/low").st_uid) != (0, _BASE):
            raise Wrong(f"a file of uid {_BASE} came to disk as uid {written.st_uid}")
        return root

    def device(self) -> None:
        self.mount()
        try:
            os.close(os.open("root/null", os.O_RDONLY))
        except PermissionError:
            return
        raise Wrong("a device node in a layer can be opened")


def _seccomp() -> Check:
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

    if failure := _failure(load):
        return replace(check, active=False, why=failure, fix="a kernel with CONFIG_SECCOMP_FILTER is needed")
    return check


def _cgroups() -> list[Check]:
    """Each controller is set on a group of its own, in which a process is then frozen."""
    limits = {"memory": Limits(memory_mib=64, pids=0), "cpu": Limits(vcpu=1, pids=0), "pids": Limits(pids=64)}
    fix = "mount cgroup version 2, or boot with cgroup_enable=memory; in a container: --privileged --cgroupns=host"
    found = []
    for name, wanted in limits.items():
        failure = _failure(lambda wanted=wanted: _in_group(wanted))  # type: ignore[misc]
        found.append(_tried(f"cgroup {name}", failure, "boxes have limits that hold", fix))
    failure = _failure(lambda: _in_group(Limits(pids=0), freeze=True))
    found.append(_tried("cgroup freezer", failure, "a VM with running processes can be forked", fix, required=False))
    return found


def _in_group(limits: Limits, *, freeze: bool = False) -> None:
    groups, box = Cgroups.find(_new_id()), _new_id()
    try:
        directories = groups.make(box, limits)
        pid = os.fork()
        if pid == 0:
            try:
                for directory in directories:
                    Path(directory, "cgroup.procs").write_text("0")
            except OSError as error:
                os._exit(error.errno or errno.EIO)
            os._exit(0)
        if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise OSError(status, f"a process cannot join: {os.strerror(abs(status))}")
        if freeze:
            groups.freeze(box)
            groups.thaw(box)
    finally:
        groups.sweep()
        groups.close()


# --- how things are tried


class _Scratch:
    """A temporary directory on the file system of a directory that may not be there yet."""

    def __init__(self, wanted: Path) -> None:
        self._near = next(place for place in (wanted, *wanted.absolute().parents) if place.is_dir())

    def __enter__(self) -> Path:
        self._made = tempfile.mkdtemp(prefix=".doctor-", dir=self._near)
        return Path(self._made)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._made)


def _failure(work: Callable[[], object]) -> str:
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


def _new_id() -> str:
    return "0" + "".join(secrets.choice(_ALPHABET) for _ in range(25))


def _line(check: Check) -> str:
    state = "yes" if check.active else "NO " if check.required else "no "
    fix = f"\n{'':24} → {check.fix}" if check.fix and not check.active else ""
    return f"{state}  {check.name:18} {check.why}{fix}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="boxwood doctor", description="What this host gives to boxes.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BOXWOOD_DATA", "/var/lib/boxwood")))
    parser.add_argument(
        "--images", type=Path, default=Path(os.environ.get("BOXWOOD_IMAGES", "/var/cache/boxwood/images"))
    )
    options = parser.parse_args()
    found = try_all(options.data, options.images)
    if options.json:
        text = json.dumps({"ok": not missing(found), "checks": [asdict(check) for check in found]})
    else:
        text = "\n".join(map(_line, found))
    sys.stdout.write(text + "\n")
    return 1 if missing(found) else 0


if __name__ == "__main__":
    sys.exit(main())
