"""What hiding secrets costs: bounded for all VMs, whoever has chosen the secrets and the answers."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import Any

import pytest

from boxwood.engine.policies import Malformed, Policies
from boxwood.engine.proxy import exchange, redaction
from boxwood.engine.proxy.control import Control
from boxwood.engine.proxy.message import Reply
from boxwood.engine.proxy.redaction import Hidden, Redaction
from boxwood.engine.proxy.standing import Standing
from proxyworld import VM, World

pytestmark = [pytest.mark.anyio]
HOST = {"hosts": ["api.test"]}
WITH_KEY = {"key": {"action": {"rewrite": {"headers": {"authorization": "Bearer ${secret:KEY}"}}}, "match": HOST}}
WIDE = "\"'/é<" * 3276  # 16 KiB, and in each spelling several times as many
SECRET = "s3cret-value-of-the-key"


def steps(secret: bytes, pieces: list[bytes]) -> int:
    """How often a line of ours runs while pieces are looked through; each line costs the same, whatever waits."""
    looked, count = Redaction((Hidden(secret),)), 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return line

    before = sys.gettrace()
    sys.settrace(line)
    try:
        for piece in pieces:
            looked.feed(piece)
    finally:
        sys.settrace(before)
    return count


class Counted(bytes):
    """Counts the bytes that are cut out of it."""

    cut = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        if isinstance(found, bytes):
            Counted.cut += len(found)
        return found


def test_a_piece_costs_what_it_is_long_however_much_waits() -> None:
    secret = Counted(b"a" * 4000 + b"b")
    Counted.cut = 0
    few, many = (steps(secret, [b"a" * waiting] + [b"a"] * 100) for waiting in (50, 3000))
    assert few - steps(secret, [b"a" * 50]) == many - steps(secret, [b"a" * 3000])
    assert Counted.cut == 0  # nor is what waits copied


@pytest.mark.parametrize("secret", [b"a" * 6000, b"a" * 3000 + b"b" + b"a" * 2999, b"ab" * 3000])
def test_a_large_piece_costs_little_more_than_its_end(secret: bytes) -> None:
    """Whose only work byte by byte is what may be the beginning of a secret."""
    for text in (secret[:1] * 60000, secret[:2] * 30000, secret[:3001] * 20):
        assert steps(secret, [text]) < 12 * len(secret)


async def test_secrets_in_too_many_spellings_are_not_taken(there: World) -> None:
    """And nothing has changed: above all there is no VM with an empty policy then."""
    with pytest.raises(Malformed, match=r"131072") as refused:
        there.put(WITH_KEY, **{f"S{number}": f"{number:08}" * 2048 for number in range(9)})
    assert "00000001" not in str(refused.value) and VM not in there.standings._by_vm
    there.put(WITH_KEY, KEY=SECRET)
    standing = there.standings._by_vm[VM]
    hidden = standing.hidden
    with pytest.raises(Malformed):
        there.put({}, **{f"S{number}": f"{number:08}" * 2048 for number in range(9)})
    assert (standing.policies.rules, standing.hidden, standing.secret("KEY")) == (
        there.standings._by_vm[VM].policies.rules, hidden, SECRET,
    )  # fmt: skip
    assert standing.policies.rules


def test_a_long_secret_is_hidden_as_it_is() -> None:
    standing = Standing()
    standing.put(Policies(), {"KEY": WIDE})
    assert [one.secret for one in standing.hidden] == [WIDE.encode()]


async def test_what_there_is_no_memory_for_is_an_error_of_one_vm(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    control = Control(there.standings, there.guests, there.table)
    monkeypatch.setattr(there.standings, "put", full)
    said = control._hear({"n": 5, "vm": VM, "policies": {}, "secrets": {"KEY": SECRET}})
    assert said["n"] == 5 and "MemoryError" in said["error"]


async def test_one_vm_does_not_keep_the_proxy_for_itself(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two pieces that are looked through, of however many of its answers, others have their turn."""
    turns, fed = 0, []
    feed = Redaction.feed

    def counted(self: Redaction, data: bytes) -> bytes:
        fed.append(turns)
        return feed(self, data)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def drops(seen: Any, stream: Any) -> None:
        await stream.respond(Reply(200, []))
        channel = stream._wire.channel
        await channel.write(b"1\r\ns\r\n" * 300)  # at once, so that all of it is there to be read
        await stream.end([])

    monkeypatch.setattr(Redaction, "feed", counted)
    monkeypatch.setattr(redaction, "_WORK", 10)
    there.answer = drops
    there.put(WITH_KEY, KEY=SECRET)
    work = asyncio.ensure_future(others())
    answers = await asyncio.gather(*(there.curl("--http1.1") for _ in range(3)))
    work.cancel()
    assert answers == [(200, b"s" * 300)] * 3
    assert len(fed) >= 90 and len(set(fed)) == len(fed)


async def test_what_waits_is_bounded_for_a_vm(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all its answers together: what may be the beginning of a secret is in no window of HTTP/2."""
    monkeypatch.setattr(exchange, "MOST_HELD", 20)

    async def begins(seen: Any, stream: Any) -> None:
        await stream.respond(Reply(200, []))
        await stream.send(SECRET[: int(seen.target[1:])].encode())
        if seen.target == "/15":
            await asyncio.Event().wait()
        await stream.end([])

    there.answer = begins
    there.put(WITH_KEY, KEY=SECRET)
    assert await there.curl(path="/19") == (200, SECRET[:19].encode())
    waiting = asyncio.ensure_future(there.curl(path="/15"))
    standing = await there.standings.of(VM, 0)
    assert standing is not None
    async with asyncio.timeout(20):
        while standing.held < 15:
            await asyncio.sleep(0)
    assert (await there.curl(path="/3"))[0] == 200
    _, cut = await there.curl(path="/6")
    assert b"curl" in cut
    there.put({"no": {"action": "deny"}})
    await waiting
    async with asyncio.timeout(20):
        while standing.held:
            await asyncio.sleep(0)


def test_portions_shrink_with_what_is_looked_for() -> None:
    few, many = (Redaction(tuple(Hidden(b"%06d" % one) for one in range(count))) for count in (1, 1024))
    data = bytes(100000)
    assert [len(one) for one in few.portions(data)] == [100000]
    assert {len(one) for one in many.portions(data)} == {4096, 100000 % 4096}
    assert b"".join(many.portions(data)) == data
