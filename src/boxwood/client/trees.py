"""Directories of this machine, packed to be sent and unpacked as they came; no request is made here.

What a VM sends is not trusted: nothing is written outside the directory, no link is followed, links that lead out of it
are left out, and files get no bits but those of permission.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import stat
import tarfile
from typing import IO, Any

from boxwood.client.content import PIECE
from boxwood.client.errors import BadRequest, ServerError
from boxwood.client.filerecords import Transfer

_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_HEADER_BYTES = 1 << 20  # of an extended header: a path
_EXTENDED = frozenset({
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
})  # fmt: skip
_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{300}")  # the work of older tarfiles grows with the square (CVE-2024-6232)


def pack(source: str, file: IO[bytes]) -> Transfer:
    """A directory as a tar archive: regular files, directories and links. Its owners' names are nobody's business."""
    if not os.path.isdir(source):
        raise BadRequest("bad_request", f"not a directory: {source}")
    counted = {"entries": 0, "bytes": 0, "skipped": 0}

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            counted["skipped"] += 1
            return None
        member.uname = member.gname = ""
        counted["entries"] += 1
        counted["bytes"] += member.size
        return member

    with tarfile.open(
        fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        tar.add(source, arcname=".", filter=wanted)
    return Transfer(**counted)


def unpack(file: IO[bytes], target: str) -> Transfer:
    """:raises ServerError: the archive names what is not below the directory, or is none."""
    os.makedirs(target, exist_ok=True)
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    unpacker = _Unpacker(top)
    try:
        with tarfile.open(
            fileobj=file, mode="r:", tarinfo=_Member, encoding="utf-8", errors="surrogateescape"
        ) as tar:  # fmt: skip
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would remember all of them
                unpacker.take(tar, member)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:  # tarfile lets some of these out
        raise ServerError("bad_answer", f"not an archive that can be read: {error}") from None
    finally:
        os.close(top)
    return Transfer(unpacker.entries, unpacker.bytes, unpacker.skipped)


class _Member(tarfile.TarInfo):
    """One whose extended headers are looked at before tarfile reads them."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED and not 0 <= member.size <= _HEADER_BYTES:
            raise ServerError("bad_answer", f"the archive holds a header of {member.size} bytes")
        return member

    def _proc_pax(self, tar: Any) -> Any:
        at = tar.fileobj.tell()
        if _LONG_NUMBER.search(tar.fileobj.read(self.size)):
            raise ServerError("bad_answer", "the archive holds a header with a number without end")
        tar.fileobj.seek(at)
        return super()._proc_pax(tar)  # type: ignore[misc]  # tarfile's own, in all versions


class _Unpacker:
    def __init__(self, top: int) -> None:
        self._top = top
        self.entries = self.bytes = self.skipped = 0

    def take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        if member.size < 0 or member.issparse():  # it would lead back in the archive; it may stand for any size
            raise ServerError("bad_answer", f"the archive holds what Boxwood packs nowhere: {member.name!r}")
        names = _below(member.name)
        if member.isdir():
            os.close(self._directory(names))
        elif names and (member.isreg() or self._may_be_linked(member, names)):
            above = self._directory(names[:-1])
            try:
                self._put(tar, member, above, names[-1])
            finally:
                os.close(above)
        else:
            self.skipped += 1
            return
        self.entries += 1

    def _may_be_linked(self, member: tarfile.TarInfo, names: list[str]) -> bool:
        """Links of both kinds, to what lies in the directory. One that leads up and down again would be as long as it
        is only text; with another link on its way it would not: those that lead up do so in the beginning alone."""
        if member.issym():
            parts = [part for part in member.linkname.split("/") if part not in ("", ".")]
            up = len(list(itertools.takewhile(lambda part: part == "..", parts)))
            return (
                bool(member.linkname)
                and not member.linkname.startswith("/")
                and up < len(names)
                and ".." not in parts[up:]
            )
        return member.islnk() and bool(_below(member.linkname))

    def _directory(self, names: list[str]) -> int:
        """One below the top, made where it is not there; no link is followed."""
        at = os.dup(self._top)
        for name in names:
            try:
                try:
                    os.mkdir(name, dir_fd=at)
                except FileExistsError:
                    pass
                below = os.open(name, _ENTER, dir_fd=at)
            finally:
                os.close(at)
            at = below
        return at

    def _put(self, tar: tarfile.TarFile, member: tarfile.TarInfo, above: int, name: str) -> None:
        """A new file in place of what was there: a link there is replaced, not followed."""
        new = f".boxwood-{secrets.token_hex(8)}"
        try:
            if member.issym():
                os.symlink(member.linkname, new, dir_fd=above)
            elif member.islnk():
                self._link(member, above, new)
            else:
                self._file(tar, member, above, new)
            os.replace(new, name, src_dir_fd=above, dst_dir_fd=above)
        finally:
            try:
                os.unlink(new, dir_fd=above)
            except FileNotFoundError:
                pass  # it has got its name

    def _link(self, member: tarfile.TarInfo, above: int, new: str) -> None:
        names = _below(member.linkname)
        at = self._directory(names[:-1])
        try:
            if not stat.S_ISREG(os.stat(names[-1], dir_fd=at, follow_symlinks=False).st_mode):
                raise ServerError("bad_answer", f"the archive has another name for what is no file: {member.name!r}")
            os.link(names[-1], new, src_dir_fd=at, dst_dir_fd=above, follow_symlinks=False)
        finally:
            os.close(at)

    def _file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, above: int, new: str) -> None:
        content = tar.extractfile(member)
        assert content is not None
        with open(os.open(new, _NEW, 0o777 if member.mode & 0o100 else 0o666, dir_fd=above), "wb") as file:
            while piece := content.read(PIECE):
                file.write(piece)
                self.bytes += len(piece)
            file.flush()
            os.utime(file.fileno(), (member.mtime, member.mtime))


def _below(path: str) -> list[str]:
    names = [name for name in path.split("/") if name not in ("", ".")]
    if path.startswith("/") or ".." in names or "\0" in path:
        raise ServerError("bad_answer", f"the archive names {path!r}, which is not below the directory")
    return names
