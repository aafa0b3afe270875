"""Filesystems and their mounts on the wire. `size_mib` and `read_only` are ours."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from boxwood.core import filesystems, mounts
from boxwood.server.schema.common import UNSET, Answer, Page, Request, UnsetType
from boxwood.server.schema.vm import REGION

MountState = Literal["attaching", "mounted", "failed"]
SizeMib = Annotated[int, Meta(ge=0, description="MiB that it can hold.")]
Path = Annotated[str, Meta(min_length=1, max_length=4096, description="Absolute. Without it: /mnt/NAME.")]


class Filesystem(Answer, frozen=True, kw_only=True):
    filesystem_id: str
    name: str
    owner_org_id: str
    created_at: datetime
    size_bytes: Annotated[int | None, Meta(description="That it took when somebody last looked.")]
    size_mib: SizeMib | UnsetType = UNSET
    region: str | None
    provider: str | None


class FilesystemsAnswer(Answer, frozen=True, kw_only=True):
    filesystems: list[Filesystem]
    next_cursor: str | None


class ListFilesystemsQuery(Page, frozen=True, kw_only=True):
    name_prefix: Annotated[str, Meta(max_length=255)] = ""


class CreateFilesystemBody(Request, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1)]
    size_mib: SizeMib | None = None


class DeletedAnswer(Answer, frozen=True, kw_only=True):
    deleted: bool


class Mount(Answer, frozen=True, kw_only=True):
    mount_id: str
    vm_id: str
    filesystem_id: str
    path: str
    region: str | None
    state: MountState
    state_detail: str | UnsetType = UNSET
    read_only: bool | UnsetType = UNSET


class MountsAnswer(Answer, frozen=True, kw_only=True):
    mounts: list[Mount]
    next_cursor: str | None


class CreateMountBody(Request, frozen=True, kw_only=True):
    filesystem_id: str
    path: Path | None = None
    read_only: bool | None = None


class ListMountsQuery(Page, frozen=True, kw_only=True):
    filesystem_id: Annotated[str, Meta(max_length=256)] | None = None


class Sync(Answer, frozen=True, kw_only=True):
    """A mount, as clients before 1.2.8 know it."""

    sync_id: str
    vm_id: str
    filesystem_id: str
    path: str
    region: str | None
    status: MountState
    status_detail: str | UnsetType = UNSET


class SyncsAnswer(Answer, frozen=True, kw_only=True):
    syncs: list[Sync]
    next_cursor: str | None


def filesystem(of: filesystems.Filesystem) -> Filesystem:
    return Filesystem(
        filesystem_id=of.filesystem_id,
        name=of.name,
        owner_org_id=of.org_id,
        created_at=of.created_at,
        size_bytes=of.size_bytes,
        size_mib=UNSET if of.size_mib is None else of.size_mib,
        region=REGION,
        provider=None,
    )


def mount(of: mounts.Mount) -> Mount:
    return Mount(
        mount_id=of.mount_id,
        vm_id=of.vm_id,
        filesystem_id=of.filesystem_id,
        path=of.path,
        region=REGION,
        state=of.state,  # type: ignore[arg-type]
        state_detail=UNSET if of.detail is None else of.detail,
        read_only=of.read_only or UNSET,
    )


def sync(of: mounts.Mount) -> Sync:
    return Sync(
        sync_id=of.mount_id,
        vm_id=of.vm_id,
        filesystem_id=of.filesystem_id,
        path=of.path,
        region=REGION,
        status=of.state,  # type: ignore[arg-type]
        status_detail=UNSET if of.detail is None else of.detail,
    )
