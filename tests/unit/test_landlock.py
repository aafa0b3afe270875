"""What a process may still change of the host after it has confined itself: tried in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from boxwood.engine import landlock

pytestmark = pytest.mark.skipif(not landlock.version(), reason="the kernel has no Landlock")

TRIES = """
import os, signal, subprocess, sys
from pathlib import Path
from boxwood.engine import kernel, landlock
here, other = Path(sys.argv[1]), int(sys.argv[2])
confined, place, file = sys.argv[3] == "confined", here / "place", here / "file"
kept = open(here / "open before", "w")
if confined:
    kernel.no_new_privileges()
    rights = landlock.MAKE_SOCKET | landlock.REMOVE
    assert landlock.confine({place: rights, file: landlock.WRITE, here / "none": landlock.WRITE})
def may(work):
    try:
        work()
    except PermissionError:
        return False
    return True
import socket
def bind(path):
    socket.socket(socket.AF_UNIX).bind(str(path))
print(may(lambda: (here / "new").write_text("x")))
print(may(lambda: (here / "given").write_text("x")))
print(may(lambda: (here / "directory").mkdir()))
print(may(lambda: (here / "given").unlink()))
print(may(lambda: (place / "new").write_text("x")))
print(may(lambda: os.kill(other, 0)))
print(subprocess.run(["sh", "-c", 'echo x > "$1"', "sh", here / "by another"], stderr=subprocess.DEVNULL if not confined else -1).returncode == 0)
print("|")
print(may(lambda: bind(place / "socket")), may(lambda: (place / "socket").unlink()))
print(may(lambda: file.write_text("y")), file.read_text(), bool(kept.write("z")), bool(list(here.iterdir())))
"""


def tried(here: Path, how: str) -> tuple[list[str], str]:
    """What may be done that should not, and the rest."""
    here.mkdir()
    (here / "place").mkdir()
    for name in ("given", "file"):
        (here / name).write_text("before")
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        command = [sys.executable, "-c", TRIES, str(here), str(other.pid), how]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    forbidden, allowed = done.stdout.split("|\n")
    return forbidden.split(), allowed


def test_nothing_else_is_changed(tmp_path: Path) -> None:
    forbidden, allowed = tried(tmp_path / "a", "confined")
    assert forbidden == ["False"] * 5 + [str(landlock.version() < 6)] + ["False"]
    assert allowed == "True True\nTrue y True True\n"


def test_without_it_all_of_that_works(tmp_path: Path) -> None:
    forbidden, allowed = tried(tmp_path / "b", "free")
    assert forbidden == ["True"] * 7 and allowed == "True True\nTrue y True True\n"
