"""A tree of the host's /usr for an image without copying it: hard links, else reflinks, else copies.

Only what the host shows to all of its own users is taken: a file or directory that others may not read is left out, and
so are mounts, sockets, FIFOs and devices. First all directories are made, then the files of each are linked by as many
processes as there are processors (0.07 ms a file); a directory gets its mode, owner and time when it is full.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from boxwood.engine import kernel

HIGHEST_ID = 65535  # of users and groups in a layer

Progress = Callable[[str, int, int], None]  # phase, done, total
LeaveOut = Callable[[str, str, bool], bool]  # directory below the source, name, is it a directory?

_FICLONE = 0x40049409
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS}
_STEP = 512  # files between two words of progress
_TALLY = struct.Struct("QQQQ")


@dataclass
class Tally:
    """What a farm holds. `copied`: bytes that are not shared with the host; `left_out`: files and directories."""

    inodes: int = 0
    bytes: int = 0
    copied: int = 0
    left_out: int = 0

    def add(self, inodes: int, bytes_: int, copied: int, left_out: int) -> None:
        self.inodes += inodes
        self.bytes += bytes_
        self.copied += copied
        self.left_out += left_out


@dataclass
class _Directory:
    path: str  # below source and target alike
    status: os.stat_result
    files: list[str] = field(default_factory=list)


def plant(source: Path, target: Path, leave_out: LeaveOut, progress: Progress) -> Tally:
    """Make `target`, an empty directory, a farm of `source`. Forks: only for a process of one thread."""
    tally = Tally()
    progress("directories", 0, 1)
    directories = list(_lay_out(source, target, leave_out, tally))
    total = sum(len(directory.files) for directory in directories)
    shares = _shares(directories, total, len(os.sched_getaffinity(0)))
    progress("files", 0, total)
    done = 0
    with _workers(source, target, shares) as pipes:
        for numbers in _reports(pipes):
            tally.add(*numbers)
            done += numbers[0] + numbers[3]
            progress("files", min(done, total), total)
    tally.inodes += len(directories)
    return tally


def visible(status: os.stat_result) -> bool:
    """Does the host show this to all of its users?"""
    wanted = 0o005 if stat.S_ISDIR(status.st_mode) else 0o004
    return status.st_mode & wanted == wanted or (stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o001))


def _lay_out(source: Path, target: Path, leave_out: LeaveOut, tally: Tally) -> Iterator[_Directory]:
    """Make all directories below `target`; what is to be linked into each."""
    home = os.stat(source).st_dev
    waiting = [""]
    while waiting:
        path = waiting.pop()
        try:
            fd = os.open(os.path.join(source, path), _DIRECTORY)
        except FileNotFoundError:
            continue  # went away since
        except PermissionError:  # we are not root, and others may not read it either
            tally.left_out += 1
            continue
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            status = os.fstat(fd)
            if path and (status.st_dev != home or not visible(status)):
                tally.left_out += 1
                continue
            if path:
                os.mkdir(os.path.join(target, path), 0o700)
            directory = _Directory(path, status)
            for entry in stack.enter_context(os.scandir(fd)):
                is_directory = entry.is_dir(follow_symlinks=False)
                if leave_out(path, entry.name, is_directory):
                    continue
                if is_directory:
                    waiting.append(os.path.join(path, entry.name))
                else:
                    directory.files.append(entry.name)
            yield directory


def _shares(directories: list[_Directory], total: int, workers: int) -> list[list[_Directory]]:
    shares: list[list[_Directory]] = [[]]
    held = 0
    for directory in directories:
        if held > total / workers:
            shares.append([])
            held = 0
        shares[-1].append(directory)
        held += len(directory.files)
    return shares


@contextlib.contextmanager
def _workers(source: Path, target: Path, shares: list[list[_Directory]]) -> Iterator[list[int]]:
    """A process for each share; the read ends of the pipes in which they report. All have ended well afterwards."""
    children: dict[int, int] = {}
    try:
        for share in shares:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if pid == 0:
                _work(source, target, share, writer)
            os.close(writer)
            children[pid] = reader
        yield list(children.values())
        for pid in list(children):
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(children.pop(pid))
            if status:
                raise OSError(
                    status if status > 0 else errno.EINTR, f"{os.strerror(max(status, 0))} while linking files"
                )
    finally:
        for pid, reader in children.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)


def _reports(pipes: list[int]) -> Iterator[tuple[int, int, int, int]]:
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe, select.POLLIN)
    open_ = len(pipes)
    while open_:
        for pipe, _ in poll.poll():
            if report := os.read(pipe, _TALLY.size):
                yield _TALLY.unpack(report)
            else:
                poll.unregister(pipe)
                open_ -= 1


def _work(source: Path, target: Path, share: list[_Directory], reports: int) -> None:
    """Never returns: the exit status is the errno of what failed, 0 for nothing."""
    status = errno.EIO
    try:
        kernel.set_death_signal(signal.SIGKILL)
        _fill(source, target, share, lambda tally: os.write(reports, tally))
        status = 0
    except OSError as error:
        status = error.errno or errno.EIO
        os.write(2, f"{error.filename}: {error.strerror}\n".encode(errors="replace"))
    finally:
        os._exit(min(status, 255))


def _fill(source: Path, target: Path, share: list[_Directory], report: Callable[[bytes], object]) -> None:
    tally = Tally()
    pending = 0
    for directory in share:
        try:
            from_fd = os.open(os.path.join(source, directory.path), _DIRECTORY)
        except FileNotFoundError:
            continue
        to_fd = os.open(os.path.join(target, directory.path), _DIRECTORY)
        for name in directory.files:
            _take(name, from_fd, to_fd, tally)
            pending += 1
            if pending == _STEP:
                report(_TALLY.pack(tally.inodes, tally.bytes, tally.copied, tally.left_out))
                tally, pending = Tally(), 0
        put_status(to_fd, directory.status)
        os.close(from_fd)
        os.close(to_fd)
    report(_TALLY.pack(tally.inodes, tally.bytes, tally.copied, tally.left_out))


def _take(name: str, from_fd: int, to_fd: int, tally: Tally) -> None:
    try:
        status = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode) and (
            not stat.S_ISREG(status.st_mode) or not visible(status) or max(status.st_uid, status.st_gid) > HIGHEST_ID
        ):
            tally.left_out += 1
            return
        copied = 0
        try:
            if os.geteuid():  # a link to what belongs to others cannot be changed in a VM, nor given to its root
                raise PermissionError(errno.EPERM, "not root")
            os.link(name, name, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            copied = copy_file(name, from_fd, name, to_fd)
    except PermissionError:  # we are not root, and may perhaps run it, but not read it
        tally.left_out += 1
        return
    except FileNotFoundError:
        return  # a package is being installed or removed: the fingerprint will tell
    tally.add(1, status.st_size, copied, 0)


def copy_file(name: str, from_fd: int, new_name: str, to_fd: int) -> int:
    """Copy a regular file or a symlink with its status, sharing its blocks where that can be; bytes really copied."""
    status = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=from_fd), new_name, dir_fd=to_fd)
        if os.geteuid() == 0:
            os.chown(new_name, *_owner(status), dir_fd=to_fd, follow_symlinks=False)
        return 0
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=from_fd)
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        target = os.open(
            new_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=to_fd
        )
        try:
            copied = _copy_content(source, target)
            put_status(target, status)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return copied


def _copy_content(source: int, target: int) -> int:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        pass  # another file system, or one without reflinks
    else:
        return 0
    copied = 0
    while count := os.sendfile(target, source, None, 1 << 24):
        copied += count
    return copied


def put_status(fd: int, status: os.stat_result) -> None:
    """Owner, mode and times of a file or directory; ids that a layer cannot have become root's, without set-id bits."""
    owner = _owner(status)
    mode = stat.S_IMODE(status.st_mode)
    if owner != (status.st_uid, status.st_gid):
        mode &= ~(stat.S_ISUID | stat.S_ISGID)
    if os.geteuid() == 0:
        os.fchown(fd, *owner)
    os.fchmod(fd, mode)
    os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _owner(status: os.stat_result) -> tuple[int, int]:
    return (status.st_uid, status.st_gid) if max(status.st_uid, status.st_gid) <= HIGHEST_ID else (0, 0)
