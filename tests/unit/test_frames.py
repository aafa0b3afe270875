"""Frames: what is sent comes out as it was, however it is cut; what is malformed is refused within bounds."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwood.engine.frames import FrameError, Incoming, Outgoing, pack

HEADERS = st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=20), max_size=4).filter(
    lambda header: "fds" not in header
)


def collect(incoming: Incoming) -> list[tuple[dict[str, object], bytes, list[int]]]:
    try:
        incoming.receive()
    except BlockingIOError:
        pass
    return list(incoming.frames())


@given(st.lists(st.tuples(HEADERS, st.binary(max_size=300)), max_size=5), st.integers(1, 64))
def test_frames_survive_any_cut(frames: list[tuple[dict[str, object], bytes]], piece: int) -> None:
    a, b = socket.socketpair()
    with a, b:
        b.setblocking(False)
        incoming, got = Incoming(b, 1 << 16), []
        data = b"".join(pack(header, payload) for header, payload in frames)
        for at in range(0, len(data), piece):
            a.sendall(data[at : at + piece])
            got += collect(incoming)
    assert got == [(header, payload, []) for header, payload in frames]


def test_descriptors_come_with_their_frame() -> None:
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        out, incoming = Outgoing(a), Incoming(b, 1 << 20)
        pipes = [os.pipe() for _ in range(3)]
        out.put({"first": 1}, b"x" * 1000)
        for number, (r, w) in enumerate(pipes):
            os.write(w, b"%d" % number)
            os.close(w)
            out.put({"number": number}, b"y" * 100_000, (r,))
        out.put({"last": 1})
        got = []
        while len(got) < 5:
            out.flush()
            got += collect(incoming)
    assert [len(fds) for _, _, fds in got] == [0, 1, 1, 1, 0]
    for number, (header, _, fds) in enumerate(got[1:4]):
        assert header["number"] == number and os.read(fds[0], 10) == b"%d" % number
        os.close(fds[0])
    assert out.size == 0


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<II", 1 << 20, 0),
        struct.pack("<II", 2, 1 << 30) + b"{}",
        struct.pack("<II", 4, 0) + b"[1]]",
        struct.pack("<II", 3, 0) + b"[1]",
        struct.pack("<II", 1, 0) + b"\xff",
        struct.pack("<II", 9, 0) + b'{"fds":1}',
        struct.pack("<II", 10, 0) + b'{"fds":-1}',
        struct.pack("<II", 12, 0) + b'{"fds":true}',
        struct.pack("<II", 60000, 0) + b"[" * 60000,
    ],
)
def test_malformed_frames_are_refused(raw: bytes) -> None:
    a, b = socket.socketpair()
    with a, b:
        a.sendall(raw)
        b.setblocking(False)
        incoming = Incoming(b, 1 << 20)
        with pytest.raises(FrameError):
            collect(incoming)


@given(st.binary(max_size=2000))
def test_noise_is_refused_or_waited_on(noise: bytes) -> None:
    a, b = socket.socketpair()
    with a, b:
        a.sendall(noise + b"x")
        b.setblocking(False)
        try:
            collect(Incoming(b, 1 << 20))
        except FrameError:
            pass


def test_a_flood_of_descriptors_is_refused_and_leaks_none() -> None:
    a, b = socket.socketpair()
    before = len(os.listdir("/proc/self/fd"))
    with a, b:
        b.setblocking(False)
        incoming = Incoming(b, 1 << 20)
        r, w = os.pipe()
        with pytest.raises(FrameError):
            for _ in range(64):
                socket.send_fds(a, [b"\0"], [r] * 4)
                incoming.receive()
        incoming.close()
        os.close(r)
        os.close(w)
        assert len(os.listdir("/proc/self/fd")) == before
