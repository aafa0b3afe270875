"""The process that mounts a volume in a live box, or takes it away: forked by the zygote, it enters the box's mount
namespace as the host's root and ends there.

It opens nothing of the box but directories, as places (O_PATH), one name at a time, and follows no link and no mount on
its way; it reads nothing, executes nothing, imports nothing. What it mounts is made before it enters: a mount of the
volume's directory alone, seen through the box's map of ids, without devices and setuid. What it takes away it has as a
descriptor, so no path that the box could change is asked for.
"""

from __future__ import annotations

import array
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from boxwood.engine import birth
from boxwood.engine import kernel as k
from boxwood.engine.descriptors import close_all_but
from boxwood.engine.disk import image
from boxwood.engine.ranges import BoxRange

_SECONDS = 60  # then it is killed: nobody waits longer
_HARMLESS = k.ATTR_NODEV | k.ATTR_NOSUID
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_WITHIN = k.RESOLVE_BENEATH | k.RESOLVE_NO_SYMLINKS | k.RESOLVE_NO_MAGICLINKS | k.RESOLVE_NO_XDEV
_MODE = 0o755  # of directories that are made
_REFUSED = {
    errno.ELOOP: "{} is a symbolic link: give the path that it leads to",
    errno.EXDEV: "something else is mounted at {}",
    errno.ENOTDIR: "{} is no directory",
    errno.ENOENT: "{} was taken away meanwhile",
    errno.EROFS: "{} is not there, and cannot be made: the VM is read-only",
    errno.ENAMETOOLONG: "a name in {} is too long",
    errno.ENOSPC: "{} cannot be made: no space is left in the VM",
    errno.EDQUOT: "{} cannot be made: no space is left in the VM",
}


class Refused(Exception):
    """The box's tree does not allow it: an errno and a text for the VM's owner."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.errno = number


@dataclass(frozen=True, slots=True)
class Order:
    """`box`: a descriptor to enter its mount namespace by. `volumes`: the directory of volumes; `stage`: an empty one
    of the host. `disk`: of a volume that lies in a file; `limit`: bytes of that."""

    box: int
    range: BoxRange
    volumes: int
    volume: str
    path: str
    read_only: bool
    stage: str
    disk: image.Attached | None = None
    limit: int = 0


def attach(order: Order, said: socket.socket) -> NoReturn:
    """In a forked process: mount, and say {"ok": true} with a descriptor of the mount, or why not."""
    keep = [order.box, order.volumes, *order.range.descriptors()]
    if order.disk is not None:
        keep += [order.disk.file, order.disk.device]
    _live(lambda: _attach(order), said, keep)


def detach(box: int, mount: int, said: socket.socket) -> NoReturn:
    """In a forked process: take away a mount (a descriptor of it) and say whether somebody still writes."""
    _live(lambda: _detach(box, mount), said, [box, mount])


def _live(work: Callable[[], tuple[dict[str, Any], list[int]]], said: socket.socket, keep: list[int]) -> NoReturn:
    status = 1
    try:
        k.set_death_signal(signal.SIGKILL)
        k.set_name("volumes")
        birth.reset_signals()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS)
        close_all_but(said.fileno(), *keep)
        os.umask(0o022)
        k.capabilities()  # looked up while /proc is the host's
        sys.path.clear()  # whatever would be imported from here on lies in the box
        sys.meta_path.clear()
        try:
            answer, fds = work()
        except Refused as error:
            answer, fds = {"errno": error.errno, "refused": str(error)}, []
        except (OSError, RuntimeError) as error:
            answer, fds = {"error": f"{type(error).__name__}: {error}"[:500]}, []
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        said.sendmsg([json.dumps(answer).encode()], rights, socket.MSG_NOSIGNAL)
        status = 0
    finally:
        os._exit(status)


def _attach(order: Order) -> tuple[dict[str, Any], list[int]]:
    tree = _directory(order) if order.disk is None else _in_file(order, order.disk)
    # Private: what the host mounts below it later is not to be seen in the box.
    k.mount_setattr(tree, k.ATTR_RDONLY if order.read_only else 0, propagation=k.MS_PRIVATE)
    k.setns(order.box, k.NEWNS)
    k.setfsids(order.range.base)  # what is made belongs to the box's root
    k.set_capabilities(k.capabilities())
    at = _place(order.path)
    k.setfsids(0)
    k.set_capabilities(k.capabilities())
    try:
        k.move_mount(tree, "", at)
    except OSError as error:
        raise _refusal(error, order.path) from None
    return {"ok": True}, [tree]


def _directory(order: Order) -> int:
    fd = os.open(f"{order.volume}/upper", _PLACE | os.O_NOFOLLOW, dir_fd=order.volumes)
    try:
        if order.range.is_shared:
            return k.cloned("", fd, _HARMLESS)
        return k.idmapped("", order.range.userns, fd, _HARMLESS)
    finally:
        os.close(fd)


def _in_file(order: Order, disk: image.Attached) -> int:
    """The volume's directory in its file system, which is mounted in a namespace of this process's own: older kernels
    clone nothing that is attached nowhere."""
    root = image.mount(disk)
    sysfs = os.open(image.SYSFS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    image.hold_back(sysfs, disk.number, root, order.limit)
    k.mount_setattr(root, k.ATTR_IDMAP | _HARMLESS, userns=order.range.userns)
    k.unshare(k.NEWNS)
    k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
    k.move_mount(root, order.stage)
    return k.cloned(f"{order.stage}/upper", attributes=_HARMLESS)


def _place(path: str) -> int:
    """The directory at a path of the namespace that we are in, made if it is not there: a descriptor. Refused."""
    at = os.open("/", _PLACE)
    done = ""
    for name in path.strip("/").split("/"):
        done = f"{done}/{name}"
        try:
            below = k.open_within(at, name, _PLACE, _WITHIN)
        except FileNotFoundError:
            below = _made(at, name, done)
        except OSError as error:
            raise _refusal(error, done) from None
        os.close(at)
        at = below
    return at


def _made(at: int, name: str, path: str) -> int:
    try:
        os.mkdir(name, _MODE, dir_fd=at)
    except FileExistsError:
        pass  # the box has been quicker, and it is looked at as any other
    except OSError as error:
        raise _refusal(error, path) from None
    try:
        return k.open_within(at, name, _PLACE, _WITHIN)
    except OSError as error:
        raise _refusal(error, path) from None


def _refusal(error: OSError, path: str) -> Refused:
    number = error.errno or errno.EIO
    text = _REFUSED.get(number, "nothing can be mounted at {}: " + os.strerror(number))
    return Refused(number, text.format(path))


def _detach(box: int, mount: int) -> tuple[dict[str, Any], list[int]]:
    k.setns(box, k.NEWNS)
    os.fchdir(mount)
    busy = False
    try:
        k.mount_setattr(mount, k.ATTR_RDONLY)  # whoever stays in there writes nothing more
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        busy = True
    k.umount(".", k.MNT_DETACH)
    return {"ok": True, "busy": busy}, []
