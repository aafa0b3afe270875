"""The Linux calls that Python 3.11 has no names for, through ctypes. Each raises OSError with the kernel's errno.

Everything here runs in the zygote and its children, single-threaded. Sources: mount_setattr(2), open_tree(2),
fsopen(2), openat2(2), capset(2), prctl(2), quotactl(2), seccomp(2), pivot_root(2), landlock(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import struct

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

ARCHITECTURES = {
    "x86_64": {"pivot_root": 155, "seccomp": 317, "sched_setattr": 314},
    "aarch64": {"pivot_root": 41, "seccomp": 277, "sched_setattr": 274},
}
_NUMBERS = ARCHITECTURES.get(platform.machine(), {})
# The same on every architecture, like all system calls since 424.
OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
OPENAT2, QUOTACTL_FD = 437, 443

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 0x4000, 0x40000
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC, ATTR_IDMAP = 1, 2, 4, 8, 0x100000

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8
_OPEN_TREE_CLONE, _CLOEXEC = 1, 0x80000
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _SET_FD, _CREATE = 0, 1, 5, 6
_MOVE_FROM_EMPTY, _MOVE_TO_EMPTY = 4, 0x40
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_CAPBSET_DROP = 1, 4, 15, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_CAPABILITY_VERSION_3 = 0x20080522
OVERLAYFS_MAGIC, TMPFS_MAGIC, XFS_MAGIC, EXT4_MAGIC = 0x794C7630, 0x01021994, 0x58465342, 0xEF53

CAPABILITIES = {
    "chown": 0, "dac_override": 1, "dac_read_search": 2, "fowner": 3, "fsetid": 4, "kill": 5, "setgid": 6, "setuid": 7,
    "setpcap": 8, "linux_immutable": 9, "net_bind_service": 10, "net_broadcast": 11, "net_admin": 12, "net_raw": 13,
    "ipc_lock": 14, "ipc_owner": 15, "sys_module": 16, "sys_rawio": 17, "sys_chroot": 18, "sys_ptrace": 19,
    "sys_pacct": 20, "sys_admin": 21, "sys_boot": 22, "sys_nice": 23, "sys_resource": 24, "sys_time": 25,
    "sys_tty_config": 26, "mknod": 27, "lease": 28, "audit_write": 29, "audit_control": 30, "setfcap": 31,
    "mac_override": 32, "mac_admin": 33, "syslog": 34, "wake_alarm": 35, "block_suspend": 36, "audit_read": 37,
    "perfmon": 38, "bpf": 39, "checkpoint_restore": 40,
}  # fmt: skip


def capability_mask(*names: str) -> int:
    return sum(1 << CAPABILITIES[name] for name in names)


def supported() -> bool:
    """Do we know this machine's system calls?"""
    return bool(_NUMBERS)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _call(number: int, *args: object) -> int:
    return _check(libc.syscall(ctypes.c_long(number), *args))


def _bytes(text: str | bytes | None) -> bytes | None:
    return text.encode() if isinstance(text, str) else text


# --- mounts


def mount(source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    _check(libc.mount(_bytes(source), _bytes(target), _bytes(fstype), ctypes.c_ulong(flags), _bytes(data)))


def umount(target: str, flags: int = 0) -> None:
    _check(libc.umount2(_bytes(target), flags))


def pivot_here() -> None:
    """Make the working directory the root and let go of the old one."""
    _call(_NUMBERS["pivot_root"], b".", b".")
    umount(".", MNT_DETACH)
    os.chdir("/")


def open_tree(path: str, at: int = _AT_FDCWD, *, recursive: bool = False) -> int:
    """A detached copy of the mount at `path` (empty: of the descriptor `at`), as a descriptor."""
    flags = _CLOEXEC | _OPEN_TREE_CLONE | (_AT_RECURSIVE if recursive else 0) | (0 if path else _AT_EMPTY_PATH)
    return _call(OPEN_TREE, at, _bytes(path), flags)


def mount_setattr(
    fd: int, set_: int = 0, clear: int = 0, userns: int = 0, *, recursive: bool = True, propagation: int = 0
) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", set_, clear, propagation, userns), 32)
    _call(MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0), attributes, 32)


def move_mount(fd: int, path: str, at: int = _AT_FDCWD) -> None:
    """Attach a detached mount at `path` (empty: at the directory or file that the descriptor `at` stands for)."""
    _call(MOVE_MOUNT, fd, b"", at, _bytes(path), _MOVE_FROM_EMPTY | (0 if path else _MOVE_TO_EMPTY))


def move_attached(source: str, target: str) -> None:
    """Move a mount, with all that is mounted below it, to another place."""
    _call(MOVE_MOUNT, _AT_FDCWD, _bytes(source), _AT_FDCWD, _bytes(target), 0)


def idmapped(path: str, userns: int, at: int = _AT_FDCWD, attributes: int = 0) -> int:
    """A detached clone of the tree at `path`, seen through the map of `userns`: a descriptor."""
    tree = open_tree(path, at)
    try:
        mount_setattr(tree, ATTR_IDMAP | attributes, userns=userns)
    except OSError:
        os.close(tree)
        raise
    return tree


def cloned(path: str, at: int = _AT_FDCWD, attributes: int = 0) -> int:
    """A detached clone of the tree at `path`, as it is: a descriptor."""
    tree = open_tree(path, at)
    try:
        mount_setattr(tree, attributes)
    except OSError:
        os.close(tree)
        raise
    return tree


