"""What the routes ask of each kind: all, one, made, changed, gone; and how the core's items are shown."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from boxwood.core.core import Core
from boxwood.core.errors import AlreadyExists, NotFound
from boxwood.core.model import Caller, Pool, Record
from boxwood.dialects.arl_kubernetes.objects import Given, Kind, Object, shown
from boxwood.dialects.arl_kubernetes.status import already_exists, conflict, not_found

MOST_LISTED = 10_000  # in one answer, which ends sooner when it has grown to PAGE_BYTES
PAGE_BYTES = 8 << 20
MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


Place = tuple[str, str]  # namespace and name of an object


class Store(Protocol):
    kind: Kind

    async def page(self, caller: Caller, namespace: str | None, after: Place | None, limit: int) -> list[Object]:
        """Some, by namespace and name, from behind a place on; none: there are no more."""

    def one(self, caller: Caller, namespace: str, name: str) -> Object:
        """Refused (not found)."""

    async def create(self, caller: Caller, namespace: str, given: Given, *, dry: bool) -> Object:
        """Refused (already exists, invalid). `dry`: only say what would be there."""

    async def change(self, caller: Caller, old: Object, given: Given, *, dry: bool) -> Object:
        """`old`: as `one` has shown it, of which `given` is the new version. Refused (not found, invalid, conflict: it
        has been changed since)."""

    async def delete(self, caller: Caller, namespace: str, name: str) -> None:
        """Refused (not found)."""

    def shown(self, item: Record | Pool) -> Object:
        """As a client sees it."""

    def settled(self, item: Object) -> bool:
        """Whoever polls it has nothing more to wait for."""


class RecordStore:
    """Of the kinds that are records. Their bodies have `metadata` (labels, annotations, generation), `spec`, `status`,
    and what else their kind keeps."""

    kind: Kind

    def __init__(self, core: Core) -> None:
        self.core = core

    async def page(self, caller: Caller, namespace: str | None, after: Place | None, limit: int) -> list[Object]:
        found = await self.core.records.list(
            caller, self.kind.changes, namespace, limit=limit, after=after, most_bytes=PAGE_BYTES
        )
        return [self.shown(record) for record in found]

    def record(self, caller: Caller, namespace: str, name: str) -> Record:
        try:
            return self.core.records.get(caller, self.kind.changes, namespace, name)
        except NotFound:
            raise not_found(self.kind.plural, name) from None

    def one(self, caller: Caller, namespace: str, name: str) -> Object:
        return self.shown(self.record(caller, namespace, name))

    def shown(self, item: Record | Pool) -> Object:
        assert isinstance(item, Record)
        body = item.body
        return shown(self.kind, item, body["metadata"], body["spec"], self.status(item))

    def status(self, record: Record) -> Object:
        found: Object = record.body.get("status", {})
        return found

    async def made(
        self, caller: Caller, namespace: str, given: Given, status: Object, *, ttl: float | None = None
    ) -> Record:
        body = {"metadata": {**given.stored, "generation": 1}, "spec": given.spec, "status": status}
        try:
            return await self.core.records.create(caller, self.kind.changes, namespace, given.name, body, ttl=ttl)
        except AlreadyExists:
            raise already_exists(self.kind.plural, given.name) from None

    def absent(self, caller: Caller, namespace: str, name: str) -> None:
        """Refused (already exists)."""
        try:
            self.core.records.get(caller, self.kind.changes, namespace, name)
        except NotFound:
            return
        raise already_exists(self.kind.plural, name)

    async def rewritten(self, caller: Caller, namespace: str, old: Object, given: Given) -> Record:
        """With new metadata and spec, if both are still what they were."""
        name = given.name

        def change(body: dict[str, Any]) -> dict[str, Any]:
            if {**body["metadata"]} != _stored(old) or body["spec"] != old["spec"]:
                raise conflict(self.kind.plural, name, MODIFIED)
            body["metadata"] = {**given.stored, "generation": generation(old, given)}
            body["spec"] = given.spec
            return body

        try:
            return await self.core.records.update(caller, self.kind.changes, namespace, name, change)
        except NotFound:
            raise not_found(self.kind.plural, name) from None


async def pages(
    store: Store, caller: Caller, namespace: str | None, after: Place | None = None, limit: int = MOST_LISTED
) -> AsyncGenerator[list[Object], None]:
    """All there are, some at a time."""
    while found := await store.page(caller, namespace, after, limit):
        yield found
        after = place(found[-1])


def place(item: Object) -> Place:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def generation(old: Object, given: Given) -> int:
    """It grows with what is asked for, not with labels."""
    now: int = old["metadata"]["generation"]
    return now if given.spec == old["spec"] else now + 1


def _stored(old: Object) -> Mapping[str, Any]:
    metadata = old["metadata"]
    return {name: metadata[name] for name in ("labels", "annotations", "generation") if name in metadata}


def preview(kind: Kind, namespace: str, given: Given, old: Object | None = None) -> Object:
    """What a dry run answers."""
    metadata: Object = {"name": given.name, "namespace": namespace, "generation": 1} if old is None else {
        **{name: value for name, value in old["metadata"].items() if name not in ("labels", "annotations")},
        "generation": generation(old, given),
    }  # fmt: skip
    made: Object = {
        "apiVersion": "arl.infra.io/v1alpha1", "kind": kind.name, "metadata": {**metadata, **given.stored},
        "spec": given.spec,
    }  # fmt: skip
    return made | ({"status": old["status"]} if old is not None and "status" in old else {})
