"""Texts that a shell is to execute while it comes up, each a file that it sources, and what it complained about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from boxwood.engine.agent.dialects import Dialect
from boxwood.engine.agent.folder import Folder


class Sourcing:
    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._numbers: list[bytes] = []

    def write(self, kind: Dialect, texts: Sequence[bytes]) -> bytes:
        """What the shell is to be fed to source them, one after the other. OSError."""
        feed = b""
        for at, text in enumerate(texts):
            if text.strip():
                number = b"%d" % at
                self._folder.write(b"g" + number, text + b"\n")
                self._numbers.append(number)
                feed += kind.source(self._folder / (b"g" + number), self._folder / (b"w" + number))
        return feed

    def complaints(self) -> Iterator[str]:
        """Line by line, once the shell has executed them; their files are removed."""
        numbers, self._numbers = self._numbers, []
        for number in numbers:
            for line in self._folder.read(b"w" + number).splitlines():
                yield line.decode(errors="replace")
            self._folder.remove(b"w" + number)
            self._folder.remove(b"g" + number)
