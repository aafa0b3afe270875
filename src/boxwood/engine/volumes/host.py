"""The volumes of this host, in the server: it makes directories and files, and asks the zygote for what is in boxes.
Implements engine/volumes/api.Volumes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from boxwood.engine.api import Box, BoxGone, EngineError, GuestError, NotHere
from boxwood.engine.disk import IMAGE, files
from boxwood.engine.hostbox import HostBox
from boxwood.engine.ulid import checked, is_ulid
from boxwood.engine.volumes import PLACE
from boxwood.engine.volumes.api import Attachment

_SECONDS = 90.0  # for what a process of the zygote's does in a box; it has 60
_LOOK_SECONDS = 60.0  # through all that a volume holds: boxes may make more of it meanwhile, without end
_REMOVE_AT_ONCE = 500
Ask = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]


class Job(Protocol):
    def __call__(self, job: dict[str, Any], *, volumes: bool = False) -> Awaitable[dict[str, Any]]: ...


class HostVolumes:
    """`ask`: of the zygote, for so many seconds; `job`: has it do something to directories; `problem`: why nothing can
    be limited here."""

    def __init__(self, data: Path, ask: Ask, job: Job, problem: Callable[[], str]) -> None:
        self._place = data / "layers" / PLACE
        self._templates = data / "disks"
        self._ask, self._job, self._problem = ask, job, problem
        self._counted = False

    def prepare(self, *, counted: bool) -> None:
        """`counted`: the file system limits directories, so that no files are needed."""
        self._counted = counted

    async def make(self, volume_id: str, limit: int) -> None:
        if limit and (problem := self._problem()):
            raise EngineError(f"disks cannot be limited here: {problem}")
        if limit and not self._counted:
            try:
                self._place.mkdir(mode=0o700, exist_ok=True)
                await asyncio.to_thread(files.make, self._place, self._templates, checked(volume_id), limit)
            except OSError as error:
                raise EngineError(f"the file of the volume could not be made: {error}") from error
        await self._zygote("volume", {"volume": checked(volume_id), "limit": limit})

    async def attach(self, box: Box, wanted: Attachment) -> None:
        assert isinstance(box, HostBox)
        volume = checked(wanted.volume_id)
        if not (self._place / volume).is_dir():
            raise NotHere(f"the volume's directory {self._place / volume} is not there: put it back")
        if box.gone.done():
            raise BoxGone("the box is gone")
        if (self._place / volume / IMAGE).exists():
            try:
                await asyncio.to_thread(files.check, self._place, volume)
            except OSError as error:
                raise EngineError(f"the volume's file could not be looked at: {error}") from error
        box.mounts.add(wanted.mount_id)  # before it is there: from then on files may come from it
        try:
            said = await self._zygote(
                "attach",
                {
                    "box": box.box_id, "mount": checked(wanted.mount_id), "volume": volume, "path": wanted.path,
                    "read_only": wanted.read_only, "limit": wanted.limit,
                },
            )  # fmt: skip
            if "refused" in said:
                raise GuestError(int(said["errno"]), str(said["refused"]))
        except EngineError:
            box.mounts.discard(wanted.mount_id)
            if box.gone.done():
                raise BoxGone("the box died") from None
            raise

    async def detach(self, box: Box, mount_id: str) -> bool:
        assert isinstance(box, HostBox)
        if box.gone.done():
            raise BoxGone("the box is gone")
        try:
            said = await self._zygote("detach", {"box": box.box_id, "mount": checked(mount_id)})
        except EngineError:
            if box.gone.done():
                raise BoxGone("the box died") from None
            raise
        box.mounts.discard(mount_id)
        return bool(said["busy"])

    async def size(self, volume_id: str) -> int:
        look = {"kind": "look", "layer": checked(volume_id), "seconds": _LOOK_SECONDS}
        found = await self._job(look, volumes=True)
        size: int = found["bytes"]
        return size

    async def remove(self, volume_ids: Iterable[str]) -> set[str]:
        held = set((await self._zygote("held", {}))["volumes"])
        free = [checked(ident) for ident in volume_ids if ident not in held]
        for at in range(0, len(free), _REMOVE_AT_ONCE):
            await self._job({"kind": "remove", "layers": free[at : at + _REMOVE_AT_ONCE]}, volumes=True)
        return set(free)

    async def stored(self) -> set[str]:
        try:
            names = await asyncio.to_thread(os.listdir, self._place)
        except FileNotFoundError:
            return set()  # there has never been one
        return {bare for name in names if is_ulid(bare := name.removeprefix(".dead-").removesuffix(".part"))}

    async def _zygote(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._ask(op, fields, _SECONDS)
        except EngineError as error:
            if str(error) == f"{op}: {op!r}":  # it knows no such request
                raise EngineError("the zygote of an older version mounts no volumes: `boxwood down` ends it") from None
            raise
