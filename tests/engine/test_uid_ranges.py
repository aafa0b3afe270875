"""Uid ranges on a host that is short of something: what cannot be made costs nothing."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from boxwood.engine.uidrange import Ranges

pytestmark = pytest.mark.root
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@pytest.fixture
def ranges(tmp_path: Path) -> Iterator[Ranges]:
    places = [tmp_path / name for name in ("layers", "images")]
    for place in places:
        place.mkdir()
    fds = [os.open(place, _DIRECTORY) for place in places]
    made = Ranges(tmp_path / "locks", *fds)
    made.take().close()
    yield made
    for fd in (*fds, *made._held.values()):
        os.close(fd)


def opened() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"), key=int)


def test_no_descriptors(ranges: Ranges) -> None:
    """However far it comes, it leaves none open, and the next one has the ids that this one was to have."""
    before, limits, refused = opened(), resource.getrlimit(resource.RLIMIT_NOFILE), 0
    try:
        for most in range(int(before[-2]) + 1, 1000):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
            try:
                ranges.prepare()
                break
            except OSError as error:
                assert error.errno == errno.EMFILE
                refused += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    made = ranges.take()
    assert refused > 3 and made.number % 1024 == 1
    made.close()
    assert opened() == before


def test_no_processes(ranges: Ranges, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    before = opened()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", none)
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                ranges.take()
    made = ranges.take()
    assert made.number % 1024 == 1
    made.close()
    assert opened() == before
