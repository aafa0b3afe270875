"""What a box needs of a root file system, and gets where the rootfs has it not or has something else in its place.

Runs confined, with the rootfs as its root: paths are resolved inside it, whatever it holds.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import struct

from boxwood.images.accounts import USER
from boxwood.images.names import RESOLV
from boxwood.images.tree import Refused, shown

_DIRECTORIES = {
    "/dev": 0o755, "/proc": 0o555, "/sys": 0o555, "/run": 0o755, "/tmp": 0o1777,  # noqa: S108
    "/root": 0o700, "/etc": 0o755,
    "/home": 0o755, "/workspace": 0o755,
}  # fmt: skip
_USERS = """root:x:0:0:root:/root:{0}
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
user:x:1000:1000:user:/home/user:{0}
"""
_GROUP = "root:x:0:\nnogroup:x:65534:\nuser:x:1000:\n"
_HOSTS = "127.0.0.1\tlocalhost\n127.0.1.1\tboxwood\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_MACHINES = {"x86_64": {62: "x86-64", 3: "x86"}, "aarch64": {183: "AArch64", 40: "ARM"}}


def outfit() -> None:
    """:raises Refused: no shell that this machine can run."""
    _check_shell()
    root = os.geteuid() == 0  # else all belongs to one user, who is root in boxes
    if root:
        os.chown("/", 0, 0)
    os.chmod("/", 0o755)  # a tree packed in a temporary directory has that one's mode
    for path, mode in _DIRECTORIES.items():
        _directory(path, mode)
    if _directory("/home/user", 0o755) and root:
        os.chown("/home/user", USER, USER)
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    if not os.path.isfile("/etc/passwd"):
        _write("/etc/passwd", _USERS.format(shell))
    if not os.path.isfile("/etc/group"):
        _write("/etc/group", _GROUP)
    if not os.path.isfile("/etc/hosts"):
        _write("/etc/hosts", _HOSTS)
    # These come from the machine that the rootfs was made on.
    _write("/etc/hostname", "boxwood\n")
    _write("/etc/resolv.conf", RESOLV)
    if os.path.lexists("/etc/machine-id"):
        _write("/etc/machine-id", "", 0o444)


def _directory(path: str, mode: int) -> bool:
    """Make it one, whatever is there; True where there was none."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            return False
        os.unlink(path)
    except FileNotFoundError:
        pass
    os.mkdir(path)
    os.chmod(path, mode)
    return True


def _write(path: str, text: str, mode: int = 0o644) -> None:
    """In place of whatever is there; a link is replaced, not followed."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        shutil.rmtree(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(fd, "w") as f:
        f.write(text)
        os.fchmod(fd, mode)


def _check_shell() -> None:
    try:
        fd = os.open("/bin/sh", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"no root file system that can be run: /bin/sh: {error.strerror}{_hint()}") from None
    try:
        status = os.fstat(fd)
        if not (stat.S_ISREG(status.st_mode) and status.st_mode & 0o111):
            raise Refused("no root file system that can be run: /bin/sh is no program")
        start = os.read(fd, 20)
    finally:
        os.close(fd)
    known = _MACHINES.get(platform.machine())
    if start.startswith(b"\x7fELF") and len(start) == 20 and known is not None:
        machine = struct.unpack_from("<H" if start[5] == 1 else ">H", start, 18)[0]
        if machine not in known:
            raise Refused(
                f"the root file system is for another machine (ELF number {machine}); this one runs "
                + " and ".join(known.values())
            )


def _hint() -> str:
    names = [name for name in os.listdir("/") if name not in (".", "..")]
    if {"manifest.json", "oci-layout", "index.json"} & set(names):
        return "; this looks like an image of Docker or OCI: export a container's root with `docker export`"
    if len(names) == 1 and os.path.lexists(f"/{names[0]}/bin/sh"):
        return (
            f"; it lies in {shown(names[0])}: pack the directory's content, not the directory (tar -C {names[0]!a} .)"
        )
    return ""
