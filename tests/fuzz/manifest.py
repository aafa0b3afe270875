"""Lines of a manifest, as an agent may say them."""

from __future__ import annotations

from boxwood.engine import hostmanifest
from boxwood.engine.frames import FrameError
from fuzz.target import joined, lines

_LIMIT = 100
_LINE = b'{"path":"%s","size":3,"mode":33188,"hash":"' + b"0af" * 21 + b'1"}'
SEEDS = (
    joined([_LINE % b"a", _LINE % b"a/b", _LINE % rb"\u00e9/c d"]),
    _LINE % rb"\ud83d\ude00",
    joined([_LINE % b"x"] * 101),
    b"\n",
)
WORDS = lines(
    '"path":', '"size":', '"mode":', '"hash":', "../", "/", "\\u0000", "\\ud800", "null", "-1", "1e9", "[" * 100, "{",
    "9" * 60, "NaN", "\r", "true", "\\n", "//", "./",
)  # fmt: skip


def check(data: bytes) -> None:
    try:
        entries = hostmanifest.entries(data, _LIMIT)
    except FrameError:
        return
    assert len(entries) <= _LIMIT
    for entry in entries:
        path = entry.path.encode()  # the answer to a client names it
        assert 0 < len(path) <= 4096 and b"\0" not in path
        assert not {b"", b".", b".."} & set(path.split(b"/"))
        assert len(entry.hash) == 64 and entry.size >= 0 and entry.mode >= 0
