"""Files on the wire: the three operations of sync, and per file what became of a write."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from boxwood.engine.api import ManifestEntry
from boxwood.server.schema.common import UNSET, Answer, Query, Request, UnsetType

Size = Annotated[int, Meta(ge=0, le=1 << 53, description="In bytes, of the whole file.")]


class ReadBody(Request, frozen=True, kw_only=True, tag_field="op", tag="read"):
    path: str


class ManifestBody(Request, frozen=True, kw_only=True, tag_field="op", tag="manifest"):
    path: str


class WriteEntry(Request, frozen=True, kw_only=True):
    """A chunk (`content`, `start`, `end`, `upload_id`), or a wish for an upload URL (`presigned`), or the commit of
    what was sent to one (`upload_id` alone)."""

    path: str
    size: Size
    upload_id: str | None = None
    content: bytes | None = None
    start: Size | None = None
    end: Size | None = None
    sha256: str | None = None
    presigned: bool | None = None
    is_secret: Any = None

    retired: ClassVar = frozenset({"is_secret"})  # nothing of a file's content is ever logged


class WriteBody(Request, frozen=True, kw_only=True, tag_field="op", tag="write"):
    writes: Annotated[list[WriteEntry], Meta(min_length=1)]


SyncBody = ReadBody | ManifestBody | WriteBody


class UploadQuery(Query, frozen=True, kw_only=True):
    expires: int
    signature: str


class DownloadQuery(Query, frozen=True, kw_only=True):
    path: str
    org: str
    expires: int
    signature: str


class ReadInlineAnswer(Answer, frozen=True, kw_only=True):
    ok: bool = True
    op: Literal["read"] = "read"
    path: str
    size: int
    content: bytes
    encoding: Literal["base64"] = "base64"


class ReadPresignedAnswer(Answer, frozen=True, kw_only=True):
    ok: bool = True
    op: Literal["read"] = "read"
    path: str
    size: int
    presigned_url: str
    expires_in: int
    method: Literal["GET"] = "GET"


class ManifestAnswer(Answer, frozen=True, kw_only=True):
    root: str
    hash_algo: Literal["sha256"] = "sha256"
    entries: tuple[ManifestEntry, ...]
    truncated: bool


class Range(Answer, frozen=True, kw_only=True):
    start: int
    end: int


class FileError(Answer, frozen=True, kw_only=True):
    code: str
    message: str
    details: dict[str, Any] | UnsetType = UNSET


class WriteResult(Answer, frozen=True, kw_only=True):
    """Of a chunk: what of the file has come; of a wish for an upload URL: the URL; of a commit: neither."""

    path: str
    size: int
    received_bytes: int | UnsetType = UNSET
    ranges: list[Range] | UnsetType = UNSET
    presigned_url: str | UnsetType = UNSET
    upload_id: str | UnsetType = UNSET
    expires_in: int | UnsetType = UNSET
    method: Literal["PUT"] | UnsetType = UNSET
    complete: bool = False
    written: bool = False
    error: FileError | UnsetType = UNSET


class WriteAnswer(Answer, frozen=True, kw_only=True):
    ok: bool = True
    op: Literal["write"] = "write"
    results: list[WriteResult]


class UploadAnswer(Answer, frozen=True, kw_only=True):
    size: int
