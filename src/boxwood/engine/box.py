"""From a fork of the nursery to the agent of a box: namespaces, root, masks, privileges. The order is the point.

The caller has unshared the pid namespace and forked: this process is PID 1 of a box to be, and still root on the host.
It comes in two halves. `prepare` does, ahead of demand, all that does not depend on the VM: namespaces, and the
kernel's file systems with their masks, on a stage of its own. `become` makes the VM's root, moves the stage into it,
enters the box's user namespace, after which no mount works, and lets go of everything else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from boxwood.engine import kernel as k
from boxwood.engine.disk import image, projects
from boxwood.engine.network.wire import Plug, Wire
from boxwood.engine.overlay import Places, attach_views, mount_root, prepare_top
from boxwood.engine.ranges import BoxRange
from boxwood.engine.uidrange import device_directory

# What root may do inside; nothing of it counts in the host's user namespace.
CAPABILITIES = k.capability_mask(
    "chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service",
    "sys_chroot", "audit_write", "setfcap",
)  # fmt: skip
# The agent looks at what its own box's processes wait for. It is not in the bounding set: an exec loses it.
AGENT_CAPABILITIES = CAPABILITIES | k.capability_mask("sys_ptrace")

HIDDEN_FILES = (
    "kcore", "keys", "key-users", "timer_list", "interrupts", "softirqs", "latency_stats", "sched_debug", "schedstat",
    "kallsyms", "config.gz", "kpagecgroup", "kpagecount", "kpageflags", "kmsg", "cmdline", "version_signature", "mtrr",
    "vmallocinfo", "pagetypeinfo", "slabinfo", "modules", "partitions", "iomem", "ioports", "diskstats",
)  # fmt: skip
HIDDEN_DIRS = ("acpi", "scsi", "asound", "driver", "dynamic_debug", "pressure", "tty", "sys/fs")
FROZEN = ("bus", "fs", "irq", "sys", "sysrq-trigger")
HIDDEN_SYS = (
    "firmware", "kernel", "fs", "power", "module", "hypervisor", "bus", "dev", "block", "class/net",
)  # fmt: skip

STAGED = ("proc", "dev", "run", "sys")
SHM_MIB, RUN_MIB = 64, 64  # bounds of the two tmpfs; their pages count as the box's memory
TMP_MIB = 64  # … and of one more where the root is read-only
_TTY = 5  # the group of that name, on every Linux
MOST_TERMINALS = 256  # the kernel's bound, some 3000, is for all boxes together
# oom_score_adj: boxes before what else lives on the host; in a box its payload before its agent.
AGENT_OOM, PAYLOAD_OOM = b"100", b"400"
RUNTIME_DIRECTORY = b"/run/boxwood"
_RUN = {"boxwood": 0o700, "lock": 0o1777}  # directories that are there from the start
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41


@dataclass(slots=True)
class Ground:
    """What every box has: known before its VM is."""

    range: BoxRange
    cgroups: tuple[str, ...]  # files to write "0" to
    stage: str  # an empty directory of the host, absolute: only a place in the box's own mount namespace
    seccomp: bytes
    places: Places | None = None  # set where the kernel wants layers by path
    wire: Wire | None = None  # plugged in ahead of demand
    processes: int = 0  # how many each user of it may have, where no cgroup bounds them
    door: int = -1  # a socket that takes descriptors of two namespaces (mnt, net), of a zygote that may not look later


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes a prepared process the box of a certain VM."""

    layers: tuple[tuple[str, str], ...]
    top: str
    hostname: str
    wire: Wire | None
    read_only: bool
    disks: tuple[image.Attached, ...] = ()  # of the layers that lie in a file each
    disk_limit: int = 0  # bytes of the top, if it is one of them
    sysfs: int = -1  # a descriptor of image.SYSFS, if there are any
    project: int = 0  # of the top, whose limit the file system knows already
    durable: bool = False  # what is flushed is flushed


class Step:
    """What was being done when it failed."""

    name = "start"


