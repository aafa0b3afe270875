"""A pool for layers: an XFS image file below the data directory, mounted with project quotas where layers lie.

For hosts whose data directory is on a file system without project quotas. `make` makes one, once, before there are
layers; `attach` mounts it whenever an engine starts, `detach` takes it away when the engine has shut down. The loop
device goes with the mount. `python -m boxwood.engine.storage show|init` is what `boxwood storage` calls.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from boxwood.engine import listener, quota
from boxwood.engine.api import EngineUnavailable

log = logging.getLogger(__name__)

GIB = 1 << 30
POOL = "pool.xfs"
LEAST_GIB = 1  # mkfs.xfs refuses what is much smaller
SPARE = 256 << 20  # bytes that a pool leaves to the rest of its disk

# Said rather than left to the defaults of this mkfs; kernels from 5.19 on, the oldest that runs boxes, know all of it.
# -K: a discard would take back what is allocated. ftype: what overlays need.
_MKFS = ("mkfs.xfs", "-q", "-K", "-m", "crc=1,finobt=1,reflink=1,bigtime=1,inobtcount=1,rmapbt=0", "-n", "ftype=1")
_OPTIONS = "loop,prjquota,nosuid,nodev"
_SECONDS = 300
_SET_DIRECT_IO = 0x4C08
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """A pool cannot be made here; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class Storage:
    """What layers lie on. `quotas`: xfs, ext4 or none. Bytes. `pool`: the image file, if there is one, and whether it
    is mounted now; while it is not, nothing is known of what is in it."""

    data: str
    quotas: str
    why: str
    fix: str
    size: int
    used: int
    free: int
    pool: str | None
    mounted: bool


def show(data: Path) -> Storage:
    """PermissionError for whoever may not look into the data directory."""
    layers, pool = data / "layers", data / POOL
    place = next(found for found in (layers, *layers.absolute().parents) if found.is_dir())
    has_pool = pool.exists()
    mounted = has_pool and os.path.ismount(layers)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind, why, fix = quota.Quota(fd).kind, "", ""
    except quota.NoQuota as error:
        kind, why, fix = "none", error.why, error.fix
    finally:
        os.close(fd)
    disk = os.statvfs(place)
    size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    used = size - disk.f_bfree * disk.f_frsize
    if has_pool and not mounted:
        kind, why, fix = "xfs", "the pool is not mounted", "`boxwood up` mounts it"
        size, used, free = pool.stat().st_size, 0, 0
    return Storage(str(data), kind, why, fix, size, used, free, str(pool) if has_pool else None, mounted)


# --- while the engine lives


def attach(data: Path) -> None:
    """Mount the pool of a data directory, if there is one and it is not mounted. EngineUnavailable: never go on without
    it, since the directory below would look like one that has lost all its layers."""
    pool, layers = data / POOL, data / "layers"
    if not pool.exists():
        return
    if os.path.ismount(layers):
        return
    if any(layers.iterdir()):
        raise EngineUnavailable(f"{pool} belongs on {layers}, which is not empty: move what is in there away")
    try:
        _mount(pool, layers)
    except Refused as error:
        raise EngineUnavailable(f"{pool} cannot be mounted on {layers}: {error}") from None


def detach(data: Path) -> None:
    """After the last box: unmount what `attach` has mounted. What is in use stays, for the next `attach` to find."""
    layers = data / "layers"
    if (data / POOL).exists() and os.path.ismount(layers):
        done = _run("umount", str(layers))
        if done.returncode:
            log.warning("the pool stays mounted on %s: %s", layers, _said(done))


def _mount(image: Path, place: Path) -> None:
    """With quotas that are enforced, or not at all. Refused."""
    _need("mount", "mount")
    done = _run("mount", "-t", "xfs", "-o", _OPTIONS, str(image), str(place))
    if done.returncode:
        told = "XFS with project quotas cannot be mounted; does this kernel have CONFIG_XFS_QUOTA? `dmesg` says more"
        raise Refused(f"{told} ({_said(done)})")
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        quota.kind_of(fd)
        _without_a_second_cache(os.fstat(fd).st_dev)
    except quota.NoQuota as error:
        _run("umount", str(place))
        raise Refused(str(error)) from None
    finally:
        os.close(fd)


