"""Programs of ours that run inside boxes, by what a VM has to run them. They are read, and never imported here."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def python_program() -> bytes:
    """What the interpreter of a Python context executes."""
    here = Path(__file__).parent
    future = b"from __future__ import annotations\n"
    showing, rest = (here / "showing.py").read_bytes(), (here / "python.py").read_bytes()
    return showing + rest.replace(future, b"", 1)
