"""`boxwood cp`: files and directories between this machine and a VM.

What a VM says is not trusted: a manifest's paths stay below the directory that was asked for, and files get no bits
but those of permission.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Annotated

import typer

from boxwood.cli.bar import Bar
from boxwood.cli.options import Json, connect, place
from boxwood.cli.output import note, say, say_json, write_bytes
from boxwood.client.errors import BoxwoodError
from boxwood.client.localfiles import written_to
from boxwood.client.mirror import Progress

if TYPE_CHECKING:
    from boxwood import VM


def cp(
    source: Annotated[str, typer.Argument(help="A path here, VM:PATH, or - for standard input.")],
    target: Annotated[str, typer.Argument(help="A path here, VM:PATH, or - for standard output.")],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A directory and all below it.")] = False,
    json: Json = False,
) -> int:
    """Copy files into a VM or out of it.

    `boxwood cp data.csv VM:/workspace/`, `boxwood cp VM:/etc/hostname -`, `boxwood cp -r src VM:/workspace/src`
    """
    there, here = place(source), place(target)
    if (there is None) == (here is None):
        raise typer.BadParameter("one of the two is VM:PATH and the other a path here (./a:b for a name with a colon)")
    with connect() as box:
        if here is not None:
            copied = _upload(box.vm(here.vm), source, here.path, recursive)
        else:
            assert there is not None
            copied = _download(box.vm(there.vm), there.path, target, recursive)
    if json and not (here is None and target == "-"):
        say_json(copied)
    return 0


def sync(
    source: Annotated[str, typer.Argument(help="A directory here.")],
    target: Annotated[str, typer.Argument(help="VM:PATH, the directory that it goes to.")],
    ignore: Annotated[list[str] | None, typer.Option(help="Leave out what fits this pattern; may be repeated.")] = None,
    ignore_file: Annotated[Path | None, typer.Option(help="A file of patterns, as a .dockerignore.")] = None,
    json: Json = False,
) -> int:
    """Bring a directory's files into a VM: those that it does not have, or with other bytes. Nothing is deleted there.

    `boxwood sync src VM:/workspace/src --ignore '**/__pycache__' --ignore-file .dockerignore`
    """
    there = place(target)
    if there is None or not os.path.isdir(source):
        raise typer.BadParameter("a directory here, and VM:PATH")
    patterns = [*_patterns(ignore_file), *(ignore or [])]
    with connect() as box, Bar(source) as bar:
        done = box.vm(there.vm).sync_dir(source, there.path, ignore=patterns or None, progress=bar)
    if json:
        say_json(done)
    else:
        say(f"{done.sent} files sent, {done.unchanged} unchanged, {done.bytes_sent} bytes")
    return 0


def _patterns(file: Path | None) -> list[str]:
    return [] if file is None else os.fsdecode(file.read_bytes()).splitlines()


def _upload(vm: VM, source: str, path: str, recursive: bool) -> dict[str, int]:
    if source == "-":
        _refuse(path.endswith("/"), "standard input needs a file's path in the VM, not a directory's")
        vm.write_file(path, sys.stdin.buffer)
        return {"files": 1}
    if os.path.isdir(source):
        _refuse(not recursive, f"{source} is a directory: add -r")
        return _upload_tree(vm, source, path)
    with open(source, "rb") as file, Bar(source) as bar:
        info = os.fstat(file.fileno())
        where = posixpath.join(path, os.path.basename(source)) if path.endswith("/") else path
        mode = 0o755 if info.st_mode & stat.S_IXUSR else None
        vm.write_file(where, _Watched(file, info.st_size, bar), mode=mode)
    return {"files": 1, "bytes": info.st_size}


class _Watched(io.RawIOBase):
    """A file that tells how much of it has been read."""

    def __init__(self, file: IO[bytes], size: int, bar: Bar) -> None:
        self._file = file
        self._size = size
        self._bar = bar

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._file.seekable():
            self._bar(Progress(0, 1, self._file.tell(), self._size))
        return data

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _upload_tree(vm: VM, root: str, path: str) -> dict[str, int]:
    with Bar(root) as bar:
        done = vm.sync_dir(root, path, progress=bar, everything=True)
    if done.skipped:
        note(f"boxwood: skipped {done.skipped} that are neither files nor directories, links among them")
    return {"files": done.sent, "bytes": done.bytes_sent, "skipped": done.skipped}


def _download(vm: VM, path: str, target: str, recursive: bool) -> dict[str, int]:
    if recursive:
        _refuse(target == "-", "a directory cannot go to standard output")
        return _download_tree(vm, path, Path(target))
    pieces = vm.read_stream(path)
    if target == "-":
        size = 0
        for piece in pieces:
            write_bytes(piece)
            size += len(piece)
        return {"files": 1, "bytes": size}
    local = Path(target)
    if target.endswith("/") or local.is_dir():
        name = posixpath.basename(path)
        _refuse(name in ("", ".", ".."), f"{path} names no file")
        local = local / name
    return {"files": 1, "bytes": _write(local, pieces, None)}


def _download_tree(vm: VM, path: str, target: Path) -> dict[str, int]:
    manifest = vm.manifest(path)
    if manifest.truncated:
        raise BoxwoodError("too_many_files", f"{path} holds more files than the server lists: pack it with tar first")
    size, all_bytes, count = 0, sum(entry.size for entry in manifest.entries), len(manifest.entries)
    if not count and not vm.files.stat(path, follow=True).is_dir:  # of what is not there nothing is listed either
        raise BoxwoodError("not_a_directory", f"{path} is not a directory: leave out -r")
    target.mkdir(exist_ok=True)
    with Bar(path) as bar:
        for number, entry in enumerate(manifest.entries):
            local = target / _below(entry.path)
            local.parent.mkdir(parents=True, exist_ok=True)
            size += _write(local, vm.read_stream(posixpath.join(manifest.root, entry.path)), entry.mode)
            bar(Progress(number + 1, count, min(size, all_bytes), all_bytes))
    return {"files": count, "bytes": size}


def _below(path: str) -> PurePosixPath:
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise BoxwoodError("bad_answer", f"the VM lists a file at {path!r}, which is not below the directory")
    return PurePosixPath(*parts)


def _write(local: Path, pieces: Iterator[bytes], mode: int | None) -> int:
    """As `written_to` does it. How many bytes those were."""
    with written_to(local, 0o777 if mode is not None and mode & 0o100 else 0o666) as file:
        return _put(file, pieces)


def _put(file: IO[bytes], pieces: Iterator[bytes]) -> int:
    size = 0
    for piece in pieces:
        file.write(piece)
        size += len(piece)
    return size


def _refuse(wrong: bool, why: str) -> None:
    if wrong:
        raise typer.BadParameter(why)
