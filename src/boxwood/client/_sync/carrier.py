# Made from ../_async/carrier.py by tools/unasync.py: change that one.
"""Who carries a request: our own connections for plain http, httpx2 for https."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from boxwood.client._sync.connection import Connection
from boxwood.client._sync.pause import Semaphore
from boxwood.client.failures import OfConnection, OfHttpx, not_connected
from boxwood.client.http1 import LAST, Asked, BadAnswer, Origin, Reply, framed, head, request

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT = 10.0  # seconds
IDLE_LIMIT = 4.0  # seconds; a server may close after five, and a request that crosses this is lost
POOL = 256  # connections at once; further requests wait for one of them


class Carrier(Protocol):
    """Carries requests to one server."""

    def send(self, asked: Asked) -> tuple[int, bytes]:
        """Status and body of the answer; redirects are answers.

        :raises ConnectionFailed, Timeout: there was none.
        """

    def deliver(self, asked: Asked, pieces: Iterator[bytes], length: int | None) -> tuple[int, bytes]:
        """As `send`, with a body that comes in pieces; `length`: of all of them, if that is known.

        :raises ConnectionFailed, Timeout: there was no answer.
        """

    def stream(self, asked: Asked) -> Answer:
        """An answer that is read bit by bit; whoever has it closes it.

        :raises ConnectionFailed, Timeout: there was none.
        """

    def close(self) -> None: ...


class Answer(Protocol):
    """An answer whose body comes bit by bit."""

    status: int
    media_type: str

    @property
    def headers(self) -> Mapping[str, str]:
        """By their names in lower case."""

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

    def send(self, asked: Asked) -> tuple[int, bytes]:
        data = request(asked, self._origin)
        with self._free:
            connection = self._connection()
            with OfConnection(asked.url, asked.timeout):
                reply = connection.exchange(data, asked.timeout)
            self._keep(connection)
        return reply.status, reply.body

    def deliver(self, asked: Asked, pieces: Iterator[bytes], length: int | None) -> tuple[int, bytes]:
        begin = head(asked, self._origin, length)
        body = pieces if length is not None else _chunked(pieces)
        with self._free:
            connection = self._connection()
            broken = ConnectionError, BadAnswer  # others are of whoever reads the pieces
            with OfConnection(asked.url, asked.timeout, broken):
                reply = connection.deliver(begin, body, asked.timeout)
            self._keep(connection)
        return reply.status, reply.body

    def stream(self, asked: Asked) -> Answer:
        data = request(asked, self._origin)
        self._free.acquire()
        try:
            connection = self._connection()
            with OfConnection(asked.url, asked.timeout):
                reply = connection.begin(data, asked.timeout)
        except BaseException:
            self._free.release()
            raise
        return PlainAnswer(self, connection, reply, asked)

    def give_back(self, connection: Connection, whole: bool) -> None:
        """The end of an answer that was read bit by bit, `whole` or not."""
        self._free.release()
        if whole:
            self._keep(connection)
        else:
            connection.close()

    def _keep(self, connection: Connection) -> None:
        """For the next request, if it can carry one."""
        if connection.usable:
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
            raise not_connected(f"http://{self._origin.header.decode()}", error) from error

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


class PlainAnswer:
    def __init__(
        self, carrier: PlainCarrier, connection: Connection, reply: Reply, asked: Asked
    ) -> None:  # fmt: skip
        self.status = reply.status
        self.media_type = reply.media_type
        self.headers = reply.headers
        self._carrier = carrier
        self._connection = connection
        self._asked = asked
        self._whole = self._closed = False

    def more(self) -> bytes:
        with OfConnection(self._asked.url, self._asked.timeout):
            data = self._connection.more(self._asked.timeout)
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

    def send(self, asked: Asked) -> tuple[int, bytes]:
        return self._exchange(asked, self._request(asked, asked.body))

    def deliver(self, asked: Asked, pieces: Iterator[bytes], length: int | None) -> tuple[int, bytes]:
        framing = {} if length is None else {"content-length": str(length)}
        asked = asked._replace(headers={**asked.headers, **framing})
        return self._exchange(asked, self._request(asked, pieces))

    def stream(self, asked: Asked) -> Answer:
        made = self._request(asked, asked.body)
        with OfHttpx(asked.url, asked.timeout):
            answer = self._http.send(made, stream=True)
        return SecureAnswer(answer, asked)

    def _exchange(self, asked: Asked, made: httpx2.Request) -> tuple[int, bytes]:
        with OfHttpx(asked.url, asked.timeout):
            answer = self._http.send(made)
        return answer.status_code, answer.content

    def _request(self, asked: Asked, body: bytes | Iterator[bytes] | None) -> httpx2.Request:
        import httpx2

        patience = httpx2.Timeout(asked.timeout, connect=CONNECT_TIMEOUT, pool=None)
        with OfHttpx(asked.url, asked.timeout):
            return self._http.build_request(
                asked.method, asked.url, content=body, headers=dict(asked.headers), timeout=patience
            )

    def close(self) -> None:
        self._http.close()


class SecureAnswer:
    def __init__(self, answer: httpx2.Response, asked: Asked) -> None:
        self.status = answer.status_code
        self.media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        self.headers = answer.headers
        self._answer = answer
        self._pieces = answer.iter_bytes()
        self._asked = asked

    def more(self) -> bytes:
        with OfHttpx(self._asked.url, self._asked.timeout):
            return next(self._pieces, b"")

    def close(self) -> None:
        self._answer.close()


def _chunked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for part in framed(piece):
            yield part
    yield LAST
