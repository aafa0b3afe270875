"""Filesystems and mounts: what the SDK hands out of them, and the requests for them; no I/O."""

from __future__ import annotations

from datetime import datetime

import msgspec

from boxwood.client.calls import Call, get, given, segment, vm_path
from boxwood.client.errors import OperationFailed, Timeout

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds between two looks at a mount that is being made


class Filesystem(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that outlives VMs, as the server last told it. `size_bytes`: that it takes, None where nobody has looked
    yet. `size_mib`: that it can hold, None: as much as the server has."""

    filesystem_id: str
    name: str
    owner_org_id: str | None = None
    created_at: datetime | None = None
    size_bytes: int | None = None
    size_mib: int | None = None

    @property
    def id(self) -> str:
        return self.filesystem_id


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A filesystem at a path of a VM, as the server last told it. `state`: attaching, mounted or failed, and then
    `state_detail` says why."""

    mount_id: str
    vm_id: str
    filesystem_id: str
    path: str
    state: str = "attaching"
    state_detail: str | None = None
    read_only: bool = False

    @property
    def id(self) -> str:
        return self.mount_id

    def settled(self) -> bool:
        """Is it mounted? False: not yet.

        :raises OperationFailed: it never will be, as things are.
        """
        if self.state == "failed":
            text = f"nothing could be mounted at {self.path}: {self.state_detail or 'the server does not say why'}"
            raise OperationFailed("operation_failed", text)
        return self.state == "mounted"


class FilesystemPage(msgspec.Struct, frozen=True):
    filesystems: list[Filesystem] = []
    next_cursor: str | None = None


class MountPage(msgspec.Struct, frozen=True):
    mounts: list[Mount] = []
    next_cursor: str | None = None


def reference(of: Filesystem | str) -> str:
    return of.filesystem_id if isinstance(of, Filesystem) else of


def filesystem_path(of: Filesystem | str) -> str:
    return f"/v1/filesystems/{segment(reference(of))}"


def create_filesystem(name: str, size_mib: int | None) -> Call:
    return Call("POST", "/v1/filesystems", given(name=name, size_mib=size_mib))


def list_filesystems(cursor: str | None, prefix: str | None, page_size: int | None) -> Call:
    return get("/v1/filesystems", cursor=cursor, name_prefix=prefix, limit=page_size)


def create_mount(vm: str, filesystem: Filesystem | str, path: str | None, read_only: bool) -> Call:
    """The same twice is one mount."""
    body = given(filesystem_id=reference(filesystem), path=path, read_only=read_only or None)
    return Call("POST", vm_path(vm, "mounts"), body, replay_safe=True)


def list_mounts(vm: str, cursor: str | None, filesystem: Filesystem | str | None) -> Call:
    return get(
        vm_path(vm, "mounts"), cursor=cursor, filesystem_id=None if filesystem is None else reference(filesystem)
    )


def too_late(mount: Mount, seconds: float) -> Timeout:
    text = f"{mount.path} was not mounted within {seconds:g} s; the server goes on trying"
    return Timeout("timeout", text)
