"""What the engine of this host does to layers and tops: asks for jobs of the zygote's, and knows which lie in files."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from boxwood.engine import roots
from boxwood.engine.api import Box, BoxSpec, Contents, CopyReport, EngineError, EngineUnavailable, NotHere
from boxwood.engine.daemon import Zygote
from boxwood.engine.disk import IMAGE, files, projects
from boxwood.engine.flushing import NO_FILES, Flushed
from boxwood.engine.hostbox import HostBox
from boxwood.engine.pipes import read_to_end
from boxwood.engine.trials import common as checks
from boxwood.engine.ulid import checked, is_ulid

_JOB_SECONDS = 3600.0
_REMOVE_AT_ONCE = 500  # ids in one packet
log = logging.getLogger(__name__)


class HostLayers:
    """The part of `HostEngine` that has to do with layers. `data`: the data directory."""

    def __init__(self, data: Path, zygote: Zygote) -> None:
        self._data = data
        self._zygote = zygote
        self._boxes: dict[str, HostBox] = {}
        self._checks: list[checks.Check] = []
        self._quotas = False  # of the file system: tops need no files to be limited
        # Layers and tops that lie in a file each, so that nobody need ask the disk. One that is not there any more does
        # no harm in it, one that is missing does.
        self._in_files: set[str] = set()
        self._flushed = Flushed(data / "layers")

    @abstractmethod
    async def _connect(self) -> None:
        """To the zygote, if there is no connection."""

    @abstractmethod
    async def _drop_ready(self, layers: Sequence[str]) -> None:
        """No box that is kept ready stands on these layers any more."""

    # --- layers in files

    async def _find_files(self) -> None:
        self._in_files = await asyncio.to_thread(
            lambda: {path.parent.name for path in (self._data / "layers").glob(f"*/{IMAGE}")}
        )

    async def in_files(self) -> set[str]:
        return set(self._in_files)

    async def _prepare_disks(self, spec: BoxSpec) -> list[str]:
        """Whatever of the stack lies in a file is in order, and the top does if it has a limit. Which those are."""
        stack, layers, limit = spec.stack, self._data / "layers", spec.limits.disk
        make = bool(limit) and not self._quotas
        found = [layer for layer in (stack.top, *stack.layers) if layer in self._in_files]

        def work() -> None:
            for layer in found:
                files.check(layers, checked(layer))
            if make:
                files.make(layers, self._data / "disks", checked(stack.top), limit)

        if limit and (problem := self.disk_problem()):
            raise EngineError(f"disks cannot be limited here: {problem}")
        if limit and spec.durable and (problem := self.durable_problem()):
            raise NotHere(problem)
        if found or make:
            if added := make and stack.top not in self._in_files:
                self._in_files.add(stack.top)  # before it is: whoever waits for it may be gone when it has been made
            try:
                await asyncio.to_thread(work)
            except (OSError, EngineError) as error:
                if added and not (layers / stack.top / IMAGE).exists():
                    self._in_files.discard(stack.top)
                if isinstance(error, EngineError):
                    raise
                raise EngineError(f"the disk of the box could not be prepared: {error}") from error
        return [stack.top, *found] if make and stack.top not in found else found

    def _rename_top(self, old: str, new: str) -> None:
        """A top of nobody becomes a VM's. OSError."""
        layers = self._data / "layers"
        os.rename(layers / checked(old), layers / checked(new))
        if old in self._in_files:
            self._in_files.discard(old)
            self._in_files.add(new)

    # --- layers

    async def is_empty(self, layer_id: str) -> bool:
        if layer_id in self._in_files:
            return (await self.contents(layer_id)).empty
        path = self._data / "layers" / checked(layer_id)
        try:  # one directory read, two looked at: some 40 µs
            with os.scandir(path / "upper") as entries:
                if next(entries, None) is not None:
                    return False
            top = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return roots.is_as_made(top)
            finally:
                os.close(top)
        except FileNotFoundError:
            return True
        except PermissionError:  # without root, of a VM that has changed the mode or the owner of its /
            return False

    async def contents(self, layer_id: str) -> Contents:
        box = None
        if layer_id in self._in_files:
            box = next((box for box in self._boxes.values() if box.top == layer_id and box.vm_id), None)
        if box is not None:
            try:  # a matter of 0.2 ms, where a job takes some
                said = await self._zygote.ask("look", {"box": box.box_id})
                return Contents(bool(said["empty"]), said["bytes"])
            except EngineError:
                pass  # it is gone, or about to
        found = await self._job({"kind": "look", "layer": checked(layer_id)})
        return Contents(bool(found["empty"]), found["bytes"])

    async def disk_capacity(self, top: str) -> int | None:
        try:
            layers = self._data / "layers"
            return files.capacity(layers, checked(top)) or projects.capacity(layers, top)
        except FileNotFoundError:
            return None

    def disk_problem(self) -> str:
        check = next((check for check in self._checks if check.name == checks.DISK), None)
        return "" if check is None or check.active else f"{check.why}; {check.fix}"

    def durable_problem(self) -> str:
        return "" if self._quotas else NO_FILES

    async def secure(self, layers: Sequence[str]) -> None:
        try:
            await asyncio.to_thread(self._flushed.secure, [checked(layer) for layer in layers])
        except OSError as error:
            raise EngineError(f"layers could not be brought to the disk: {error}") from error

    async def copy_top(self, box: Box, source: str, target: str) -> CopyReport:
        assert isinstance(box, HostBox)
        if (freezer := self._missing_freezer()) is not None:
            raise NotHere(freezer.why)
        began = time.perf_counter()
        job = {"kind": "copy", "source": checked(source), "target": checked(target)}
        # Stand still once before: a write(2) that is under way has its old time until it ends, so what it overwrites
        # would be looked at neither by the first pass nor by the second.
        async with self._standing_still(box):
            pass
        first = await self._job({**job, "phase": 1})
        froze = time.perf_counter()
        async with self._standing_still(box):
            second = await self._job({**job, "phase": 2, "since": first["since"]})
        ended = time.perf_counter()
        return CopyReport(
            first["inodes"] + second["inodes"],
            first["bytes"] + second["bytes"],
            round((ended - froze) * 1e3, 3),
            round((ended - began) * 1e3, 3),
        )

    @asynccontextmanager
    async def _standing_still(self, box: HostBox) -> AsyncIterator[None]:
        """Thawed again whatever happens, also if nobody waited for the answer that it was frozen."""
        try:
            await self._zygote.ask("freeze", {"box": box.box_id})
            yield
        finally:
            if not box.gone.done():
                await self._zygote.ask("thaw", {"box": box.box_id})

    def _missing_freezer(self) -> checks.Check | None:
        return next((check for check in self._checks if check.name == checks.FREEZER and not check.active), None)

    def suspend_problem(self) -> str:
        freezer = self._missing_freezer()
        return (
            "" if freezer is None else f"what runs in them cannot be made to stand still: {freezer.fix or freezer.why}"
        )

    async def suspend(self, box: Box) -> None:
        assert isinstance(box, HostBox)
        if problem := self.suspend_problem():
            raise NotHere(problem)
        await box.fall_asleep()
        box.about_to_stand_still()
        try:
            await self._zygote.ask("freeze", {"box": box.box_id})
        except BaseException:
            with suppress(EngineError):
                await self.wake(box)
            raise

    async def wake(self, box: Box) -> None:
        assert isinstance(box, HostBox)
        try:
            if not box.gone.done():
                box.about_to_wake()
                await self._zygote.ask("thaw", {"box": box.box_id})
        finally:
            box.wake_up()

    async def merge(self, layers: Sequence[str], target: str) -> None:
        await self._job({"kind": "merge", "layers": [["data", checked(i)] for i in layers], "target": checked(target)})

    async def remove(self, layers: Sequence[str]) -> None:
        await self._drop_ready(layers)
        for at in range(0, len(layers), _REMOVE_AT_ONCE):
            some = [checked(layer_id) for layer_id in layers[at : at + _REMOVE_AT_ONCE]]
            await self._job({"kind": "remove", "layers": some})
            self._in_files.difference_update(some)

    async def check_layer(self, layer_id: str) -> str:
        try:
            await self._job({"kind": "check", "layer": checked(layer_id)})
        except EngineUnavailable:
            raise
        except EngineError as error:
            return str(error)
        return ""

    async def stored(self) -> set[str]:
        names = await asyncio.to_thread(os.listdir, self._data / "layers")
        bare = (name.removeprefix(".dead-").removesuffix(".part") for name in names)  # whose jobs were cut off
        ready = {box.top for box in self._boxes.values() if not box.vm_id}
        return {name for name in bare if is_ulid(name)} - ready

    # --- work of the zygote's

    async def _job(self, job: dict[str, Any], stream: int | None = None, *, volumes: bool = False) -> dict[str, Any]:
        """Have a jailed child of the zygote do something to layers, or to volumes; its result is one line of JSON.
        `stream`: another pipe for it, which is taken."""
        given = [] if stream is None else [stream]
        try:
            ready, theirs = os.pipe()
            os.set_blocking(ready, False)
            given.insert(0, theirs)
            try:
                await self._connect()
                await self._zygote.ask("job", {"job": job, **({"volumes": True} if volumes else {})}, given)
            except BaseException:
                os.close(ready)
                raise
        finally:
            for fd in given:
                os.close(fd)
        line = await read_to_end(ready, _JOB_SECONDS)
        if not line:
            raise EngineError(f"the {job['kind']} of layers was cut off")
        try:
            result: dict[str, Any] = json.loads(line)
        except ValueError:
            raise EngineError(f"the {job['kind']} of layers answered what makes no sense: {line[:200]!r}") from None
        if "error" in result:
            raise EngineError(f"{job['kind']} of layers: {result['error']}")
        return result
