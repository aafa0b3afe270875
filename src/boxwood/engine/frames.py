"""Frames between the server and an agent: a JSON header, a payload, and perhaps descriptors, over a stream socket.

    u32 length of the header, u32 length of the payload, header, payload            (little-endian)

A header with `"fds": n` has n descriptors beside the frame's first byte. Used on both sides; whoever reads sets the
bounds and gets `FrameError` for anything outside them.
"""

from __future__ import annotations

import array
import itertools
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

HEADER_LIMIT = 1 << 16
TO_AGENT_LIMIT = 16 << 20
FROM_AGENT_LIMIT = 8 << 20  # a saved shell; output comes in far smaller pieces
MANIFEST_LIMIT = 32 << 20  # all lines of one: the agent ends it there, as one that was cut short
_MOST_FDS = 8
_MOST_AT_ONCE = 253  # what the kernel lets one message carry: with less room it would close the rest, in our name
_RECEIVED = 1 << 16  # bytes at once: for more the allocator would fetch fresh pages of the kernel each time
_JOINED = 64  # frames sent in one call
_ROOM = socket.CMSG_SPACE(_MOST_AT_ONCE * 4)
# As plain numbers: what is done with an enumeration's members makes another one of them each time.
_NOSIGNAL, _CLOEXEC, _TRUNCATED = int(socket.MSG_NOSIGNAL), int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_LENGTHS = struct.Struct("<II")
_decode = json.JSONDecoder().raw_decode  # without a look for space around it
_encode = json.JSONEncoder(separators=(",", ":")).encode


class FrameError(Exception):
    """The other side broke the protocol."""


def pack(header: dict[str, Any], payload: bytes | memoryview = b"") -> bytes:
    raw = _encode(header).encode("ascii")
    if len(raw) > HEADER_LIMIT:
        raise FrameError(f"a header of {len(raw)} bytes")
    return b"".join((_LENGTHS.pack(len(raw), len(payload)), raw, payload))


class Outgoing:
    """What waits to be written to a non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self.size = 0

    def __len__(self) -> int:
        """Frames."""
        return len(self._queue)

    def put(self, header: dict[str, Any], payload: bytes | memoryview = b"", fds: Sequence[int] = ()) -> None:
        """Queue a frame. The descriptors are sent as copies and closed here once they are away."""
        if fds:
            header = {**header, "fds": len(fds)}
        data = pack(header, payload)
        self.size += len(data)
        self._queue.append((memoryview(data), tuple(fds)))

    def flush(self) -> bool:
        """Write what the socket takes. True: nothing is left. OSError: the other side is gone."""
        while self._queue:
            try:
                sent = self._send()
            except BlockingIOError:
                return False
            self.size -= sent
            self._drop(sent)
        return True

    def _send(self) -> int:
        """What waits, up to the next frame with descriptors, in one call: the other side is woken once."""
        data, fds = self._queue[0]
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = self._sock.sendmsg([data], rights, _NOSIGNAL)
            for fd in fds:
                os.close(fd)
            self._queue[0] = data, ()
            return sent
        if len(self._queue) == 1:
            return self._sock.send(data, _NOSIGNAL)
        frames = itertools.islice(itertools.takewhile(lambda one: not one[1], self._queue), _JOINED)
        return self._sock.sendmsg([data for data, _ in frames], (), _NOSIGNAL)

    def _drop(self, sent: int) -> None:
        """So many bytes are away."""
        while self._queue and sent >= len(self._queue[0][0]):
            sent -= len(self._queue.popleft()[0])
        if sent:
            data, fds = self._queue[0]
            self._queue[0] = data[sent:], fds

    def close(self) -> None:
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        self.size = 0


class Incoming:
    """Bytes and descriptors as they come, cut into frames."""

    def __init__(self, sock: socket.socket, limit: int) -> None:
        self._sock = sock
        self._limit = limit
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def receive(self) -> bool:
        """Read what there is. False: the other side has closed. BlockingIOError: there is nothing."""
        data, ancillary, flags, _ = self._sock.recvmsg(_RECEIVED, _ROOM, _CLOEXEC)
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._fds.extend(array.array("i", rights[: len(rights) // 4 * 4]))
        if flags & _TRUNCATED or len(self._fds) > 4 * _MOST_FDS:
            raise FrameError("too many descriptors")
        self._buffer += data
        return bool(data)

    def frames(self) -> Iterator[tuple[dict[str, Any], bytes, list[int]]]:
        """The whole frames so far: header, payload, descriptors (the taker's to close)."""
        at = 0
        try:
            while len(self._buffer) - at >= _LENGTHS.size:
                head, body = _LENGTHS.unpack_from(self._buffer, at)
                if head > HEADER_LIMIT or body > self._limit:
                    raise FrameError(f"a frame of {head} + {body} bytes")
                start = at + _LENGTHS.size
                if len(self._buffer) < start + head + body:
                    break
                header = self._header(bytes(self._buffer[start : start + head]))
                payload = bytes(self._buffer[start + head : start + head + body])
                at = start + head + body
                yield header, payload, self._take(header.get("fds", 0))
        finally:
            del self._buffer[:at]

    def _header(self, raw: bytes) -> dict[str, Any]:
        try:
            header, end = _decode(raw.decode("ascii"))
            if end != len(raw):
                raise ValueError
        except (ValueError, RecursionError) as error:
            raise FrameError(f"a header that is not JSON: {type(error).__name__}") from None
        if not isinstance(header, dict):
            raise FrameError("a header that is not an object")
        return header

    def _take(self, count: object) -> list[int]:
        if type(count) is not int or not 0 <= count <= len(self._fds):
            raise FrameError(f"descriptors promised: {count!r}, come: {len(self._fds)}")
        return [self._fds.popleft() for _ in range(count)]

    @property
    def fds(self) -> Sequence[int]:
        """Those that came and belong to no frame yet."""
        return tuple(self._fds)

    def take_all(self) -> list[int]:
        """The same, to be closed by whoever asks."""
        fds = list(self._fds)
        self._fds.clear()
        return fds

    def close(self) -> None:
        for fd in self.take_all():
            os.close(fd)
