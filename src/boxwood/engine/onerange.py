"""The ids of boxes without root: one range for all, since nobody but root can give each box its own.

It takes the place of `uidrange` where the zygote is root in a user namespace of its own only. Layers belong on disk to
whoever belongs to them in that namespace, and are mounted as they are: idmapped mounts are for those who have rights
over a whole file system. Each box still has a user namespace of its own, nested in the zygote's, so that mounts and
limits made before are not its own to change.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from boxwood.engine import kernel as k
from boxwood.engine import userns
from boxwood.engine.idmap import IdMap
from boxwood.engine.ranges import BoxRange
from boxwood.engine.uidrange import LINKS, MOUNT_POINTS, NODES

_HALVED = {
    "max_inotify_instances": "fs/inotify/max_user_instances",
    "max_inotify_watches": "fs/inotify/max_user_watches",
}
_HARMLESS = k.ATTR_NODEV | k.ATTR_NOSUID


class SharedRange:
    """Like `uidrange.Range`. `layers` and `images` are the same for all."""

    base = 0
    is_shared = True

    def __init__(self, ids: IdMap, layers: int, images: int, device_place: str, number: int) -> None:
        self.number = number
        self.count = ids.count
        self.userns = _nested_namespace(ids)
        self.layers = layers
        self.images = images
        self._device_place = device_place

    def descriptors(self) -> tuple[int, ...]:
        return self.userns, self.layers, self.images

    def adopt(self, descriptors: Sequence[int]) -> None:
        self.userns, self.layers, self.images = descriptors

    def close(self) -> None:
        for fd in self.descriptors():
            os.close(fd)

    def devices(self) -> int:
        """Bind mounts can be cloned in the mount namespace that they are in alone: by name, in the box's copy of it."""
        return k.open_tree(self._device_place, recursive=True)

    def view(self, path: str) -> int:
        return k.cloned(path, attributes=_HARMLESS)


class SharedRanges:
    """Like `uidrange.Ranges`. `device_place`: an empty directory of the host, absolute."""

    chunk = 0

    def __init__(self, ids: IdMap, layers_fd: int, images_fd: int, device_place: Path) -> None:
        self._ids = ids
        self._layers = k.cloned("", layers_fd, _HARMLESS)
        self._images = k.cloned("", images_fd, _HARMLESS | k.ATTR_RDONLY)
        self._device_place = str(device_place)
        _bind_devices(self._device_place)
        self._free: list[BoxRange] = []
        self._made = 0

    def __len__(self) -> int:
        return len(self._free)

    def prepare(self) -> None:
        """The same ids as all, but a number, and so an address, of its own."""
        self._free.append(SharedRange(self._ids, self._layers, self._images, self._device_place, self._made))
        self._made += 1

    def take(self) -> BoxRange:
        if not self._free:
            self.prepare()
        return self._free.pop()

    def give_back(self, used: BoxRange) -> None:
        self._free.append(used)


def _nested_namespace(ids: IdMap) -> int:
    """A user namespace with the ids of ours, which we are root of from outside: a descriptor."""
    maps = [("uid_map", ids.nested()), ("gid_map", ids.nested())]
    return userns.made(
        maps if ids.count > 1 else [("setgroups", "deny"), *maps],
        lambda: None,
        _take_no_more_than_half,
        "a user namespace in a user namespace could not be made: see `boxwood doctor`",
    )


def _take_no_more_than_half() -> None:
    """Of what the kernel lets one user have, in a user namespace of one's own: all boxes are the same user outside, and
    one of them is not to starve the others. It cannot raise this again, without CAP_SYS_RESOURCE."""
    for ours, theirs in _HALVED.items():
        with contextlib.suppress(OSError, ValueError):  # a kernel that does not count it so
            most = int(Path("/proc/sys", theirs).read_text()) // 2
            Path("/proc/sys/user", ours).write_text(str(most))


def _bind_devices(place: str) -> None:
    """A read-only /dev whose nodes are the host's: no user namespace may make any."""
    k.mount("dev", place, "tmpfs", k.MS_NOSUID | k.MS_NOEXEC, "mode=755,size=64k")
    for name, number in NODES.items():
        found = os.stat(f"/dev/{name}")
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(*number):
            raise OSError(f"/dev/{name} of this host is not the device of that name")
        os.close(os.open(f"{place}/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        k.mount(f"/dev/{name}", f"{place}/{name}", None, k.MS_BIND)
    for name, target in LINKS.items():
        os.symlink(target, f"{place}/{name}")
    for name in MOUNT_POINTS:
        os.mkdir(f"{place}/{name}")
        os.chmod(f"{place}/{name}", 0o755)
    k.mount(None, place, None, k.MS_REMOUNT | k.MS_BIND | k.MS_RDONLY | k.MS_NOSUID | k.MS_NOEXEC)
