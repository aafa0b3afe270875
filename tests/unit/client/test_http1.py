"""The SDK's own HTTP: answers of every shape, servers that break off, connections that are used again."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from boxwood import AsyncBoxwood, Boxwood, ConnectionFailed, Identity, PayloadTooLarge, Timeout, Unavailable
from boxwood.client._async.connection import AsyncConnection
from unit.client.stub import KEY, RUN, StubServer

WHO = b'{"org_id": "o", "org_name": "O"}'
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(WHO) + WHO


@contextmanager
def answering(*answers: bytes | Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives these answers, each on a connection of its own that it closes, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    data = connection.recv(65536)
                    asked.append(data)
                    if callable(answer):
                        answer(connection)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        thread.join()


def blocking(url: str) -> Identity:
    with Boxwood(url, KEY, retries=0, timeout=5) as box:
        return box.whoami()


def awaitable(url: str) -> Identity:
    async def go() -> Identity:
        async with AsyncBoxwood(url, KEY, retries=0, timeout=5) as box:
            return await box.whoami()

    return asyncio.run(go())


both = pytest.mark.parametrize("ask", [blocking, awaitable])


@both
@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
        CHUNKED + b"8\r\n" + WHO[:8] + b"\r\n%x\r\n" % len(WHO[8:]) + WHO[8:] + b"\r\n0\r\n\r\n",
        HEAD + b"connection: close\r\n\r\n" + WHO,
        b"HTTP/1.0 200 OK\r\n\r\n" + WHO,
    ],
)
def test_answers_of_every_shape(ask: Callable[[str], Identity], answer: bytes) -> None:
    with answering(answer) as (url, asked):
        assert ask(url).org_id == "o"
    head = asked[0].decode().split("\r\n")
    assert head[0] == "GET /v1/whoami HTTP/1.1"
    assert f"host: {url.removeprefix('http://')}" in head
    assert f"authorization: Bearer {KEY}" in head


@both
def test_an_answer_that_comes_byte_by_byte(ask: Callable[[str], Identity]) -> None:
    def slowly(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(WHOLE)):
            connection.sendall(WHOLE[at : at + 1])

    with answering(slowly) as (url, _):
        assert ask(url).org_name == "O"


@both
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        WHOLE[:-1],
        CHUNKED + b"8\r\nabc",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        HEAD + b"content-length: x\r\n\r\n",
        WHOLE + WHOLE,
        HEAD + b"x: " + b"y" * 400_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ],
)
def test_what_is_no_whole_answer_is_an_error(ask: Callable[[str], Identity], answer: bytes) -> None:
    with answering(answer) as (url, _), pytest.raises(ConnectionFailed) as caught:
        ask(url)
    assert caught.value.code == "connection_lost"


@both
def test_nothing_within_the_time(ask: Callable[[str], Identity], monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    with answering(lambda connection: answered.wait() and None) as (url, _):
        monkeypatch.setattr("boxwood.client.answers.Retry.delay", lambda *_: None)
        with pytest.raises(Timeout):
            ask_quickly(ask, url)
        answered.set()


def ask_quickly(ask: Callable[[str], Identity], url: str) -> None:
    if ask is blocking:
        with Boxwood(url, KEY, timeout=0.05) as box:
            box.whoami()
        return

    async def go() -> None:
        async with AsyncBoxwood(url, KEY, timeout=0.05) as box:
            await box.whoami()

    asyncio.run(go())


@pytest.mark.parametrize("options", [b"204", b"404"])
def test_a_refusal_in_the_middle_of_an_upload_is_heard(options: bytes) -> None:
    """Of a server that takes files as bodies, and of one that does not."""

    def refuse(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 %b X\r\ncontent-length: 0\r\n\r\n" % options)
        connection.recv(1)
        body = b'{"error": {"code": "payload_too_large", "message": "too much"}}'
        connection.sendall(b"HTTP/1.1 413 X\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        while connection.recv(1 << 20):  # take what comes, so that the refusal is not lost to a reset
            pass

    with answering(refuse) as (url, _), Boxwood(url, KEY) as box, pytest.raises(PayloadTooLarge):
        box.vm("n").write_file("/a", bytes(40 << 20))


def test_connections_are_used_again_until_the_server_closes_them(server: StubServer) -> None:
    ports = []

    def who(request: object) -> tuple[int, bytes]:
        return 200, WHO

    server.script("GET /v1/whoami", who)
    with Boxwood(server.url, KEY) as box:
        for _ in range(3):
            box.whoami()
            ports.append(len(server.connections))
        assert ports == [1, 1, 1]
        server.hang_up()
        box.whoami()
        assert len(server.connections) == 2


def test_many_threads_at_once(server: StubServer) -> None:
    server.script("POST /v1/vms/n/runs", lambda request: (200, RUN | {"run_id": request.body["command"]}))
    with Boxwood(server.url, KEY) as box:
        got: dict[str, str | None] = {}

        def work(number: int) -> None:
            for turn in range(10):
                got[f"{number}.{turn}"] = box.vm("n").run(f"{number}.{turn}").run_id

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 160
    assert all(asked == said for asked, said in got.items())


def test_a_cancelled_task_leaves_no_answer_for_the_next_one(server: StubServer) -> None:
    held = threading.Event()

    def slow(request: object) -> tuple[int, object]:
        held.wait()
        return 200, RUN | {"run_id": "late"}

    server.script("POST /v1/vms/n/runs", slow, (200, RUN))

    async def go() -> str | None:
        async with AsyncBoxwood(server.url, KEY) as box:
            task = asyncio.create_task(box.vm("n").run("slow"))
            while not server.requests:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            held.set()
            return (await box.vm("n").run("next")).run_id

    assert asyncio.run(go()) == "r1"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the first loop is gone and its connection with it
def test_a_client_outlives_an_event_loop(server: StubServer) -> None:
    server.script("GET /v1/whoami", (200, WHO))
    box = AsyncBoxwood(server.url, KEY)

    async def go() -> str:
        return (await box.whoami()).org_id

    assert asyncio.run(go()) == "o"

    async def again() -> None:
        assert await go() == "o"
        await box.aclose()

    asyncio.run(again())
    gc.collect()  # whatever the first loop left complains here, not in another test


def test_how_files_go_is_asked_again_if_nobody_could_say() -> None:
    """A server that has no room for a moment is not taken for one that takes files in chunks alone."""
    busy = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    served = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"
    with answering(busy, served, WHOLE) as (url, asked), Boxwood(url, KEY, retries=0, timeout=5) as box:
        with pytest.raises(Unavailable):
            box.vm("n").read_file("/a")
        assert box.vm("n").read_file("/a") == WHO
    assert [one.split(b" ")[0] for one in asked] == [b"OPTIONS", b"OPTIONS", b"GET"]


class Line(asyncio.Transport):
    """Of a connection without a network."""

    closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def test_a_connection_that_said_more_than_was_asked_is_not_used_again() -> None:
    """Of an answer that is read bit by bit: what follows its end would answer the next request."""

    async def go() -> tuple[bytes, bool]:
        connection = AsyncConnection()
        connection.connection_made(Line())
        begun = asyncio.create_task(connection.begin(b"", 5))
        await asyncio.sleep(0)
        connection.data_received(WHOLE)
        await begun
        connection.data_received(WHOLE)
        return await connection.more(5), connection.usable

    assert asyncio.run(go()) == (WHO, False)
