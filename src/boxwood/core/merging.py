"""Long chains of layers made short, and sealed tops moved out of their files: in the background, beside running boxes.

A merge takes room before it gives any back: directories, and whatever cannot be linked. It may take half of what is to
stay free on the disk, for that is what the room is kept for. What fails, or finds no room, is tried again after a
pause; the VMs that stand on it go on meanwhile, and can be forked until they have as many layers as can be mounted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from boxwood.core.config import Config
from boxwood.core.errors import CoreError
from boxwood.core.ids import new_id
from boxwood.engine.api import Engine, EngineError
from boxwood.store import layers as rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database, StoreError

MIB = 1 << 20
PAUSE_SECONDS = 5.0  # after a failure, until the same layers are tried again
WAIT_SECONDS = 20.0  # that a fork waits for its source to be merged
log = logging.getLogger(__name__)


class NoRoom(EngineError):
    """The disk is too full."""


@dataclass(slots=True)
class _Failure:
    """Why a chain could not be merged, and what is to be tried again."""

    why: str
    tops: list[str]


class Merging:
    """`replaced` hears of layers that another has taken the place of, `orphaned` of targets that were made in vain;
    `secure` brings one to the disk, where somebody relies on it; `wake` has `work` called soon."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        config: Config,
        replaced: Callable[[str], None],
        orphaned: Callable[[str], None],
        secure: Callable[[str], Awaitable[None]],
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._engine = engine
        self._config = config
        self._replaced = replaced
        self._orphaned = orphaned
        self._secure = secure
        self._wake = wake
        self._deep: dict[str, None] = {}  # layers of chains that may be too long, in order of arrival
        self._in_files: dict[str, None] = {}  # sealed tops that had a limit: each costs whoever stands on it a mount
        self._failed: dict[str, _Failure] = {}  # a moment ago, by the lowest layers of the chains
        self._turn: asyncio.Future[None] | None = None  # done when there is something new to see

    def want(self, layer_id: str, *, first: bool = False) -> None:
        """The chain below this layer is long."""
        if first:
            self._deep = {layer_id: None, **self._deep}
        else:
            self._deep[layer_id] = None
        self._wake()

    def want_moved(self, layer_id: str) -> None:
        """The layer lies in a file of its own."""
        self._in_files[layer_id] = None
        self._wake()

    async def shortened(self, vm_id: str) -> str:
        """Wait until a VM has fewer layers than are refused. Why it still has more; empty: it has fewer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                while (deep := self._deep_base(vm_id)) is not None and not (why := self._why(deep)):
                    self.want(deep, first=True)
                    await self._next_turn()
        if (deep := self._deep_base(vm_id)) is None:
            return ""
        why = self._why(deep)
        return f"they cannot be merged now: {why}" if why else "they are being merged, try again"

    def _deep_base(self, vm_id: str) -> str | None:
        row = vm_rows.by_id(self._database.near, vm_id)
        return None if row is None or row.depth < self._config.layers_refused_above else row.base

    def _why(self, layer_id: str) -> str:
        """Why the chain below this layer is not merged; empty: it will be."""
        row = rows.by_id(self._database.near, layer_id)
        if row is not None and row.depth <= self._config.layers_merged_above:
            return "chains as short are not merged (layers_merged_above)"
        failure = self._failed.get(self._chain(layer_id)[-1])
        return "" if failure is None else failure.why

    async def _next_turn(self) -> None:
        if self._turn is None:
            self._turn = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._turn)

    def _chain(self, layer_id: str) -> list[str]:
        """From this layer down to the image, which is not among them."""
        ids, images = rows.chain(self._database.near, layer_id)
        return [one for one in ids if one not in images]

    # The work

    async def work(self) -> None:
        """Chains first, whenever they come: forks may wait for them, and nobody for a move."""
        while self._deep or self._in_files:
            if self._deep:
                await self._merge_next()
            else:
                await self._move_next()

    async def _merge_next(self) -> None:
        layer_id = next(iter(self._deep))
        del self._deep[layer_id]
        try:
            await self._merge(layer_id)
        finally:
            if self._turn is not None:
                self._turn.set_result(None)
                self._turn = None

    async def _move_next(self) -> None:
        layer_id = next(iter(self._in_files))
        del self._in_files[layer_id]
        try:
            await self._move(layer_id)
        except (EngineError, StoreError, CoreError) as error:
            log.error("layer %s stays in its file: %s", layer_id, error)
            if isinstance(error, NoRoom):
                self._later(lambda: self.want_moved(layer_id))

    async def _merge(self, top: str) -> None:
        row = rows.by_id(self._database.near, top)
        if row is None or row.doomed or row.depth <= self._config.layers_merged_above:
            return
        if not rows.stood_on(self._database.near, top):  # merged already
            return
        chain = self._chain(top)
        lowest = chain[-1]
        if (failure := self._failed.get(lowest)) is not None:
            failure.tops[1:] = [top]  # the newest too is tried when the pause is over
            return
        try:
            self._check_room(0)
            if await self._replace(top, chain):
                log.info("%d layers merged", len(chain))
        except (EngineError, StoreError, CoreError) as error:
            log.error("layers below %s could not be merged: %s", top, error)
            self._failed[lowest] = _Failure(str(error), [top])
            self._later(lambda: self._again(lowest))

    def _again(self, lowest: str) -> None:
        for top in self._failed.pop(lowest).tops:
            self.want(top)

    async def _move(self, layer_id: str) -> None:
        """Out of its file into a directory, as others are."""
        row = rows.by_id(self._database.near, layer_id)
        if row is None or row.doomed:
            return
        size, unknown = rows.size(self._database.near, layer_id)
        self._check_room((await self._engine.contents(layer_id)).bytes if unknown else size)
        await self._replace(layer_id, [layer_id])

    async def _replace(self, top: str, chain: list[str]) -> bool:
        """Let a new layer take the place of this chain. False: it is not there any more. EngineError, StoreError."""
        target = new_id()
        record = rows.merged if len(chain) > 1 else rows.moved
        try:
            await self._engine.merge(chain, target)
            await self._secure(target)
            done = await self._database.write(lambda connection: record(connection, top, target))
        except BaseException:
            self._orphaned(target)
            raise
        (self._replaced if done else self._orphaned)(top if done else target)
        return done

    def _check_room(self, size: int) -> None:
        """NoRoom."""
        spare, free = self._config.disk_spare_mib * MIB // 2, self._engine.free_disk()
        if free < spare + size:
            needed = f"{-(-size // MIB)} MiB are needed and " if size else ""
            raise NoRoom(
                f"the disk has {free // MIB} MiB left: {needed}{spare // MIB} are to stay free (half of disk_spare_mib)"
            )

    def _later(self, step: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(PAUSE_SECONDS, step)
