"""The helper that looks for text in files: ripgrep where the VM has it, else a walk of our own.

Both look into every regular file, hidden ones and those that a .gitignore names too; a file with NUL in it is no text
and left. Which of them it was is told: their regular expressions differ in small things (Rust's, Python's).
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from boxwood.engine.agent import ripgrep
from boxwood.engine.agent.files import Refusal, check_on_disk
from boxwood.engine.agent.globs import Glob
from boxwood.engine.agent.helpers import Out, TimeUp
from boxwood.engine.agent.listing import FOUND_BYTES, is_regular
from boxwood.engine.agent.place import PATH_BYTES, absolute, explained, look, place, shown, told
from boxwood.engine.agent.walk import Walk

PATTERN_CHARACTERS = 1024
LINE_BYTES = 1 << 20  # of a line that is looked through; the rest of it counts as another
SHOWN_BYTES = 2000  # of a line that is told
_MOST_GLOBS = 32
_BLOCK = 1 << 16
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC


class Sink:
    """Where matches go, as many as there may be. `full`: why there may be no more."""

    def __init__(self, out: Out, limit: int) -> None:
        self._out = out
        self._limit = limit
        self._count = self._bytes = 0
        self.full = ""

    def take(self, path: bytes, number: int, column: int, line: bytes) -> bool:
        """`number` of the line and `column` in it count from 1, columns in bytes. False: it was not taken."""
        if self._count == self._limit or self._bytes > FOUND_BYTES:
            self.full = "limit" if self._count == self._limit else "bytes"
            return False
        self._count += 1
        text = line.rstrip(b"\r\n")
        fields = {"path": told(path), "line": number, "column": column, "text": told(text[:SHOWN_BYTES])}
        self._bytes += self._out.line(fields | ({"cut": True} if len(text) > SHOWN_BYTES else {}))
        return True


def search(header: dict[str, Any], out: Out, source: int) -> dict[str, Any]:
    """`{path, pattern, literal, ignore_case, include, exclude, limit, engine}`: a line for each line of text that
    matches, below a directory or in one file. Answers why it is not all, and which engine it was."""
    path, pattern = absolute(header["path"]), header["pattern"]
    if not isinstance(pattern, str) or not pattern or len(pattern) > PATTERN_CHARACTERS or "\n" in pattern:
        raise Refusal(errno.EINVAL, f"pattern: 1 to {PATTERN_CHARACTERS} characters in one line")
    sink = Sink(out, header["limit"])
    include, exclude = _globs(header["include"]), _globs(header["exclude"])
    matcher = _matcher(pattern, header["literal"] is True, header["ignore_case"] is True)
    with explained(path), place(path, follow=True) as found:
        look(found, path)
        top = os.open(found.name, _READ, dir_fd=found.directory)
        is_directory = _is_directory(top)
        if is_directory:
            check_on_disk(top, shown(path))
    program = None if header["engine"] == "builtin" else ripgrep.find()
    if header["engine"] == "ripgrep" and program is None:
        raise Refusal(errno.ENOENT, "engine: there is no rg in the VM's PATH; install ripgrep, or use builtin")
    name = "builtin" if program is None else "ripgrep"
    try:
        if program is not None:
            ripgrep.search(program, top, is_directory, header, lambda path: _wanted(path, include, exclude), sink.take)
        else:
            if isinstance(matcher, re.error):
                raise Refusal(errno.EINVAL, f"pattern: {matcher}")
            if is_directory:
                _walk(top, path, matcher, include, exclude, sink)
            else:
                _look_into(top, os.path.basename(path.rstrip(b"/")), matcher, sink)
    except TimeUp:
        return {"truncated": "seconds", "engine": name}
    return {"truncated": sink.full, "engine": name}


def _globs(given: Any) -> list[Glob]:
    if not isinstance(given, list) or len(given) > _MOST_GLOBS:
        raise Refusal(errno.EINVAL, f"include, exclude: at most {_MOST_GLOBS} patterns each")
    return [Glob(pattern) for pattern in given]


def _wanted(path: bytes, include: list[Glob], exclude: list[Glob]) -> bool:
    if include and not any(one.fits(path) for one in include):
        return False
    return not any(one.fits(path) for one in exclude)


def _matcher(pattern: str, literal: bool, ignore_case: bool) -> re.Pattern[str] | re.error:
    try:
        return re.compile(re.escape(pattern) if literal else pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        return error
    except (RecursionError, OverflowError):
        return re.error("too deep, or too large a number")
    except ImportError:  # nothing can be imported in a box
        return re.error(r"characters cannot be named (\N{…}): write them as they are, or as \uXXXX")


def _walk(
    top: int, path: bytes, matcher: re.Pattern[str], include: list[Glob], exclude: list[Glob], sink: Sink
) -> None:
    for entry in Walk(top, room=PATH_BYTES - len(path) - 1):
        if not is_regular(entry) or not _wanted(entry.path, include, exclude):
            continue
        try:
            fd = os.open(entry.name, _READ, dir_fd=entry.directory)
        except OSError:
            continue  # it has gone, or is a link now, or cannot be read
        try:
            _look_into(fd, entry.path, matcher, sink)
        finally:
            os.close(fd)
        if sink.full:
            return


def _is_directory(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise Refusal(errno.EINVAL, "only directories and regular files can be searched")
    return stat.S_ISDIR(mode)


def _look_into(fd: int, path: bytes, matcher: re.Pattern[str], sink: Sink) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    number, whole = 1, True
    for line in _lines(fd):
        found = matcher.search(told(line.rstrip(b"\r\n")))
        if found is not None:
            column = len(found.string[: found.start()].encode("utf-8", "surrogateescape")) + 1
            if not sink.take(path, number, column, line):
                return
        whole = line.endswith(b"\n")
        number += whole


def _lines(fd: int) -> Iterator[bytes]:
    """Those of a text; none any more once there is NUL."""
    with io.BufferedReader(io.FileIO(fd, closefd=False), _BLOCK) as file:
        if b"\0" in file.peek(_BLOCK):
            return
        try:
            while line := file.readline(LINE_BYTES):
                if b"\0" in line:
                    return
                yield line
        except OSError:
            return  # it cannot be read any further
