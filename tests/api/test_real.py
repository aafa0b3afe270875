"""A few of the same things on a real server with real boxes."""

from __future__ import annotations

import base64
import hashlib
import os
import urllib.request
from collections.abc import Iterator

import pytest

import contract
from boxwood import VM
from servers import Server


def text(run: dict) -> str:
    assert (run["state"], run["stdout_encoding"]) == ("completed", "utf-8"), run
    return run["stdout"]


@pytest.fixture
def vm(boxwood_server: Server) -> Iterator[str]:
    status, made = boxwood_server.request("POST", "/v1/fork", {"source_vm_name": "arkuntu"})
    assert status == 200, made
    yield made["vm_id"]
    assert boxwood_server.request("DELETE", f"/v1/vms/{made['vm_id']}")[0] in (200, 404)


def run(server: Server, vm: str, command: str, **members: object) -> dict:
    status, done = server.request("POST", f"/v1/vms/{vm}/runs", {"command": command, **members})
    assert status == 200, done
    contract.check(done, "CompletedRunResponse", "duration_ms", "truncated", "fail_reason")
    return done


def sync(server: Server, vm: str, body: dict, status: int = 200, **headers: str) -> dict:
    got, answer = server.request("POST", f"/v1/vms/{vm}/sync", body, **headers)
    assert got == status, answer
    return answer


def test_run_files_fork(boxwood_server, vm):
    server = boxwood_server
    assert text(run(server, vm, "cd /tmp && export A=1 && echo $((6*7))")) == "42\n"
    done = run(server, vm, "pwd; echo $A; echo e >&2; exit 3")
    assert (text(done), done["stderr"], done["exit_code"]) == ("/tmp\n1\n", "e\n", 3)
    data = os.urandom(5 << 20)
    for start in range(0, len(data), 4 << 20):
        piece = data[start : start + (4 << 20)]
        chunk = {"path": "/srv/x/data", "size": len(data), "upload_id": "u", "start": start, "end": start + len(piece)}
        body = {"op": "write", "writes": [{**chunk, "content": base64.b64encode(piece).decode()}]}
        last = sync(server, vm, body)["results"][0]
    assert last["complete"] and last["written"]
    digest = hashlib.sha256(data).hexdigest()
    assert text(run(server, vm, "sha256sum < /srv/x/data")).split()[0] == digest
    _, child = server.request("POST", "/v1/fork", {"source_vm_id": vm})
    try:
        assert text(run(server, child["vm_id"], "pwd; echo $A")) == "/tmp\n1\n"
        read = sync(server, child["vm_id"], {"op": "read", "path": "/srv/x/data"})
        assert base64.b64decode(read["content"]) == data
        manifest = sync(server, child["vm_id"], {"op": "manifest", "path": "/srv"})
        assert [(entry["path"], entry["hash"]) for entry in manifest["entries"]] == [("x/data", digest)]
    finally:
        server.request("DELETE", f"/v1/vms/{child['vm_id']}")


def test_files_on_a_vm_that_never_ran(boxwood_server, vm):
    chunk = {"path": "/new/empty", "size": 0, "upload_id": "u", "start": 0, "end": 0, "content": ""}
    assert sync(boxwood_server, vm, {"op": "write", "writes": [chunk]})["results"][0]["written"]
    assert sync(boxwood_server, vm, {"op": "read", "path": "/new/empty"})["size"] == 0
    missing = sync(boxwood_server, vm, {"op": "read", "path": "/missing"}, 404)
    assert missing["error"]["details"] == {"resource": "file"}
    for path in ("/dev/null", "/proc/self/status", "/etc", "/dev/shm/x"):
        answer = sync(boxwood_server, vm, {"op": "read", "path": path}, 404 if path == "/dev/shm/x" else 400)
        assert "error" in answer, path


def test_upload_and_download_by_url(boxwood_server, vm):
    server, size = boxwood_server, 40 << 20
    data = os.urandom(1 << 20) * 40
    wish = {"path": "/big", "size": size, "presigned": True}
    told = sync(server, vm, {"op": "write", "writes": [wish]})["results"][0]
    with urllib.request.urlopen(urllib.request.Request(told["presigned_url"], data, method="PUT")) as answer:
        assert answer.status == 200
    commit = {"path": "/big", "size": size, "upload_id": told["upload_id"]}
    assert sync(server, vm, {"op": "write", "writes": [commit]})["results"][0]["written"]
    read = sync(server, vm, {"op": "read", "path": "/big"})
    assert read["method"] == "GET"
    with urllib.request.urlopen(read["presigned_url"]) as answer:
        assert answer.read() == data


