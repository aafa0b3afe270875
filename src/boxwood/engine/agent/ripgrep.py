"""ripgrep, where the VM has it: a program of the VM, started as any other, whose word is taken for nothing more than
what it says of the VM's own files."""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.place import PATH_BYTES, raw

_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_LINE_BYTES = 8 << 20  # of one that it writes
_TEXT_BYTES = 1 << 16  # of the line that it has found
_ENV = {"PATH": ":".join(_PATH), "HOME": "/root", "LANG": "C.UTF-8"}
_OPTIONS = (
    "--json", "--no-config", "--no-ignore", "--hidden", "--no-messages", "--one-file-system", "--sort=path",
    "--no-follow", "--encoding=none",
)  # fmt: skip

Take = Callable[[bytes, int, int, bytes], bool]


def find() -> str | None:
    for directory in _PATH:
        candidate = f"{directory}/rg"
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    return None


def search(
    program: str, top: int, is_directory: bool, asked: dict[str, Any], wanted: Callable[[bytes], bool], take: Take
) -> None:
    """Hand out (path, line number, column, line) of a directory or a file, until nobody takes one. Refusal: it does not
    know the pattern."""
    options = [*_OPTIONS]
    options += ["--fixed-strings"] * (asked["literal"] is True) + ["--ignore-case"] * (asked["ignore_case"] is True)
    # A directory is searched as the working directory, one file on its standard input: both are held open.
    name = os.path.basename(raw(asked["path"]).rstrip(b"/"))
    argv = [program, *options, "-e", raw(asked["pattern"]), "--", "." if is_directory else "-"]
    r, w = os.pipe()
    complaints = os.memfd_create("complaints")
    null = os.open("/dev/null", os.O_RDONLY)
    if is_directory:
        os.fchdir(top)
    streams = (null if is_directory else top, w, complaints)
    given = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
    # A group of its own, to be killed with all that it may have started; a fork would write to what the agent had open.
    pid = os.posix_spawn(program, argv, _ENV, file_actions=given, setpgroup=0)
    try:
        os.close(w)
        with open(r, "rb", buffering=1 << 16) as lines:
            while line := lines.readline(_LINE_BYTES):
                found = _match(line)
                if found is None:
                    continue
                path = found[0].removeprefix(b"./") if is_directory else name
                if b"\0" in path or len(path) > PATH_BYTES or not {b"", b".", b".."}.isdisjoint(path.split(b"/")):
                    continue  # it can say what it likes, but the server takes paths below the directory alone
                if (not is_directory or wanted(path)) and not take(path, *found[1:]):
                    return
    finally:
        os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) == 2:
        said = os.pread(complaints, 1000, 0).decode("utf-8", "replace")
        if said:
            raise Refusal(errno.EINVAL, f"pattern: ripgrep says: {said}")


def _match(line: bytes) -> tuple[bytes, int, int, bytes] | None:
    """What a line of its output tells; None: something else, or nothing that makes sense."""
    try:
        said = json.loads(line.decode())  # as bytes it might be taken for UTF-32, which no box can look up
        if said["type"] != "match":
            return None
        about = said["data"]
        number, start = about["line_number"], about["submatches"][0]["start"]
        if type(number) is not int or type(start) is not int or not 0 < number < 1 << 53 or not 0 <= start < 1 << 53:
            return None
        return _bytes(about["path"]), number, start + 1, _bytes(about["lines"])[:_TEXT_BYTES]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, binascii.Error):
        return None


def _bytes(said: dict[str, str]) -> bytes:
    return raw(said["text"]) if "text" in said else base64.b64decode(said["bytes"])
