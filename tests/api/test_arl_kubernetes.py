"""ARL's Kubernetes protocol over a core in memory: objects made, looked at, changed and deleted."""

from __future__ import annotations

import json

import pytest

from kube import ARL, TABLE, Kube, Watch, pool_spec
from together import together


@pytest.fixture
def kube(api) -> Kube:
    return Kube(api)


# Objects


async def test_an_object_gets_what_every_object_has(kube):
    made = await kube.pool("p1", 2)
    metadata = made["metadata"]
    assert made["apiVersion"] == "arl.infra.io/v1alpha1" and made["kind"] == "WarmPool"
    assert metadata["namespace"] == "default" and metadata["generation"] == 1
    assert len(metadata["uid"]) == 36 and metadata["resourceVersion"].isdecimal()
    assert metadata["creationTimestamp"].endswith("Z") and len(metadata["creationTimestamp"]) == 20
    assert made["spec"] == pool_spec(2)
    ready = await kube.until("warmpools", "p1", lambda one: one["status"]["readyReplicas"] == 2)
    assert ready["status"] == {"readyReplicas": 2, "allocatedReplicas": 0}
    assert ready["metadata"]["uid"] == metadata["uid"]


async def test_a_body_needs_neither_type_nor_kind(kube):
    """kubernetes 37 sends no Content-Type at all."""
    body = json.dumps({"metadata": {"name": "p1"}, "spec": pool_spec()}).encode()
    assert (await kube("POST", "warmpools", body)).status_code == 201
    for media in ("application/yaml", "application/vnd.kubernetes.protobuf"):
        headers = {"content-type": media}
        await kube.refused(415, "send application/json", "POST", "warmpools", body, headers=headers)


async def test_names_are_taken_once(kube):
    await kube.pool()
    told = await kube.refused(
        409, 'warmpools.arl.infra.io "p1" already exists', "POST", "warmpools",
        {"metadata": {"name": "p1"}, "spec": pool_spec()},
    )  # fmt: skip
    assert told["details"] == {"name": "p1", "group": "arl.infra.io", "kind": "warmpools"}
    for plural, spec in (("sandboxes", {"poolRef": "p1"}), ("tasks", {"sandboxRef": "s", "steps": []})):
        await kube.ok("POST", plural, {"metadata": {"name": "one"}, "spec": spec}, 201)
        told = await kube.refused(409, "already exists", "POST", plural, {"metadata": {"name": "one"}, "spec": spec})
        assert told["reason"] == "AlreadyExists"
        generated = await kube.ok("POST", plural, {"metadata": {"generateName": "g-"}, "spec": spec}, 201)
        assert generated["metadata"]["name"].startswith("g-") and len(generated["metadata"]["name"]) == 7


async def test_namespaces_are_apart(kube, api):
    await kube.pool()
    other = Kube(api, namespace="team-a")
    await other.refused(404, 'warmpools.arl.infra.io "p1" not found', "GET", "warmpools/p1")
    await other.pool(replicas=0)
    assert [one["metadata"]["namespace"] for one in (await kube.ok("GET", f"{ARL}/warmpools"))["items"]] == [
        "default", "team-a",
    ]  # fmt: skip
    names = [one["metadata"]["name"] for one in (await kube.ok("GET", "/k8s/api/v1/namespaces"))["items"]]
    assert names == ["default", "team-a"]
    assert (await kube.ok("GET", "/k8s/api/v1/namespaces/anything"))["status"]["phase"] == "Active"
    await kube.refused(400, "DNS-1123", "GET", f"{ARL}/namespaces/No_Such/warmpools")
    body = {"metadata": {"name": "x", "namespace": "team-a"}, "spec": pool_spec()}
    await kube.refused(400, "does not match the namespace", "POST", "warmpools", body)


