"""Which ids a server without root has: its own, which is root in boxes, and subordinate ones where they are configured.

Subordinate ids (subuid(5)) are what the host's administrator has set aside for a user; the setuid programs newuidmap
and newgidmap put them into a user namespace of that user's. Without them a box has one user and one group, root, and
files that belong to nobody else.

The zygote enters its namespace with `enter`; what it is told comes from here as one line of JSON.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boxwood.engine import kernel as k

MOST = 65536  # ids in a box
TOOLS = ("newuidmap", "newgidmap")
_FILES = ("subuid", "subgid")
_SECONDS = 20  # for the tools


class NoSubordinateIds(Exception):
    """There are none for this user; the text says what is missing."""


class CannotEnter(OSError):
    """The host allows no user namespace, or no map of it."""


@dataclass(frozen=True, slots=True)
class IdMap:
    """What ids of the host those of boxes are: 0 is `uid` and `gid`, those from 1 on begin at `subuid` and `subgid`.
    `count`: how many there are in all; 1: no subordinate ids. `tools`: newuidmap and newgidmap, absolute."""

    uid: int
    gid: int
    count: int = 1
    subuid: int = 0
    subgid: int = 0
    tools: tuple[str, str] = ("", "")

    def lines(self, first: int, sub: int) -> tuple[tuple[int, int, int], ...]:
        """The lines of a map (inside, outside, count) whose 0 is `first`."""
        own = (0, first, 1)
        return (own,) if self.count == 1 else (own, (1, sub, self.count - 1))

    def nested(self) -> str:
        """The map of a namespace in it that has the same ids. A line must not span two of the outer map's."""
        return "\n".join(f"{inside} {inside} {count}" for inside, _, count in self.lines(0, 1))

    def owner(self) -> dict[str, int]:
        """What files on disk depend on: whoever has another one of these does not see the same owners."""
        return {name: getattr(self, name) for name in ("uid", "gid", "subuid", "subgid", "count")}

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> IdMap:
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "tools": tuple(fields["tools"])})


def own() -> IdMap:
    """This process's user and group alone."""
    return IdMap(os.geteuid(), os.getegid())


def subordinate(etc: Path = Path("/etc"), path: str | None = None) -> IdMap:
    """With this user's subordinate ids, as many as a box can have. NoSubordinateIds. `path`: where programs are."""
    uid, gid = os.geteuid(), os.getegid()
    names = {str(uid), *_name_of(uid)}
    (subuid, uids), (subgid, gids) = (_longest(etc / name, names) for name in _FILES)
    tools = [shutil.which(tool, path=path or os.environ.get("PATH", os.defpath)) for tool in TOOLS]
    for tool, found in zip(TOOLS, tools, strict=True):
        if found is None:
            raise NoSubordinateIds(f"the program {tool} is not installed")
    return IdMap(uid, gid, 1 + min(uids, gids, MOST - 1), subuid, subgid, (str(tools[0]), str(tools[1])))


def _name_of(uid: int) -> set[str]:
    try:
        return {pwd.getpwuid(uid).pw_name}
    except KeyError:
        return set()


def _longest(file: Path, names: set[str]) -> tuple[int, int]:
    """The first id and the length of the longest entry `name:first:count` for one of these names. A line that makes no
    sense is none."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError as error:
        raise NoSubordinateIds(f"{file} cannot be read: {error.strerror}") from None
    entries = [line.strip().split(":") for line in lines]
    ranges = [
        (int(first), int(count))
        for name, first, count in (entry for entry in entries if len(entry) == 3)
        if name in names and first.isdecimal() and count.isdecimal() and int(count) > 0
    ]
    if not ranges:
        raise NoSubordinateIds(f"{file} has no entry for {' or '.join(sorted(names))}")
    return max(ranges, key=lambda found: found[1])


# --- entering it


def enter(ids: IdMap) -> None:
    """Become root in a user and a mount namespace of one's own. Only for a process of one thread. CannotEnter."""
    try:
        if ids.count == 1:
            k.unshare(k.NEWUSER | k.NEWNS)
            _write_map(ids)
        else:
            _enter_with_tools(ids)
        k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
    except CannotEnter:
        raise
    except OSError as error:
        raise CannotEnter(error.errno, f"a user namespace cannot be made: {error.strerror}") from None


def _write_map(ids: IdMap) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {ids.uid} 1"), ("gid_map", f"0 {ids.gid} 1")):
        with open(f"/proc/self/{name}", "w") as f:
            f.write(text)


def _enter_with_tools(ids: IdMap) -> None:
    """Someone outside has to run the tools: a child that stays there."""
    waiting, go = os.pipe()
    told, tell = os.pipe()
    pid, process = os.getpid(), os.fork()
    if process == 0:
        os.close(go)
        _run_tools(ids, pid, waiting, tell)
    os.close(waiting)
    os.close(tell)
    try:
        k.unshare(k.NEWUSER | k.NEWNS)
        os.write(go, b"x")
    finally:
        os.close(go)  # nothing said: it gives up
        with open(told, errors="replace") as f:
            said = f.read()
        os.waitpid(process, 0)
    if said:
        raise CannotEnter(1, said)
    os.setgroups([])


def _run_tools(ids: IdMap, pid: int, waiting: int, tell: int) -> None:
    """Never returns. Says nothing if all went well."""
    import subprocess  # needed by nobody else here, and the zygote stays small

    said = "the child that runs newuidmap failed"
    try:
        if not os.read(waiting, 1):
            os._exit(1)
        for tool, first, sub in ((ids.tools[0], ids.uid, ids.subuid), (ids.tools[1], ids.gid, ids.subgid)):
            numbers = [str(number) for line in ids.lines(first, sub) for number in line]
            done = subprocess.run(
                [tool, str(pid), *numbers], stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
            )
            if done.returncode:
                text = done.stderr.decode(errors="replace").strip() or f"it ended with status {done.returncode}"
                said = f"{tool} was refused: {text[:500]}"
                break
        else:
            said = ""
    finally:
        os.write(tell, said.encode())
        os._exit(0)
