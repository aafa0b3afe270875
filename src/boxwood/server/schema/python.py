"""What a Python context has reported of a run, on the wire.

It comes from inside a VM, as lines of JSON, and a program there may have written whatever it liked. A line is taken if
it is one of the few kinds that there are; anything else is left out, and counted. What values look like inside is
handed on as it is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from boxwood.server.schema.common import UNSET, Answer, UnsetType

MOST_NESTED = 100  # arrays and objects within one another, in a value
MOST_RESULTS = 1000
MOST_FRAMES = 200
MOST_PARTS = 500_000  # arrays, objects, strings and members of objects, in a value
# Every pattern looks at a byte a few times at most, whatever comes. While one looks, no other thread goes on: so it is
# given so many bytes at once, or stops behind them.
PIECE_BYTES = 1 << 16
_PART = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|([\[{])|([\]}])|([^"\[\]{}]{1,%d}+[0-9.eE+-]*+)' % PIECE_BYTES, re.DOTALL
)
# Python reads no more than 4300 digits (CVE-2020-10735), others no float that is beyond all that there are.
_NUMBER = re.compile(
    rb"(?<![0-9])(?:([0-9]{1000})|[0-9]{1,999}+(?:\.[0-9]{1,999}+)?+[eE][+-]?[0-9]{1,999}+|[0-9]{300,999}+\.)"
)
_PERHAPS_NUMBER = re.compile(
    rb"(?<![0-9])[0-9]{200}|[eE]\+?[0-9]{3}"
)  # where there is none of these, none is too large
LARGE_BYTES = 16 << 10  # of reports that are read in a thread: from inside a VM may come what takes long


class PythonResult(Answer, frozen=True, kw_only=True):
    """A value, as often as it can be shown: text by MIME type, base64 of what is binary, JSON as it is."""

    kind: Annotated[
        Literal["value", "display", "figure"],
        Meta(description="Of the last expression; shown by `display()`; a matplotlib figure that was open at the end."),
    ]
    data: dict[str, msgspec.Raw]
    truncated: (
        Annotated[
            dict[str, int],
            Meta(description="By MIME type, the size of what was too large: text/plain is cut, others are left out."),
        ]
        | UnsetType
    ) = UNSET


class PythonFrame(Answer, frozen=True, kw_only=True):
    file: str
    line: int
    name: str
    source: str = ""


class PythonException(Answer, frozen=True, kw_only=True):
    """What has ended the run. `frames`: the outermost first. `traceback`: as python3 prints it."""

    name: str
    value: str
    traceback: str
    frames: Annotated[list[PythonFrame], Meta(max_length=MOST_FRAMES)]


class PythonContext(Answer, frozen=True, kw_only=True):
    """The interpreter that the run had. `number`: which of its runs this is. `lost`: what became of the one before."""

    new: Annotated[bool, Meta(description="It has no variables of earlier runs.")]
    number: int
    lost: str | None = None


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    result: PythonResult | UnsetType = UNSET
    error: PythonException | UnsetType = UNSET
    context: PythonContext | UnsetType = UNSET
    dropped: int | UnsetType = UNSET


Report = PythonResult | PythonException | PythonContext | int
_LINE = msgspec.json.Decoder(_Line)


def report(line: bytes) -> Report | None:
    """One line; a number: so many results were left out in the VM. None: it makes no sense."""
    if b"\r" in line:  # it would go on as a line of its own
        return None
    try:
        line.decode()
        said = _LINE.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if not isinstance(said.result, UnsetType):
        return said.result if all(_is_readable(bytes(part)) for part in said.result.data.values()) else None
    for one in (said.error, said.context, said.dropped):
        if not isinstance(one, UnsetType):
            return one
    return None


def _is_readable(raw: bytes) -> bool:
    """By those too who read JSON by recursion, and whose numbers have an end? What would take too long to look through
    is taken for nested, too."""
    opened = raw.count(b"[") + raw.count(b"{")
    if raw[:1] == b'"' or (opened <= MOST_NESTED and not _may_have_large_numbers(raw)):
        return True
    if opened + raw.count(b'"') // 2 > MOST_PARTS:
        return False
    depth = 0
    for part in _PART.finditer(raw):
        if part.lastindex == 1:
            depth += 1
        elif part.lastindex == 2:
            depth -= 1
        elif part.lastindex == 3 and not all(map(_has_an_end, _NUMBER.finditer(part[3]))):
            return False
        if depth > MOST_NESTED:
            return False
    return True


def _may_have_large_numbers(raw: bytes) -> bool:
    """Also in text."""
    ends = ((at, at + PIECE_BYTES + 200) for at in range(0, len(raw), PIECE_BYTES))
    return any(_PERHAPS_NUMBER.search(raw, begin, end) is not None for begin, end in ends)


def _has_an_end(number: re.Match[bytes]) -> bool:
    return number.lastindex is None and not math.isinf(float(number[0]))


@dataclass(slots=True)
class Reports:
    """All that there is of one run. `lost`: results that were left out, and lines that made no sense."""

    results: list[PythonResult] = field(default_factory=list)
    exception: PythonException | None = None
    context: PythonContext | None = None
    lost: int = 0

    def add(self, line: bytes) -> None:
        match report(line):
            case PythonResult() as result if len(self.results) < MOST_RESULTS:
                self.results.append(result)
            case PythonException() as exception:
                self.exception = exception
            case PythonContext() as context:
                self.context = self.context or context  # the first is the agent's, whatever comes behind it
            case int(dropped) if 0 <= dropped < 1 << 50:
                self.lost += dropped
            case _:
                self.lost += 1


def reports(data: bytes) -> Reports:
    """`data`: lines; what is behind the last newline is not whole yet."""
    found = Reports()
    *lines, _ = data.split(b"\n")
    for line in lines:
        found.add(line)
    return found
