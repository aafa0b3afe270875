"""Requests of a box under no policy, under one that connections alone are judged by, and under one whose requests are
seen, and so go through the proxy; over plain HTTP, since nobody there is verified by an authority of the host's.

Run as a program it is the server (`serve`), which stands in a network namespace behind the host, or the client in a
box (`ask REQUESTS MIB`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from network import PIECE, TARGET

if __name__ != "__main__":  # in a box there is neither
    from boxwood import VM, Boxwood
    from measure import Series

PORT = 8080
WITHOUT, CONNECTIONS, REQUESTS = "no policy", "rules for connections", "rules for requests (the proxy)"
_HERE: dict[str, Any] = {"type": "outbound", "priority": 1, "action": "allow"}
POLICIES: dict[str, dict[str, Any] | None] = {
    WITHOUT: None,
    CONNECTIONS: {**_HERE, "match": {"ips": [TARGET]}},
    REQUESTS: {**_HERE, "match": {"ips": [TARGET], "methods": ["GET"]}},
}
KINDS = {"fresh": ("GET, a connection each", "ms"), "open": ("GET, on one connection", "ms"),
         "speed": ("bytes of an answer", "MiB/s")}  # fmt: skip


def series(box: Boxwood, name: str, n: int, count: int, mib: int) -> list[Series]:
    """In `n` rounds, each policy in turn. `name`: the namespace (network.outside); `count`: requests of a round."""
    found = {
        (kind, policy): Series(f"{text}: {policy}", unit) for kind, (text, unit) in KINDS.items() for policy in POLICIES
    }
    command = ["ip", "netns", "exec", name, sys.executable, __file__, "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        assert server.stdout is not None
        server.stdout.readline()
        vms = {policy: stack.enter_context(_vm(box, rule)) for policy, rule in POLICIES.items()}
        for vm in vms.values():  # once to warm up: the first of all starts the proxy
            _ask(vm, 1, 1)
        for _ in range(n):
            for policy, vm in vms.items():
                for kind, values in _ask(vm, count, mib).items():
                    for value in values:
                        found[kind, policy].add(value)
    return list(found.values())


def _vm(box: Boxwood, rule: dict[str, Any] | None) -> VM:
    vm = box.fork("ubuntu", policies={"rules": {"bench": rule}} if rule else None)
    text = (
        Path(__file__).read_text().replace("from network import PIECE, TARGET", f"PIECE, TARGET = {PIECE}, {TARGET!r}")
    )
    vm.write_file("/ask.py", text.encode())
    return vm


def _ask(vm: VM, count: int, mib: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(vm.run(f"python3 /ask.py ask {count} {mib}", check=True).stdout)
    return found


# --- the client


def ask(count: int, mib: int) -> dict[str, list[float]]:
    """Milliseconds of requests; MiB/s of one answer."""
    found: dict[str, list[float]] = {"fresh": [], "open": [], "speed": []}
    for _ in range(count):
        began = time.perf_counter()
        connection = http.client.HTTPConnection(TARGET, PORT)
        _get(connection, 0)
        connection.close()
        found["fresh"].append((time.perf_counter() - began) * 1e3)
    connection = http.client.HTTPConnection(TARGET, PORT)
    _get(connection, 0)
    for _ in range(count):
        began = time.perf_counter()
        _get(connection, 0)
        found["open"].append((time.perf_counter() - began) * 1e3)
    began = time.perf_counter()
    _get(connection, mib)
    found["speed"].append(mib / (time.perf_counter() - began))
    return found


def _get(connection: http.client.HTTPConnection, mib: int) -> None:
    connection.request("GET", f"/{mib}")
    answer = connection.getresponse()
    got = 0
    while piece := answer.read(PIECE):
        got += len(piece)
    assert (answer.status, got) == (200, mib * PIECE), (answer.status, got)


# --- the server


def serve() -> None:
    listener = socket.create_server(("0.0.0.0", PORT), backlog=128)
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_answer, args=(sock,), daemon=True).start()


def _answer(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    piece, said = bytes(PIECE), b""
    with sock, contextlib.suppress(OSError):
        while True:
            while b"\r\n\r\n" not in said:
                if not (data := sock.recv(65536)):
                    return
                said += data
            request, _, said = said.partition(b"\r\n\r\n")
            mib = int(request.split()[1].removeprefix(b"/"))
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (mib * PIECE))
            for _ in range(mib):
                sock.sendall(piece)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else print(json.dumps(ask(int(sys.argv[2]), int(sys.argv[3]))))
