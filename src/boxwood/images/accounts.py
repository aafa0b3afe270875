"""Users and groups of an image: root, the system's own, `nobody` and `user`; nobody who lives on the host."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

USER = 1000  # uid and gid of `user`

# Debian's own, as base-passwd has them: packages of every sort expect these.
_USERS = {
    "root": (0, 0, "/root", "/bin/bash"), "daemon": (1, 1, "/usr/sbin", ""), "bin": (2, 2, "/bin", ""),
    "sys": (3, 3, "/dev", ""), "sync": (4, 65534, "/bin", "/bin/sync"), "games": (5, 60, "/usr/games", ""),
    "man": (6, 12, "/var/cache/man", ""), "lp": (7, 7, "/var/spool/lpd", ""), "mail": (8, 8, "/var/mail", ""),
    "news": (9, 9, "/var/spool/news", ""), "uucp": (10, 10, "/var/spool/uucp", ""), "proxy": (13, 13, "/bin", ""),
    "www-data": (33, 33, "/var/www", ""), "backup": (34, 34, "/var/backups", ""), "list": (38, 38, "/var/list", ""),
    "irc": (39, 39, "/run/ircd", ""), "_apt": (42, 65534, "/nonexistent", ""),
    "nobody": (65534, 65534, "/nonexistent", ""), "user": (USER, USER, "/home/user", "/bin/bash"),
}  # fmt: skip
_GROUPS = {
    "root": 0, "daemon": 1, "bin": 2, "sys": 3, "adm": 4, "tty": 5, "disk": 6, "lp": 7, "mail": 8, "news": 9,
    "uucp": 10, "man": 12, "proxy": 13, "kmem": 15, "dialout": 20, "fax": 21, "voice": 22, "cdrom": 24, "floppy": 25,
    "tape": 26, "sudo": 27, "audio": 29, "dip": 30, "www-data": 33, "backup": 34, "operator": 37, "list": 38, "irc": 39,
    "src": 40, "shadow": 42, "utmp": 43, "video": 44, "sasl": 45, "plugdev": 46, "staff": 50, "games": 60, "users": 100,
    "nogroup": 65534, "user": USER,
}  # fmt: skip
_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\$?")
_PATH = re.compile(r"/[\w./-]*")


def passwd(host: Iterable[str], shell: str = "/bin/bash") -> str:
    """The text of /etc/passwd. Of the host's lines only the system's accounts (below 1000) are kept, and of these
    name, ids and directory: files in /usr belong to them and dpkg refuses to work where a name is missing."""
    users = dict(_USERS)
    for name, uid, rest in _system(host):
        if len(rest) == 4 and rest[0].isdecimal() and int(rest[0]) <= 65535 and name not in ("root", "user"):
            home = rest[2] if _PATH.fullmatch(rest[2]) else "/nonexistent"
            users[name] = (uid, int(rest[0]), home, users.get(name, (0, 0, "", ""))[3])
    lines = []
    for name, (uid, gid, home, program) in sorted(users.items(), key=lambda user: user[1][0]):
        program = shell if program == "/bin/bash" else program or "/usr/sbin/nologin"
        lines.append(f"{name}:x:{uid}:{gid}:{name if uid else 'root'}:{home}:{program}\n")
    return "".join(lines)


def group(host: Iterable[str]) -> str:
    """The text of /etc/group: no members, since these are people."""
    groups = dict(_GROUPS) | {name: gid for name, gid, _ in _system(host) if name not in ("root", "user")}
    return "".join(f"{name}:x:{gid}:\n" for name, gid in sorted(groups.items(), key=lambda group: group[1]))


def shadow(passwd: str) -> str:
    """Every account of this passwd, locked: no password opens it."""
    return "".join(f"{line.partition(':')[0]}:*:19000:0:99999:7:::\n" for line in passwd.splitlines())


def gshadow(group: str) -> str:
    return "".join(f"{line.partition(':')[0]}:*::\n" for line in group.splitlines())


def lines_of(path: Path) -> list[str]:
    """The lines of a host's file; none where there is no such file."""
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _system(lines: Iterable[str]) -> Iterable[tuple[str, int, list[str]]]:
    for line in lines:
        name, *fields = line.split(":")
        if len(fields) < 3 or not _NAME.fullmatch(name) or not re.fullmatch(r"\d{1,5}", fields[1], re.ASCII):
            continue
        if 0 < (number := int(fields[1])) < 1000 or number == 65534:
            yield name, number, fields[2:]
