"""What the core asks of an engine about volumes: a part of `engine.api`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from boxwood.engine.api import Box

MOUNT_POINT_BYTES = 1024  # of a path that something is mounted at, at most


@dataclass(frozen=True, slots=True)
class Attachment:
    """A volume at a place in a box. `path`: absolute, without `.`, `..` or final slash. `limit`: that the volume was
    made with, in bytes; 0: none."""

    mount_id: str
    volume_id: str
    path: str
    read_only: bool = False
    limit: int = 0


class Volumes(Protocol):
    """The volumes of one host. Whoever asks sees to it that one volume is asked about by one at a time."""

    async def make(self, volume_id: str, limit: int) -> None:
        """An empty one, owned by root, that can hold `limit` bytes (0: as many as there are). Twice is once.
        EngineError: it cannot be limited here, or there is no room for it."""

    async def attach(self, box: Box, wanted: Attachment) -> None:
        """Mount it in a live box, over a directory that is made if it is not there; Box.mounts has it from then on.
        GuestError: not at this path, as it is now (ELOOP, ENOTDIR, EROFS, EXDEV: something else is mounted there, …);
        NotHere: there is no such volume on this host; BoxGone; EngineError: try again."""

    async def detach(self, box: Box, mount_id: str) -> bool:
        """Take a mount away, whoever uses it. True: somebody has files of it open for writing, and keeps these until
        he closes them. One that is not there is no error. BoxGone, EngineError."""

    async def size(self, volume_id: str) -> int:
        """Bytes of the disk that it takes: asked of the file system where that counts, else looked through for at most
        a minute. EngineError."""

    async def remove(self, volume_ids: Iterable[str]) -> set[str]:
        """Delete them, except those that a living box has had: its processes may still be in there. Answers which are
        gone; what is not there is gone."""

    async def stored(self) -> set[str]:
        """The ids of all that have a directory."""
