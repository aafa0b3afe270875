"""Durations as Go writes them: `300ms`, `30s`, `1h30m`, `1.5h`, `-2us`; whole nanoseconds inside.

    nanoseconds("1h30m")  -> 5_400_000_000_000     ValueError, with the text that Go's time.ParseDuration has
    seconds("1m30s")      -> 90.0                  the same, as a float
    text(1_500_000_000)   -> "1.5s"                as Go's Duration.String: 781ms, 1h0m0s, 2.5µs, 0s

Both dialects read what clients write with `nanoseconds` or `seconds` and turn a ValueError into a refusal of their own.
"""

from __future__ import annotations

import re

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
MOST = (1 << 63) - 1  # nanoseconds: 292 years

_LONGEST = 64  # characters: nobody means more
_UNITS = {
    "ns": 1,
    "us": MICROSECOND,
    "µs": MICROSECOND,  # U+00B5, the micro sign
    "μs": MICROSECOND,  # U+03BC, the Greek letter
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_PART = re.compile(r"(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?P<unit>[^.0-9]*)")


def nanoseconds(text: str) -> int:
    """ValueError if it is no duration, or too long for one."""
    if len(text) > _LONGEST:
        raise ValueError("time: invalid duration: too long a text")
    invalid = f"time: invalid duration {_quoted(text)}"
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(invalid)
    total, at = 0, 0
    while at < len(rest):
        found = _PART.match(rest, at)
        assert found is not None  # it fits the empty text too
        whole, fraction, unit = found["whole"], found["fraction"] or "", found["unit"]
        if not whole and not fraction:
            raise ValueError(invalid)
        if not unit:
            raise ValueError(f"time: missing unit in duration {_quoted(text)}")
        if unit not in _UNITS:
            raise ValueError(f"time: unknown unit {_quoted(unit)} in duration {_quoted(text)}")
        each = _UNITS[unit]
        total += int(whole or "0") * each + int(fraction or "0") * each // 10 ** len(fraction)
        if total > MOST:
            raise ValueError(invalid)
        at = found.end()
    return sign * total


def seconds(text: str) -> float:
    """ValueError."""
    return nanoseconds(text) / SECOND


def text(value: int) -> str:
    """Of so many nanoseconds; below a second in the largest unit that fits, else hours, minutes and seconds."""
    if value < 0:
        return "-" + text(-value)
    if value == 0:
        return "0s"
    for name, each in (("ns", MICROSECOND), ("µs", MILLISECOND), ("ms", SECOND)):
        if value < each:
            return _decimal(value, _UNITS[name]) + name
    hours, minutes = value // HOUR, value % HOUR // MINUTE
    shown = _decimal(value % MINUTE, SECOND) + "s"
    if hours or minutes:
        shown = f"{minutes}m{shown}"
    return f"{hours}h{shown}" if hours else shown


def _decimal(value: int, each: int) -> str:
    """value / each, exactly."""
    whole, rest = divmod(value, each)
    digits = len(str(each)) - 1
    fraction = f"{rest:0{digits}d}".rstrip("0") if digits else ""
    return f"{whole}.{fraction}" if fraction else str(whole)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
