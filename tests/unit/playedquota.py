"""A file system with project quotas, played: what engine/quota.py asks of the kernel, and what it answers."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from boxwood.engine import kernel as k
from boxwood.engine import quota

RECORD = struct.Struct("<bBHI10Qi")  # of struct fs_disk_quota (linux/dqblk_xfs.h) as far as it matters here
PLAYED_SET = 0x401C5820


class PlayedKernel:
    """A file system that counts directories, one inode each. `flags`: None: there are no quotas at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, magic: int = k.XFS_MAGIC) -> None:
        self.flags: int | None = 0x30
        self.projects: dict[int, tuple[int, int]] = {}  # inode numbers -> flags, project
        self.limits: dict[int, tuple[int, int]] = {}  # projects -> blocks of 512, inodes
        self.foreign: dict[int, int] = {}  # inodes that somebody else has made
        monkeypatch.setattr(k, "quotactl", self.quotactl)
        monkeypatch.setattr(k, "filesystem_type", lambda fd: magic)
        monkeypatch.setattr(quota.fcntl, "ioctl", self.ioctl)

    def ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        inode = os.fstat(fd).st_ino
        if request == PLAYED_SET:
            flags, _, _, project, _ = struct.unpack("<5I8x", data)
            self.projects[inode] = flags, project
            return data
        flags, project = self.projects.get(inode, (0, 0))
        return struct.pack("<5I8x", flags, 0, 0, project, 0)

    def inodes(self, project: int) -> int:
        return sum(had == project for _, had in self.projects.values()) + self.foreign.get(project, 0)

    def quotactl(self, fd: int, command: int, ident: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        assert command & 0xFF == 2, "of projects"
        {0x5803: self._get, 0x5804: self._set, 0x5808: self._state, 0x800005: self._info}[command >> 8](ident, buffer)

    def _state(self, ident: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        if not self.flags:
            raise OSError(errno.ENOSYS, "not implemented")
        assert buffer.raw[0] == 1, "the version that is asked for"
        struct.pack_into("<H", buffer, 2, self.flags)

    def _info(self, ident: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        raise OSError(errno.ENOSYS if self.flags is None else errno.ESRCH, "no")

    def _get(self, ident: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        inodes, limits = self.inodes(ident), self.limits.get(ident)
        if not inodes and limits is None:
            raise OSError(errno.ENOENT, "nobody has it")
        blocks, most = limits or (0, 0)
        RECORD.pack_into(buffer, 0, 1, 2, 0, ident, blocks, 0, most, 0, inodes * 8, inodes, 0, 0, 0, 0, 0)

    def _set(self, ident: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        version, flags, fields, project, hard, soft, inodes, soft_inodes, *_ = RECORD.unpack_from(buffer.raw)
        assert (version, flags, fields, project, soft, soft_inodes) == (1, 2, 0xF, ident, 0, 0)
        self.limits[ident] = hard, inodes


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> PlayedKernel:
    return PlayedKernel(monkeypatch)


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[int]:
    """A descriptor of the directory whose tops are counted."""
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)
