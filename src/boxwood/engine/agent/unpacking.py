"""A tar archive that is unpacked into a directory, as it comes, in a child of the agent.

Nothing is written outside that directory: names with `..` and absolute ones are refused, and no link is followed, be
it one that was there or one of the archive. Each file appears whole or not at all, in place of what was there of the
same name; what was unpacked before something went wrong stays.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from boxwood.engine.agent import tar, tarhead
from boxwood.engine.agent.deeds import make_directory
from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.helpers import Out
from boxwood.engine.agent.place import PATH_BYTES, absolute, directory, explained, shown, told
from boxwood.engine.agent.tarhead import Member
from boxwood.engine.kernel import libc
from boxwood.engine.tarform import padding

MOST_MEMBERS = 5_000_000
MOST_OF_A_STREAM = 1_000_000
_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKEN = (tarhead.FILE, tarhead.LINK, tarhead.SYMLINK, tarhead.DIRECTORY)
_BITS = 0o1777  # of permissions: whatever comes so is nobody's to run as somebody else
_HIGHEST_ID = 65535


class Unpacker:
    """`top`: an open directory, which stays the caller's. `owners`: files get the owners that the archive names; else
    they are root's, or whose they were. `skipping`: what is neither file, directory nor link is passed over; else it is
    refused. `most`: members."""

    def __init__(self, top: int, *, owners: bool = False, skipping: bool = False, most: int = MOST_MEMBERS) -> None:
        self._top = top
        self._device = os.fstat(top).st_dev
        self._owners = owners
        self._skipping = skipping
        self._most = most
        self._near: tuple[list[bytes], int] | None = None  # the directory that the last member was in
        self._new = b".boxwood-new-" + os.urandom(8).hex().encode()
        self.entries = self.directories = self.bytes = self.skipped = 0

    def unpack(self, source: tar.Source, *, whole: bool) -> None:
        """All of it; `whole` as of `tar.members`. Refusal, with the name of the member that is to blame."""
        try:
            for member in tar.members(source, whole=whole):
                if self.entries + self.skipped == self._most:
                    raise tarhead.broken(f"more than {self._most} members")
                self._member(member, source)
        finally:
            self._leave()

    def _member(self, member: Member, source: tar.Source) -> None:
        try:
            names = _names(member.name)
            if member.kind not in _TAKEN:
                self._pass_over(member, source)
                return
            if member.kind == tarhead.DIRECTORY:
                self._directory(names, member)
            elif not names:
                raise Refusal(errno.EINVAL, "it is the directory itself")
            else:
                self._place(member, self._enter(names[:-1]), names[-1], source)
            self.entries += 1
        except Refusal as refusal:
            raise Refusal(refusal.errno, f"{_shown(member)}: {refusal.text}") from None
        except OSError as error:
            number = error.errno or errno.EIO
            raise Refusal(number, f"{_shown(member)}: {os.strerror(number)}") from None

    def _pass_over(self, member: Member, source: tar.Source) -> None:
        if not self._skipping:
            raise Refusal(errno.EINVAL, "what is neither file, directory nor link is not taken")
        source.skip(member.content + padding(member.content))
        self.skipped += 1

    # --- directories

    def _enter(self, names: list[bytes]) -> int:
        """A directory below the top, made where it is not there; ours until the next call."""
        if self._near is not None and self._near[0] == names:
            return self._near[1]
        self._leave()
        at = os.dup(self._top)
        for name in names:
            try:
                below = self._step(at, name)
            finally:
                os.close(at)
            at = below
        self._near = names, at
        return at

    def _step(self, at: int, name: bytes) -> int:
        try:
            below = os.open(name, _ENTER, dir_fd=at)
        except FileNotFoundError:
            os.mkdir(name, 0o755, dir_fd=at)
            below = os.open(name, _ENTER, dir_fd=at)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise Refusal(errno.EINVAL, f"{shown(name)} is no directory, and links are not followed") from None
        if os.fstat(below).st_dev != self._device:
            os.close(below)
            raise Refusal(errno.EACCES, f"another file system lies at {shown(name)}")
        return below

    def _leave(self) -> None:
        if self._near is not None:
            os.close(self._near[1])
            self._near = None

    def _directory(self, names: list[bytes], member: Member) -> None:
        fd = self._enter(names)
        if names:  # the top was there before, and stays as it is
            self._finish(fd, member)
        self.directories += 1

    # --- what has a name in them

    def _place(self, member: Member, above: int, name: bytes, source: tar.Source) -> None:
        """Something new under a name of its own, which then takes the place of what was there."""
        old = _present(above, name)
        at = os.dup(above)  # on the way to what it is a link to we may leave its directory
        try:
            if member.kind == tarhead.SYMLINK:
                self._symlink(member, at)
            elif member.kind == tarhead.LINK:
                self._link(member, at)
            else:
                self._file(member, at, old, source)
            os.rename(self._new, name, src_dir_fd=at, dst_dir_fd=at)
            if member.kind == tarhead.LINK:
                self._remove_new(at)  # where both were names of one file already a rename does nothing
        except BaseException:
            self._remove_new(at)
            raise
        finally:
            os.close(at)

    def _file(self, member: Member, above: int, old: os.stat_result | None, source: tar.Source) -> None:
        fd = os.open(self._new, _NEW, 0o600, dir_fd=above)
        try:
            source.copy(member.size, fd)
            source.skip(padding(member.size))
            if old is not None and not self._owners:
                os.fchown(fd, old.st_uid, old.st_gid)
            self._finish(fd, member)
            os.utime(fd, ns=(member.modified, member.modified))
        finally:
            os.close(fd)
        self.bytes += member.size

    def _symlink(self, member: Member, above: int) -> None:
        if not member.target or b"\0" in member.target:
            raise Refusal(errno.EINVAL, "a symbolic link to nothing")
        os.symlink(member.target, self._new, dir_fd=above)
        os.utime(self._new, ns=(member.modified, member.modified), dir_fd=above, follow_symlinks=False)
        if self._owners:
            os.chown(self._new, *_owner(member), dir_fd=above, follow_symlinks=False)

    def _link(self, member: Member, above: int) -> None:
        """To a file that is there already, of this archive or from before it."""
        names = _names(member.target, "what it is a link to")
        at = self._enter(names[:-1])
        try:
            directory = not names or stat.S_ISDIR(os.stat(names[-1], dir_fd=at, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            raise Refusal(errno.EINVAL, f"a hard link to what is not there: {shown(member.target)}") from None
        if directory:
            raise Refusal(errno.EINVAL, "a hard link to a directory")
        os.link(names[-1], self._new, src_dir_fd=at, dst_dir_fd=above, follow_symlinks=False)

    def _finish(self, fd: int, member: Member) -> None:
        """Owner, then mode, which a change of owner may take bits from."""
        if self._owners:
            os.fchown(fd, *_owner(member))
        os.fchmod(fd, member.mode & _BITS)

    def _remove_new(self, above: int) -> None:
        try:
            os.unlink(self._new, dir_fd=above)
        except OSError:
            pass  # it has got its name, was never made, or somebody in the box has taken it away


def _names(path: bytes, what: str = "its name") -> list[bytes]:
    """Of a relative path that stays below. Refusal."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if path.startswith(b"/") or b".." in names or b"\0" in path or len(path) > PATH_BYTES:
        raise Refusal(errno.EINVAL, f"{what} must stay below the directory, and have at most {PATH_BYTES} bytes")
    return names


