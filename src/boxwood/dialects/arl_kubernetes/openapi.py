"""OpenAPI documents of the three kinds, as kubectl asks for them."""

from __future__ import annotations

import hashlib

from starlette.responses import Response

import boxwood
from boxwood.dialects.arl_kubernetes import schemas
from boxwood.dialects.arl_kubernetes.kinds import KINDS
from boxwood.dialects.arl_kubernetes.objects import API_VERSION, Object
from boxwood.dialects.arl_kubernetes.resources import answer
from boxwood.dialects.arl_kubernetes.status import GROUP
from boxwood.server.exchange import JSON, Exchange, encode

PREFIX = "/k8s"
_PROTO = "application/com.github.proto-openapi.spec.v2"
_LOCAL = "io.infra.arl.v1alpha1"


async def version_2(exchange: Exchange) -> Response:
    """A document that names nothing: clients check against the third version, or leave it to the server. In protobuf,
    which is what kubectl reads, that is no bytes at all."""
    accepted = next((value for name, value in exchange.scope["headers"] if name == b"accept"), b"")
    if accepted.startswith(_PROTO.encode()):
        return Response(b"", media_type=f"{_PROTO}.v1.0+protobuf")
    info = {"title": "Boxwood", "version": boxwood.__version__}
    return answer({"swagger": "2.0", "info": info, "paths": {}, "definitions": {}})


def _document() -> Object:
    """Enough for `kubectl explain`, and to see that the server checks members by itself."""
    paths: Object = {}
    models: Object = {}
    strict = {"name": "fieldValidation", "in": "query", "schema": schemas.STRING}
    dry = {"name": "dryRun", "in": "query", "schema": schemas.STRING}
    for kind in KINDS:
        known = [{"group": GROUP, "kind": kind.name, "version": schemas.VERSION}]
        model = {**schemas.whole(kind.schema, kind.description), "x-kubernetes-group-version-kind": known}
        models[f"{_LOCAL}.{kind.name}"] = model
        reference = {"$ref": f"#/components/schemas/{_LOCAL}.{kind.name}"}
        answered = {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}}
        operation = {"x-kubernetes-group-version-kind": known[0], "parameters": [strict, dry], "responses": answered}
        base = f"/apis/{API_VERSION}/namespaces/{{namespace}}/{kind.plural}"
        paths[base] = {"post": {**operation, "x-kubernetes-action": "post"}}
        paths[f"{base}/{{name}}"] = {
            "put": {**operation, "x-kubernetes-action": "put"},
            "patch": {**operation, "x-kubernetes-action": "patch"},
        }
    info = {"title": "Boxwood", "version": boxwood.__version__}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": models}}


_V3 = encode(_document())
_V3_PATH = f"apis/{API_VERSION}"


async def version_3(exchange: Exchange) -> Response:
    digest = hashlib.sha256(_V3).hexdigest().upper()
    url = f"{PREFIX}/openapi/v3/{_V3_PATH}?hash={digest}"
    return answer({"paths": {_V3_PATH: {"serverRelativeURL": url}}})


async def document(exchange: Exchange) -> Response:
    return Response(_V3, media_type=JSON)
