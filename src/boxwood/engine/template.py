"""What boxes have in common of their memory, as a file: so that a page of a box's agent that has come to say again what
it said at first can be given back.

Python counts references in the objects themselves: whatever an agent does, it writes to hundreds of pages of the
nursery's, which are copied for it, and many are soon as they were. The kernel does not see that. So the nursery's
memory is put into a file that all map privately, and where an agent that waits has a copy that equals the file's page,
the copy is dropped: the page is the file's again.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from boxwood.engine import tracing

_PAGE = mmap.PAGESIZE
_CHUNK = 256  # pages that are read at once
FILE = "boxes"  # what the memfd is called
_NAME = f"/memfd:{FILE} (deleted)".encode()
_WRITABLE = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FIXED = 0x10
_DONTNEED = 4
_SELF = (1 << 64) - 10000  # in place of a pidfd
_IOVEC = struct.Struct("=QQ")
_AT_ONCE = 512  # which fit on a stack
_ANONYMOUS = 0b100  # the three highest bits of a page map's entry: present, not swapped, not of a file
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class _Mapping(NamedTuple):
    start: int
    size: int
    at: int = 0  # where in the file


class Template:
    """`pid`: of the nursery, which waits for orders; `file`: an empty memfd, which is `theirs` to it. OSError (ptrace
    may be forbidden), tracing.Busy."""

    def __init__(self, pid: int, file: int, theirs: int) -> None:
        self._inode = os.fstat(file).st_ino
        self._places: list[_Mapping] = []
        with tracing.Stopped(pid) as nursery:
            at = 0
            for start, size in _writable(pid):
                self._places.append(_Mapping(start, size, at))
                at += size
            os.ftruncate(file, at)
            for place in self._places:
                _copy(nursery.memory, file, place)
            for place in self._places:
                flags = mmap.MAP_PRIVATE | _MAP_FIXED
                nursery.call(tracing.MMAP, place.start, place.size, _WRITABLE, flags, theirs, place.at)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        self._pages = mmap.mmap(file, at, mmap.MAP_PRIVATE, mmap.PROT_READ)

    def give_back(self, pid: int, pidfd: int, least: int) -> int:
        """How many pages the process has given back: none if that were fewer than `least`. It stands still only while
        it does. OSError, tracing.Busy."""
        found = self._same(pid)
        if sum(run.size for run in found) < least * _PAGE:
            return 0
        with tracing.Stopped(pid, pidfd) as process:
            still = [run for run in found if self._equals(process.memory, run)]
            for at in range(0, len(still), _AT_ONCE):
                _drop(process, still[at : at + _AT_ONCE])
        return sum(run.size for run in still) // _PAGE

    def _same(self, pid: int) -> list[_Mapping]:
        """Runs of pages that are the process's own, and need not be."""
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        page_map = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return [run for place in self._mapped(pid) for run in self._runs(memory, page_map, place)]
        finally:
            os.close(memory)
            os.close(page_map)

    def _runs(self, memory: int, page_map: int, place: _Mapping) -> Iterator[_Mapping]:
        entries = array.array("Q", os.pread(page_map, place.size // _PAGE * 8, place.start // _PAGE * 8))
        same = []
        for first, count in _successive([n for n, entry in enumerate(entries) if entry >> 61 == _ANONYMOUS]):
            has = os.pread(memory, count * _PAGE, place.start + first * _PAGE)
            had = self._pages[place.at + first * _PAGE : place.at + (first + count) * _PAGE]
            pages = (slice(n * _PAGE, (n + 1) * _PAGE) for n in range(count))
            same += [first + n for n, page in enumerate(pages) if has[page] == had[page]]
        for first, count in _successive(same):
            yield _Mapping(place.start + first * _PAGE, count * _PAGE, place.at + first * _PAGE)

    def _mapped(self, pid: int) -> Iterator[_Mapping]:
        """Where the process has our file as it had it when it was forked. It may be hostile: it can map what it likes,
        and where; no more than we have is looked at."""
        with open(f"/proc/{pid}/maps", "rb") as f:
            for line in f:
                where, access, offset, _, number, *name = line.split(maxsplit=5)
                if access == b"rw-p" and int(number) == self._inode and name == [_NAME + b"\n"]:
                    start, size = _area(where)
                    yield from self._shared(start, size, int(offset, 16))

    def _shared(self, start: int, size: int, at: int) -> Iterator[_Mapping]:
        for place in self._places:
            first, end = max(start, place.start), min(start + size, place.start + place.size)
            if first < end and start - at == place.start - place.at:
                yield _Mapping(first, end - first, place.at + first - place.start)

    def _equals(self, memory: int, run: _Mapping) -> bool:
        return os.pread(memory, run.size, run.start) == self._pages[run.at : run.at + run.size]


def _drop(process: tracing.Stopped, runs: list[_Mapping]) -> None:
    """A stop for each is fifty times as slow, but kernels before 6.14 know nothing else."""
    vector = b"".join(_IOVEC.pack(run.start, run.size) for run in runs)
    with suppress(OSError):
        given = process.call(tracing.PROCESS_MADVISE, _SELF, process.put(vector), len(runs), _DONTNEED, 0)
        if given == sum(run.size for run in runs):
            return
    for run in runs:
        process.call(tracing.MADVISE, run.start, run.size, _DONTNEED)


def _copy(memory: int, file: int, place: _Mapping) -> None:
    """All but pages of zeros."""
    for first in range(0, place.size, _CHUNK * _PAGE):
        held = os.pread(memory, min(_CHUNK * _PAGE, place.size - first), place.start + first)
        for at in range(0, len(held), _PAGE):
            page = held[at : at + _PAGE]
            if any(page):
                os.pwrite(file, page, place.at + first + at)


def _writable(pid: int) -> Iterator[tuple[int, int]]:
    """Private memory of the nursery that can be written: address and size. Not the stack, which grows, nor what the
    kernel empties in a child or may take away: random numbers are not to come twice."""
    area = (0, 0)
    with open(f"/proc/{pid}/smaps", "rb") as f:
        for line in f:
            first, *words = line.split(maxsplit=5)
            if not first.endswith(b":"):
                ours = words[0] == b"rw-p" and words[4:] != [b"[stack]\n"]
                area = _area(first) if ours else (0, 0)
            elif first == b"VmFlags:" and area[1] and not {b"wf", b"dc", b"dp"} & set(line.split()):
                yield area


def _area(text: bytes) -> tuple[int, int]:
    start, end = (int(address, 16) for address in text.split(b"-"))
    return start, end - start


def _successive(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Of ascending numbers those that follow one another: the first, and how many."""
    first = count = 0
    for number in numbers:
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
