"""From method and path to an operation. Paths are exact: nothing is redirected, a final slash is another path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from boxwood.server.errors import MethodNotAllowed, NoSuchRoute
from boxwood.server.exchange import Operation

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Found(NamedTuple):
    operation: Operation | None  # None: OPTIONS
    params: dict[str, str]
    allowed: tuple[str, ...]


class _Node:
    __slots__ = ("allowed", "children", "names", "operations", "tail", "wildcard")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.wildcard: _Node | None = None
        self.operations: dict[str, Operation] = {}
        self.names: tuple[str, ...] = ()
        self.allowed: tuple[str, ...] = ()
        self.tail = False


class Router:
    """A tree of path segments; where both fit, a literal one goes before a `{parameter}`."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._root = _Node()
        for operation in operations:
            for prefix in operation.prefixes:
                self._add(prefix + operation.path, operation)

    def _add(self, path: str, operation: Operation) -> None:
        node, names = self._root, []
        for part in path.split("/")[1:]:
            if part.startswith("{"):
                names.append(part[1:-1])
                node.wildcard = node.wildcard or _Node()
                node = node.wildcard
            else:
                node = node.children.setdefault(part, _Node())
        if operation.method in node.operations:
            raise ValueError(f"two operations for {operation.method} {path}")
        if node.operations and node.names != tuple(names):
            raise ValueError(f"{path}: the same route has parameters of other names")
        node.operations[operation.method] = operation
        node.tail = operation.tail
        node.names = tuple(names)
        served = {*node.operations, "OPTIONS"} | ({"HEAD"} if "GET" in node.operations else set())
        node.allowed = tuple(method for method in METHODS if method in served)

    def find(self, method: str, parts: tuple[str, ...] | None) -> Found:
        """NoSuchRoute, MethodNotAllowed."""
        hit = _descend(self._root, parts, 0) if parts is not None else None
        if hit is None:
            raise NoSuchRoute
        node, values = hit
        operation = node.operations.get("GET" if method == "HEAD" else method)
        if operation is None and method != "OPTIONS":
            raise MethodNotAllowed(method, node.allowed)
        return Found(operation, dict(zip(node.names, values, strict=True)), node.allowed)


def _descend(node: _Node, parts: tuple[str, ...], at: int) -> tuple[_Node, tuple[str, ...]] | None:
    if at == len(parts):
        if node.operations:
            return node, ()
        return (node.wildcard, ("",)) if node.wildcard is not None and node.wildcard.tail else None
    part = parts[at]
    child = node.children.get(part)
    if child is not None and (hit := _descend(child, parts, at + 1)) is not None:
        return hit
    if node.wildcard is not None and node.wildcard.tail:
        return node.wildcard, ("/".join(parts[at:]),)
    if node.wildcard is not None and part and (hit := _descend(node.wildcard, parts, at + 1)) is not None:
        return hit[0], (part, *hit[1])
    return None
