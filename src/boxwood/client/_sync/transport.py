# Made from ../_async/transport.py by tools/unasync.py: change that one.
"""Sends calls to one server, with its key, and tries again what may be tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from boxwood import __version__
from boxwood.client._sync.carrier import carrier_for
from boxwood.client._sync.pause import sleep
from boxwood.client.answers import Retry, decode
from boxwood.client.calls import Call
from boxwood.client.discovery import Target
from boxwood.client.errors import BadRequest, BoxwoodError, ServerError

if TYPE_CHECKING:
    from boxwood.client._sync.socket import Socket

T = TypeVar("T")
AGENT = {"user-agent": f"boxwood/{__version__}", "accept": "*/*"}


class Transport:
    """Requests to one server, with its key, and to no other."""

    def __init__(self, target: Target, timeout: float, retry: Retry) -> None:
        self._url = target.url
        self._headers = {**AGENT, "authorization": f"Bearer {target.api_key}"}
        self._timeout = timeout
        self._retry = retry
        self._carrier = carrier_for(target.url)

    def call(self, call: Call, answer: type[T]) -> T:
        """The decoded answer.

        :raises BoxwoodError: the server said no; after the attempts that are allowed.
        """
        body, headers = None, {**self._headers, **call.headers}
        if call.body is not None:
            body, headers["content-type"] = _encoded(call), "application/json"
        tried = 0
        while True:
            try:
                status, said = self._carrier.send(
                    call.method, self._url + call.path, headers, body, self._timeout + call.patience
                )
                return decode(call, status, said, answer)
            except BoxwoodError as error:
                delay = self._retry.delay(call, error, tried)
                if delay is None:
                    raise
            sleep(delay)
            tried += 1

    def fetch(self, url: str) -> bytes:
        """What a signed url leads to; asked for without the key."""
        if not url.startswith(("http://", "https://")):
            raise ServerError("bad_answer", f"the server points to {url!r} for the file")
        carrier = carrier_for(url)
        try:
            status, body = carrier.send("GET", url, AGENT, None, self._timeout)
        finally:
            carrier.close()
        if status != 200:
            raise ServerError("bad_answer", f"HTTP {status} for the file", status)
        return body

    def open_socket(self, path: str) -> Socket:
        """A WebSocket. :raises BoxwoodError: the server said no."""
        from boxwood.client._sync.socket import Socket

        return Socket.open("ws" + self._url.removeprefix("http") + path, self._headers)

    def close(self) -> None:
        self._carrier.close()


def _encoded(call: Call) -> bytes:
    try:
        return msgspec.json.encode(call.body)
    except (TypeError, ValueError) as error:
        raise BadRequest("bad_request", f"cannot be sent as JSON: {error}") from None
