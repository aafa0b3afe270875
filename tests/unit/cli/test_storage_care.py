"""`boxwood storage usage`, `verify` and `gc`."""

from __future__ import annotations

import json

from unit.client.stub import VM_ID, StubServer

ONE = {"vm_id": VM_ID, "name": "n", "layers": 2, "own_bytes": 1 << 20, "shared_bytes": 512, "measured": True}
LAYER = "01KZ0000000000000000000009"


def test_usage(server: StubServer, boxwood) -> None:
    server.script("GET /boxwood/storage", (200, {"free_bytes": 1 << 30, "vms": [ONE, ONE | {"measured": False}]}))
    done = boxwood("storage", "usage")
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert [line[:4] for line in lines] == [[VM_ID, "n", "2", "1.0 MiB"]] * 2
    assert "in part" in lines[1] and "in part" not in lines[0] and b"1.0 GiB free" in done.stderr
    assert json.loads(boxwood("storage", "--json", "usage").stdout)["free_bytes"] == 1 << 30


def test_verify_tells_by_its_exit_code(server: StubServer, boxwood) -> None:
    server.script("POST /boxwood/storage/verify", (200, {"layers": 3, "problems": []}))
    assert boxwood("storage", "verify").returncode == 0
    problem = {"layer_id": LAYER, "vm_ids": [VM_ID], "problem": "upper is not there"}
    server.script("POST /boxwood/storage/verify", (200, {"layers": 3, "problems": [problem]}))
    done = boxwood("storage", "verify")
    assert done.returncode == 1 and done.stdout.decode() == f"{LAYER}\t1\tupper is not there\n"


def test_gc(server: StubServer, boxwood) -> None:
    for dry_run, said in ((True, "would go"), (False, "gone")):
        found = {"dry_run": dry_run, "layer_ids": [LAYER], "bytes": 4096}
        server.script("POST /boxwood/storage/gc", (200, found))
        done = boxwood("storage", "gc", *["--dry-run"] * dry_run)
        assert done.stdout.decode() == f"{LAYER}\n" and said in done.stderr.decode()
        assert server.last.body == ({"dry_run": True} if dry_run else {})
