"""Who carries ARL's objects: our own client, or the official one of Kubernetes; and which of them is taken."""

from __future__ import annotations

import gc
import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from boxwood.client.discovery import Target
from boxwood.faces.arl import ApiException, ArlError, SandboxSession, TaskTimeout, WarmPoolManager
from boxwood.faces.arl.objects import Objects
from boxwood.faces.arl.ours import BoxwoodObjects
from boxwood.faces.arl.place import connect
from unit.client.stub import KEY, StubServer, error

POOLS = "/k8s/apis/arl.infra.io/v1alpha1/namespaces/ns/warmpools"
POOL = {"metadata": {"name": "p"}, "spec": {"replicas": 1}, "status": {"readyReplicas": 1}}
BODY = {"metadata": {"name": "p", "namespace": "ns"}, "spec": {"replicas": 1}}


def refused(status: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": message}


def kubeconfig(home: Path, url: str, token: str = KEY) -> Path:
    file = home / "kubeconfig"
    text = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": f"{url}/k8s"}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
            {"name": "bad", "context": {"cluster": "none", "user": "u"}},
        ],
    }
    file.write_text(json.dumps(text))
    return file


@pytest.fixture(params=["ours", "kubernetes"])
def objects(request: pytest.FixtureRequest, server: StubServer, tmp_path: Path) -> Iterator[Objects]:
    if request.param == "kubernetes":
        pytest.importorskip("kubernetes")
        made = connect(kubeconfig=kubeconfig(tmp_path, server.url))
    else:
        made = connect(server.url, KEY)
    yield made
    made.close()


# --- both of them


def test_four_requests(objects: Objects, server: StubServer) -> None:
    server.script(f"POST {POOLS}", (201, POOL))
    server.script(f"GET {POOLS}/p", (200, POOL))
    server.script(f"GET {POOLS}", (200, {"kind": "WarmPoolList", "items": [POOL]}))
    server.script(f"DELETE {POOLS}/p", (200, {"kind": "Status", "status": "Success"}))
    assert objects.create("warmpools", "ns", BODY) == POOL == objects.get("warmpools", "ns", "p")
    assert objects.list("warmpools", "ns") == [POOL]
    objects.delete("warmpools", "ns", "p")
    objects.close()
    assert objects.get("warmpools", "ns", "p") == POOL, "closed connections are opened again"
    assert server.requests[0].body == BODY
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (400, "Bad Request"),
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (404, "Not Found"),
        (409, "Conflict"),
        (500, "Internal Server Error"),
    ],
)
def test_refusals(objects: Objects, server: StubServer, status: int, phrase: str) -> None:
    server.script(f"POST {POOLS}", refused(status, "Whatever", "so it is"))
    with pytest.raises(ApiException) as no:
        objects.create("warmpools", "ns", BODY)
    assert (no.value.status, no.value.reason, no.value.message) == (status, phrase, "so it is")
    assert json.loads(no.value.body or "")["reason"] == "Whatever" and isinstance(no.value, RuntimeError)
    assert len(server.requests) == 1
    exceptions = pytest.importorskip("kubernetes.client.exceptions")
    assert isinstance(no.value, exceptions.ApiException)


def test_a_long_message_is_whole(objects: Objects, server: StubServer) -> None:
    server.script(f"GET {POOLS}/p", refused(422, "Invalid", "x" * 3000))
    with pytest.raises(ApiException, match=r"x{3000}"):
        objects.get("warmpools", "ns", "p")


def test_an_answer_that_does_not_come(objects: Objects, server: StubServer) -> None:
    over = threading.Event()

    def late(_: object) -> tuple[int, Any]:
        over.wait(20)
        return 200, None

    server.script(f"GET {POOLS}/p", late)
    try:
        with pytest.raises(TaskTimeout, match=r"within 0\.1 s"):
            objects.get("warmpools", "ns", "p", 0.1)
        assert len(server.requests) == 1, "asked once"
    finally:
        over.set()


@pytest.mark.parametrize("said", [b"[1]", b'"text"', b"<html>"])
def test_what_is_no_object(objects: Objects, server: StubServer, said: bytes) -> None:
    server.script(f"GET {POOLS}/p", (200, said))
    with pytest.raises(ApiException, match="not an answer"):
        objects.get("warmpools", "ns", "p")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("kubernetes")
    for made in (
        BoxwoodObjects(Target("http://127.0.0.1:1", KEY)),
        connect(kubeconfig=kubeconfig(tmp_path, "http://127.0.0.1:1")),
    ):
        with pytest.raises(ApiException) as none:
            made.get("warmpools", "ns", "p")
        assert none.value.status == 0 and none.value.reason


