"""How many files each process of a box may have open at once: a bound of processes, since cgroups have none for it.

The bound is set on the box's first process, whose children inherit it, and on all that it has already. Nobody in a box
can raise it again: that takes a capability in the host's user namespace.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable

from boxwood.engine.cgroups.cgroups import Cgroups, LimitUnavailable


def bound(cgroups: Cgroups, group: str, first: int, most: int) -> None:
    """`first`: the pid of the box's first process; `most` 0: what the host gives. LimitUnavailable, OSError (some
    processes may have been bound by then)."""
    if not most:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        if not cgroups.processes(group):  # it is about to join
            _bind([first], most)
            return
        if "freezer" not in cgroups.controllers:
            raise LimitUnavailable("this host cannot bound the open files of a box: its cgroups have no freezer")
        cgroups.freeze(group)  # nothing is forked meanwhile, and no number changes hands
        try:
            _bind([first, *cgroups.processes(group)], most)
        finally:
            cgroups.thaw(group)
    except PermissionError:
        _, here = resource.getrlimit(resource.RLIMIT_NOFILE)
        told = f"a process may have {here} files open on this host: nofile can be that at most"
        raise LimitUnavailable(f"{told}, or raise the server's hard limit (LimitNOFILE)") from None


def _bind(pids: Iterable[int], most: int) -> None:
    for pid in pids:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        except ProcessLookupError:
            pass  # it has ended
