"""What the rule that lets a request in makes of it: its gate is asked, then it is rewritten.

Tokens are read from what the guest would see: without the keys, cookies and tickets that are ours. What this server
says to guests itself, of who has come and of how long a message is, no rule says.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from boxwood.core.core import Core
from boxwood.core.errors import BadRequest
from boxwood.core.shares import Shares
from boxwood.engine.policies import Rewrite, Sought
from boxwood.engine.proxy.message import BadMessage, Head
from boxwood.engine.proxy.rewriting import Meaning, needs_body, rewritten
from boxwood.server.inbound.body import MOST, OF_ALL, OF_VM, Body, Held
from boxwood.server.inbound.door import Door, Guest, Visit
from boxwood.server.inbound.headers import Headers, addressed, alike, inwards, sender

CHUNKED: Headers = [(b"transfer-encoding", b"chunked")]
_AT_ONCE = 1 << 20  # bytes to look through, for one text after the other, without giving way: milliseconds at the worst
_LOSSLESS = "surrogateescape"
_TARGET = re.compile(r'/[!"$-~]*')  # without '#': some servers read no further, others take it for a letter
_PORT = re.compile(r":[0-9]*$")


@dataclass(slots=True)
class Passed:
    """A request as the guest gets it. `framing`: how long its body is; `body`: that, None where it goes as it comes."""

    target: bytes
    headers: Headers
    framing: Headers
    body: bytes | None = None


class Passing:
    def __init__(self, core: Core, door: Door) -> None:
        self._gates = core.gates
        self._door = door
        self._ports = core.ports
        self._shares = Shares(of_vm=OF_VM, least=MOST, of_all=OF_ALL)
        self._searching = asyncio.Lock()

    def holding(self, guest: Guest) -> Held:
        return Held(self._shares, guest.row.id)

    async def passed(self, visit: Visit, guest: Guest, body: Body, held: Held) -> Passed:
        """CoreError: why it is not passed on."""
        if guest.entry is not None and guest.entry.needs_body:
            assert guest.rule is not None
            self._door.admit_with(guest, await self._searched(guest, await body.whole(guest.rule.ident)))
        host = visit.host.encode("latin-1")
        seen = inwards(visit.raw, guest.drop)
        said = sender(host, visit.client, visit.scheme)
        rule = guest.rule
        if rule is None or rule.action.is_plain:
            return Passed(visit.target, [*addressed(seen, host), *said], *_framed(body))
        if needs_body(rule.action):
            await body.whole(rule.ident)
        meaning = _meaning(visit, guest, [*addressed(seen, host), *said], body.read or b"")
        if rule.action.gate is not None:
            await self._gates.check(guest.row, rule, meaning)
        if rule.action.rewrite is None:
            return Passed(visit.target, [*addressed(seen, host), *said], *_framed(body))
        try:
            return _rewritten(visit, seen, rule.action.rewrite, meaning, body, held)
        except BadMessage as error:
            raise BadRequest(f"the rule {rule.ident} of this VM: {error}") from None

    async def _searched(self, guest: Guest, body: Sought) -> Sought:
        """What rules look for has been looked for: in a long one beside the event loop, and in one at a time."""
        _, texts = self._ports.policies_of(guest.row.id).sought
        if len(body) * len(texts) > _AT_ONCE:
            async with self._searching:
                await asyncio.to_thread(body.look_for, texts)
        return body


def _rewritten(visit: Visit, seen: Headers, rewrite: Rewrite, meaning: Meaning, body: Body, held: Held) -> Passed:
    """BadMessage, Unavailable."""
    before = visit.target.decode(errors=_LOSSLESS)
    named = {alike(name.encode("ascii")) for name in rewrite.named}  # nobody else says them, in any spelling
    others = [(name, value) for name, value in seen if alike(name) not in named]
    head, made = rewritten(Head(visit.method, "", before, others), rewrite, meaning)
    if rewrite.path is not None and not _TARGET.fullmatch(head.target):
        raise BadMessage("what it makes of the path is not as HTTP has it")
    host = visit.host.encode("latin-1")
    headers = addressed(head.headers, rewrite.host.encode("ascii") or host)
    headers += sender(host, visit.client, visit.scheme)
    target = head.target.encode(errors=_LOSSLESS)
    if made is None or visit.upgrades:  # a WebSocket is asked for without a body
        return Passed(target, headers, *_framed(body))
    held.take(len(made))
    return Passed(target, headers, [(b"content-length", b"%d" % len(made))], made)


def _framed(body: Body) -> tuple[Headers, bytes | None]:
    """How a body goes on that no rule has changed."""
    if body.chunked and body.read is None:
        return [*CHUNKED], None
    if body.read or body.chunked:  # which was read: its length is known
        return [(b"content-length", b"%d" % len(body.read or b""))], body.read
    return ([(b"content-length", body.length)] if body.length is not None else []), None


def _meaning(visit: Visit, guest: Guest, headers: Headers, body: bytes) -> Meaning:
    """`headers`: as the guest would see them."""

    def header(name: str) -> str:
        found = [value for known, value in headers if known == name.encode("ascii", "replace")]
        return b", ".join(found).decode(errors=_LOSSLESS)

    path = visit.target.partition(b"?")[0].decode(errors=_LOSSLESS)
    domain = _PORT.sub("", visit.host).lower()
    return Meaning(domain, path, visit.method, guest.row.id, body, _no_secret, header)


def _no_secret(name: str) -> None:
    """A gate has its own (core/gates.py); nothing else of a rule for what comes in may name one."""
