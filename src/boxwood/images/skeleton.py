"""The directories and files of an image's root that are made anew rather than taken from the host."""

from __future__ import annotations

import os
from pathlib import Path

from boxwood.images.accounts import USER
from boxwood.images.names import NSSWITCH, RESOLV, switched

DIRECTORIES = {
    "dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "run/lock": 0o1777, "tmp": 0o1777, "mnt": 0o755,
    "media": 0o755, "opt": 0o755, "srv": 0o755, "boot": 0o755, "home": 0o755, "root": 0o700, "workspace": 0o755,
    "etc": 0o755, "etc/default": 0o755, "etc/apt": 0o755, "etc/opt": 0o755, "etc/profile.d": 0o755,
    "usr/local": 0o755, "usr/local/bin": 0o755, "usr/local/etc": 0o755, "usr/local/games": 0o755,
    "usr/local/include": 0o755, "usr/local/lib": 0o755, "usr/local/sbin": 0o755, "usr/local/share": 0o755,
    "usr/local/share/man": 0o755, "usr/local/src": 0o755, "usr/src": 0o755, "usr/share/doc": 0o755,
    "usr/share/info": 0o755, "usr/share/locale": 0o755, "usr/share/man": 0o755,
    "var": 0o755, "var/backups": 0o755, "var/cache": 0o755, "var/cache/apt": 0o755, "var/cache/apt/archives": 0o755,
    "var/cache/apt/archives/partial": 0o700, "var/cache/debconf": 0o755, "var/cache/ldconfig": 0o700,
    "var/cache/man": 0o755, "var/cache/fontconfig": 0o755, "var/lib": 0o755, "var/lib/apt": 0o755,
    "var/lib/apt/lists": 0o755, "var/lib/apt/lists/partial": 0o700, "var/lib/apt/mirrors": 0o755,
    "var/lib/apt/mirrors/partial": 0o755, "var/lib/apt/periodic": 0o755, "var/lib/misc": 0o755, "var/local": 0o2775,
    "var/log": 0o755, "var/log/apt": 0o755, "var/mail": 0o2775, "var/opt": 0o755, "var/spool": 0o755, "var/tmp": 0o1777,
}  # fmt: skip
DPKG = {
    "var/lib/dpkg": 0o755,
    "var/lib/dpkg/updates": 0o755,
    "var/lib/dpkg/info": 0o755,
    "var/lib/dpkg/triggers": 0o755,
}
GROUPS = {"var/local": 50, "var/mail": 8, "etc/shadow": 42, "etc/gshadow": 42, "var/log/btmp": 43, "var/log/wtmp": 43,
          "var/log/lastlog": 43}  # fmt: skip
LINKS = {
    "var/run": "/run", "var/lock": "/run/lock", "var/spool/mail": "../mail", "usr/local/man": "share/man",
    "etc/mtab": "../proc/self/mounts",
}  # fmt: skip

HOSTS = "127.0.0.1\tlocalhost\n127.0.1.1\tboxwood\n::1\tlocalhost ip6-localhost ip6-loopback\n"
FILES = {  # written unless the host's came in: text, mode
    "etc/hostname": ("boxwood\n", 0o644),
    "etc/hosts": (HOSTS, 0o644),
    "etc/resolv.conf": (RESOLV, 0o644),
    "etc/machine-id": ("", 0o444),
    "etc/environment": ("", 0o644),
    "etc/fstab": ("", 0o644),
    "etc/nsswitch.conf": (NSSWITCH, 0o644),
    "etc/profile": ("export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n", 0o644),
    # All of a VM is one user's: git need not suspect directories of another uid.
    "etc/gitconfig": ("[safe]\n\tdirectory = *\n", 0o644),
    "var/log/btmp": ("", 0o660),
    "var/log/wtmp": ("", 0o664),
    "var/log/lastlog": ("", 0o664),
}
_HOMES = {"root": 0, "home/user": USER}


def make_directories(root: Path, *, dpkg: bool) -> None:
    """Those that are missing; the listed modes go to all of them."""
    for name, mode in (DIRECTORIES | (DPKG if dpkg else {})).items():
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)
    for section in range(1, 10):  # maintainers' scripts link into them
        (root / f"usr/share/man/man{section}").mkdir(exist_ok=True)
    for name, target in LINKS.items():
        if not os.path.lexists(root / name):
            (root / name).symlink_to(target)


def write_files(root: Path) -> None:
    for name, (text, mode) in FILES.items():
        if not os.path.lexists(root / name):
            write(root / name, text, mode)


def fit_nsswitch(root: Path) -> None:
    """What came in of the host's names only what works in a box. A link (authselect) leads to what did not come in."""
    for name in ("etc/nsswitch.conf", "usr/etc/nsswitch.conf"):
        path = root / name
        if path.is_symlink():
            path.unlink()
        elif path.is_file():
            write(path, switched(path.read_text(errors="replace")))


def write(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    """A new file; the one that is there is replaced."""
    path.unlink(missing_ok=True)
    with open(path, "xb") as f:
        f.write(text.encode() if isinstance(text, str) else text)
        os.fchmod(f.fileno(), mode)


def make_homes(root: Path) -> None:
    """/root and /home/user, with what /etc/skel has."""
    skeleton = root / "etc/skel"
    for home, owner in _HOMES.items():
        (root / home).mkdir(exist_ok=True)
        for original in sorted(skeleton.iterdir()) if skeleton.is_dir() else ():
            if original.is_file() and not original.is_symlink():
                write(root / home / original.name, original.read_bytes())
                _own(root / home / original.name, owner, owner)
        _own(root / home, owner, owner)


def set_groups(root: Path) -> None:
    for name, gid in GROUPS.items():
        if os.path.lexists(root / name):
            mode = (root / name).stat().st_mode & 0o7777
            _own(root / name, 0, gid)
            (root / name).chmod(mode)  # a change of owner takes set-id bits away


def _own(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)
