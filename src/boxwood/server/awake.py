"""Processors that have nothing to do are kept from sleeping for a moment after a request.

What a client waits for goes from process to process: the server, the agent, what runs in the VM, and back. Where a
processor has gone to sleep meanwhile, as one of a virtual machine does at once, it takes up to a tenth of a millisecond
to wake, each time. The kernel's own means against that is a quality of service that is asked for by holding
/dev/cpu_dma_latency open (Documentation/power/pm_qos_interface): here only for some milliseconds at a time, and gone
with this process whatever becomes of it.
"""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

DEVICE = Path("/dev/cpu_dma_latency")
CPUIDLE = Path("/sys/devices/system/cpu")
MOST_POLLING = 8  # processors that may go round in circles for our sake
_NO_BOUND = 2_000_000_000  # microseconds: the kernel's own default
_BOUND = struct.Struct("=i")


class Awake:
    """`seconds`: how long after the last request; 0: processors sleep as they like."""

    def __init__(self, seconds: float, *, device: Path = DEVICE, cpuidle: Path = CPUIDLE) -> None:
        self._seconds = seconds
        self._until = 0.0
        self._device: int | None = None
        self.held = False
        latency = _latency(cpuidle) if seconds > 0 else None
        if latency is not None:
            self._bound = _BOUND.pack(latency)
            try:
                self._device = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                return  # it is root's, and not in containers
            self._ask(_BOUND.pack(_NO_BOUND))

    def stir(self) -> None:
        """A request has come."""
        if self._device is None:
            return
        loop = asyncio.get_running_loop()
        self._until = loop.time() + self._seconds
        if not self.held:
            self.held = True
            self._ask(self._bound)
            loop.call_at(self._until, self._look)

    def close(self) -> None:
        if self._device is not None:
            os.close(self._device)
            self._device = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._until:
            loop.call_at(self._until, self._look)
        else:
            self.held = False
            self._ask(_BOUND.pack(_NO_BOUND))

    def _ask(self, bound: bytes) -> None:
        if self._device is not None:
            try:
                os.pwrite(self._device, bound, 0)
            except OSError:
                self.close()


def _latency(cpuidle: Path) -> int | None:
    """Microseconds that a processor may take to wake: what its lightest sleep takes. None: nothing is to be gained, or
    it would cost too much."""
    try:
        if (cpuidle / "cpuidle/current_driver").read_text().strip() == "haltpoll":
            # a virtual machine's: each sleep is the host's to end, so there is none but none at all
            processors = os.cpu_count() or 1
            return 0 if processors <= MOST_POLLING else None
        return max(1, int((cpuidle / "cpu0/cpuidle/state1/latency").read_text()))
    except (OSError, ValueError):
        return None  # no such states here
