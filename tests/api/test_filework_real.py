"""The SDK's and the command's file work on a real server with real boxes."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import boxwood
from boxwood import VM, AsyncBoxwood, BadRequest, Conflict, FileMissing
from commandline import Command
from servers import Server, until


@pytest.fixture
def vm(boxwood_server: Server) -> Iterator[VM]:
    with boxwood_server.client() as box, box.fork("arkuntu") as made:
        yield made


def tree(at: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for root, directories, names in os.walk(os.fsencode(at)):
        for name in [*directories, *names]:
            path = os.path.join(root, name)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(at)))
            if os.path.islink(path):
                found[key] = ("link", os.fsdecode(os.readlink(path)))
            else:
                found[key] = (
                    None
                    if os.path.isdir(path)
                    else (Path(os.fsdecode(path)).read_bytes(), os.stat(path).st_mode & 0o111)
                )
    return found


def test_on_a_vm_that_never_ran_and_one_that_is_parked(boxwood_server: Server, vm: VM) -> None:
    assert "passwd" in {info.path for info in vm.files.list("/etc", page_size=7)}
    boxwood_server.restart()
    assert vm.files.stat("/etc/passwd").is_file


def test_names_modes_and_directories(vm: VM) -> None:
    files = vm.files
    assert files.mkdir("/w/a/b", parents=True) and not files.mkdir("/w/a/b", parents=True)
    vm.write_file("/w/a/f", "text")
    files.chmod("/w/a/f", 0o600)
    files.move("/w/a/f", "/w/g")
    vm.write_file("/w/h", "other")
    with pytest.raises(Conflict):
        files.move("/w/h", "/w/g")
    files.move("/w/h", "/w/g", replace=True)
    assert [info.path for info in files.list("/w")] == ["a", "g"]
    with pytest.raises(Conflict, match="not empty"):
        files.remove("/w/a")
    assert files.remove("/w/a", recursive=True) == 2
    with pytest.raises(FileMissing):
        files.stat("/w/a")
    with pytest.raises(BadRequest, match="not on the VM's disk"):
        list(files.list("/dev/shm"))
    odd = os.fsdecode(b"/w/\xff\nodd")
    files.mkdir(odd)
    info = next(info for info in files.list("/w") if info.is_dir)
    assert os.fsencode(info.path) == b"\xff\nodd" and files.stat(f"/w/{info.path}").is_dir
    assert files.remove(b"/w/\xff\nodd") == 1


def test_patterns_and_text(vm: VM) -> None:
    vm.run("mkdir -p /w/src; cd /w; echo 'def needle(): pass' > src/a.py; echo needle > b.txt")
    assert [info.path for info in vm.files.glob("/w", "**/*.py").entries] == ["src/a.py"]
    found = vm.files.search("/w", r"needle\(", include=["*.py"])
    assert [(m.path, m.line, m.column, m.text) for m in found.matches] == [("src/a.py", 1, 5, "def needle(): pass")]
    assert vm.files.search("/w", "needle", limit=1).truncated == "limit"


def test_directories_in_and_out(vm: VM, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "d" / "empty").mkdir(parents=True)
    (here / "d" / "big").write_bytes(os.urandom(20 << 20))
    (here / "run.sh").write_text("#!/bin/sh\n")
    (here / "run.sh").chmod(0o755)
    (here / "link").symlink_to("d/big")
    Path(os.fsdecode(os.fsencode(here) + b"/\xff\n")).write_text("odd")
    os.mkfifo(here / "pipe")
    sent = vm.files.upload_dir(here, "/w/there")
    assert (sent.bytes, sent.skipped) == ((20 << 20) + 13, 1)
    assert (
        vm.run("cd /w/there; ls -A | wc -l; stat -c %a run.sh; readlink link; stat -c %u d/big").stdout
        == "5\n755\nd/big\n0\n"
    )
    back = vm.files.download_dir("/w/there", tmp_path / "back")
    (here / "pipe").unlink()
    assert tree(tmp_path / "back") == tree(here) and back.bytes == sent.bytes
    again = vm.files.download_dir("/w/there", tmp_path / "back")
    assert again == back and tree(tmp_path / "back") == tree(here)


def test_what_comes_out_stays_in_the_directory(vm: VM, tmp_path: Path) -> None:
    """Links that lead out are left out; those that lie here already are replaced, not followed."""
    vm.run(
        "mkdir -p /w/d; cd /w; ln -s /etc/passwd out; ln -s ../../x up; ln -s d in; echo new > d/f; chmod 6777 d/f; ln d/f hard"
    )
    (tmp_path / "to" / "d").mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "to" / "d" / "f").symlink_to(tmp_path / "elsewhere")
    done = vm.files.download_dir("/w", tmp_path / "to")
    assert done.skipped == 2 and (tmp_path / "elsewhere").read_text() == "kept"
    assert (tmp_path / "to" / "d" / "f").read_text() == "new\n" and (
        tmp_path / "to" / "d" / "f"
    ).stat().st_mode & 0o7000 == 0
    assert sorted(os.listdir(tmp_path / "to")) == ["d", "hard", "in"]


def test_changes(vm: VM) -> None:
    vm.files.mkdir("/w")
    changes = vm.files.watch("/w")
    assert next(changes).kind == "watching"
    vm.run("mkdir /w/d")
    made = next(changes)
    assert (made.kind, made.path) == ("created", "d")
    vm.run("echo x > /w/d/f; mv /w/d/f /w/g")  # d is watched by now: before, f may have come and gone unseen
    moved = next(change for change in changes if change.kind == "moved")
    assert (moved.path, moved.to) == ("d/f", "g")
    vm.run("rm -r /w")
    assert [change.kind for change in changes][-1] == "gone"


def test_whoever_watches_keeps_the_vm_and_does_not_hold_up_its_fork(boxwood_server: Server, vm: VM) -> None:
    vm.files.mkdir("/w")
    changes = vm.files.watch("/w")
    next(changes)
    child = vm.fork()  # with something living in it, as any busy one
    vm.run("touch /w/after")
    assert next(changes).path == "after"
    assert not child.run("ls /w").stdout
    child.delete()
    changes.close()
    child = vm.fork()  # nobody watches any more: in constant time again
    assert child.run("ls /w").stdout == "after\n"
    child.delete()


def test_the_server_stops_and_tells_so(boxwood_server: Server, vm: VM) -> None:
    vm.files.mkdir("/w")
    changes, seen = vm.files.watch("/w"), []

    def listen() -> None:
        try:
            for change in changes:
                seen.append(change.kind)
        except boxwood.Unavailable:
            seen.append("unavailable")

    listening = threading.Thread(target=listen)
    listening.start()
    until(lambda: seen == ["watching"])
    boxwood_server.restart()
    listening.join(60)
    assert seen == ["watching", "unavailable"]
    assert vm.files.stat("/w").is_dir


def test_the_awaitable_form(boxwood_server: Server, vm: VM, tmp_path: Path) -> None:
    async def go() -> None:
        async with AsyncBoxwood(boxwood_server.client()._transport._url, boxwood_server.key) as box:
            files = box.vm(vm.id).files
            await files.mkdir("/w")
            changes = files.watch("/w")
            assert (await anext(changes)).kind == "watching"
            (tmp_path / "here").mkdir()
            (tmp_path / "here" / "f").write_text("x")
            assert (await files.upload_dir(tmp_path / "here", "/w")).entries == 2
            assert (await anext(changes)).kind in ("created", "moved", "attributes")
            await changes.aclose()
            assert [info.path async for info in files.list("/w")] == ["f"]
            assert (await files.download_dir("/w", tmp_path / "back")).bytes == 1

    asyncio.run(go())


def test_the_command(boxwood: Command, vm: VM) -> None:
    def fs(*args: str, code: int = 0) -> str:
        done = boxwood("fs", *args)
        assert done.returncode == code, done
        return done.stdout.decode()

    at = f"{vm.id}:/w"
    fs("mkdir", "-p", f"{at}/d")
    vm.run("cd /w; echo needle > f; touch \"$(printf 'a\\033[2Jb')\"")
    assert [line.split("\t")[-1] for line in fs("ls", at).splitlines()] == ["a\\x1b[2Jb", "d", "f"]
    assert json.loads(fs("stat", f"{at}/f", "--json"))["size"] == 7
    assert fs("grep", "need+le", at) == "f:1:needle\n"
    fs("grep", "nothing", at, code=1)
    assert fs("find", at, "f*") == "f\n"
    fs("chmod", "600", f"{at}/f")
    fs("mv", f"{at}/f", "/w/g")
    fs("rm", at, code=1)
    fs("rm", "-r", at)
    fs("ls", at, code=1)
    fs("ls", "nonsense", code=2)
