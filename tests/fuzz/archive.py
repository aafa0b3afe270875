"""A stranger's tar archive, unpacked beside something that must stay as it is.

Where the first byte is odd the checksums of all headers are put right first, so that changes in them are looked at.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
from pathlib import Path

from boxwood.images import archive
from boxwood.images.tree import Limits, Refused, Tree
from fuzz.target import lines

_LIMITS = Limits(bytes=1 << 20, inodes=200, depth=40, free=0)
_ME = {"uid": os.getuid(), "gid": os.getgid()}
_BLOCK = 512
_MOST = 8 << 20  # bytes that an archive may unpack to, headers and padding too


def _entry(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in {**_ME, **more}.items():
        setattr(info, key, value)
    return info, data


def _tar(form: int, *entries: tuple[tarfile.TarInfo, bytes], headers: dict[str, str] | None = None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form, pax_headers=headers) as made:
        for info, data in entries:
            made.addfile(info, io.BytesIO(data))
    end = packed.getvalue().rstrip(b"\0")
    return end + bytes(-len(end) % _BLOCK + 2 * _BLOCK)


_TREE = (
    _entry("d", tarfile.DIRTYPE, mode=0o755),
    _entry("d/f", data=b"x" * 600, mode=0o4755),
    _entry("d/l", tarfile.SYMTYPE, linkname="../outside/canary"),
    _entry("h", tarfile.LNKTYPE, linkname="d/f"),
    _entry("p", tarfile.FIFOTYPE),
    _entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
)
_SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9"}
_PLAIN = (
    _tar(tarfile.USTAR_FORMAT, *_TREE),
    _tar(tarfile.GNU_FORMAT, *_TREE, _entry("n" * 120, data=b"1"), _entry("s", tarfile.GNUTYPE_SPARSE, b"x" * 9)),
    _tar(tarfile.PAX_FORMAT, _entry("é" * 60, data=b"1", pax_headers={"mtime": "1.5", "path": "a/b"}), headers={"comment": "c"}),
    _tar(tarfile.PAX_FORMAT, _entry("s", data=b"1\n0\n9\n".ljust(512, b"\0") + b"x" * 9, pax_headers=_SPARSE)),
    _tar(tarfile.USTAR_FORMAT, _entry("door", tarfile.SYMTYPE, linkname="../outside"), _entry("door/new", data=b"1")),
)  # fmt: skip
SEEDS = (
    *(mark + plain for plain in _PLAIN for mark in (b"\1", b"\2")),
    b"\0" + gzip.compress(_PLAIN[0], mtime=0),
    b"\0" + gzip.compress(_PLAIN[0][:700], mtime=0) + gzip.compress(_PLAIN[0][700:], mtime=0),
    b"\0" + lzma.compress(_PLAIN[2]),
)
WORDS = (
    *lines("../", "/", "..", ".wh.", ".wh..wh..opq", "outside", "canary", "path=", "linkpath=", "size=", "mtime=", "uid=-1", "\n"),
    *lines("ustar\00000", "ustar  \0", "GNU.sparse.map=0,1", "GNU.sparse.major=1", "hdrcharset=BINARY", "12 path=a/b\n", "nan"),
    *(kind for kind in (b"0", b"1", b"2", b"5", b"L", b"K", b"S", b"x", b"g", b"X")),
    b"\x80\0\0\0\0\0\2\0", b"\xff" * 12, b"77777777777\0", bytes(_BLOCK), b"1" * _BLOCK,
)  # fmt: skip


def check(data: bytes) -> None:
    home = Path(tempfile.mkdtemp(prefix="boxwood-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        canary = home / "outside/canary"
        canary.parent.mkdir()
        canary.write_bytes(b"alive")
        canary.chmod(0o640)
        (home / "target").mkdir()
        before = _seen(home)
        _unpack(home / "target", _mended(data[1:]) if data[:1] and data[0] & 1 else data[1:])
        assert _seen(home) == before, "something outside the target was touched"
    finally:
        shutil.rmtree(home)


def _mended(data: bytes) -> bytes:
    """With the checksums that its headers should have."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - _BLOCK + 1, _BLOCK):
        if blocks[at + 257 : at + 262] == b"ustar":
            rest = sum(blocks[at : at + 148]) + sum(blocks[at + 156 : at + _BLOCK]) + 8 * 32
            blocks[at + 148 : at + 156] = b"%06o\0 " % rest
    return bytes(blocks)


def _unpack(target: Path, data: bytes) -> None:
    packed = io.BytesIO(data)
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    tree = Tree(root, _LIMITS)
    try:
        stream = archive.decompressed(packed, archive.compression(data))
        archive.unpack(archive.Metered(stream, packed.tell, _MOST, lambda _: None), tree)
        tree.close()
    except (Refused, OSError):  # both are answers: see unpack.py
        pass
    else:
        _holds_only_what_it_may(target, tree)
    finally:
        os.close(root)
        tree._forget()


def _holds_only_what_it_may(target: Path, tree: Tree) -> None:
    size = count = 0
    for directory, names, files in os.walk(target):
        for name in (*names, *files):
            status = os.lstat(os.path.join(directory, name))
            assert stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO)
            assert not name.startswith(".wh.")
            size += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0
            count += status.st_nlink == 1 or stat.S_ISDIR(status.st_mode)
    assert count <= tree.inodes <= _LIMITS.inodes and size <= _LIMITS.bytes + 4096 * _LIMITS.inodes


def _seen(home: Path) -> object:
    canary, outside = home / "outside/canary", home / "outside"
    status = canary.lstat()
    return (
        sorted(os.listdir(home)), os.listdir(outside), canary.read_bytes(), status.st_mode, status.st_nlink, status.st_uid,
        status.st_mtime_ns, stat.S_IMODE(outside.stat().st_mode),
    )  # fmt: skip
