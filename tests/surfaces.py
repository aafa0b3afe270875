"""What a class of an SDK offers, to hold its blocking form against the awaitable one."""

from __future__ import annotations

import inspect
from typing import Any

RENAMED = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__", "aclose": "close"}


def surface(kind: type) -> dict[str, list[tuple[str, Any, Any]]]:
    """Its methods by their blocking names, each with the name, kind and default of its parameters."""
    return {
        RENAMED.get(name, name): [(p.name, p.kind, p.default) for p in inspect.signature(member).parameters.values()]
        for name, member in inspect.getmembers(kind, inspect.isfunction)
    }
