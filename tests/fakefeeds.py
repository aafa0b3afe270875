"""Streams into files of a box in memory, for the engine in memory."""

from __future__ import annotations

import errno
import io
import posixpath
import tarfile
from typing import Any

from boxwood.engine.api import (
    GuestError,
)
from boxwood.engine.feeds import Unpacked


class FakeFileFeed:
    def __init__(self, box: Any, path: str) -> None:
        self.box = box
        self.path = path
        self.data = bytearray()
        self.abandoned = False

    async def give(self, data: bytes) -> None:
        self.box._alive("give")
        self.data += data

    def pipe(self) -> None:
        return None

    async def gave(self, size: int, broken: bool) -> None:
        raise AssertionError("nobody has a pipe to write to")

    async def place(self) -> int:
        return await self.box.write_file(self.path, bytes(self.data))

    def abandon(self) -> None:
        self.abandoned = True


class FakeArchiveFeed(FakeFileFeed):
    async def unpacked(self) -> Unpacked:
        living = self.box._alive("unpacked", bytes(self.data))
        try:
            with tarfile.open(fileobj=io.BytesIO(self.data)) as archive:
                inside = [(member, archive.extractfile(member)) for member in archive if member.isfile()]
                files = {member.name: file.read() for member, file in inside if file is not None}
        except tarfile.TarError as error:
            raise GuestError(errno.EINVAL, str(error)) from None
        for name, data in files.items():
            living.write(posixpath.join(self.path, name), data)
        return Unpacked(len(files), sum(map(len, files.values())))