def _owner(member: Member) -> tuple[int, int]:
    if not (0 <= member.uid <= _HIGHEST_ID and 0 <= member.gid <= _HIGHEST_ID):
        raise Refusal(errno.EINVAL, f"there is no owner {member.uid}:{member.gid} in a VM")
    return member.uid, member.gid


def _present(above: int, name: bytes) -> os.stat_result | None:
    """The regular file of that name."""
    try:
        old = os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(old.st_mode):
        raise Refusal(errno.EISDIR, "there is a directory of that name")
    return old if stat.S_ISREG(old.st_mode) else None


def _shown(member: Member) -> str:
    return repr(shown(member.name[:200]))


# --- for the server


def open_top(path: bytes) -> int:
    """The directory, made if need be, with those above it. Refusal: not on the VM's disk, read-only, no directory."""
    with explained(path):
        make_directory({"path": told(os.path.realpath(path)), "parents": True})
        top = directory(path)
        if os.fstatvfs(top).f_flag & os.ST_RDONLY:
            os.close(top)
            raise OSError(errno.EROFS, "")
    return top


def unpack(header: dict[str, Any], out: Out, source: int) -> dict[str, Any]:
    """`{path, owners}`: into a directory, made if need be. Answers how many members that were, how many bytes, and how
    many members were skipped: what is neither file, directory nor link."""
    out.limit(0)  # it goes as fast as whoever sends
    unpacker = Unpacker(open_top(absolute(header["path"])), owners=header["owners"] is True, skipping=True)
    unpacker.unpack(tar.Source(source), whole=True)
    return {"entries": unpacker.entries, "bytes": unpacker.bytes, "skipped": unpacker.skipped}


def unpack_stream(header: dict[str, Any], source: int) -> dict[str, Any]:
    """`{path, packed, limit, durable}`: the same for a stream, perhaps `packed` with gzip, of which at most `limit`
    bytes may come. Answers how many members that were, without directories, and how many bytes; a `durable` one is on
    the disk then. Refusal, OSError."""
    top = open_top(absolute(header["path"]))
    unpacker = Unpacker(top, most=MOST_OF_A_STREAM)
    unpacker.unpack(tar.Source(source, packed=header["packed"] is True, limit=header["limit"]), whole=False)
    if header.get("durable") is True and libc.syncfs(top) < 0:  # the whole of the file system that it lies on
        raise OSError(errno.EIO, "the disk did not take it")
    return {"files": unpacker.entries - unpacker.directories, "size": unpacker.bytes}
