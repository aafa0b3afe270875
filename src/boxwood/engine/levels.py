"""Levels of isolation: which of the doctor's checks must be active for each. A level holds all that those before it do.

A check that is in no level (a convenience, or a layer that only makes another one cheaper) never keeps a host from one.
One that a level names and that was not tried is missing: nothing is taken for granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

NONE = "none"  # not even the first level is met
LEVELS: Mapping[str, tuple[str, ...]] = {
    "basic": (
        "kernel", "mount namespace", "pid namespace", "network namespace", "ipc namespace", "uts namespace",
        "cgroup namespace", "user namespace", "overlay", "nodev, nosuid", "seccomp",
    ),
    "limits": ("cgroup memory", "cgroup cpu", "cgroup pids"),
    "full": ("idmapped mounts", "cgroup freezer", "network of VMs", "disk limit"),
}  # fmt: skip


class Tried(Protocol):
    """A check, as far as levels go."""

    @property
    def name(self) -> str: ...

    @property
    def active(self) -> bool: ...


def level_of(name: str) -> str:
    """The level that a check of this name belongs to; empty: none."""
    return next((level for level, names in LEVELS.items() if name in names), "")


def needed(level: str) -> tuple[str, ...]:
    """The names of all checks of a level and of those before it. ValueError: there is no such level."""
    names: tuple[str, ...] = ()
    for one, more in LEVELS.items():
        names += more
        if one == level:
            return names
    raise ValueError(f"there is no level {level!r}: levels are {', '.join(LEVELS)}")


def lacking(level: str, tried: Iterable[Tried]) -> list[str]:
    """The names of a level's checks that are not active, in the level's order. ValueError."""
    active = {check.name for check in tried if check.active}
    return [name for name in needed(level) if name not in active]


def reached(tried: Sequence[Tried]) -> str:
    """The highest level of which nothing is lacking, or NONE."""
    best = NONE
    for level in LEVELS:
        if lacking(level, tried):
            break
        best = level
    return best
