"""Kubernetes' quantities (`500m`, `2`, `512Mi`, `1.5Gi`, `1e3`) and what a VM is given for them.

parse("1500m")  -> Fraction(3, 2)              ValueError if it is none
vcpus("1500m")  -> 2                           whole cores, rounded up, at least 1
mib("1G")       -> 954                         MiB, rounded up, at least 1
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil

MIB = 1 << 20
_LONGEST = 64  # characters
_MOST_EXPONENT = 18
_SUFFIXES = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    **{name: Fraction(1000 ** (power + 1)) for power, name in enumerate("kMGTPE")},
    **{f"{name}i": Fraction(1024 ** (power + 1)) for power, name in enumerate("KMGTPE")},
}
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:[eE](?P<exponent>[+-]?[0-9]{1,3})|(?P<suffix>[A-Za-z]{0,2}))"
)


def parse(value: str | int | float) -> Fraction:
    """ValueError. A number of JSON is one too, as in YAML that says `cpu: 2`."""
    text = str(value)
    found = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST and not isinstance(value, bool) else None
    if found is None:
        raise ValueError("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    number = Fraction(found["number"])
    if found["exponent"] is not None:
        exponent = int(found["exponent"])
        if abs(exponent) > _MOST_EXPONENT:
            raise ValueError(f"an exponent is at most {_MOST_EXPONENT}")
        return number * Fraction(10) ** exponent
    if found["suffix"] not in _SUFFIXES:
        raise ValueError(f"unknown suffix {found['suffix']!r} of a quantity")
    return number * _SUFFIXES[found["suffix"]]


def vcpus(value: str | int | float) -> int:
    """ValueError, also of what is not more than nothing."""
    return max(1, ceil(_positive(value)))


def mib(value: str | int | float) -> int:
    """ValueError, also of what is not more than nothing."""
    return max(1, ceil(_positive(value) / MIB))


def _positive(value: str | int | float) -> Fraction:
    found = parse(value)
    if found <= 0:
        raise ValueError("must be more than 0")
    return found
