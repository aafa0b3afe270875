"""What all who do what the server asks have in common: how they answer, and what they take for an id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Reply(Protocol):
    """The answer to one request."""

    def __call__(self, fields: dict[str, Any] | None = None, payload: bytes = b"", *, hurry: bool = True) -> None: ...

    def error(self, number: int, text: str) -> None: ...


def ident(header: Mapping[str, Any], name: str) -> str:
    """Ids are the server's; they never become part of a path. KeyError, ValueError."""
    value = header[name]
    if not isinstance(value, str) or not value.isascii() or not value.isalnum() or len(value) > 32:
        raise ValueError(f"{name} must be an id")
    return value
