"""How this form of the SDK waits."""

from asyncio import Semaphore
from asyncio import sleep as sleep
from asyncio import to_thread as to_thread

__all__ = ["Semaphore", "sleep", "to_thread"]
