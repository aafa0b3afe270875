"""Secrets that a server says again: stars instead, as many, so that no length changes.

Only what is there letter by letter is found, also as URLs, JSON and HTML would have it (policies/spellings.py): that is
how it comes back of itself. A server that sends it in another spelling (compressed, in base64, a part of it) is a way
out for a secret: hosts in rules with secrets are trusted not to.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from boxwood.engine.proxy.message import Headers

_WORK = 4 << 20  # bytes to look through for one secret without giving way: milliseconds at the worst
_Span = tuple[int, int]


class Hidden:
    """One secret, and how it is found wherever it begins, within others and within itself too. What it costs grows with
    what is looked through alone: whoever has chosen the secret may have chosen the text."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._borders = _borders(secret)
        self._period = len(secret) - self._borders[-1]  # the least by which it can follow upon itself
        doublings = (len(secret) // self._period).bit_length()
        self._steps = [self._period << power for power in reversed(range(doublings))]

    def spans(self, data: bytes) -> Iterator[_Span]:
        size, place = len(self.secret), 0
        while (place := data.find(self.secret, place)) != -1:
            end = place + size
            for step in self._steps:
                again = self.secret[-step:]  # what makes it end so much later
                while data.startswith(again, end):
                    end += step
            yield place, end
            place = end - size + self._period + 1  # none begins between

    def feed(self, begun: int, data: bytes) -> tuple[int, list[_Span]]:
        """How many of its first bytes the data ends with, less than all, if it comes after the first `begun` of them;
        and where in the data it is: from a negative number on, where it began before."""
        size = len(self.secret)
        if len(data) < size:
            return self._step(begun, data, 0)
        spans = []
        if begun:
            ahead = self.secret[:begun] + data[: size - 1]
            spans = [(begin - begun, end - begun) for begin, end in self.spans(ahead)]
        spans += self.spans(data)
        begun, _ = self._step(0, data, len(data) - size + 1)
        return begun, spans

    def _step(self, begun: int, data: bytes, place: int) -> tuple[int, list[_Span]]:
        """As `feed`, from a place on: byte by byte where there is a beginning."""
        secret, borders = self.secret, self._borders
        spans: list[_Span] = []  # what it covers, in order, none touching the next
        while place < len(data):
            if not begun:
                place = data.find(secret[0], place)
                if place == -1:
                    break
            byte = data[place]
            while begun and secret[begun] != byte:
                begun = borders[begun - 1]
            begun += secret[begun] == byte
            place += 1
            if begun == len(secret):
                begin = spans.pop()[0] if spans and spans[-1][1] >= place - begun else place - begun
                spans.append((begin, place))
                begun = borders[-1]
        return begun, spans


def _borders(secret: bytes) -> array[int]:
    """Of each beginning of it: how long the longest part is with which that begins and ends, short of all of it."""
    found, border = array("I", bytes(4 * len(secret))), 0
    for place in range(1, len(secret)):
        while border and secret[place] != secret[border]:
            border = found[border - 1]
        border += secret[place] == secret[border]
        found[place] = border
    return found


def starred(hidden: Iterable[Hidden], data: bytes) -> bytes:
    return _cover(data, [span for one in hidden for span in one.spans(data)])


def _cover(data: bytes, spans: list[_Span]) -> bytes:
    if not spans:
        return data
    covered = bytearray(data)
    for begin, end in spans:
        covered[begin:end] = b"*" * (end - begin)
    return bytes(covered)


def joined(headers: Headers) -> bytes:
    """To be looked through at once: there may be thousands of them. As no secret has a line end, none is found across
    two."""
    return b"".join(b"%b\n%b\n" % header for header in headers)


def parted(text: bytes, headers: Headers) -> Headers:
    """These headers, as they are in a text of the same length."""
    found, place = [], 0
    for name, value in headers:
        middle = place + len(name) + 1
        end = middle + len(value) + 1
        found.append((text[place : middle - 1], text[middle : end - 1]))
        place = end
    return found


class Redaction:
    """Of a body that comes in pieces. What could be the beginning of a secret waits for the next piece, also where a
    shorter one ends in it. A piece costs what it is long, however much waits."""

    def __init__(self, hidden: tuple[Hidden, ...]) -> None:
        self._hidden = hidden
        self._begun = [0] * len(hidden)
        self._kept = bytearray()  # what waits, with the stars that are sure

    @property
    def is_idle(self) -> bool:
        """Nothing is hidden, or waits."""
        return not self._hidden and not self._kept

    def hide(self, hidden: tuple[Hidden, ...]) -> None:
        """These from now on; what was found stays found."""
        if hidden is not self._hidden:
            begun = dict(zip(self._hidden, self._begun, strict=True))
            self._hidden, self._begun = hidden, [begun.get(one, 0) for one in hidden]

    def portions(self, data: bytes) -> Iterator[bytes]:
        """Of so much that other work may wait while one is fed."""
        size = _WORK // max(1, len(self._hidden))
        return (data[place : place + size] for place in range(0, len(data), size))

    @property
    def waiting(self) -> int:
        """Bytes."""
        return len(self._kept)

    def feed(self, data: bytes) -> bytes:
        if self.is_idle:
            return data
        before = len(self._kept)
        self._kept += data
        for place, one in enumerate(self._hidden):
            self._begun[place], spans = one.feed(self._begun[place], data)
            for begin, end in spans:
                self._kept[before + begin : before + end] = b"*" * (end - begin)
        shown = len(self._kept) - max(self._begun, default=0)
        found = bytes(memoryview(self._kept)[:shown])
        del self._kept[:shown]
        return found

    def end(self) -> bytes:
        kept, self._kept = bytes(self._kept), bytearray()
        return kept
