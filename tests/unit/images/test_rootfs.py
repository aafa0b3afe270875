"""The confined reader of an archive, taken over by it: what it says is checked."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from boxwood.images import rootfs
from boxwood.images.shelf import ImageError

MADE = {"inodes": 3, "bytes": 70, "skipped": 1}


def said(*words: Any) -> io.BytesIO:
    return io.BytesIO(b"".join(json.dumps(word).encode() + b"\n" for word in words))


def test_an_honest_one() -> None:
    told: list[tuple[str, int, int]] = []
    words = said({"done": 1, "total": 4}, {"done": 9, "total": 4}, {"made": MADE})
    assert rootfs._listen(words, lambda *progress: told.append(progress)) == MADE
    assert told == [("unpack", 1, 4), ("unpack", 4, 4)]


@pytest.mark.parametrize(
    "word",
    [
        {}, [], 5, None, {"done": 1}, {"done": "1", "total": 2}, {"done": -1, "total": 2}, {"done": 1e300, "total": 2},
        {"made": {}}, {"made": {**MADE, "bytes": None}}, {"made": {**MADE, "inodes": -1}}, {"made": {**MADE, "bytes": 1 << 70}},
    ],
)  # fmt: skip
def test_one_that_breaks_its_word(word: Any) -> None:
    with pytest.raises(ImageError, match="broke its word"):
        rootfs._listen(said(word), lambda *_: None)


@pytest.mark.parametrize("line", [b"[" * 60_000, b"\xff\n", b"x" * 100_000, b"9" * 5000])
def test_one_that_says_no_words_at_all(line: bytes) -> None:
    with pytest.raises(ImageError, match="broke its word"):
        rootfs._listen(io.BytesIO(line), lambda *_: None)


def test_its_error_is_one_line_of_text() -> None:
    heard = rootfs._listen(said({"error": "a\x1b[2J\n" + "x" * 5000}), lambda *_: None)
    assert isinstance(heard, str) and heard.startswith("a?[2J?x") and len(heard) == 2000
