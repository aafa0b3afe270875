"""The power goes at the moment of an acknowledgement: what a durable VM has acknowledged is there when it comes back."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from amounts import amount
from boxwood import Boxwood
from power import Disk, after
from servers import Server, until

Check = Callable[[Boxwood], None]
LARGE = 300_000  # bytes of output: more than a row has
FEW = {"a fork", "a large file", "the output of a run", "its own fsync", "a deletion"}
CUT = amount(FEW, FEW | {"a file", "a run", "a session", "a fork of it", "a change"})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    with disk.plugged_in():
        yield disk


@contextmanager
def serving(data: Path) -> Iterator[Server]:
    server = Server(data, network="none", ready_boxes=0)
    try:
        yield server.start()
    finally:
        server.down()


def test_what_was_acknowledged_is_there(disk: Disk) -> None:
    """Each thing alone is cut off right behind its own acknowledgement, before anything else could bring it along."""
    cuts: dict[str, tuple[Path, Check]] = {}
    with serving(disk.place / "data") as server, server.client() as box:

        def cut(what: str, check: Check) -> None:
            if what in CUT:
                cuts[what] = disk.cut(server), check

        source = box.fork("ubuntu", name="source")
        source.run("echo from the source > /root/own")
        vm = source.fork("durable", durable=True)
        cut("a fork", lambda box: same(box.get("durable").read_text("/root/own"), "from the source\n"))

        vm.write_file("/root/new/deep/small", "small\n")
        cut("a file", lambda box: same(box.get("durable").read_text("/root/new/deep/small"), "small\n"))

        data = secrets.token_bytes(9 << 20)
        vm.write_file("/srv/large", data)
        cut("a large file", lambda box: same(box.get("durable").read_file("/srv/large"), data))

        short = str(vm.run("echo short; echo err >&2; exit 3").run_id)
        cut("a run", lambda box: same(seen(box, short), ("short\n", "err\n", 3)))

        long = str(vm.run(f"head -c {LARGE} /dev/zero | tr '\\0' x; echo end >&2").run_id)
        cut("the output of a run", lambda box: same(seen(box, long), ("x" * LARGE, "end\n", 0)))

        vm.run("cd /srv; export WORD=kept; plain=also; f() { echo f; }")
        cut(
            "a session",
            lambda box: same(box.get("durable").run('echo "$PWD $WORD $plain"; f').stdout, "/srv kept also\nf\n"),
        )

        child = vm.fork("child", durable=True)
        cut("a fork of it", lambda box: same(box.get("child").run("cat /root/own; f").stdout, "from the source\nf\n"))

        child.run("echo synced > /root/synced && sync /root/synced", session=3)
        cut("its own fsync", lambda box: same(box.get("child").read_text("/root/synced"), "synced\n"))

        vm.update(description="told")
        cut("a change", lambda box: same(box.get("durable").description, "told"))

        child.delete()
        cut("a deletion", lambda box: same([one.name for one in box.list()], ["durable", "source"]))

    assert cuts.keys() == CUT
    for what, (copy, check) in cuts.items():
        with after(copy) as place, serving(place / "data") as server, server.client() as box:
            try:
                check(box)
            except Exception as error:
                raise AssertionError(f"{what} was acknowledged, and lost: {error}") from error


def test_the_cut_is_one(disk: Disk) -> None:
    """What nobody has promised to keep is gone: the disk of these tests forgets as others do."""
    with serving(disk.place / "data") as server, server.client() as box:
        durable = box.fork("ubuntu", "durable", durable=True)
        durable.write_file("/root/kept", "kept\n")
        box.fork("ubuntu", "other").write_file("/root/lost", "lost\n")
        durable.run("echo lost > /root/lost", background=True).wait(60)
        copy = disk.cut(server)
        assert durable.read_text("/root/lost") == "lost\n"
    with after(copy) as place, serving(place / "data") as server, server.client() as box:
        vm = box.get("durable")
        assert vm.read_text("/root/kept") == "kept\n"
        assert vm.run("cat /root/lost").stdout != "lost\n"
        assert next(iter(vm.runs())).state == "completed"


def test_a_run_in_the_background_begins_again(disk: Disk) -> None:
    with serving(disk.place / "data") as server, server.client() as box:
        vm = box.fork("ubuntu", "durable", durable=True)
        vm.run("cd /srv; n=1")
        run = vm.run("pwd; echo $n; until [ -e /root/stop ]; do sleep 0.05; done; echo over", background=True)
        until(lambda: run.refresh().stdout == "/srv\n1\n")
        copy = disk.cut(server)
        run.cancel()
    with after(copy) as place, serving(place / "data") as server, server.client() as box:
        vm = box.get("durable")
        run = vm.get_run(str(run.run_id))
        assert run.retry_count == 1 and not run.ended
        vm.write_file("/root/stop", "")
        run.wait(60)
        assert (run.state, run.stdout, run.retry_count) == ("completed", "/srv\n1\nover\n", 1)


def seen(box: Boxwood, run_id: str) -> tuple[str, str, int | None]:
    run = box.get("durable").get_run(run_id)
    return run.stdout, run.stderr, run.exit_code


def same(found: object, wanted: object) -> None:
    assert found == wanted, (str(found)[:300], str(wanted)[:300])
