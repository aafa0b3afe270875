"""What a rule's `rewrite` makes of a request, and what its texts mean: tokens, and secrets among them.

A secret goes into what is sent over verified TLS and nowhere else; whether it may is asked before (exchange.py).
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from boxwood.engine.policies import Action, Rewrite, Token, expand
from boxwood.engine.proxy.message import BadMessage, Head, Headers

_LOSSLESS = "surrogateescape"
_MOST_MADE = 4 << 20  # characters that the tokens of one request stand for: a body can be named thousands of times


class NoSecret(LookupError):
    """A rule names one that the VM has not. The text is its name."""


def _none(name: str) -> str:
    return ""


@dataclass(slots=True)
class Meaning:
    """What tokens stand for in the texts of one request's rule. `body`: empty where nobody has read it; `header`: of
    one that comes in, by a name in small letters."""

    domain: str
    path: str
    method: str
    vm: str
    body: bytes
    secret: Callable[[str], str | None]
    header: Callable[[str], str] = _none
    _room: int = _MOST_MADE

    def text(self, value: str, quote: Callable[[str], str] = str) -> str:
        """`quote`: how a secret or a header is written in this place. NoSecret; BadMessage: too long."""
        return expand(value, lambda token: self._counted(self._of(token, quote)))

    def _counted(self, text: str) -> str:
        self._room -= len(text)
        if self._room < 0:
            raise BadMessage("what a rule makes of it is too long")
        return text

    def _of(self, token: Token, quote: Callable[[str], str]) -> str:
        if token.kind == "secret":
            found = self.secret(token.name)
            if found is None:
                raise NoSecret(token.name)
            return quote(found)
        if token.kind == "header":
            return quote(self.header(token.name.lower()))
        if token.kind == "body":
            return self.body.decode(errors=_LOSSLESS)
        known = {"domain": self.domain, "path": self.path, "method": self.method, "vm_id": self.vm}
        return known.get(token.kind, "")


def needs_body(action: Action) -> bool:
    """Does one of its texts hold the body?"""
    return any(token.kind == "body" for token in action.tokens)


def rewritten(head: Head, rewrite: Rewrite, meaning: Meaning) -> tuple[Head, bytes | None]:
    """The head to send, for the host that it was for, and a body if it is another one. BadMessage, NoSecret."""
    path, _, query = head.target.partition("?")
    if rewrite.remove_query_params:
        kept = [part for part in query.split("&") if _parameter(part) not in rewrite.remove_query_params]
        query = "&".join(kept)
    if rewrite.path is not None:
        path = meaning.text(rewrite.path, in_path)
        if "?" in path:
            path, _, query = path.partition("?")
    headers = _headers(head.headers, rewrite, meaning)
    body = None
    if rewrite.body is not None:
        body = meaning.text(rewrite.body).encode(errors=_LOSSLESS)
        headers = [(name, value) for name, value in headers if name not in (b"content-encoding", b"content-md5")]
    target = f"{path}?{query}" if query else path
    length = head.length if body is None else len(body)
    return Head(head.method, head.authority, target, headers, head.upgrade, length), body


def query_of(target: str) -> list[tuple[str, str]]:
    """Decoded, in its order."""
    _, _, query = target.partition("?")
    return urllib.parse.parse_qsl(query, keep_blank_values=True, errors="replace", max_num_fields=4096)


def in_path(text: str) -> str:
    """As a part of a path, whatever is in it."""
    return urllib.parse.quote(text, safe="", errors=_LOSSLESS)


def _parameter(part: str) -> str:
    return urllib.parse.unquote_plus(part.partition("=")[0], errors="replace")


def _headers(before: Headers, rewrite: Rewrite, meaning: Meaning) -> Headers:
    made = [(name.encode(), value(meaning.text(text))) for name, text in rewrite.headers]
    gone = {name for name, _ in made} | {name.encode() for name in rewrite.remove_headers}
    return [(name, kept) for name, kept in before if name not in gone] + made


def value(text: str) -> bytes:
    """Of a header. BadMessage: a body, say, that cannot be one."""
    if any((character < " " and character != "\t") or character == "\x7f" for character in text):
        raise BadMessage("what a rule makes a header of has line ends or other control characters in it")
    return text.strip().encode(errors=_LOSSLESS)
