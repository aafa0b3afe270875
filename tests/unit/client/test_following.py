"""Runs as they happen, in both forms: events, and going on after breaks without loss or repetition."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from boxwood import (
    AsyncBoxwood,
    Boxwood,
    ConnectionFailed,
    NotFound,
    RunExited,
    RunOutput,
    RunStarted,
    ServerError,
    Unavailable,
)
from boxwood.client import events as client_events
from boxwood.client._async import following as async_following
from boxwood.client._sync import following as sync_following
from unit.client.stub import KEY, STARTED, Events, StubServer, error, event, exited, put_out, told
from unit.client.test_http1 import CHUNKED, answering

RUNS = "/v1/vms/n/runs"
EVENTS = f"{RUNS}/r1/events"
Follow = Callable[..., list[Any]]


def blocking(url: str, **members: Any) -> list[Any]:
    with Boxwood(url, KEY, timeout=5) as box:
        return list(box.vm("n").run_stream("x", **members))


def awaitable(url: str, **members: Any) -> list[Any]:
    async def go() -> list[Any]:
        async with AsyncBoxwood(url, KEY, timeout=5) as box:
            return [event async for event in box.vm("n").run_stream("x", **members)]

    return asyncio.run(go())


both = pytest.mark.parametrize("follow", [blocking, awaitable])


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """They take no time; the list holds how long they would have been."""
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(sync_following, "sleep", paused.append)
    monkeypatch.setattr(async_following, "sleep", sleep)
    return paused


@both
def test_what_happens_is_told_by_its_kind(server: StubServer, follow: Follow) -> None:
    euro = "€".encode()
    server.script(
        f"POST {RUNS}",
        (200, told(STARTED, put_out("stdout", b"a" + euro[:1]), put_out("stderr", b"\xff"),
                   put_out("stdout", euro[1:] + b"b\xc3", 2), exited(exit_code=3))),
    )  # fmt: skip
    started, *outputs, rest, ended = follow(server.url, cwd="/tmp")
    assert started == RunStarted("r1", "s1", started.started_at) and started.started_at is not None
    assert [(o.stream, o.data, o.text, o.offset) for o in outputs] == [
        ("stdout", b"a\xe2", "a", 0), ("stderr", b"\xff", "�", 0), ("stdout", b"\x82\xacb\xc3", "€b", 2),
    ]  # fmt: skip
    assert (rest.data, rest.text) == (b"", "�")
    assert isinstance(ended, RunExited) and (ended.exit_code, ended.state, ended.ok) == (3, "completed", False)
    asked = server.last
    assert asked.headers["accept"] == "text/event-stream" and asked.query == {"encoding": ["base64"]}
    assert asked.body == {"command": "x", "cwd": "/tmp"} and asked.headers["idempotency-key"].startswith("boxwood-")


@both
def test_after_a_break_it_goes_on_where_it_was(server: StubServer, follow: Follow, pauses: list[float]) -> None:
    broken = told(STARTED, put_out("stdout", b"one"), put_out("stderr", b"err"))
    stopping = told(
        STARTED, put_out("stdout", b"netwo", 1), event("error", **error("unavailable", "it stops")["error"])
    )
    server.script(f"POST {RUNS}", (200, broken))
    server.script(
        f"GET {EVENTS}", (503, error("unavailable")), (0, None), (200, stopping),
        (200, told(STARTED, put_out("stdout", b"three", 6), exited())),
    )  # fmt: skip
    started, *outputs, ended = follow(server.url)
    assert isinstance(started, RunStarted) and isinstance(ended, RunExited)
    assert [(o.stream, o.data) for o in outputs] == [
        ("stdout", b"one"), ("stderr", b"err"), ("stdout", b"two"), ("stdout", b"three"),
    ]  # fmt: skip
    offsets = [request.query["offset"] for request in server.requests if request.method == "GET"]
    assert offsets == [["3.3"], ["3.3"], ["3.3"], ["6.3"]]
    assert pauses == [0.1, 0.2, 0.4, 0.1]


@both
def test_what_was_never_heard_of_is_asked_for_again_with_its_key(server: StubServer, follow: Follow) -> None:
    server.script(f"POST {RUNS}", (0, None), (200, told(STARTED, exited())))
    assert len(follow(server.url)) == 2
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


@both
def test_a_connection_that_dies_in_the_midst(follow: Follow) -> None:
    head = CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-type: text/event-stream\r\n\r\n")

    def chunk(data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data)

    first = told(STARTED, put_out("stdout", b"abc"))

    def byte_by_byte(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head)
        for at in range(len(first)):
            connection.sendall(chunk(first[at : at + 1]))
        connection.sendall(b"ff\r\nevent: stdout\nda")

    last = head + chunk(b": still there\n\n") + chunk(told(put_out("stdout", b"def", 3), exited())) + b"0\r\n\r\n"
    with answering(byte_by_byte, last) as (url, asked):
        events = follow(url)
    assert b"".join(e.data for e in events if isinstance(e, RunOutput)) == b"abcdef"
    assert asked[1].startswith(b"GET /v1/vms/n/runs/r1/events?offset=3.0&encoding=base64 ")


@both
def test_patience_ends(server: StubServer, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sync_following, async_following):
        monkeypatch.setattr(module, "PATIENCE", -1.0)
    server.script(f"POST {RUNS}", (200, STARTED))
    with pytest.raises(ConnectionFailed, match="goes on"):
        follow(server.url)


@both
@pytest.mark.parametrize(
    ("answer", "raised"),
    [
        ((404, error("not_found", details={"resource": "vm"})), NotFound),
        ((200, {"run_id": "r1"}), ServerError),
        ((200, told(STARTED, event("error", **error("unrecoverable", "lost")["error"]))), Exception),
        ((200, told(STARTED, put_out("stdout", b"x", 7))), ServerError),
        ((200, Events(b"event: started\ndata: {\n\n")), ServerError),
        ((503, error("unavailable", recovery={"work": "continuing", "context": {"vm_id": "v"}})), Unavailable),
    ],
)
def test_what_is_final_is_raised(server: StubServer, follow: Follow, answer: Any, raised: type) -> None:
    server.script(f"POST {RUNS}", answer)
    with pytest.raises(raised):
        follow(server.url)
    assert len(server.requests) == 1


def test_an_event_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_events, "EVENT_BYTES", 100)
    parser = client_events.Parser()
    assert list(parser.feed(b"x" * 100)) == []
    with pytest.raises(ServerError):
        list(parser.feed(b"x"))


def test_pending_first(server: StubServer) -> None:
    pending = Events(STARTED.replace(b"event: started", b"event: pending"))
    server.script(f"POST {RUNS}", (200, told(pending)))
    server.script(f"GET {EVENTS}", (200, pending), (200, told(pending, STARTED, exited())))
    first, second, ended = blocking(server.url)
    assert (first.pending, second.pending, ended.ok) == (True, False, True)


def test_a_run_that_is_known_is_told_from_its_beginning(server: StubServer) -> None:
    server.script(f"POST {RUNS}", (202, {"run_id": "r1", "session_id": "s1", "state": "running"}))
    server.script(f"GET {EVENTS}", (200, told(STARTED, put_out("stdout", b"x"), exited())))

    async def go() -> list[Any]:
        async with AsyncBoxwood(server.url, KEY) as box:
            run = await box.vm("n").run("x", background=True)
            return [event async for event in run.events()]

    assert [type(event) for event in asyncio.run(go())] == [RunStarted, RunOutput, RunExited]
    assert server.last.query == {"offset": ["0"], "encoding": ["base64"]}


def test_whoever_stops_listening_leaves_a_usable_client(server: StubServer) -> None:
    server.script(f"POST {RUNS}", (200, told(STARTED, put_out("stdout", b"x"), exited())))
    server.script("GET /v1/whoami", (200, {"org_id": "o", "org_name": "O"}))
    with Boxwood(server.url, KEY) as box:
        for _ in range(3):
            next(iter(box.vm("n").run_stream("x")))
        assert box.whoami().org_id == "o"

    async def go() -> str:
        async with AsyncBoxwood(server.url, KEY) as box:
            events = box.vm("n").run_stream("x")
            await anext(events)
            await events.aclose()
            return (await box.whoami()).org_id

    assert asyncio.run(go()) == "o"


def test_connections_are_used_again_after_a_whole_stream(server: StubServer) -> None:
    server.script(f"POST {RUNS}", (200, told(STARTED, exited())))
    with Boxwood(server.url, KEY) as box:
        for _ in range(3):
            assert len(list(box.vm("n").run_stream("x"))) == 2
    assert len(server.connections) == 1
