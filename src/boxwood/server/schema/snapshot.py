"""Snapshots of VMs on the wire, and what differs between two of them. Not in the contract: they are ours."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from boxwood.core import snapshots as core
from boxwood.engine import states as engine
from boxwood.server.schema.common import Answer, Query, Request, Seconds, Text1024

Name = Annotated[str, Meta(description="Unique among the VM's snapshots.")]


class SnapshotBody(Request, frozen=True, kw_only=True):
    name: Name
    description: Text1024 | None = None


class Snapshot(Answer, frozen=True, kw_only=True):
    snapshot_id: Annotated[str, Meta(description="Forks can be made of it, as of the id of a VM.")]
    vm_id: Annotated[str, Meta(description="Whose state it is.")]
    name: Name
    description: str | None
    created_at: datetime
    copied_bytes: Annotated[int, Meta(description="That had to be copied, since something ran in the VM.")] = 0


class SnapshotsAnswer(Answer, frozen=True, kw_only=True):
    snapshots: list[Snapshot]


class DeleteSnapshotAnswer(Answer, frozen=True, kw_only=True):
    deleted: bool = True


class RestoreBody(Request, frozen=True, kw_only=True):
    snapshot: Annotated[str, Meta(description="One of the VM's snapshots, by name or id.")]
    force: Annotated[bool, Meta(description="End what runs in the VM, rather than refuse.")] | None = None


class ExportQuery(Query, frozen=True, kw_only=True):
    full: Annotated[bool, Meta(description="With the image that the VM stands on, for hosts that do not have it.")] = (
        False
    )


class ImportQuery(Query, frozen=True, kw_only=True):
    name: str | None = None
    ttl: Annotated[Seconds, Meta(description="Seconds until the VM is deleted by itself.")] | None = None


class CommitBody(Request, frozen=True, kw_only=True):
    into: Annotated[str, Meta(description="By id or name; without it: what the VM was forked from.")] | None = None
    force: Annotated[bool, Meta(description="End what runs in that VM, rather than refuse.")] | None = None


class DiffQuery(Query, frozen=True, kw_only=True):
    since: Annotated[
        str | None,
        Meta(description="A snapshot of the VM, another VM, or image; without it: when the VM was forked."),
    ] = None
    to: Annotated[str | None, Meta(description="A snapshot of the VM; without it: what the VM is now.")] = None
    path: Annotated[str, Meta(description="Only what is below this directory.")] = "/"
    text: Annotated[bool, Meta(description="With the changed lines of text files.")] = False
    limit: Annotated[int, Meta(ge=1, le=10_000, description="Changes at most.")] = 1000


Kind = Literal["file", "directory", "symlink", "fifo", "socket", "device"]


class Change(Answer, frozen=True, kw_only=True):
    """A directory that is gone stands for all that was in it."""

    path: Annotated[str, Meta(description="Bytes that are no UTF-8 are shown as U+FFFD.")]
    path_base64: Annotated[str | UnsetType, Meta(description="Its bytes, where `path` cannot hold them.")] = UNSET
    change: Literal["added", "changed", "deleted"]
    what: Annotated[list[str], Meta(description="kind, mode, owner, content, target, attributes: of what was there.")]
    kind: Annotated[Kind, Meta(description="Of what is gone: what it was.")]
    old_kind: Kind | UnsetType = UNSET
    size: int | UnsetType = UNSET
    old_size: int | UnsetType = UNSET
    mode: int | UnsetType = UNSET
    diff: Annotated[str | UnsetType, Meta(description="As `diff -u` tells it.")] = UNSET


class DiffAnswer(Answer, frozen=True, kw_only=True):
    changes: list[Change]
    truncated: Annotated[bool, Meta(description="There are more.")]


def change(of: engine.Change) -> Change:
    raw = of.path.encode(errors="surrogateescape")
    path = raw.decode(errors="replace")
    return Change(
        path=path,
        path_base64=UNSET if path.encode() == raw else b64encode(raw).decode(),
        change="added" if of.old_kind is None else "deleted" if of.kind is None else "changed",
        what=list(of.what),
        kind=of.kind or of.old_kind or "file",  # type: ignore[arg-type]
        old_kind=UNSET if of.old_kind in (None, of.kind) or of.kind is None else of.old_kind,  # type: ignore[arg-type]
        size=UNSET if of.size is None else of.size,
        old_size=UNSET if of.old_size is None else of.old_size,
        mode=UNSET if of.mode is None else of.mode,
        diff=UNSET if of.diff is None else of.diff,
    )


def snapshot(of: core.Snapshot) -> Snapshot:
    return Snapshot(
        snapshot_id=of.snapshot_id,
        vm_id=of.vm_id,
        name=of.name,
        description=of.description,
        created_at=of.created_at,
        copied_bytes=0 if of.copied is None else of.copied.bytes,
    )
