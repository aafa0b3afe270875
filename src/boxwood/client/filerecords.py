"""What the SDK hands out of a VM's files, how it lies on the wire, and the requests for it; no I/O.

A name is text, as Python has names of files: bytes that are no UTF-8 are lone surrogates, so that `os.fsencode` gives
exactly the bytes that the VM has, and the same text can be given back.
"""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import msgspec

from boxwood.client.calls import Call, get, given, vm_path
from boxwood.client.errors import BadRequest, ServerError, error_from
from boxwood.client.events import Said

TAR = "application/x-tar"
Path = str | bytes


class FileInfo(msgspec.Struct, frozen=True):
    """A file of a VM. `path`: as it was asked for, or below the directory that was listed. `kind`: file, directory,
    symlink, fifo, socket, character or block. `mode`: permission bits. `target`: where a symlink leads."""

    path: str
    kind: str
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    links: int = 1
    modified_at: datetime | None = None
    target: str | None = None

    @property
    def is_dir(self) -> bool:
        return self.kind == "directory"

    @property
    def is_file(self) -> bool:
        return self.kind == "file"


class FilesFound(msgspec.Struct, frozen=True):
    """`truncated`: why it is not all: limit, bytes or seconds; None: it is."""

    entries: list[FileInfo]
    truncated: str | None = None


class TextMatch(msgspec.Struct, frozen=True):
    """A line that matches; `line` and `column` count from 1, columns in bytes. `cut`: the line goes on."""

    path: str
    line: int
    column: int
    text: str
    cut: bool = False


class TextFound(msgspec.Struct, frozen=True):
    """`engine`: that looked, ripgrep or builtin. `truncated`: as of `FilesFound`."""

    matches: list[TextMatch]
    truncated: str | None = None
    engine: str = "builtin"


class FileChange(msgspec.Struct, frozen=True):
    """`kind`: watching (from now on), created, modified, written (closed after writing), attributes, removed, moved
    (`to`), overflow (changes were lost: look for yourself), incomplete (there are more directories than are watched),
    gone (the directory itself; the last one). `directory`: it is about one."""

    kind: str
    path: str = ""
    to: str | None = None
    directory: bool = False
    complete: bool = True


class Transfer(msgspec.Struct, frozen=True):
    """A directory that was carried over. `skipped`: what could not be: neither a file nor a directory nor a link, or,
    on the way out, a link that leads out of the directory."""

    entries: int
    bytes: int
    skipped: int = 0


class _Wire(msgspec.Struct, frozen=True):
    path: str
    path_base64: str | None = None
    kind: str = ""
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    links: int = 1
    modified_at: datetime | None = None
    target: str | None = None
    target_base64: str | None = None

    def info(self) -> FileInfo:
        return FileInfo(
            _name(self.path, self.path_base64), self.kind, self.size, self.mode, self.uid, self.gid, self.links,
            self.modified_at, None if self.target is None else _name(self.target, self.target_base64),
        )  # fmt: skip


class StatAnswer(_Wire, frozen=True):
    pass


class ListAnswer(msgspec.Struct, frozen=True):
    entries: list[_Wire]
    next_cursor: str | None = None
    truncated: str | None = None

    def infos(self) -> list[FileInfo]:
        return [entry.info() for entry in self.entries]


class _Match(msgspec.Struct, frozen=True):
    path: str
    line: int
    column: int
    text: str
    path_base64: str | None = None
    text_base64: str | None = None
    cut: bool = False


class SearchAnswer(msgspec.Struct, frozen=True):
    matches: list[_Match]
    truncated: str | None = None
    engine: str = "builtin"

    def found(self) -> TextFound:
        matches = [
            TextMatch(_name(m.path, m.path_base64), m.line, m.column, _name(m.text, m.text_base64), m.cut)
            for m in self.matches
        ]
        return TextFound(matches, self.truncated, self.engine)


class MkdirAnswer(msgspec.Struct, frozen=True):
    created: bool


class RemoveAnswer(msgspec.Struct, frozen=True):
    removed: int


class _Change(msgspec.Struct, frozen=True):
    path: str = ""
    path_base64: str | None = None
    to: str | None = None
    to_base64: str | None = None
    directory: bool = False
    complete: bool = True


def change(said: Said) -> FileChange:
    """:raises BoxwoodError: the server says that it cannot go on."""
    try:
        if said.kind == "error":
            raise error_from(msgspec.json.decode(said.data, type=dict[str, Any]), 0)
        told = msgspec.json.decode(said.data, type=_Change)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServerError("bad_answer", f"not an event of a Boxwood server: {error}") from None
    to = None if told.to is None else _name(told.to, told.to_base64)
    return FileChange(said.kind, _name(told.path, told.path_base64), to, told.directory, told.complete)


def call(vm: str, what: str, path: Path, **query: Any) -> Call:
    """A request that changes nothing."""
    asked = get(vm_path(vm, "files", what), **query)
    return replace(asked, path=asked.path + ("&" if "?" in asked.path else "?") + urlencode(_said("path", path)))


def post(vm: str, what: str, path: Path, *, safe: bool = False, **body: Any) -> Call:
    """`safe`: it may be repeated."""
    return Call("POST", vm_path(vm, "files", what), {**_said("path", path), **given(**body)}, replay_safe=safe)


def move(vm: str, path: Path, to: Path, give_way: bool) -> Call:
    more: dict[str, Any] = _said("to", to)
    return post(vm, "move", path, safe=False, **more, replace=give_way or None)


def upload(vm: str, path: Path, owners: bool) -> Call:
    asked = call(vm, "tar", path, owners=owners or None)
    return Call("PUT", asked.path, patience=600)


def _said(field: str, path: Path) -> dict[str, str]:
    """A path as it goes out: text, or what is no UTF-8 as base64."""
    raw = path if isinstance(path, bytes) else _raw(path)
    try:
        return {field: raw.decode()}
    except UnicodeDecodeError:
        return {f"{field}_base64": base64.b64encode(raw).decode("ascii")}


def _raw(path: object) -> bytes:
    try:
        if isinstance(path, str):
            return path.encode("utf-8", "surrogateescape")
        return os.fsencode(path)  # type: ignore[arg-type]
    except (TypeError, UnicodeEncodeError):
        raise BadRequest("bad_request", f"not a path: {path!r}") from None


def _name(text: str, encoded: str | None) -> str:
    if encoded is None:
        return text
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8", "surrogateescape")
    except ValueError as error:
        raise ServerError("bad_answer", f"not base64: {error}") from None
