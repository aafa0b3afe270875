"""A request whose answer is looked at while it comes, and server-sent events read strictly."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from dataclasses import dataclass
from typing import Any


@dataclass
class Event:
    ident: str
    kind: str
    data: dict[str, Any]

    @property
    def bytes(self) -> bytes:
        """Of an event of output."""
        text = self.data["data"]
        return b64decode(text, validate=True) if self.data["encoding"] == "base64" else text.encode()


def parse(text: str) -> list[Event]:
    """Comments are left out."""
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(lines) <= {"id", "event", "data"}
        found.append(Event(lines.get("id", ""), lines["event"], json.loads(lines["data"])))
    return found


def output(events: list[Event], stream: str) -> bytes:
    return b"".join(event.bytes for event in events if event.kind == stream)


class Watched:
    """Speaks ASGI. The application waits with each part until it is asked for: it has a slow reader."""

    def __init__(self, api: Any, method: str, path: str, body: Any = None, **headers: str) -> None:
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1)
        given = {"host": "localhost", "authorization": f"Bearer {api.key}", "accept": "text/event-stream", **headers}
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "scheme": "http",
            "query_string": query.encode(), "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }  # fmt: skip
        content = b"" if body is None else json.dumps(body).encode()
        self._sent.put_nowait({"type": "http.request", "body": content, "more_body": False})
        self._events: list[Event] = []
        self.status = 0
        self.task = asyncio.create_task(api.app(scope, self._sent.get, self._parts.put))

    async def part(self) -> bytes:
        """The next piece of the body; nothing at its end."""
        message = await self._parts.get()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return await self.part()
        return message["body"]

    async def event(self) -> Event:
        while not self._events:
            self._events = parse((await self.part()).decode())
        return self._events.pop(0)

    async def rest(self) -> list[Event]:
        """All events until the answer ends."""
        found, self._events = self._events, []
        while part := await self.part():
            found += parse(part.decode())
        await self.task
        return found

    def leave(self) -> None:
        self._sent.put_nowait({"type": "http.disconnect"})
