"""What is prepared for boxes to come, and cannot be had."""

from __future__ import annotations

import errno
import socket
from typing import Any, cast

import pytest

from boxwood.engine import spares
from boxwood.engine.spares import Spares


class Ranges:
    def __init__(self) -> None:
        self.free = [object()]

    def take(self) -> object:
        return self.free.pop()

    def give_back(self, used: object) -> None:
        self.free.append(used)


def test_a_range_is_not_lost_to_want_of_descriptors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*kind: int) -> None:
        raise OSError(errno.EMFILE, "no more descriptors")

    ranges, anything = Ranges(), cast(Any, None)
    made = Spares(anything, "", None, cast(Any, ranges), anything, anything, anything, may_look=True)
    made.configure(b"", cast(Any, object()), wired=False)
    monkeypatch.setattr(socket, "socketpair", none)
    for times in (1, 0, 0):  # that it is told: it may last
        made.make_ahead()
        assert capsys.readouterr().err.count("Traceback") == times
        assert len(ranges.free) == 1 and not len(made)
        assert made.patience > spares._QUIET
        made._pause_until = 0.0
