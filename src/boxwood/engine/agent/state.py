"""The state of a shell as data: what it reports after a command, and how that is kept.

A report is a row of NUL-ended fields, NUL being the one byte that no shell can have in its state:

    "R" status ["." flags]      after a command       or   "X"   from the EXIT trap
    traps, the fields of the dialect's ROW, "umask LF directory LF", number of arguments, each argument, "E"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

STATE_LIMIT = 8 << 20
_LONG_FIELD = 1 << 16
_STATUS = re.compile(rb"R(\d{1,3})(?:\.([A-Za-z]*))?\Z")
_MAGIC = b"boxwood shell 1"


@dataclass
class State:
    """`sections`: the fields by name, looked into only when they are needed. `functions`: texts by name, for shells
    that cannot print theirs. `code`: the `$?` of the last command. `kind`: the dialect it is written in."""

    kind: bytes
    sections: dict[bytes, bytes]
    args: list[bytes]
    functions: dict[bytes, bytes] = field(default_factory=dict)
    code: int = 0

    def pack(self) -> bytes:
        fields = [_MAGIC, self.kind, b"%d" % self.code, b"%d" % len(self.sections)]
        for pair in self.sections.items():
            fields += pair
        fields += [b"%d" % len(self.args), *self.args]
        for pair in self.functions.items():
            fields += pair
        return b"\0".join(fields)

    @classmethod
    def unpack(cls, data: bytes) -> State:
        """ValueError: this is no packed state."""
        fields = data.split(b"\0")
        if len(fields) < 5 or fields[0] != _MAGIC:
            raise ValueError("not the state of a shell")
        kind, code, count = fields[1], int(fields[2]), int(fields[3])
        at = 4 + 2 * count
        if count < 0 or not 0 <= code <= 255 or at >= len(fields):
            raise ValueError("the state of a shell, damaged")
        sections = dict(zip(fields[4:at:2], fields[5:at:2], strict=True))
        end = at + 1 + int(fields[at])
        if end <= at or end > len(fields):
            raise ValueError("the state of a shell, damaged")
        functions = dict(zip(fields[end::2], fields[end + 1 :: 2], strict=True))
        return cls(kind, sections, fields[at + 1 : end], functions, code)


class Report:
    """What a shell says, taken apart as it comes. Everything in it may be forged by what runs in the session."""

    def __init__(self, row: Sequence[bytes]) -> None:
        self._names = (b"head", b"traps", *row, b"place")
        self._tail: list[bytes] = []  # pieces of a field whose end has not come
        self._size = 0
        self._fields: list[bytes] = []
        self._count = 0
        self._arguments = 0
        self.code: int | None = None  # the exit status of the command
        self.flags = b""  # $- at that moment, from the shells that tell
        self.at_exit = False
        self.complete = False
        self.garbled = False  # the shell cannot do what it is told
        self.too_large = False

    @property
    def begun(self) -> bool:
        return bool(self._count or self._tail)

    def feed(self, data: bytes) -> bytes:
        """Take bytes in; what lies behind the end of this report comes back."""
        self._size += len(data)
        if data:
            self._tail.append(data)
        if b"\0" in data:
            *fields, last = b"".join(self._tail).split(b"\0")
            self._tail = [last] if last else []
            for at, value in enumerate(fields):
                self._take(value)
                if self.complete or self.garbled:
                    self._tail = []
                    return b"\0".join([*fields[at + 1 :], last])
        if self._size > STATE_LIMIT:
            self._shorten()
        return b""

    def _shorten(self) -> None:
        """It is too large: only how it ends is still of interest."""
        if not self.too_large:
            self.too_large = True
            self._fields = [value[:0] if len(value) > _LONG_FIELD else value for value in self._fields]
        tail = b"".join(self._tail)
        self._tail = [b"?" if len(tail) > _LONG_FIELD else tail] if tail else []

    def _take(self, value: bytes) -> None:
        at, self._count = self._count, self._count + 1
        fixed = len(self._names)
        if at == 0:
            self._head(value)
        elif at == fixed:
            self.garbled = not value.isdigit() or len(value) > 9
            self._arguments = 0 if self.garbled else int(value)
        elif at == fixed + 1 + self._arguments:
            self.complete, self.garbled = value == b"E", value != b"E"
        if not self.too_large:
            self._fields.append(value)

    def _head(self, value: bytes) -> None:
        status = _STATUS.match(value)
        if status:
            self.code, self.flags = min(int(status[1]), 255), status[2] or b""
        elif value == b"X":
            self.at_exit = True
        else:
            self.garbled = True

    def sections(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        """The fields by name, with the place taken apart, and the arguments. Only when complete and not too large."""
        fixed = len(self._names)
        named = dict(zip(self._names[1:], self._fields[1:fixed], strict=True))
        umask, _, cwd = named.pop(b"place").partition(b"\n")
        named[b"umask"], named[b"cwd"] = umask, cwd[:-1]
        return named, self._fields[fixed + 1 : fixed + 1 + self._arguments]
