"""What requests and answers of all nouns share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from msgspec import UNSET, Meta, Struct, UnsetType

from boxwood.core.errors import Unsupported

__all__ = ["UNSET", "Answer", "Cursor", "Limit", "Page", "Query", "Request", "Seconds", "Text1024", "UnsetType"]

Seconds = Annotated[float, Meta(ge=0, le=1e9, description="In seconds.")]
Text1024 = Annotated[str, Meta(max_length=1024)]
Cursor = Annotated[str, Meta(description="`next_cursor` of the page before.", max_length=4096)]
Limit = Annotated[int, Meta(ge=1, le=1000, description="Entries of a page at most.")]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body. Every optional member takes null, which is the same as leaving it out.

    `later`: members of the contract that this server does not have yet, with the contract's name of the feature (or
    None): they may be there but must ask for nothing. `retired`: members that old clients send; ignored.
    """

    later: ClassVar[Mapping[str, str | None]] = {}
    retired: ClassVar[frozenset[str]] = frozenset()

    def refuse_later(self) -> None:
        """Unsupported, naming the first member that asks for what is not there."""
        for name, feature in self.later.items():
            if asks(getattr(self, name)):
                raise Unsupported(f"{name}: not available on this server", feature)


class Query(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters behind the `?`."""


class Page(Query, frozen=True, kw_only=True):
    cursor: Cursor | None = None
    limit: Limit = 100


class Answer(Struct, frozen=True, kw_only=True):
    """A response body. A member that is UNSET is left out."""


def asks(value: Any, depth: int = 4) -> bool:
    """Does a member ask for anything? null, false, 0 and what is empty, also within objects, do not."""
    if isinstance(value, dict) and depth:
        return any(asks(inner, depth - 1) for inner in value.values())
    return bool(value)
