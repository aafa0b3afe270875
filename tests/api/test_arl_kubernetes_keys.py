"""ARL's Kubernetes protocol: who may ask, and that nobody sees or changes what is another organisation's."""

from __future__ import annotations

import pytest

from boxwood.dialects import arl_kubernetes
from boxwood.dialects.arl_kubernetes.operator import Operator
from boxwood.dialects.arl_kubernetes.watching import MOST_WATCHES
from boxwood.server.routes import OPERATIONS
from kube import Kube, Watch, pool_spec

MERGE = {"content-type": "application/merge-patch+json"}
BODIES = {
    "warmpools": {"metadata": {"name": "theirs"}, "spec": pool_spec(0)},
    "sandboxes": {"metadata": {"name": "theirs"}, "spec": {"poolRef": "theirs"}},
    "tasks": {"metadata": {"name": "theirs"}, "spec": {"sandboxRef": "theirs", "steps": []}},
}


def routes() -> list[tuple[str, str]]:
    found = []
    for operation in arl_kubernetes.DIALECT.operations:
        assert operation.access == "key"
        path = "/k8s" + operation.path.replace("{namespace}", "default").replace("{name}", "theirs")
        found.append((operation.method, path))
    return found


@pytest.fixture
async def kube(api) -> Kube:
    """With one of each, called `theirs`."""
    made = Kube(api)
    await made.pool("theirs", 1)
    await made.sandbox("theirs", "theirs")
    await made.task("theirs", ["put", "f", "1"], sandbox="theirs")
    return made


async def state(kube: Kube) -> list:
    shown = [(await kube.ok("GET", f"{plural}/theirs")) for plural in BODIES]
    pools = [kube.api.app.core.pools.get(await kube.api.app.core.keys.authenticate(kube.api.key), "theirs").replicas]
    return [[one["metadata"]["uid"], one["metadata"]["generation"], one["spec"]] for one in shown] + pools


async def test_without_a_key(kube):
    before = await state(kube)
    for method, path in routes():
        for key in ("", "wrong", kube.key + "x"):
            response = await Kube(kube.api, key)(method, path, BODIES.get(path.split("/")[-2]))
            assert response.status_code == 401, (method, path)
            assert response.json()["reason"] == "Unauthorized" and response.json()["message"].startswith("Unauthorized")
    assert await state(kube) == before


async def test_a_key_of_another_organisation(kube, stranger):
    """It has a world of its own, in which the same names are free."""
    before = await state(kube)
    other = Kube(kube.api, stranger.key)
    for plural, body in BODIES.items():
        for method, wanted in (("GET", None), ("DELETE", None), ("PUT", body), ("PATCH", {"spec": body["spec"]})):
            headers = MERGE if method == "PATCH" else {}
            told = await other.refused(404, "not found", method, f"{plural}/theirs", wanted, headers=headers)
            assert told["reason"] == "NotFound"
        assert (await other.ok("GET", plural))["items"] == []
        assert (await other.ok("GET", f"/k8s/apis/arl.infra.io/v1alpha1/{plural}"))["items"] == []
        await other.ok("DELETE", plural)
    assert len((await other.ok("GET", "/k8s/api/v1/namespaces"))["items"]) == 1
    assert await state(kube) == before
    await other.ok("POST", "sandboxes", {"metadata": {"name": "mine"}, "spec": {"poolRef": "theirs"}}, 201)
    waits = await other.until("sandboxes", "mine", lambda one: one["status"]["conditions"])
    assert waits["status"]["phase"] == "Pending" and "not found" in waits["status"]["conditions"][0]["message"]
    done = await other.task("mine", ["cat", "f"], sandbox="theirs")
    assert done["status"]["stderr"].startswith("sandbox theirs not found")
    await other.pool("theirs", 0)
    assert await state(kube) == before


async def test_a_watch_tells_of_ones_own_alone(kube, stranger):
    other = Kube(kube.api, stranger.key)
    async with Watch(other, "warmpools?watch=1") as watch:
        await kube.pool("unseen", 0)
        await other.pool("seen", 0)
        assert (await watch.next())["object"]["metadata"]["name"] == "seen"


async def test_watches_are_bounded(kube, stranger):
    counted = Operator.of(kube.api.app).watches
    org_id = (await kube.api.app.core.keys.authenticate(kube.key)).org_id
    for _ in range(MOST_WATCHES):
        counted.begin(org_id)
    await kube.refused(429, "there are 1000 watches already", "GET", "tasks?watch=1")
    async with Watch(Kube(kube.api, stranger.key), "tasks?watch=1&timeoutSeconds=1") as watch:
        assert await watch.next() is None
    counted.end(org_id)
    async with Watch(kube, "tasks?watch=1") as watch:
        assert (await watch.next())["type"] == "ADDED"


async def test_browsers_that_were_led_astray(kube):
    """The host is checked as everywhere; the answer is in this protocol's shape."""
    headers = {"authorization": f"Bearer {kube.key}", "host": "evil.example"}
    response = await kube.api.http.get("/k8s/version", headers=headers)
    assert response.status_code == 403 and response.json()["reason"] == "Forbidden"


def test_its_operations_have_names_of_their_own():
    names = [operation.name for operation in arl_kubernetes.DIALECT.operations]
    assert len(set(names)) == len(names) and not set(names) & {operation.name for operation in OPERATIONS}
