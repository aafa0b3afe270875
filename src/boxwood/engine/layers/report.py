"""The changes between two stacks as lines of JSON, for whoever reads the other end of a pipe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import IO, Any

from boxwood.engine.layers import diff, inodes, text, view
from boxwood.engine.layers.diff import Changed
from boxwood.engine.layers.view import Directory, Entry, Leaf

TEXT_BYTES = 256 << 10  # of a file whose change is told line by line
TEXT_LINES = 5000
ALL_TEXT_BYTES = 4 << 20  # of all that is told so
TEXTS = 300


class Report:
    """`most`: changes that are told; `texts`: with what has changed in text files."""

    def __init__(self, out: IO[bytes], most: int, texts: bool) -> None:
        self._out = out
        self._most = most
        self._texts = TEXTS if texts else 0
        self._bytes = ALL_TEXT_BYTES

    def run(self, old: Directory, new: Directory, below: Sequence[str]) -> dict[str, int]:
        """Takes both directories. `below`: the names of a directory that alone is looked into."""
        if not below:
            return self._walk(old, new, "", 0)
        path = "".join(f"/{name}" for name in below)
        before, after = view.place(old, below), view.place(new, below)
        try:
            a, b = (one.entry if one is not None else None for one in (before, after))
            if isinstance(a, Directory) and isinstance(b, Directory):
                return self._walk(view.copied(a), view.copied(b), path, 0)
            if isinstance(a, Directory) or isinstance(b, Directory):
                self._tell(Changed(path, a, b, ("kind",) if a and b else ()))
            return self._walk(None, view.copied(b), path, 1) if isinstance(b, Directory) else {"truncated": 0}
        finally:
            for one in (before, after):
                if one is not None:
                    one.close()

    def _walk(self, old: Directory | None, new: Directory, path: str, told: int) -> dict[str, int]:
        """Takes both. `told`: how many changes were told before."""
        for change in diff.walk(old, new, path):
            if told == self._most:
                return {"truncated": 1}
            self._tell(change)
            told += 1
        return {"truncated": 0}

    def _tell(self, change: Changed) -> None:
        said: dict[str, Any] = {"path": change.path, "what": list(change.what)}
        for prefix, entry in (("old_", change.old), ("", change.new)):
            if entry is not None:
                said[f"{prefix}kind"] = view.kind(entry)
                if view.kind(entry) == "file":
                    said[f"{prefix}size"] = entry.status.st_size
        if change.new is not None:
            said["mode"] = change.new.status.st_mode & 0o7777
        if self._texts and (difference := self._difference(change)) is not None:
            said["diff"] = difference
        self._out.write(json.dumps(said).encode() + b"\n")

    def _difference(self, change: Changed) -> str | None:
        """None: not of text files, or too much."""
        if change.what and not {"content", "kind"} & set(change.what):
            return None
        old, new = _text(change.old), _text(change.new)
        if (old is None) == (change.old is not None and view.kind(change.old) == "file"):
            return None
        if (new is None) == (change.new is not None and view.kind(change.new) == "file"):
            return None
        if old is None and new is None:
            return None
        said = text.unified(old, new, change.path.encode(errors="replace").decode())
        if len(said) > self._bytes:
            return None
        self._bytes -= len(said)
        self._texts -= 1
        return said


def _text(entry: Entry | None) -> str | None:
    if not isinstance(entry, Leaf) or view.kind(entry) != "file" or entry.status.st_size > TEXT_BYTES:
        return None
    fd = os.open(entry.name, inodes.READ_FILE, dir_fd=entry.at)
    try:
        data = os.pread(fd, TEXT_BYTES + 1, 0)
    finally:
        os.close(fd)
    if b"\0" in data or len(data) > TEXT_BYTES or data.count(b"\n") > TEXT_LINES:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
