"""WarmPools: the core's pools. What was written about one is told again as it was; pools that were made elsewhere are
shown as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from boxwood.core.core import Core
from boxwood.core.errors import AlreadyExists, BadRequest, InsufficientResources, NotFound
from boxwood.core.goldens import UnknownImage
from boxwood.core.model import Caller, ForkRequest, Pool, PoolRequest, Record
from boxwood.dialects.arl import templates
from boxwood.dialects.arl_kubernetes import pods
from boxwood.dialects.arl_kubernetes.kinds import WARM_POOL
from boxwood.dialects.arl_kubernetes.objects import Given, Object, condition, shown, timestamp
from boxwood.dialects.arl_kubernetes.pods import Pod
from boxwood.dialects.arl_kubernetes.status import Cause, already_exists, invalid, not_found
from boxwood.dialects.arl_kubernetes.store import Place, generation, preview

MOST_SHOWN = 500  # at once: each may have a megabyte
ABOUT = "warmpool"  # the member of a pool's `about` that is ours
_IMAGE = "spec.template.spec.containers[executor].image"


class WarmPools:
    kind = WARM_POOL

    def __init__(self, core: Core) -> None:
        self.core = core

    async def page(self, caller: Caller, namespace: str | None, after: Place | None, limit: int) -> list[Object]:
        found = await self.core.pools.list(caller, namespace)
        behind = (pool for pool in found if after is None or (pool.namespace, pool.name) > after)
        return [self.shown(pool) for pool in islice(behind, min(limit, MOST_SHOWN))]

    def one(self, caller: Caller, namespace: str, name: str) -> Object:
        try:
            return self.shown(self.core.pools.get(caller, name, namespace))
        except NotFound:
            raise not_found(WARM_POOL.plural, name) from None

    async def create(self, caller: Caller, namespace: str, given: Given, *, dry: bool) -> Object:
        pod = _pod(given)
        try:
            source = self.core.goldens.source(pod.image)
        except UnknownImage as error:
            raise invalid(WARM_POOL.name, given.name, [Cause.invalid(_IMAGE, pod.image, error.message)]) from None
        except BadRequest as error:
            raise invalid(WARM_POOL.name, given.name, [Cause.invalid(_IMAGE, "", error.message)]) from None
        if dry:
            return preview(WARM_POOL, namespace, given)
        request = PoolRequest(
            given.name,
            namespace,
            replicas=given.spec["replicas"],
            resources=pod.resources,
            about=templates.noted(_about(given, 1), pod.directories),
        )
        try:
            return self.shown(await self._create(caller, request, source, pod.directories))
        except AlreadyExists:
            raise already_exists(WARM_POOL.plural, given.name) from None
        except (BadRequest, InsufficientResources) as error:
            raise _refused(given, error) from None

    async def _create(
        self, caller: Caller, request: PoolRequest, image: ForkRequest, directories: Iterable[str]
    ) -> Pool:
        with suppress(NotFound):  # before anything is made for it
            self.core.pools.get(caller, request.name, request.namespace)
            raise AlreadyExists("pool", "there is one")
        async with templates.prepared(self.core, caller, image, tuple(directories)) as source:
            return await self.core.pools.create(caller, replace(request, source_id=source))

    async def change(self, caller: Caller, old: Object, given: Given, *, dry: bool) -> Object:
        namespace = old["metadata"]["namespace"]
        self._check_change(old, given)
        if dry:
            return preview(WARM_POOL, namespace, given, old)
        replicas = given.spec["replicas"]
        try:
            about = {**self.core.pools.get(caller, given.name, namespace).about}  # others keep things there too
            about |= _about(given, generation(old, given))
            pool = await self.core.pools.change(caller, given.name, namespace, replicas=replicas, about=about)
        except NotFound:
            raise not_found(WARM_POOL.plural, given.name) from None
        except BadRequest as error:
            raise _refused(given, error) from None
        return self.shown(pool)

    def _check_change(self, old: Object, given: Given) -> None:
        """A pool's VMs are forks of what its image was: that, and what they may use, stays."""
        wanted = _pod(given)
        had, _ = pods.read(old["spec"])
        why = "cannot be changed: delete the WarmPool and create it anew"
        causes = []
        if wanted.image != had.image:
            causes.append(Cause.forbidden(_IMAGE, why))
        if wanted.resources != had.resources:
            causes.append(Cause.forbidden("spec.template.spec.containers[executor].resources", why))
        if causes:
            raise invalid(WARM_POOL.name, given.name, causes)

    async def delete(self, caller: Caller, namespace: str, name: str) -> None:
        """Sandboxes that have a VM of it keep it."""
        try:
            await self.core.pools.delete(caller, name, namespace)
        except NotFound:
            raise not_found(WARM_POOL.plural, name) from None

    def shown(self, item: Record | Pool) -> Object:
        assert isinstance(item, Pool)
        status: Object = {"readyReplicas": item.ready, "allocatedReplicas": item.allocated}
        if item.problem is not None:
            at = timestamp(item.created_at)
            status["conditions"] = [condition("PodsFailing", "True", "CannotBoot", item.problem, at)]
        said: Mapping[str, Any] = item.about.get(ABOUT) or {}
        return shown(WARM_POOL, item, said.get("metadata", {}), _spec(item), status)

    def settled(self, item: Object) -> bool:
        """Of one that Sandboxes are taken from nobody waits for the last: who asks is about to take one more."""
        status = item["status"]
        taken = status["allocatedReplicas"] > 0 or "conditions" in status
        return taken or bool(status["readyReplicas"] >= item["spec"]["replicas"])


def pod_of(pool: Pool) -> Pod:
    return pods.read(_spec(pool))[0]


def _spec(pool: Pool) -> Object:
    """As it was written; how many replicas it has may have been changed elsewhere."""
    said: Mapping[str, Any] = pool.about.get(ABOUT) or {}
    container = {"name": pods.EXECUTOR, "image": pool.source_name or ""}
    spec = said.get("spec", {"template": {"spec": {"containers": [container]}}})
    return {**spec, "replicas": pool.replicas}


def _about(given: Given, generation: int) -> Object:
    return {ABOUT: {"metadata": {**given.stored, "generation": generation}, "spec": given.spec}}


def _pod(given: Given) -> Pod:
    pod, causes = pods.read(given.spec)
    if given.spec["replicas"] < 0:
        causes.append(Cause.invalid("spec.replicas", given.spec["replicas"], "must not be negative"))
    if causes:
        raise invalid(WARM_POOL.name, given.name, causes)
    return pod


def _refused(given: Given, error: BadRequest | InsufficientResources) -> Exception:
    """By the core: its pools have bounds of their own."""
    violations = (error.details or {}).get("violations", [])
    field = "spec.replicas" if any(one["field"] == "replicas" for one in violations) else "spec"
    value = given.spec["replicas"] if field == "spec.replicas" else given.name
    return invalid(WARM_POOL.name, given.name, [Cause.invalid(field, value, error.message)])