def prepare(ground: Ground, step: Step) -> Plug:
    """Cgroups, namespaces, the kernel's file systems on the stage, and the wire. What is returned goes to `become`."""
    k.set_death_signal(signal.SIGKILL)  # until credentials change; then again
    step.name = "cgroups"
    for path in ground.cgroups:  # ahead of demand: joining may wait for a grace period of RCU
        _write(path, b"0")
    plug = Plug()
    step.name = "namespaces"  # the cgroup namespace after joining, so that it is rooted here
    k.unshare(k.NEWCGROUP | k.NEWNS | k.NEWUTS | k.NEWIPC | k.NEWNET)
    if ground.door >= 0:
        _show_door(ground.door)
    k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
    step.name = "mounts"
    k.mount("stage", ground.stage, "tmpfs", k.MS_NOSUID | k.MS_NODEV | k.MS_NOEXEC, "mode=711,size=16k")
    os.chdir(ground.stage)
    for name in ("root", *STAGED):
        os.mkdir(name)
    _mount_kernel_filesystems(ground.range, by_path=ground.places is not None)
    _set_up_network()
    plug.pings = os.open("proc/sys/net/ipv4/ping_group_range", os.O_WRONLY | os.O_CLOEXEC)
    step.name = "network"
    with contextlib.suppress(OSError):  # `become` tries again, when it is needed and the failure can be told
        plug.settle(ground.wire)
    step.name = "mounts"
    _go_last()
    _mask()
    if ground.places is not None:
        attach_views(ground.range, ground.places)
    k.pivot_here()  # the host's root is out of sight from here on
    return plug


def _show_door(to: int) -> None:
    fds = [os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("mnt", "net")]
    with socket.socket(fileno=to) as sock:  # closed: nobody says anything more here
        sock.sendmsg([b"m"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("2i", *fds))])
    for fd in fds:
        os.close(fd)


@contextmanager
def as_owner(range_: BoxRange) -> Iterator[None]:
    """What is made meanwhile belongs to the box's root."""
    k.setfsids(range_.base)
    try:
        yield
    finally:
        k.setfsids(0)
        k.set_capabilities(k.capabilities())


def become(ground: Ground, plan: Plan, plug: Plug, on_root: Callable[[], None], step: Step) -> None:
    """Turn a prepared process into the box's PID 1. `on_root` is called as soon as the VM's root is the root."""
    step.name = "network"
    plug.settle(plan.wire)
    plug.close()
    root = _mount_stack(ground, plan, step)
    step.name = "mounts"
    for name in STAGED:
        k.move_attached(name, f"root/{name}")
    if plan.read_only:
        _let_write_only_to_memory(root, ground.range.base)
    os.fchdir(root)
    os.close(root)
    k.sethostname(plan.hostname)
    k.pivot_here()
    on_root()
    step.name = "privileges"
    enter(ground, plug.pings)
    os.close(plug.pings)
    k.set_capabilities(AGENT_CAPABILITIES)
    k.set_dumpable(0)  # every change of credentials resets it to fs.suid_dumpable, so after all of them
    k.set_death_signal(signal.SIGKILL)  # taken back by changes of credentials too
    step.name = "descriptors"
    ground.range.close()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _mount_stack(ground: Ground, plan: Plan, step: Step) -> int:
    """Its root, whose top has its limit from here on: an overlay of a full top needs room for a moment."""
    step.name = "disk"
    with image.mounted(plan.disks, ground.range) as disks:
        step.name = "overlay"
        top, number = disks.get(plan.top), next((disk.number for disk in plan.disks if disk.layer == plan.top), -1)
        if top is not None and not plan.read_only:
            image.hold_back(plan.sysfs, number, top, image.ALL)  # the last box may not be done with it
            prepare_top(top, ".")
        with projects.lifted(ground.range.layers, plan.project):
            root = mount_root(
                plan.layers, plan.top, ground.range, by_path=ground.places is not None, read_only=plan.read_only,
                durable=plan.durable, disks=disks,
            )  # fmt: skip
        step.name = "disk limit"
        if plan.disk_limit and not plan.project:
            if top is None:
                raise RuntimeError("its top does not lie in a file of its own")
            image.hold_back(plan.sysfs, number, top, plan.disk_limit)
    if plan.sysfs >= 0:
        os.close(plan.sysfs)
    return root


