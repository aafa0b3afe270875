"""The image directory, shared by all data directories of this host: `index.json`, locks, layers being made.

A layer is made as `ULID.part` and renamed to `ULID` when it is whole. Whoever makes one holds a lock on the part's own
directory for as long as it lives, so a part that nobody holds is what an interrupted maker left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxwood.engine.ulid import is_ulid

DEFAULT = Path("/var/cache/boxwood/images")
_OWN = Path("~/.local/share/boxwood/images")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_FORMAT = 1  # of index.json


class ImageError(Exception):
    """An image could not be made. The text is for whoever asked: what is wrong with it and how to put it right."""


@contextlib.contextmanager
def usable(directory: Path) -> Iterator[None]:
    """Say of what the system refuses in the body that it is about this directory."""
    try:
        yield
    except OSError as error:
        raise ImageError(f"the image directory {directory} cannot be used: {error}") from error


def default_directory() -> Path:
    """`$BOXWOOD_IMAGES`, else /var/cache/boxwood/images, or the user's own for who is not root."""
    return Path(os.environ.get("BOXWOOD_IMAGES") or (DEFAULT if os.geteuid() == 0 else _OWN)).expanduser()


def new_id() -> str:
    """A ULID: 48 bits of milliseconds, 80 random bits, 26 characters."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


class Part:
    """A layer being made. `upper` is its root directory."""

    def __init__(self, shelf: Path, layer_id: str) -> None:
        self.layer_id = layer_id
        self.path = shelf / f"{layer_id}.part"
        self.upper = self.path / "upper"
        self._shelf = shelf
        self.path.mkdir(mode=0o700)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.upper.mkdir(mode=0o755)
        self.upper.chmod(0o755)

    def finish(self) -> None:
        """Give the layer its final name."""
        self.path.rename(self._shelf / self.layer_id)
        os.close(self._lock)

    def discard(self) -> None:
        _remove(self._shelf, self.path.name)
        os.close(self._lock)


class Shelf:
    """`directory` is made (mode 0700) if it is not there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            directory.chmod(0o700)  # layers hold setuid files: nobody but us may reach them

    @contextlib.contextmanager
    def locked(self, name: str = "lock", *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock `name`; yields False, holding nothing, where it is taken and `wait` is False."""
        fd = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(fd)

    def find(self, kind: str, key: str) -> dict[str, Any] | None:
        """What `record` kept under this key, if its layer is still there."""
        entry = self._entries().get(kind, {}).get(key)
        if not isinstance(entry, dict) or not is_ulid(layer := entry.get("layer_id")):
            return None
        return entry if (self.directory / str(layer) / "upper").is_dir() else None

    def record(self, kind: str, key: str, entry: dict[str, Any]) -> None:
        """`entry` holds `layer_id`."""
        with self.locked():
            entries = self._entries()
            entries.setdefault(kind, {})[key] = entry
            draft = self.directory / "index.json.new"
            with open(draft, "w") as f:
                json.dump({"format": _FORMAT, **entries}, f, indent=1)
                f.flush()
                os.fsync(f.fileno())
            draft.rename(self.directory / "index.json")

    def begin(self) -> Part:
        """Start a layer; what interrupted makers left is removed first."""
        with self.locked():
            for name in os.listdir(self.directory):
                if name.endswith(".part") and self._abandoned(name):
                    _remove(self.directory, name)
            return Part(self.directory, new_id())

    def _entries(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads((self.directory / "index.json").read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            path = self.directory / "index.json"
            raise ImageError(f"{path} is damaged ({error}); remove it, and images are made anew") from error
        if not isinstance(found, dict) or found.pop("format", None) != _FORMAT:
            return {}  # of another release: its layers stay, ours are made beside them
        return {kind: entries for kind, entries in found.items() if isinstance(entries, dict)}

    def _abandoned(self, name: str) -> bool:
        fd = os.open(self.directory / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            os.close(fd)


def _remove(directory: Path, name: str) -> None:
    """Remove a part, which may be hostile: of any depth, with symlinks anywhere.

    Directories found inside are moved up to its root and emptied in turn, so neither the stack nor the descriptors
    grow with the depth, and nothing is reached through a path of more than one name.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    root = os.open(directory / name, flags)
    try:
        waiting, moved = _empty(root, root, 0)
        while waiting:
            fd = os.open(current := waiting.pop(), flags, dir_fd=root)
            try:
                found, moved = _empty(fd, root, moved)
            finally:
                os.close(fd)
            waiting += found
            os.rmdir(current, dir_fd=root)
    finally:
        os.close(root)
    os.rmdir(directory / name)


def _empty(fd: int, root: int, moved: int) -> tuple[list[str], int]:
    """Unlink the files of a directory and move its directories to `root`: their new names, and the last number used."""
    with os.scandir(fd) as entries:
        inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    names = []
    if fd == root:  # a removal before this one was interrupted
        names = [name for name, _ in inside if name.startswith("moved.")]
        moved = max((int(name.partition(".")[2]) for name in names), default=0)
    for name, is_directory in inside:
        if not is_directory:
            os.unlink(name, dir_fd=fd)
        elif fd != root or name not in names:
            moved += 1
            names.append(f"moved.{moved}")
            os.rename(name, names[-1], src_dir_fd=fd, dst_dir_fd=root)
    return names, moved
