# Made from ../_async/carrier.py by tools/unasync.py: change that one.
"""Who carries a request: our own connections for plain http, httpx2 for https."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, NoReturn, Protocol

from boxwood.client._sync.connection import Connection
from boxwood.client._sync.pause import Semaphore
from boxwood.client.answers import LOST, NOT_CONNECTED
from boxwood.client.errors import ConnectionFailed, Timeout
from boxwood.client.http1 import BadAnswer, Origin, Reply, request, target

if TYPE_CHECKING:
    from httpx2 import Response

CONNECT_TIMEOUT = 10.0  # seconds
IDLE_LIMIT = 4.0  # seconds; a server may close after five, and a request that crosses this is lost
POOL = 256  # connections at once; further requests wait for one of them


class Carrier(Protocol):
    """Carries requests to one server."""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: float
    ) -> tuple[int, bytes]:
        """Status and body of the answer; redirects are answers.

        :raises ConnectionFailed, Timeout: there was none.
        """

    def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> Answer:
        """An answer that is read bit by bit; whoever has it closes it. `timeout`: for each bit.

        :raises ConnectionFailed, Timeout: there was none.
        """

    def close(self) -> None: ...


class Answer(Protocol):
    """An answer whose body comes bit by bit."""

    status: int
    media_type: str

    def more(self) -> bytes:
        """What comes next; nothing: that was all.

        :raises ConnectionFailed, Timeout: it has broken off.
        """

    def close(self) -> None: ...


def carrier_for(url: str) -> Carrier:
    return SecureCarrier() if url.startswith("https:") else PlainCarrier(Origin.of(url))


class PlainCarrier:
    """Plain http over kept connections. No proxies: a local server's key stays on this machine."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._idle: list[tuple[float, Connection]] = []
        self._free = Semaphore(POOL)

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: float
    ) -> tuple[int, bytes]:
        data = request(method, target(url), self._origin, headers, body)
        with self._free:
            connection = self._connection()
            try:
                reply = connection.exchange(data, timeout)
            except TimeoutError as error:
                no_answer(url, timeout, error)
            except (OSError, BadAnswer) as error:
                lost(url, error)
            if connection.usable:
                self._idle.append((monotonic(), connection))
            else:
                connection.close()
        return reply.status, reply.body

    def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> Answer:
        data = request(method, target(url), self._origin, headers, body)
        self._free.acquire()
        try:
            connection = self._connection()
            try:
                reply = connection.begin(data, timeout)
            except TimeoutError as error:
                no_answer(url, timeout, error)
            except (OSError, BadAnswer) as error:
                lost(url, error)
        except BaseException:
            self._free.release()
            raise
        return PlainAnswer(self, connection, reply, url, timeout)

    def give_back(self, connection: Connection, whole: bool) -> None:
        """The end of an answer that was read bit by bit, `whole` or not."""
        self._free.release()
        if whole and connection.usable:
            self._idle.append((monotonic(), connection))
        else:
            connection.close()

    def _connection(self) -> Connection:
        while self._idle:
            since, connection = self._idle.pop()
            if monotonic() - since < IDLE_LIMIT and connection.usable:
                return connection
            connection.close()
        try:
            return Connection.open(self._origin, CONNECT_TIMEOUT)
        except OSError as error:
            not_connected(f"http://{self._origin.header.decode()}", error)

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


class PlainAnswer:
    def __init__(
        self,
        carrier: PlainCarrier,
        connection: Connection,
        reply: Reply,
        url: str,
        timeout: float,
    ) -> None:
        self.status = reply.status
        self.media_type = reply.media_type
        self._carrier = carrier
        self._connection = connection
        self._url = url
        self._timeout = timeout
        self._whole = self._closed = False

    def more(self) -> bytes:
        try:
            data = self._connection.more(self._timeout)
        except TimeoutError as error:
            no_answer(self._url, self._timeout, error)
        except (OSError, BadAnswer) as error:
            lost(self._url, error)
        self._whole = not data
        return data

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._carrier.give_back(self._connection, self._whole)


class SecureCarrier:
    """https, proxies of the environment included."""

    def __init__(self) -> None:
        import httpx2

        limits = httpx2.Limits(max_connections=POOL, max_keepalive_connections=POOL, keepalive_expiry=IDLE_LIMIT)
        self._http = httpx2.Client(limits=limits, follow_redirects=False)

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: float
    ) -> tuple[int, bytes]:
        import httpx2

        patience = httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT, pool=None)
        try:
            answer = self._http.request(method, url, content=body, headers=dict(headers), timeout=patience)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            not_connected(url, error)
        except httpx2.TimeoutException as error:
            no_answer(url, timeout, error)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            lost(url, error)
        return answer.status_code, answer.content

    def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> Answer:
        import httpx2

        patience = httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT, pool=None)
        asked = self._http.build_request(method, url, content=body, headers=dict(headers), timeout=patience)
        try:
            answer = self._http.send(asked, stream=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            not_connected(url, error)
        except httpx2.TimeoutException as error:
            no_answer(url, timeout, error)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            lost(url, error)
        return SecureAnswer(answer, url, timeout)

    def close(self) -> None:
        self._http.close()


class SecureAnswer:
    def __init__(self, answer: Response, url: str, timeout: float) -> None:
        self.status = answer.status_code
        self.media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._answer = answer
        self._pieces = answer.iter_bytes()
        self._url = url
        self._timeout = timeout

    def more(self) -> bytes:
        import httpx2

        try:
            return next(self._pieces, b"")
        except httpx2.TimeoutException as error:
            no_answer(self._url, self._timeout, error)
        except httpx2.HTTPError as error:
            lost(self._url, error)

    def close(self) -> None:
        self._answer.close()


def not_connected(url: str, error: Exception) -> NoReturn:
    text = f"cannot connect to {_shown(url)}: {str(error) or 'no answer'}; `boxwood up` starts a server here"
    raise ConnectionFailed(NOT_CONNECTED, text) from error


def no_answer(url: str, timeout: float, error: Exception) -> NoReturn:
    text = f"no answer from {_shown(url)} within {timeout:g} s; outcome unknown"
    raise Timeout("timeout", text) from error


def lost(url: str, error: Exception) -> NoReturn:
    why = str(error) or type(error).__name__
    text = f"lost the connection to {_shown(url)} before the answer: {why}; outcome unknown"
    raise ConnectionFailed(LOST, text) from error


def _shown(url: str) -> str:
    """Without the query: it may hold a signature."""
    return url.partition("?")[0]
