"""What there is here, as kubectl asks before anything else: version, groups, resources."""

from __future__ import annotations

import platform
from typing import Any

from starlette.responses import Response

import boxwood
from boxwood.dialects.arl_kubernetes import schemas
from boxwood.dialects.arl_kubernetes.kinds import KINDS
from boxwood.dialects.arl_kubernetes.objects import API_VERSION, Object
from boxwood.dialects.arl_kubernetes.resources import answer
from boxwood.dialects.arl_kubernetes.status import GROUP
from boxwood.server.exchange import Exchange, Handler

APIEXTENSIONS = "apiextensions.k8s.io"
CRDS = "customresourcedefinitions"
MINOR = "32"  # of the Kubernetes whose answers these are
_LOOKING = ["get", "list", "watch"]
_VERBS = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]


async def version(exchange: Exchange) -> Response:
    return answer(
        {
            "major": "1",
            "minor": MINOR,
            "gitVersion": f"v1.{MINOR}.0+boxwood.{boxwood.__version__}",
            "gitCommit": "",
            "gitTreeState": "clean",
            "buildDate": "2026-01-01T00:00:00Z",
            "goVersion": "",
            "compiler": "",
            "platform": f"linux/{'arm64' if platform.machine() == 'aarch64' else 'amd64'}",
        }
    )


async def core_versions(exchange: Exchange) -> Response:
    server = {"clientCIDR": "0.0.0.0/0", "serverAddress": exchange.host}
    return answer({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [server]})


def _group(name: str, version: str) -> Object:
    known = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [known], "preferredVersion": known}


_GROUPS = {
    GROUP: _group(GROUP, schemas.VERSION),
    APIEXTENSIONS: _group(APIEXTENSIONS, "v1"),
}


async def groups(exchange: Exchange) -> Response:
    return answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": list(_GROUPS.values())})


def group(name: str) -> Handler:
    async def handler(exchange: Exchange) -> Response:
        return answer({"kind": "APIGroup", "apiVersion": "v1", **_GROUPS[name]})

    return handler


def _resource(name: str, kind: str, verbs: list[str], *, namespaced: bool, **more: Any) -> Object:
    return {"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": verbs, **more}


def _resources(group_version: str, found: list[Object]) -> Object:
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": found}


async def resources(exchange: Exchange) -> Response:
    found = []
    for kind in KINDS:
        named = _resource(kind.plural, kind.name, _VERBS, namespaced=True)
        found += [
            {**named, "singularName": kind.singular},
            _resource(f"{kind.plural}/status", kind.name, ["get"], namespaced=True),
        ]
    return answer(_resources(API_VERSION, found))


async def core_resources(exchange: Exchange) -> Response:
    found = [
        _resource("namespaces", "Namespace", _LOOKING, namespaced=False, shortNames=["ns"]),
        _resource("events", "Event", ["list", "watch"], namespaced=True, shortNames=["ev"]),
        _resource("services", "Service", ["list", "watch"], namespaced=True, shortNames=["svc"]),
    ]
    return answer(_resources("v1", found))


async def extension_resources(exchange: Exchange) -> Response:
    kind = "CustomResourceDefinition"
    return answer(
        _resources(
            f"{APIEXTENSIONS}/v1",
            [_resource(CRDS, kind, _LOOKING, namespaced=False, shortNames=["crd", "crds"])],
        )
    )
