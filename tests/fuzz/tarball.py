"""A tar archive that a client sends into a VM, as the box's agent unpacks it: as a stream or with skipping, the second
bit of the first byte says which; the third says that it is packed with gzip."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from pathlib import Path

from boxwood.engine.agent import tar
from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.unpacking import Unpacker
from fuzz import archive
from fuzz.tarballs import beside_a_canary, entry
from fuzz.tarballs import tar as made

_MOST = 1 << 20  # bytes
_MEMBERS = 100
_MIXED = made(
    tarfile.GNU_FORMAT, entry("a/b/c", data=b"1", mtime=1e9), entry("a", tarfile.DIRTYPE, mode=0o7777),
    entry("a/b/c", tarfile.SYMTYPE, linkname="c"), entry("l", tarfile.LNKTYPE, linkname="a/b/c"),
)  # fmt: skip
SEEDS = (
    *(seed[:1].replace(b"\0", b"\4") + seed[1:] for seed in archive.SEEDS),
    *(bytes((mark,)) + _MIXED for mark in (1, 3)),
)
WORDS = archive.WORDS


def check(data: bytes) -> None:
    how = data[0] if data else 0
    beside_a_canary(lambda target, archived: _unpack(target, archived, bool(how & 2), bool(how & 4)), data)


def _unpack(target: Path, data: bytes, skipping: bool, packed: bool) -> None:
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    unpacker = Unpacker(top, owners=skipping and os.getuid() == 0, skipping=skipping, most=_MEMBERS)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            unpacker.unpack(tar.Source(file.fileno(), packed=packed, limit=_MOST), whole=skipping)
    except Refusal as refusal:
        assert refusal.errno > 0
        refusal.text.encode()
    finally:
        os.close(top)
    _holds_only_what_it_may(target, unpacker)


def _holds_only_what_it_may(target: Path, unpacker: Unpacker) -> None:
    size = 0
    for directory, names, files in os.walk(os.fsencode(target)):
        for name in (*names, *files):
            assert not name.startswith(b".boxwood-new-"), "a file that is not whole has a name"
            status = os.lstat(os.path.join(directory, name))
            assert stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
            assert stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o6000
            size += status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
    assert size <= unpacker.bytes <= _MOST and unpacker.entries + unpacker.skipped <= _MEMBERS
