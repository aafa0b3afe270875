"""Images from root file systems that a user brings: a tar archive (plain, gzip, bzip2, xz, zstd) or a directory.

The archive is a stranger's: a confined child reads it (unpack.py, confine.py). Here only its descriptor, the number of
its bytes and what the child says are handled, and that is not believed before it is checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from boxwood.images.farm import Progress
from boxwood.images.shelf import ImageError, Part, Shelf, default_directory, usable

VERSION = 2  # of what is done to a root file system
_LINE = 1 << 16
_BLOCK = 1 << 20
_BROKEN = "the reader of the archive broke its word: the archive may have been made to do that"


@dataclass(frozen=True, slots=True)
class ImportedImage:
    """`digest`: SHA-256 of the archive, None for a directory: the same archive is the same layer.

    `bytes`: of all files. `skipped`: devices and sockets, which no layer holds. `seconds`: the import took.
    """

    layer_id: str
    digest: str | None
    inodes: int
    bytes: int
    skipped: int
    seconds: float


def import_rootfs(images_dir: Path | None, source: Path, progress: Progress | None = None) -> ImportedImage:
    """Make a layer of a root file system. Blocks; `progress(phase, done, total)`, phases `read` and `unpack`.

    :raises ImageError: no such file, not a whole archive, hostile, too large, or without a shell that this machine
        runs; nothing of it is left.
    """
    images_dir = default_directory() if images_dir is None else images_dir
    tell = progress or _nothing
    started = time.monotonic()
    with _opened(source) as (fd, status), usable(images_dir):
        shelf = Shelf(images_dir)
        digest = None
        if stat.S_ISREG(status.st_mode):
            digest = _digest(fd, status.st_size, tell)
            if (entry := shelf.find("rootfs", f"{VERSION}:{digest}")) is not None:
                return ImportedImage(**entry)
        part = shelf.begin()
        try:
            made = _unpack(fd, status, part, tell)
            part.finish()
        except BaseException:
            part.discard()
            raise
        image = ImportedImage(part.layer_id, digest, **made, seconds=round(time.monotonic() - started, 2))
        if digest is not None:
            shelf.record("rootfs", f"{VERSION}:{digest}", asdict(image))
    return image


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tuple[int, os.stat_result]]:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(f"{source}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ImageError(f"{source} is neither a file nor a directory")
        yield fd, status
    finally:
        os.close(fd)


def _digest(fd: int, size: int, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    while block := os.pread(fd, _BLOCK, done):
        digest.update(block)
        done += len(block)
        progress("read", min(done, size), size)
    return digest.hexdigest()


def _unpack(fd: int, status: os.stat_result, part: Part, progress: Progress) -> dict[str, int]:
    kind, total = ("tar", status.st_size) if stat.S_ISREG(status.st_mode) else ("directory", 0)
    command = [
        sys.executable,
        "-I",
        "-X",
        "utf8",
        "-m",
        "boxwood.images.unpack",
        kind,
        str(fd),
        str(part.upper),
        str(total),
    ]
    os.set_blocking(fd, True)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=(fd,),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin"},
    )
    with child:
        assert child.stdout is not None and child.stderr is not None
        try:
            made = _listen(child.stdout, progress)
            text = child.stderr.read(_LINE).decode(errors="replace").strip()
        except BaseException:
            child.kill()
            while child.stdout.read(_BLOCK):
                pass  # its end is the end of everything that writes into the part
            raise
    if isinstance(made, str):
        raise ImageError(made)
    if made is None or child.returncode:
        raise ImageError(f"the archive could not be read: {ascii(text[-500:]) if text else 'its reader was killed'}")
    return made


def _listen(stdout: IO[bytes], progress: Progress) -> dict[str, int] | str | None:
    """The child's last word: what it made, or its error; None: it ended without one."""
    result: dict[str, int] | str | None = None
    while line := stdout.readline(_LINE):
        said = _heard(line)
        if isinstance(error := said.get("error"), str):
            result = "".join(c if c.isprintable() else "?" for c in error[:2000])
        elif isinstance(made := said.get("made"), dict):
            result = {name: _number(made, name) for name in ("inodes", "bytes", "skipped")}
        else:
            total = _number(said, "total")
            progress("unpack", min(_number(said, "done"), total), total)
    return result


def _heard(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ImageError(_BROKEN)
    return said


def _number(said: dict[str, Any], name: str) -> int:
    value = said.get(name)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ImageError(_BROKEN)
    return value


def _nothing(phase: str, done: int, total: int) -> None:
    pass