WRONG = [
    ("warmpools", {}, "spec: Required value"),
    ("warmpools", {"spec": {"replicas": 1}}, "spec.template: Required value"),
    ("warmpools", {"spec": {"replicas": "2", "template": {}}}, "must be of type integer"),
    ("warmpools", {"spec": {"replicas": 2.5, "template": {}}}, "must be of type integer"),
    ("warmpools", {"spec": {"replicas": True, "template": {}}}, "must be of type integer"),
    ("warmpools", {"spec": {"replicas": 1 << 31, "template": {}}}, "int32"),
    ("warmpools", {"spec": pool_spec(-1)}, "must not be negative"),
    ("warmpools", {"spec": pool_spec(100_000)}, "replicas: 0 to"),
    ("warmpools", {"spec": pool_spec(image="")}, "image: Required value"),
    ("warmpools", {"spec": pool_spec(image="nope:1")}, "boxwood image import"),
    ("warmpools", {"spec": pool_spec(env=[{"name": "A", "valueFrom": {}}])}, "valueFrom: Forbidden"),
    ("warmpools", {"spec": pool_spec(securityContext={"privileged": True})}, "privileged: Forbidden"),
    ("warmpools", {"spec": pool_spec(resources={"limits": {"cpu": "much"}})}, "limits[cpu]: Invalid value"),
    ("warmpools", {"spec": pool_spec(resources={"limits": {"nvidia.com/gpu": 1}})}, "Forbidden: VMs have cpu"),
    ("warmpools", {"spec": pool_spec(resources={"limits": {"memory": "1Mi"}})}, "memory"),
    ("warmpools", {"spec": pool_spec(volumeMounts=[{"name": "v", "mountPath": "/v"}])}, 'Not found: "v"'),
    ("warmpools", {"spec": {"replicas": 1, "template": {"spec": {"containers": []}}}}, "a container named executor"),
    ("warmpools", {"metadata": {"name": "a.b"}, "spec": pool_spec()}, "DNS-1123 label"),
    ("warmpools", {"metadata": {"name": "A"}, "spec": pool_spec()}, "DNS-1123 label"),
    ("warmpools", {"metadata": {"name": "x", "finalizers": ["f"]}, "spec": pool_spec()}, "finalizers: Forbidden"),
    ("warmpools", {"metadata": {"name": "x", "labels": {"a b": "c"}}, "spec": pool_spec()}, "qualified name"),
    ("warmpools", {"metadata": {"name": "x", "labels": {"a": 1}}, "spec": pool_spec()}, "must be of type string"),
    ("sandboxes", {"spec": {}}, "spec.poolRef: Required value"),
    ("sandboxes", {"spec": {"poolRef": "No"}}, "the name of a WarmPool"),
    ("sandboxes", {"spec": {"poolRef": "p", "idleTimeoutSeconds": -1}}, "greater than or equal to 0"),
    ("sandboxes", {"spec": {"poolRef": "p", "keepAlive": "yes"}}, "must be of type boolean"),
    ("sandboxes", {"metadata": {"name": "x" * 254}, "spec": {"poolRef": "p"}}, "DNS-1123 subdomain"),
    ("tasks", {"spec": {"sandboxRef": "s"}}, "spec.steps: Required value"),
    ("tasks", {"spec": {"sandboxRef": "s", "steps": [{"name": "a"}]}}, "spec.steps[0].type: Required value"),
    ("tasks", {"spec": {"sandboxRef": "s", "steps": [], "timeout": "soon"}}, "invalid duration"),
    ("tasks", {"spec": {"sandboxRef": "s", "steps": [], "timeout": "-1s"}}, "must not be negative"),
    ("tasks", {"spec": {"sandboxRef": "s", "steps": [], "retries": 11}}, "less than or equal to 10"),
    ("tasks", {"spec": {"sandboxRef": "s", "steps": [{"name": "a", "type": "Command", "env": {"K": 1}}]}}, "env.K"),
]  # fmt: skip


@together(("plural", "body", "text"), WRONG)
async def test_what_does_not_fit_is_named(kube, plural, body, text):
    told = await kube.refused(422, text, "POST", plural, {"metadata": {"name": "x"}, **body})
    assert told["reason"] == "Invalid" and told["details"]["causes"]
    assert (await kube.ok("GET", plural))["items"] == []


