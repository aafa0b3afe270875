"""Ports of VMs: a request to what listens in a box beside the same server on the host's loopback, one to a VM that has
no box, and bytes through a forwarded port.

Run as a program it is the server: `inbound.py HTTP_PORT BYTES_PORT`, 0: any.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from boxwood import VM, Boxwood
from measure import Series, rounds, timed

DIRECT = "GET: the host's loopback"
LIVE = "GET: a port of a live VM"
PARKED = "GET: a port of a VM without a box, until it is said that nothing listens"
STRAIGHT = "bytes: the host's loopback"
FORWARDED = "bytes: a forwarded port"
HTTP_PORT, BYTES_PORT = 8080, 7007
PIECE = 1 << 20


def series(box: Boxwood, url: str, key: str, n: int, mib: int) -> list[Series]:
    """`url` and `key`: of the server."""
    with box.fork("ubuntu") as vm, subprocess.Popen(
        [sys.executable, __file__, "0", "0"], stdout=subprocess.PIPE, text=True
    ) as here:  # fmt: skip
        try:
            assert here.stdout is not None
            http_port, bytes_port = map(int, here.stdout.readline().split())
            _serve(vm)
            host = f"{vm.id.lower()}-{HTTP_PORT}.localhost"
            asked = _port(url)
            steps = {
                DIRECT: lambda: timed(lambda: _get(http_port, {})),
                LIVE: lambda: timed(lambda: _get(asked, {"host": host, "x-boxwood-key": key})),
                PARKED: lambda: _woken(box, asked, key),
            }
            found = list(rounds(n, steps).values())
            straight, forwarded = Series(STRAIGHT, "MiB/s"), Series(FORWARDED, "MiB/s")
            with vm.forward(BYTES_PORT) as forward:
                for _ in range(max(2, n // 10)):
                    straight.add(_speed(bytes_port, mib))
                    forwarded.add(_speed(forward.port, mib))
        finally:
            here.kill()
    return [*found, straight, forwarded]


def _serve(vm: VM) -> None:
    vm.write_file("/srv.py", Path(__file__).read_bytes().replace(b"from boxwood", b"# from boxwood").replace(
        b"from measure", b"# from measure"))  # fmt: skip
    run = vm.run(f"python3 /srv.py {HTTP_PORT} {BYTES_PORT}", background=True)
    while str(HTTP_PORT) not in run.refresh().stdout:
        assert not run.ended, run.stderr
        time.sleep(0.01)


def _get(port: int, headers: dict[str, str], status: int = 200) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/", headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == status, answer.status


def _woken(box: Boxwood, port: int, key: str) -> float:
    """Of a VM that has just been made, and has no box yet: as one that is parked."""
    with box.fork("ubuntu") as vm:
        return timed(lambda: _get(port, {"host": f"{vm.id.lower()}.localhost", "x-boxwood-key": key}, 502))


def _speed(port: int, mib: int) -> float:
    """MiB/s, of what comes."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"%d\n" % mib)
        left, began = mib * PIECE, time.perf_counter()
        while left:
            left -= len(sock.recv(min(left, PIECE)))
        return mib / (time.perf_counter() - began)


def _port(url: str) -> int:
    found = urlsplit(url).port
    assert found is not None
    return found


# --- the server


def main() -> None:
    pages, stream = (socket.create_server(("127.0.0.1", int(port)), backlog=128) for port in sys.argv[1:3])
    print(pages.getsockname()[1], stream.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(stream, _pour), daemon=True).start()
    _accept(pages, _answer)


def _accept(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


def _answer(sock: socket.socket) -> None:
    with sock:
        said = b""
        while b"\r\n\r\n" not in said:
            said += sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


def _pour(sock: socket.socket) -> None:
    with sock:
        for _ in range(int(sock.recv(100))):
            sock.sendall(b"x" * PIECE)


if __name__ == "__main__":
    main()
