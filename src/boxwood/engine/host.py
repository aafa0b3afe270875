"""The engine of this host: boxes through the zygote, layers through its jailed jobs. Implements engine/api.Engine."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from boxwood.engine import doctor, quota, storage
from boxwood.engine.api import (
    Box,
    BoxGone,
    BoxSpec,
    Contents,
    CopyReport,
    EngineError,
    EngineUnavailable,
    Limits,
    Stack,
    Usage,
)
from boxwood.engine.daemon import Outside, Zygote
from boxwood.engine.disk import IMAGE, files, projects
from boxwood.engine.hostbox import HostBox
from boxwood.engine.network.desk import Visitor
from boxwood.engine.ready import ReadyBoxes
from boxwood.engine.seccomp import program
from boxwood.engine.strays import let_go
from boxwood.engine.ulid import checked, is_ulid, new_ulid

_JOB_SECONDS = 3600.0
_ADOPT_SECONDS = 5.0
_REMOVE_AT_ONCE = 500  # ids in one packet
log = logging.getLogger(__name__)


class HostEngine:
    """`data`: the data directory; `images`: where image layers lie, shared by all data directories of the host;
    `ready`: how many boxes are booted ahead of demand; `network`: boxes will want one (else what it takes is started
    when the first does); `network_allow`: what they may reach beside the internet, see engine/network/exceptions.py;
    `resolv_conf`: where the servers are named that their questions for names go to."""

    def __init__(
        self, data: Path, images: Path, ready: int = 0, *,
        network: bool = True, network_allow: Sequence[str] = (), resolv_conf: Path = Path("/etc/resolv.conf"),
    ) -> None:  # fmt: skip
        self._data = data
        self._images = images
        self._boxes: dict[str, HostBox] = {}
        self._zygote = Zygote(
            data, images, self._on_death, self._on_lost, Outside(network, tuple(network_allow), resolv_conf)
        )
        self._account: Callable[[str, Usage], None] = lambda vm, usage: None
        self._router = Visitor(data, lambda vm, usage: self._account(vm, usage))
        self._seccomp = b""
        self._checks: list[doctor.Check] = []
        self._quotas = False  # of the file system: tops need no files to be limited
        self._connecting = asyncio.Lock()
        self._over = self._is_down = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ahead = ready
        self._ready = ReadyBoxes(self._boot, self._discard, 0)

    # --- the host

    async def start(self) -> Sequence[Box]:
        self._over = self._is_down = False
        self._ready = ReadyBoxes(self._boot, self._discard, self._ahead)
        self._prepare_directories()
        await asyncio.to_thread(storage.attach, self._data)
        self._quotas, *_ = quota.told(self._data / "layers")
        self._checks = await asyncio.to_thread(doctor.checks, self._data, self._images)
        missing = doctor.missing(self._checks)
        if missing:
            raise EngineUnavailable(
                "; ".join(f"{m.name}: {m.why} ({m.fix})" if m.fix else f"{m.name}: {m.why}" for m in missing)
            )
        self._seccomp = await asyncio.to_thread(program)
        async with self._connecting:
            await self._zygote.connect(self._seccomp)
        self._router.open()
        return await self._adopt()

    async def close(self) -> None:
        self._over = True
        await self._ready.close()
        await self._router.close()
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
        self._zygote.close()
        await self._zygote.wait_gone()
        await asyncio.to_thread(storage.detach, self._data)
        self._is_down = True

    async def features(self) -> AsyncIterator[tuple[str, bool, str]]:
        for check in self._checks:
            if check.name == doctor.NETWORK and check.active and self._zygote.connected:
                try:
                    said = await self._zygote.ask("network", {})
                except EngineError as error:
                    said = {"active": False, "why": str(error)}
                yield check.name, said["active"], said["why"] or check.why
            else:
                yield check.name, check.active, check.why or check.fix

    def _prepare_directories(self) -> None:
        for directory in (self._data, self._images):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)  # layers hold real setuid files
        for name in ("layers", "mnt", "log"):
            (self._data / name).mkdir(mode=0o700, exist_ok=True)

    async def _connect(self) -> None:
        async with self._connecting:
            if self._zygote.connected:
                return
            if self._over:  # whoever is late must not start another zygote, which nobody would end
                raise EngineUnavailable("the engine was shut down")
            await self._zygote.connect(self._seccomp or await asyncio.to_thread(program))
            await self._put_strangers_down()

    async def _put_strangers_down(self) -> None:
        """When a connection to the zygote is lost its boxes count as dead; if it lives after all, so do they."""
        strangers = [HostBox(row["box"], row["vm"], row["top"], self._put_down) for row in await self._living()]
        self._boxes.update((box.box_id, box) for box in strangers)
        await asyncio.gather(*(box.kill() for box in strangers))

    async def _adopt(self) -> list[Box]:
        """The boxes that live already, each with a new link; those whose agents do not answer are put down."""
        living = await self._living()
        waiting = [HostBox(row["box"], "", row["top"], self._put_down) for row in living if not row["vm"]]
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
        box = HostBox(row["box"], row["vm"], row["top"], self._put_down)
        box.address, box.read_only = row["address"], row.get("read_only", False)
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
        box = self._ready.take(spec) if untouched and not spec.ahead else None
        if box is not None and spec.network and not box.address and self._router.there:
            await self._discard([box])  # it was made when there was no network
            box = None
        if box is None or not await self._give_top(box, spec.stack.top):
            return await self._boot(spec)
        fits = box.hostname == spec.hostname and box.limits == spec.limits
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
        layers = self._data / "layers"
        try:
            os.rename(layers / checked(box.top), layers / checked(top))
        except OSError as error:
            log.warning("the top of a ready box could not be given to a VM: %s", error)
            await self._discard([box])
            return False
        box.top = top
        return True

    async def _prepare_disks(self, spec: BoxSpec) -> None:
        """Whatever of the stack lies in a file is in order, and the top does if it has a limit."""
        stack, layers = spec.stack, self._data / "layers"

        def work() -> None:
            for layer in (stack.top, *stack.layers):
                if layer not in stack.images:
                    files.check(layers, layer)
            if spec.limits.disk and not self._quotas:
                files.make(layers, self._data / "disks", stack.top, spec.limits.disk)

        if spec.limits.disk and (problem := self.disk_problem()):
            raise EngineError(f"disks cannot be limited here: {problem}")
        if spec.limits.disk or any((layers / layer / IMAGE).exists() for layer in stack.layers):
            try:
                await asyncio.to_thread(work)
            except OSError as error:
                raise EngineError(f"the disk of the box could not be prepared: {error}") from error

    async def _assign(self, box: HostBox, spec: BoxSpec) -> None:
        """Make a ready box that has the VM's top the VM's. If it cannot be done, the box is gone afterwards."""
        fields = _boot_fields(spec)
        del fields["layers"], fields["read_only"]
        box.vm_id, box.hostname, box.limits = spec.vm_id, spec.hostname, spec.limits
        try:
            await self._zygote.ask("assign", {"box": box.box_id, **fields})
        except EngineError as error:
            log.warning("a ready box could not be given to a VM: %s", error)
            await box.kill()

    async def change(self, box: Box, hostname: str, limits: Limits) -> None:
        assert isinstance(box, HostBox)
        wanted = {"box": box.box_id, "hostname": hostname, "limits": _limit_fields(limits)}
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
        await self._connect()
        await self._prepare_disks(spec)
        box = HostBox(new_ulid(), spec.vm_id, spec.stack.top, self._put_down, spec.hostname, spec.limits)
        box.read_only = spec.read_only
        ours, theirs = socket.socketpair()
        self._boxes[box.box_id] = box
        try:
            with theirs:
                fields = {"box": box.box_id, **_boot_fields(spec)}
                said = await self._zygote.ask("boot", fields, (theirs.fileno(),))
                box.address = said["address"]
                if spec.read_only and not said.get("read_only"):
                    raise EngineError("the zygote of an older version makes no read-only boxes: boxwood down ends it")
                if spec.limits.disk and said.get("disk") != spec.limits.disk:
                    raise EngineError("the zygote of an older version limits no disks: boxwood down ends it")
        except BaseException:
            ours.close()
            self._boxes.pop(box.box_id, None)
            self._abandon(box.box_id)
            raise
        try:
            await box.attach(ours)
        except BoxGone as error:
            await box.kill()
            raise EngineError(f"the box did not come up: {error}") from None
        except asyncio.CancelledError:
            await box.kill()
            raise
        return box

    async def _put_down(self, box_id: str) -> None:
        try:
            await self._zygote.ask("kill", {"box": box_id})
        except EngineError:
            # Either it died already, of which the zygote tells us, or the zygote is gone and with it its boxes.
            if not self._zygote.connected and (box := self._boxes.pop(box_id, None)):
                box.died("the zygote is gone")

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

    # --- layers

    async def is_empty(self, layer_id: str) -> bool:
        if (self._data / "layers" / checked(layer_id) / IMAGE).exists():
            return (await self.contents(layer_id)).empty
        path = self._data / "layers" / layer_id / "upper"

        def look() -> bool:
            try:
                with os.scandir(path) as entries:
                    return next(entries, None) is None
            except FileNotFoundError:
                return True

        return look()  # one directory, opened and read: some 20 µs

    async def contents(self, layer_id: str) -> Contents:
        box = next((box for box in self._boxes.values() if box.top == layer_id and box.vm_id), None)
        if box is not None and (self._data / "layers" / checked(layer_id) / IMAGE).exists():
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
        check = next((check for check in self._checks if check.name == doctor.DISK), None)
        return "" if check is None or check.active else f"{check.why}; {check.fix}"

    async def in_files(self) -> set[str]:
        layers = self._data / "layers"
        return await asyncio.to_thread(lambda: {path.parent.name for path in layers.glob(f"*/{IMAGE}")})

    async def copy_top(self, box: Box, source: str, target: str) -> CopyReport:
        assert isinstance(box, HostBox)
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

    async def merge(self, layers: Sequence[str], target: str) -> None:
        await self._job({"kind": "merge", "layers": [["data", checked(i)] for i in layers], "target": checked(target)})

    async def remove(self, layers: Sequence[str]) -> None:
        await self._ready.drop(layers)
        for at in range(0, len(layers), _REMOVE_AT_ONCE):
            await self._job({"kind": "remove", "layers": [checked(i) for i in layers[at : at + _REMOVE_AT_ONCE]]})

    async def stored(self) -> set[str]:
        names = await asyncio.to_thread(os.listdir, self._data / "layers")
        bare = (name.removeprefix(".dead-").removesuffix(".part") for name in names)  # whose jobs were cut off
        return {name for name in bare if is_ulid(name)}

    # --- the network

    async def usage(self, vm_id: str) -> Usage:
        if not self._router.there and not any(box.vm_id == vm_id and box.address for box in self._boxes.values()):
            return Usage()
        try:
            return await self._router.usage(vm_id)  # also of a box that has just ended, until its account is closed
        except EngineError:
            return Usage()  # there is no router, and so no wire

    def account(self, sink: Callable[[str, Usage], None]) -> None:
        self._account = sink

    # --- the host

    def free_memory(self) -> int:
        with open("/proc/meminfo", "rb") as file:  # some 20 µs
            return next((int(line.split()[1]) << 10 for line in file if line.startswith(b"MemAvailable:")), 1 << 62)

    def free_disk(self) -> int:
        disks = [os.statvfs(place) for place in (self._data, self._data / "layers")]  # where there is a pool, two
        return min(disk.f_bavail * disk.f_frsize for disk in disks)

    # --- work of the zygote's

    async def _job(self, job: dict[str, Any]) -> dict[str, Any]:
        """Have a jailed child of the zygote do something to layers; its result is one line of JSON."""
        await self._connect()
        ready, theirs = os.pipe()
        os.set_blocking(ready, False)
        try:
            await self._zygote.ask("job", {"job": job}, (theirs,))
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(theirs)
        line = await _read_to_end(ready, _JOB_SECONDS)
        if not line:
            raise EngineError(f"the {job['kind']} of layers was cut off")
        try:
            result: dict[str, Any] = json.loads(line)
        except ValueError:
            raise EngineError(f"the {job['kind']} of layers answered what makes no sense: {line[:200]!r}") from None
        if "error" in result:
            raise EngineError(f"{job['kind']} of layers: {result['error']}")
        return result


def _boot_fields(spec: BoxSpec) -> dict[str, Any]:
    stack: Stack = spec.stack
    layers = [["image" if ident in stack.images else "data", checked(ident)] for ident in stack.layers]
    return {
        "vm": spec.vm_id, "layers": layers, "top": checked(stack.top), "hostname": spec.hostname,
        "limits": _limit_fields(spec.limits), "network": spec.network, "read_only": spec.read_only,
    }  # fmt: skip


def _limit_fields(limits: Limits) -> dict[str, Any]:
    fields = {"vcpu": limits.vcpu, "memory_mib": limits.memory_mib, "pids": limits.pids}
    return fields | {"disk": limits.disk} if limits.disk else fields


async def _read_to_end(fd: int, seconds: float) -> bytes:
    """All that comes over a pipe, which is then closed."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    pipe = io.FileIO(fd, "rb")
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        async with asyncio.timeout(seconds):
            return await reader.read()
    finally:
        transport.close()
