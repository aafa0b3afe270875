# Made from ../_async/pause.py by tools/unasync.py: change that one.
"""How this form of the SDK waits."""

from time import sleep

__all__ = ["sleep"]
