"""What the confined reader of an archive says, if the archive has taken it over."""

from __future__ import annotations

import io

from boxwood.images import rootfs
from boxwood.images.shelf import ImageError
from fuzz.target import joined, lines

SEEDS = (
    joined([b'{"done":0,"total":9}', b'{"done":9,"total":9}', b'{"made":{"inodes":3,"bytes":70,"skipped":1}}', b""]),
    joined([b'{"done":0,"total":9}', b'{"error":"not a whole tar archive"}', b""]),
    b"",
)
WORDS = lines(
    '{"made":{', '"inodes":', '"bytes":', '"skipped":', '"done":', '"total":', '{"error":', "null", "1e999", "NaN", "-1", "[[[[",
    "\n", '"\\ud800"', '"\\u001b[2J"', "9" * 30, "true", '"1"', "[" * 2000,
)  # fmt: skip


def check(data: bytes) -> None:
    def progress(phase: str, done: int, total: int) -> None:
        assert phase == "unpack" and 0 <= done <= total

    try:
        said = rootfs._listen(io.BytesIO(data), progress)
    except ImageError as error:
        assert str(error).isprintable()
        return
    if isinstance(said, str):
        assert said.isprintable() and len(said) <= 2000
        said.encode()
    elif said is not None:
        assert said.keys() == {"inodes", "bytes", "skipped"}
        assert all(type(number) is int and 0 <= number < 1 << 63 for number in said.values())
