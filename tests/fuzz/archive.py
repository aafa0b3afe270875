"""A stranger's tar archive, unpacked as the root file system of an image (see `tarballs`)."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import tarfile
from pathlib import Path

from boxwood.images import archive
from boxwood.images.tree import Limits, Refused, Tree
from fuzz.tarballs import BLOCK, beside_a_canary, entry, tar
from fuzz.target import lines

_LIMITS = Limits(bytes=1 << 20, inodes=200, depth=40, free=0)
_MOST = 8 << 20  # bytes that an archive may unpack to, headers and padding too


_TREE = (
    entry("d", tarfile.DIRTYPE, mode=0o755),
    entry("d/f", data=b"x" * 600, mode=0o4755),
    entry("d/l", tarfile.SYMTYPE, linkname="../outside/canary"),
    entry("h", tarfile.LNKTYPE, linkname="d/f"),
    entry("p", tarfile.FIFOTYPE),
    entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
)
_SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9"}
_PLAIN = (
    tar(tarfile.USTAR_FORMAT, *_TREE),
    tar(tarfile.GNU_FORMAT, *_TREE, entry("n" * 120, data=b"1"), entry("s", tarfile.GNUTYPE_SPARSE, b"x" * 9)),
    tar(tarfile.PAX_FORMAT, entry("é" * 60, data=b"1", pax_headers={"mtime": "1.5", "path": "a/b"}), headers={"comment": "c"}),
    tar(tarfile.PAX_FORMAT, entry("s", data=b"1\n0\n9\n".ljust(512, b"\0") + b"x" * 9, pax_headers=_SPARSE)),
    tar(tarfile.USTAR_FORMAT, entry("door", tarfile.SYMTYPE, linkname="../outside"), entry("door/new", data=b"1")),
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
    b"\x80\0\0\0\0\0\2\0", b"\xff" * 12, b"77777777777\0", bytes(BLOCK), b"1" * BLOCK,
)  # fmt: skip


def check(data: bytes) -> None:
    beside_a_canary(_unpack, data)


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
