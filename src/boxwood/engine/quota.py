"""Project quotas: how much of a disk a top may take, counted and enforced by the file system that layers lie on.

A top gets a project id of its own before anything is made in it, and hands it on to all that is made below: upper,
work, new files, copies from the layers below. The id is the layer's, not the VM's, and stays with it when it is
sealed. The file system itself is the only record of who has which id, so no crash can lose it, and several servers may
share a file system: an id is free if nothing is counted to it, and taken by being the only one who is.

XFS and ext4 are spoken to in the same words, those of XFS, which the kernel understands for both. Sources: quotactl(2),
linux/dqblk_xfs.h, ioctl_xfs_fsgetxattr(2). Only root of the host's user namespace can do any of this; a box cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import heapq
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from boxwood.engine import kernel as k
from boxwood.engine.ulid import checked

# Above what people, container engines and kubelets give out. A bounded window, used from its lower end: an id once used
# costs its file system some 140 bytes for ever (XFS: 4 KiB for each 30 ids).
FIRST_PROJECT, PROJECTS = 0x42000000, 1 << 20

# What a limit is at least: a VM that has used up its disk boots, is read, and can delete, which takes new inodes.
LEAST_BYTES, LEAST_INODES = 1 << 20, 256

_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_XATTR = struct.Struct("=5I8x")  # flags, extent size, extents, project, extent size for copies
_INHERIT = 0x200

_OF_PROJECTS = 2
_GET, _SET_LIMITS, _GET_STATE, _GET_INFO = (
    command << 8 | _OF_PROJECTS for command in (0x5803, 0x5804, 0x5808, 0x800005)
)
_RECORD_SIZE, _STATE_SIZE = 112, 256
_NUMBERS = struct.Struct("=bBHI6Q")  # version, flags, fields, id; hard and soft limit of blocks, of inodes; used
_VERSION, _PROJECT_FLAG, _LIMITS = 1, 2, 0xF  # fields: soft and hard limits of inodes and of blocks
_COUNTED, _ENFORCED = 1 << 4, 1 << 5
_BLOCK = 512

_NAMES = {k.XFS_MAGIC: "xfs", k.EXT4_MAGIC: "ext4"}
_HOW = {
    "xfs": "mount it with the option prjquota",
    "ext4": "`tune2fs -O project -Q prjquota DEVICE` while it is not mounted; then mount it with the option prjquota",
}
_SETTINGS = {"xfs": "CONFIG_XFS_QUOTA", "ext4": "CONFIG_QUOTA and CONFIG_QFMT_V2"}
POOL = "make a pool for layers: `boxwood storage init`"


class NoQuota(Exception):
    """A file system that cannot limit a directory. `why` names what is missing, `fix` what to do about it."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(f"{why} ({fix})")
        self.why = why
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Usage:
    """What is counted to a project, and its limits; 0: no limit. The bytes are those of whole blocks on disk."""

    bytes: int = 0
    inodes: int = 0
    most_bytes: int = 0
    most_inodes: int = 0


class Quota:
    """The project quotas of the file system of `layers_fd`, the directory of layers, which must stay open. NoQuota."""

    def __init__(self, layers_fd: int) -> None:
        self.kind = kind_of(layers_fd)
        if project_of(layers_fd)[1]:  # what is moved out of a top into an inheriting directory would be refused
            why = "the directory of layers belongs to a project of its own and hands it on"
            raise NoQuota(why, "clear it: `xfs_io -c 'chproj 0' -c 'chattr -P' DIRECTORY`, on ext4 `chattr -p 0 -P`")
        self._fd = layers_fd
        self._next = FIRST_PROJECT
        self._freed: list[int] = []

    def prepare_top(self, top: str, most_bytes: int | None, most_inodes: int | None) -> int:
        """The same by a layer's id; its directory is made if it is not there. To be called before
        `overlay.prepare_top`, which makes what is in it."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(checked(top), 0o755, dir_fd=self._fd)
            os.chmod(top, 0o755, dir_fd=self._fd)  # whatever the umask
        top_fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return self.prepare(top_fd, most_bytes, most_inodes)
        finally:
            os.close(top_fd)

    def prepare(self, top_fd: int, most_bytes: int | None, most_inodes: int | None) -> int:
        """Give a top a project, unless it has one, and set its limits (None: none): its project. `top_fd`: the top's
        directory, opened for reading; it must be empty if it has no project: OSError ENOTEMPTY."""
        project, inherits = project_of(top_fd)
        if not (inherits and project in _window()):
            if os.listdir(top_fd):
                raise OSError(errno.ENOTEMPTY, "this top was made without a quota, and what it holds would not count")
            project = self._claim(top_fd)
        self.hold(project, most_bytes, most_inodes)
        return project

    def hold(self, project: int, most_bytes: int | None, most_inodes: int | None) -> None:
        """Set the limits of a project, at once, live or not; below what is used: then nothing more can be written."""
        set_limits(
            self._fd,
            project,
            0 if most_bytes is None else max(most_bytes, LEAST_BYTES),
            0 if most_inodes is None else max(most_inodes, LEAST_INODES),
        )

    def used(self, project: int) -> Usage:
        """What a project holds: 2 µs, however much it is."""
        return usage(self._fd, project)

    def clear(self, project: int) -> None:
        """When a layer is gone, or sealed: no limits any more. Its id is another's as soon as nothing has it."""
        if project not in _window():
            raise ValueError(f"{project} is no project of a layer")
        set_limits(self._fd, project, 0, 0)
        heapq.heappush(self._freed, project)

    def _claim(self, top_fd: int) -> int:
        """Take an id for an empty directory by being the only one who has it. Two that try the same see each other."""
        for project in self._candidates():
            if usage(self._fd, project) != Usage():
                continue
            set_project(top_fd, project)
            found = usage(self._fd, project)
            if (found.inodes, found.most_bytes, found.most_inodes) == (1, 0, 0):
                return project
            set_project(top_fd, 0, inherit=False)
        raise OSError(errno.ENOSPC, f"all {PROJECTS} project ids for layers are in use on this file system")

    def _candidates(self) -> Iterator[int]:
        """Each id at most once in a call: what has been freed, then what has not been looked at, then all again."""
        while self._freed:
            yield heapq.heappop(self._freed)
        for _ in range(PROJECTS):
            project = self._next
            self._next = FIRST_PROJECT + (project + 1 - FIRST_PROJECT) % PROJECTS
            yield project


