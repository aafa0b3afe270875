"""Keys, and how much whoever has one may ask for (attacks.md, item 32)."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

import kube
from boxwood.core import keys
from boxwood.core.config import Config, ConfigError
from boxwood.core.core import Core
from boxwood.server.rate import Bodies, Rates
from boxwood.server.routes import DIALECTS
from fakes import fake_engine, release
from together import together

# Keys that somebody wrote into DATA/root.key: what is wrong with each.
WEAK = {
    "": "0 characters", "\n": "0 characters", "secret": "6 characters", "x" * 31: "31 characters", "a" * 40: "placeholder",
    "changeme" * 5: "placeholder", "your-api-key-goes-here-0123456789ab": "placeholder",
    "bxw_example_0123456789abcdefghijklmnop": "placeholder", "bxw_REPLACE_ME_0123456789abcdefghijkl": "placeholder",
    "with space 0123456789abcdefghijklmnop": "ASCII", "ünicode0123456789abcdefghijklmnopqrst": "ASCII",
    "\0" * 40: "ASCII", "0123456789abcdefghijklmnopqrst\r\nx: y": "ASCII", "x1" * 400: "800 characters",
}  # fmt: skip


async def opened(place: Path) -> Core:
    return await Core.open(Config(place, place / "images"), fake_engine.FakeEngine(fake_engine.Machine()))


@together(("key", "said"), WEAK.items())
async def test_a_first_key_that_can_be_guessed_is_refused(tmp_path, key, said):
    (tmp_path / "root.key").write_text(key)
    with pytest.raises(ConfigError, match=said) as refused:
        await opened(tmp_path)
    assert "root.key" in str(refused.value)
    assert not key.strip("\n\0") or key not in str(refused.value), "a key is never shown, not even a bad one"


async def test_a_first_key_of_ones_own(tmp_path):
    """The probe: a good one is taken as it is, and one that the server made is good."""
    (tmp_path / "root.key").write_text("Uk3vqk1W5mJpZ0xTn8aYc2RsLhBe7DgF\n")
    for name in ("", "made"):
        place = tmp_path / name
        core = await opened(place)
        key = (place / "root.key").read_text().strip()
        assert (await core.keys.authenticate(key)).role == "admin"
        await core.close()


async def test_keys_are_hashed_at_rest(api):
    """And in memory: what is looked up is the hash, whose bytes tell an attacker who times it nothing about the key."""
    made = (await api.ok("POST", "/api-keys", {"name": "x"}))["key"]
    await api.app.core._database.flush()
    for key in (made, api.key):
        for file in api.config.data.glob("boxwood.db*"):
            assert key.encode() not in file.read_bytes()
        held = repr([row for row, _ in api.app.core.keys._callers.values()])
        assert key not in held and key[: keys._SHOWN] in held


async def test_keys_are_compared_in_constant_time(api, monkeypatch):
    """Found by its hash, then compared whole; the operator's key itself is compared so, and never with ==."""
    compared: list[tuple[Any, Any]] = []
    real = hmac.compare_digest

    def compare(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    await api.ok("GET", "/whoami")
    assert compared and all(isinstance(one, bytes) and len(one) == 32 for one, _ in compared)
    compared.clear()
    await api.refused(400, "bad_request", "POST", "//boxwood/images", {"name": "x", "path": "relative"})
    assert (api.key, api.key) in compared


async def test_no_key_is_ever_logged(api, caplog):
    caplog.set_level(logging.DEBUG, "boxwood")
    made = (await api.ok("POST", "/api-keys", {"name": "x"}))["key"]
    for key in (made, made[:-1], made + "x"):
        await api("GET", "/vms/nothing", headers={"authorization": f"Bearer {key}"})
        await api("GET", f"/vms?cursor={key}", headers={"authorization": f"Bearer {key}"})
    assert made[10:] not in caplog.text and api.key[10:] not in caplog.text


STREAMS = {
    "watch": ("GET", "/k8s/apis/arl.infra.io/v1alpha1/warmpools", b"watch=1&timeoutSeconds=600", None),
    "events": ("POST", "/run/stream", b"", {"command": ["hang"]}),
    "answer that is waited for": ("POST", "/run", b"", {"command": ["hang"]}),
}


@pytest.mark.parametrize("stream", STREAMS)
async def test_a_key_that_is_revoked_ends_what_it_listens_to(api, stream):
    """As if its client had hung up: which it never does here."""
    method, path, query, body = STREAMS[stream]
    made = await api.ok("POST", "/api-keys", {"name": "x"})
    sent, started, said = [{"type": "http.request", "body": json.dumps(body or {}).encode()}], asyncio.Event(), []

    async def receive() -> Any:
        if sent:
            return sent.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        said.append(message)
        started.set()

    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {made['key']}".encode())]
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query, "scheme": "http",
        "headers": headers,
    }  # fmt: skip
    answering = asyncio.create_task(api.app(scope, receive, send))
    async with asyncio.timeout(30):
        if path == "/run":
            while not api.machine.called("start_run"):
                await asyncio.sleep(0.001)
        else:
            await started.wait()
        await api("DELETE", f"/api-keys/{(await api.ok('POST', '/api-keys'))['api_key_id']}")
        assert not answering.done(), "the end of another key is nothing to it"
        await api("DELETE", f"/api-keys/{made['api_key_id']}")
        await answering
    assert not [message for message in said if b"hang" in message.get("body", b"") and b"success" in message["body"]]
    assert api.app.rates._open == {} and not api.app._revoked


