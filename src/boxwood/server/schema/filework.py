"""File work on the wire. A name is text; one that is no UTF-8 has its bytes beside it as base64, in a member that ends
in `_base64`, and is given back so: then its text means nothing."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from msgspec import Meta

from boxwood.core.errors import BadRequest
from boxwood.engine.fileapi import FileChange, FileEntry, FileStatus, TextMatch
from boxwood.server.schema.common import UNSET, Answer, Query, Request, UnsetType

Path = Annotated[str, Meta(description="Absolute.")]
Base64 = Annotated[str, Meta(max_length=8192, description="The same as base64, where it is no UTF-8; instead of it.")]
Mode = Annotated[int, Meta(ge=0, le=0o7777, description="Permission bits, as a number: 493 is rwxr-xr-x.")]
Entries = Annotated[int, Meta(ge=1, le=10_000)]
LookFor = Annotated[float, Meta(gt=0, le=60, description="Seconds; what was found by then is told.")]
Kind = Literal["file", "directory", "symlink", "fifo", "socket", "character", "block"]
Truncated = Annotated[
    Literal["limit", "bytes", "seconds"] | None, Meta(description="Why it is not all; null: it is all.")
]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_EARLIEST = (datetime(1, 1, 2, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


class PathQuery(Query, frozen=True, kw_only=True):
    path: Path | None = None
    path_base64: Base64 | None = None


class StatQuery(PathQuery, frozen=True, kw_only=True):
    follow: Annotated[bool, Meta(description="Of a symbolic link: what it leads to.")] = False


class ListQuery(PathQuery, frozen=True, kw_only=True):
    cursor: Annotated[str, Meta(max_length=512, description="`next_cursor` of the page before.")] | None = None
    limit: Entries = 1000


class GlobQuery(PathQuery, frozen=True, kw_only=True):
    pattern: Annotated[
        str, Meta(min_length=1, max_length=1024, description="* ? [abc] within a name, ** across directories, {a,b}.")
    ]
    limit: Entries = 1000
    seconds: LookFor = 10.0


class WatchQuery(PathQuery, frozen=True, kw_only=True):
    recursive: Annotated[bool, Meta(description="Also what is below its directories.")] = True
    directories: Annotated[int, Meta(ge=1, le=8192, description="That are watched at most.")] = 8192


class UnpackQuery(PathQuery, frozen=True, kw_only=True):
    owners: Annotated[bool, Meta(description="Take the owners that the archive names.")] = False


class MkdirBody(Request, frozen=True, kw_only=True):
    path: Path | None = None
    path_base64: Base64 | None = None
    parents: Annotated[bool, Meta(description="Make those above it too; one that is there is no error.")] | None = None
    mode: Mode | None = None


class ChmodBody(Request, frozen=True, kw_only=True):
    path: Path | None = None
    path_base64: Base64 | None = None
    mode: Mode


class MoveBody(Request, frozen=True, kw_only=True):
    path: Path | None = None
    path_base64: Base64 | None = None
    to: Annotated[str, Meta(description="The new path itself, not the directory to move it into.")] | None = None
    to_base64: Base64 | None = None
    replace: Annotated[bool, Meta(description="What is there gives way.")] | None = None


class RemoveBody(Request, frozen=True, kw_only=True):
    path: Path | None = None
    path_base64: Base64 | None = None
    recursive: Annotated[bool, Meta(description="A directory with all that is below it.")] | None = None


class SearchBody(Request, frozen=True, kw_only=True):
    path: Path | None = None
    path_base64: Base64 | None = None
    pattern: Annotated[str, Meta(min_length=1, max_length=1024, description="A regular expression, of one line.")]
    literal: Annotated[bool, Meta(description="The pattern is a text.")] | None = None
    ignore_case: bool | None = None
    include: (
        Annotated[
            list[str], Meta(max_length=32, description="Patterns as of glob; without a slash, of the name alone.")
        ]
        | None
    ) = None
    exclude: Annotated[list[str], Meta(max_length=32)] | None = None
    engine: Annotated[Literal["auto", "ripgrep", "builtin"], Meta(description="auto: ripgrep if the VM has it.")] = (
        "auto"
    )
    limit: Entries | None = None
    seconds: LookFor | None = None


class Status(Answer, frozen=True, kw_only=True):
    """`path`: as it was asked for, or below the directory that was."""

    path: str
    path_base64: str | UnsetType = UNSET
    kind: Kind
    size: Annotated[int, Meta(description="In bytes.")]
    mode: int
    uid: int
    gid: int
    links: int
    modified_at: datetime
    target: Annotated[str, Meta(description="Where a symbolic link leads.")] | UnsetType = UNSET
    target_base64: str | UnsetType = UNSET


class ListAnswer(Answer, frozen=True, kw_only=True):
    entries: list[Status]
    next_cursor: str | None


class GlobAnswer(Answer, frozen=True, kw_only=True):
    entries: list[Status]
    truncated: Truncated


class MkdirAnswer(Answer, frozen=True, kw_only=True):
    created: bool


class DoneAnswer(Answer, frozen=True, kw_only=True):
    ok: bool = True


class RemoveAnswer(Answer, frozen=True, kw_only=True):
    removed: Annotated[int, Meta(description="Names that were deleted.")]


class Match(Answer, frozen=True, kw_only=True):
    path: str
    path_base64: str | UnsetType = UNSET
    line: int
    column: Annotated[int, Meta(description="Of the first match in the line: bytes, from 1.")]
    text: str
    text_base64: str | UnsetType = UNSET
    cut: Annotated[bool, Meta(description="The line is longer than the 2,000 bytes that are told.")] | UnsetType = UNSET


class SearchAnswer(Answer, frozen=True, kw_only=True):
    matches: list[Match]
    truncated: Truncated
    engine: Literal["ripgrep", "builtin"]


class UnpackAnswer(Answer, frozen=True, kw_only=True):
    entries: int
    bytes: int
    skipped: Annotated[int, Meta(description="Members that are neither files nor directories nor links.")]


class ChangeEvent(Answer, frozen=True, kw_only=True):
    path: str
    path_base64: str | UnsetType = UNSET
    to: str | UnsetType = UNSET
    to_base64: str | UnsetType = UNSET
    directory: bool


class WatchingEvent(Answer, frozen=True, kw_only=True):
    """`complete`: no directory was left out for want of room."""

    watched: int
    complete: bool


def given(text: str | None, encoded: str | None, field: str = "path") -> bytes:
    """The path that a request names. BadRequest."""
    if (text is None) == (encoded is None):
        said = f"give {field}, or {field}_base64 where it is no UTF-8"
        raise BadRequest(f"{field}: {said}", [(field, said)])
    if encoded is not None:
        try:
            return base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise BadRequest(f"{field}_base64: is not base64", [(f"{field}_base64", "is not base64")]) from None
    assert text is not None
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{field}: is not valid Unicode text", [(field, "is not valid Unicode text")]) from None


def said(name: bytes) -> tuple[str, str | UnsetType]:
    """Text, and its bytes as base64 where it is no UTF-8."""
    try:
        return name.decode(), UNSET
    except UnicodeDecodeError:
        return name.decode(errors="replace"), base64.b64encode(name).decode()


def status(path: bytes, found: FileStatus) -> Status:
    text, encoded = said(path)
    target, target_encoded = (UNSET, UNSET) if found.target is None else said(found.target)
    return Status(
        path=text, path_base64=encoded, kind=found.kind,  # type: ignore[arg-type]  # the engine has checked it
        size=found.size, mode=found.mode, uid=found.uid, gid=found.gid, links=found.links,
        modified_at=_EPOCH + timedelta(microseconds=min(max(found.modified // 1000, _EARLIEST), _LATEST)),
        target=target, target_base64=target_encoded,
    )  # fmt: skip


def entry(found: FileEntry) -> Status:
    return status(found.path, found.status)


def match(found: TextMatch) -> Match:
    (path, encoded), (text, text_encoded) = said(found.path), said(found.text)
    return Match(
        path=path, path_base64=encoded, line=found.line, column=found.column, text=text, text_base64=text_encoded,
        cut=found.cut or UNSET,
    )  # fmt: skip


def change(found: FileChange) -> ChangeEvent:
    path, encoded = said(found.path)
    to, to_encoded = said(found.to) if found.kind == "moved" else (UNSET, UNSET)
    return ChangeEvent(path=path, path_base64=encoded, to=to, to_base64=to_encoded, directory=found.directory)
