"""Filesystems in memory, for the engine in memory."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from typing import Any

from boxwood.engine.api import (
    GuestError,
    NotHere,
)
from boxwood.engine.volumes.api import Attachment


class FakeVolumes:
    """Places that end in `link` are symbolic links."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine

    async def make(self, volume_id: str, limit: int) -> None:
        self._machine.note("make_volume", (volume_id, limit))
        self._machine.volumes.setdefault(volume_id, {})

    async def attach(self, box: Any, wanted: Attachment) -> None:
        living = box._alive("attach", wanted)
        await asyncio.sleep(0)
        if wanted.volume_id not in self._machine.volumes:
            raise NotHere("there is no such directory")
        if wanted.path.endswith("link"):
            raise GuestError(errno.ELOOP, f"{wanted.path} is a symbolic link")
        assert wanted.path not in {mount.path for mount in living.mounts.values()}
        living.mounts[wanted.mount_id] = wanted
        living.volumes_had.add(wanted.volume_id)
        box.mounts.add(wanted.mount_id)

    async def detach(self, box: Any, mount_id: str) -> bool:
        living = box._alive("detach", mount_id)
        living.mounts.pop(mount_id, None)
        box.mounts.discard(mount_id)
        return False

    async def size(self, volume_id: str) -> int:
        self._machine.note("size", volume_id)
        return sum(map(len, self._machine.volumes[volume_id].values()))

    async def remove(self, volume_ids: Iterable[str]) -> set[str]:
        held = set[str]().union(*(living.volumes_had for living in self._machine.boxes.values()))
        free = set(volume_ids) - held
        self._machine.note("remove_volumes", free)
        for ident in free:
            self._machine.volumes.pop(ident, None)
        return free

    async def stored(self) -> set[str]:
        return set(self._machine.volumes)