async def test_keys_are_bounded(api, monkeypatch):
    monkeypatch.setattr(keys, "KEYS_MOST", 3)
    made = [await api.ok("POST", "/api-keys") for _ in range(2)]
    error = await api.refused(409, "conflict", "POST", "/api-keys")
    assert "revoke some" in error["message"]
    await api("DELETE", f"/api-keys/{made[0]['api_key_id']}")
    await api.ok("POST", "/api-keys")


# How often


@pytest.fixture
async def slow(api) -> AsyncIterator[Any]:
    """Three requests at once, then one every thousand seconds."""
    api.app.rates = Rates(0.001, 3, 0)
    yield api


ASKED = {
    "": "/v1/whoami",
    "agentkernel": "/sandboxes",
    "arl-gateway": "/arl/v1/sessions",
    "arl-kubernetes": "/k8s/version",
}


def test_every_dialect_is_asked():
    assert set(ASKED) == {"", *(dialect.name for dialect in DIALECTS)}


@pytest.mark.parametrize("dialect", ASKED)
async def test_who_asks_too_often_is_told_in_his_protocols_shape(slow, stranger, dialect):
    headers = {"authorization": f"Bearer {slow.key}"}
    for _ in range(3):
        assert (await slow.http.get(ASKED[dialect], headers=headers)).status_code == 200
    before = len(slow.machine.calls)
    told = await slow.http.get(ASKED[dialect], headers=headers)
    shown = told.json()
    assert told.status_code == 429 and 1 <= int(told.headers["retry-after"]) <= 1000
    if dialect == "":
        error = await slow.refused(429, "rate_limited", "POST", "/fork", {"source_vm_name": "ubuntu"})
        assert error["recovery"] == {"work": "not_started"} and error["details"] == {"limiter": "arker"}
        await slow.refused(429, "rate_limited", "GET", "//api/v1/vms/list", agent="Python-urllib/3.9")
    elif dialect == "agentkernel":
        assert shown["success"] is False and "slower" in shown["error"]
    elif dialect == "arl-gateway":
        assert set(shown) == {"error"} and "slower" in shown["error"]
    else:
        kube.check(shown, 429)
    assert len(slow.machine.calls) == before, "nothing was done"
    other = await slow.http.get(ASKED[dialect], headers={"authorization": f"Bearer {stranger.key}"})
    assert other.status_code == 200, "nobody else is kept waiting"
    assert (await slow.http.get("/v1/health")).status_code == 200


async def test_no_body_is_read_of_who_asks_too_often(slow):
    for _ in range(3):
        await slow.ok("GET", "/whoami")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 1024

    told = await asyncio.wait_for(slow("POST", "/fork", content=endless()), 10)
    assert told.status_code == 429


async def test_the_operator_can_always_end_the_server(slow):
    for _ in range(5):
        await slow("GET", "/whoami")
    ended = asyncio.Event()
    slow.app.on_down = ended.set
    assert await slow.ok("POST", "//boxwood/down") == {"down": True}


async def test_so_many_at_once(api):
    api.app.rates = Rates(0, 1, 2)
    vm = await api.fork()
    waiting = [asyncio.create_task(api.run(vm, "hang", session_idx=idx)) for idx in range(2)]
    while sum(process.end is None for box in api.machine.boxes.values() for process in box.runs.values()) < 2:
        await asyncio.sleep(0.001)
    error = await api.refused(429, "rate_limited", "GET", "/whoami")
    assert error["retry_after_seconds"] == 1
    release(api.machine, vm)
    assert [run["exit_code"] for run in await asyncio.gather(*waiting)] == [0, 0]
    assert await api.ok("GET", "/whoami"), "who has been answered makes room"


async def test_who_hangs_up_makes_room(api):
    api.app.rates = Rates(0, 1, 1)
    for path in ("/nothing", "/vms/nothing", "/vms"):
        await api("GET", path)
        await api("POST", path, content=b"{")
    gone = asyncio.Event()
    sent = [{"type": "http.request", "body": b"", "more_body": True}]

    async def receive() -> Any:
        return sent.pop() if sent else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(f"there is nobody to answer: {message}")

    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {api.key}".encode())]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/fork", "raw_path": b"/v1/fork", "query_string": b"", "scheme": "http",
        "headers": headers,
    }  # fmt: skip
    await api.app(scope, receive, send)
    assert not gone.is_set() and api.app.rates._open == {}
    await api.ok("GET", "/whoami")


async def test_defaults_let_everybody_work(api):
    """Of a burst that no client sends by accident, none is refused; and what is set is what counts."""
    answers = await asyncio.gather(
        *(api.http.get("/v1/whoami", headers={"authorization": f"Bearer {api.key}"}) for _ in range(500))
    )
    assert {answer.status_code for answer in answers} == {200}
    config = Config(Path("/x"))
    assert (config.requests_per_second, config.requests_burst, config.requests_at_once) == (2000, 4000, 10_000)


