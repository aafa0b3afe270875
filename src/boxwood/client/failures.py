"""What goes wrong on the way to a server and back, as the SDK's errors; no I/O."""

from __future__ import annotations

from types import TracebackType

from boxwood.client.answers import LOST, NOT_CONNECTED
from boxwood.client.errors import ConnectionFailed, Timeout
from boxwood.client.http1 import BadAnswer


def not_connected(url: str, error: BaseException) -> ConnectionFailed:
    text = f"cannot connect to {_shown(url)}: {str(error) or 'no answer'}; `boxwood up` starts a server here"
    return ConnectionFailed(NOT_CONNECTED, text)


def no_answer(url: str, timeout: float) -> Timeout:
    """`timeout`: seconds that were waited."""
    return Timeout("timeout", f"no answer from {_shown(url)} within {timeout:g} s; outcome unknown")


def lost(url: str, error: BaseException) -> ConnectionFailed:
    why = str(error) or type(error).__name__
    text = f"lost the connection to {_shown(url)} before the answer: {why}; outcome unknown"
    return ConnectionFailed(LOST, text)


class OfConnection:
    """Around what is done over a connection of our own: its errors become the SDK's.

    :param url: that is asked for; `timeout`: seconds that are waited.
    :param broken: what tells that the connection is; other errors go through as they are.
    """

    __slots__ = ("_broken", "_timeout", "_url")

    def __init__(
        self, url: str, timeout: float, broken: tuple[type[Exception], ...] = (OSError, BadAnswer)
    ) -> None:  # fmt: skip
        self._url = url
        self._timeout = timeout
        self._broken = broken

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, TimeoutError):
            raise no_answer(self._url, self._timeout) from error
        if isinstance(error, self._broken):
            raise lost(self._url, error) from error


class OfHttpx:
    """As `OfConnection`, around what httpx2 does."""

    __slots__ = ("_timeout", "_url")

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        import httpx2

        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            raise not_connected(self._url, error) from error
        if isinstance(error, httpx2.TimeoutException):
            raise no_answer(self._url, self._timeout) from error
        if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL):
            raise lost(self._url, error) from error


def _shown(url: str) -> str:
    """Without the query: it may hold a signature."""
    return url.partition("?")[0]
