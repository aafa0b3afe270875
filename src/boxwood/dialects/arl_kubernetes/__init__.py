"""ARL's Kubernetes protocol under `/k8s`: WarmPools, Sandboxes and Tasks of `arl.infra.io/v1alpha1`, answered as a
kube-apiserver with ARL's operator behind it would.

What its published clients 0.1.3 to 0.1.5 ask for through the official `kubernetes` client, and what kubectl needs to
get, describe, apply, delete, watch and wait. WarmPools are the core's pools, Sandboxes and Tasks are records of the
core's; `operator` gives Sandboxes their VMs and does the Tasks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from starlette.responses import Response

from boxwood.core.errors import Unsupported
from boxwood.dialects.arl_kubernetes import cluster, discovery, openapi
from boxwood.dialects.arl_kubernetes.discovery import APIEXTENSIONS, CRDS
from boxwood.dialects.arl_kubernetes.kinds import KINDS
from boxwood.dialects.arl_kubernetes.objects import API_VERSION, Kind
from boxwood.dialects.arl_kubernetes.openapi import PREFIX
from boxwood.dialects.arl_kubernetes.operator import start
from boxwood.dialects.arl_kubernetes.resources import Resource, not_allowed
from boxwood.dialects.arl_kubernetes.status import GROUP, refusal
from boxwood.server.dialect import Dialect
from boxwood.server.exchange import Exchange, Handler, Operation

BODY_LIMIT = 3 << 20  # as a kube-apiserver
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_BASE = f"/apis/{API_VERSION}"
_EXTENSIONS = f"/apis/{APIEXTENSIONS}"


async def _no_exec(exchange: Exchange) -> Response:
    raise Unsupported("pods/exec, of which the interactive shell of arl-env 0.1.5 is made, is not supported here")


# Path → method → what is done, and what that is in a few words.
Routes = dict[str, dict[str, tuple[Handler, str]]]


def _looked_at() -> Routes:
    return {
        path: {"GET": (handler, summary)}
        for path, handler, summary in (
            ("/version", discovery.version, "Which Kubernetes this looks like."),
            ("/api", discovery.core_versions, "Versions of the core group."),
            ("/apis", discovery.groups, "Groups."),
            ("/api/v1", discovery.core_resources, "What the core group has."),
            (f"/apis/{GROUP}", discovery.group(GROUP), "ARL's group."),
            (_BASE, discovery.resources, "What ARL's group has."),
            (_EXTENSIONS, discovery.group(APIEXTENSIONS), "The group of CRDs."),
            (f"{_EXTENSIONS}/v1", discovery.extension_resources, "What it has."),
            (f"{_EXTENSIONS}/v1/{CRDS}", cluster.definitions, "The CRDs."),
            (f"{_EXTENSIONS}/v1/{CRDS}/{{name}}", cluster.definition, "One CRD."),
            ("/api/v1/namespaces", cluster.namespaces, "Namespaces in which there is something."),
            ("/api/v1/namespaces/{name}", cluster.namespace, "One namespace."),
            ("/api/v1/events", cluster.empty("Event"), "There are no events."),
            ("/api/v1/services", cluster.empty("Service"), "There are no services."),
            ("/api/v1/namespaces/{name}/events", cluster.empty("Event"), "There are no events."),
            ("/api/v1/namespaces/{name}/services", cluster.empty("Service"), "There are no services."),
            ("/openapi/v2", openapi.version_2, "An OpenAPI document that names nothing."),
            ("/openapi/v3", openapi.version_3, "Where the OpenAPI document of ARL's group is."),
            (f"/openapi/v3/apis/{API_VERSION}", openapi.document, "The OpenAPI document of ARL's group."),
        )
    }


def _of(kind: Kind) -> Routes:
    resource = Resource(kind.plural)
    several = f"{_BASE}/namespaces/{{namespace}}/{kind.plural}"
    one = f"{several}/{{name}}"
    return {
        f"{_BASE}/{kind.plural}": {"GET": (resource.list, f"List {kind.plural} of all namespaces.")},
        several: {
            "GET": (resource.list, f"List {kind.plural}, or watch them."),
            "POST": (resource.create, f"Make a {kind.name}."),
            "DELETE": (resource.delete_all, f"Delete {kind.plural}."),
        },
        one: {
            "GET": (resource.get, f"One {kind.name}."),
            "PUT": (resource.replace, f"Change a {kind.name}."),
            "PATCH": (resource.patch, f"Change some of a {kind.name}."),
            "DELETE": (resource.delete, f"Delete a {kind.name}."),
        },
        f"{one}/status": {"GET": (resource.get, f"One {kind.name}.")},
    }


def _operations() -> Iterator[Operation]:
    routes: Routes = defaultdict(dict, _looked_at())
    for kind in KINDS:
        routes.update(_of(kind))
    routes["/api/v1/namespaces/{namespace}/pods/{name}/exec"] = dict.fromkeys(("GET", "POST"), (_no_exec, "No shell."))
    for path, methods in routes.items():
        other = (not_allowed(*methods), "Not a method of this route.")
        for method in METHODS:
            handler, summary = methods.get(method, other)
            name = f"arlKube{method.title()}{path}"
            yield Operation(
                name, method, path, handler, summary, prefixes=(PREFIX,), ours=True, body_limit=BODY_LIMIT,
                refused=method not in methods,
            )  # fmt: skip


DIALECT = Dialect("arl-kubernetes", frozenset({PREFIX.strip("/")}), tuple(_operations()), refusal, start)
