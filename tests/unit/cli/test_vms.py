"""`boxwood fork`, `ls`, `rm`, `image`, `key`; errors, JSON, and names made to fool a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from boxwood import __version__
from boxwood.cli.output import clean, size
from unit.client.stub import NETWORK, VM, VM_ID, StubServer, error

OTHER = VM | {"vm_id": "01KZ0000000000000000000001", "name": None}


def test_fork_prints_the_id(server: StubServer, boxwood) -> None:
    server.script("POST /v1/fork", (200, VM), (200, OTHER))
    done = boxwood("fork", "ubuntu", "--name", "n", "--memory", "512", "--count", "2")
    assert (done.returncode, done.stdout.decode().split()) == (0, [VM_ID, OTHER["vm_id"]])
    bodies = [request.body for request in server.requests]
    assert bodies[0] == {"source_vm_name": "ubuntu", "name": "n-1", "resources": {"memory_mib": 512}}
    assert bodies[1]["name"] == "n-2"


def test_fork_as_json(server: StubServer, boxwood) -> None:
    server.script("POST /v1/fork", (200, VM))
    said = json.loads(boxwood("fork", "--json").stdout)
    assert (said["vm_id"], said["resources"]["vcpu"]) == (VM_ID, 1)
    assert server.last.body == {"source_vm_name": "ubuntu"}
    assert len(json.loads(boxwood("fork", "--json", "--count", "2").stdout)) == 2


def test_fork_with_bounds(server: StubServer, boxwood) -> None:
    server.script("POST /v1/fork", (200, VM | {"resources": {"pids": 100, "nofile": 2048}}))
    said = json.loads(boxwood("fork", "--pids", "100", "--nofile", "2048", "--ttl", "60", "--json").stdout)
    wanted = {"source_vm_name": "ubuntu", "resources": {"pids": 100, "nofile": 2048}, "ttl": 60.0}
    assert server.last.body == wanted
    assert (said["resources"]["pids"], said["resources"]["nofile"]) == (100, 2048)


def test_a_key_with_bounds(server: StubServer, boxwood) -> None:
    server.script("POST /v1/api-keys", (201, {"api_key_id": "K", "key": "bxw_x", "ttl_most": 90.0}))
    done = boxwood("key", "create", "ci", "--ttl-default", "60", "--ttl-most", "90", "--expires-in", "3600", "--json")
    assert server.last.body == {"name": "ci", "ttl_default": 60.0, "ttl_most": 90.0, "expires_in": 3600.0}
    assert json.loads(done.stdout)["ttl_most"] == 90


def test_fork_with_a_network(server: StubServer, boxwood) -> None:
    server.script("POST /v1/fork", (200, VM | {"network": {"mode": "none"}}))
    said = json.loads(boxwood("fork", "--network", "none", "--json").stdout)
    assert server.last.body == {"source_vm_name": "ubuntu", "network": "none"}
    assert said["network"] == {"mode": "none", "address": None}


def test_net(server: StubServer, boxwood) -> None:
    server.script("GET /v1/vms/n/network", (200, NETWORK))
    done = boxwood("net", "n")
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert (done.returncode, lines[0]) == (0, ["internet", "198.18.0.6", "10 B", "2.0 KiB", "3", "51"])
    assert [line[1:] for line in lines[1:]] == [
        ["dns", "-", "a.example", "name"],
        ["tcp", "10.0.0.1:22", "db.example", "private"],
    ]
    said = json.loads(boxwood("net", "n", "--json").stdout)
    assert (said["denied"], said["denials"][1]["port"]) == (51, 22)
    server.script("GET /v1/vms/n/network", (200, {"mode": "none", "address": None}))
    assert boxwood("net", "n").stdout == b"none\t-\t0 B\t0 B\t0\t0\n"
    assert boxwood("net", "nobody").returncode == 1


@pytest.mark.parametrize("count, shown", [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 21, "2.0 MiB"),
                                          (3 << 30, "3.0 GiB"), (1 << 52, "4096.0 TiB")])  # fmt: skip
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


def test_denials_cannot_talk_to_the_terminal(server: StubServer, boxwood) -> None:
    evil = "a\x1b]0;owned\x07\r\nb\t\x9b31m\u202e\u200b"
    denial = dict.fromkeys(("protocol", "address", "name", "reason"), evil) | {"at": "2026-01-01T00:00:00Z", "port": 1}
    answer = {"mode": evil, "address": evil, "denied": 1, "denials": [denial | {"address": "fd00::1"}, denial]}
    server.script("GET /v1/vms/n/network", (200, answer))
    shown = boxwood("net", "n").stdout.decode()
    assert (shown.count("\n"), shown.count("\t")) == (3, 5 + 4 + 4)
    assert not set("\x1b\x07\r\x9b\u202e\u200b") & set(shown)
    assert "[fd00::1]:1" in shown
    assert not set(b"\x1b\x07\r") & set(boxwood("net", "n", "--json").stdout)


def test_ls(server: StubServer, boxwood) -> None:
    server.script("GET /v1/vms", (200, {"vms": [VM, OTHER], "next_cursor": None}))
    lines = boxwood("ls").stdout.decode().splitlines()
    assert [line.split("\t")[:3] for line in lines] == [["n", VM_ID, "idle"], ["-", OTHER["vm_id"], "idle"]]
    assert boxwood("ls", "-q").stdout.decode().split() == [VM_ID, OTHER["vm_id"]]
    assert [vm["vm_id"] for vm in json.loads(boxwood("ls", "--json").stdout)] == [VM_ID, OTHER["vm_id"]]


def test_names_cannot_talk_to_the_terminal(server: StubServer, boxwood) -> None:
    evil = "a\x1b]0;owned\x07\r\nb\x9b31m\u202e\u200b"
    server.script("GET /v1/vms", (200, {"vms": [VM | {"name": evil, "description": evil}], "next_cursor": None}))
    shown = boxwood("ls").stdout.decode()
    assert shown.count("\n") == 1
    assert not set("\x1b\x07\r\x9b\u202e\u200b") & set(shown)
    server.script(f"DELETE /v1/vms/{VM_ID}", (404, error("not_found", evil)))
    assert b"\x1b" not in boxwood("rm", VM_ID).stderr
    assert clean("ünïcode 漢字") == "ünïcode 漢字"


def test_rm_goes_on_after_one_that_failed(server: StubServer, boxwood) -> None:
    server.script("DELETE /v1/vms/a", (404, error("not_found", "no such VM")))
    server.script("DELETE /v1/vms/b", (200, {"deleted": True}))
    done = boxwood("rm", "a", "b")
    assert (done.returncode, done.stderr) == (1, b"boxwood: a: no such VM\n")
    assert json.loads(boxwood("rm", "a", "b", "--json").stdout) == {"deleted": ["b"], "failed": {"a": "no such VM"}}


def test_errors_for_people_and_for_programs(server: StubServer, boxwood) -> None:
    server.script("POST /v1/fork", (409, error("already_exists", "taken", details={"resource": "vm"})))
    done = boxwood("fork", "--name", "n")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"boxwood: taken\n")
    done = boxwood("fork", "--name", "n", "--json")
    assert (done.returncode, done.stderr) == (1, b"")
    assert json.loads(done.stdout) == {
        "error": {
            "message": "taken", "code": "already_exists", "status": 409, "request_id": "q1",
            "details": {"resource": "vm"},
        }
    }  # fmt: skip


def test_wrong_usage_is_2(boxwood) -> None:
    for args in (["frok"], ["fork", "--count", "0"], ["rm"], ["cp", "a", "b"], ["up", "--port", "x"]):
        done = boxwood(*args)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"Usage" in done.stderr
        done = boxwood(*args, "--json")
        assert done.returncode == 2
        assert json.loads(done.stdout)["error"]["code"] == "usage"


def test_no_server_says_what_to_do(boxwood) -> None:
    done = boxwood("ls", url="")
    assert done.returncode == 1
    assert b"boxwood up" in done.stderr
    assert b"Traceback" not in done.stderr


def test_help_and_version(boxwood) -> None:
    assert b"fork" in boxwood("--help").stdout
    entry = [sys.executable, "-c", "from boxwood.cli.main import main; main()", "--version"]
    assert subprocess.run(entry, check=True, capture_output=True).stdout == f"boxwood {__version__}\n".encode()


def test_the_sdk_is_loaded_only_when_it_is_used() -> None:
    heavy = ("httpx2", "msgspec", "asyncio", "rich")
    code = f"import sys, boxwood.cli.main; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"[]\n"


def test_every_command_speaks_json(boxwood) -> None:
    for command in ("up", "down", "fork", "run", "ls", "rm", "cp", "net", "doctor"):
        assert b"--json" in boxwood(command, "--help").stdout


def test_images(server: StubServer, boxwood, tmp_path: Path) -> None:
    server.script("GET /v1/vms", (200, {"vms": [VM | {"name": "ubuntu"}], "next_cursor": None}))
    assert boxwood("image", "ls").stdout.startswith(b"ubuntu\t")
    server.script("POST /boxwood/images", (200, {"vm_id": VM_ID, "name": "mine"}))
    (tmp_path / "root.tar").write_bytes(b"")
    assert boxwood("image", "import", "mine", "root.tar").stdout == b"mine\n"
    assert server.last.body == {"name": "mine", "path": str(tmp_path / "root.tar")}
    assert boxwood("image", "import", "mine", "nothing.tar").returncode == 2


def test_keys(server: StubServer, boxwood) -> None:
    key = {"api_key_id": "ci-1", "name": "ci", "role": "admin", "created_at": "2026-01-01T00:00:00Z"}
    server.script("POST /v1/api-keys", (201, key | {"key": "bxw_secret"}))
    server.script("GET /v1/api-keys", (200, {"api_keys": [key]}))
    server.script("DELETE /v1/api-keys/ci-1", (204, b""))
    assert boxwood("key", "create", "ci").stdout == b"bxw_secret\n"
    assert server.last.body == {"name": "ci"}
    assert boxwood("key", "ls").stdout.startswith(b"ci-1\tci\tadmin\t")
    assert boxwood("key", "rm", "ci-1").returncode == 0
