"""Boxes that are to be ended when there is time: in their order, and never too many or for too long."""

from __future__ import annotations

import pytest

from boxwood.engine import dismissed
from boxwood.engine.dismissed import MOST, Dismissed


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def boxes(ended: list[str]) -> Dismissed:
    return Dismissed(ended.append)


def test_one_at_a_time_when_nobody_waits(boxes: Dismissed, ended: list[str]) -> None:
    boxes.end_one()
    assert not ended
    for name in "abc":
        boxes.add(name)
    assert len(boxes) == 3 and "b" in boxes and not ended
    boxes.end_one()
    assert ended == ["a"] and "a" not in boxes
    boxes.end_one()
    assert ended == ["a", "b"] and len(boxes) == 1


def test_what_has_ended_by_itself_is_not_ended_again(boxes: Dismissed, ended: list[str]) -> None:
    boxes.add("a")
    boxes.gone("a")
    boxes.gone("never here")
    boxes.end_one()
    boxes.end_all()
    assert not ended


def test_never_too_many(boxes: Dismissed, ended: list[str]) -> None:
    names = [f"box {n}" for n in range(MOST + 3)]
    for name in names:
        boxes.add(name)
    assert ended == names[:3] and len(boxes) == MOST


def test_never_for_long(boxes: Dismissed, ended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(dismissed.time, "monotonic", lambda: now)
    boxes.add("a")
    now += 0.6
    boxes.add("b")
    boxes.end_overdue()
    assert not ended
    now += 0.6
    boxes.end_overdue()
    assert ended == ["a"] and "b" in boxes


def test_all_at_the_end(boxes: Dismissed, ended: list[str]) -> None:
    boxes.add("a")
    boxes.add("b")
    boxes.end_all()
    assert ended == ["a", "b"] and not len(boxes)
