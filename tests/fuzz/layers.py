"""The state of a VM that is imported, unpacked into a layer: by the jail's reader of tar archives, in this process. The
second bit of the first byte says that there is nothing below the layer."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from boxwood.engine.layers import tar, unpack
from boxwood.engine.layers.tar import Entry, Refused
from boxwood.engine.tarform import padding
from fuzz.tarballs import beside_a_canary
from fuzz.target import lines

_MOST = 1 << 20  # bytes
_TOP = Entry(tar.DIRECTORY, b"tree", 0o755)


def _packed(*entries: tuple[Entry, bytes]) -> bytes:
    pieces = (tar.encode(entry) + content + bytes(padding(len(content))) for entry, content in entries)
    return b"".join(pieces)


_MAP = b"2\n0\n3\n4096\n3\n".ljust(512, b"\0")
_PLAIN = (
    _packed(
        (_TOP, b""),
        (Entry(tar.FILE, b"tree/f", 0o4755, size=5, mtime=1_500_000_000_123_456_789), b"hello"),
        (Entry(tar.DIRECTORY, b"tree/d", 0o1777), b""),
        (Entry(tar.SYMLINK, b"tree/d/l", 0o777, target=b"../../outside/canary"), b""),
        (Entry(tar.LINK, b"tree/d/h", target=b"tree/f"), b""),
        (Entry(tar.FIFO, b"tree/p", 0o600), b""),
    ),
    _packed(
        (_TOP, b""),
        (Entry(tar.FILE, b"tree/s", 0o644, size=518, real_size=9000), _MAP + b"abcdef"),
        (Entry(tar.FILE, b"tree/" + b"\xff" * 120, 0o600, mtime=-5, attributes={b"user.x": b"1"}), b""),
        (Entry(tar.DEVICE, b"tree/gone"), b""),
        (Entry(tar.DIRECTORY, b"tree/o", 0o755, attributes={b"user.overlay.opaque": b"y"}), b""),
    ),
    _packed((_TOP, b""), (Entry(tar.SYMLINK, b"tree/door", target=b"../outside"), b""), (Entry(tar.FILE, b"tree/door/x"), b"")),
)  # fmt: skip
SEEDS = tuple(bytes((mark,)) + plain for plain in _PLAIN for mark in (0, 1, 3))
WORDS = (
    *lines("tree/", "../", "/", "..", "outside", "canary", "path=", "linkpath=", "size=", "mtime=", "mtime=-1.5", "\n", "ustar\00000"),
    *lines("SCHILY.xattr.user.overlay.opaque=y", "SCHILY.xattr.security.capability=", "GNU.sparse.realsize=", "9" * 18, "12 path=a/b\n"),
    *(bytes((kind,)) for kind in b"01235678xgLKS"), b"\x80\0\0\0\0\0\2\0", b"77777777777\0", bytes(512),
)  # fmt: skip


def check(data: bytes) -> None:
    whole = bool(data[:1] and data[0] & 2)
    beside_a_canary(lambda target, archived: _unpack(target, archived, whole), data)


def _unpack(target: Path, data: bytes, whole: bool) -> None:
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            made = unpack.Unpack(file.fileno(), top, whole=whole, most=_MOST)
            made._looked = 1  # how full the disk of this machine is says nothing of an archive
            try:
                made.run()
            except (Refused, OSError):  # both are answers: see jail.py
                return
            finally:
                for _, fd in made._levels:  # its process would have ended by now
                    os.close(fd)
    finally:
        os.close(top)
    for directory, names, files in os.walk(os.fsencode(target)):
        for name in (*names, *files):
            status = os.lstat(os.path.join(directory, name))
            kind = stat.S_IFMT(status.st_mode)
            assert kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO) or not (whole or status.st_rdev)
    assert made.bytes <= _MOST and made.inodes >= 1