def enter(ground: Ground, pings: int = -1) -> None:
    """From the host's root to the box's: user namespace, ids, bounding set, no_new_privs, seccomp, capabilities.
    `pings`: the setting of who may ping, still to be made."""
    last = k.last_capability()
    groups = f"0 {ground.range.count - 1}".encode()  # of the box, which has no others
    if pings >= 0 and ground.range.is_shared:
        os.write(pings, groups)  # they have the same numbers out here, where we may
    k.setns(ground.range.userns, k.NEWUSER)  # all capabilities in there, none out here: no mount works from now on
    if pings >= 0 and not ground.range.is_shared:
        os.write(pings, groups)  # in here, and still as the host's root
    if ground.range.count > 1:  # where there is but one group, nobody may change his
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if ground.processes:  # in here, where nobody else's count
        _bound_processes(ground.processes)
    k.limit_bounding_set(CAPABILITIES, last)  # while CAP_SETPCAP is effective
    k.no_new_privileges()
    k.load_seccomp(ground.seccomp)
    k.set_capabilities(CAPABILITIES, AGENT_CAPABILITIES)  # an exec leaves what the bounding set has
    os.umask(0o022)


def _bound_processes(most: int) -> None:
    """For this process and all that come of it. To raise it again takes a capability of the host's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _mount_kernel_filesystems(range_: BoxRange, *, by_path: bool) -> None:
    """Relative to the working directory, the stage. `by_path`: of a kernel that clones no detached mount."""
    base = range_.base
    k.mount("proc", "proc", "proc", k.MS_NOSUID | k.MS_NODEV | k.MS_NOEXEC)
    tree = device_directory(base) if by_path and not range_.is_shared else range_.devices()
    k.move_mount(tree, "dev")
    os.close(tree)
    _mount_terminals(base + _TTY if range_.count > _TTY else None)
    owner = f"uid={base},gid={base}"
    flags = k.MS_NOSUID | k.MS_NODEV
    k.mount("shm", "dev/shm", "tmpfs", flags | k.MS_NOEXEC, f"mode=1777,size={SHM_MIB}m,nr_inodes=65536,{owner}")
    k.mount("mqueue", "dev/mqueue", "mqueue", flags | k.MS_NOEXEC)
    k.mount("run", "run", "tmpfs", flags, f"mode=755,size={RUN_MIB}m,nr_inodes=65536,{owner}")
    for name, mode in _RUN.items():
        os.mkdir(f"run/{name}")
        os.chmod(f"run/{name}", mode)
        os.chown(f"run/{name}", base, base)
    k.mount("sysfs", "sys", "sysfs", flags | k.MS_NOEXEC | k.MS_RDONLY)


def _mount_terminals(group: int | None) -> None:
    """Terminals belong to the group `tty`, where there is one. Kernels that take no number above 2^31 give them their
    openers' groups."""
    flags, options = k.MS_NOSUID | k.MS_NOEXEC, f"newinstance,max={MOST_TERMINALS},ptmxmode=0666,mode=0620"
    if group is not None:
        try:
            k.mount("devpts", "dev/pts", "devpts", flags, f"{options},gid={group}")
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return
    k.mount("devpts", "dev/pts", "devpts", flags, options)


