"""The OpenAPI document says what is served: every route of the table, every member of what comes out."""

from __future__ import annotations

import jsonschema
import pytest
from jsonschema import Draft202012Validator

from boxwood.server.exchange import Operation
from boxwood.server.routes import OPERATIONS
from boxwood.server.routing import Router


@pytest.fixture
async def document(api):
    response = await api("GET", "//openapi.json", headers={"authorization": ""})
    assert response.headers["content-type"] == "application/json"
    return response.json()


async def test_every_route_of_the_table_is_in_it(document):
    assert document["openapi"].startswith("3.1")
    listed = {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    for operation in OPERATIONS:
        path = operation.path if "" in operation.prefixes else operation.prefixes[0] + operation.path
        shown = listed.pop((operation.method, path))
        assert shown["operationId"] == operation.name
        assert ("requestBody" in shown) == (operation.body is not None)
        parameters = {(one["in"], one["name"]) for one in shown["parameters"]}
        named = operation.query.__struct_fields__ if operation.query is not None else ()
        assert {name for place, name in parameters if place == "query"} == set(named)
        assert {name for place, name in parameters if place == "path"} == {
            part[1:-1] for part in path.split("/") if part.startswith("{")
        }
        assert any(status.startswith(("1", "2")) for status in shown["responses"]) != operation.refused
        assert (shown.get("security") == []) == (operation.access in ("public", "signed"))
    assert not listed


async def test_operation_ids_are_unique(document):
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids)) == len(OPERATIONS)


async def test_schemas_are_schemas_and_references_lead_somewhere(document):
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)

    def walk(value):
        if isinstance(value, dict):
            if "$ref" in value:
                kind, name = value["$ref"].removeprefix("#/components/").split("/")
                assert name in document["components"][kind]
            for member in value.values():
                walk(member)
        elif isinstance(value, list):
            for member in value:
                walk(member)

    walk(document)


async def test_what_is_not_available_says_so(document):
    properties = document["components"]["schemas"]["ForkBody"]["properties"]
    assert "nested_virtualization" in properties["nestedvirt"]["description"]
    assert properties["tunnel"]["deprecated"] is properties["egress"]["deprecated"] is True
    assert {"type": "string", "enum": ["internet", "none"]} in properties["network"]["anyOf"]
    assert document["paths"]["/v1/pools"]["get"]["deprecated"] is True


async def test_answers_are_what_it_says(api, document):
    vm = await api.fork(name="shown")
    run = (await api.run(vm, "echo x"))["run_id"]
    chunk = {"path": "/f", "size": 1, "upload_id": "u", "start": 0, "end": 1, "content": "eA=="}
    sync = "/v1/vms/{id}/sync"
    for method, template, path, body in (
        ("get", "/v1/health", "/health", None),
        ("get", "/v1/regions", "/regions", None),
        ("get", "/v1/whoami", "/whoami", None),
        ("get", "/v1/vms", "/vms", None),
        ("get", "/v1/vms/{id}", f"/vms/{vm}", None),
        ("patch", "/v1/vms/{id}", f"/vms/{vm}", {"description": "x"}),
        ("post", "/v1/fork", "/fork", {"source_vm_id": vm}),
        ("post", "/v1/vms/{id}/runs", f"/vms/{vm}/runs", {"command": "echo x"}),
        ("post", "/v1/vms/{id}/runs", f"/vms/{vm}/runs", {"command": "echo x; hang", "time_to_background": 0}),
        ("get", "/v1/vms/{id}/runs", f"/vms/{vm}/runs", None),
        ("get", "/v1/vms/{id}/runs/{run_id}", f"/vms/{vm}/runs/{run}", None),
        ("post", "/v1/vms/{id}/sessions", f"/vms/{vm}/sessions", {}),
        ("get", "/v1/vms/{id}/sessions", f"/vms/{vm}/sessions", None),
        ("post", sync, f"/vms/{vm}/sync", {"op": "write", "writes": [chunk, {**chunk, "end": 5, "upload_id": "v"}]}),
        ("post", sync, f"/vms/{vm}/sync", {"op": "read", "path": "/f"}),
        ("post", sync, f"/vms/{vm}/sync", {"op": "manifest", "path": "/etc"}),
        ("post", "/v1/filesystems", "/filesystems", {"name": "shown", "size_mib": 64}),
        ("get", "/v1/filesystems", "/filesystems", None),
        ("get", "/v1/filesystems/{filesystem_id}", "/filesystems/shown", None),
        ("post", "/v1/vms/{id}/mounts", f"/vms/{vm}/mounts", {"filesystem_id": "shown", "read_only": True}),
        ("get", "/v1/vms/{id}/mounts", f"/vms/{vm}/mounts", None),
        ("get", "/v1/vms/{id}/syncs", f"/vms/{vm}/syncs", None),
        ("post", "/v1/api-keys", "/api-keys", {"name": "k"}),
        ("get", "/v1/api-keys", "/api-keys", None),
        ("get", "/v1/vms/{id}/network", f"/vms/{vm}/network", None),
        ("get", "/v1/vms/{id}/network", "/vms/nope/network", None),
        ("get", "/v1/vms/{id}", "/vms/nope", None),
        ("get", "/v1/vms/{id}/policies", "/vms/nope/policies", None),
        ("get", "/v1/vms/{id}/policies", f"/vms/{vm}/policies", None),
        ("put", "/v1/vms/{id}/policies", f"/vms/{vm}/policies", {"policies": [{"type": "outbound", "action": "deny"}]}),
        ("put", "/v1/secrets/{name}", "/secrets/KEY", {"value": "v"}),
        ("get", "/v1/secrets", "/secrets", None),
        ("get", "/api/v1/vms/list", "//api/v1/vms/list", None),
        ("post", "/api/v1/vms/{id}/run", f"//api/v1/vms/{vm}/run", {"command": "pwd", "session_id": 4}),
    ):
        response = await api(method.upper(), path, body)
        shown = document["paths"][template][method]["responses"][str(response.status_code)]
        schema = shown["content"]["application/json"]["schema"]
        jsonschema.validate(response.json(), {**document, **schema}, Draft202012Validator)


def test_two_operations_for_one_route_are_a_mistake():
    async def handler(exchange):
        raise NotImplementedError

    one = Operation("a", "GET", "/v1/a/{b}", handler, "")
    with pytest.raises(ValueError, match="two operations"):
        Router([one, Operation("b", "GET", "/v1/a/{b}", handler, "")])
    with pytest.raises(ValueError, match="other names"):
        Router([one, Operation("c", "PUT", "/v1/a/{c}", handler, "")])
