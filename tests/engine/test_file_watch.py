"""Changes below a directory of a real box, told as they happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from amounts import amount
from boxfixtures import Runner
from boxwood.engine.fileapi import FileChange

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]


async def until(watch: AsyncGenerator[FileChange, None], kind: str, path: bytes = b"") -> list[FileChange]:
    """All that is told up to this."""
    told = []
    async with asyncio.timeout(60):
        async for change in watch:
            told.append(change)
            if change.kind == kind and (not path or path in (change.path, change.to)):
                return told
    raise AssertionError(f"it ended without {kind} of {path!r}: {told}")


def plain(changes: list[FileChange]) -> list[tuple[str, bytes]]:
    return [(change.kind, change.path) for change in changes]


async def test_what_happens_is_told(runner: Runner) -> None:
    await runner.run("mkdir -p /w/d/e; touch /w/old")
    watch = await runner.box.files.watch(b"/w", recursive=True, most=100)
    assert await until(watch, "watching") == [FileChange("watching", watched=3)]
    await runner.run("echo x > /w/d/e/new")
    assert plain(await until(watch, "written")) == [
        ("created", b"d/e/new"),
        ("modified", b"d/e/new"),
        ("written", b"d/e/new"),
    ]
    await runner.run("chmod 600 /w/old; mv /w/old /w/d/moved; rm /w/d/moved")
    told = await until(watch, "removed")
    assert (
        plain(told) == [("attributes", b"old"), ("moved", b"old"), ("removed", b"d/moved")] and told[1].to == b"d/moved"
    )
    await runner.run("mv /w/d/e/new /new; mv /new /w/back")
    assert plain(await until(watch, "created")) == [("removed", b"d/e/new"), ("created", b"back")]
    await runner.run("mv /w/d /w/D; touch /w/D/e/there")
    assert plain(await until(watch, "created", b"D/e/there")) == [("moved", b"d"), ("created", b"D/e/there")]
    await runner.run("mkdir -p /w/a/b/c; touch /w/a/b/c/deep; touch /w/done")
    told = await until(watch, "created", b"done")
    assert {("created", name) for name in (b"a", b"a/b", b"a/b/c", b"a/b/c/deep")} <= set(plain(told))
    await runner.run("rm -r /w/a; touch '/w/\udcff'".encode("utf-8", "surrogateescape"))
    assert ("removed", b"a") in plain(await until(watch, "created", b"\xff"))
    await runner.run("rm -r /w")
    assert (await until(watch, "gone"))[-1].kind == "gone"
    assert [change async for change in watch] == []


async def test_one_directory_alone(runner: Runner) -> None:
    await runner.run("mkdir -p /w/d; ln -s /etc /w/link")
    watch = await runner.box.files.watch(b"/w", recursive=False, most=1)
    assert (await until(watch, "watching"))[0].watched == 1
    await runner.run("touch /w/d/unseen /w/seen")
    assert plain(await until(watch, "created"))[-1] == ("created", b"seen")
    await watch.aclose()


async def test_no_more_directories_than_are_asked_for(runner: Runner) -> None:
    await runner.run("mkdir -p /w/1/2/3 /w/4")
    watch = await runner.box.files.watch(b"/w", recursive=True, most=3)
    assert await until(watch, "watching") == [FileChange("watching", watched=3, complete=False)]
    await watch.aclose()
    watch = await runner.box.files.watch(b"/w", recursive=True, most=5)
    assert (await until(watch, "watching"))[0].complete
    await runner.run("mkdir /w/5 /w/6; touch /w/6/unseen /w/seen")
    assert "incomplete" in [change.kind for change in await until(watch, "created", b"seen")]
    await watch.aclose()


async def test_who_does_not_read_is_told_of_the_overflow(runner: Runner) -> None:
    """The kernel keeps so many events and no more; then all is watched anew, also what has come meanwhile."""
    await runner.run("mkdir -p /w/d")
    watch = await runner.box.files.watch(b"/w", recursive=True, most=1000)
    await until(watch, "watching")
    flood = f"import os\nfor i in range({amount(8_000, 60_000)}):\n f='/w/d/%d'%(i%2000)\n os.close(os.open(f,os.O_CREAT|os.O_WRONLY)); os.unlink(f)\nos.mkdir('/w/new')"
    await runner.run(f'python3 -c "{flood}"')
    await until(watch, "overflow")
    await runner.run("touch /w/new/seen")
    await until(watch, "created", b"new/seen")
    await watch.aclose()


async def test_it_ends_with_the_box_and_a_box_with_it_is_not_idle(runner: Runner) -> None:
    await runner.run("mkdir /w")
    watch = await runner.box.files.watch(b"/w", recursive=True, most=10)
    await until(watch, "watching")
    assert not (await runner.box.settle()).idle
    await runner.box.kill()
    with pytest.raises(Exception, match="ended before it was done"):
        await anext(watch)
