"""Values of a rewrite or a gate with tokens in them: `$domain`, `${secret:NAME}`, `$$` for a dollar sign itself.

What looks like no token stays as it is, save what begins like a secret: a misspelt one would be sent to the world as it
stands and its author would look for the fault elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from boxwood.engine.policies.reading import Malformed, shown

SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

_TOKEN = re.compile(
    r"\$\$|\$\{(?P<kind>secret|header):(?P<name>[^{}$]*)\}|\$\{(?P<braced>body)\}|\$(?P<word>domain|path|method|vm_id|body)\b"
)


@dataclass(frozen=True, slots=True)
class Token:
    """`kind`: domain, path, method, vm_id, body, secret or header; `name` is that of a secret or a header."""

    kind: str
    name: str = ""


def parts(value: str) -> list[str | Token]:
    """Literal texts and tokens, in their order."""
    found: list[str | Token] = []
    place = 0
    for token in _TOKEN.finditer(value):
        found.append(value[place : token.start()])
        place = token.end()
        if token[0] == "$$":
            found.append("$")
        else:
            kind = token["kind"] or token["braced"] or token["word"]
            found.append(Token(kind, token["name"] or ""))
    found.append(value[place:])
    return [part for part in found if part != ""]


def expand(value: str, meaning: Callable[[Token], str]) -> str:
    """The text, every token in it replaced by what it means."""
    return "".join(part if isinstance(part, str) else meaning(part) for part in parts(value))


def secrets_in(value: str) -> frozenset[str]:
    """The names of the secrets that stand in it."""
    return frozenset(part.name for part in parts(value) if isinstance(part, Token) and part.kind == "secret")


def check(at: str, value: str, *, inbound: bool, enters: bool = False) -> str:
    """The value itself. `enters`: it goes into the VM. Malformed."""
    for part in parts(value):
        if isinstance(part, str):
            if "${secret" in part:
                raise Malformed(at, "a secret is written ${secret:NAME}; two dollar signs stand for one itself")
        elif part.kind == "secret":
            if enters:
                raise Malformed(at, "a secret would come into the VM: of inbound rules, gates alone may have one")
            if not SECRET_NAME.fullmatch(part.name):
                raise Malformed(at, f"{shown(part.name)} is no name of a secret: letters, digits and '_', at most 64")
        elif part.kind == "header" and not inbound:
            raise Malformed(at, "${header:…} can stand in inbound rules only")
    return value
