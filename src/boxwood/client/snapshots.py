"""Snapshots of VMs and what differs between them: what the SDK hands out, and the requests for it; no I/O."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from datetime import datetime

import msgspec

from boxwood.client.calls import Call, delete, get, given, vm_path
from boxwood.client.errors import ServerError

__all__ = ["Change", "Diff", "Snapshot"]


class Snapshot(msgspec.Struct, frozen=True):
    """The state of a VM, kept under a name. `snapshot_id`: forks can be made of it. `copied_bytes`: that had to be
    copied, since something ran in the VM."""

    snapshot_id: str
    vm_id: str
    name: str
    description: str | None = None
    created_at: datetime | None = None
    copied_bytes: int = 0


class Change(msgspec.Struct, frozen=True):
    """What has become of a path. `change`: added, changed or deleted; a directory that is gone stands for all that was
    in it. `what`, of what is still there: kind, mode, owner, content, target, attributes. `kind`: file, directory,
    symlink, fifo, socket or device (of what is gone: what it was); `old_kind`: what it was, if it is another now.
    Sizes in bytes. `diff`: of text, as `diff -u` tells it."""

    path: str
    change: str
    what: list[str] = []
    kind: str = "file"
    old_kind: str | None = None
    size: int | None = None
    old_size: int | None = None
    mode: int | None = None
    diff: str | None = None
    path_base64: str | None = None

    @property
    def raw_path(self) -> bytes:
        """The path as the kernel has it: it need not be text."""
        if self.path_base64 is None:
            return self.path.encode()
        try:
            return b64decode(self.path_base64)
        except ValueError as error:
            raise ServerError("bad_answer", f"not base64: {error}") from None


class Diff(msgspec.Struct, frozen=True):
    """What is another in one state than in another, by path. `truncated`: there is more than was asked for."""

    changes: list[Change] = []
    truncated: bool = False


class SnapshotList(msgspec.Struct, frozen=True):
    snapshots: list[Snapshot] = []


def take(vm: str, name: str, description: str | None) -> Call:
    return Call("POST", vm_path(vm, "snapshots"), given(name=name, description=description), patience=60)


def listed(vm: str) -> Call:
    return get(vm_path(vm, "snapshots"))


def drop(vm: str, snapshot: str) -> Call:
    return delete(vm_path(vm, "snapshots", snapshot))


def restore(vm: str, snapshot: str, force: bool) -> Call:
    return Call("POST", vm_path(vm, "restore"), given(snapshot=snapshot, force=force or None), patience=60)


def commit(vm: str, into: str | None, force: bool) -> Call:
    return Call("POST", vm_path(vm, "commit"), given(into=into, force=force or None), patience=900)


def export(vm: str, full: bool) -> Call:
    return replace(get(vm_path(vm, "export"), full=full or None), patience=300)


def import_vm(name: str | None, ttl: float | None) -> Call:
    given = get("/v1/vms/import", name=name, ttl=ttl)
    return Call("POST", given.path, patience=3600)


def diff(vm: str, since: str | None, to: str | None, path: str, text: bool, limit: int) -> Call:
    call = get(vm_path(vm, "diff"), since=since, to=to, path=path, text=text or None, limit=limit)
    return replace(call, patience=900)
