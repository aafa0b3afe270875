# Made from ../_async/transport.py by tools/unasync.py: change that one.
"""Sends calls to one server, with its key, and tries again what may be tried again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec

from boxwood import __version__
from boxwood.client._sync.carrier import Answer, carrier_for
from boxwood.client._sync.pause import sleep, to_thread
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
    from boxwood.client._sync.socket import Socket

T = TypeVar("T")
SILENCE = 35.0  # seconds without even a comment, of which a server sends one every ten: it is gone
SMALL_BYTES = 1 << 16  # of a body: it leaves in one packet with the request's head, and wakes the server once
REFUSAL_BYTES = 1 << 20
AGENT = {"user-agent": f"boxwood/{__version__}", "accept": "*/*"}


class Transport:
    """Requests to one server, with its key, and to no other."""

    def __init__(self, target: Target, timeout: float, retry: Retry) -> None:
        self._url = target.url
        self._headers = {**AGENT, "authorization": f"Bearer {target.api_key}"}
        self._timeout = timeout
        self._retry = retry
        self._carrier = carrier_for(target.url)
        self._direct: bool | None = None

    def call(self, call: Call, answer: type[T]) -> T:
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
                status, said = self._carrier.send(self._asked(call, headers, body))
                return decode(call, status, said, answer)
            except BoxwoodError as error:
                tried = self._later(call, error, tried)

    def direct(self, vm_id: str) -> bool:
        """Does the server take and give files as bodies? (One of the contract alone does not.)

        :raises ConnectionFailed, Timeout, RateLimited, Unavailable: it does not say now.
        """
        if self._direct is None:
            try:
                self.call(options(vm_id), Anything)
                self._direct = True
            except (ConnectionFailed, Timeout, RateLimited, Unavailable):
                raise
            except BoxwoodError:
                self._direct = False
        return self._direct

    def content(self, call: Call) -> bytes:
        """The body of an answer as it is. Errors as of `call`."""
        headers = {**self._headers, **call.headers}
        tried = 0
        while True:
            try:
                status, body = self._carrier.send(self._asked(call, headers))
                if status not in call.answers:
                    raise refusal(status, body)
                return body
            except BoxwoodError as error:
                tried = self._later(call, error, tried)

    def deliver(
        self,
        call: Call,
        pieces: Callable[[], Iterator[bytes]],
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
                status, said = self._carried(call, headers, pieces(), length)
                return decode(call, status, said, answer)
            except BoxwoodError as error:
                if not again:
                    raise
                tried = self._later(call, error, tried)

    def _carried(
        self, call: Call, headers: dict[str, str], pieces: Iterator[bytes], length: int | None
    ) -> tuple[int, bytes]:
        if length is None or length > SMALL_BYTES:
            return self._carrier.deliver(self._asked(call, headers), pieces, length)
        body = b"".join(list(pieces))
        return self._carrier.send(self._asked(call, headers, body))

    def open(self, call: Call) -> Answer:
        """An answer that is read bit by bit, once; whoever has it closes it.

        :raises BoxwoodError: the server said no, or the connection broke.
        """
        answer = self._carrier.stream(self._asked(call, {**self._headers, **call.headers}))
        if answer.status not in call.answers:
            raise _refusal(answer)
        return answer

    def pieces(self, call: Call, media_type: str) -> Generator[bytes, None, None]:
        """A body of this type as it comes, once.

        :raises BoxwoodError: the server said no, or the connection broke.
        """
        answer = self.open(call)
        try:
            if answer.media_type != media_type:
                raise _refusal(answer)
            while piece := answer.more():
                yield piece
        finally:
            answer.close()

    def events(self, call: Call) -> Generator[Said, None, None]:
        """Server-sent events as they come, once: whoever wants to go on after a break asks again.

        :raises BoxwoodError: the server said no, or the connection broke.
        """
        body, headers = None, {**self._headers, **call.headers, "accept": EVENTS}
        if call.body is not None:
            body, headers["content-type"] = _encoded(call), "application/json"
        answer = self._carrier.stream(self._asked(call, headers, body)._replace(timeout=SILENCE))
        try:
            parser = Parser()
            if answer.status != 200 or answer.media_type != EVENTS:
                raise _refusal(answer)
            while piece := answer.more():
                for event in parser.feed(piece):
                    yield event
        finally:
            answer.close()

    def _asked(self, call: Call, headers: dict[str, str], body: bytes | None = None) -> Asked:
        return Asked(call.method, self._url + call.path, headers, self._timeout + call.patience, body)

    def _later(self, call: Call, error: BoxwoodError, tried: int) -> int:
        """Waits until it may be tried again. How often it has been, then; raises the error if it may not."""
        delay = self._retry.delay(call, error, tried)
        if delay is None:
            raise error
        sleep(delay)
        return tried + 1

    def delay(self, call: Call, error: BoxwoodError, tried: int) -> float | None:
        """See `Retry.delay`."""
        return self._retry.delay(call, error, tried)

    def fetch(self, url: str) -> bytes:
        """What a signed url leads to; asked for without the key."""
        if not url.startswith(("http://", "https://")):
            raise ServerError("bad_answer", f"the server points to {url!r} for the file")
        carrier = carrier_for(url)
        try:
            status, body = carrier.send(Asked("GET", url, AGENT, self._timeout))
        finally:
            carrier.close()
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

    def open_socket(self, path: str) -> Socket:
        """A WebSocket. :raises BoxwoodError: the server said no."""
        from boxwood.client._sync.socket import Socket

        return Socket.open(*self.socket_target(path))

    def close(self) -> None:
        self._carrier.close()


def pieces_of(file: IO[bytes]) -> Generator[bytes, None, None]:
    """An open file, from where it is to its end."""
    return in_thread(iter(partial(file.read, PIECE), b""))


def in_thread(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
    """What is read from files here: nothing else waits for the disk, or for whoever writes to a pipe."""
    while (piece := to_thread(_next, pieces)) is not None:
        yield piece


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)


def _refusal(answer: Answer) -> BoxwoodError:
    """What an answer says that is none; it is closed."""
    try:
        said = b""
        while len(said) < REFUSAL_BYTES and (piece := answer.more()):
            said += piece
        return refusal(answer.status, said)
    finally:
        answer.close()


def _encoded(call: Call) -> bytes:
    try:
        return msgspec.json.encode(call.body)
    except (TypeError, ValueError) as error:
        raise BadRequest("bad_request", f"cannot be sent as JSON: {error}") from None