def test_own_members_of_a_run(boxwood_server, vm):
    done = run(boxwood_server, vm, "id -un; pwd; echo $X; cat", user="nobody", cwd="/var", env={"X": "y"}, stdin="in")
    assert text(done) == "nobody\n/var\ny\nin"
    raw = base64.b64encode(b"\x00\xff").decode()
    done = run(boxwood_server, vm, "cat", stdin=raw, stdin_encoding="base64")
    assert (done["stdout_encoding"], done["stdout"]) == ("base64", raw)
    assert text(run(boxwood_server, vm, "id -un; echo $X")) == "root\n\n"


def test_signal_timeout_cancel(boxwood_server, vm):
    server, url = boxwood_server, f"/v1/vms/{vm}/runs"
    status, begun = server.request("POST", url, {"command": "echo a; sleep 100", "time_to_background": 0})
    assert status == 202
    while "a" not in server.request("GET", f"{url}/{begun['run_id']}")[1]["stdout"]:
        pass
    assert server.request("POST", url, {"signal": "SIGINT"})[0] == 200
    status, done = server.request("POST", url, {"command": "true"})
    assert (status, done["exit_code"]) == (200, 0)
    assert server.request("GET", f"{url}/{begun['run_id']}")[1]["exit_code"] == 130
    done = run(server, vm, "sleep 100", timeout=1)
    assert done["state"] == "failed"
    _, begun = server.request("POST", url, {"command": "sleep 100", "time_to_background": 0})
    assert server.request("DELETE", f"{url}/{begun['run_id']}") == (200, {"cancelled": True})
    assert text(run(server, vm, "echo on")) == "on\n"


def test_first_generation(boxwood_server):
    server, agent = boxwood_server, {"user-agent": "Python-urllib/3.11"}
    _, made = server.request("POST", "/api/v1/vms/01KQBYKEV5WJ7YB010603T1DCT_d8c0/fork", {"is_public": False}, **agent)
    url = f"/api/v1/vms/{made['vm_id']}"
    chunk = {"path": "/home/user/f", "size": 2, "upload_id": "u", "start": 0, "end": 2, "content": "aGk="}
    _, wrote = server.request("POST", f"{url}/sync", {"op": "write", "writes": [chunk]}, **agent)
    assert wrote["results"][0]["written"]
    _, done = server.request("POST", f"{url}/run", {"command": "cat /home/user/f", "session_id": 0}, **agent)
    assert (done["stdout"], done["exit_code"]) == ("hi", 0)
    status, refused = server.request("POST", f"{url}/sync", {"op": "read", "path": "/etc/passwd"}, **agent)
    assert (status, refused["ok"], refused["error"]["code"]) == (400, False, "bad_request")
    status, missing = server.request("POST", f"{url}/sync", {"op": "read", "path": "/home/user/no"}, **agent)
    assert (status, missing["error"]["code"]) == (404, "not_found")
    assert server.request("DELETE", url, **agent)[0] == 200


def test_a_busy_vm_is_forked_and_the_price_told(boxwood_server, vm):
    server = boxwood_server
    status, _ = server.request(
        "POST", f"/v1/vms/{vm}/runs", {"command": "echo x > /f; sleep 300", "time_to_background": 0}
    )
    assert status == 202
    while sync_status(server, vm, "/f") != 200:
        pass
    _, child = server.request("POST", "/v1/fork", {"source_vm_id": vm})
    try:
        assert child["copied"]["inodes"] >= 1
        assert child["copied"]["frozen_ms"] <= child["copied"]["total_ms"]
        assert text(run(server, child["vm_id"], "cat /f")) == "x\n"
    finally:
        server.request("DELETE", f"/v1/vms/{child['vm_id']}")


def sync_status(server: Server, vm: str, path: str) -> int:
    return server.request("POST", f"/v1/vms/{vm}/sync", {"op": "read", "path": path})[0]


def test_a_program_without_a_shell(boxwood_server, vm):
    with boxwood_server.client() as box:
        _programs(box.get(vm))


def _programs(vm: VM) -> None:
    vm.run("cd /srv; export WORD=kept")
    assert vm.exec(["printf", "%s\n", "$HOME 'x'", ""]).stdout == "$HOME 'x'\n\n"
    assert vm.exec(["pwd"]).stdout == "/root\n"
    assert vm.exec(["env"], env={"K": "V"}).stdout.count("K=V\n") == 1
    assert vm.exec(["cat"], stdin=b"\xff\0").stdout_bytes == b"\xff\0"
    missing = vm.exec(["no-such-program"])
    assert (missing.exit_code, missing.stderr) == (127, "no-such-program: No such file or directory\n")
    assert vm.exec(["/root"]).exit_code == 126
    assert vm.exec(["sleep", "60"], timeout=0.1).exit_code == 124
    assert vm.run("pwd").stdout == "/srv\n"


def test_a_session_is_told_as_its_run_has_left_it(boxwood_server, vm):
    with boxwood_server.client() as box:
        machine = box.get(vm)
        with machine.session() as session:
            for number in range(10):
                session.run(f"mkdir -p /srv/{number}; cd /srv/{number}")
                assert session.refresh().cwd == f"/srv/{number}"
