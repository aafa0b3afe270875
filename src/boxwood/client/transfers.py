"""Requests that carry the bytes of files, as the contract has them and as bodies; no I/O."""

from __future__ import annotations

import secrets
import time
from base64 import b64encode
from urllib.parse import urlencode

from boxwood.client.calls import Call, vm_path
from boxwood.client.errors import BadRequest

CHUNK = 4 * 1024 * 1024  # bytes of a file per request of the contract
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def sync_read(vm: str, path: str) -> Call:
    return Call("POST", vm_path(vm, "sync"), {"op": "read", "path": path}, replay_safe=True)


def sync_manifest(vm: str, path: str) -> Call:
    return Call("POST", vm_path(vm, "sync"), {"op": "manifest", "path": path}, replay_safe=True)


def sync_write(vm: str, path: str, size: int, upload_id: str, start: int, data: bytes) -> Call:
    """The upload id makes a chunk that comes twice one chunk."""
    entry = {"path": path, "size": size, "upload_id": upload_id, "start": start, "end": start + len(data)}
    entry["content"] = b64encode(data).decode("ascii")
    return Call("POST", vm_path(vm, "sync"), {"op": "write", "writes": [entry]}, replay_safe=True)


def read_content(vm: str, path: str, start: int = 0, end: int | None = None, tag: str = "") -> Call:
    """Bytes of a file as they are; `tag`: only of the state that has this ETag, else the whole."""
    headers = {"if-range": tag} if tag else {}
    if start or end is not None:
        headers["range"] = f"bytes={start}-{'' if end is None else end - 1}"
    where = f"{vm_path(vm, 'files', 'content')}?{urlencode({'path': _text(path)})}"
    return Call("GET", where, headers=headers, replay_safe=True, answers=(200, 206, 416))


def write_content(vm: str, path: str, mode: int | None = None) -> Call:
    query = {"path": _text(path), **({} if mode is None else {"mode": f"{mode & 0o7777:o}"})}
    return Call("PUT", f"{vm_path(vm, 'files', 'content')}?{urlencode(query)}", replay_safe=True, patience=600)


def unpack(vm: str, path: str, size: int) -> Call:
    """A tar archive of `size` bytes, into a directory."""
    query = urlencode({"path": _text(path), "size": size, "extract": "tar"})
    return Call("POST", f"{vm_path(vm, 'sync-stream')}?{query}", replay_safe=True, patience=600)


def options(vm: str) -> Call:
    """Does the server take and give files as bodies?"""
    return Call("OPTIONS", vm_path(vm, "files", "content"), replay_safe=True)


def _text(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise BadRequest("bad_request", f"path: {path!r} is not UTF-8") from None
    return path


def new_upload_id() -> str:
    """A ULID: 48 bits of milliseconds, 80 random ones."""
    value = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return "".join(CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))
