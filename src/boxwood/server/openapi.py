"""The OpenAPI 3.1 document, made of the operations and of the types that they decode and encode."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

import boxwood
from boxwood.server.errors import STATUS
from boxwood.server.exchange import Operation
from boxwood.server.schema.common import Request

ALWAYS = ("internal", "unavailable")
REF = "#/components/schemas/{name}"
DESCRIPTION = """\
Computers for programs. Every path is served as it stands here and with /api in front of it, save where it says
otherwise. Errors are `{"error": …}`; clients that say `Python-urllib/` also get `"ok": false` beside it, those that
say `python-httpx/` only the members that releases 0.8.4 to 0.8.7 of their SDK know. HEAD is served where GET is.
"""
_PARAMETER = re.compile(r"{(\w+)}")


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    bodies = {id(of.body): of.body for of in operations if of.body is not None}
    queries = {id(of.query): of.query for of in operations if of.query is not None}
    answers = {id(one): one for of in operations for answer in of.answers.values() for one in _types(answer)}
    types = {**bodies, **queries, **answers}
    schemas, components = msgspec.json.schema_components(types.values(), ref_template=REF)
    made = dict(zip(types, schemas, strict=True))
    for body in bodies.values():
        for one in getattr(body, "__args__", (body,)):
            _annotate(components, one)
    components |= _ERROR
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for operation in operations:
        path = operation.path if "" in operation.prefixes else operation.prefixes[0] + operation.path
        paths[path][operation.method.lower()] = _operation(operation, made, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Boxwood", "version": boxwood.__version__, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{"BearerAuth": []}],
        "paths": dict(paths),
        "components": {
            "schemas": components,
            "securitySchemes": {
                "BearerAuth": {"type": "http", "scheme": "bearer"},
                "PtyTicket": {"type": "apiKey", "in": "query", "name": "ticket"},
            },
        },
    }


def _operation(operation: Operation, made: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(operation.path)
    ]
    if operation.query is not None:
        parameters += _query(made[id(operation.query)], components)
    if operation.name in ("fork", "createRun"):
        parameters.append(_IDEMPOTENCY)
    shown: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": ["boxwood" if operation.ours else "contract"],
        "parameters": parameters,
        "responses": _responses(operation, made),
    }
    if operation.body is not None:
        shown["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": made[id(operation.body)]}},
            "description": f"At most {operation.body_limit} bytes.",
        }
    if operation.access in ("public", "signed"):
        shown["security"] = []
    elif operation.access == "ticket":
        shown["security"] = [{"BearerAuth": []}, {"PtyTicket": []}]
    if operation.refused:
        shown["deprecated"] = True
    return shown


def _responses(operation: Operation, made: dict[int, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in {} if operation.refused else operation.answers.items():
        content: dict[str, Any] = {"application/octet-stream": {}} if answer is bytes else {"application/json": {}}
        if types := [made[id(one)] for one in _types(answer)]:
            content = {"application/json": {"schema": types[0] if len(types) == 1 else {"anyOf": types}}}
        if (streamed := operation.streams) is not None and status == 200:
            content[streamed] = {}
        elif isinstance(answer, str):
            content = {answer: {}}
        responses[str(status)] = {"description": "Done."} | ({"content": content} if status not in (101, 204) else {})
    keyed: tuple[str, ...] = ("forbidden",)
    if operation.access == "ticket":
        keyed = ("unauthorized", "forbidden")
    elif operation.access in ("key", "operator"):
        keyed = ("unauthorized", "forbidden", *(("rate_limited",) if operation.access == "key" else ()))
    by_status: dict[int, list[str]] = defaultdict(list)
    for code in dict.fromkeys((*keyed, *operation.errors, *ALWAYS)):
        by_status[STATUS[code]].append(code)
    for status, codes in sorted(by_status.items()):
        if str(status) in responses:  # health: not ready is an answer, not an error
            continue
        error = {"schema": {"$ref": REF.format(name="ErrorResponse")}}
        responses[str(status)] = {"description": ", ".join(codes), "content": {"application/json": error}}
    return responses


def _types(answer: Any) -> tuple[Any, ...]:
    """An answer's type, or types; none of what is not described."""
    if answer in (None, bytes) or isinstance(answer, str):
        return ()
    return answer if isinstance(answer, tuple) else (answer,)


def _query(ref: dict[str, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    """Query parameters are no schema of their own in OpenAPI: one by one."""
    schema = components.get(ref["$ref"].rsplit("/", 1)[1], {})
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _not_null(of)}
        for name, of in schema.get("properties", {}).items()
    ]


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is not given is not null, it is not there."""
    one_of = [one for one in schema.get("anyOf", []) if one != {"type": "null"}]
    return one_of[0] if len(one_of) == 1 else {key: value for key, value in schema.items() if value is not None}


def _annotate(components: dict[str, Any], body: type[Request]) -> None:
    properties = components.get(body.__name__, {}).get("properties", {})
    for name in body.later.keys() & properties.keys():
        feature = f" ({body.later[name]})" if body.later[name] else ""
        properties[name]["description"] = (
            f"Not available{feature}: refused with unsupported_operation if it asks for anything."
        )
    for name in body.retired & properties.keys():
        properties[name] |= {"deprecated": True, "description": "Of old clients; ignored."}


_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[ -~]+$", "minLength": 1, "maxLength": 64},
    "description": "The same key with the same request is answered with what the first one made.",
}
_REQUEST = [
    {
        "type": "object",
        "properties": {"kind": {"const": "matched"}, "operation_id": {"type": "string"}},
        "required": ["kind", "operation_id"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"kind": {"const": "unmatched"}, "method": {"type": "string"}},
        "required": ["kind", "method"],
        "additionalProperties": False,
    },
]
_ERROR: dict[str, Any] = {
    "ErrorResponse": {
        "type": "object",
        "properties": {"error": {"$ref": REF.format(name="Error")}, "ok": {"const": False}},
        "required": ["error"],
        "additionalProperties": False,
    },
    "Error": {
        "type": "object",
        "properties": {
            "code": {"type": "string", "enum": sorted(STATUS)},
            "message": {"type": "string", "minLength": 1},
            "timestamp": {"type": "string", "format": "date-time"},
            "request_id": {"type": "string", "description": "Also in the x-request-id header; finds it in the log."},
            "request": {"oneOf": _REQUEST},
            "details": {"type": "object"},
            "retry_after_seconds": {"type": "integer", "minimum": 0, "maximum": 4294967295},
            "recovery": {
                "type": "object",
                "properties": {
                    "work": {"type": "string", "enum": ["not_started", "stopped", "continuing", "unknown"]},
                    "context": {"type": "object"},
                },
                "required": ["work"],
                "additionalProperties": False,
            },
        },
        "required": ["code", "message", "timestamp"],
        "additionalProperties": False,
    },
}
