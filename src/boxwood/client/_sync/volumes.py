# Made from ../_async/volumes.py by tools/unasync.py: change that one.
"""Filesystems, and their mounts in a VM."""

from __future__ import annotations

import builtins
import time
from collections.abc import Iterator

from boxwood.client import calls, volumes
from boxwood.client._sync.pause import sleep
from boxwood.client._sync.transport import Transport
from boxwood.client.errors import NotFound
from boxwood.client.models import Anything
from boxwood.client.volumes import Filesystem, FilesystemPage, Mount, MountPage


class Filesystems:
    """The filesystems of your organisation: volumes that outlive VMs and are mounted in several at once."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, *, size_mib: int | None = None) -> Filesystem:
        """An empty one.

        :param name: unique in your organisation.
        :param size_mib: MiB that it can hold at most; None: as much as the server has, or gives unasked.
        :raises AlreadyExists: the name is taken.
        :raises Unsupported: the server's host cannot bound it.
        """
        return self._transport.call(volumes.create_filesystem(name, size_mib), Filesystem)

    def get(self, filesystem: Filesystem | str) -> Filesystem:
        """By id or name, with its size as it is now.

        :raises NotFound: there is none, or it is not yours.
        """
        return self._transport.call(calls.get(volumes.filesystem_path(filesystem)), Filesystem)

    def list(self, *, prefix: str | None = None, page_size: int | None = None) -> Iterator[Filesystem]:
        """All of them, or those whose names begin with `prefix`, by name, fetched page by page."""
        cursor = None
        while True:
            call = volumes.list_filesystems(cursor, prefix, page_size)
            page = self._transport.call(call, FilesystemPage)
            for one in page.filesystems:
                yield one
            if (cursor := page.next_cursor) is None:
                return

    def delete(self, filesystem: Filesystem | str) -> None:
        """Deletes it with all that it holds.

        :raises Conflict: it is mounted in a VM.
        :raises NotFound: there is none.
        """
        self._transport.call(calls.delete(volumes.filesystem_path(filesystem)), Anything)


class Mounts:
    """What is mounted in a VM. Its forks have none of it."""

    def __init__(self, transport: Transport, vm: str) -> None:
        self._transport = transport
        self._vm = vm

    def create(
        self, filesystem: Filesystem | str, path: str | None = None, *, read_only: bool = False, timeout: float = 60.0
    ) -> Mount:
        """Mounts a filesystem, also while the VM runs, and waits until it is there.

        :param filesystem: itself, its id or its name.
        :param path: absolute; its directory is made if it is not there. None: /mnt/NAME.
        :param read_only: nobody in this VM can write to it.
        :param timeout: seconds to wait; 0: do not.
        :raises OperationFailed: it cannot be mounted at this path.
        :raises Conflict: something else is mounted there, or it is mounted elsewhere in this VM.
        """
        mount = self._transport.call(volumes.create_mount(self._vm, filesystem, path, read_only), Mount)
        until, pause = time.monotonic() + timeout, volumes.FIRST_PAUSE
        while timeout and not mount.settled():
            if time.monotonic() >= until:
                raise volumes.too_late(mount, timeout)
            sleep(pause)
            pause = min(pause * 1.5, volumes.LONGEST_PAUSE)
            mount = self._again(mount)
        return mount

    def _again(self, mount: Mount) -> Mount:
        for one in self.list(mount.filesystem_id):
            if one.mount_id == mount.mount_id:
                return one
        raise NotFound("not_found", "the mount was deleted meanwhile", 404)

    def list(self, filesystem: Filesystem | str | None = None) -> builtins.list[Mount]:
        """All of them, the oldest first, or that of one filesystem."""
        found: builtins.list[Mount] = []
        cursor = None
        while True:
            page = self._transport.call(volumes.list_mounts(self._vm, cursor, filesystem), MountPage)
            found += page.mounts
            if (cursor := page.next_cursor) is None:
                return found

    def delete(self, mount: Mount | str) -> None:
        """Takes it away, also under what uses it. What is in the filesystem stays.

        :param mount: itself, or its id.
        :raises NotFound: this VM has no such mount.
        """
        ident = mount.mount_id if isinstance(mount, Mount) else mount
        self._transport.call(calls.delete(calls.vm_path(self._vm, "mounts", ident)), Anything)