def _let_write_only_to_memory(root: int, base: int) -> None:
    """A read-only root gets a /tmp, and no place that can be written has what can be executed. Without a directory
    /tmp, which nobody can make now, there is none."""
    run = os.open("run", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    k.mount_setattr(run, k.ATTR_NOEXEC, recursive=False)
    os.close(run)
    try:
        place = os.open("tmp", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except OSError:
        return
    filesystem = k.Filesystem("tmpfs")
    for name, value in (
        ("source", "tmp"), ("mode", "1777"), ("size", f"{TMP_MIB}m"), ("nr_inodes", "65536"), ("uid", str(base)),
        ("gid", str(base)),
    ):  # fmt: skip
        filesystem.set(name, value)
    tree = filesystem.create(k.ATTR_NOSUID | k.ATTR_NODEV | k.ATTR_NOEXEC)
    k.move_mount(tree, "", place)
    os.close(tree)
    os.close(place)


def _go_last() -> None:
    """When memory is short PID 1 goes after what it starts.

    /proc/PID/oom_score_adj is not writable in a fork of what is not dumpable, so whoever forks has the higher value
    for that moment. Set with CAP_SYS_RESOURCE, ours is also the lowest that anybody in the box can have.
    """
    fd = os.open("proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.pwrite(fd, AGENT_OOM, 0)
    os.register_at_fork(
        before=lambda: os.pwrite(fd, PAYLOAD_OOM, 0), after_in_parent=lambda: os.pwrite(fd, AGENT_OOM, 0)
    )


def _set_up_network() -> None:
    """The network namespace is the host's user namespace's: what is not set now cannot be set in the box."""
    settings = [("ipv4/ip_unprivileged_port_start", b"0")]
    if os.path.isdir("proc/sys/net/ipv6"):
        settings.append(("ipv6/conf/default/disable_ipv6", b"1"))  # of wires to come; the loopback has its ::1
    for name, value in settings:
        _write(f"proc/sys/net/{name}", value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP_RUNNING))


def _write(path: str, value: bytes) -> None:
    """`open` would cost each box the memory of a text's decoders and buffers."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def _mask() -> None:
    """Hide or freeze what of /proc and /sys is the host's and not the box's."""
    null = os.open("dev/null", os.O_PATH | os.O_CLOEXEC)
    masks, empty, boot_id = _mask_sources()
    for name in FROZEN:
        _freeze(f"proc/{name}")
    _bind_over("proc/sys/kernel/random/boot_id", boot_id)
    for name in HIDDEN_FILES:
        _bind_over(f"proc/{name}", null)
    for name in HIDDEN_DIRS:
        _bind_over(f"proc/{name}", empty)
    for name in HIDDEN_SYS:
        _bind_over(f"sys/{name}", empty)
    _show_of_devices_only("system", masks)
    for fd in (null, masks, empty, boot_id):
        os.close(fd)


def _show_of_devices_only(name: str, masks: int) -> None:
    """/sys/devices names the host's disks and their serial numbers, and files behind loop devices; the C library and
    runtimes look for processors there."""
    shown = k.open_tree(f"sys/devices/{name}")
    at = os.open("devices", os.O_PATH | os.O_CLOEXEC, dir_fd=masks)
    _bind_over("sys/devices", at)
    k.move_mount(shown, f"sys/devices/{name}")
    os.close(at)
    os.close(shown)


def _mask_sources() -> tuple[int, int, int]:
    """A tmpfs, and in it an empty directory and a boot id of the box's own: descriptors. It is attached to the stage,
    and gone with it: kernels before 6.15 bind nothing of a mount that is detached."""
    filesystem = k.Filesystem("tmpfs")
    filesystem.set("mode", "555")
    filesystem.set("size", "16k")
    masks = filesystem.create(k.ATTR_NOSUID | k.ATTR_NODEV | k.ATTR_NOEXEC)
    for name in ("empty", "devices", "devices/system"):
        os.mkdir(name, dir_fd=masks)
        os.chmod(name, 0o555, dir_fd=masks)  # whatever the umask
    fd = os.open("boot_id", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, dir_fd=masks)
    os.write(fd, _random_uuid())
    os.fchmod(fd, 0o444)
    os.close(fd)
    k.mount_setattr(masks, k.ATTR_RDONLY)
    os.mkdir("masks")
    k.move_mount(masks, "masks")
    return (
        masks,
        os.open("empty", os.O_PATH | os.O_CLOEXEC, dir_fd=masks),
        os.open("boot_id", os.O_PATH | os.O_CLOEXEC, dir_fd=masks),
    )


def _random_uuid() -> bytes:
    h = os.urandom(16).hex()
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]}\n".encode()


def _bind_over(target: str, source: int) -> None:
    try:
        at = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # this kernel has no such file
    tree = k.open_tree("", source)
    k.move_mount(tree, "", at)
    os.close(tree)
    os.close(at)


def _freeze(path: str) -> None:
    try:
        tree = k.open_tree(path)
    except FileNotFoundError:
        return
    k.mount_setattr(tree, k.ATTR_RDONLY | k.ATTR_NOSUID | k.ATTR_NOEXEC)
    k.move_mount(tree, path)
    os.close(tree)
