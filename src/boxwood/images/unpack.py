"""The child that brings a root file system in: `python -I -m boxwood.images.unpack tar|directory FD TARGET SIZE`.

Descriptor FD is the archive or the directory; stdout takes JSON lines: `{"done", "total"}`, and at last `{"made": {…}}`
or `{"error": text}`. Everything that touches a stranger's bytes happens after `confine`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from boxwood.engine import kernel
from boxwood.images import archive
from boxwood.images.confine import become_nobody, confine
from boxwood.images.directory import Source
from boxwood.images.outfit import outfit
from boxwood.images.tree import Limits, Refused, Tree


def main() -> int:
    kind, fd, target, total = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    os.umask(0)
    kernel.set_death_signal(signal.SIGKILL)
    try:
        compression = archive.compression(os.pread(fd, 16, 0)) if kind == "tar" else None
        packed = _unzstd(fd) if compression == "zstd" and archive.ZSTD is None else None
        confine(target, packed.helper if packed else None)
        made = _bring_in(kind, fd, total, compression, packed)
    except (Refused, OSError, MemoryError) as error:
        _say({"error": str(error) or type(error).__name__})
        return 1
    _say({"made": made})
    return 0


def _bring_in(kind: str, fd: int, total: int, compression: str | None, packed: Unzstd | None) -> dict[str, int]:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    limits = Limits()
    tree = Tree(root, limits)
    if kind == "directory":
        source = Source(fd, tree, _telling(0))
        source.copy()
        skipped = source.skipped
    else:
        archived = open(fd, "rb", closefd=False)  # noqa: SIM115 (until this process ends)
        stream = packed.stream if packed else archive.decompressed(archived, compression)
        most = limits.bytes + limits.inodes * 2048  # an entry is at least 512 bytes of archive, and then its padding
        metered = archive.Metered(stream, lambda: os.lseek(fd, 0, os.SEEK_CUR), most, _telling(total))
        skipped = archive.unpack(metered, tree)
    tree.close()
    outfit()
    if kernel.libc.syncfs(root) < 0:
        raise OSError("the disk did not take it")
    return {"inodes": tree.inodes, "bytes": tree.bytes, "skipped": skipped}


@dataclass(frozen=True, slots=True)
class Unzstd:
    """The `zstd` program at work on the archive: a process, and what comes out of it."""

    helper: int
    stream: IO[bytes]


def _unzstd(fd: int) -> Unzstd:
    program = shutil.which("zstd", path="/usr/bin:/bin:/usr/local/bin")
    if program is None:
        raise Refused("to read a .tar.zst this host needs the program zstd (apt install zstd), or Python 3.14")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(fd, 0)
            os.dup2(writer, 1)
            become_nobody()
            os.execve(program, ["zstd", "-dcq", "--memory=1024MB"], {})
        finally:
            os._exit(127)
    os.close(writer)
    return Unzstd(pid, open(reader, "rb", buffering=0))


def _telling(total: int) -> Callable[[int], None]:
    """Says how far it is, some two hundred times in all; every 2000 entries where the total is not known."""
    step = total // 200 or 2000
    last = -step

    def told(done: int) -> None:
        nonlocal last
        if done - last >= step:
            last = done
            _say({"done": min(done, total), "total": max(total, 1)})

    return told


def _say(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