async def test_a_race_for_the_last_places(api):
    """Many at once, of which five may: five there are, and the others are told that nothing was begun."""
    core = api.app.core
    core._admission._config = replace(core.config, vms_most=core._admission._vms + 5)
    answers = await asyncio.gather(*(api("POST", "/fork", {"source_vm_name": "ubuntu"}) for _ in range(40)))
    refused = [answer.json()["error"] for answer in answers if answer.status_code != 200]
    assert len(refused) == 35 and {error["code"] for error in refused} == {"capacity_unavailable"}
    assert all(error["recovery"] == {"work": "not_started"} for error in refused)
    assert len((await api.ok("GET", "/vms"))["vms"]) == 5


async def test_the_same_name_many_times_at_once(api):
    answers = await asyncio.gather(
        *(api("POST", "/fork", {"source_vm_name": "ubuntu", "name": "one"}) for _ in range(20))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
    assert len((await api.ok("GET", "/vms"))["vms"]) == 1


# How large


@together("opening", ["[", '{"a":', '{"spec":[', '{"metadata":{"labels":'])
@together(
    "path",
    ["/v1/fork", "/v1/vms/x/runs", "/sandboxes", "/run", "/arl/v1/sessions", "/arl/v1/pools",
     "/k8s/apis/arl.infra.io/v1alpha1/namespaces/default/sandboxes"],
)  # fmt: skip
async def test_depth_bombs(api, path, opening):
    """Deep enough to end a parser's stack; and deep in what a protocol keeps as it is."""
    headers = {"authorization": f"Bearer {api.key}", "content-type": "application/json"}
    closing = "".join({"[": "]", "{": "}"}[one] for one in reversed(opening) if one in "[{")
    for depth in (200, 900, 100_000):
        for body in (opening * depth, opening * depth + "1" + closing * depth):
            answer = await api.http.post(path, content=body.encode(), headers=headers)
            assert 400 <= answer.status_code < 500 or answer.status_code == 501, (depth, answer.text[:200])


async def test_bodies_are_bounded_everywhere(api):
    """Each operation has its own bound; none takes more than 32 MiB at once but the upload, which is on disk."""
    every = [*DIALECTS[0].operations, *DIALECTS[1].operations, *DIALECTS[2].operations]
    from boxwood.server.routes import OPERATIONS

    assert max(one.body_limit for one in (*OPERATIONS, *every)) <= 32 << 20
    headers = {"authorization": f"Bearer {api.key}", "content-type": "application/json"}
    for path, most in (("/v1/fork", 1 << 20), ("/sandboxes", 16 << 20), ("/arl/v1/sessions", 10 << 20)):
        answer = await api.http.post(path, content=b'"' + b"x" * most + b'"', headers=headers)
        assert answer.status_code == 413, path


async def test_bodies_of_many_requests_are_bounded_together(api, stranger):
    """Else ten thousand requests, each as large as it may be, would take more memory than any server has."""
    api.app.bodies = Bodies(3 << 20)
    vm = await api.fork()
    large = {"command": "hang", "stdin": "x" * (1 << 20)}
    waiting = [asyncio.create_task(api.run(vm, session_idx=idx, **large)) for idx in range(2)]
    while sum(process.end is None for box in api.machine.boxes.values() for process in box.runs.values()) < 2:
        await asyncio.sleep(0.001)
    error = await api.refused(429, "rate_limited", "POST", f"/vms/{vm}/runs", {**large, "session_idx": 2})
    assert error["recovery"] == {"work": "not_started"}
    assert (await api.run(vm, "echo small", session_idx=3))["stdout"] == "small\n"
    own = {"headers": {"authorization": f"Bearer {stranger.key}"}}
    await api.refused(404, "not_found", "POST", f"/vms/{vm}/runs", large, **own)
    release(api.machine, vm)
    await asyncio.gather(*waiting)
    assert api.app.bodies._held == {}, "who has been answered makes room"


def test_numbers_are_bounded():
    """Python refuses texts of more digits than it can turn into a number in reasonable time: so do we, with a 400."""
    from boxwood.core.errors import BadRequest
    from boxwood.server import decode
    from boxwood.server.schema.run import RunBody

    for text in ("9" * 5_000_000, "1e" + "9" * 100_000, "0." + "1" * 5_000_000):
        with pytest.raises(BadRequest):
            decode.json(f'{{"command": "x", "session_idx": {text}}}'.encode(), RunBody)
    assert decode.json(json.dumps({"command": "x", "session_idx": 7}).encode(), RunBody).session_idx == 7


async def test_only_so_many_headers_of_one_name(api):
    for name in ("authorization", "host", "content-length", "idempotency-key", "user-agent"):
        twice = httpx2.Headers(
            [("authorization", f"Bearer {api.key}"), ("host", "127.0.0.1"), (name, "1"), (name, "1")]
        )
        answer = await api.http.get("/v1/whoami", headers=twice)
        assert answer.status_code == (403 if name == "host" else 400), name
