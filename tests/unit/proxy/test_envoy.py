"""The server's end of what the proxy is told: what it says, and says again to one that has come anew."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from boxwood.engine.api import EngineError
from boxwood.engine.network import envoy as module
from boxwood.engine.network.envoy import SOCKET, Envoy, _line
from boxwood.engine.policies.document import MOST_BYTES, MOST_SECRETS, SECRET_BYTES
from boxwood.engine.proxy.control import LINE, Control
from boxwood.engine.proxy.guests import Guests
from boxwood.engine.proxy.questions import MOST_BODY, MOST_HEAD, Question
from boxwood.engine.proxy.standing import Standings
from proxyworld import Table

pytestmark = [pytest.mark.anyio]
RULES = {"a": {"type": "outbound", "priority": 1, "action": "deny"}}


class Proxy:
    """Answers each line, and keeps what it was told; told of `slow` it waits for `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[dict[str, Any]] = []
        self.slow = ""
        self.refused = ""  # a VM whose policy it does not take
        self.reached, self.release = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError), contextlib.closing(writer):
            while line := await reader.readline():
                said = json.loads(line)
                self.told.append(said)
                if self.slow and said.get("vm") == self.slow:
                    self.reached.set()
                    await self.release.wait()
                wrong = {"error": "its secrets are too long"} if self.refused and said.get("vm") == self.refused else {}
                writer.write(json.dumps({"n": said["n"], **wrong}).encode() + b"\n")
                await writer.drain()

    @contextlib.asynccontextmanager
    async def there(self) -> AsyncIterator[None]:
        self.path.unlink(missing_ok=True)
        async with await asyncio.start_unix_server(self.serve, self.path, limit=LINE):
            yield

    def holds(self) -> dict[str, Any]:
        """The last that was said of each VM: its secrets, or None."""
        said = [one for one in self.told if "vm" in one]
        return {one["vm"]: one["secrets"] if one["policies"] is not None else None for one in said}


@pytest.fixture
async def proxy(tmp_path: Path) -> Proxy:
    (tmp_path / SOCKET).parent.mkdir()
    return Proxy(tmp_path / SOCKET)


@pytest.fixture
async def envoy(tmp_path: Path) -> AsyncIterator[Envoy]:
    made = Envoy(tmp_path)
    yield made
    await made.close()


async def test_what_secrets_stand_for_is_asked_each_time(proxy: Proxy, envoy: Envoy) -> None:
    values = {"KEY": "one"}
    async with proxy.there():
        await envoy.put("vm", RULES, lambda: values)
        await envoy.put("other", RULES, dict)
        assert list(proxy.told[0]) == ["n", "authority", "roots"]
        assert proxy.holds() == {"vm": {"KEY": "one"}, "other": {}}
        values["KEY"], proxy.told = "two", []
        assert set(envoy.vms) == {"vm", "other"}
        await envoy.repeat(["vm"])
        assert proxy.holds() == {"vm": {"KEY": "two"}}


async def test_a_new_proxy_is_told_what_holds_then(tmp_path: Path, proxy: Proxy, envoy: Envoy) -> None:
    """Also what was changed or dropped while it was told."""
    values = {"KEY": "one"}
    async with proxy.there():
        for vm in ("first", "second", "third"):
            await envoy.put(vm, RULES, lambda: values)
    proxy.told, proxy.slow = [], "second"
    envoy._writer.close()  # type: ignore[union-attr]  # as if the proxy had died
    async with proxy.there():
        async with asyncio.timeout(20):
            await proxy.reached.wait()
            await envoy.drop("first")
            values["KEY"] = "two"
            repeated = asyncio.ensure_future(envoy.repeat(["second"]))
            proxy.release.set()
            await repeated
        assert proxy.holds() == {"first": None, "second": {"KEY": "two"}, "third": {"KEY": "two"}}


def asked(text: str = "") -> Question:
    return Question("https://gate.test", "GET", f"/{text}", (), b"", (200,), deny_on_timeout=True, timeout_ms=20_000)


async def test_gates_are_asked_beside_each_other_and_beside_all_else(
    tmp_path: Path, envoy: Envoy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the proxy's own end: an answer that is late holds up no other, and ends with whoever wanted it."""
    late, ended = asyncio.Event(), asyncio.Event()

    async def passes(question: Question, origins: Table, trust: Any) -> str:
        if question.path != "/late":
            return f"not {question.path}"
        late.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    monkeypatch.setattr("boxwood.engine.proxy.gates.passes", passes)
    path = tmp_path / SOCKET
    path.parent.mkdir()
    guests = Guests(Standings(), Table(), None)  # type: ignore[arg-type]
    control = Control(Standings(), guests, Table())
    async with await asyncio.start_unix_server(control.serve, path, limit=LINE), asyncio.timeout(20):
        waiting = asyncio.ensure_future(envoy.ask_gate(asked("late")))
        await late.wait()
        assert await asyncio.gather(*(envoy.ask_gate(asked(text)) for text in "ab")) == ["not /a", "not /b"]
        await envoy.put("vm", RULES, dict)
        envoy._writer.close()  # type: ignore[union-attr]
        with pytest.raises(EngineError, match="does not answer"):
            await waiting
        await ended.wait()


async def test_the_longest_question_is_one_line() -> None:
    longest = Question(
        "https://gate.test", "GET", "/", ((b"x", b"\xff" * (MOST_HEAD - 6)),), b"x" * MOST_BODY, (200,) * 256,
        deny_on_timeout=True, timeout_ms=1,
    )  # fmt: skip
    assert len(_line({"n": 1 << 60, "gate": longest.to_json()})) < LINE


async def test_a_secret_that_cannot_be_read_is_one_vms_matter(proxy: Proxy, envoy: Envoy) -> None:
    def unreadable() -> dict[str, str]:
        raise EngineError("the secret KEY cannot be read")

    async with proxy.there():
        with pytest.raises(EngineError, match="KEY cannot be read"):
            await envoy.put("bad", RULES, unreadable)
        await envoy.put("good", RULES, dict)
    envoy._writer.close()  # type: ignore[union-attr]
    proxy.told = []
    async with proxy.there(), asyncio.timeout(20):
        await envoy.repeat(["good"])
        assert proxy.holds() == {"good": {}}


async def test_what_a_new_proxy_does_not_take_is_told(
    proxy: Proxy, envoy: Envoy, caplog: pytest.LogCaptureFixture
) -> None:
    """And the others have theirs."""
    async with proxy.there():
        for vm in ("bad", "good"):
            await envoy.put(vm, RULES, dict)
    proxy.told, proxy.refused = [], "bad"
    envoy._writer.close()  # type: ignore[union-attr]
    async with proxy.there(), asyncio.timeout(20):
        await envoy.repeat(["good"])
        with pytest.raises(EngineError, match="its secrets are too long"):
            await envoy.repeat(["bad"])
    assert "VM bad: the proxy could not be told its policy: its secrets are too long" in caplog.text
    assert "VM good" not in caplog.text


async def test_the_largest_policy_is_a_line_that_a_proxy_reads(proxy: Proxy, envoy: Envoy) -> None:
    for character in ('"', "\\", "é", "\N{PINE DECORATION}", "\x80"):
        value = character * (SECRET_BYTES // len(character.encode()))
        values = {f"A{n}".ljust(64, "_"): value for n in range(MOST_SECRETS)}
        rules = {"a": character * (MOST_BYTES // len(character.encode()))}  # as large as no parsed ones are
        async with proxy.there():
            await envoy.put("vm", rules, lambda values=values: values)  # type: ignore[misc]
            assert proxy.holds() == {"vm": values}
        envoy._writer.close()  # type: ignore[union-attr]
        proxy.told = []


async def test_a_vm_that_goes_while_its_secrets_are_said_again_is_no_error(proxy: Proxy, envoy: Envoy) -> None:
    async with proxy.there():
        for vm in ("one", "two"):
            await envoy.put(vm, RULES, dict)
        proxy.told = []
        repeating = asyncio.ensure_future(envoy.repeat(["one", "two"]))
        await envoy.drop("one")
        await repeating
        assert proxy.holds() == {"one": None, "two": {}}


@pytest.mark.parametrize("said", [b"[" * 50_000, b"[]", b'{"n": [1]}', b"1", b"null"])
async def test_a_proxy_that_makes_no_sense_is_left_for_the_next(
    proxy: Proxy, envoy: Envoy, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(module, "_AGAIN", 0.001)
    senseless = asyncio.Event()

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            writer.write(b"{}\n" + (said + b"\n") * 2)
            await writer.drain()
            senseless.set()
            await reader.read()

    async with await asyncio.start_unix_server(babble, proxy.path):
        putting = asyncio.ensure_future(envoy.put("vm", RULES, dict))
        await asyncio.wait_for(senseless.wait(), 20)
    async with proxy.there():
        await asyncio.wait_for(putting, 20)
        assert proxy.holds() == {"vm": {}}
