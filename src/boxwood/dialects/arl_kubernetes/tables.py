"""Tables: how kubectl has its answers formatted by the server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from boxwood.dialects.arl_kubernetes.objects import Column, Object
from boxwood.server.exchange import Exchange

_NAME = {
    "name": "Name",
    "type": "string",
    "format": "name",
    "description": "Name must be unique within a namespace.",
    "priority": 0,
}


def wanted(exchange: Exchange) -> bool:
    """Does the client take a Table, and nothing better before it?"""
    header = next((value for name, value in exchange.scope["headers"] if name == b"accept"), b"")
    first = header.decode("latin-1").partition(",")[0]
    members = {part.strip().lower() for part in first.split(";")}
    return {"as=table", "v=v1", "g=meta.k8s.io"} <= members


def table(items: Sequence[Object], columns: Sequence[Column], revision: str, included: str, *, headed: bool) -> Object:
    """`headed`: with the definitions of its columns, which clients of a watch know from before."""
    defined = [
        {"name": one.name, "type": one.type, "format": "", "description": one.description, "priority": 0}
        for one in columns
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": revision},
        "columnDefinitions": [_NAME, *defined] if headed else None,
        "rows": [_row(item, columns, included) for item in items],
    }


def _row(item: Object, columns: Sequence[Column], included: str) -> Object:
    metadata = item["metadata"]
    return {"cells": [metadata["name"], *(one.value(item) for one in columns)], "object": _object(item, included)}


def _object(item: Object, included: str) -> Any:
    if included == "None":
        return None
    if included == "Object":
        return item
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _age(item: Object) -> str:
    """As Kubernetes shows how long something has been there: 8s, 3m12s, 5h, 2d4h, 1y20d."""
    created = datetime.fromisoformat(item["metadata"]["creationTimestamp"])
    seconds = max(0, int((datetime.now(UTC) - created).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m" + (f"{seconds % 60}s" if seconds % 60 else "")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h" + (f"{minutes % 60}m" if minutes % 60 else "")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d" + (f"{hours % 24}h" if hours % 24 else "")
    if days < 730:
        return f"{days}d"
    return f"{days // 365}y" + (f"{days % 365}d" if days % 365 and days < 2920 else "")


AGE = Column("Age", "date", "For how long it has been there.", ".metadata.creationTimestamp", _age)
