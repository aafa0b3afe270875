"""Bytes on their way into a box: what of `engine.api` is about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of an archive: members that are no directories, and bytes of the files among them."""

    files: int
    bytes: int


class Feed(Protocol):
    """Bytes on their way into a box. Every call may raise `BoxGone`; GuestError if the box does not take them."""

    async def give(self, data: bytes) -> None:
        """Waits while the box has not taken what came before."""

    def pipe(self) -> int | None:
        """Where somebody else may write what is given, without blocking; None: there is no such thing."""

    async def gave(self, size: int, broken: bool) -> None:
        """So much has been written to the pipe; `broken`: and then nobody read it any more. GuestError then."""

    def abandon(self) -> None:
        """No more will come, and nothing shall come of it. After the end it does nothing."""


class FileFeed(Feed, Protocol):
    async def place(self) -> int:
        """All has been given: the file takes its place, atomically. Its size."""


class ArchiveFeed(Feed, Protocol):
    async def unpacked(self) -> Unpacked:
        """All has been given: what came of it, once the last file is in its place."""
