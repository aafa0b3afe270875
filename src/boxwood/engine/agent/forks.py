"""What takes long and has no pipe of the server's: a forked child does it, and what it writes into a pipe of ours goes
over the link. The last line says how it ended."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from typing import Any, NoReturn

from boxwood.engine.agent import files
from boxwood.engine.agent.loop import IN, Loop
from boxwood.engine.agent.requests import Reply
from boxwood.engine.agent.unpacking import unpack_stream
from boxwood.engine.descriptors import close_all_but

MOST = 8  # at once
_PART = 1 << 16


class Forks:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._count = 0

    def manifest(self, header: dict[str, Any], reply: Reply) -> None:
        """`{path, limit}`: lines of a directory's manifest. Refusal: too many at once; OSError."""
        self._start(lambda out: _walk(header, out), reply)

    def unpack(self, header: dict[str, Any], source: int, reply: Reply) -> None:
        """`{path, packed, limit, durable}`: an archive that comes through a pipe. Errors as of `manifest`."""
        self._start(lambda out: _unpack(header, source, out), reply)

    def _start(self, work: Callable[[int], NoReturn], reply: Reply) -> None:
        if self._count >= MOST:
            raise files.Refusal(errno.EAGAIN, f"{MOST} directories are being walked or filled already: try again")
        r, w = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError:  # the box has as many processes as it may have
            os.close(r)
            os.close(w)
            raise
        if pid == 0:
            work(w)
        os.close(w)
        self._loop.child(pid, lambda status: None)  # ours, and nobody's orphan
        os.set_blocking(r, False)
        self._count += 1
        held = bytearray()
        self._loop.watch(r, IN, lambda events: self._on_part(r, held, reply))

    def _on_part(self, fd: int, held: bytearray, reply: Reply) -> None:
        """Pass whole lines on, but the last."""
        try:
            data = os.read(fd, _PART)
        except BlockingIOError:
            return
        held += data
        if data:
            end = held.rfind(b"\n", 0, held.rfind(b"\n")) + 1
            if end:
                reply({"more": True}, bytes(held[:end]))
                del held[:end]
            return
        self._loop.unwatch(fd)
        os.close(fd)
        self._count -= 1
        try:
            reply(json.loads(held.decode()))
        except ValueError:
            reply.error(errno.EIO, "the directory could not be worked through to its end")


def _unpack(header: dict[str, Any], source: int, out: int) -> NoReturn:
    """One line, that says how it ended."""
    try:
        close_all_but(source, out)
        try:
            end = unpack_stream(header, source)
        except Exception as error:
            end = _failed(error, header["path"])
        os.write(out, json.dumps(end).encode() + b"\n")
    finally:
        os._exit(0)


def _walk(header: dict[str, Any], out: int) -> NoReturn:
    """Lines of the manifest, then one that says how it ended; bounded, since nobody else watches it."""
    try:
        close_all_but(out)
        with open(out, "wb", buffering=_PART) as pipe:
            try:
                root, truncated = files.manifest(header["path"], header["limit"], pipe.write)
                end = {"root": root, "truncated": truncated}
            except Exception as error:
                end = _failed(error, header["path"])
            pipe.write(json.dumps(end).encode() + b"\n")
    finally:
        os._exit(0)


def _failed(error: Exception, path: object) -> dict[str, Any]:
    """Whatever it was, it is told: nobody else sees the child."""
    if isinstance(error, files.Refusal):
        return {"errno": error.errno, "error": error.text}
    if isinstance(error, OSError):
        number = error.errno or errno.EIO
        return {"errno": number, "error": f"{os.strerror(number)}: {error.filename or path}"}
    return {"errno": errno.EINVAL, "error": f"{type(error).__name__}: {error}"[:2000]}
