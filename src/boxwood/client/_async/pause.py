"""How this form of the SDK waits."""

from asyncio import Semaphore
from asyncio import sleep as sleep

__all__ = ["Semaphore", "sleep"]