def _without_a_second_cache(device: int) -> None:
    """Pages of the image need not be kept beside those of the files in it; where that is refused they are."""
    with contextlib.suppress(OSError):
        name = os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").rpartition("/")[2]
        fd = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _SET_DIRECT_IO, 1)
        finally:
            os.close(fd)


# --- once


def make(data: Path, gib: int | None) -> Storage:
    """Make a pool and mount it. `gib`: its size; None: half of what is free. Nothing is changed where layers can be
    limited already. Refused, and then nothing is left of it."""
    if os.geteuid() != 0:
        raise Refused("a pool is mounted, which only root may: run this as root")
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    layers, pool = data / "layers", data / POOL
    with _alone(data):
        if pool.exists():
            attach(data)
            return show(data)
        layers.mkdir(mode=0o700, exist_ok=True)
        if (now := show(data)).quotas != "none":
            return now
        if any(layers.iterdir()):
            raise Refused(f"{layers} holds layers already: choose another data directory (--data), or delete the VMs")
        _need("mkfs.xfs", "xfsprogs")
        size = _size(data, gib)
        part = data / f"{POOL}.part"
        try:
            _make_image(part, size)
            _try(part, data)
            os.rename(part, pool)
        finally:
            part.unlink(missing_ok=True)
        attach(data)
        return show(data)


def _size(data: Path, gib: int | None) -> int:
    disk = os.statvfs(data)
    free = disk.f_bavail * disk.f_frsize
    size = (free // 2 // GIB if gib is None else gib) * GIB
    if size < LEAST_GIB * GIB:
        raise Refused(f"a pool needs {LEAST_GIB} GiB or more; {free / GIB:.1f} GiB are free below {data}")
    if size + SPARE > free:
        raise Refused(f"{gib} GiB are too much: {free / GIB:.1f} GiB are free below {data}, give a smaller --size")
    return size


def _make_image(part: Path, size: int) -> None:
    """All of it allocated: a pool that found its disk full would lose what it had promised to keep."""
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            raise Refused(f"{size >> 30} GiB cannot be allocated below {part.parent}: {error.strerror}") from None
        done = _run(*_MKFS, str(part))
        if done.returncode:
            raise Refused(f"mkfs.xfs: {_said(done)}")
        os.fsync(fd)
    finally:
        os.close(fd)


def _try(part: Path, data: Path) -> None:
    """Mount it aside: will this kernel enforce quotas in it? And make its root fit for layers."""
    aside = data / f"{POOL}.trial"
    aside.mkdir(mode=0o700, exist_ok=True)
    if os.path.ismount(aside):
        _run("umount", str(aside))  # whoever tried it before was killed
    try:
        _mount(part, aside)
        try:
            aside.chmod(0o700)  # layers hold real setuid files
        finally:
            done = _run("umount", str(aside))
        if done.returncode:
            raise Refused(f"the new pool cannot be unmounted: {_said(done)}")
    finally:
        aside.rmdir()


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    """No server and no zygote of this data directory live, and none starts meanwhile."""
    fd = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"a server runs in {data}: `boxwood down --data {data}` first") from None
        if _zygote_lives(data):
            raise Refused(f"boxes live in {data}: `boxwood up` and `boxwood down` with --data {data} first")
        yield
    finally:
        os.close(fd)


def _zygote_lives(data: Path) -> bool:
    if (sock := listener.reach(data)) is None:
        return False
    sock.close()
    return True


# --- programs


def _need(program: str, package: str) -> None:
    if shutil.which(program, path=_PATH) is None:
        raise Refused(f"{program} is needed: `apt install {package}`, or what your system calls it")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS,
        check=False, env={"PATH": _PATH, "LC_ALL": "C"},
    )  # fmt: skip


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[0][:500] if lines else f"status {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="boxwood storage", description="What layers lie on, as one line of JSON.")
    parser.add_argument("what", choices=("show", "init"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, help="GiB")
    options = parser.parse_args()
    try:
        found = show(options.data) if options.what == "show" else make(options.data, options.size)
        said, status = asdict(found), 0
    except (Refused, EngineUnavailable, OSError) as error:
        said, status = {"error": str(error)}, 1
    sys.stdout.write(json.dumps(said) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
