"""Ids: ULIDs, bare, upper-case, 26 characters; later ones sort after earlier ones of the same process."""

from __future__ import annotations

import os
import re
import threading
import time

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_SHAPE = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}(_[A-Za-z0-9]+)?", re.IGNORECASE | re.ASCII)
_PAIRS = tuple(a + b for a in ALPHABET for b in ALPHABET)
_RANDOM_BITS = 80
_POOL_BYTES = 4096  # asked of the kernel at once


class _Mint:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # ids are minted on the store's thread too
        self._last = 0
        self._pool = b""

    def next(self) -> int:
        with self._lock:
            fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS | self._random(_RANDOM_BITS)
            # In the same millisecond, or with a clock set back: a little more than the last, still not to be guessed.
            self._last = fresh if fresh > self._last else self._last + 1 + self._random(64)
            return self._last

    def _random(self, bits: int) -> int:
        size = bits // 8
        if len(self._pool) < size:
            self._pool = os.urandom(_POOL_BYTES)
        taken, self._pool = self._pool[:size], self._pool[size:]
        return int.from_bytes(taken, "big")


_mint = _Mint()


def new_id() -> str:
    return _text(_mint.next())


def first_id(at: int) -> str:
    """What is made at this time (microseconds since 1970) or later sorts after this, unless the clock is set back."""
    return _text(max(0, at) // 1000 << _RANDOM_BITS)


def _text(value: int) -> str:
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])


def is_id(text: str) -> bool:
    """Is this what `new_id` makes?"""
    return _ULID.fullmatch(text) is not None


def has_id_shape(text: str) -> bool:
    """Would some client take this for the id of a VM? In either case, with or without a suffix (wire 1.5)."""
    return _SHAPE.fullmatch(text) is not None
