"""Arker's surface over our client: what is asked of the server, what is handed out, what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from boxwood.faces.arker import Arker, ArkerError, BackgroundRun
from unit.client.stub import KEY, RUN, SESSION, VM, VM_ID, StubServer, error

RUNS, SYNC = f"/v1/vms/{VM_ID}/runs", f"/v1/vms/{VM_ID}/sync"


@pytest.fixture
def arker(server: StubServer) -> Iterator[Arker]:
    server.script("POST /v1/fork", (200, VM))
    server.script(f"POST {RUNS}", (200, RUN))
    with Arker(KEY, server.url) as arker:
        yield arker


def vms(*names: str) -> list[dict[str, object]]:
    """Newest first, as the server lists them."""
    return [
        VM
        | {
            "vm_id": f"{VM_ID[:-1]}{number}",
            "name": name,
            "created_at": f"2026-01-0{9 - number}T00:00:00Z",
            "root_source_vm_name": "arkuntu",
            "region": "west" if number % 2 else "east",
        }
        for number, name in enumerate(names)
    ]


# --- finding the server


def test_environment_names_server_key_and_region(server: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKER_BASE_URL", f"{server.url}/")
    monkeypatch.setenv("ARKER_API_KEY", KEY)
    monkeypatch.setenv("ARKER_REGION", "us-west-2")
    server.script("GET /v1/vms", (200, {"vms": [], "next_cursor": None}))
    with Arker() as found:
        assert (found.base_url, found.region, len(found.list_vms())) == (server.url, "us-west-2", 0)
    assert server.last.headers["authorization"] == f"Bearer {KEY}"
    assert Arker("other", base_url="http://127.0.0.1:1", region="x").base_url == "http://127.0.0.1:1"


def test_no_server_and_no_key_are_this_faces_errors() -> None:
    with pytest.raises(ArkerError) as none:
        Arker()
    assert (none.value.code, none.value.status) == ("unavailable", 0)
    with pytest.raises(ArkerError) as keyless:
        Arker(base_url="http://127.0.0.1:1")
    assert (keyless.value.code, keyless.value.status) == ("unauthorized", 401)
    with pytest.raises(ArkerError) as wrong:
        Arker("k", "http://127.0.0.1:1").vm("")
    assert (wrong.value.code, wrong.value.status) == ("bad_request", 400)


def test_a_handle_costs_no_request(arker: Arker, server: StubServer) -> None:
    assert arker.vm("arkuntu").id == "arkuntu" and arker.vm(VM_ID).vm_id == VM_ID
    assert server.requests == []


# --- forks


def test_forks_of_both_generations(arker: Arker, server: StubServer) -> None:
    vm = arker.vm("arkuntu").fork(name="a", is_public=True, region="anywhere")
    assert server.last.body == {"source_vm_name": "arkuntu", "name": "a", "public": True}
    vm.fork()
    assert server.last.body == {"source_vm_id": VM_ID}
    arker.fork("ubuntu-full")
    assert server.last.body == {"source_vm_name": "ubuntu-full"}
    arker.fork(vm, name="child", idempotency_key="k")
    assert server.last.body == {"source_vm_id": VM_ID, "name": "child"}
    assert server.last.headers["idempotency-key"] == "k"
    arker.fork(source_vm_name="mine")
    assert server.last.body == {"source_vm_name": "mine"}
    assert (vm.id, vm.name, vm.state, vm.region, vm.created_at) == (VM_ID, "n", "idle", "local", "2026-01-01T00:00:00Z")


def test_a_source_of_an_organisation(arker: Arker, server: StubServer) -> None:
    server.script("GET /v1/vms", (200, {"vms": vms("ubuntu-full", "mine"), "next_cursor": None}))
    server.script("GET /v1/whoami", (200, {"org_id": "o1", "org_name": "us"}))
    arker.fork(source_vm_name="ubuntu-full", source_org_id="ArkerHQ")
    assert server.last.body == {"source_vm_id": f"{VM_ID[:-1]}0"}
    assert server.requests[-2].query == {"public": ["true"], "org_id": ["ArkerHQ"]}
    arker.fork(source_vm_name="mine", source_org_id="o1")
    assert server.last.body == {"source_vm_id": f"{VM_ID[:-1]}1"}
    for org, name in (("o2", "mine"), ("ArkerHQ", "nothing")):
        with pytest.raises(ArkerError) as missing:
            arker.fork(source_vm_name=name, source_org_id=org)
        assert (missing.value.code, missing.value.status) == ("not_found", 404)


@pytest.mark.parametrize("given", [{}, {"source": "a", "source_vm_name": "b"}, {"source": "a", "source_org_id": "o"}])
def test_a_fork_has_one_source(arker: Arker, given: dict[str, str]) -> None:
    with pytest.raises(ArkerError) as wrong:
        arker.fork(**given)  # type: ignore[arg-type]
    assert (wrong.value.code, wrong.value.status) == ("bad_request", 400)


# --- runs


def test_a_run_tells_bytes_and_where_it_was(arker: Arker, server: StubServer) -> None:
    server.script(f"GET /v1/vms/{VM_ID}/sessions/s1", (200, SESSION | {"cwd": "/srv"}))
    done = arker.vm(VM_ID).run("echo hi", session_id=0, timeout=5)
    assert server.last.body == {"command": "echo hi", "timeout": 5, "session_idx": 0}
    assert (done.stdout, done.stderr, done.exit_code, done.duration_ms) == (b"hi", b"", 0, 1.5)
    assert (done.session_id, done.run_id, done.type, done.state) == ("s1", "r1", "completed", "completed")
    before = len(server.requests)
    assert (done.cwd, done.cwd, len(server.requests) - before) == ("/srv", "/srv", 1)


def test_the_directory_of_a_session_that_has_gone(arker: Arker) -> None:
    assert arker.vm(VM_ID).run("exit").cwd == ""


@pytest.mark.parametrize(
    ("given", "sent"),
    [(None, {}), (3, {"session_idx": 3}), ("12", {"session_idx": 12}), ("s1", {"session_id": "s1"})],
)
def test_sessions_by_number_and_by_id(arker: Arker, server: StubServer, given: object, sent: dict[str, object]) -> None:
    arker.vm(VM_ID).run("true", session_id=given)  # type: ignore[call-overload]
    assert server.last.body == {"command": "true", **sent}


def test_a_background_run_is_not_waited_for(arker: Arker, server: StubServer) -> None:
    server.script(f"POST {RUNS}", (202, {"run_id": "r2", "session_id": "s1", "state": "running"}))
    begun = arker.vm(VM_ID).run("python3 train.py", background=True, idempotency_key="once")
    assert begun == BackgroundRun("r2", "s1", "running") and begun.type == "background"
    assert server.last.headers["idempotency-key"] == "once" and server.last.body["time_to_background"] == 0


def test_exit_codes_are_no_errors_and_lost_commands_are(arker: Arker, server: StubServer) -> None:
    vm = arker.vm(VM_ID)
    for said, shown in (({"exit_code": 3}, 3), ({"exit_code": None}, 0), ({"exit_code": 124, "state": "failed"}, 124)):
        server.script(f"POST {RUNS}", (200, RUN | said))
        assert vm.run("x").exit_code == shown
    server.script(f"POST {RUNS}", (200, RUN | {"exit_code": None, "state": "failed", "fail_reason": "the box is gone"}))
    with pytest.raises(ArkerError, match="the box is gone") as lost:
        vm.run("x")
    assert lost.value.code == "internal"


# --- files


def test_files_are_read_and_written(arker: Arker, server: StubServer) -> None:
    vm = arker.vm(VM_ID)
    written = (200, {"ok": True, "op": "write", "results": [{"complete": True, "written": True}]})
    server.script(f"POST {SYNC}", written)
    vm.sync.write_file("/home/user/a", b"hi")
    assert (server.last.body["writes"][0]["path"], server.last.body["writes"][0]["content"]) == ("/home/user/a", "aGk=")
    vm.sync("/tmp/a", "hi")
    assert server.last.body["writes"][0]["path"] == "/tmp/a"
    read = {"ok": True, "op": "read", "path": "/", "size": 2, "content": "aGk=", "encoding": "base64"}
    server.script(f"POST {SYNC}", (200, read))
    assert vm.sync.read_file("/home/user/a") == vm.sync("/tmp/a") == b"hi"


def test_a_write_whose_answer_got_lost_is_sent_again_as_the_same(
    arker: Arker, server: StubServer, quick: list[float]
) -> None:
    written = (200, {"ok": True, "op": "write", "results": [{"complete": True, "written": True}]})
    server.script(f"POST {SYNC}", (503, error("unavailable", "not now")), (0, None), written)
    arker.vm(VM_ID).sync.write_file("/home/user/a", b"hi")
    assert len({request.body["writes"][0]["upload_id"] for request in server.requests}) == 1
    assert len(server.requests) == 3


def test_a_missing_file(arker: Arker, server: StubServer) -> None:
    server.script(f"POST {SYNC}", (404, error("not_found", "No such file", details={"resource": "file"})))
    with pytest.raises(ArkerError) as missing:
        arker.vm(VM_ID).sync.read_file("/home/user/missing")
    found = missing.value
    assert (found.code, found.message, found.status) == ("not_found", "file not found: /home/user/missing", 404)
    assert str(found) == found.message and pickle.loads(pickle.dumps(found)).code == "not_found"


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "home/user/a", "/home/user", "/home/user/", "/home/user/../root/a", "/home/username/a", "", "/"],
)
def test_the_first_generation_stays_at_home(arker: Arker, server: StubServer, path: str) -> None:
    sync = arker.vm(VM_ID).sync
    for act in (lambda: sync.read_file(path), lambda: sync.write_file(path, b"")):
        with pytest.raises(ArkerError) as refused:
            act()
        assert (refused.value.code, refused.value.status) == ("bad_request", 400)
    assert server.requests == []


def test_a_file_can_be_too_large(arker: Arker, server: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwood.faces.arker.sync.FILE_BYTES", 3)
    with pytest.raises(ArkerError) as refused:
        arker.vm(VM_ID).sync.write_file("/home/user/a", "four")
    assert (refused.value.code, refused.value.status) == ("payload_too_large", 413)


# --- lists


def test_pages(arker: Arker, server: StubServer) -> None:
    found = vms("a1", "b", "a2", "a3")
    pages = [{"vms": found[:2], "next_cursor": "c"}, {"vms": found[2:], "next_cursor": None}]

    def listed(**given: object) -> tuple[list[str | None], int]:
        server.script("GET /v1/vms", (200, pages[0]), (200, pages[1]))
        page = arker.list(**given)  # type: ignore[arg-type]
        assert len(page) == len(page.items) == len(list(page))
        return [summary.name for summary in page], page.total

    assert listed() == (["a1", "b", "a2", "a3"], 4)
    assert listed(limit=2, offset=1) == (["b", "a2"], 4)
    assert listed(q="a", sort="created_at") == (["a3", "a2", "a1"], 3)
    assert listed(sort="region") == (["a1", "a2", "b", "a3"], 4)
    assert listed(sort="-region", offset=3) == (["a2"], 4)
    server.script("GET /v1/vms", (200, {"vms": found, "next_cursor": None}))
    first = arker.list(limit=1).items[0]
    assert (first.vm_id, first.base_image, first.region) == (f"{VM_ID[:-1]}0", "arkuntu", "east")
    assert first.created_at == "2026-01-09T00:00:00Z"


@pytest.mark.parametrize("given", [{"limit": 0}, {"limit": 101}, {"offset": -1}, {"sort": "name"}])
def test_pages_that_there_are_not(arker: Arker, given: dict[str, object]) -> None:
    with pytest.raises(ArkerError) as refused:
        arker.list(**given)  # type: ignore[arg-type]
    assert refused.value.code == "bad_request"


def test_computers_by_state(arker: Arker, server: StubServer) -> None:
    server.script("GET /v1/vms", (200, {"vms": vms("a", "b"), "next_cursor": None}))
    page = arker.list_vms(state="idle")
    assert [vm.name for vm in page] == ["a", "b"] and page.items == page.vms and page.next_cursor is None
    assert server.last.query["state"] == ["idle"]


# --- sizes, deletion, what is coming


def test_resize_and_delete(arker: Arker, server: StubServer) -> None:
    server.script(f"PATCH /v1/vms/{VM_ID}", (200, VM))
    server.script(f"DELETE /v1/vms/{VM_ID}", (200, {"deleted": True}), (404, error("not_found", "gone")))
    vm = arker.vm(VM_ID)
    assert vm.resize(vcpu_count=2, memory_mib=1024) is vm
    assert server.last.body == {"resources": {"vcpu": 2, "memory_mib": 1024}}
    with pytest.raises(ArkerError, match="resize"):
        vm.resize()
    vm.delete()
    with pytest.raises(ArkerError) as twice:
        vm.delete()
    assert (twice.value.code, twice.value.status) == ("not_found", 404)


def test_filesystems(arker: Arker, server: StubServer) -> None:
    one = {
        "filesystem_id": "F",
        "name": "data",
        "owner_org_id": "o",
        "created_at": "2026-01-01T00:00:00Z",
        "size_bytes": 5,
    }
    server.script("POST /v1/filesystems", (200, one))
    server.script("GET /v1/filesystems", (200, {"filesystems": [one], "next_cursor": None}))
    server.script("DELETE /v1/filesystems/F", (200, {"deleted": True}))
    made = arker.create_filesystem(name="data")
    assert (made.filesystem_id, made.created_at, made.size_bytes) == ("F", "2026-01-01T00:00:00Z", 5)
    assert list(arker.list_filesystems()) == arker.list_filesystems().filesystems == [made]
    vm, path = arker.vm(VM_ID), f"/v1/vms/{VM_ID}/mounts"
    mount = {"mount_id": "M", "vm_id": VM_ID, "filesystem_id": "F", "path": "/data", "state": "attaching"}
    server.script(f"POST {path}", (200, mount))
    server.script(f"GET {path}", (200, {"mounts": [mount]}), (200, {"mounts": [mount | {"state": "mounted"}]}))
    server.script(f"DELETE {path}/M", (200, {"deleted": True}))
    bound = vm.create_sync(filesystem_id="F", path="/data")
    assert (bound.sync_id, bound.path, len(vm.list_syncs()), vm.list_syncs().syncs) == ("M", "/data", 1, [bound])
    vm.delete_sync("M")
    arker.delete_filesystem("F")
    server.script(f"POST {path}", (200, mount | {"state": "failed", "state_detail": "a link"}))
    with pytest.raises(ArkerError, match="a link") as refused:
        vm.create_sync(filesystem_id="F", path="/data")
    assert refused.value.code == "internal"


# --- errors and retries


@pytest.mark.parametrize(
    ("code", "status", "shown"),
    [
        ("already_exists", 409, "conflict"), ("resource_busy", 409, "vm_busy"), ("unauthorized", 401, "unauthorized"),
        ("unsupported_operation", 422, "unsupported_operation"), ("payment_required", 402, "payment_required"),
        ("insufficient_resources", 400, "bad_request"), ("internal", 500, "internal"),
    ],
)  # fmt: skip
def test_codes_are_those_that_are_documented(
    arker: Arker, server: StubServer, code: str, status: int, shown: str
) -> None:
    server.script("POST /v1/fork", (status, error(code, "because")))
    with pytest.raises(ArkerError) as refused:
        arker.fork("ubuntu-full")
    assert (refused.value.code, refused.value.message, refused.value.status) == (shown, "because", status)


def test_retries(server: StubServer, quick: list[float]) -> None:
    refusal = (503, error("unavailable", "not now", recovery={"work": "not_started"}))
    for retry, pauses in (
        (None, 3),
        (True, 3),
        (False, 0),
        ({"attempts": 2, "base_delay_ms": 50, "max_delay_ms": 60}, 1),
        ({"attempts": 1}, 0),
    ):
        server.script("POST /v1/fork", refusal)
        quick.clear()
        with Arker(KEY, server.url, retry=retry) as arker, pytest.raises(ArkerError) as refused:  # type: ignore[arg-type]
            arker.fork("ubuntu-full")
        assert (refused.value.code, len(quick)) == ("unavailable", pauses)
        if pauses == 1:
            assert 0.05 <= quick[0] <= 0.1


@pytest.mark.parametrize("retry", [{"attempts": 0}, {"base_delay_ms": -1}, {"tries": 2}])
def test_retries_that_make_no_sense(server: StubServer, retry: dict[str, int]) -> None:
    with pytest.raises(ArkerError) as refused:
        Arker(KEY, server.url, retry=retry)
    assert refused.value.code == "bad_request"
