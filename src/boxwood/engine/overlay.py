"""A VM's root: an overlay of its stack, made from descriptors with the credentials of the box's uid range.

On disk layers are canonical (owned by 0…65535, as inside); the range's idmapped clones show them as the range's own.
An overlay keeps the credentials of its mounter for what it does in its work directory, so it is configured with the
range's first id as fsuid: with fsuid 0, which the idmap does not cover, it would come up read-only.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from boxwood.engine import kernel as k
from boxwood.engine import roots
from boxwood.engine.ranges import BoxRange

MOST_LAYERS = 400  # the kernel stops at 500

# What an overlay does on behalf of whoever uses it. CAP_SYS_RESOURCE is not among it, so quotas will hold.
_CAPABILITIES = k.capability_mask(
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "setgid", "setuid", "sys_admin", "mknod", "setfcap"
)
# userxattr: one format on disk, with root and without; it knows no redirect_dir=off: none is made, none followed.
_OPTIONS = ("userxattr", "redirect_dir=nofollow", "metacopy=off", "index=off")
_VOLATILE = "volatile"  # no fsync does anything; without it every end of a box flushes the whole host file system
_ONE_DEVICE = "xino=on"  # layers on several file systems: still one device number, as find -xdev expects
NO_DISKS: Mapping[str, int] = {}
_LONGEST_OPTIONS = 3900  # of the page that mount(2) takes
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def prepare_top(layers_fd: int, top: str) -> None:
    """Make the directories of a top that has none, and make one that was used before fit for use again.

    A volatile overlay leaves a mark in its work directory that refuses the next mount, since after a power loss the
    top might be torn. After a mere end of the box it is whole, and losing power is what `durable` is for.
    """
    for name in (top, f"{top}/upper", f"{top}/work"):
        try:
            os.mkdir(name, 0o755, dir_fd=layers_fd)
        except FileExistsError:
            continue
        os.chmod(name, 0o755, dir_fd=layers_fd)  # whatever the umask: an upper is the root directory of its VM
    mark = f"{top}/work/work/incompat/volatile"
    for remove, path in ((os.unlink, f"{mark}/dirty"), (os.rmdir, mark), (os.rmdir, os.path.dirname(mark))):
        try:
            remove(path, dir_fd=layers_fd)
        except FileNotFoundError:
            pass


@dataclass(frozen=True, slots=True)
class Places:
    """Where layers lie on the host, for kernels that want an overlay's layers by path: absolute names."""

    layers: str
    images: str


def by_descriptor() -> bool:
    """Does this kernel (≥ 6.15) make overlays of detached mounts that it is given as descriptors?"""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return version is not None and (int(version[1]), int(version[2])) >= (6, 15)


def attach_views(range_: BoxRange, places: Places) -> None:
    """The range's views of the layers once more, made by path and attached to `layers` and `images` of the working
    directory: kernels from 5.19 on want an overlay's layers there."""
    for path, name in ((places.layers, "layers"), (places.images, "images")):
        os.mkdir(name)
        tree = range_.view(path)
        k.move_mount(tree, name)
        os.close(tree)


def mount_root(
    layers: Sequence[tuple[str, str]],
    top: str,
    range_: BoxRange,
    *,
    by_path: bool,
    read_only: bool = False,
    durable: bool = False,
    disks: Mapping[str, int] = NO_DISKS,
) -> int:
    """An overlay at `root` of the working directory, as a descriptor of its root directory.

    `layers`: (place, id), topmost first; place is `data` or `image`. `by_path`: after `attach_views`. `read_only`: of
    file system and mount, and nobody in the box may mount anything. `durable`: what is flushed reaches the disk.
    `disks`: of layers that have a file system of their own its root directory, idmapped.
    """
    options = (*_OPTIONS, *(() if durable else (_VOLATILE,)), *((_ONE_DEVICE,) if disks else ()))
    if by_path:
        return _mount_by_path(layers, top, range_, read_only, disks, options)
    opened = []
    try:
        for place, ident in layers:
            at = range_.images if place == "image" else range_.layers
            opened.append(_part(ident, "upper", at, disks))
        upper = _part(top, "upper", range_.layers, disks)
        opened.append(upper)
        work = _part(top, "work", range_.layers, disks)
        opened.append(work)
        if _can_be_told(top, read_only, disks):
            roots.inherit(opened[0], upper, work)
        with _as_range(range_.base):
            filesystem = _configured(options)
            for fd in opened[:-2]:
                filesystem.set("lowerdir+", fd)
            filesystem.set("upperdir", upper)
            filesystem.set("workdir", work)
            if read_only:
                filesystem.set("ro")
            # nodev: a layer may hold a device node, and the box's root may open what is 0666
            root = filesystem.create(k.ATTR_NODEV | (k.ATTR_RDONLY if read_only else 0))
        k.move_mount(root, "root")
        return root
    finally:
        for fd in opened:
            os.close(fd)


def _can_be_told(top: str, read_only: bool, disks: Mapping[str, int]) -> bool:
    """Can a top be written to before it is mounted? One in a file not, if the box is to write nothing."""
    return not (read_only and top in disks)


def _part(ident: str, name: str, at: int, disks: Mapping[str, int]) -> int:
    """A descriptor of a layer's `upper` or `work`."""
    if (disk := disks.get(ident)) is not None:
        return os.open(name, _DIRECTORY, dir_fd=disk)
    return os.open(f"{ident}/{name}", _DIRECTORY, dir_fd=at)


def _mount_by_path(
    layers: Sequence[tuple[str, str]],
    top: str,
    range_: BoxRange,
    read_only: bool,
    disks: Mapping[str, int],
    wanted: Sequence[str],
) -> int:
    where = {
        ident: f"{'images' if place == 'image' else 'layers'}/{ident}" for place, ident in [("data", top), *layers]
    }
    for number, (ident, disk) in enumerate(disks.items()):
        where[ident] = f"disk{number}"
        os.mkdir(where[ident])
        k.move_mount(disk, where[ident])
    names = [f"{where[ident]}/upper" for _, ident in layers]
    options = f"lowerdir={':'.join(names)},upperdir={where[top]}/upper,workdir={where[top]}/work"
    if len(options) > _LONGEST_OPTIONS:
        raise OSError(errno.E2BIG, f"{len(layers)} layers: this kernel takes the names of about 110")
    if _can_be_told(top, read_only, disks):
        opened = [os.open(name, _DIRECTORY) for name in (names[0], f"{where[top]}/upper", f"{where[top]}/work")]
        try:
            roots.inherit(*opened)
        finally:
            for fd in opened:
                os.close(fd)
    with _as_range(range_.base):
        flags = k.MS_NODEV | (k.MS_RDONLY if read_only else 0)
        k.mount("boxwood", "root", "overlay", flags, ",".join((options, *wanted)))
    return os.open("root", _DIRECTORY)


def _configured(options: Sequence[str]) -> k.Filesystem:
    filesystem = k.Filesystem("overlay")
    filesystem.set("source", "boxwood")
    for option in options:
        name, _, value = option.partition("=")
        filesystem.set(name, value or None)
    return filesystem


@contextmanager
def _as_range(base: int) -> Iterator[None]:
    permitted = k.capabilities()
    k.setfsids(base)
    try:
        k.set_capabilities(_CAPABILITIES & permitted, permitted)
        yield
    finally:
        k.setfsids(0)
        k.set_capabilities(permitted)
