"""What a box may use: its limits set while it is made, and changed while it lives. `Live.limits` is what it has."""

from __future__ import annotations

from dataclasses import replace

from boxwood.engine import openfiles
from boxwood.engine.api import Limits
from boxwood.engine.cgroups.cgroups import Cgroups
from boxwood.engine.disk import image
from boxwood.engine.disk.projects import Projects
from boxwood.engine.peer import Refused
from boxwood.engine.spares import Live


class Bounds:
    """`layers_fd`: the directory of layers; `projects`: by which tops are limited that lie in no file."""

    def __init__(self, layers_fd: int, projects: Projects) -> None:
        self._layers = layers_fd
        self._projects = projects

    def set(self, cgroups: Cgroups, live: Live, limits: Limits) -> None:
        """Those of a box that has done nothing yet; its disk bounds itself. `live.limits` is what it has, whatever
        fails."""
        cgroups.limit(live.group, limits, live.limits)
        live.limits = replace(limits, nofile=live.limits.nofile)
        _bound_files(cgroups, live, limits)

    def change(self, cgroups: Cgroups, live: Live, limits: Limits) -> None:
        """All of them or none. OSError, Refused."""
        before = live.limits
        if limits.disk != before.disk:
            self._limit_disk(live, limits.disk)
        try:
            cgroups.change(live.group, limits, before)
            live.limits = replace(limits, nofile=before.nofile)
            _bound_files(cgroups, live, limits)
        except BaseException:
            cgroups.limit(live.group, before, live.limits)
            live.limits = before
            if limits.disk != before.disk:
                self._limit_disk(live, before.disk)
            raise

    def _limit_disk(self, live: Live, limit: int) -> None:
        if live.project:
            self._projects.change(live.project, limit)
        elif live.loop >= 0 and limit:
            image.change(self._layers, live.top, live.loop, limit)
        else:
            raise Refused("its disk was made without a limit, or must keep one")


def _bound_files(cgroups: Cgroups, live: Live, limits: Limits) -> None:
    if limits.nofile != live.limits.nofile:
        openfiles.bound(cgroups, live.group, live.pid, limits.nofile)
        live.limits = limits
