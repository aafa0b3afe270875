"""The bytes of files on the wire, as bodies that are no JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from boxwood.server.schema.common import UNSET, Answer, Query, UnsetType
from boxwood.server.schema.file import Size

Sha256 = Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]


class ContentQuery(Query, frozen=True, kw_only=True):
    path: str


class WriteQuery(Query, frozen=True, kw_only=True):
    """`mode`: permission bits in octal; without it a file that is replaced keeps its own, and a new one has 0644."""

    path: str
    mode: Annotated[str, Meta(pattern="^[0-7]{1,5}$")] | None = None
    sha256: Sha256 | None = None


class StreamQuery(Query, frozen=True, kw_only=True):
    """`size`: of the body, which may come without a Content-Length. `extract`: the body is such an archive, and `path`
    the directory to unpack it into."""

    path: str
    size: Size | None = None
    sha256: Sha256 | None = None
    extract: Literal["tar", "tar.gz", "tgz"] | None = None


class WrittenAnswer(Answer, frozen=True, kw_only=True):
    path: str
    size: int


class StreamAnswer(Answer, frozen=True, kw_only=True):
    """`size`: of the body. `files`, `unpacked_bytes`: what came out of an archive."""

    ok: bool = True
    op: Literal["write_stream", "extract_stream"]
    path: str
    size: int
    complete: bool = True
    written: bool | UnsetType = UNSET
    extracted: bool | UnsetType = UNSET
    files: int | UnsetType = UNSET
    unpacked_bytes: int | UnsetType = UNSET
