"""Times: microseconds since 1970 in rows, aware datetimes outside."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def now() -> int:
    return time.time_ns() // 1000


def shown(at: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at)


def shown_or_none(at: int | None) -> datetime | None:
    return None if at is None else shown(at)


def stored(at: datetime) -> int:
    """A time without a zone counts as UTC."""
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _MICROSECOND
