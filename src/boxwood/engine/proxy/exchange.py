"""One request of a box: judged, changed, sent, and answered; or refused, with a clear word and without a secret."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Coroutine
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from boxwood.engine.policies import (
    Answer,
    Malformed,
    Policies,
    Request,
    RequestVerdict,
    Rule,
    canonical,
    request_verdict,
)
from boxwood.engine.proxy import frames, gates
from boxwood.engine.proxy.channel import Broken, splice
from boxwood.engine.proxy.message import (
    OURS,
    SWITCHING,
    BadMessage,
    Call,
    Head,
    Reply,
    Stream,
    content,
    values,
)
from boxwood.engine.proxy.origins import Origin, Origins, Unknown
from boxwood.engine.proxy.questions import question
from boxwood.engine.proxy.rewriting import Meaning, NoSecret, needs_body, query_of, rewritten
from boxwood.engine.proxy.standing import Standing
from boxwood.engine.proxy.stars import Body, Stars
from boxwood.engine.proxy.upstream import Place, Trust, Unverified, Upstreams

MOST_BODY = 1 << 20  # that is read whole, to be judged or put into something
MOST_HELD = 16 << 20  # of such bodies of a VM at once, and of what waits: the proxy's memory is for all
_AUTHORITY = re.compile(r"([^:@/?#\[\]\s]{1,255})(?::([0-9]{1,5}))?")
_TARGET = re.compile(r'/[!"$-~]*')  # without '#': some servers read no further, others take it for a letter
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS"))
_DECODED_BY_NOBODY = frozenset((b"", b"identity"))


class Refused(Exception):
    """The request does not go on. The text is shown to the box: it holds no secret."""

    def __init__(self, status: int, code: str, message: str, rule: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Line:
    """What all requests of one connection of a box have in common. `name`: that its TLS is for, if it named one."""

    origin: Origin
    standing: Standing
    origins: Origins
    trust: Trust
    upstreams: Upstreams
    secure: bool
    name: str = ""


class Exchange:
    """One request. It is open (see standing.py) from its verdict to its end."""

    def __init__(self, line: Line, stream: Stream) -> None:
        self._line = line
        self._stream = stream
        self._task: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._rule: Rule | None = None
        self._host = ""
        self._body: bytes | None = None
        self._answering = False
        self._stars_frames = False  # of the WebSocket that it asks for
        self._held = 0  # bytes of its body, and of its answer
        self._stars = Stars(line.standing, self._hold)

    async def run(self) -> None:
        """Broken: the connection has to end."""
        self._task = asyncio.current_task()
        try:
            await self._perform()
        except Refused as refused:
            await self._refuse(refused)
        finally:
            self._line.standing.closed(self)
            self._line.standing.held -= self._held

    def holds(self, policies: Policies) -> bool:
        assert self._request is not None
        if self._stars.are_too_old:
            return False
        verdict = request_verdict(policies, self._request)
        before = self._rule.action if self._rule is not None else None
        return verdict.answer is Answer.ALLOW and (verdict.rule.action if verdict.rule else None) == before

    def cut(self) -> None:
        self._stream.abort()
        if self._task is not None:
            self._task.cancel()

    # --- what is decided

    async def _perform(self) -> None:
        head = self._stream.head
        self._host = self._checked_host(head)
        verdict = await self._judge(head)
        if verdict.answer is not Answer.ALLOW:
            rule = verdict.rule.ident if verdict.rule is not None else ""
            by = f"rule {rule}" if rule else verdict.reason or "no rule lets it through"
            reason = f" ({verdict.reason})" if rule and verdict.reason else ""
            raise Refused(403, "forbidden", f"the network policy of this VM refuses it: {by}{reason}", rule)
        self._rule = verdict.rule
        if self._line.standing.is_full:
            text = "this VM has too many requests and connections under way: try again"
            raise Refused(503, "unavailable", text, self._rule_name)
        self._line.standing.opened(self)
        try:
            sent, place = await self._changed(head)
        except NoSecret as missing:
            raise Refused(403, "forbidden", f"the secret {missing} has no value", self._rule_name) from None
        except BadMessage as error:
            raise Refused(400, "bad_request", str(error), self._rule_name) from None
        try:
            await self._send(sent, place)
        except Unverified as error:
            text = f"{place.host} could not be verified: {error}"
            raise Refused(502, "bad_gateway", text, self._rule_name) from None
        except OSError as error:  # Broken among them
            if self._answering:
                raise
            raise Refused(502, "bad_gateway", f"{place.host} did not answer: {error}", self._rule_name) from None

    @property
    def _rule_name(self) -> str:
        return self._rule.ident if self._rule is not None else ""

    def _checked_host(self, head: Head) -> str:
        """The host that it is for: its TLS's, and one that the box was given this address for. Empty: the address."""
        origin = self._line.origin
        found = _AUTHORITY.fullmatch(head.authority)
        if found is None or not _METHOD.fullmatch(head.method) or not _TARGET.fullmatch(head.target):
            raise Refused(400, "bad_request", "its method, path or host is not as HTTP has it")
        if head.method == "CONNECT":
            raise Refused(403, "forbidden", "CONNECT is not let through")
        if found[2] is not None and int(found[2]) != origin.port:
            raise Refused(421, "misdirected", "it is for another port than it was sent to")
        host = _host(found[1])
        if host is None:
            raise Refused(400, "bad_request", "its host is no name that can be judged")
        if self._line.name and host != self._line.name:
            raise Refused(421, "misdirected", "it is for another host than its TLS")
        if isinstance(host, IPv4Address):
            if host != origin.address:
                raise Refused(421, "misdirected", "it is for another address than it was sent to")
            return ""
        if host not in origin.names:
            raise Refused(421, "misdirected", "this VM was not given that address for this host: look it up first")
        return host

    async def _judge(self, head: Head) -> RequestVerdict:
        origin = self._line.origin
        try:
            query = query_of(head.target)
        except ValueError:
            raise Refused(400, "bad_request", "it has too many parameters") from None
        headers = [(name.decode(), value.decode(errors="replace")) for name, value in head.headers]
        self._request = Request(
            head.method, self._host, origin.address, origin.port, head.target.partition("?")[0], query, headers
        )
        verdict = request_verdict(self._line.standing.policies, self._request)
        if verdict.answer is Answer.READ_BODY:
            await self._seen_body(head, verdict.rule.ident if verdict.rule is not None else "")
            request = self._request
            self._request = Request(
                request.method, request.host, request.address, request.port, request.path, request.query,
                request.headers, self._body,
            )  # fmt: skip
            verdict = request_verdict(self._line.standing.policies, self._request)
        return verdict

    async def _seen_body(self, head: Head, rule: str) -> bytes:
        """As it is read at its end: no gate is told, and no rule judges, what stands for something else."""
        if not set(values(head.headers, b"content-encoding")) <= _DECODED_BY_NOBODY:
            raise Refused(415, "forbidden", f"rule {rule} needs to see bodies: send this one without a coding", rule)
        return await self._whole_body(rule)

    async def _whole_body(self, rule: str) -> bytes:
        if self._body is None:
            pieces, size = [], 0
            while piece := await self._stream.read():
                pieces.append(piece)
                size += len(piece)
                if not self._hold(len(piece)):
                    text = f"rule {rule} needs whole bodies, and this VM sends too many at once: try again"
                    raise Refused(503, "unavailable", text, rule)
                if size > MOST_BODY:
                    text = f"rule {rule} needs the whole body, of which there may be {MOST_BODY} bytes"
                    raise Refused(413, "payload_too_large", text, rule)
            self._body = b"".join(pieces)
        return self._body

    def _hold(self, size: int) -> bool:
        """So many bytes more, or fewer, are in memory until its end. Is there room for them?"""
        self._held += size
        self._line.standing.held += size
        return self._line.standing.held <= MOST_HELD

    async def _changed(self, head: Head) -> tuple[Head, Place]:
        """As it is sent, and where to. NoSecret, BadMessage."""
        line = self._line
        origin = line.origin
        place = Place(self._host or str(origin.address), origin.address, origin.port, line.secure)
        if self._rule is None or self._rule.action.is_plain:
            return head, place
        action = self._rule.action
        if self._rule.action.secrets and not (line.secure or action.rewrite is None or not action.rewrite.secrets):
            raise Refused(403, "forbidden", f"rule {self._rule_name} sends a secret, over https only", self._rule_name)
        meaning = await self._meaning(head)
        if action.gate is not None:
            asked = question(action.gate, meaning)
            if why := await gates.passes(asked, line.origins, line.trust):
                raise Refused(403, "forbidden", f"rule {self._rule_name}: {why}", self._rule_name)
        if action.rewrite is None:
            return head, place
        sent, body = rewritten(head, action.rewrite, meaning)
        if body is not None:
            await self._whole_body(self._rule_name)  # nobody wants it, but the connection may go on
            self._body = body
        if action.rewrite.secrets:  # so that what is said again is seen
            kept = [
                (name, value) for name, value in sent.headers if name not in (b"accept-encoding", frames.EXTENSIONS)
            ]
            sent.headers = [*kept, (b"accept-encoding", b"identity")]
            self._stars_frames = True
        if not _TARGET.fullmatch(sent.target):
            raise BadMessage("what a rule makes of the path is not as HTTP has it")
        if action.rewrite.host:
            place = Place(action.rewrite.host, await self._address_of(action.rewrite.host), origin.port, line.secure)
            sent.authority = place.host if origin.port in (80, 443) else f"{place.host}:{origin.port}"
        return sent, place

    async def _meaning(self, head: Head) -> Meaning:
        assert self._rule is not None
        body = await self._seen_body(head, self._rule_name) if needs_body(self._rule.action) else b""
        host, path = self._host or str(self._line.origin.address), head.target.partition("?")[0]
        return Meaning(host, path, head.method, self._line.origin.vm, body, self._stars.secret)

    async def _address_of(self, host: str) -> IPv4Address:
        with contextlib.suppress(Unknown):
            if found := await self._line.origins.resolve(host):
                return found[0]
        raise Refused(502, "bad_gateway", f"{host} has no address on the internet", self._rule_name)

    # --- what is done

    async def _send(self, head: Head, place: Place) -> None:
        """Broken, Unverified, OSError."""
        if self._body is not None:
            head.length = len(self._body)
        has_body = head.length != 0
        call, used = await self._line.upstreams.call(place)
        try:
            try:
                await call.open(head, has_body=has_body)
                if has_body or head.upgrade:
                    await self._converse(call, head)
                    return
                await call.end([])
                reply = await call.reply()
            except Broken:
                if has_body or head.upgrade or not used or head.method not in _REPEATABLE:
                    raise
                call.release()  # the server has closed a connection that was kept
                call, _ = await self._line.upstreams.call(place, fresh=True)
                await call.open(head, has_body=False)
                await call.end([])
                reply = await call.reply()
            await self._answer(call, reply)
        finally:
            call.release()

    async def _converse(self, call: Call, head: Head) -> None:
        """Its body goes up while the answer may already come down."""
        if head.upgrade:
            await call.end([])
            reply = await call.reply()
            if reply.status == SWITCHING:
                await self._switch(call, reply)
                return
            await self._answer(call, reply)
            return
        up, down = asyncio.ensure_future(self._upload(call)), asyncio.ensure_future(self._download(call))
        try:
            done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if down not in done and (error := up.exception()) is not None:
                self._answering = True  # nobody is there to be told anything
                raise error
            await down
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _switch(self, call: Call, reply: Reply) -> None:
        if self._stars_frames and any(name == frames.EXTENSIONS for name, _ in reply.headers):
            raise Refused(502, "bad_gateway", "the server uses an extension that nobody has asked for", self._rule_name)
        reply.headers = await self._stars.headers(reply.headers)
        self._answering = True
        guest, server = await self._stream.switch(reply), call.switch()
        if self._stars_frames:
            server = frames.Starred(server, lambda: Body(self._stars))
        await splice(guest, server)

    async def _upload(self, call: Call) -> None:
        """Broken: the box has not sent what it had announced. What the server does not want is not sent."""
        if self._body is not None:
            piece, over = self._body, True
        else:
            piece, over = await self._stream.read(), False
        with contextlib.suppress(_Unwanted):
            while piece:
                await _wanted(call.send(piece))
                piece = b"" if over else await self._stream.read()
            await _wanted(call.end(self._stream.trailers))

    async def _download(self, call: Call) -> None:
        await self._answer(call, await call.reply())

    async def _answer(self, call: Call, reply: Reply) -> None:
        body = Body(self._stars)
        reply.headers = await self._stars.headers(reply.headers)
        self._answering = True
        await self._stream.respond(reply)
        while piece := await call.read():
            if shown := await body.feed(piece):
                await self._stream.send(shown)
        if rest := body.end():
            await self._stream.send(rest)
        await self._stream.end(await self._stars.headers(content(call.trailers, reply=True)))

    async def _refuse(self, refused: Refused) -> None:
        line = self._line
        if refused.status in (403, 413, 415, 421):
            line.origins.denied(line.origin, self._host or self._stream.head.authority, refused.rule or refused.code)
        said = {"code": refused.code, "message": self._stars.text(str(refused))}  # it may cite what a server has said
        if refused.rule:
            said["rule"] = refused.rule
        body = json.dumps({"error": said}).encode() + b"\n"
        headers = [(b"content-type", b"application/json"), (OURS, refused.code.encode())]
        await self._stream.respond(Reply(refused.status, headers, len(body)))
        if self._stream.head.method != "HEAD":
            await self._stream.send(body)
        await self._stream.end([])


class _Unwanted(Exception):
    """The server reads no more: perhaps it has answered all the same."""


async def _wanted(sending: Coroutine[Any, Any, None]) -> None:
    try:
        await sending
    except Broken:
        raise _Unwanted from None


def _host(text: str) -> str | IPv4Address | None:
    """A name in its one spelling, or an address in its own. None: neither."""
    try:
        return IPv4Address(text)
    except ValueError:
        pass
    try:
        return canonical("host", text)
    except Malformed:
        return None
