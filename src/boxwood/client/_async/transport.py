"""Sends calls to one server, with its key, and tries again what may be tried again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeVar

import msgspec

from boxwood import __version__
from boxwood.client._async.carrier import carrier_for
from boxwood.client._async.pause import sleep
from boxwood.client.answers import Retry, decode, refusal
from boxwood.client.calls import Call
from boxwood.client.discovery import Target
from boxwood.client.errors import BadRequest, BoxwoodError, ServerError
from boxwood.client.events import EVENTS, Parser, Said

if TYPE_CHECKING:
    from boxwood.client._async.socket import AsyncSocket

T = TypeVar("T")
SILENCE = 35.0  # seconds without even a comment, of which a server sends one every ten: it is gone
REFUSAL_BYTES = 1 << 20
AGENT = {"user-agent": f"boxwood/{__version__}", "accept": "*/*"}


class AsyncTransport:
    """Requests to one server, with its key, and to no other."""

    def __init__(self, target: Target, timeout: float, retry: Retry) -> None:
        self._url = target.url
        self._headers = {**AGENT, "authorization": f"Bearer {target.api_key}"}
        self._timeout = timeout
        self._retry = retry
        self._carrier = carrier_for(target.url)

    async def call(self, call: Call, answer: type[T]) -> T:
        """The decoded answer.

        :raises BoxwoodError: the server said no; after the attempts that are allowed.
        """
        body, headers = call.content, {**self._headers, **call.headers}
        if body is not None:
            headers["content-type"] = "application/octet-stream"
        elif call.body is not None:
            body, headers["content-type"] = _encoded(call), "application/json"
        tried = 0
        while True:
            try:
                status, said = await self._carrier.send(
                    call.method, self._url + call.path, headers, body, self._timeout + call.patience
                )
                return decode(call, status, said, answer)
            except BoxwoodError as error:
                delay = self._retry.delay(call, error, tried)
                if delay is None:
                    raise
            await sleep(delay)
            tried += 1

    async def events(self, call: Call) -> AsyncGenerator[Said, None]:
        """Server-sent events as they come, once: whoever wants to go on after a break asks again.

        :raises BoxwoodError: the server said no, or the connection broke.
        """
        body, headers = None, {**self._headers, **call.headers, "accept": EVENTS}
        if call.body is not None:
            body, headers["content-type"] = _encoded(call), "application/json"
        answer = await self._carrier.stream(call.method, self._url + call.path, headers, body, SILENCE)
        try:
            parser = Parser()
            if answer.status != 200 or answer.media_type != EVENTS:
                said = b""
                while len(said) < REFUSAL_BYTES and (piece := await answer.more()):
                    said += piece
                raise refusal(answer.status, said)
            while piece := await answer.more():
                for event in parser.feed(piece):
                    yield event
        finally:
            await answer.aclose()

    def delay(self, call: Call, error: BoxwoodError, tried: int) -> float | None:
        """See `Retry.delay`."""
        return self._retry.delay(call, error, tried)

    async def fetch(self, url: str) -> bytes:
        """What a signed url leads to; asked for without the key."""
        if not url.startswith(("http://", "https://")):
            raise ServerError("bad_answer", f"the server points to {url!r} for the file")
        carrier = carrier_for(url)
        try:
            status, body = await carrier.send("GET", url, AGENT, None, self._timeout)
        finally:
            await carrier.aclose()
        if status != 200:
            raise ServerError("bad_answer", f"HTTP {status} for the file", status)
        return body

    async def open_socket(self, path: str) -> AsyncSocket:
        """A WebSocket. :raises BoxwoodError: the server said no."""
        from boxwood.client._async.socket import AsyncSocket

        return await AsyncSocket.open("ws" + self._url.removeprefix("http") + path, self._headers)

    async def aclose(self) -> None:
        await self._carrier.aclose()


def _encoded(call: Call) -> bytes:
    try:
        return msgspec.json.encode(call.body)
    except (TypeError, ValueError) as error:
        raise BadRequest("bad_request", f"cannot be sent as JSON: {error}") from None
