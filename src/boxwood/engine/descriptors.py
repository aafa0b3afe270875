"""What a forked child has open of its parent's, and shall not."""

from __future__ import annotations

import os

_BEYOND = 1 << 20  # no process has descriptors from here on (fs.nr_open, unless somebody raises it)


def close_all_but(*kept: int) -> None:
    """Every descriptor from 3 on; 0 to 2 stay as they are."""
    at = 3
    for fd in sorted(kept):
        os.closerange(at, fd)
        at = max(at, fd + 1)
    os.closerange(at, _BEYOND)
