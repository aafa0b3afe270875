"""A protocol of its own at paths of its own, beside the contract: how its requests are told, routed and refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from starlette.responses import Response

from boxwood.core.errors import CoreError
from boxwood.server.errors import MethodNotAllowed, NoSuchRoute
from boxwood.server.routing import Found, Router

if TYPE_CHECKING:
    from boxwood.server.app import App
    from boxwood.server.exchange import Exchange, Operation


@dataclass(frozen=True)
class Dialect:
    """`heads`: the first parts of its paths. `refusal`: an error in its shape. `start`: called when the core has been
    opened, before anybody is served: for work that is to be taken up again; it must not take long."""

    name: str
    heads: frozenset[str]
    operations: tuple[Operation, ...]
    refusal: Callable[[Exchange, CoreError], Response]
    start: Callable[[App], Awaitable[None]] | None = None

    @cached_property
    def router(self) -> Router:
        return Router(self.operations)

    def find(self, method: str, parts: tuple[str, ...] | None) -> Found | None:
        """Empty parts of a path do not count. None: it has no such route, whatever the method."""
        try:
            found = self.router.find(method, None if parts is None else tuple(part for part in parts if part))
        except (NoSuchRoute, MethodNotAllowed):
            return None
        return None if found.operation is None else found

    def speaks(self, raw_path: bytes) -> bool:
        """Of a path that need not be UTF-8."""
        head = raw_path.lstrip(b"/").partition(b"/")[0]
        return head.decode("latin-1") in self.heads
