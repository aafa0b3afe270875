"""Reading files of the host by their paths there, wherever its root directory is, and the server's own environment."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path

MOST = 8 << 20  # bytes of one file


class HostFiles:
    """`root`: the host's root directory. `environ`: of the server, whose user's own settings are read too."""

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self.root = root
        self.environ = environ
        self.home = environ.get("HOME") or _home()

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def read(self, name: str) -> bytes | None:
        """None: no file. A FIFO or a device that a setting names is none.

        :raises OSError: it is there and cannot be read.
        """
        if "\0" in name or not name.startswith("/"):
            return None
        try:
            fd = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with open(fd, "rb") as f:
            status = os.fstat(fd)
            return f.read(MOST) if stat.S_ISREG(status.st_mode) and status.st_size <= MOST else None

    def is_file(self, name: str) -> bool:
        return os.path.isfile(self.path(name))

    def is_directory(self, name: str) -> bool:
        return os.path.isdir(self.path(name))

    def names(self, directory: str) -> list[str]:
        """What is in it, sorted; nothing where there is no directory for us."""
        try:
            return sorted(os.listdir(self.path(directory)))
        except OSError:
            return []

    def real(self, name: str) -> str:
        """The path without links; as it is where it leads out of the host."""
        root = os.path.realpath(self.root).rstrip("/")
        real = os.path.realpath(self.path(name))
        return real[len(root) :] if real.startswith(f"{root}/") else name

    def expanded(self, name: str) -> str:
        """A path as a setting may have it: from the home directory."""
        return f"{self.home}/{name[2:]}" if name.startswith("~/") else name


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"
