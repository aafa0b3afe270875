"""What is tried again and what never is; what an answer that is none becomes."""

from __future__ import annotations

import pickle
import socket

import pytest

from boxwood import (
    Boxwood,
    BoxwoodError,
    Conflict,
    ConnectionFailed,
    FileMissing,
    NotFound,
    RateLimited,
    ServerError,
    Timeout,
    Unauthorized,
    Unavailable,
)
from boxwood.client.errors import BY_CODE, error_from
from unit.client.stub import KEY, RUN, VM, VM_ID, StubServer, error

FULL = (503, error("capacity_unavailable", "full", retry_after_seconds=1, recovery={"work": "not_started"}))
BUSY = (503, error("unavailable", "starting"))
RUNS = f"POST /v1/vms/{VM_ID}/runs"
GET = f"GET /v1/vms/{VM_ID}"


@pytest.fixture
def box(server: StubServer):
    server.script(GET, (200, VM))
    with Boxwood(server.url, KEY) as client:
        yield client


def test_a_get_is_tried_four_times(server: StubServer, box: Boxwood, quick: list[float]) -> None:
    server.script(GET, BUSY)
    with pytest.raises(Unavailable, match="starting"):
        box.get(VM_ID)
    assert len(server.requests) == 4
    assert [round(pause, 1) for pause in quick] == pytest.approx([0.2, 0.4, 0.8], abs=0.11)


def test_a_get_gets_over_a_pause(server: StubServer, box: Boxwood, quick: list[float]) -> None:
    server.script(GET, BUSY, (502, b"bad gateway"), (200, VM))
    assert box.get(VM_ID).id == VM_ID


def test_a_fork_is_repeated_under_the_same_key(server: StubServer, box: Boxwood, quick: list[float]) -> None:
    server.script("POST /v1/fork", BUSY, (0, None), (200, VM))
    assert box.fork().id == VM_ID
    assert len(server.requests) == 3
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_a_run_is_never_repeated_without_proof(server: StubServer, box: Boxwood, quick: list[float]) -> None:
    vm = box.get(VM_ID)
    unknown = (503, error("unavailable", recovery={"work": "unknown"}))
    for answer in (BUSY, (500, error("internal")), (0, None), unknown):
        server.script(RUNS, answer)
        before = len(server.requests)
        with pytest.raises(BoxwoodError):
            vm.run("make")
        assert len(server.requests) == before + 1
    assert not quick


def test_a_run_is_repeated_when_nothing_was_started(server: StubServer, box: Boxwood, quick: list[float]) -> None:
    server.script(RUNS, FULL, (200, RUN))
    assert box.get(VM_ID).run("make").ok
    assert 1.0 <= quick[0] <= 1.1


def test_a_run_with_a_key_is_repeated(server: StubServer, box: Boxwood, quick: list[float]) -> None:
    server.script(RUNS, (0, None), BUSY, (200, RUN))
    assert box.get(VM_ID).run("make", idempotency_key="k").ok


def test_what_the_server_asks_for_is_bounded(server: StubServer, box: Boxwood, quick: list[float]) -> None:
    server.script(GET, (429, error("rate_limited", retry_after_seconds=4_000_000_000)), (200, VM))
    box.get(VM_ID)
    assert 10 <= quick[0] <= 10.1


def test_an_exhausted_quota_is_final(server: StubServer, box: Boxwood, quick: list[float]) -> None:
    server.script(GET, (429, error("quota_exceeded", recovery={"work": "not_started"})))
    with pytest.raises(RateLimited):
        box.get(VM_ID)
    assert not quick


def test_no_retries_when_none_are_wanted(server: StubServer, quick: list[float]) -> None:
    server.script(GET, BUSY)
    with Boxwood(server.url, KEY, retries=0) as box, pytest.raises(Unavailable):
        box.get(VM_ID)
    assert len(server.requests) == 1


def test_nobody_listens(quick: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Boxwood(url, KEY) as box, pytest.raises(ConnectionFailed, match="boxwood up") as caught:
            box.fork()
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.code == "not_connected"


def test_no_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Boxwood(url, KEY, timeout=0.05) as box, pytest.raises(Timeout) as caught:
            box.delete(VM_ID)
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((200, b"<html>hello</html>"), ServerError),
        ((200, b"[]"), ServerError),
        ((200, {"name": "no id"}), ServerError),
        ((200, b"\xff\xfe"), ServerError),
        ((307, b""), ServerError),
        ((206, VM), ServerError),
        ((401, b"no"), Unauthorized),
        ((404, {"detail": "x"}), NotFound),
        ((418, b"teapot"), BoxwoodError),
        ((200, error("not_found")), NotFound),
    ],
)
def test_an_answer_that_is_not_of_the_contract(server: StubServer, box: Boxwood, answer, kind, quick) -> None:
    server.script(GET, answer)
    with pytest.raises(kind):
        box.get(VM_ID)
    assert len(server.requests) == 1


def test_every_code_of_the_catalogue_has_its_class() -> None:
    for code, kind in BY_CODE.items():
        made = error_from({"code": code, "message": "m", "request_id": "q", "details": None, "recovery": None}, 400)
        assert type(made) is kind
        assert (made.code, str(made), made.request_id, made.details) == (code, "m", "q", {})
    assert type(error_from({"code": "from_the_future", "message": "m"}, 400)) is BoxwoodError
    assert type(error_from({"code": "from_the_future"}, 500)) is ServerError


def test_errors_survive_pickling() -> None:
    made = error_from({"code": "not_found", "message": "m", "details": {"resource": "file"}}, 404)
    again = pickle.loads(pickle.dumps(made))
    assert isinstance(again, FileMissing)
    assert (str(again), again.code, again.resource, again.recovery) == ("m", "not_found", "file", {})
    assert isinstance(error_from({"code": "resource_busy", "message": "m"}, 409), Conflict)
