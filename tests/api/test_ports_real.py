"""Ports of VMs over HTTP, in real boxes; also of an unprivileged user's server."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import servers
from amounts import amount
from boxwood import VM, Boxwood

PROGRAM = """
import http.server, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        left, total = int(self.headers["content-length"]), 0
        while left:
            data = self.rfile.read(min(left, 65536))
            left -= len(data)
            total += data.count(b"x")
        self.say(b"%d" % total)
    def do_GET(self):
        if self.path == "/large":
            self.send_response(200)
            self.send_header("content-length", str(64 << 20))
            self.end_headers()
            for _ in range(1024):
                self.wfile.write(b"y" * 65536)
        else:
            self.say(self.headers["x-forwarded-host"].encode())
    def say(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    request_queue_size = 256
    daemon_threads = True
server = Server(("127.0.0.1", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
"""


@pytest.fixture(params=["boxwood_server", "rootless_server"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    found: servers.Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def vm(server: servers.Server) -> Iterator[VM]:
    with server.client() as client, client.fork("ubuntu") as found:
        yield found


def serve(vm: VM) -> None:
    """Something listens from here on."""
    vm.write_file("/srv.py", PROGRAM)
    run = vm.run("python3 /srv.py", background=True)
    servers.until(lambda: "ready" in run.refresh().stdout)


def ask(server: servers.Server, vm: VM, path: str = "/", method: str = "GET", body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"host": f"{vm.id.lower()}-8080.localhost", "x-boxwood-key": server.key}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status == 200, (answer.status, said)
        return said
    finally:
        connection.close()


def test_what_listens_in_a_box(server, vm):
    serve(vm)
    assert ask(server, vm) == f"{vm.id.lower()}-8080.localhost".encode()
    assert ask(server, vm, "/large") == b"y" * (64 << 20)
    assert ask(server, vm, "/", "POST", b"x" * (16 << 20)) == b"%d" % (16 << 20)
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: ask(server, vm), range(64)))) == 1


def test_large_bodies_stay_out_of_the_servers_memory(server, vm):
    serve(vm)
    ask(server, vm)
    before = _peak(server.pid)
    for _ in range(amount(1, 3)):
        ask(server, vm, "/large")
        ask(server, vm, "/", "POST", b"x" * (32 << 20))
    assert _peak(server.pid) - before < 16 << 10, "KiB"


def test_requests_wake_a_parked_vm_once(make_server):
    """Nothing listens after that: what ran has ended with the box, and the answer says so."""
    server = make_server(idle_seconds=0.05)
    with server.client() as client, client.fork("ubuntu") as vm:
        vm.run("true")
        servers.until(lambda: not _live(client, vm))
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda _: _refused(server, vm), range(100)))
        assert {status for status, _ in answers} == {502}
        assert all("nothing listens on port 8080" in said["error"]["message"] for _, said in answers)


def _refused(server: servers.Server, vm: VM) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("GET", "/", None, {"host": f"{vm.id.lower()}.localhost", "x-boxwood-key": server.key})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _live(client: Boxwood, vm: VM) -> bool:
    return vm.network().address is not None


def _peak(pid: int) -> int:
    """KiB of memory at most so far."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
