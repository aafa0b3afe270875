"""Goldens: the public VMs of `ArkerHQ` that others fork from. Immutable, never booted: names for image layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from boxwood.core.model import VM

Progress = Callable[[str, float], None]  # what is being done, and how much of it (0 to 1)


class Goldens:
    @property
    def ready(self) -> bool:
        """Can the names of the host golden be forked yet?"""
        raise NotImplementedError

    async def list(self) -> tuple[VM, ...]:
        """All goldens, by name."""
        raise NotImplementedError

    async def ensure_host(self, progress: Progress | None = None) -> None:
        """Make the image of this host if there is none or the host has changed, and let the public names resolve to
        it. Long the first time; call it beside serving: forks of a golden are refused with Unavailable until then."""
        raise NotImplementedError

    async def import_rootfs(
        self, name: str, path: Path, progress: Progress | None = None, *, replace: bool = False
    ) -> VM:
        """Make a golden from a root file system: a directory or a tar archive. BadRequest (name, what is no root file
        system), AlreadyExists (`replace` points the name at the new image; VMs made from the old one stay)."""
        raise NotImplementedError
