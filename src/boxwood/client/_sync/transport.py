# Made from ../_async/transport.py by tools/unasync.py: change that one.
"""Sends calls over HTTP with kept connections, and tries again what may be tried again."""

from __future__ import annotations

import ipaddress
from typing import TypeVar

import httpx2
import msgspec

from boxwood import __version__
from boxwood.client._sync.pause import sleep
from boxwood.client.answers import NOT_CONNECTED, Retry, decode
from boxwood.client.calls import Call
from boxwood.client.discovery import Target
from boxwood.client.errors import BadRequest, BoxwoodError, ConnectionFailed, ServerError, Timeout

T = TypeVar("T")

# The connections are closed before a server's five seconds are over: one that it closed meanwhile costs a request.
LIMITS = httpx2.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=4.0)
CONNECT_TIMEOUT = 10.0


class Transport:
    """Requests to one server, with its key, and to no other."""

    def __init__(self, target: Target, timeout: float, retry: Retry) -> None:
        self._target = target
        self._timeout = timeout
        self._retry = retry
        self._http = httpx2.Client(
            headers={"authorization": f"Bearer {target.api_key}", "user-agent": f"boxwood/{__version__}"},
            limits=LIMITS,
            follow_redirects=False,
            trust_env=not _is_loopback(target.url),  # a proxy of the environment must not see a local server's key
        )

    def call(self, call: Call, answer: type[T]) -> T:
        """The decoded answer.

        :raises BoxwoodError: the server said no; after the attempts that are allowed.
        """
        tried = 0
        while True:
            try:
                status, body = self._send(call)
                return decode(call, status, body, answer)
            except BoxwoodError as error:
                delay = self._retry.delay(call, error, tried)
                if delay is None:
                    raise
            sleep(delay)
            tried += 1

    def fetch(self, url: str) -> bytes:
        """What a signed url leads to; asked for without the key."""
        with httpx2.Client(timeout=self._timeout, trust_env=not _is_loopback(url)) as http:
            try:
                answer = http.get(url)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise ConnectionFailed("connection_lost", f"cannot fetch the file: {error}") from error
        if answer.status_code != 200:
            raise ServerError("bad_answer", f"HTTP {answer.status_code} for the file", answer.status_code)
        return answer.content

    def close(self) -> None:
        self._http.close()

    def _send(self, call: Call) -> tuple[int, bytes]:
        headers = dict(call.headers)
        content = None
        if call.body is not None:
            headers["content-type"] = "application/json"
            content = _encoded(call)
        patience = httpx2.Timeout(self._timeout + call.patience, connect=CONNECT_TIMEOUT, pool=None)
        try:
            answer = self._http.request(
                call.method, self._target.url + call.path, content=content, headers=headers, timeout=patience
            )
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            failed = f"cannot connect to {self._target.url}: {str(error) or 'no answer'}"
            raise ConnectionFailed(NOT_CONNECTED, f"{failed}; `boxwood up` starts a server here") from error
        except httpx2.TimeoutException as error:
            waited = self._timeout + call.patience
            text = f"no answer from {self._target.url} within {waited:g} s; outcome unknown"
            raise Timeout("timeout", text) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            lost = f"lost the connection to {self._target.url} before the answer: {error}"
            raise ConnectionFailed("connection_lost", f"{lost}; outcome unknown") from error
        return answer.status_code, answer.content


def _encoded(call: Call) -> bytes:
    try:
        return msgspec.json.encode(call.body)
    except (TypeError, ValueError) as error:
        raise BadRequest("bad_request", f"cannot be sent as JSON: {error}") from None


def _is_loopback(url: str) -> bool:
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
