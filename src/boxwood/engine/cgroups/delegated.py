"""The limits of boxes for a server without root: cgroups that were handed to its user, or none.

A user may make groups where he owns the directory: below the group that his processes are in, if the host has
delegated it (`systemd-run --user --scope -p Delegate=yes`), in version 2 or in hierarchies of version 1.

Without any, processes are bounded by RLIMIT_NPROC, which the kernel counts for each user namespace since 5.14, and so
for each box: for each of its users, to be exact. Memory and processors have no bound then, and nothing can be frozen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from boxwood.engine.api import Limits
from boxwood.engine.cgroups.cgroups import Cgroups, LimitUnavailable, Usage
from boxwood.engine.cgroups.files import CONTROLLERS, MOUNTS, hierarchies
from boxwood.engine.cgroups.separate import Separate
from boxwood.engine.cgroups.unified import Unified
from boxwood.engine.ulid import checked

OWN = Path("/proc/self/cgroup")
HOW = "have cgroups delegated: `systemd-run --user --scope -p Delegate=yes boxwood up`"
_ASIDE = "/boxwood-aside"  # where version 2 makes us put our own processes, see files.py


def find(instance: str, mounts: Path = MOUNTS, own: Path = OWN) -> Cgroups:
    """What this user may make groups in: version 2 if it has the controllers, else version 1, else version 2 for what
    it does without controllers, else nothing."""
    checked(instance)
    unified, separate = hierarchies(mounts)
    groups = _own_groups(own)
    here = _writable(unified, groups.get("", "")) if unified is not None else None
    places = {name: _writable(root, groups.get(name, "")) for name, root in separate.items()}
    mine = {name: place for name, place in places.items() if place is not None and name != "blkio"}
    found: Cgroups
    if here is not None and (not mine or _offers(here)):
        found = Unified(instance, here)
    else:
        found = Separate(instance, mine) if mine else Bare()
    found.pids_elsewhere = "pids" not in found.controllers
    found.how = f"; this server runs without root: {HOW}"
    return found


def _own_groups(own: Path) -> dict[str, str]:
    """The group that this process is in, by controllers of version 1 and, as the empty name's, of version 2."""
    found = {}
    for line in own.read_text().splitlines():
        _, names, path = line.split(":", 2)
        found.update(dict.fromkeys(names.split(","), path.removesuffix(_ASIDE)))
    return found


def _writable(root: str, path: str) -> str | None:
    """The directory of a group, if it is ours to make groups in and to put processes into."""
    if not path.startswith("/") or ".." in path.split("/"):
        return None  # of another cgroup namespace
    at = root + path.rstrip("/")
    mine = all(os.access(name, os.W_OK, effective_ids=True) for name in (at, f"{at}/cgroup.procs"))
    return at if mine else None


def _offers(directory: str) -> bool:
    try:
        return set(Path(directory, "cgroup.controllers").read_text().split()) >= CONTROLLERS
    except FileNotFoundError:
        return False


class Bare(Cgroups):
    """No groups at all."""

    controllers: frozenset[str] = frozenset()

    def usage(self, box: str) -> Usage:
        return Usage(None, None, None, None)

    def processes(self, box: str) -> set[int]:
        raise LimitUnavailable(f"open files can be bounded where a box's processes are in a group: {HOW}")

    def freeze(self, box: str, timeout: float = 0.5) -> None:
        raise LimitUnavailable(
            "a VM whose processes run can only be forked where they can be made to stand still, with cgroups: wait "
            f"until its runs have ended, or {HOW}"
        )

    def _parents(self) -> Iterable[str]:
        return ()

    def _limit(self, box: str, limits: Limits) -> None:
        pass

    def _lift(self, box: str, limits: Limits, before: Limits) -> None:
        pass

    def _set_frozen(self, box: str, frozen: bool) -> None:
        pass

    def _is_frozen(self, box: str) -> bool:
        return False

    def _stop(self, box: str) -> None:
        pass

    def _kill(self, box: str) -> None:
        pass  # the end of its first process is the end of all
