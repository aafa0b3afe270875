"""Sends calls to one server, with its key, and tries again what may be tried again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from functools import partial
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec

from boxwood import __version__
from boxwood.client._async.carrier import AsyncAnswer, carrier_for
from boxwood.client._async.pause import sleep, to_thread
from boxwood.client.answers import Retry, decode, refusal
from boxwood.client.calls import Call
from boxwood.client.content import PIECE
from boxwood.client.discovery import Target
from boxwood.client.errors import (
    BadRequest,
    BoxwoodError,
    ConnectionFailed,
    RateLimited,
    ServerError,
    Timeout,
    Unavailable,
)
from boxwood.client.events import EVENTS, Parser, Said
from boxwood.client.http1 import Asked
from boxwood.client.models import Anything
from boxwood.client.transfers import options

if TYPE_CHECKING:
    from boxwood.client._async.socket import AsyncSocket

T = TypeVar("T")
SILENCE = 35.0  # seconds without even a comment, of which a server sends one every ten: it is gone
SMALL_BYTES = 1 << 16  # of a body: it leaves in one packet with the request's head, and wakes the server once
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
        self._direct: bool | None = None

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
                status, said = await self._carrier.send(self._asked(call, headers, body))
                return decode(call, status, said, answer)
            except BoxwoodError as error:
                tried = await self._later(call, error, tried)

    async def direct(self, vm_id: str) -> bool:
        """Does the server take and give files as bodies? (One of the contract alone does not.)

        :raises ConnectionFailed, Timeout, RateLimited, Unavailable: it does not say now.
        """
        if self._direct is None:
            try:
                await self.call(options(vm_id), Anything)
                self._direct = True
            except (ConnectionFailed, Timeout, RateLimited, Unavailable):
                raise
            except BoxwoodError:
                self._direct = False
        return self._direct

    async def content(self, call: Call) -> bytes:
        """The body of an answer as it is. Errors as of `call`."""
        headers = {**self._headers, **call.headers}
        tried = 0
        while True:
            try:
                status, body = await self._carrier.send(self._asked(call, headers))
                if status not in call.answers:
                    raise refusal(status, body)
                return body
            except BoxwoodError as error:
                tried = await self._later(call, error, tried)

    async def deliver(
        self,
        call: Call,
        pieces: Callable[[], AsyncIterator[bytes]],
        length: int | None,
        answer: type[T],
        *,
        again: bool,
    ) -> T:
        """As `call`, with a body that comes in pieces; `again`: they may be asked for once more."""
        headers = {**self._headers, **call.headers, "content-type": "application/octet-stream"}
        tried = 0
        while True:
            try:
                status, said = await self._carried(call, headers, pieces(), length)
                return decode(call, status, said, answer)
            except BoxwoodError as error:
                if not again:
                    raise
                tried = await self._later(call, error, tried)

    async def _carried(
        self, call: Call, headers: dict[str, str], pieces: AsyncIterator[bytes], length: int | None
    ) -> tuple[int, bytes]:
        if length is None or length > SMALL_BYTES:
            return await self._carrier.deliver(self._asked(call, headers), pieces, length)
        body = b"".join([piece async for piece in pieces])
        return await self._carrier.send(self._asked(call, headers, body))

    async def open(self, call: Call) -> AsyncAnswer:
        """An answer that is read bit by bit, once; whoever has it closes it.

        :raises BoxwoodError: the server said no, or the connection broke.
        """
        answer = await self._carrier.stream(self._asked(call, {**self._headers, **call.headers}))
        if answer.status not in call.answers:
            raise await _refusal(answer)
        return answer

    async def pieces(self, call: Call, media_type: str) -> AsyncGenerator[bytes, None]:
        """A body of this type as it comes, once.

        :raises BoxwoodError: the server said no, or the connection broke.
        """
        answer = await self.open(call)
        try:
            if answer.media_type != media_type:
                raise await _refusal(answer)
            while piece := await answer.more():
                yield piece
        finally:
            await answer.aclose()

    async def events(self, call: Call) -> AsyncGenerator[Said, None]:
        """Server-sent events as they come, once: whoever wants to go on after a break asks again.

        :raises BoxwoodError: the server said no, or the connection broke.
        """
        body, headers = None, {**self._headers, **call.headers, "accept": EVENTS}
        if call.body is not None:
            body, headers["content-type"] = _encoded(call), "application/json"
        answer = await self._carrier.stream(self._asked(call, headers, body)._replace(timeout=SILENCE))
        try:
            parser = Parser()
            if answer.status != 200 or answer.media_type != EVENTS:
                raise await _refusal(answer)
            while piece := await answer.more():
                for event in parser.feed(piece):
                    yield event
        finally:
            await answer.aclose()

    def _asked(self, call: Call, headers: dict[str, str], body: bytes | None = None) -> Asked:
        return Asked(call.method, self._url + call.path, headers, self._timeout + call.patience, body)

    async def _later(self, call: Call, error: BoxwoodError, tried: int) -> int:
        """Waits until it may be tried again. How often it has been, then; raises the error if it may not."""
        delay = self._retry.delay(call, error, tried)
        if delay is None:
            raise error
        await sleep(delay)
        return tried + 1

    def delay(self, call: Call, error: BoxwoodError, tried: int) -> float | None:
        """See `Retry.delay`."""
        return self._retry.delay(call, error, tried)

    async def fetch(self, url: str) -> bytes:
        """What a signed url leads to; asked for without the key."""
        if not url.startswith(("http://", "https://")):
            raise ServerError("bad_answer", f"the server points to {url!r} for the file")
        carrier = carrier_for(url)
        try:
            status, body = await carrier.send(Asked("GET", url, AGENT, self._timeout))
        finally:
            await carrier.aclose()
        if status != 200:
            raise ServerError("bad_answer", f"HTTP {status} for the file", status)
        return body

    def socket_target(self, path: str) -> tuple[str, dict[str, str]]:
        """The URL of a WebSocket, and the headers to ask for it with."""
        return "ws" + self._url.removeprefix("http") + path, dict(self._headers)

    @property
    def url(self) -> str:
        """Of the server."""
        return self._url

    async def open_socket(self, path: str) -> AsyncSocket:
        """A WebSocket. :raises BoxwoodError: the server said no."""
        from boxwood.client._async.socket import AsyncSocket

        return await AsyncSocket.open(*self.socket_target(path))

    async def aclose(self) -> None:
        await self._carrier.aclose()


def pieces_of(file: IO[bytes]) -> AsyncGenerator[bytes, None]:
    """An open file, from where it is to its end."""
    return in_thread(iter(partial(file.read, PIECE), b""))


async def in_thread(pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """What is read from files here: nothing else waits for the disk, or for whoever writes to a pipe."""
    while (piece := await to_thread(_next, pieces)) is not None:
        yield piece


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)


async def _refusal(answer: AsyncAnswer) -> BoxwoodError:
    """What an answer says that is none; it is closed."""
    try:
        said = b""
        while len(said) < REFUSAL_BYTES and (piece := await answer.more()):
            said += piece
        return refusal(answer.status, said)
    finally:
        await answer.aclose()


def _encoded(call: Call) -> bytes:
    try:
        return msgspec.json.encode(call.body)
    except (TypeError, ValueError) as error:
        raise BadRequest("bad_request", f"cannot be sent as JSON: {error}") from None
