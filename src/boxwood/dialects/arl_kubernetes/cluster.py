"""The rest of a cluster, as far as kubectl needs to see one: the three CRDs, namespaces, no events and no services.
Nobody can change any of it here."""

from __future__ import annotations

import asyncio
import hashlib

from starlette.responses import Response

from boxwood.dialects.arl_kubernetes import objects, query, schemas, tables, watching
from boxwood.dialects.arl_kubernetes.discovery import APIEXTENSIONS, CRDS
from boxwood.dialects.arl_kubernetes.kinds import KINDS, SANDBOX
from boxwood.dialects.arl_kubernetes.objects import Column, Kind, Object
from boxwood.dialects.arl_kubernetes.operator import Operator
from boxwood.dialects.arl_kubernetes.query import Query
from boxwood.dialects.arl_kubernetes.resources import answer
from boxwood.dialects.arl_kubernetes.status import GROUP, not_found
from boxwood.dialects.arl_kubernetes.store import pages
from boxwood.server.exchange import Exchange, Handler

_SINCE = "2026-01-01T00:00:00Z"


def _uid(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-a{digest[17:20]}-{digest[20:32]}"


def _listed(exchange: Exchange, items: list[Object], version: str, kind: str, *columns: Column) -> Response:
    """A list, or a Table, as far as it is chosen; or a watch, which has nothing to tell after that."""
    wanted = query.read(exchange)
    chosen = [item for item in items if wanted.chosen(item)]
    if wanted.watch:
        watches, org_id = Operator.of(exchange.app).watches, exchange.caller.org_id
        watches.begin(org_id)
        told = _events(chosen if wanted.revision is None else [], columns, wanted, table=tables.wanted(exchange))
        return watching.WatchResponse(told, wanted.seconds, exchange.app.stopping, lambda: watches.end(org_id))
    if tables.wanted(exchange):
        return answer(tables.table(chosen, columns, "1", wanted.included, headed=True))
    return answer({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": chosen})


async def _events(items: list[Object], columns: tuple[Column, ...], wanted: Query, *, table: bool) -> watching.Events:
    for item in items:
        shown = tables.table([item], columns, "1", wanted.included, headed=True) if table else item
        yield watching.line("ADDED", shown)
    await asyncio.Event().wait()


def _shown(exchange: Exchange, item: Object, *columns: Column) -> Response:
    if tables.wanted(exchange):
        return answer(tables.table([item], columns, "1", query.read(exchange).included, headed=True))
    return answer(item)


# CRDs


def _definition(kind: Kind) -> Object:
    names = {"kind": kind.name, "listKind": f"{kind.name}List", "plural": kind.plural, "singular": kind.singular}
    columns = [
        {"name": one.name, "type": one.type, "jsonPath": one.path, "description": one.description}
        for one in kind.columns
    ]
    version = {
        "name": schemas.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schemas.whole(kind.schema, kind.description)},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
    }
    established = [
        {"type": type_, "status": "True", "reason": reason, "message": text, "lastTransitionTime": _SINCE}
        for type_, reason, text in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
    return {
        "apiVersion": f"{APIEXTENSIONS}/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            "uid": str(_uid(kind.plural)),
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": _SINCE,
        },
        "spec": {
            "group": GROUP,
            "names": names,
            "scope": "Namespaced",
            "versions": [version],
            "conversion": {"strategy": "None"},
        },
        "status": {"acceptedNames": names, "storedVersions": [schemas.VERSION], "conditions": established},
    }


DEFINITIONS = {f"{kind.plural}.{GROUP}": _definition(kind) for kind in KINDS}
_CREATED = Column(
    "Created At", "date", "When it was made.", ".metadata.creationTimestamp",
    lambda item: item["metadata"]["creationTimestamp"],
)  # fmt: skip


async def definitions(exchange: Exchange) -> Response:
    return _listed(
        exchange, list(DEFINITIONS.values()), f"{APIEXTENSIONS}/v1", "CustomResourceDefinitionList", _CREATED
    )


async def definition(exchange: Exchange) -> Response:
    name = exchange.params["name"]
    if name not in DEFINITIONS:
        raise not_found(CRDS, name, APIEXTENSIONS)
    return _shown(exchange, DEFINITIONS[name], _CREATED)


# Namespaces, and what there is none of


_STATUS = Column("Status", "string", "Active.", ".status.phase", lambda item: item["status"]["phase"])


def _namespace(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "uid": _uid(f"namespace {name}"),
            "resourceVersion": "1",
            "creationTimestamp": _SINCE,
            "labels": {"kubernetes.io/metadata.name": name},
        },
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


async def namespaces(exchange: Exchange) -> Response:
    """`default`, and those in which there are WarmPools or Sandboxes."""
    core, caller = exchange.core, exchange.caller
    names = {"default"} | {pool.namespace for pool in await core.pools.list(caller)}
    async for page in pages(Operator.of(exchange.app).stores[SANDBOX.plural], caller, None):
        names |= {item["metadata"]["namespace"] for item in page}
    return _listed(exchange, [_namespace(name) for name in sorted(names)], "v1", "NamespaceList", _STATUS, tables.AGE)


async def namespace(exchange: Exchange) -> Response:
    """Any: they need not be made."""
    name = exchange.params["name"]
    if not objects.is_label(name):
        raise not_found("namespaces", name, "")
    return _shown(exchange, _namespace(name), _STATUS, tables.AGE)


def empty(kind: str) -> Handler:
    """The list of what there is none of."""

    async def handler(exchange: Exchange) -> Response:
        return _listed(exchange, [], "v1", f"{kind}List", tables.AGE)

    return handler