async def test_bodies_that_are_no_objects(kube):
    await kube.refused(400, "not JSON", "POST", "warmpools", b"{")
    await kube.refused(400, "must be an object", "POST", "warmpools", [])
    await kube.refused(400, "does not match", "POST", "warmpools", {"kind": "Pod"})
    await kube.refused(413, "bytes", "POST", "warmpools", b" " * ((3 << 20) + 1))
    deep = b'{"metadata":{"name":"x"},"spec":' + b'{"a":' * 200 + b"1" + b"}" * 201
    await kube.refused(400, "nested more than 100 deep", "POST", "warmpools", deep)
    await kube.refused(400, "nested too deeply", "POST", "warmpools", b'{"a":' * 100_000)


async def test_vast_objects(kube):
    """Everybody would wait while they are looked at."""
    steps = [{"name": "a", "type": "Command", "command": ["x"] * 1000}] * 50
    body = {"metadata": {"name": "t1"}, "spec": {"sandboxRef": "s1", "steps": steps}}
    await kube.refused(400, "more than 50000 members and items", "POST", "tasks", body)
    await kube.ok("POST", "tasks", {**body, "spec": {**body["spec"], "steps": steps[:40]}}, 201)
    patch = {"spec": {"steps": steps}}
    await kube.refused(
        400, "more than 50000", "PATCH", "tasks/t1", patch, headers={"content-type": "application/merge-patch+json"}
    )


async def test_null_counts_as_not_given(kube):
    await kube.pool()
    made = await kube.sandbox(idleTimeoutSeconds=None, keepAlive=None)
    assert made["spec"] == {"poolRef": "p1"} and made["status"]["phase"] == "Ready"


async def test_a_member_that_nobody_knows(kube):
    """kubectl asks for strictness; without it such a member is kept and ignored."""
    spec = {"poolRef": "p1", "keepAlife": True}
    body = {"metadata": {"name": "s1"}, "spec": spec}
    told = 'strict decoding error: unknown field "spec.keepAlife"'
    await kube.refused(400, told, "POST", "sandboxes?fieldValidation=Strict", body)
    assert (await kube.ok("POST", "sandboxes", body, 201))["spec"] == spec


# Changing


async def test_replacing_needs_the_version_that_was_read(kube):
    await kube.pool(replicas=0)
    old = await kube.ok("GET", "warmpools/p1")
    new = {**old, "spec": pool_spec(3)}
    changed = await kube.ok("PUT", "warmpools/p1", new)
    assert changed["spec"]["replicas"] == 3 and changed["metadata"]["generation"] == 2
    assert int(changed["metadata"]["resourceVersion"]) > int(old["metadata"]["resourceVersion"])
    await kube.refused(409, "the object has been modified", "PUT", "warmpools/p1", new)
    bare = {"metadata": {"name": "p1"}, "spec": pool_spec(4)}
    await kube.refused(422, "must be specified for an update", "PUT", "warmpools/p1", bare)
    await kube.refused(400, "does not match the name on the URL", "PUT", "warmpools/p1", {"metadata": {"name": "p2"}})
    await kube.refused(404, "not found", "PUT", "warmpools/p2", bare)


