"""What this host gives to the boxes of a server with root."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from boxwood.engine import diskshares, landlock, quota
from boxwood.engine import kernel as k
from boxwood.engine.api import Limits
from boxwood.engine.cgroups import finding
from boxwood.engine.cgroups.cgroups import IO_WEIGHT
from boxwood.engine.disk import files, image
from boxwood.engine.disk.projects import Projects
from boxwood.engine.overlay import Places, attach_views, by_descriptor, mount_root, prepare_top
from boxwood.engine.trials.common import (
    DISK,
    DISK_SHARES,
    FREEZER,
    LANDLOCK,
    NAMESPACES,
    NETWORK,
    Check,
    Scratch,
    Wrong,
    failure_of,
    kernel_release,
    near,
    seccomp_filter,
    tried,
    try_network,
)
from boxwood.engine.uidrange import FIRST, SIZE, Range, user_namespace
from boxwood.engine.ulid import new_ulid

_BASE = FIRST - SIZE  # a range that no box has


def try_all(data: Path, images: Path) -> list[Check]:
    """Each in a forked child."""
    found = [_root(), kernel_release()]
    if not all(check.active for check in found):
        return found
    found += [*_namespaces(), *_overlay(data, images), seccomp_filter(), *_cgroups(), _network(), _disk(data)]
    return [*found, _disk_shares(data), _landlock()]


def _disk(data: Path) -> Check:
    """By project quotas, or in a file system in a file; made, bounded and filled by the code that does it for VMs."""
    layers = data / "layers"
    quotas, why_not, _ = quota.told(layers)
    if quotas:
        with Scratch(layers) as scratch:
            failure = failure_of(lambda: _try_quota(scratch))
        return tried(DISK, failure, f"each VM with disk_mib is limited by {why_not}", quota.POOL, required=False)
    with Scratch(data) as scratch:
        failure = failure_of(lambda: _try_disk(scratch))
    good_for = (
        "each VM with disk_mib writes into a file system of its own, an ext4 image on a loop device "
        f"(no project quotas, which would be quicker: {why_not})"
    )
    fix = "mkfs.ext4 (apt install e2fsprogs), loop devices (`modprobe loop`; in a container: --privileged), ext4"
    return tried(DISK, failure, good_for, fix, required=False)


def _try_disk(scratch: Path) -> None:
    """What is written stops at the limit."""
    top, limit = new_ulid(), 1 << 20
    files.make(scratch, scratch / "disks", top, limit)
    attached = image.Disks(os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)).attach(top, read_only=False)
    if attached is None:
        raise Wrong("a disk was made and is not there")
    root = image.mount(attached)
    k.mount_setattr(root, k.ATTR_IDMAP, userns=user_namespace(_BASE))
    image.hold_back(os.open(image.SYSFS, os.O_PATH | os.O_DIRECTORY), attached.number, root, limit)
    _fill("upper/full", root, limit)


def _try_quota(scratch: Path) -> None:
    layers, top, limit = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY), new_ulid(), 1 << 20
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
    failure = failure_of(try_network)
    fix = "install nftables; the kernel needs nf_tables, nf_conntrack and veth"
    return tried(NETWORK, failure, "the internet, and nothing else", fix, required=False)


def _landlock() -> Check:
    """For the router alone: boxes have a root of their own."""
    failure = "" if landlock.version() else "the kernel has none, or does not use it"
    good_for = "whoever takes over the network's router, which reads what boxes send, changes no file of the host"
    fix = "a kernel with CONFIG_SECURITY_LANDLOCK; `landlock` in its parameter lsm="
    return tried(LANDLOCK, failure, good_for, fix, required=False)


def _root() -> Check:
    check = Check("root", True, "runs as root")
    if not k.capabilities() & k.capability_mask("sys_admin"):
        fix = "run it outside of the container, or give the container CAP_SYS_ADMIN (`docker run --privileged`)"
        return replace(check, active=False, why="root without CAP_SYS_ADMIN", fix=fix)
    return check


def _namespaces() -> list[Check]:
    found = []
    for name, (flag, file) in NAMESPACES.items():
        failure = failure_of(lambda flag=flag: k.unshare(flag))  # type: ignore[misc]
        fix = f"the kernel lacks it or a policy forbids it: is /proc/self/ns/{file} there?"
        found.append(tried(f"{name} namespace", failure, "each box has its own", fix))
    return found


def _overlay(data: Path, images: Path) -> list[Check]:
    """A user namespace, idmapped layers, and an overlay of them, made by the code that makes those of boxes."""
    with Scratch(data) as layers, Scratch(images) as golden:
        image, layer = new_ulid(), new_ulid()
        for at, ident in ((golden, image), (layers, layer)):
            (at / ident / "upper").mkdir(parents=True)
        (golden / image / "upper/low").write_text("low")
        os.mknod(golden / image / "upper/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chmod(golden / image / "upper/null", 0o666)
        steps = _Steps(layers, golden, (("data", layer), ("image", image)))
        user = failure_of(steps.namespace)
        mapped = user or failure_of(steps.range)
        mounted = mapped or failure_of(steps.mount)
        dead = mounted or failure_of(steps.device)
    disk = f"the file system of {data} or {images}"
    fixes = {
        "user": "allow user namespaces: sysctl user.max_user_namespaces",
        "idmap": f"{disk} must allow idmapped mounts: ext4, XFS, btrfs",
        "overlay": f"load the module (`modprobe overlay`); {disk} must be fit for an upper directory",
    }
    return [
        tried("user namespace", user, "root in a box is nobody outside", fixes["user"]),
        tried("idmapped mounts", mapped, "layers on disk are owned as inside", fixes["idmap"]),
        tried("overlay", mounted, "a VM is a stack of layers, whatever it holds", fixes["overlay"]),
        tried("nodev, nosuid", dead, "device nodes and setuid files of layers mean nothing outside of a box"),
    ]


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
        range_, top = self.range(), new_ulid()
        layers = os.open(self.layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        prepare_top(layers, top)
        stage = self.layers / f"stage-{top}"  # no directory of the host's: data and images may lie below any
        stage.mkdir()
        k.unshare(k.NEWNS)
        k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
        by_path = not by_descriptor()
        k.mount("stage", str(stage), "tmpfs")
        os.chdir(stage)
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


def _cgroups() -> list[Check]:
    """Each controller is set on a group of its own, in which a process is then frozen."""
    limits = {"memory": Limits(memory_mib=64, pids=0), "cpu": Limits(vcpu=1, pids=0), "pids": Limits(pids=64)}
    fix = "mount cgroup version 2, or boot with cgroup_enable=memory; in a container: --privileged --cgroupns=host"
    found = []
    for name, wanted in limits.items():
        failure = failure_of(lambda wanted=wanted: _in_group(wanted))  # type: ignore[misc]
        found.append(tried(f"cgroup {name}", failure, "boxes have limits that hold", fix))
    failure = failure_of(lambda: _in_group(Limits(pids=0), freeze=True))
    found.append(tried(FREEZER, failure, "a VM with running processes can be forked", fix, required=False))
    return found


def _disk_shares(data: Path) -> Check:
    """Weights of cgroups, and a scheduler of the disk that looks at them. Without them boxes get of the disk's time
    what they ask for."""
    place = near(data)

    def weights() -> None:
        groups = finding.find(new_ulid(), io_weight=IO_WEIGHT)
        try:
            if groups.io_weight is None:
                kernel = "a kernel with CONFIG_BFQ_GROUP_IOSCHED or CONFIG_BLK_CGROUP_IOCOST, and the io controller"
                raise Wrong(f"cgroups have no weights for disks\n{kernel}")
            why, fix = diskshares.obstacle(place, groups.unified)
        finally:
            groups.close()
        if why:
            raise Wrong(f"{why}\n{fix}")

    failure, _, fix = failure_of(weights).partition("\n")
    return tried(DISK_SHARES, failure, "boxes that want the disk at once get equal shares", fix, required=False)


def _in_group(limits: Limits, *, freeze: bool = False) -> None:
    groups, box = finding.find(new_ulid()), new_ulid()
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
