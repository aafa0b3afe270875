"""What others need for the same: bubblewrap, runc, and the floor, a process of the host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from measure import timed

APPLETS = ("sh", "true", "sleep", "echo", "cat", "ls", "mkdir")
Step = Callable[[], float]


class Unavailable(Exception):
    """The peer cannot be measured here; the text says why."""


def spawn() -> Step:
    """posix_spawn of /bin/true and its end: below this no process starts from Python."""

    def step() -> float:
        return timed(lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0))

    return step


def bwrap() -> Step:
    path = shutil.which("bwrap") or ""
    command = [path, "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "true"]
    _try(path, command)
    return lambda: timed(lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL))


def runc(scratch: Path) -> Step:
    """`runc run` of a busybox with its default specification, without a terminal."""
    path = shutil.which("runc") or ""
    bundle = scratch / "bundle"
    if not path:
        raise Unavailable("not installed")
    unpack_busybox(bundle / "rootfs")
    _must([path, "spec", "--bundle", str(bundle)])
    specification = json.loads((bundle / "config.json").read_text())
    specification["process"] |= {"terminal": False, "args": ["true"]}
    (bundle / "config.json").write_text(json.dumps(specification))
    command = [path, "--root", str(scratch / "runc"), "run", "--bundle", str(bundle), "boxwood-bench"]
    _try(path, command)
    return lambda: timed(lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL))


def unpack_busybox(root: Path) -> None:
    """A root file system of one static program."""
    source = shutil.which("busybox")
    if source is None:
        raise Unavailable("needs busybox-static for a root file system")
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "root"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(source, root / "bin/busybox")
    for name in APPLETS:
        if not (root / "bin" / name).is_symlink():
            (root / "bin" / name).symlink_to("busybox")


def busybox_tar(scratch: Path) -> Path:
    root, packed = scratch / "rootfs", scratch / "rootfs.tar"
    unpack_busybox(root)
    with tarfile.open(packed, "w") as tar:
        tar.add(root, ".")
    return packed


def _try(path: str, command: list[str]) -> None:
    if not path:
        raise Unavailable("not installed")
    _must(command)


def _must(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
