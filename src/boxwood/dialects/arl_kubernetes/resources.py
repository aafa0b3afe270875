"""The routes of WarmPools, Sandboxes and Tasks: all kinds have the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response

from boxwood.dialects.arl_kubernetes import objects, patches, query, tables, watching
from boxwood.dialects.arl_kubernetes.objects import API_VERSION, Given, Object
from boxwood.dialects.arl_kubernetes.operator import Operator
from boxwood.dialects.arl_kubernetes.query import Query
from boxwood.dialects.arl_kubernetes.status import (
    Cause,
    Refused,
    bad_request,
    conflict,
    invalid,
    success,
)
from boxwood.dialects.arl_kubernetes.store import MODIFIED, MOST_LISTED, PAGE_BYTES, Place, Store, pages, place
from boxwood.server.errors import MethodNotAllowed
from boxwood.server.exchange import JSON, Exchange, encode

PATCH_TRIES = 5


def answer(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status, media_type=JSON)


class Resource:
    """The handlers of one kind."""

    def __init__(self, plural: str) -> None:
        self.plural = plural

    def _store(self, exchange: Exchange) -> Store:
        return Operator.of(exchange.app).stores[self.plural]

    # Looking

    async def list(self, exchange: Exchange) -> Response:
        """All of a namespace, or of all namespaces; or a watch on them."""
        store, wanted = self._store(exchange), query.read(exchange)
        namespace = _namespace(exchange) if "namespace" in exchange.params else None
        if wanted.watch:
            return self._watch(exchange, store, namespace, wanted)
        metadata = {"resourceVersion": str(exchange.core.changes.told(store.kind.changes))}
        items, more = await _some(exchange, store, namespace, wanted)
        if more is not None:
            metadata["continue"] = query.continued(more)
        if tables.wanted(exchange):
            table = tables.table(items, store.kind.columns, "", wanted.included, headed=True)
            return answer({**table, "metadata": metadata})
        name = f"{store.kind.name}List"
        return answer({"apiVersion": API_VERSION, "kind": name, "metadata": metadata, "items": items})

    def _watch(self, exchange: Exchange, store: Store, namespace: str | None, wanted: Query) -> Response:
        if wanted.initial_events:
            why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            raise Refused(422, "Invalid", f"ListOptions.meta.k8s.io is invalid: sendInitialEvents: Forbidden: {why}")
        watches, org_id = Operator.of(exchange.app).watches, exchange.caller.org_id
        watches.begin(org_id)
        told = watching.events(exchange, store, namespace, wanted)
        return watching.WatchResponse(told, wanted.seconds, exchange.app.stopping, lambda: watches.end(org_id))

    async def get(self, exchange: Exchange) -> Response:
        """One. Whoever polls it is answered when it has changed."""
        store, wanted = self._store(exchange), query.read(exchange)
        item = store.one(exchange.caller, _namespace(exchange), exchange.params["name"])
        if Operator.of(exchange.app).polls.seen(exchange, item) and not store.settled(item):
            item = await watching.held(exchange, store, item)
        if tables.wanted(exchange):
            revision = item["metadata"]["resourceVersion"]
            return answer(tables.table([item], store.kind.columns, revision, wanted.included, headed=True))
        return answer(item)

    # Changing

    async def create(self, exchange: Exchange) -> Response:
        store, wanted, namespace = self._store(exchange), query.read(exchange), _namespace(exchange)
        value = objects.decoded(await objects.body(exchange))
        given = objects.read(store.kind, value, namespace, None, strict=wanted.strict)
        if given.revision:
            raise bad_request("resourceVersion should not be set on objects to be created")
        made = await store.create(exchange.caller, namespace, given, dry=wanted.dry)
        if not wanted.dry:
            Operator.of(exchange.app).polls.seen(exchange, made)
        return answer(made, 201)

    async def replace(self, exchange: Exchange) -> Response:
        store, wanted, namespace = self._store(exchange), query.read(exchange), _namespace(exchange)
        value = objects.decoded(await objects.body(exchange))
        old = store.one(exchange.caller, namespace, exchange.params["name"])
        given = objects.read(store.kind, value, namespace, exchange.params["name"], strict=wanted.strict)
        if not given.revision:
            why = Cause.invalid("metadata.resourceVersion", 0, "must be specified for an update")
            raise invalid(store.kind.name, given.name, [why])
        _check_version(store, old, given)
        return answer(await store.change(exchange.caller, old, given, dry=wanted.dry))

    async def patch(self, exchange: Exchange) -> Response:
        store, wanted, namespace = self._store(exchange), query.read(exchange), _namespace(exchange)
        name = exchange.params["name"]
        media = objects.media_type(exchange)
        patches.check(media)
        raw = await exchange.raw_body()
        for left in reversed(range(PATCH_TRIES)):
            old = store.one(exchange.caller, namespace, name)
            value = patches.patched(old, media, raw)
            given = objects.read(store.kind, value, namespace, name, strict=wanted.strict)
            _check_version(store, old, given)
            try:
                return answer(await store.change(exchange.caller, old, given, dry=wanted.dry))
            except Refused as error:
                if error.reason != "Conflict" or not left:
                    raise
        raise AssertionError("not reached")

    async def delete(self, exchange: Exchange) -> Response:
        store, wanted, namespace = self._store(exchange), query.read(exchange), _namespace(exchange)
        name = exchange.params["name"]
        options = await _options(exchange)
        item = store.one(exchange.caller, namespace, name)
        _check_preconditions(store, item, options)
        if not wanted.dry and not options.get("dryRun"):
            await store.delete(exchange.caller, namespace, name)
        return answer(success(store.kind.plural, name, item["metadata"]["uid"]))

    async def delete_all(self, exchange: Exchange) -> Response:
        """Of a namespace, as far as they are chosen."""
        store, wanted, namespace = self._store(exchange), query.read(exchange), _namespace(exchange)
        options = await _options(exchange)
        dry = wanted.dry or bool(options.get("dryRun"))
        async for page in pages(store, exchange.caller, namespace):
            for item in filter(wanted.chosen, page):
                if not dry:
                    await _delete(exchange, store, item)
        return answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})


async def _some(
    exchange: Exchange, store: Store, namespace: str | None, wanted: Query
) -> tuple[list[Object], Place | None]:
    """As many of those that are chosen as one answer has room for, and the place behind which there are more."""
    caller, limit = exchange.caller, min(wanted.limit or MOST_LISTED, MOST_LISTED)
    if wanted.name is not None and namespace is not None:
        try:
            return list(filter(wanted.chosen, [store.one(caller, namespace, wanted.name)])), None
        except Refused:
            return [], None
    items: list[Object] = []
    size = 0
    async for page in pages(store, caller, namespace, wanted.after, limit):
        for item in filter(wanted.chosen, page):
            items.append(item)
            size += len(encode(item))
            if len(items) >= limit or size >= PAGE_BYTES:
                more = await store.page(caller, namespace, place(item), 1)
                return items, place(item) if more else None
    return items, None


async def _delete(exchange: Exchange, store: Store, item: Object) -> None:
    """If it is still there."""
    namespace, name = place(item)
    try:
        await store.delete(exchange.caller, namespace, name)
    except Refused as error:
        if error.reason != "NotFound":
            raise


def not_allowed(*allowed: str) -> Callable[[Exchange], Awaitable[Response]]:
    """What is answered to a method that a route does not have."""

    async def handler(exchange: Exchange) -> Response:
        raise MethodNotAllowed(exchange.scope["method"], allowed)

    return handler


def _namespace(exchange: Exchange) -> str:
    namespace = exchange.params["namespace"]
    if not objects.is_label(namespace):
        raise bad_request("the namespace must be a DNS-1123 label: a-z, 0-9 and '-', at most 63")
    return namespace


def _check_version(store: Store, old: Object, given: Given) -> None:
    metadata = old["metadata"]
    if given.revision and given.revision != metadata["resourceVersion"]:
        raise conflict(store.kind.plural, given.name, MODIFIED)
    if given.uid and given.uid != metadata["uid"]:
        raise conflict(store.kind.plural, given.name, "the UID in the object is not that of the object on the server")


async def _options(exchange: Exchange) -> Object:
    """DeleteOptions. Of a body that is none nothing is taken."""
    raw = await objects.body(exchange)
    options = objects.decoded(raw)
    if not isinstance(options, dict):
        raise bad_request("the body must be DeleteOptions")
    return options


def _check_preconditions(store: Store, item: Object, options: Object) -> None:
    wanted = options.get("preconditions")
    if not isinstance(wanted, dict):
        return
    for member in ("uid", "resourceVersion"):
        if wanted.get(member) and wanted[member] != item["metadata"][member]:
            why = f"the {member} in the precondition does not match the {member} in record"
            raise conflict(store.kind.plural, item["metadata"]["name"], why)
