"""`boxwood cp`: both ways, trees, pipes, and what a VM may not do with its paths."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from boxwood.cli.output import clean
from unit.client.stub import RUN, Request, StubServer, error


class Disk:
    """The files of a VM, behind the sync route."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.listed: list[dict[str, Any]] = []

    def __call__(self, request: Request) -> tuple[int, Any]:
        body = request.body
        if body["op"] == "read":
            if body["path"] not in self.files:
                return 404, error("not_found", f"no such file: {body['path']}", details={"resource": "file"})
            data = self.files[body["path"]]
            return 200, {"size": len(data), "content": base64.b64encode(data).decode(), "encoding": "base64"}
        if body["op"] == "manifest":
            return 200, {"root": body["path"].rstrip("/"), "entries": self.listed, "truncated": False}
        (entry,) = body["writes"]
        self.files[entry["path"]] = base64.b64decode(entry["content"])
        return 200, {"results": [{"path": entry["path"], "complete": True, "written": True}]}


@pytest.fixture
def disk(server: StubServer) -> Disk:
    disk = Disk()
    server.script("POST /v1/vms/n/sync", disk)
    server.script("POST /v1/vms/n/runs", (200, RUN))
    return disk


def test_a_file_there_and_back(disk: Disk, boxwood, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0\xffdata")
    assert boxwood("cp", "a", "n:/tmp/b").returncode == 0
    assert boxwood("cp", "a", "n:/tmp/").returncode == 0
    assert disk.files == {"/tmp/b": b"\0\xffdata", "/tmp/a": b"\0\xffdata"}
    assert boxwood("cp", "n:/tmp/b", "c").returncode == 0
    (tmp_path / "dir").mkdir()
    said = boxwood("cp", "n:/tmp/b", "dir", "--json")
    assert json.loads(said.stdout) == {"files": 1, "bytes": 6}
    assert (tmp_path / "c").read_bytes() == (tmp_path / "dir/b").read_bytes() == b"\0\xffdata"
    assert not list(tmp_path.rglob(".boxwood-*"))


def test_pipes(disk: Disk, boxwood) -> None:
    assert boxwood("cp", "-", "n:/a", stdin=b"\xff\0").returncode == 0
    assert disk.files["/a"] == b"\xff\0"
    assert boxwood("cp", "n:/a", "-").stdout == b"\xff\0"


def test_an_executable_stays_one(disk: Disk, server: StubServer, boxwood, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o755)
    boxwood("cp", "tool", "n:/bin/tool")
    assert server.last.body == {"command": "chmod 755 -- /bin/tool", "cwd": "/"}


def test_trees(disk: Disk, server: StubServer, boxwood, tmp_path: Path) -> None:
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/a").write_text("A")
    (tmp_path / "src/sub/b").write_text("B")
    (tmp_path / "src/sub/b").chmod(0o755)
    (tmp_path / "src/link").symlink_to("/etc/passwd")
    assert boxwood("cp", "src", "n:/w").returncode == 1 + 1
    done = boxwood("cp", "-r", "src", "n:/w", "--json")
    assert json.loads(done.stdout) == {"files": 2, "bytes": 2, "skipped": 1}
    assert disk.files == {"/w/a": b"A", "/w/sub/b": b"B"}
    assert server.last.body["command"] == "chmod +x -- /w/sub/b"
    entry = {"size": 1, "hash": ""}
    disk.listed = [entry | {"path": "a", "mode": 0o644}, entry | {"path": "sub/b", "mode": 0o4755}]
    assert boxwood("cp", "-r", "n:/w", "back").returncode == 0
    assert (tmp_path / "back/a").read_text() == "A"
    assert (tmp_path / "back/sub/b").stat().st_mode & 0o7100 == 0o100


def test_a_directory_that_is_not_there_is_not_copied_as_an_empty_one(
    disk: Disk, server: StubServer, boxwood, tmp_path: Path
) -> None:
    stat = "GET /v1/vms/n/files/stat"
    server.script(stat, (404, error("not_found", "nothing there", details={"resource": "file"})))
    done = boxwood("cp", "-r", "n:/w", "back")
    assert (done.returncode, done.stderr) == (1, b"boxwood: nothing there\n")
    server.script(stat, (200, {"path": "/w", "kind": "file"}), (200, {"path": "/w", "kind": "directory"}))
    assert boxwood("cp", "-r", "n:/w", "back").returncode == 1
    assert not (tmp_path / "back").exists()
    assert boxwood("cp", "-r", "n:/w", "back").returncode == 0
    assert (tmp_path / "back").is_dir()


def test_patterns_that_are_no_utf8(disk: Disk, boxwood, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_text("A")
    (tmp_path / "src/b.log").write_text("B")
    (tmp_path / "ignored").write_bytes(b"\xff\n*.log\n")
    assert boxwood("sync", "src", "n:/w", "--ignore-file", "ignored").returncode == 0
    assert disk.files == {"/w/a": b"A"}


@pytest.mark.parametrize("path", ["../evil", "/evil", "a/../../evil", "a//b", ".", "", "a\0b"])
def test_a_vm_cannot_choose_where_its_files_go(disk: Disk, boxwood, tmp_path: Path, path: str) -> None:
    disk.listed = [{"path": path, "size": 1, "mode": 0o644, "hash": ""}]
    disk.files = {f"/w/{path}": b"x"}
    done = boxwood("cp", "-r", "n:/w", "back")
    assert done.returncode == 1
    assert clean(repr(path)) in done.stderr.decode()
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []


def test_a_link_here_is_replaced_not_followed(disk: Disk, boxwood, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("keep")
    (tmp_path / "link").symlink_to("secret")
    disk.files["/a"] = b"new"
    assert boxwood("cp", "n:/a", "link").returncode == 0
    assert (tmp_path / "secret").read_text() == "keep"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_errors(disk: Disk, boxwood) -> None:
    done = boxwood("cp", "n:/none", "x")
    assert (done.returncode, done.stderr) == (1, b"boxwood: no such file: /none\n")
    done = boxwood("cp", "none", "n:/x")
    assert (done.returncode, done.stderr) == (1, b"boxwood: none: No such file or directory\n")
    for args in (["a", "b"], ["n:/a", "m:/b"], ["a", "n:b"], ["-", "n:/a/"], ["-r", "n:/a", "-"]):
        assert boxwood("cp", *args).returncode == 2