# --- ours


@pytest.fixture
def ours(server: StubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[BoxwoodObjects]:
    monkeypatch.setattr("boxwood.faces.arl.ours.sleep", lambda seconds: None)
    made = BoxwoodObjects(Target(server.url, KEY))
    yield made
    made.close()


def test_names_are_one_part_of_the_path(ours: BoxwoodObjects, server: StubServer) -> None:
    server.script("GET /k8s/apis/arl.infra.io/v1alpha1/namespaces/a%2Fb%3F/warmpools/c%20d", (200, POOL))
    assert ours.get("warmpools", "a/b?", "c d") == POOL
    for name in ("", "..", "."):
        with pytest.raises(ApiException) as no:
            ours.get("warmpools", "ns", name)
        assert no.value.status == 400
    assert len(server.requests) == 1


def test_news_is_what_the_server_is_to_wait_for(ours: BoxwoodObjects, server: StubServer) -> None:
    server.script(f"GET {POOLS}/p", (200, POOL))
    ours.get("warmpools", "ns", "p", 2.5, news=True)
    ours.get("warmpools", "ns", "p")
    assert [request.headers.get("prefer") for request in server.requests] == ["wait=3", None]


def test_a_lost_answer_makes_one_object_and_not_two(ours: BoxwoodObjects, server: StubServer) -> None:
    server.script(f"POST {POOLS}", (0, None), refused(409, "AlreadyExists", "there is one"))
    server.script(f"GET {POOLS}/p", (200, POOL))
    assert ours.create("warmpools", "ns", BODY, ours=True) == POOL
    assert [request.method for request in server.requests] == ["POST", "POST", "GET"]


def test_a_name_of_the_callers_is_not_tried_again(ours: BoxwoodObjects, server: StubServer) -> None:
    server.script(f"POST {POOLS}", (0, None))
    with pytest.raises(ApiException) as lost:
        ours.create("warmpools", "ns", BODY)
    assert lost.value.status == 0 and len(server.requests) == 1
    server.script(f"POST {POOLS}", refused(409, "AlreadyExists", "there is one"))
    with pytest.raises(ApiException, match="there is one"):
        ours.create("warmpools", "ns", BODY)


@pytest.mark.parametrize("status", [429, 502, 503])
def test_what_passes_is_waited_for(ours: BoxwoodObjects, server: StubServer, status: int) -> None:
    server.script(f"GET {POOLS}/p", refused(status, "Busy", "later"), (200, POOL))
    assert ours.get("warmpools", "ns", "p") == POOL
    server.script(f"GET {POOLS}/p", refused(status, "Busy", "later"))
    with pytest.raises(ApiException) as busy:
        ours.get("warmpools", "ns", "p")
    assert (busy.value.status, busy.value.message) == (status, "later")


def test_a_server_without_this_dialect(ours: BoxwoodObjects, server: StubServer) -> None:
    server.script(f"GET {POOLS}/p", (404, error("not_found", "no route for GET /k8s")))
    with pytest.raises(ApiException, match="no route") as none:
        ours.get("warmpools", "ns", "p")
    assert none.value.status == 404


@pytest.mark.parametrize("items", [None, {}, [1, None, POOL]])
def test_a_list_holds_objects(ours: BoxwoodObjects, server: StubServer, items: Any) -> None:
    server.script(f"GET {POOLS}", (200, {"items": items}))
    assert ours.list("warmpools", "ns") == ([POOL] if items else [])


def test_what_cannot_be_sent(ours: BoxwoodObjects, server: StubServer) -> None:
    with pytest.raises(ApiException, match="JSON") as no:
        ours.create("warmpools", "ns", {"metadata": object()})
    assert no.value.status == 400 and server.requests == []


def test_connections_end_with_whoever_used_them(server: StubServer) -> None:
    server.script(f"GET {POOLS}/p", (200, POOL))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        manager = WarmPoolManager("ns", url=server.url, api_key=KEY)
        assert manager.get_warmpool("p") == POOL
        del manager
        gc.collect()


def test_our_server_has_no_custom_objects_api(server: StubServer) -> None:
    with pytest.raises(ArlError, match="CustomObjectsApi"):
        _ = SandboxSession("p", url=server.url, api_key=KEY).custom_api


# --- which server


@pytest.fixture
def nothing(tmp_path: Path) -> dict[str, str]:
    """An environment without any server."""
    return {"BOXWOOD_DATA": str(tmp_path / "none"), "HOME": str(tmp_path)}


def of_boxwood(made: Objects) -> str:
    assert isinstance(made, BoxwoodObjects)
    return made._url


def of_cluster(made: Objects) -> str:
    return str(made.api.api_client.configuration.host)  # type: ignore[attr-defined]


def test_no_server_at_all(nothing: dict[str, str]) -> None:
    with pytest.raises(ApiException, match="boxwood up") as none:
        connect(env=nothing)
    assert none.value.status == 0


def test_boxwood_comes_before_a_cluster(nothing: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("kubernetes")
    cluster = kubeconfig(tmp_path, "http://127.0.0.1:2")
    nothing |= {"KUBECONFIG": str(cluster), "BOXWOOD_URL": "http://127.0.0.1:1", "BOXWOOD_API_KEY": KEY}
    assert of_boxwood(connect(env=nothing)) == "http://127.0.0.1:1"
    assert of_boxwood(connect("http://127.0.0.1:3", KEY, env=nothing)) == "http://127.0.0.1:3"
    assert of_cluster(connect(kubeconfig=cluster, env=nothing)) == "http://127.0.0.1:2/k8s"
    assert of_cluster(connect(kubeconfig=cluster, context="here", env=nothing)) == "http://127.0.0.1:2/k8s"
    with pytest.raises(ApiException) as keyless:
        connect("http://127.0.0.1:3", env=nothing)
    assert keyless.value.status == 401


@pytest.mark.parametrize("where", ["KUBECONFIG", "HOME"])
def test_a_cluster_where_there_is_no_boxwood(
    nothing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    loader = pytest.importorskip("kubernetes.config.kube_config")
    (tmp_path / ".kube").mkdir()
    file = kubeconfig(tmp_path / ".kube", "http://127.0.0.1:2").rename(tmp_path / ".kube/config")
    if where == "KUBECONFIG":
        monkeypatch.setenv("KUBECONFIG", str(file))
        nothing |= {"KUBECONFIG": str(file), "HOME": "/nonexistent"}
    else:
        monkeypatch.setattr(loader, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))  # found out when the package was loaded
    assert of_cluster(connect(env=nothing)) == "http://127.0.0.1:2/k8s"


def test_a_pod_of_a_cluster(nothing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = pytest.importorskip("kubernetes.config.incluster_config")
    for name, text in (("token", "pod-token"), ("ca.crt", "CA")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(loader, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(loader, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    for name, value in (("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("KUBERNETES_SERVICE_PORT", "443")):
        monkeypatch.setenv(name, value)
        nothing[name] = value
    seen: list[Any] = []
    monkeypatch.setattr("kubernetes.client.ApiClient", lambda configuration: seen.append(configuration))
    monkeypatch.setattr("kubernetes.client.CustomObjectsApi", lambda client: client)
    connect(env=nothing)
    assert seen[0].host == "https://10.0.0.1:443" and seen[0].retries.read is False


@pytest.mark.parametrize("wrong", [{"kubeconfig": "/nonexistent/config"}, {"context": "bad"}, {"context": "nope"}])
def test_no_usable_kubeconfig(tmp_path: Path, wrong: dict[str, str]) -> None:
    pytest.importorskip("kubernetes")
    given = {"kubeconfig": str(kubeconfig(tmp_path, "http://127.0.0.1:2"))} | wrong
    with pytest.raises(ArlError, match="kubeconfig"):
        connect(**given)  # type: ignore[arg-type]


def test_a_cluster_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(ArlError, match=r"pip install 'boxwood\[arl\]'"):
        connect(kubeconfig=tmp_path / "config")


def test_a_cluster_is_used_like_our_server(server: StubServer, tmp_path: Path) -> None:
    client = pytest.importorskip("kubernetes.client")
    server.script(f"GET {POOLS}/p", (200, POOL))
    given: dict[str, Any] = {"kubeconfig": kubeconfig(tmp_path, server.url)}
    uses: list[Callable[[], object]] = [
        lambda: WarmPoolManager("ns", **given).wait_for_warmpool_ready("p"),
        lambda: SandboxSession("p", "ns", **given).get_pool_status(),
    ]
    for use in uses:
        use()
    assert len(server.requests) == 2
    assert isinstance(SandboxSession("p", **given).custom_api, client.CustomObjectsApi)
