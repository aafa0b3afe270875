"""The files that tops lie in: a template of each size, made once by mkfs.ext4, and copies of it, mostly holes.

No journal: after a loss of power a file system is checked (e2fsck) before it is used, and overlays are volatile anyway.
One inode for each 16 KiB, so that files without contents are bounded too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from boxwood.engine.api import EngineError
from boxwood.engine.disk import BLOCK, IMAGE, MIB

LEAST = 16 * MIB  # the smallest size
MOST = 16 << 40  # the largest: ext4 with 4 KiB blocks ends there
_INODE_BYTES = 16 << 10  # of the size, for each inode
_ROOM = 16 * MIB  # beside the size and a 32nd of it, which tables of inodes take a half of
_FEATURES = "^has_journal,^metadata_csum,^metadata_csum_seed,^orphan_file,^resize_inode,uninit_bg,sparse_super2"
_SUPERBLOCK, _STATE_AT, _CLEAN = 1024, 0x3A, 1
_MKFS_SECONDS, _CHECK_SECONDS = 120, 3600
_REPAIRED = 3  # e2fsck's status: bits of "errors were corrected"
_SEARCHED = "/usr/sbin:/sbin:/usr/bin:/bin"


def size_for(limit: int) -> int:
    """Bytes that a file system can be grown to without another file: the next power of two, so there are few sizes."""
    return max(LEAST, 1 << (limit - 1).bit_length())


def tool(name: str) -> str:
    """Where a program of e2fsprogs is. EngineError."""
    found = shutil.which(name, path=_SEARCHED)
    if found is None:
        raise EngineError(f"{name} is not there, which disks of VMs with a limit need: apt install e2fsprogs")
    return found


def template(directory: Path, size: int) -> Path:
    """An empty file system of this size, made now if it is not there. EngineError."""
    path = directory / f"{size // MIB}-v1.img"
    if path.exists():
        return path
    directory.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".making-") as scratch:
        made, root = Path(scratch, "made"), Path(scratch, "root")
        for name in ("upper", "work"):
            (root / name).mkdir(parents=True)
            (root / name).chmod(0o755)  # an upper is the root directory of its VM
        root.chmod(0o755)
        # For what the file system itself takes, beside what can be used: tables of inodes, and room for an overlay.
        whole = size + size // 32 + _ROOM
        command = [
            tool("mkfs.ext4"), "-q", "-F", "-b", str(BLOCK), "-I", "256", "-m", "0", "-N", str(size // _INODE_BYTES),
            "-O", _FEATURES, "-E", "lazy_itable_init=1,nodiscard,num_backup_sb=0,root_owner=0:0", "-d", str(root),
            str(made), f"{whole // 1024}k",
        ]  # fmt: skip
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MKFS_SECONDS, check=False,
            env={"PATH": _SEARCHED},
        )  # fmt: skip
        if done.returncode:
            raise EngineError(f"mkfs.ext4 failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
        copy_holes(made, Path(scratch, "sparse"))
        os.replace(Path(scratch, "sparse"), path)
    return path


def copy_holes(source: Path, target: Path) -> None:
    """A copy of a file in which whatever is empty is a hole. FileExistsError."""
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(reading).st_size
            os.ftruncate(writing, size)
            at = 0
            while (start := _data_from(reading, at)) is not None:
                at = os.lseek(reading, start, os.SEEK_HOLE)
                for block in range(start // BLOCK * BLOCK, at, BLOCK):
                    data = os.pread(reading, BLOCK, block)
                    if data.count(0) != len(data):
                        os.pwrite(writing, data, block)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _data_from(fd: int, at: int) -> int | None:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        return None  # ENXIO: holes up to the end


def make(layers: Path, templates: Path, top: str, limit: int) -> None:
    """Let a top that has no directory yet lie in a file that is large enough for `limit` bytes. EngineError: it has one
    that is not in a file."""
    directory = layers / top
    if (directory / IMAGE).exists():
        return
    if (directory / "upper").exists():
        raise EngineError(f"layer {top} was made without a limit: it can be sealed, not limited")
    directory.mkdir(mode=0o755, exist_ok=True)
    part = directory / f"{IMAGE}.part"
    part.unlink(missing_ok=True)  # of a server that ended meanwhile
    copy_holes(template(templates, size_for(limit)), part)
    os.rename(part, directory / IMAGE)


def capacity(layers: Path, top: str) -> int | None:
    """Bytes that the limit of a top can be raised to; None: it does not lie in a file; FileNotFoundError: there is
    no such directory."""
    try:
        whole = (layers / top / IMAGE).stat().st_size
    except FileNotFoundError:
        (layers / top).stat()
        return None
    return size_for((whole - _ROOM) * 32 // 33)  # what `template` made it of


def check(layers: Path, layer: str) -> None:
    """Repair what a loss of power may have left of a layer's file. Nothing to do in any other case, also while it is
    attached: then the kernel has it in order. EngineError."""
    path = layers / layer / IMAGE
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (state,) = struct.unpack("<H", os.pread(fd, 2, _SUPERBLOCK + _STATE_AT))
        if state != _CLEAN:
            done = subprocess.run(
                [tool("e2fsck"), "-p", "-f", str(path)], stdin=subprocess.DEVNULL, capture_output=True,
                timeout=_CHECK_SECONDS, check=False, env={"PATH": _SEARCHED},
            )  # fmt: skip
            if done.returncode & ~_REPAIRED:
                raise EngineError(f"the disk {path} is damaged; `e2fsck {path}` may save what can be saved")
    except BlockingIOError:
        pass  # it is attached
    finally:
        os.close(fd)
