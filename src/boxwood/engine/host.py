"""The engine of this host: boxes through the zygote, layers through its jailed jobs. Implements engine/api.Engine."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxwood.engine import doctor, levels, modes, quota, storage
from boxwood.engine.api import (
    Box,
    BoxGone,
    BoxSpec,
    EngineError,
    EngineUnavailable,
    Feature,
    Limits,
    Stack,
)
from boxwood.engine.daemon import Outside, Zygote
from boxwood.engine.hostbox import HostBox
from boxwood.engine.hostnetworks import HostNetworks
from boxwood.engine.hoststates import HostStates
from boxwood.engine.idmap import IdMap
from boxwood.engine.ready import ReadyBoxes
from boxwood.engine.seccomp import program
from boxwood.engine.strays import let_go
from boxwood.engine.trials import common as checks
from boxwood.engine.trials import rootless
from boxwood.engine.ulid import checked, new_ulid
from boxwood.engine.volumes.host import HostVolumes

_ADOPT_SECONDS = 5.0
BOOTS = 6  # tries of a box that dies without a word: more than there are prepared at once
log = logging.getLogger(__name__)


class _Stillborn(EngineError):
    """A box that died before it said hello."""


class HostEngine(HostNetworks):
    """`data`: the data directory; `images`: where image layers lie, shared by all data directories of the host;
    `ready`: how many boxes are booted ahead of demand; `network`: boxes will want one (else what it takes is started
    when the first does); `network_allow`: what they may reach beside the internet, see engine/network/exceptions.py;
    `resolv_conf`: where the servers are named that their questions for names go to; `require`: the level of isolation
    (engine/levels.py) below which nothing is started; `io_weight`: each box's share of the disk's time,
    where it can be shared out."""

    def __init__(
        self, data: Path, images: Path, ready: int = 0, *,
        network: bool = True, network_allow: Sequence[str] = (), resolv_conf: Path = Path("/etc/resolv.conf"),
        proxy_roots: str = "",
        require: str = "", io_weight: int = 0,
    ) -> None:  # fmt: skip
        zygote = Zygote(
            data, images, self._on_death, self._on_lost, Outside(network, tuple(network_allow), resolv_conf)
        )
        super().__init__(data, zygote, proxy_roots)
        self._images = images
        self._require, self._io_weight = require, io_weight
        self.states = HostStates(self._job)
        self._seccomp = b""
        self._connecting = asyncio.Lock()
        self._over = self._is_down = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ahead = ready
        self._ready = ReadyBoxes(self._boot, self._discard, 0)
        self.volumes = HostVolumes(data, self._ask, self._job, self.disk_problem)

    # --- the host

    async def start(self) -> Sequence[Box]:
        self._over = self._is_down = False
        self._ready = ReadyBoxes(self._boot, self._discard, self._ahead)
        self._prepare_directories()
        await asyncio.to_thread(storage.attach, self._data)
        await self._find_files()
        self._quotas = not os.geteuid() and quota.told(self._data / "layers")[0]
        self.volumes.prepare(counted=self._quotas)
        self._checks = await asyncio.to_thread(doctor.checks, self._data, self._images)
        if missing := doctor.missing(self._checks):
            raise EngineUnavailable(doctor.told(missing))
        if self._require and (missing := doctor.unmet(self._require, self._checks)):
            raise EngineUnavailable(f"this host does not reach the level {self._require}: {doctor.told(missing)}")
        shared_out = any(check.active for check in self._checks if check.name == checks.DISK_SHARES)
        self._zygote.io_weight = self._io_weight if shared_out else 0  # a group more for each box, for nothing
        self._seccomp = await asyncio.to_thread(program)
        self._zygote.ids = await asyncio.to_thread(self._claim)
        async with self._connecting:
            await self._zygote.connect(self._seccomp)
        self._router.open()
        return await self._adopt()

    async def close(self) -> None:
        self._over = True
        self._dialler.close()
        await self._ready.close()
        await self._router.close()
        await self._envoy.close()
        for box in self._boxes.values():
            box.let_go()
        self._zygote.close()

    async def shutdown(self) -> None:
        if self._is_down:
            return
        await self._connect()
        self._over = True
        await self._ready.close()
        await self._zygote.ask("end", {}, seconds=60)
        for box in list(self._boxes.values()):
            box.died("the engine was shut down")
        self._boxes.clear()
        await self._router.close(at_end=True)
        await self._envoy.close()
        self._zygote.close()
        await self._zygote.wait_gone()
        await asyncio.to_thread(storage.detach, self._data)
        self._is_down = True

    async def features(self) -> AsyncIterator[Feature]:
        for check in self._checks:
            if check.name == checks.NETWORK and check.active and self._zygote.connected:
                try:
                    said = await self._zygote.ask("network", {})
                except EngineError as error:
                    said = {"active": False, "why": str(error)}
                check = replace(check, active=said["active"], why=said["why"] or check.why)
            yield Feature(check.name, check.active, check.why, check.fix, check.required, levels.level_of(check.name))

    def _prepare_directories(self) -> None:
        for directory in (self._data, self._images):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)  # layers hold real setuid files
        for name in ("layers", "mnt", "log", "dev"):
            (self._data / name).mkdir(mode=0o700, exist_ok=True)

    def _claim(self) -> IdMap | None:
        """The ids of boxes, if we are not root; the directories are from now on for a server with these."""
        ids = None if os.geteuid() == 0 else rootless.ids_of(self._checks)
        modes.claim(self._data, ids)
        modes.claim(self._images, ids, layers=False)
        return ids

    async def _connect(self) -> None:
        if self._connecting.locked() or not self._zygote.connected:
            # Who asks may be gone before there is a connection; others would have half of one, or a second zygote.
            await asyncio.shield(self._keep(self._reconnect()))

    async def _reconnect(self) -> None:
        async with self._connecting:
            if self._zygote.connected:
                return
            if self._over:  # whoever is late must not start another zygote, which nobody would end
                raise EngineUnavailable("the engine was shut down")
            await self._zygote.connect(self._seccomp or await asyncio.to_thread(program))
            try:
                await self._put_strangers_down()
            except BaseException:
                self._zygote.close()  # so that the next one tries again
                self._on_lost("the connection to the zygote was lost")
                raise

    async def _put_strangers_down(self) -> None:
        """When a connection to the zygote is lost its boxes count as dead; if it lives after all, so do they."""
        strangers = [
            HostBox(row["box"], row["vm"], row["top"], self._put_down, dismissed=self._dismiss)
            for row in await self._living()
        ]
        self._boxes.update((box.box_id, box) for box in strangers)
        await asyncio.gather(*(box.kill() for box in strangers))

    async def _adopt(self) -> list[Box]:
        """The boxes that live already, each with a new link; those whose agents do not answer are put down."""
        living = await self._living()
        waiting = [
            HostBox(row["box"], "", row["top"], self._put_down, dismissed=self._dismiss)
            for row in living
            if not row["vm"]
        ]
        self._boxes.update((box.box_id, box) for box in waiting)
        await self._discard(waiting)
        found = await asyncio.gather(*(self._adopt_one(row) for row in living if row["vm"]))
        return [box for box in found if box is not None]

    async def _living(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            page = await self._zygote.ask("list", {"after": rows[-1]["box"] if rows else ""})
            rows += page["boxes"]
            if not page["more"]:
                return rows

    async def _adopt_one(self, row: dict[str, Any]) -> Box | None:
        box = HostBox(row["box"], row["vm"], row["top"], self._put_down, dismissed=self._dismiss)
        box.address, box.read_only = row["address"], row.get("read_only", False)
        box.policies = None
        box.mounts = set(row.get("mounts", ()))
        self._boxes[box.box_id] = box
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                await self._zygote.ask("link", {"box": box.box_id}, (theirs.fileno(),))
            await box.attach(ours, _ADOPT_SECONDS)
            return box
        except (BoxGone, EngineError):
            if ours.fileno() >= 0:
                let_go(ours, ())
            await box.kill()
            return None

    # --- boxes

    async def boot(self, spec: BoxSpec) -> Box:
        await self._connect()
        untouched = not (self._data / "layers" / checked(spec.stack.top)).exists()
        # A durable one has a top of its own from the start, and is mounted otherwise.
        box = self._ready.take(spec) if untouched and not spec.ahead and not spec.durable else None
        if box is not None and spec.network and not box.address and self._router.there:
            await self._discard([box])  # it was made when there was no network
            box = None
        if box is None or not await self._give_top(box, spec.stack.top):
            return await self._boot(spec)
        fits = box.hostname == spec.hostname and box.limits == spec.limits
        box.vm_id, box.hostname, box.limits = spec.vm_id, spec.hostname, spec.limits  # before anybody asks whose it is
        assigning = self._keep(self._assign(box, spec))
        if not fits:  # else nothing is changed that its processes could see, and nobody need wait for it
            try:
                await asyncio.shield(assigning)
            except asyncio.CancelledError:
                self._abandon(box.box_id)
                raise
            if box.gone.done():
                return await self._boot(spec)
        return box

    async def _give_top(self, box: HostBox, top: str) -> bool:
        """Make the top of a ready box the VM's, before anybody may write there: what is in a top of nobody is
        removed when server and zygote have died."""
        try:
            self._rename_top(box.top, top)
        except OSError as error:
            log.warning("the top of a ready box could not be given to a VM: %s", error)
            await self._discard([box])
            return False
        box.top = top
        return True

    async def _assign(self, box: HostBox, spec: BoxSpec) -> None:
        """Make a ready box that has the VM's top the VM's. If it cannot be done, the box is gone afterwards."""
        fields = _boot_fields(spec)
        del fields["layers"], fields["read_only"], fields["durable"]
        try:
            await self._zygote.ask("assign", {"box": box.box_id, **fields})
        except EngineError as error:
            log.warning("a ready box could not be given to a VM: %s", error)
            await box.kill()

    async def change(self, box: Box, hostname: str, limits: Limits) -> None:
        assert isinstance(box, HostBox)
        wanted = {"box": box.box_id, "hostname": hostname, "limits": limits.fields()}
        await self._zygote.ask("change", wanted)
        box.hostname, box.limits = hostname, limits

    async def memory_kills(self, box: Box) -> int | None:
        assert isinstance(box, HostBox)
        kills: int | None = (await self._zygote.ask("kills", {"box": box.box_id}))["kills"]
        return kills

    async def _discard(self, boxes: Sequence[HostBox]) -> None:
        """Put down boxes that no VM has, with their tops."""
        await asyncio.gather(*(box.kill() for box in boxes))
        await self.remove([box.top for box in boxes])

    def _abandon(self, box_id: str) -> None:
        """Nobody waits for this box any more, but it may live, or come up all the same."""
        self._keep(self._put_down(box_id))

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that goes on whoever waits for it: the event loop alone does not hold it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _boot(self, spec: BoxSpec) -> HostBox:
        """What becomes a box was prepared ahead, and may have been killed since: then it is another one's turn."""
        is_new = not (self._data / "layers" / checked(spec.stack.top)).exists()
        for _ in range(BOOTS - 1):
            try:
                return await self._boot_once(spec, is_new)
            except _Stillborn as error:
                log.warning("VM %s: %s; another is tried", spec.vm_id or "(none yet)", error)
        return await self._boot_once(spec, is_new)

    async def _boot_once(self, spec: BoxSpec, is_new: bool) -> HostBox:
        """`is_new`: its top was not there. EngineError; _Stillborn if the box died without having said why."""
        await self._connect()
        in_files = await self._prepare_disks(spec)
        box = HostBox(
            new_ulid(), spec.vm_id, spec.stack.top, self._put_down, spec.hostname, spec.limits, dismissed=self._dismiss
        )
        box.read_only = spec.read_only
        ours, theirs = socket.socketpair()
        self._boxes[box.box_id] = box
        try:
            with theirs:
                fields = {"box": box.box_id, "in_files": in_files, **_boot_fields(spec)}
                said = await self._zygote.ask("boot", fields, (theirs.fileno(),))
                box.address = said["address"]
                if spec.read_only and not said.get("read_only"):
                    raise EngineError("the zygote of an older version makes no read-only boxes: boxwood down ends it")
                if spec.limits.disk and said.get("disk") != spec.limits.disk:
                    raise EngineError("the zygote of an older version limits no disks: boxwood down ends it")
                if spec.durable and not said.get("durable"):
                    raise EngineError("the zygote of an older version makes no durable boxes: boxwood down ends it")
        except BaseException:
            ours.close()
            self._boxes.pop(box.box_id, None)
            self._abandon(box.box_id)
            raise
        try:
            await box.attach(ours)
        except BoxGone as error:
            await box.kill()
            kind = _Stillborn if box.stillborn else EngineError
            raise kind(f"the box did not come up: {error}") from None
        except asyncio.CancelledError:
            await box.kill()
            raise
        if spec.durable and is_new:
            try:
                await asyncio.to_thread(self._flushed.secure_top, spec.stack.top)
            except BaseException as error:
                await box.kill()
                if isinstance(error, OSError):
                    raise EngineError(f"the top of the VM could not be brought to the disk: {error}") from error
                raise
        return box

    async def _put_down(self, box_id: str) -> None:
        try:
            await self._zygote.ask("kill", {"box": box_id})
        except EngineError:
            # Either it died already, of which the zygote tells us, or the zygote is gone and with it its boxes.
            if not self._zygote.connected and (box := self._boxes.pop(box_id, None)):
                box.died("the zygote is gone")

    async def _dismiss(self, box_id: str) -> bool:
        """True: nothing runs in the box, and it ends later. Else it is to be put down."""
        try:
            return "later" in await self._zygote.ask("dismiss", {"box": box_id})
        except EngineError:
            return False  # as above; or it is the zygote of an older version

    def _on_death(self, box_id: str, status: int) -> None:
        if box := self._boxes.pop(box_id, None):
            code = os.waitstatus_to_exitcode(status)
            box.died(
                f"its first process was killed by signal {-code}"
                if code < 0
                else f"its first process ended with {code}"
            )

    def _on_lost(self, reason: str) -> None:
        boxes, self._boxes = self._boxes, {}
        for box in boxes.values():
            box.died(reason)

    async def _drop_ready(self, layers: Sequence[str]) -> None:
        await self._ready.drop(layers)

    # --- the host

    def free_memory(self) -> int:
        with open("/proc/meminfo", "rb") as file:  # some 20 µs
            return next((int(line.split()[1]) << 10 for line in file if line.startswith(b"MemAvailable:")), 1 << 62)

    def free_disk(self) -> int:
        disks = [os.statvfs(place) for place in (self._data, self._data / "layers")]  # where there is a pool, two
        return min(disk.f_bavail * disk.f_frsize for disk in disks)

    async def _ask(self, op: str, fields: dict[str, Any], seconds: float) -> dict[str, Any]:
        await self._connect()
        return await self._zygote.ask(op, fields, seconds=seconds)


def _boot_fields(spec: BoxSpec) -> dict[str, Any]:
    stack: Stack = spec.stack
    layers = [["image" if ident in stack.images else "data", checked(ident)] for ident in stack.layers]
    return {
        "vm": spec.vm_id, "layers": layers, "top": checked(stack.top), "hostname": spec.hostname,
        "limits": spec.limits.fields(), "network": spec.network, "read_only": spec.read_only,
        "durable": spec.durable,
    }  # fmt: skip
