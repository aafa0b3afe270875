"""The other way to bound a top, where the file system that layers lie on has project quotas (engine/quota.py): nothing
is made, mounted or moved, so every top gets a project, and can be given a limit at any time.

A project of 0 stands for none: there are no quotas, or the top is from a time when there were none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from boxwood.engine import quota
from boxwood.engine.api import Limits
from boxwood.engine.disk import MIB
from boxwood.engine.disk.image import TooMuch

_INODE_BYTES = 16 << 10  # of a limit, for each inode: as of the tops that lie in files
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Projects:
    """Those of one zygote. `ours`: it may use them, which takes the host's root."""

    def __init__(self, layers_fd: int, *, ours: bool = True) -> None:
        self._layers = layers_fd
        self._quota: quota.Quota | None = None
        if ours:
            with suppress(quota.NoQuota):  # the doctor tells why
                self._quota = quota.Quota(layers_fd)

    def prepare(self, top: str, limits: Limits) -> int:
        """Before anything else is made of a top that does not lie in a file: its project, its limit set. TooMuch: it
        cannot be given one."""
        if self._quota is not None:
            try:
                return self._quota.prepare_top(top, limits.disk or None, _inodes(limits.disk))
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
        if limits.disk:
            raise TooMuch(errno.ENOTEMPTY, "its top was made without a limit, and can be sealed but not limited")
        return 0

    def change(self, project: int, limit: int) -> None:
        """Another limit, or none (0), at once. TooMuch, with nothing changed."""
        assert self._quota is not None
        if limit and (held := self._quota.used(project).bytes) > limit:
            raise TooMuch(errno.ENOSPC, f"its disk holds {-(-held // MIB)} MiB")
        self._quota.hold(project, limit or None, _inodes(limit))

    def of(self, layers: Iterable[str]) -> list[int]:
        """The projects that these layers have, of those that are there."""
        if self._quota is None:
            return []
        return [project for layer in layers if (project := of_layer(self._layers, layer))]

    def clear(self, projects: Iterable[int]) -> None:
        """Of layers that are gone. Limits of what is not there harm nobody, should they stay."""
        for project in projects:
            assert self._quota is not None
            with suppress(OSError):
                self._quota.clear(project)


def of_layer(layers_fd: int, layer: str) -> int:
    """The project of a layer's directory, or 0."""
    try:
        fd = os.open(layer, _DIRECTORY, dir_fd=layers_fd)
    except FileNotFoundError:
        return 0
    try:
        project, inherits = quota.project_of(fd)
    finally:
        os.close(fd)
    return project if inherits and quota.is_layers(project) else 0


def known(layers_fd: int, layer: str) -> quota.Usage | None:
    """What a layer holds, if it has a project that counts; 2 µs. For processes of the host's root."""
    project = of_layer(layers_fd, layer)
    return quota.usage(layers_fd, project) if project else None


def capacity(layers: Path, layer: str) -> int:
    """Bytes that the limit of a top that is there can be raised to: any number, or 0."""
    fd = os.open(layers, _DIRECTORY)
    try:
        return 1 << 62 if of_layer(fd, layer) else 0
    finally:
        os.close(fd)


@contextmanager
def lifted(fd: int, project: int) -> Iterator[None]:
    """See quota.lifted; without a project nothing is lifted."""
    if not project:
        yield
        return
    with quota.lifted(fd, project):
        yield


def _inodes(limit: int) -> int | None:
    return limit // _INODE_BYTES if limit else None
