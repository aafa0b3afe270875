"""What the checks of quotas stand on: the file systems, what is done to them, and how a check is known by its name."""

from __future__ import annotations

import errno
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from boxwood.core.ids import new_id
from boxwood.engine import kernel as k
from boxwood.engine import quota
from boxwood.engine.layers import jail
from boxwood.engine.overlay import Places, attach_views, mount_root, prepare_top
from boxwood.engine.uidrange import FIRST, Range

MIB = 1 << 20
KINDS = {"xfs": "/dev/vda", "ext4": "/dev/vdb"}
PLAIN = "/dev/vdc"  # ext4 without quotas
DATA, IMAGES = Path("/plain/data"), Path("/plain/images")
SECONDS = 300  # for a check; far more than any needs
FULL = (errno.ENOSPC, errno.EDQUOT)  # XFS says the first for a project that is full, ext4 the second
IMAGE = "0" + "A" * 25

CHECKS: dict[str, Callable[[], None]] = {}


class Disk:
    """A directory of layers on a file system with quotas, and images on another."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind, self.place = kind, place
        self.layers, self.images = place / "layers", IMAGES
        self.layers.mkdir(exist_ok=True)
        (self.images / IMAGE / "upper").mkdir(parents=True, exist_ok=True)
        for name, size in (("large", 30), ("small", 1)):
            (self.images / IMAGE / "upper" / name).write_bytes(b"y" * size * MIB)
        self.fd = os.open(self.layers, os.O_RDONLY | os.O_DIRECTORY)
        self.images_fd = os.open(self.images, os.O_RDONLY | os.O_DIRECTORY)
        self.quota = quota.Quota(self.fd)

    def top(self, most_bytes: int | None, most_inodes: int | None) -> tuple[str, int]:
        """A new top with limits: its id, its project."""
        top = new_id()
        project = self.quota.prepare_top(top, most_bytes, most_inodes)
        prepare_top(self.fd, top)
        return top, project

    def boxed(self, top: str, work: Callable[[], object], *, lift: bool = True) -> object:
        """What `work` returns as root of a box on this top. Its OSError, or that of the mount, is raised here."""
        prepare_top(self.fd, top)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                said: object = {"value": self._in_box(top, work, lift)}
            except OSError as error:
                said = {"errno": error.errno}
            except BaseException:
                said = {"failed": traceback.format_exc()}
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as answer:
            told = json.load(answer)
        os.waitpid(pid, 0)
        if "errno" in told:
            raise OSError(told["errno"], os.strerror(told["errno"]))
        assert "failed" not in told, told["failed"]
        return told["value"]

    def _in_box(self, top: str, work: Callable[[], object], lift: bool) -> object:
        range_ = Range(FIRST, self.fd, self.images_fd)
        k.unshare(k.NEWNS)
        k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
        k.mount("stage", "/mnt", "tmpfs")
        os.chdir("/mnt")
        os.mkdir("root")
        attach_views(range_, Places(str(self.layers), str(self.images)))
        stack = (("image", IMAGE),)
        if lift:
            at = os.open(top, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.fd)
            with quota.lifted(range_.layers, quota.project_of(at)[0]):
                mount_root(stack, top, range_, by_path=True)
        else:
            mount_root(stack, top, range_, by_path=True)
        os.chroot("root")
        os.chdir("/")
        k.setns(range_.userns, k.NEWUSER)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        return work()


DISKS: dict[str, Disk] = {}


def check(function: Callable[[Disk], None]) -> Callable[[Disk], None]:
    """To be made on each kind of file system."""
    for kind in KINDS:
        CHECKS[f"{kind}: {function.__name__}"] = lambda kind=kind: function(DISKS[kind])  # type: ignore[misc]
    return function


def once(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def fill(name: str, mib: int) -> int:
    """Write so many MiB: how many bytes it could."""
    written = 0
    try:
        with open(name, "wb", buffering=0) as file:
            while written < mib * MIB:
                written += file.write(b"x" * 65536)
            os.fsync(file.fileno())
    except OSError as error:
        assert error.errno in FULL, error
    return written


def bomb(count: int) -> int:
    """Make so many empty files: how many it could."""
    for made in range(count):
        try:
            os.close(os.open(f"/bomb-{made}", os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError as error:
            assert error.errno in FULL, error
            return made
    return count


def refused(work: Callable[[], object], *errors: int) -> None:
    """It must fail so. (In a box.)"""
    try:
        work()
    except OSError as error:
        assert error.errno in errors, error
    else:
        raise AssertionError("it went through")


def job(disk: Disk, **what: object) -> dict[str, object]:
    """A job on layers, as the zygote has it done."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        jail.jailed(dict(what), disk.fd, disk.images_fd, writing)
    os.close(writing)
    with open(reading, "rb") as answer:
        told: dict[str, object] = json.load(answer)
    os.waitpid(pid, 0)
    assert told.get("ok"), told
    return told


def wait_until(condition: Callable[[], bool]) -> None:
    """XFS frees what was deleted a moment later."""
    for _ in range(600):
        if condition():
            return
        os.sync()
        time.sleep(0.1)
    raise AssertionError("it has not come to pass")


def refused_value(work: Callable[[], object]) -> None:
    try:
        work()
    except ValueError:
        return
    raise AssertionError("it went through")


def say(line: object) -> None:
    print(json.dumps(line), flush=True)