class Filesystem:
    """A filesystem being configured: fsopen, fsconfig, fsmount."""

    def __init__(self, kind: str) -> None:
        self._fd = _call(FSOPEN, _bytes(kind), _FSOPEN_CLOEXEC)

    def set(self, key: str, value: str | int | None = None) -> None:
        """A string (≤ 255 bytes), a descriptor (int), or a flag (None)."""
        if value is None:
            _call(FSCONFIG, self._fd, _SET_FLAG, _bytes(key), None, 0)
        elif isinstance(value, int):
            _call(FSCONFIG, self._fd, _SET_FD, _bytes(key), None, value)
        else:
            _call(FSCONFIG, self._fd, _SET_STRING, _bytes(key), _bytes(value), 0)

    def create(self, attributes: int = 0) -> int:
        """Mount it, detached: a descriptor. The error carries what the kernel logged to this filesystem's context."""
        try:
            _call(FSCONFIG, self._fd, _CREATE, None, None, 0)
            return _call(FSMOUNT, self._fd, _FSMOUNT_CLOEXEC, attributes)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} ({'; '.join(self._messages()) or 'no message'})") from None
        finally:
            os.close(self._fd)

    def _messages(self) -> list[str]:
        found = []
        try:
            while line := os.read(self._fd, 4096):
                found.append(line.decode(errors="replace").strip())
        except OSError:
            pass  # ENODATA: that was all
        return found


def open_within(at: int, path: str, flags: int, resolve: int) -> int:
    """Open an existing file below a directory, as openat2(2), under the rules RESOLVE_*."""
    how = ctypes.create_string_buffer(struct.pack("QQQ", flags, 0, resolve), 24)
    return _call(OPENAT2, at, os.fsencode(path), how, ctypes.c_size_t(24))


def filesystem_type(fd: int) -> int:
    """The magic number of the filesystem that a descriptor's file lies on (statfs(2), f_type)."""
    buffer = ctypes.create_string_buffer(256)
    _check(libc.fstatfs(fd, buffer))
    return int(struct.unpack_from("q", buffer.raw)[0])


def quotactl(fd: int, command: int, ident: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    """A command of quotactl_fd(2) about the file system of a descriptor; `buffer` is read, or filled, as it says."""
    _call(QUOTACTL_FD, fd, ctypes.c_uint(command), ctypes.c_int(ident), buffer)


# --- namespaces and identities


def unshare(flags: int) -> None:
    _check(libc.unshare(flags))


def setns(fd: int, kind: int = 0) -> None:
    _check(libc.setns(fd, kind))


def sethostname(name: str) -> None:
    raw = name.encode()
    _check(libc.sethostname(raw, len(raw)))


def setfsids(ident: int) -> None:
    """The ids that file access is judged by. A change away from 0 drops file capabilities from the effective set."""
    libc.setfsgid(ident)
    libc.setfsuid(ident)


# --- privileges


def prctl(option: int, value: int) -> None:
    _check(libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def set_capabilities(effective: int, permitted: int | None = None) -> None:
    """Inheritable is always empty."""
    permitted = effective if permitted is None else permitted
    words = [word & 0xFFFFFFFF for shift in (0, 32) for word in (effective >> shift, permitted >> shift, 0)]
    header = struct.pack("II", _CAPABILITY_VERSION_3, 0)
    _check(libc.capset(header, struct.pack("6I", *words)))


@functools.cache
def capabilities() -> int:
    """The permitted set of this process, as it was when first asked: before it let go of any."""
    with open("/proc/thread-self/status") as status:
        return int(next(line for line in status if line.startswith("CapPrm")).split()[1], 16)


def limit_bounding_set(mask: int, last: int) -> None:
    for bit in range(last + 1):
        if not mask >> bit & 1:
            prctl(_PR_CAPBSET_DROP, bit)


@functools.cache
def last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap") as f:
        return int(f.read())


def no_new_privileges() -> None:
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_dumpable(value: int) -> None:
    prctl(_PR_SET_DUMPABLE, value)


def set_death_signal(signum: int) -> None:
    """Be sent this signal when the parent dies. Every change of credentials takes it back."""
    prctl(_PR_SET_PDEATHSIG, signum)


def set_subreaper(on: bool = True) -> None:
    prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def set_name(name: str) -> None:
    _check(libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0))


def prefer_short_turns(nanoseconds: int = 100_000, *, inherited: bool = False) -> None:
    """Ask the scheduler for short turns: who takes them is let in at once when he is woken, rather than when whoever
    runs has had his. Nobody needs a privilege for it; a kernel before 6.12 takes no notice, and where it is refused or
    unknown all works as well, only slower."""
    if not supported():
        return
    reset_on_fork = 0 if inherited else 1
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack("=IIQiIQQQ", 48, 0, reset_on_fork, nice, 0, nanoseconds, 0, 0)
    with contextlib.suppress(OSError):
        _call(_NUMBERS["sched_setattr"], 0, ctypes.c_char_p(attributes), 0)


def load_seccomp(program: bytes) -> None:
    """Load a BPF program: an array of struct sock_filter."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 16)
    _call(_NUMBERS["seccomp"], 1, 0, fprog)


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    """No request that peeks: those answer in another way."""
    _check(libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), ctypes.c_void_p(data)))


def landlock(number: int, *args: object) -> int:
    """One of landlock(7)'s calls: 444 to 446."""
    return _call(number, *args)