async def test_patches(kube):
    await kube.pool(replicas=0)
    merge = {"content-type": "application/merge-patch+json"}
    patch = {"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}}
    made = await kube.ok("PATCH", "warmpools/p1", patch, headers=merge)
    assert made["metadata"]["labels"] == {"a": "b"} and made["spec"] == pool_spec(1)
    gone = await kube.ok("PATCH", "warmpools/p1", {"metadata": {"labels": None}}, headers=merge)
    assert "labels" not in gone["metadata"] and gone["metadata"]["generation"] == 2
    by_place = {"content-type": "application/json-patch+json"}
    steps = [
        {"op": "test", "path": "/spec/replicas", "value": 1},
        {"op": "replace", "path": "/spec/replicas", "value": 2},
    ]
    assert (await kube.ok("PATCH", "warmpools/p1", steps, headers=by_place))["spec"]["replicas"] == 2
    await kube.refused(400, "the test failed", "PATCH", "warmpools/p1", steps, headers=by_place)
    for media, text in (
        ("application/apply-patch+yaml", "server-side apply is not supported"),
        ("application/strategic-merge-patch+json", "not for custom resources"),
        ("text/plain", "unknown format"),
    ):
        told = await kube.refused(415, text, "PATCH", "warmpools/p1", {}, headers={"content-type": media})
        assert "application/merge-patch+json" in told["message"]


async def test_what_stays_as_it_is(kube):
    """A pool's VMs are forks of what its image was; a Sandbox has its VM, a Task has been done."""
    await kube.pool(replicas=0)
    merge = {"content-type": "application/merge-patch+json"}
    spec = pool_spec(0, image="arkuntu", resources={"limits": {"cpu": "2"}})
    told = await kube.refused(422, "cannot be changed", "PATCH", "warmpools/p1", {"spec": spec}, headers=merge)
    assert len(told["details"]["causes"]) == 2
    await kube.sandbox()
    await kube.refused(422, "cannot be changed", "PATCH", "sandboxes/s1", {"spec": {"poolRef": "p2"}}, headers=merge)
    kept = await kube.ok("PATCH", "sandboxes/s1", {"spec": {"keepAlive": True}}, headers=merge)
    assert kept["spec"] == {"poolRef": "p1", "keepAlive": True} and kept["status"]["phase"] == "Ready"
    await kube.task("t1", ["echo", "x"])
    await kube.refused(422, "cannot be changed", "PATCH", "tasks/t1", {"spec": {"timeout": "1s"}}, headers=merge)
    await kube.ok("PATCH", "tasks/t1", {"spec": {"ttlSecondsAfterFinished": 60}}, headers=merge)


async def test_a_dry_run_changes_nothing(kube):
    body = {"metadata": {"name": "p1"}, "spec": pool_spec()}
    assert (await kube.ok("POST", "warmpools?dryRun=All", body, 201))["spec"] == body["spec"]
    await kube.refused(404, "not found", "GET", "warmpools/p1")
    await kube.pool(replicas=0)
    merge = {"content-type": "application/merge-patch+json"}
    dry = await kube.ok("PATCH", "warmpools/p1?dryRun=All", {"spec": {"replicas": 7}}, headers=merge)
    assert dry["spec"]["replicas"] == 7
    await kube.ok("DELETE", "warmpools/p1?dryRun=All")
    assert (await kube.ok("GET", "warmpools/p1"))["spec"]["replicas"] == 0


async def test_deleting(kube):
    await kube.pool()
    made = await kube.sandbox()
    uid = made["metadata"]["uid"]
    wrong = {"kind": "DeleteOptions", "preconditions": {"uid": "x"}}
    await kube.refused(409, "precondition", "DELETE", "sandboxes/s1", wrong)
    done = await kube.ok("DELETE", "sandboxes/s1", {"preconditions": {"uid": uid}})
    assert done["status"] == "Success"
    assert done["details"] == {"name": "s1", "group": "arl.infra.io", "kind": "sandboxes", "uid": uid}
    await kube.refused(404, 'sandboxes.arl.infra.io "s1" not found', "DELETE", "sandboxes/s1")
    assert (await kube.api.ok("GET", "/vms"))["vms"] == []
    for name, label in (("a", "x"), ("b", "y"), ("c", "x")):
        body = {"metadata": {"name": name, "labels": {"l": label}}, "spec": {"poolRef": "p1"}}
        await kube.ok("POST", "sandboxes", body, 201)
    assert (await kube.ok("DELETE", "sandboxes?labelSelector=l%3Dx"))["status"] == "Success"
    assert [one["metadata"]["name"] for one in (await kube.ok("GET", "sandboxes"))["items"]] == ["b"]


# Looking


@pytest.fixture
async def labelled(kube):
    labels = {"a": {"app": "x", "tier": "1"}, "b": {"app": "y"}, "c": {}}
    for name in labels:
        body = {"metadata": {"name": name, "labels": labels[name]}, "spec": {"poolRef": "p"}}
        await kube.ok("POST", "sandboxes", body, 201)


@together(
    ("selector", "names"),
    [
        ("labelSelector=app=x", ["a"]),
        ("labelSelector=app==x,tier=1", ["a"]),
        ("labelSelector=app!=x", ["b", "c"]),
        ("labelSelector=app", ["a", "b"]),
        ("labelSelector=!app", ["c"]),
        ("labelSelector=app in (x, y)", ["a", "b"]),
        ("labelSelector=app notin (x)", ["b", "c"]),
        ("fieldSelector=metadata.name=b", ["b"]),
        ("fieldSelector=metadata.name!=b,metadata.namespace=default", ["a", "c"]),
    ],
)
async def test_selectors(kube, labelled, selector, names):
    query = selector.replace("!", "%21").replace(" ", "%20")
    assert [one["metadata"]["name"] for one in (await kube.ok("GET", f"sandboxes?{query}"))["items"]] == names


@pytest.mark.parametrize(
    ("plural", "spec"), [("tasks", {"sandboxRef": "none", "steps": []}), ("warmpools", pool_spec(0))]
)
async def test_lists_in_pieces(kube, api, plural, spec):
    """As kubectl asks for them, 500 at a time."""
    for namespace in ("default", "other"):
        for number in range(3):
            body = {"metadata": {"name": f"n{number}", "labels": {"odd": str(number % 2)}}, "spec": spec}
            await Kube(api, namespace=namespace).ok("POST", plural, body, 201)

    async def pieces(path: str) -> list:
        found, more = [], ""
        while more is not None:
            piece = await kube.ok("GET", f"{path}&continue={more}")
            found.append([one["metadata"]["name"] for one in piece["items"]])
            more = piece["metadata"].get("continue")
        return found

    assert await pieces(f"{plural}?limit=2") == [["n0", "n1"], ["n2"]]
    assert await pieces(f"{ARL}/{plural}?limit=4") == [["n0", "n1", "n2", "n0"], ["n1", "n2"]]
    assert await pieces(f"{ARL}/{plural}?limit=1&labelSelector=odd%3D1") == [["n1"], ["n1"], []]
    assert await pieces(f"{plural}?limit=0") == [["n0", "n1", "n2"]]
    await kube.refused(400, "continue key is not valid", "GET", f"{plural}?continue=x")


async def test_a_list_ends_when_it_is_big_enough(kube, monkeypatch):
    """Whatever the client asked for; it is told that there is more."""
    for module in ("resources", "store"):
        monkeypatch.setattr(f"boxwood.dialects.arl_kubernetes.{module}.PAGE_BYTES", 2000)
    for number in range(4):
        spec = {"sandboxRef": "none", "steps": [], "traceID": "x" * 900}
        await kube.ok("POST", "tasks", {"metadata": {"name": f"t{number}"}, "spec": spec}, 201)
    listed = await kube.ok("GET", "tasks")
    assert 1 <= len(listed["items"]) < 4 and listed["metadata"]["continue"]
    one = await kube.ok("GET", "tasks?fieldSelector=metadata.name%3Dt3")
    assert [item["metadata"]["name"] for item in one["items"]] == ["t3"] and "continue" not in one["metadata"]
    async with Watch(kube, "tasks?watch=1") as watch:
        assert [(await watch.next())["object"]["metadata"]["name"] for _ in range(4)] == ["t0", "t1", "t2", "t3"]
    await kube.ok("DELETE", "tasks")
    assert (await kube.ok("GET", "tasks"))["items"] == []


async def test_selectors_that_cannot_be(kube):
    await kube.refused(400, "cannot read", "GET", "sandboxes?labelSelector=a%3D%28")
    await kube.refused(400, "field label not supported", "GET", "sandboxes?fieldSelector=spec.poolRef%3Dx")
    await kube.refused(400, "the query has more than", "GET", f"sandboxes?labelSelector={'a' * 17000}")


async def test_tables(kube):
    await kube.pool()
    await kube.sandbox()
    table = await kube.ok("GET", "sandboxes", headers={"accept": TABLE})
    assert table["kind"] == "Table"
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Phase", "Pod", "Age"]
    (row,) = table["rows"]
    pod = (await kube.ok("GET", "sandboxes/s1"))["status"]["podName"]
    assert row["cells"][:3] == ["s1", "Ready", pod] and pod.startswith("p1-") and len(pod) == 8
    assert row["object"]["kind"] == "PartialObjectMetadata"
    whole = await kube.ok("GET", "sandboxes/s1?includeObject=Object", headers={"accept": TABLE})
    assert whole["rows"][0]["object"]["spec"] == {"poolRef": "p1"}
    await kube.task("t1", ["exit", "3"])
    tasks = await kube.ok("GET", "tasks", headers={"accept": TABLE})
    assert [column["name"] for column in tasks["columnDefinitions"]] == ["Name", "State", "ExitCode", "Age"]
    assert tasks["rows"][0]["cells"][:3] == ["t1", "Failed", 3]
    crds = await kube.ok(
        "GET", "/k8s/apis/apiextensions.k8s.io/v1/customresourcedefinitions", headers={"accept": TABLE}
    )
    assert [row["cells"][0] for row in crds["rows"]] == [
        "warmpools.arl.infra.io", "sandboxes.arl.infra.io", "tasks.arl.infra.io",
    ]  # fmt: skip


async def test_pools_that_were_made_elsewhere(kube, api):
    """All of this server's pools are WarmPools, and a WarmPool is a pool."""
    await api.ok("POST", "//v1/warm-pools", {"name": "other", "source_vm_name": "ubuntu", "replicas": 0})
    found = await kube.ok("GET", "warmpools/other")
    assert found["spec"]["replicas"] == 0
    merge = {"content-type": "application/merge-patch+json"}
    await kube.ok("PATCH", "warmpools/other", {"spec": {"replicas": 1}}, headers=merge)
    assert (await api.ok("GET", "//v1/warm-pools/other"))["replicas"] == 1
    made = await kube.sandbox(pool="other")
    assert made["status"]["phase"] == "Ready"
    await kube.pool("mine", 0)
    assert (await api.ok("GET", "//v1/warm-pools/mine"))["replicas"] == 0


# Discovery


async def test_discovery(kube):
    assert (await kube.ok("GET", "/k8s/version"))["major"] == "1"
    assert (await kube.ok("GET", "/k8s/api"))["versions"] == ["v1"]
    groups = (await kube.ok("GET", "/k8s/apis"))["groups"]
    assert [group["name"] for group in groups] == ["arl.infra.io", "apiextensions.k8s.io"]
    for group in groups:
        assert (await kube.ok("GET", f"/k8s/apis/{group['name']}"))["preferredVersion"] == group["preferredVersion"]
    resources = (await kube.ok("GET", ARL))["resources"]
    assert [one["name"] for one in resources] == [
        f"{plural}{more}" for plural in ("warmpools", "sandboxes", "tasks") for more in ("", "/status")
    ]
    for version in ("/k8s/api/v1", "/k8s/apis/apiextensions.k8s.io/v1"):
        assert (await kube.ok("GET", version))["kind"] == "APIResourceList"


async def test_the_crds(kube):
    place = "/k8s/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for one in (await kube.ok("GET", place))["items"]:
        assert one == await kube.ok("GET", f"{place}/{one['metadata']['name']}")
        (version,) = one["spec"]["versions"]
        assert version["schema"]["openAPIV3Schema"]["properties"]["spec"]["required"]
    await kube.refused(404, "not found", "GET", f"{place}/pods.arl.infra.io")
    await kube.refused(405, "does not allow this method", "DELETE", f"{place}/tasks.arl.infra.io")


async def test_documents_for_kubectl(kube):
    v3 = (await kube.ok("GET", "/k8s/openapi/v3"))["paths"]["apis/arl.infra.io/v1alpha1"]["serverRelativeURL"]
    document = await kube.ok("GET", v3)
    assert {name.rpartition(".")[2] for name in document["components"]["schemas"]} == {"WarmPool", "Sandbox", "Task"}
    proto = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
    empty = await kube("GET", "/k8s/openapi/v2", headers={"accept": proto})
    assert (empty.status_code, empty.content) == (200, b"")
    for nothing in ("events", "services"):
        assert (await kube.ok("GET", f"/k8s/api/v1/namespaces/kube-system/{nothing}"))["items"] == []


async def test_what_is_not_there(kube):
    await kube.refused(404, "could not find the requested resource", "GET", "/k8s/api/v1/pods")
    await kube.refused(404, "could not find the requested resource", "GET", "/k8s")
    await kube.refused(405, "does not allow this method", "PUT", "warmpools", {})
    await kube.refused(405, "does not allow this method", "PATCH", "sandboxes/x/status", {})
    await kube.refused(501, "pods/exec", "GET", "/k8s/api/v1/namespaces/default/pods/p/exec?command=sh")
