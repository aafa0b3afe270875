"""The public surface: one source for both forms, lazily loaded, sorted, documented."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import boxwood
from surfaces import surface
from unit.client.stub import KEY, RUN, VM, VM_ID, StubServer

ROOT = Path(__file__).resolve().parents[3]
PAIRS = [
    (boxwood.Boxwood, boxwood.AsyncBoxwood), (boxwood.VM, boxwood.AsyncVM), (boxwood.Run, boxwood.AsyncRun),
    (boxwood.Session, boxwood.AsyncSession), (boxwood.Pty, boxwood.AsyncPty),
    (boxwood.Files, boxwood.AsyncFiles), (boxwood.Pool, boxwood.AsyncPool), (boxwood.Mounts, boxwood.AsyncMounts),
    (boxwood.Filesystems, boxwood.AsyncFilesystems),
]  # fmt: skip


def test_the_blocking_sdk_is_made_from_the_awaitable_one() -> None:
    subprocess.run([sys.executable, ROOT / "tools/unasync.py", "--check"], check=True)


@pytest.mark.parametrize(("blocking", "awaitable"), PAIRS)
def test_both_forms_have_the_same_methods_and_parameters(blocking: type, awaitable: type) -> None:
    assert surface(blocking) == surface(awaitable)


@pytest.mark.parametrize(("blocking", "awaitable"), PAIRS)
def test_every_public_method_and_parameter_says_what_it_is(blocking: type, awaitable: type) -> None:
    for kind in (blocking, awaitable):
        assert inspect.getdoc(kind)
        for name, member in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                assert inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_all_is_sorted_complete_and_documented() -> None:
    names = [name for name in boxwood.__all__ if name != "__version__"]
    assert boxwood.__all__ == sorted(set(boxwood.__all__), key=lambda name: (not name.isupper(), name))
    for name in names:
        assert getattr(boxwood, name).__name__ == name
    docs = (ROOT / "docs/sdk.md").read_text()
    assert [name for name in names if f"`{name}" not in docs] == []
    methods = [
        name
        for kind, _ in PAIRS
        for name, _ in inspect.getmembers(kind, lambda m: inspect.isfunction(m) or isinstance(m, property))
        if not name.startswith("_")
    ]
    assert [name for name in methods if f"{name}(" not in docs and f"`{name}`" not in docs] == []
    with pytest.raises(AttributeError):
        _ = boxwood.nothing


@pytest.mark.parametrize(
    ("kind", "title"), [(boxwood.Boxwood, "`Boxwood`"), (boxwood.VM, "`VM`"), (boxwood.Files, "Files")]
)
def test_the_pages_signatures_are_the_methods_own(kind: type, title: str) -> None:
    """Those that the page's tables write out, without a `…`: each has the method's parameters, in their order."""
    docs = (ROOT / "docs/sdk.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert docs
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        own = [parameter for parameter in inspect.signature(member).parameters if parameter != "self"]
        for row in re.findall(rf"^\|.*`{name}\(([^)`…]+)\)`.*\|$", docs, re.MULTILINE):
            told = [part.partition("=")[0].strip() for part in row.split(",")]
            assert [one for one in told if one not in ("*", "")] == own, name


def test_the_version_is_that_of_the_project() -> None:
    assert boxwood.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_import_boxwood_loads_no_sdk() -> None:
    heavy = ("httpx2", "msgspec", "asyncio", "boxwood.client")
    code = f"import sys, boxwood; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_awaitable_form_does_the_same(server: StubServer, quick: list[float]) -> None:
    server.script("POST /v1/fork", (503, b"busy"), (200, VM))
    server.script(f"POST /v1/vms/{VM_ID}/runs", (202, {"run_id": "r1", "session_id": "s1", "state": "running"}))
    server.script(f"GET /v1/vms/{VM_ID}/runs/r1", (200, RUN | {"state": "running"}), (200, RUN))
    server.script("GET /v1/vms", (200, {"vms": [VM], "next_cursor": "c"}), (200, {"vms": [VM], "next_cursor": None}))
    server.script(f"DELETE /v1/vms/{VM_ID}", (200, {"deleted": True}))

    async def go() -> None:
        async with boxwood.AsyncBoxwood(server.url, KEY) as box, await box.fork("ubuntu") as vm:
            runs = await asyncio.gather(*(vm.run(f"echo {i}") for i in range(40)))
            assert all(run.stdout == "hi" for run in runs)
            assert [found.id async for found in box.list()] == [VM_ID, VM_ID]
            assert len(await box.images()) == 1

    asyncio.run(go())
    assert server.last.method == "DELETE"
