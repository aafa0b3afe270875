"""What the command prints: lines for people, free of what a terminal would obey; JSON for programs."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

# Controls (C0, DEL, C1), and what reorders or hides text: names and messages may come from a stranger.
HOSTILE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def clean(text: object) -> str:
    """`text` on one line, with everything that a terminal would obey written out as an escape."""
    return HOSTILE.sub(lambda found: ascii(found.group())[1:-1], str(text))


def say(text: object = "") -> None:
    """A line to standard output."""
    print(clean(text), flush=True)  # noqa: T201 - this is what prints


def note(text: object) -> None:
    """A line to standard error."""
    print(clean(text), file=sys.stderr, flush=True)  # noqa: T201


class Progress:
    """How far something is, on standard error: one line that changes on a terminal, a line for each tenth elsewhere."""

    def __init__(self) -> None:
        self._shown: tuple[str, int] | None = None
        self._in_place = sys.stderr.isatty()

    def tell(self, step: str, fraction: float) -> None:
        """`fraction` from 0 to 1."""
        shown = (step, int(fraction * (100 if self._in_place else 10)))
        if shown == self._shown:
            return
        self._shown = shown
        line = clean(f"{step} {fraction:.0%}")
        print(f"\r\x1b[K{line}" if self._in_place else line, end="" if self._in_place else "\n",  # noqa: T201
              file=sys.stderr, flush=True)  # fmt: skip

    def end(self) -> None:
        """Takes the line away again."""
        if self._in_place and self._shown is not None:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201


def say_json(value: Any) -> None:
    """A value, dates and records included, as one line of JSON to standard output."""
    import msgspec

    write_bytes(msgspec.json.encode(value) + b"\n")


def write_bytes(data: bytes, error: bool = False) -> None:
    """Bytes as they are to standard output or standard error."""
    stream = sys.stderr if error else sys.stdout
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows in columns; just the rows, tab-separated, when standard output is no terminal."""
    cells = [[clean("-" if cell is None else cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            say_row("\t".join(row))
        return
    lines = [list(titles), *cells]
    widths = [max(_width(line[at]) for line in lines) for at in range(len(titles))]
    for line in lines:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True))
        say_row("  ".join(padded).rstrip())


def say_row(line: str) -> None:
    """A line whose cells are clean already: the tabs between them are ours."""
    print(line)  # noqa: T201


def age(moment: datetime | None) -> str:
    """How long ago, in one unit."""
    if moment is None:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def size(count: int) -> str:
    """Bytes, in the unit that leaves the fewest digits before the point."""
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, "KiB"
    for bigger in ("MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:.1f} {unit}"


def report(message: str, as_json: bool, **more: Any) -> None:
    """An error: a line for people on standard error, or {"error": {…}} on standard output."""
    if as_json:
        say_json({"error": {"message": message, **{name: value for name, value in more.items() if value is not None}}})
    else:
        note(f"boxwood: {message}")


def abandon_output() -> None:
    """Nobody reads any more: what is still buffered must not fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
