"""Helpers that say what there is: a directory page by page, a tree by a pattern."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator
from typing import Any

from boxwood.engine.agent.globs import Glob
from boxwood.engine.agent.helpers import Out, TimeUp
from boxwood.engine.agent.place import (
    PATH_BYTES,
    Place,
    absolute,
    describe,
    directory,
    explained,
    raw,
    told,
)
from boxwood.engine.agent.walk import Entry, Walk

FOUND_BYTES = 8 << 20  # of all lines of one answer


def list_directory(header: dict[str, Any], out: Out, source: int) -> dict[str, Any]:
    """`{path, after, limit}`: a line for each entry whose name comes after `after`, in the order of their bytes. Names
    are read once, and no more than a page of them kept. `last`: the next page begins behind it."""
    path, after, limit = absolute(header["path"]), raw(header["after"]), header["limit"]
    with explained(path):
        fd = directory(path)
    with os.scandir(fd) as entries:
        names = heapq.nsmallest(limit + 1, (name for name in _names(entries) if name > after))
    size = 0
    for number, name in enumerate(names[:limit], 1):
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            size += out.line({"name": told(name), **describe(Place(fd, name), status)})
        except FileNotFoundError:
            pass
        if number < len(names) and (number == limit or size > FOUND_BYTES):
            return {"last": told(name)}
    return {"last": ""}


def _names(entries: Iterator[os.DirEntry[str]]) -> Iterator[bytes]:
    return (os.fsencode(entry.name) for entry in entries)


def glob(header: dict[str, Any], out: Out, source: int) -> dict[str, Any]:
    """`{path, pattern, limit}`: a line for each entry below the directory that the pattern names, in the order of a
    walk. Answers why it is not all: `limit`, `bytes` or `seconds`."""
    path, pattern, limit = absolute(header["path"]), Glob(header["pattern"]), header["limit"]
    with explained(path):
        fd = directory(path)
    states, count, size = [pattern.start], 0, 0
    try:
        for entry in Walk(fd, room=PATH_BYTES - len(path) - 1):
            del states[entry.depth :]
            here = pattern.step(states[-1], entry.name)
            states.append(here)
            entry.enter = pattern.goes_on(here)
            if not pattern.matches(here):
                continue
            if count == limit:
                return {"truncated": "limit"}
            count += 1
            size += _tell(entry, out)
            if size > FOUND_BYTES:
                return {"truncated": "bytes"}
    except TimeUp:
        return {"truncated": "seconds"}
    return {"truncated": ""}


def _tell(entry: Entry, out: Out) -> int:
    try:
        described = describe(Place(entry.directory, entry.name), entry.status)
    except OSError:
        return 0  # a link that has gone
    return out.line({"name": told(entry.path), **described})


def is_regular(entry: Entry) -> bool:
    return stat.S_ISREG(entry.status.st_mode)