@contextlib.contextmanager
def lifted(fd: int, project: int) -> Iterator[None]:
    """No limits meanwhile: an overlay on a top that is full could not be mounted. `fd`: anything of its file system,
    also a detached mount. Whoever is killed in here leaves none, so `hold` comes before each boot."""
    before = usage(fd, project)
    set_limits(fd, project, 0, 0)
    try:
        yield
    finally:
        set_limits(fd, project, before.most_bytes, before.most_inodes)


# --- file systems


def kind_of(fd: int) -> str:
    """`xfs` or `ext4`, if project quotas are enforced on the file system of a descriptor. NoQuota."""
    kind = _NAMES.get(k.filesystem_type(fd))
    if kind is None:
        raise NoQuota("its file system has no project quotas; XFS and ext4 have", POOL)
    flags = _state(fd, kind)
    if not flags & _COUNTED:
        raise NoQuota(f"its {kind} is mounted without project quotas", f"{_HOW[kind]}; or {POOL}")
    if not flags & _ENFORCED:
        raise NoQuota(f"its {kind} counts for projects but enforces nothing", f"{_HOW[kind]}; or {POOL}")
    return kind


def _state(fd: int, kind: str) -> int:
    """The flags of struct fs_quota_statv: what is counted and enforced. NoQuota."""
    state = ctypes.create_string_buffer(b"\1", _STATE_SIZE)
    for command in (_GET_STATE, _GET_INFO):
        try:
            k.quotactl(fd, command, 0, state)
            return int(struct.unpack_from("=H", state.raw, 2)[0]) if command == _GET_STATE else 0
        except OSError as error:
            if error.errno == errno.ESRCH:
                return 0
            if error.errno != errno.ENOSYS:  # nothing is on, or there is nothing to be on: the other command tells
                raise NoQuota(f"its {kind} does not tell of quotas: {error.strerror}", POOL) from None
    raise NoQuota(f"this kernel's {kind} has no quotas", f"a kernel with {_SETTINGS[kind]}, as distributions have it")


def told(layers: Path) -> tuple[bool, str, str]:
    """For `doctor`: can this directory, which need not be there yet, limit tops; what by or why not; and what to do."""
    place = next(found for found in (layers, *layers.absolute().parents) if found.is_dir())
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = Quota(fd).kind
    except NoQuota as error:
        return False, error.why, error.fix
    finally:
        os.close(fd)
    return True, f"project quotas of {kind}", ""


# --- projects


def project_of(fd: int) -> tuple[int, bool]:
    """A file's project, and whether what is made in this directory inherits it."""
    try:
        flags, _, _, project, _ = _XATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_XATTR.size)))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return 0, False  # a file system without projects
        raise
    return project, bool(flags & _INHERIT)


def set_project(fd: int, project: int, *, inherit: bool = True) -> None:
    """The project of a directory, and whether what is made in it from now on inherits it."""
    flags, extent, extents, _, copies = _XATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_XATTR.size)))
    flags = flags | _INHERIT if inherit else flags & ~_INHERIT
    fcntl.ioctl(fd, _FSSETXATTR, _XATTR.pack(flags, extent, extents, project, copies))


def usage(fd: int, project: int) -> Usage:
    """What the file system of a descriptor counts to a project."""
    record = ctypes.create_string_buffer(_RECORD_SIZE)
    try:
        k.quotactl(fd, _GET, project, record)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):  # nobody has ever had it
            return Usage()
        raise
    _, _, _, _, blocks, _, inodes, _, used, count = _NUMBERS.unpack_from(record.raw)
    return Usage(used * _BLOCK, count, blocks * _BLOCK, inodes)


def set_limits(fd: int, project: int, most_bytes: int, most_inodes: int) -> None:
    """Hard limits, in bytes (of which whole blocks of 512 count) and inodes; 0: none."""
    if project == 0 or most_bytes < 0 or most_inodes < 0:
        raise ValueError(f"no limits of a project: {project}, {most_bytes}, {most_inodes}")
    blocks = most_bytes // _BLOCK
    record = ctypes.create_string_buffer(_RECORD_SIZE)
    _NUMBERS.pack_into(record, 0, _VERSION, _PROJECT_FLAG, _LIMITS, project, blocks, 0, most_inodes, 0, 0, 0)
    k.quotactl(fd, _SET_LIMITS, project, record)


def is_layers(project: int) -> bool:
    """Is it one of those that layers are given?"""
    return project in _window()


def _window() -> range:
    return range(FIRST_PROJECT, FIRST_PROJECT + PROJECTS)
