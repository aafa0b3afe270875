"""Archives that the targets begin with, and the place where they are unpacked: beside something that must stay as it is.

Where the first byte of an input is odd the checksums of all headers are put right first, so that changes in them are
looked at.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

BLOCK = 512
_ME = {"uid": os.getuid(), "gid": os.getgid()}


def entry(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in {**_ME, **more}.items():
        setattr(info, key, value)
    return info, data


def tar(form: int, *entries: tuple[tarfile.TarInfo, bytes], headers: dict[str, str] | None = None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form, pax_headers=headers) as made:
        for info, data in entries:
            made.addfile(info, io.BytesIO(data))
    end = packed.getvalue().rstrip(b"\0")
    return end + bytes(-len(end) % BLOCK + 2 * BLOCK)


def beside_a_canary(unpack: Callable[[Path, bytes], None], data: bytes) -> None:
    home = Path(tempfile.mkdtemp(prefix="boxwood-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        canary = home / "outside/canary"
        canary.parent.mkdir()
        canary.write_bytes(b"alive")
        canary.chmod(0o640)
        (home / "target").mkdir()
        before = _seen(home)
        unpack(home / "target", _mended(data[1:]) if data[:1] and data[0] & 1 else data[1:])
        assert _seen(home) == before, "something outside the target was touched"
    finally:
        shutil.rmtree(home)


def _mended(data: bytes) -> bytes:
    """With the checksums that its headers should have."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - BLOCK + 1, BLOCK):
        if blocks[at + 257 : at + 262] == b"ustar":
            rest = sum(blocks[at : at + 148]) + sum(blocks[at + 156 : at + BLOCK]) + 8 * 32
            blocks[at + 148 : at + 156] = b"%06o\0 " % rest
    return bytes(blocks)


def _seen(home: Path) -> object:
    canary, outside = home / "outside/canary", home / "outside"
    status = canary.lstat()
    return (
        sorted(os.listdir(home)), os.listdir(outside), canary.read_bytes(), status.st_mode, status.st_nlink, status.st_uid,
        status.st_mtime_ns, stat.S_IMODE(outside.stat().st_mode),
    )  # fmt: skip
