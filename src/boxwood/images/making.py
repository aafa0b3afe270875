"""How a host golden is made, in a process of its own: the farm of /usr, the listed part of /etc, what is made anew."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from boxwood.engine import kernel
from boxwood.images import accounts, clientconfig, etc, python, skeleton
from boxwood.images.clientconfig import ClientConfig
from boxwood.images.farm import Progress, Tally, plant

# Below /usr. Their directories stay where packages count on them (skeleton.py).
_LEFT_OUT = {
    "": {"local", "src", "etc", "tmp"},
    "share": {"doc", "doc-base", "locale", "man", "info", "help", "gtk-doc", "omf"},
    "lib": {"debug", "modules", "firmware", "initramfs-tools"},
}
_LEFT_OUT_FILES = {"EXTERNALLY-MANAGED"}
_NEVER = {"pip.conf", ".netrc", ".npmrc", ".pypirc", ".git-credentials", ".pgpass", ".ssh", ".aws", ".docker", ".gnupg"}
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True, slots=True)
class Made:
    """What was made. `notes`: what the image lacks, and why."""

    tally: Tally
    notes: tuple[str, ...]


def make(host: Path, root: Path, progress: Progress, shared: ClientConfig | None = None) -> Made:
    """Fill `root`, an empty directory, with the golden of the host whose root directory is `host`, and with the client
    settings that the operator shares.

    :raises OSError: something could not be read or written.
    """
    (root / "usr").mkdir()
    tally = plant(host / "usr", root / "usr", _leave_out, progress)
    progress("configuration", 0, 1)
    _take_merged(host, root, tally, progress)
    etc.copy_configuration(host, root)
    etc.copy_authorities(host, root)
    dpkg = (host / "var/lib/dpkg/status").is_file()
    skeleton.make_directories(root, dpkg=dpkg)
    progress("packages", 0, 1)
    etc.copy_package_state(host, root)
    _make_accounts(host, root, dpkg=dpkg)
    skeleton.fit_nsswitch(root)
    skeleton.write_files(root)
    if shared is not None:
        clientconfig.put(shared, root)
    skeleton.make_homes(root)
    skeleton.set_groups(root)
    progress("python", 0, 1)
    note = python.equip(root)
    progress("disk", 0, 1)
    _sync(root)
    return Made(tally, (note,) if note else ())


def _sync(root: Path) -> None:
    """An image is on the disk before its name is: it is not made again after a power cut."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if kernel.libc.syncfs(fd) < 0:
            raise OSError("the disk did not take the image")
    finally:
        os.close(fd)


def _leave_out(path: str, name: str, is_directory: bool) -> bool:
    if is_directory:
        return name in _LEFT_OUT.get(path, ()) or name in _NEVER
    return name in _LEFT_OUT_FILES or name in _NEVER or name.endswith((".dpkg-new", ".dpkg-tmp"))


def _take_merged(host: Path, root: Path, tally: Tally, progress: Progress) -> None:
    """/bin, /lib and so on: links into /usr as on the host, or farms of their own where it has not merged them."""
    for name in _MERGED:
        if (host / name).is_symlink():
            (root / name).symlink_to(os.readlink(host / name))
        elif (host / name).is_dir():
            (root / name).mkdir()
            part = plant(host / name, root / name, _outside_usr, progress)
            tally.add(part.inodes, part.bytes, part.copied, part.left_out)


def _outside_usr(path: str, name: str, is_directory: bool) -> bool:
    return (path == "" and name in _LEFT_OUT["lib"]) or name in _NEVER


def _make_accounts(host: Path, root: Path, *, dpkg: bool) -> None:
    shell = "/bin/bash" if os.path.lexists(root / "usr/bin/bash") or os.path.lexists(root / "bin/bash") else "/bin/sh"
    users = accounts.passwd(accounts.lines_of(host / "etc/passwd"), shell)
    groups = accounts.group(accounts.lines_of(host / "etc/group"))
    skeleton.write(root / "etc/passwd", users)
    skeleton.write(root / "etc/group", groups)
    skeleton.write(root / "etc/shadow", accounts.shadow(users), 0o640)
    skeleton.write(root / "etc/gshadow", accounts.gshadow(groups), 0o640)
    overrides = root / "var/lib/dpkg/statoverride"
    if dpkg and overrides.is_file():
        skeleton.write(overrides, _known(overrides.read_text(), users, groups))


def _known(overrides: str, users: str, groups: str) -> str:
    """Lines of dpkg's statoverride whose owners the image has: dpkg does nothing at all where one is unknown."""
    names = [{line.partition(":")[0] for line in text.splitlines()} for text in (users, groups)]
    kept = []
    for line in overrides.splitlines(keepends=True):
        owner, group, *_ = [*line.split(), "", ""]
        if all(word in known for word, known in zip((owner, group), names, strict=True)):
            kept.append(line)
    return "".join(kept)
