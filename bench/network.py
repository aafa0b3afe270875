"""The way out of a box, of a Docker container on its default bridge, and the host's own loopback: the same client talks
to the same server, which stands in a network namespace behind the host.

Run as a program it is the server, or the client in the network namespace that it was started in.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from boxwood import Boxwood
from docker import Docker
from measure import Series

TARGET, HOST, BRIDGE = "93.184.215.14", "192.0.2.129", "192.0.2.130"
PORT = 7007
BYTES, PIECE, PINGS = 1 << 30, 1 << 20, 3000


@contextlib.contextmanager
def outside() -> Iterator[str]:
    """The namespace with its server: its name."""
    name = f"bench{os.getpid()}"
    with contextlib.ExitStack() as stack:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "delete", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "address", "add", f"{TARGET}/32", "dev", "lo")
        _join(name, "host", HOST, [])
        for command in (["ip", "netns", "exec", name], []):
            process = subprocess.Popen([*command, sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            process.stdout.readline()
        yield name


def measure(box: Boxwood, docker: Docker | None, name: str, n: int) -> tuple[list[Series], list[Series]]:
    """MiB/s and round trips, each from the host over its loopback, from a box, and from a container if there is one."""
    with box.fork("ubuntu") as vm, contextlib.ExitStack() as stack:
        vm.run(":", check=True)
        places: dict[str, tuple[list[str], str]] = {
            "the host's loopback": ([], "127.0.0.1"),
            "a box": (["nsenter", "-t", str(_process(vm.network().address or "")), "-n"], TARGET),
        }
        if docker is not None:
            container = docker.create()
            stack.callback(docker.remove, container)
            _join(name, "docker", BRIDGE, ["nsenter", "-t", str(docker.pid), "-n"])
            places["a Docker container"] = (["nsenter", "-t", str(_process(docker.address(container))), "-n"], TARGET)
        speed = {place: Series(f"throughput: {place}", "MiB/s") for place in places}
        trips = {place: Series(f"round trip: {place}", "µs") for place in places}
        for _ in range(n):
            for place, (enter, address) in places.items():
                command = [*enter, sys.executable, __file__, "ask", address]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                speed[place].add(float(said[0]))
                trips[place].add(float(said[1]))
    return list(speed.values()), list(trips.values())


def _join(name: str, link: str, address: str, enter: list[str]) -> None:
    """A wire between the namespace of the server and the one that `enter` leads to."""
    near, far = f"out{link}", f"to{link}"
    _ip("-n", name, "link", "add", far, "type", "veth", "peer", "name", near)
    _ip("-n", name, "link", "set", near, "netns", enter[2] if enter else str(os.getpid()))
    for arguments in (["address", "add", f"{address}/32", "dev", near], ["link", "set", near, "up"],
                      ["route", "add", f"{TARGET}/32", "dev", near, "src", address]):  # fmt: skip
        subprocess.run([*enter, "ip", *arguments], check=True)
    _ip("-n", name, "link", "set", far, "up")
    _ip("-n", name, "route", "add", f"{address}/32", "dev", far, "src", TARGET)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _process(address: str) -> int:
    """One that is in the network namespace which has this address."""
    own = os.readlink("/proc/self/ns/net")
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            elsewhere = entry.name.isdigit() and os.readlink(entry / "ns/net") != own
            if elsewhere and f"|-- {address}\n" in (entry / "net/fib_trie").read_text():
                return int(entry.name)
    raise SystemExit(f"bench: no process has the address {address}")


# --- the server and the client


def serve() -> None:
    listener = socket.create_server(("0.0.0.0", PORT))
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_answer, args=(sock,), daemon=True).start()


def _answer(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    piece = bytes(PIECE)
    with sock, contextlib.suppress(OSError):
        while kind := sock.recv(1):
            if kind == b"p":
                sock.sendall(b"p")
            else:
                for _ in range(BYTES // PIECE):
                    sock.sendall(piece)


def ask(address: str) -> None:
    """MiB/s, and the median of round trips in µs."""
    with socket.create_connection((address, PORT)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(PINGS):
            began = time.perf_counter()
            sock.sendall(b"p")
            sock.recv(1)
            trips.append(time.perf_counter() - began)
        buffer, got, began = bytearray(PIECE), 0, time.perf_counter()
        sock.sendall(b"g")
        while got < BYTES:
            got += sock.recv_into(buffer)
        took = time.perf_counter() - began
    print(BYTES / took / (1 << 20), sorted(trips)[PINGS // 2] * 1e6)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else ask(sys.argv[2])
