"""A VM's root: an overlay of its stack, made from descriptors with the credentials of the box's uid range.

On disk layers are canonical (owned by 0…65535, as inside); the range's idmapped clones show them as the range's own.
An overlay keeps the credentials of its mounter for what it does in its work directory, so it is configured with the
range's first id as fsuid: with fsuid 0, which the idmap does not cover, it would come up read-only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from boxwood.engine import kernel as k
from boxwood.engine.uidrange import Range

MOST_LAYERS = 400  # the kernel stops at 500

# What an overlay does on behalf of whoever uses it. CAP_SYS_RESOURCE is not among it, so quotas will hold.
_CAPABILITIES = k.capability_mask(
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "setgid", "setuid", "sys_admin", "mknod", "setfcap"
)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def prepare_top(layers_fd: int, top: str) -> None:
    """Make the directories of a top that has none, and make one that was used before fit for use again.

    A volatile overlay leaves a mark in its work directory that refuses the next mount, since after a power loss the
    top might be torn. After a mere end of the box it is whole, and losing power is what `durable` is for.
    """
    try:
        os.mkdir(top, 0o755, dir_fd=layers_fd)
    except FileExistsError:
        pass
    for name in ("upper", "work"):
        try:
            os.mkdir(f"{top}/{name}", 0o755, dir_fd=layers_fd)
        except FileExistsError:
            pass
    for path in (f"{top}/work/work/incompat/volatile", f"{top}/work/work/incompat"):
        try:
            os.rmdir(path, dir_fd=layers_fd)
        except FileNotFoundError:
            pass


def mount_root(layers: Sequence[tuple[str, str]], top: str, range_: Range, *, volatile: bool = True) -> int:
    """A detached overlay: a descriptor. `layers`: (place, id), topmost first; place is `data` or `image`."""
    opened = []
    try:
        for place, ident in layers:
            at = range_.images if place == "image" else range_.layers
            opened.append(os.open(f"{ident}/upper", _DIRECTORY, dir_fd=at))
        upper = os.open(f"{top}/upper", _DIRECTORY, dir_fd=range_.layers)
        opened.append(upper)
        work = os.open(f"{top}/work", _DIRECTORY, dir_fd=range_.layers)
        opened.append(work)
        return _mount(opened[:-2], upper, work, range_.base, volatile)
    finally:
        for fd in opened:
            os.close(fd)


def _mount(lowers: list[int], upper: int, work: int, base: int, volatile: bool) -> int:
    permitted = k.capabilities()
    k.setfsids(base)
    try:
        k.set_capabilities(_CAPABILITIES & permitted, permitted)
        filesystem = k.Filesystem("overlay")
        filesystem.set("source", "boxwood")
        filesystem.set("userxattr")  # one format on disk, with root and without
        filesystem.set("redirect_dir", "nofollow")  # userxattr knows no "off": neither made nor followed
        filesystem.set("metacopy", "off")
        filesystem.set("index", "off")
        if volatile:
            filesystem.set("volatile")  # else every end of a box flushes the whole host file system
        for fd in lowers:
            filesystem.set("lowerdir+", fd)
        filesystem.set("upperdir", upper)
        filesystem.set("workdir", work)
        # nodev: a layer may hold a device node, and the box's root may open what is 0666
        return filesystem.create(k.ATTR_NODEV)
    finally:
        k.setfsids(0)
        k.set_capabilities(permitted)
