"""`boxwood cp`: files and directories between this machine and a VM.

What a VM says is not trusted: a manifest's paths stay below the directory that was asked for, and files get no bits
but those of permission.
"""

from __future__ import annotations

import os
import posixpath
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import note, say_json, write_bytes
from boxwood.client.errors import BoxwoodError

if TYPE_CHECKING:
    from boxwood import VM

CHMOD_AT_ONCE = 500  # files per command line


class Remote(NamedTuple):
    vm: str
    path: str


def cp(
    source: Annotated[str, typer.Argument(help="A path here, VM:PATH, or - for standard input.")],
    target: Annotated[str, typer.Argument(help="A path here, VM:PATH, or - for standard output.")],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A directory and all below it.")] = False,
    json: Json = False,
) -> int:
    """Copy files into a VM or out of it.

    `boxwood cp data.csv VM:/workspace/`, `boxwood cp VM:/etc/hostname -`, `boxwood cp -r src VM:/workspace/src`
    """
    there, here = _remote(source), _remote(target)
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


def _remote(text: str) -> Remote | None:
    vm, colon, path = text.partition(":")
    if not colon or not vm or "/" in vm:
        return None
    if not path.startswith("/") or "\0" in path:
        raise typer.BadParameter(f"a path in a VM is absolute: {vm}:/…, not {text!r}")
    return Remote(vm, path)


def _upload(vm: VM, source: str, path: str, recursive: bool) -> dict[str, int]:
    if source == "-":
        _refuse(path.endswith("/"), "standard input needs a file's path in the VM, not a directory's")
        vm.write_file(path, sys.stdin.buffer)
        return {"files": 1}
    if os.path.isdir(source):
        _refuse(not recursive, f"{source} is a directory: add -r")
        return _upload_tree(vm, Path(source), path)
    with open(source, "rb") as file:
        info = os.fstat(file.fileno())
        where = posixpath.join(path, os.path.basename(source)) if path.endswith("/") else path
        vm.write_file(where, file, mode=0o755 if info.st_mode & stat.S_IXUSR else None)
    return {"files": 1, "bytes": info.st_size}


def _upload_tree(vm: VM, root: Path, path: str) -> dict[str, int]:
    copied = skipped = size = 0
    executable: list[str] = []
    for local in _walk(root):
        info = local.lstat()
        if not stat.S_ISREG(info.st_mode):
            note(f"boxwood: skipped {local}: not a regular file")
            skipped += 1
            continue
        where = posixpath.join(path, local.relative_to(root).as_posix())
        with open(os.open(local, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            vm.write_file(where, file)
        if info.st_mode & stat.S_IXUSR:
            executable.append(where)
        copied, size = copied + 1, size + info.st_size
    for at in range(0, len(executable), CHMOD_AT_ONCE):
        vm.run(["chmod", "+x", "--", *executable[at : at + CHMOD_AT_ONCE]], cwd="/", check=True)
    return {"files": copied, "bytes": size, "skipped": skipped}


def _walk(root: Path) -> Iterator[Path]:
    for directory, below, files in os.walk(root):
        links = [name for name in below if os.path.islink(os.path.join(directory, name))]
        for name in sorted([*files, *links]):
            yield Path(directory, name)


def _download(vm: VM, path: str, target: str, recursive: bool) -> dict[str, int]:
    if recursive:
        _refuse(target == "-", "a directory cannot go to standard output")
        return _download_tree(vm, path, Path(target))
    data = vm.read_file(path)
    if target == "-":
        write_bytes(data)
    else:
        local = Path(target)
        if target.endswith("/") or local.is_dir():
            name = posixpath.basename(path)
            _refuse(name in ("", ".", ".."), f"{path} names no file")
            local = local / name
        _write(local, data, None)
    return {"files": 1, "bytes": len(data)}


def _download_tree(vm: VM, path: str, target: Path) -> dict[str, int]:
    manifest = vm.manifest(path)
    if manifest.truncated:
        raise BoxwoodError("too_many_files", f"{path} holds more files than the server lists: pack it with tar first")
    size = 0
    target.mkdir(exist_ok=True)
    for entry in manifest.entries:
        local = target / _below(entry.path)
        local.parent.mkdir(parents=True, exist_ok=True)
        data = vm.read_file(posixpath.join(manifest.root, entry.path))
        _write(local, data, entry.mode)
        size += len(data)
    return {"files": len(manifest.entries), "bytes": size}


def _below(path: str) -> PurePosixPath:
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise BoxwoodError("bad_answer", f"the VM lists a file at {path!r}, which is not below the directory")
    return PurePosixPath(*parts)


def _write(local: Path, data: bytes, mode: int | None) -> None:
    """A whole new file in place of what was there: a link there is replaced, not followed. To a device, through it."""
    if local.exists() and not local.is_file():
        local.write_bytes(data)
        return
    umask = os.umask(0)
    os.umask(umask)
    bits = (0o777 if mode is not None and mode & 0o100 else 0o666) & ~umask
    with tempfile.NamedTemporaryFile(dir=local.parent, prefix=".boxwood-", delete=False) as file:
        try:
            file.write(data)
            os.fchmod(file.fileno(), bits)
            os.replace(file.name, local)
        except BaseException:
            os.unlink(file.name)
            raise


def _refuse(wrong: bool, why: str) -> None:
    if wrong:
        raise typer.BadParameter(why)
