"""How this form of the SDK waits."""

from asyncio import sleep

__all__ = ["sleep"]
