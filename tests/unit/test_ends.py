"""Boxes that are ended: whatever fails of that, the one is killed, and the zygote goes on with all others."""

from __future__ import annotations

import os
import select
import socket
import subprocess
from collections.abc import Iterator

import pytest

from boxwood.engine.ends import Ends
from boxwood.engine.spares import Live


class Groups:
    """`broken`: the host has no descriptor left, or somebody else has removed the group."""

    controllers = frozenset({"freezer"})

    def __init__(self) -> None:
        self.broken = False
        self.done: list[tuple[str, str]] = []

    def _do(self, what: str, group: str) -> None:
        if self.broken:
            raise OSError(24, "Too many open files")
        self.done.append((what, group))

    def freeze(self, group: str) -> None:
        self._do("freeze", group)

    def thaw(self, group: str) -> None:
        self._do("thaw", group)

    def stop(self, group: str) -> None:
        self._do("stop", group)

    def kill(self, group: str) -> None:
        self._do("kill", group)


class Nobody:
    def hold(self, pid: int) -> int | None:
        return None


@pytest.fixture
def groups() -> Groups:
    return Groups()


@pytest.fixture
def boxes() -> Iterator[dict[str, Live]]:
    made, processes = {}, []
    for name in ("one", "two"):
        process = subprocess.Popen(["sleep", "1000"])
        processes.append(process)
        hook = socket.socket(socket.AF_UNIX)
        made[name] = Live(  # type: ignore[arg-type]
            process.pid, os.pidfd_open(process.pid), len(made), hook, None, f"of {name}", box=name
        )  # fmt: skip
    yield made
    for live, process in zip(made.values(), processes, strict=True):
        process.kill()
        process.wait()
        live.hook.close()
        os.close(live.pidfd)


@pytest.fixture
def ends(boxes: dict[str, Live], groups: Groups) -> Ends:
    made = Ends(boxes, Nobody())  # type: ignore[arg-type]
    made.cgroups = groups  # type: ignore[assignment]
    return made


def is_over(live: Live) -> bool:
    """Has it been killed?"""
    poll = select.poll()
    poll.register(live.pidfd, select.POLLIN)
    return bool(poll.poll(20_000))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_group_that_cannot_be_killed_is_told_of(
    ends: Ends, boxes: dict[str, Live], groups: Groups, capfd: pytest.CaptureFixture[str], frozen: bool
) -> None:
    if frozen:
        ends.freeze(boxes["one"])
    assert ends.dismiss(boxes["one"]) and ends.dismiss(boxes["two"])
    groups.broken = True
    ends.dismissed.end_one()
    assert is_over(boxes["one"]) and "Too many open files" in capfd.readouterr().err
    ends.abandoned()
    assert is_over(boxes["two"]) and not ends.dismissed


def test_what_a_server_froze_goes_on_when_it_is_gone_and_what_nobody_wanted_does_not(
    ends: Ends, boxes: dict[str, Live], groups: Groups
) -> None:
    ends.freeze(boxes["one"])
    ends.freeze(boxes["two"])
    assert ends.dismiss(boxes["two"])
    groups.done.clear()
    ends.abandoned()
    assert is_over(boxes["two"])
    assert ("thaw", "of one") in groups.done and ("kill", "of one") not in groups.done
    groups.done.clear()
    ends.abandoned()  # another server, which has frozen nothing
    assert not groups.done


def test_everything_ends_with_the_zygote(ends: Ends, boxes: dict[str, Live], groups: Groups) -> None:
    """Those that hold out behind a first process that waits for them too, and what is frozen."""
    ends.freeze(boxes["one"])
    ends.end_all()
    assert all(is_over(live) for live in boxes.values())
    assert [step for step in groups.done if step[1] == "of one"] == [
        ("freeze", "of one"), ("thaw", "of one"), ("kill", "of one"),
    ]  # fmt: skip
    assert ("kill", "of two") in groups.done
