"""Groups of instances that are gone for good: all their processes were killed, and nobody will start them again, for
their data directory is gone too. Any other instance of the host clears them away.

A zygote holds the group of its instance (files.hold) as long as it lives. One of an older version does not: but it has
processes in there, and the kernel removes no group that has any.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from boxwood.engine.cgroups import files
from boxwood.engine.ulid import is_ulid

_YOUNG = 600.0  # seconds that a group must have been there: one of an older version may not have processes in it yet
_MOST = 100  # at once, since somebody waits


def clear(parents: Iterable[str], young: float = _YOUNG) -> list[str]:
    """`parents`: the groups of one instance, one in each hierarchy. The ids of other ones that were cleared away, at
    most so many as nobody notices; `young`: seconds."""
    roots = [os.path.dirname(parent) for parent in parents]
    cleared: list[str] = []
    for ident in sorted({ident for root in roots for ident in _instances(root)}):
        if len(cleared) == _MOST:
            break
        if _clear([f"{root}/{files.PREFIX}{ident}" for root in roots], young):
            cleared.append(ident)
    return cleared


def _instances(root: str) -> set[str]:
    names = (name.removeprefix(files.PREFIX) for name in os.listdir(root) if name.startswith(files.PREFIX))
    return {name for name in names if is_ulid(name)}


def _clear(groups: list[str], young: float) -> bool:
    """All groups of one instance, if nobody holds them, none is young, and no process is in any."""
    held = []
    try:
        there = [group for group in groups if os.path.exists(group)]
        for group in there:
            if (fd := files.hold_orphan(group)) is None:
                return False
            held.append(fd)
            if os.fstat(fd).st_ctime + young > time.time():
                return False
        if any(files.words(f"{directory}/cgroup.procs") for group in there for directory in files.tree(group)):
            return False
        left = [group for group in there if not files.remove_tree(group)]
        return not left
    except OSError:
        return False  # whatever is strange about it is none of ours
    finally:
        for fd in held:
            os.close(fd)
