"""Whatever a stranger calls a thing, no terminal obeys it: every line of the command goes through `output.clean`
(attacks.md, item 35)."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwood.cli import output
from boxwood.cli.output import clean, note, say, table
from unit.client.stub import NETWORK, VM, VM_ID, StubServer, error

BOUNDED = settings(max_examples=120, deadline=None, derandomize=True, database=None)
# What terminals have been talked into: titles, the clipboard, reports typed back, other screens, links, colours, …
SEQUENCES = (
    "\x1b]0;title\x07", "\x1b]52;c;ZWNobyBvd25lZA==\x07", "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\", "\x1b[21t", "\x1b[6n",
    "\x1bP$qm\x1b\\", "\x1bP+q544e\x1b\\", "\x1b[?1049h", "\x1b[2J", "\x1b[31m", "\x1bc", "\x1b]50;evil\x07", "\x9b31m", "\x9d0;x\x9c",
    "\x90q\x9c", "\r\n", "\r", "\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\x08" * 20, "\x0e", "\t", "\x7f", "\x00", "\x05", "\x18",
    "\u202egnp.exe", "\u2066", "\u200b", "\u2060", "\u206a", "\ufeff", "\xad", "\u061c", "\U000e0041", "\ufff9", "\ud800",
)  # fmt: skip
EVIL = "name".join(SEQUENCES)
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
evil = st.lists(st.sampled_from(SEQUENCES) | st.text(max_size=4), max_size=6).map("".join)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def hidden(text: str) -> list[str]:
    """What no font has a picture of."""
    return [char for char in text if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]


@BOUNDED
@given(text=evil | st.text())
def test_clean(text):
    shown = clean(text)
    assert not OBEYED.search(shown) and not hidden(shown)
    assert len(shown.splitlines()) <= 1
    assert clean(shown) == shown
    shown.encode()  # there is nothing left that has no encoding


@BOUNDED
@given(text=st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=40))
def test_what_is_harmless_is_shown_as_it_is(text):
    assert clean(text) == text


def test_every_sequence_is_taken_apart():
    for sequence in SEQUENCES:
        shown = clean(f"a{sequence}b")
        assert shown.startswith("a\\") and shown.isprintable(), repr(sequence)


@BOUNDED
@given(rows=st.lists(st.tuples(evil, evil, evil), max_size=4), on_terminal=st.booleans())
def test_tables_have_as_many_lines_as_rows(rows, on_terminal):
    """And as many columns: no cell makes another one, or another row, that says what was never there."""
    shown = Terminal() if on_terminal else io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", shown)
        table(("A", "B", "C"), rows)
    lines = shown.getvalue().split("\n")
    assert len(lines) - 1 == len(rows) + on_terminal
    for line in lines[:-1]:
        assert not OBEYED.search(line.replace("\t", ""))
        assert line.count("\t") == (0 if on_terminal else 2)


@BOUNDED
@given(text=evil)
def test_lines_and_errors(text):
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        say(text)
        note(text)
        output.report(text, as_json=False)
        progress = output.Progress()
        progress.tell(text, 0.5)
    for shown, count in ((out, 1), (err, 3)):
        assert shown.getvalue().count("\n") == count and not OBEYED.search(shown.getvalue().replace("\n", ""))


def spoilt(value: Any) -> Any:
    """An answer in which every name is evil."""
    if isinstance(value, dict):
        return {name: EVIL.replace("\ud800", "") if name in NAMES else spoilt(one) for name, one in value.items()}
    return [spoilt(one) for one in value] if isinstance(value, list) else value


NAMES = {
    "address",
    "description",
    "message",
    "name",
    "namespace",
    "path",
    "problem",
    "protocol",
    "reason",
    "role",
    "root_source_vm_name",
    "source_vm_name",
    "state_detail",
    "target",
    "text",
}
POOL = {
    "pool_id": "01KZ0000000000000000000002", "name": "p", "namespace": "default", "state": "running", "source_vm_name": "u",
    "replicas": 3, "ready": 2, "starting": 1, "allocated": 4, "problem": "x", "network": "internet", "labels": {},
    "resources": {"vcpu": None, "memory_mib": 512, "disk_mib": None}, "created_at": "2026-11-21T00:00:00Z",
}  # fmt: skip
KEY = {"api_key_id": VM_ID, "name": "n", "role": "admin", "created_at": "2026-11-21T00:00:00Z", "prefix": "bxw_x"}
FILE = {
    "path": "f", "kind": "symlink", "size": 1, "mode": 420, "uid": 0, "gid": 0, "links": 1, "target": "t",
    "modified_at": "2026-11-21T00:00:00Z",
}  # fmt: skip
MATCH = {"path": "f", "line": 1, "column": 1, "text": "x"}
VOLUME = {"filesystem_id": VM_ID, "name": "n", "created_at": "2026-11-21T00:00:00Z", "size_bytes": 5, "size_mib": 64}
MOUNT = {
    "mount_id": VM_ID, "vm_id": VM_ID, "filesystem_id": VM_ID, "path": "/p", "state": "failed", "state_detail": "d",
}  # fmt: skip
SNAPSHOT = {"snapshot_id": VM_ID, "vm_id": VM_ID, "name": "n", "description": "d", "created_at": "2026-11-21T00:00:00Z"}
SECRET = {"name": "n", "created_at": "2026-11-21T00:00:00Z", "updated_at": "2026-11-21T00:00:00Z"}
ANSWERS = {
    "ls": ("GET /v1/vms", {"vms": [VM], "next_cursor": None}),
    "image ls": ("GET /v1/vms", {"vms": [VM | {"public": True}], "next_cursor": None}),
    "net n": ("GET /v1/vms/n/network", NETWORK),
    "pool ls": ("GET /v1/warm-pools", {"pools": [POOL]}),
    "pool get p": ("GET /v1/warm-pools/p", POOL),
    "volume ls": ("GET /v1/filesystems", {"filesystems": [VOLUME], "next_cursor": None}),
    "volume get v": ("GET /v1/filesystems/v", VOLUME),
    "mount n": ("GET /v1/vms/n/mounts", {"mounts": [MOUNT], "next_cursor": None}),
    "snapshots n": ("GET /v1/vms/n/snapshots", {"snapshots": [SNAPSHOT]}),
    "storage usage": ("GET /boxwood/storage", {"free_bytes": 1, "vms": [{"vm_id": VM_ID, "name": "n"}]}),
    "key ls": ("GET /v1/api-keys", {"api_keys": [KEY]}),
    "secret ls": ("GET /v1/secrets", {"secrets": [SECRET]}),
    "fs ls n:/w": ("GET /v1/vms/n/files/list", {"entries": [FILE, FILE], "next_cursor": None}),
    "fs stat n:/w": ("GET /v1/vms/n/files/stat", FILE),
    "fs find n:/w": ("GET /v1/vms/n/files/glob", {"entries": [FILE], "truncated": None}),
    "fs grep x n:/w": ("POST /v1/vms/n/files/search", {"matches": [MATCH], "truncated": None, "engine": "builtin"}),
}


@pytest.mark.parametrize("command", ANSWERS)
def test_every_table(
    server: StubServer, boxwood: Callable[..., subprocess.CompletedProcess[bytes]], command: str
) -> None:
    route, answer = ANSWERS[command]
    server.script(route, (200, spoilt(answer)))
    done = boxwood(*command.split())
    assert done.returncode == 0, done.stderr
    shown = (done.stdout + done.stderr).decode()
    assert "name" in shown and "\\x1b" in shown, "it is there, written out"
    assert not OBEYED.search(shown.replace("\n", "").replace("\t", ""))
    server.script(route, (404, spoilt(error("not_found"))))
    done = boxwood(*command.split())
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert not OBEYED.search(done.stderr.decode().rstrip("\n"))


def test_every_table_is_tried() -> None:
    """A command that shows a table is in `ANSWERS`."""
    calls = re.compile(r"^\s+(?:_)?table\(", re.MULTILINE)
    showing = {path.stem for path in Path(output.__file__).parent.glob("*.py") if calls.search(path.read_text())} - {
        "output"
    }
    assert showing == {"vms", "image", "network", "pool", "key", "fs", "volume", "snapshots", "storage", "policy"}


def test_nothing_prints_past_it() -> None:
    """`print` and the streams themselves are in `output` alone; what goes out in bytes is a run's output, a file, JSON."""
    allowed = {"copy": 1, "kubeconfig": 1, "python": 2, "run": 1, "server": 1, "snapshots": 1}
    for path in Path(output.__file__).parent.glob("*.py"):
        if path.stem == "output":
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = [call.id for call in calls if isinstance(call, ast.Name)]
        assert "print" not in names, path.name
        assert names.count("write_bytes") == allowed.get(path.stem, 0), path.name
        attributes = {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)}
        assert not [
            one
            for one in attributes
            if re.match(r"(sys\.std(out|err)\.(buffer\.)?write|typer\.s?echo|click\.s?echo)", one)
        ]
