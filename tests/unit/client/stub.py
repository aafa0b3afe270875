"""A small real HTTP server that speaks the contract's answers (wire/arker.md, appendix A), and scripts of them."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

KEY = "bxw_test_key"
VM_ID = "01KZ0000000000000000000000"
VM = {
    "vm_id": VM_ID, "owner_org_id": "org", "created_at": "2026-01-01T00:00:00Z", "name": "n", "description": None,
    "public": False, "state": "idle", "sessions": [], "resources": {"vcpu": 1, "memory_mib": 512, "disk_mib": 1024},
    "network": {}, "region": "local", "root_source_vm_id": None, "root_source_vm_name": None, "last_active_at": None,
    "hostname": None, "platform": "linux-x86", "policies": {"rules": {}, "secrets": {}},
}  # fmt: skip
NETWORK = {
    "mode": "internet", "address": "198.18.0.6", "sent_bytes": 10, "received_bytes": 2048, "connections": 3,
    "denied": 51, "denials": [
        {"at": "2026-01-01T00:00:00Z", "protocol": "dns", "address": "", "port": 0, "name": "a.example", "reason": "name"},
        {
            "at": "2026-01-01T00:00:00Z", "protocol": "tcp", "address": "10.0.0.1", "port": 22, "name": "db.example",
            "reason": "private",
        },
    ],
}  # fmt: skip
RUN = {
    "run_id": "r1", "session_id": "s1", "state": "completed", "exit_code": 0, "stdout": "aGk=",
    "stdout_encoding": "base64", "stderr": "", "stderr_encoding": "utf-8", "duration_ms": 1.5,
}  # fmt: skip
SESSION = {"session_id": "s1", "session_idx": 1, "state": "idle", "cwd": "/root", "env": None, "started_at": None}


def error(code: str, message: str = "nope", **more: Any) -> dict[str, Any]:
    """An error body of the contract."""
    body = {"code": code, "message": message, "timestamp": "2026-01-01T00:00:00Z", "request_id": "q1"}
    return {"error": {**body, "request": {"kind": "matched", "operation_id": "sync"}, **more}}


class Events(bytes):
    """Server-sent events: an answer that has that type."""


def event(kind: str, ident: str = "", **data: Any) -> Events:
    return Events(f"id: {ident}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode())


STARTED = event("started", "0.0", run_id="r1", session_id="s1", vm_id=VM_ID, started_at="2026-01-01T00:00:00Z")


def exited(ident: str = "0.0", **facts: Any) -> Events:
    """`facts`: those that are not as usual."""
    usual = {
        "run_id": "r1", "state": "completed", "exit_code": 0, "fail_reason": None,
        "completed_at": "2026-01-01T00:00:01Z", "duration_ms": 1.5, "stdout_bytes": 0, "stderr_bytes": 0,
    }  # fmt: skip
    return event("exit", ident, **usual | facts)


def put_out(stream: str, data: bytes, at: int = 0, ident: str = "") -> Events:
    return event(stream, ident, data=b64encode(data).decode(), encoding="base64", offset=at)


def told(*events: Events) -> Events:
    return Events(b"".join(events))


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


Answer = tuple[int, Any]


@dataclass
class StubServer:
    """Answers in turn what `script` holds for "METHOD path"; the last answer stays."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    scripts: dict[str, list[Answer | Callable[[Request], Answer]]] = field(default_factory=dict)
    connections: list[socket.socket] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def script(self, route: str, *answers: Answer | Callable[[Request], Answer]) -> None:
        self.scripts[route] = list(answers)

    def answer(self, request: Request) -> Answer:
        with self.lock:
            self.requests.append(request)
            waiting = self.scripts.get(f"{request.method} {request.path}")
            if not waiting:
                return 404, error("not_found", "no such route", details={"resource": "route"})
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return answer(request) if callable(answer) else answer

    def hang_up(self) -> None:
        """Closes every connection, and returns when that has been done."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def last(self) -> Request:
        return self.requests[-1]


@contextmanager
def serving() -> Iterator[StubServer]:
    """A stub that listens until the end of the block."""
    stub = StubServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            stub.connections.append(self.connection)

        def serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            is_json = headers.get("content-type") != "application/octet-stream"
            body = json.loads(data) if data and is_json else data or None
            status, said = stub.answer(Request(self.command, parts.path, parse_qs(parts.query), headers, body))
            if said is None:  # hang up without an answer
                self.close_connection = True
                return
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            if isinstance(said, Events):
                self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

        def log_message(self, *args: Any) -> None:
            pass

    ThreadingHTTPServer.request_queue_size = 128
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    stub.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def server() -> Iterator[StubServer]:
    with serving() as stub:
        yield stub
