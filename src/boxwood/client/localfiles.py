"""Files of the caller's own machine: open ones, or paths of such."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

LocalFile = str | os.PathLike[str] | IO[bytes]


@contextmanager
def read_from(file: LocalFile) -> Iterator[IO[bytes]]:
    """OSError: there is none at this path."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            yield opened
    else:
        yield file


@contextmanager
def written_to(file: LocalFile, bits: int = 0o666) -> Iterator[IO[bytes]]:
    """At a path: a whole new file in place of what was there, with these permissions as the umask leaves them; a link
    there is replaced, not followed, and of what fails nothing is left. To a device or a FIFO, through it. OSError."""
    if not isinstance(file, str | os.PathLike):
        yield file
        return
    if os.path.exists(file) and not os.path.isfile(file):
        with open(file, "wb") as opened:
            yield opened
        return
    umask = os.umask(0)
    os.umask(umask)
    directory = os.path.dirname(os.fspath(file)) or "."
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".boxwood-", delete=False) as made:
        try:
            yield cast(IO[bytes], made)
            os.fchmod(made.fileno(), bits & ~umask)
            made.flush()
            os.replace(made.name, file)
        except BaseException:
            os.unlink(made.name)
            raise
