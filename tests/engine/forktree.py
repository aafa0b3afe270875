"""A tree of forks over real layers, mounted by the engine's own code as boxes' roots are, beside its model.

Each VM may have its tops in files of their own (engine/disk) or in plain directories. `ForkTree` does with layers what
the core does: an empty top is not sealed, whoever stood on the top of a chain that was merged stands on the merged one,
and what nobody stands on is removed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwood.engine import box
from boxwood.engine import kernel as k
from boxwood.engine.disk import IMAGE, MIB, files, image
from boxwood.engine.overlay import Places, attach_views, by_descriptor, prepare_top
from boxwood.engine.uidrange import Ranges
from engine import plaintree
from engine.overlays import Layers, in_child, new_id
from engine.plaintree import Operation, Seen, Tree

LIMIT = 64 * MIB


@dataclass
class VM:
    """`layers`: topmost first, without the image. `limited`: its tops lie in files."""

    layers: tuple[str, ...]
    top: str
    limited: bool
    model: Tree


class Host:
    """What outlives an example: a directory of layers, an image that VMs begin with, a range of ids."""

    def __init__(self, place: Path, image_of: Sequence[Operation]) -> None:
        self.layers = Layers(place)
        self.templates = place / "disks"
        self._stage = place / "stage"
        self._stage.mkdir()
        directory = os.O_RDONLY | os.O_DIRECTORY
        self._fds = [os.open(path, directory) for path in (self.layers.root, self.layers.images)]
        self._range = Ranges(place / "locks", *self._fds).take()
        self.image, self.model = new_id(), Tree()
        self._make_image(image_of)

    def _make_image(self, image_of: Sequence[Operation]) -> None:
        upper = self.layers.images / self.image / "upper"
        upper.mkdir(parents=True)

        def make() -> list[bool]:
            os.umask(0o022)
            os.chdir(upper)
            return [plaintree.perform(operation) for operation in image_of]

        assert in_child(make) == [self.model.perform(operation) for operation in image_of]

    def close(self) -> None:
        self._range.close()
        for fd in self._fds:
            os.close(fd)

    def in_box(self, vm: VM, operations: Sequence[Operation]) -> tuple[list[bool], Seen]:
        """Do them in the VM, as its root: which of them could be done, and all that can be seen afterwards."""
        in_file = vm.limited and (self.layers.root / vm.top / IMAGE).exists()
        if vm.limited and not in_file:
            files.make(self.layers.root, self.templates, vm.top, LIMIT)
        if not vm.limited:
            prepare_top(self._fds[0], vm.top)

        def child() -> tuple[list[bool], Seen]:
            self._enter(vm)
            return [plaintree.perform(operation) for operation in operations], plaintree.seen()

        done, found = in_child(child)
        return done, found

    def _enter(self, vm: VM) -> None:
        """Become root of the VM, in its root directory."""
        places = None if by_descriptor() else Places(str(self.layers.root), str(self.layers.images))
        ground = box.Ground(self._range, (), str(self._stage), b"", places)
        k.mount("stage", ground.stage, "tmpfs", k.MS_NOSUID | k.MS_NODEV, "mode=711,size=16k")
        os.chdir(ground.stage)
        os.mkdir("root")
        if places is not None:
            attach_views(ground.range, places)
        in_files = [layer for layer in (vm.top, *vm.layers) if (self.layers.root / layer / IMAGE).exists()]
        disks = tuple(image.Disks(self._fds[0]).attach_all(in_files, vm.top, read_only=False))
        sysfs = os.open(image.SYSFS, os.O_PATH | os.O_DIRECTORY) if disks else -1
        stack = (*(("data", layer) for layer in vm.layers), ("image", self.image))
        plan = box.Plan(stack, vm.top, "vm", None, False, disks, LIMIT if vm.limited else 0, sysfs)
        os.fchdir(box._mount_stack(ground, plan, box.Step()))
        k.setns(self._range.userns, k.NEWUSER)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.umask(0o022)


class ForkTree:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._layers = host.layers
        self.vms = [VM((), new_id(), False, host.model.fork())]

    def change(self, vm: VM, operations: Sequence[Operation]) -> None:
        """And compare."""
        done, found = self._host.in_box(vm, operations)
        assert done == [vm.model.perform(operation) for operation in operations], operations
        difference = plaintree.difference(vm.model.seen(), found)
        assert not difference, difference

    def fork(self, vm: VM, *, limited: bool) -> VM:
        self.seal(vm)
        self.vms.append(VM(vm.layers, new_id(), limited, vm.model.fork()))
        return self.vms[-1]

    def seal(self, vm: VM) -> None:
        if not self._is_empty(vm.top):
            vm.layers, vm.top = (vm.top, *vm.layers), new_id()

    def _is_empty(self, top: str) -> bool:
        return bool(self._layers.job(kind="look", layer=top)["empty"])

    def merge(self, vm: VM, count: int) -> None:
        """The lowest so many layers that the VM stands on, down to the image, into one."""
        chain = vm.layers[-count:]
        if not chain:
            return
        target = new_id()
        answer = self._layers.job(kind="merge", layers=[["data", layer] for layer in chain], target=target)
        assert answer.get("ok"), answer
        for other in self.vms:
            if other.layers[-len(chain) :] == chain:
                other.layers = (*other.layers[: -len(chain)], target)
        self._collect()

    def _collect(self) -> None:
        kept = {layer for vm in self.vms for layer in (vm.top, *vm.layers)}
        gone = sorted(self._layers.names() - kept)
        assert self._layers.job(kind="remove", layers=gone).get("ok")

    def end(self) -> None:
        self.vms.clear()
        self._collect()
        assert not self._layers.names()
