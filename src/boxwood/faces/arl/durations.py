"""How long: a number of seconds, or text as Go writes it (`300ms`, `30s`, `5m`, `1h30m`)."""

from __future__ import annotations

import math
import re

LONGEST = 365 * 86400.0  # seconds
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")  # both letters mu, as Go


def seconds(value: float | str) -> float:
    """:raises ValueError: not a duration, not more than nothing, or longer than a year.
    :raises TypeError: neither a number nor text.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"a duration is a number of seconds or text like '30s' or '1h30m', not {value!r}")
    found = _read(value) if isinstance(value, str) else float(value)
    if not 0 < found <= LONGEST:  # NaN is not either
        raise ValueError(f"a duration is more than nothing and at most a year, not {value!r}")
    return found


def go_text(length: float) -> str:
    """So many seconds as Go reads them, rounded up to whole milliseconds: `30s`, `1500ms`."""
    milliseconds = math.ceil(round(length * 1000, 6))
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def _read(text: str) -> float:
    parts = _PART.findall(text) if len(text) <= 64 else []
    if not parts or "".join(map("".join, parts)) != text:
        raise ValueError(f"not a duration: {text[:64]!r}; it looks like '300ms', '30s', '5m' or '1h30m'")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def go_seconds(text: object) -> float | None:
    """Of what a server says; None if that is no duration. `0s` is 0."""
    try:
        return 0.0 if text == "0s" else _read(text) if isinstance(text, str) else None
    except ValueError:
        return None
