"""Server-sent events as any client reads them: without the SDK, from an answer of http.client."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from servers import Server


@dataclass
class Event:
    kind: str
    ident: str
    told: dict[str, Any]

    def bytes(self) -> bytes:
        """Of an event of output."""
        data: str = self.told["data"]
        return base64.b64decode(data) if self.told["encoding"] == "base64" else data.encode()


@contextmanager
def connect(
    server: Server, method: str, path: str, body: Any = None, *, last: str = "", window: int = 0
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for events. `last`: the id of the last event that was heard. `window`: bytes that the
    kernel may take before anybody reads; 0: as many as usual."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        if window:
            connection.sock = socket.socket()
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            connection.sock.connect(("127.0.0.1", server.port))
        headers = {"authorization": f"Bearer {server.key}", "accept": "text/event-stream"}
        if last:
            headers["last-event-id"] = last
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer
    finally:
        connection.close()


def events(answer: http.client.HTTPResponse) -> Iterator[Event]:
    """Until the answer ends. OSError, HTTPException: the connection has broken."""
    fields: dict[str, str] = {}
    while line := answer.readline():
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "event" in fields:  # else it was a comment
            yield Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
            fields = {}
