"""Who carries a request: our own connections for plain http, httpx2 for https."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, NoReturn, Protocol

from boxwood.client._async.connection import AsyncConnection
from boxwood.client._async.pause import Semaphore
from boxwood.client.answers import LOST, NOT_CONNECTED
from boxwood.client.errors import ConnectionFailed, Timeout
from boxwood.client.http1 import BadAnswer, Origin, Reply, request, target

if TYPE_CHECKING:
    from httpx2 import Response

CONNECT_TIMEOUT = 10.0  # seconds
IDLE_LIMIT = 4.0  # seconds; a server may close after five, and a request that crosses this is lost
POOL = 256  # connections at once; further requests wait for one of them


class AsyncCarrier(Protocol):
    """Carries requests to one server."""

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: float
    ) -> tuple[int, bytes]:
        """Status and body of the answer; redirects are answers.

        :raises ConnectionFailed, Timeout: there was none.
        """

    async def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> AsyncAnswer:
        """An answer that is read bit by bit; whoever has it closes it. `timeout`: for each bit.

        :raises ConnectionFailed, Timeout: there was none.
        """

    async def aclose(self) -> None: ...


class AsyncAnswer(Protocol):
    """An answer whose body comes bit by bit."""

    status: int
    media_type: str

    async def more(self) -> bytes:
        """What comes next; nothing: that was all.

        :raises ConnectionFailed, Timeout: it has broken off.
        """

    async def aclose(self) -> None: ...


def carrier_for(url: str) -> AsyncCarrier:
    return AsyncSecureCarrier() if url.startswith("https:") else AsyncPlainCarrier(Origin.of(url))


class AsyncPlainCarrier:
    """Plain http over kept connections. No proxies: a local server's key stays on this machine."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._idle: list[tuple[float, AsyncConnection]] = []
        self._free = Semaphore(POOL)

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: float
    ) -> tuple[int, bytes]:
        data = request(method, target(url), self._origin, headers, body)
        async with self._free:
            connection = await self._connection()
            try:
                reply = await connection.exchange(data, timeout)
            except TimeoutError as error:
                no_answer(url, timeout, error)
            except (OSError, BadAnswer) as error:
                lost(url, error)
            if connection.usable:
                self._idle.append((monotonic(), connection))
            else:
                await connection.aclose()
        return reply.status, reply.body

    async def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> AsyncAnswer:
        data = request(method, target(url), self._origin, headers, body)
        await self._free.acquire()
        try:
            connection = await self._connection()
            try:
                reply = await connection.begin(data, timeout)
            except TimeoutError as error:
                no_answer(url, timeout, error)
            except (OSError, BadAnswer) as error:
                lost(url, error)
        except BaseException:
            self._free.release()
            raise
        return AsyncPlainAnswer(self, connection, reply, url, timeout)

    async def give_back(self, connection: AsyncConnection, whole: bool) -> None:
        """The end of an answer that was read bit by bit, `whole` or not."""
        self._free.release()
        if whole and connection.usable:
            self._idle.append((monotonic(), connection))
        else:
            await connection.aclose()

    async def _connection(self) -> AsyncConnection:
        while self._idle:
            since, connection = self._idle.pop()
            if monotonic() - since < IDLE_LIMIT and connection.usable:
                return connection
            await connection.aclose()
        try:
            return await AsyncConnection.open(self._origin, CONNECT_TIMEOUT)
        except OSError as error:
            not_connected(f"http://{self._origin.header.decode()}", error)

    async def aclose(self) -> None:
        while self._idle:
            await self._idle.pop()[1].aclose()


class AsyncPlainAnswer:
    def __init__(
        self,
        carrier: AsyncPlainCarrier,
        connection: AsyncConnection,
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

    async def more(self) -> bytes:
        try:
            data = await self._connection.more(self._timeout)
        except TimeoutError as error:
            no_answer(self._url, self._timeout, error)
        except (OSError, BadAnswer) as error:
            lost(self._url, error)
        self._whole = not data
        return data

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._carrier.give_back(self._connection, self._whole)


class AsyncSecureCarrier:
    """https, proxies of the environment included."""

    def __init__(self) -> None:
        import httpx2

        limits = httpx2.Limits(max_connections=POOL, max_keepalive_connections=POOL, keepalive_expiry=IDLE_LIMIT)
        self._http = httpx2.AsyncClient(limits=limits, follow_redirects=False)

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: float
    ) -> tuple[int, bytes]:
        import httpx2

        patience = httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT, pool=None)
        try:
            answer = await self._http.request(method, url, content=body, headers=dict(headers), timeout=patience)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            not_connected(url, error)
        except httpx2.TimeoutException as error:
            no_answer(url, timeout, error)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            lost(url, error)
        return answer.status_code, answer.content

    async def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> AsyncAnswer:
        import httpx2

        patience = httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT, pool=None)
        asked = self._http.build_request(method, url, content=body, headers=dict(headers), timeout=patience)
        try:
            answer = await self._http.send(asked, stream=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            not_connected(url, error)
        except httpx2.TimeoutException as error:
            no_answer(url, timeout, error)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            lost(url, error)
        return AsyncSecureAnswer(answer, url, timeout)

    async def aclose(self) -> None:
        await self._http.aclose()


class AsyncSecureAnswer:
    def __init__(self, answer: Response, url: str, timeout: float) -> None:
        self.status = answer.status_code
        self.media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._answer = answer
        self._pieces = answer.aiter_bytes()
        self._url = url
        self._timeout = timeout

    async def more(self) -> bytes:
        import httpx2

        try:
            return await anext(self._pieces, b"")
        except httpx2.TimeoutException as error:
            no_answer(self._url, self._timeout, error)
        except httpx2.HTTPError as error:
            lost(self._url, error)

    async def aclose(self) -> None:
        await self._answer.aclose()


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
