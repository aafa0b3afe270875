# Made from ../_async/pause.py by tools/unasync.py: change that one.
"""How this form of the SDK waits."""

from threading import Semaphore
from time import sleep as sleep

from boxwood.client.mirror import here as to_thread

__all__ = ["Semaphore", "sleep", "to_thread"]
