"""Runs followed as they happen: how old output is when the client has it, and how much of it comes through."""

from __future__ import annotations

import time

from boxwood import VM, Boxwood, RunOutput
from measure import Series

FLOOD = 48 << 20  # bytes; less than the server keeps of a run
FIRST = "a byte from the process's write to the client"
STARTED = "run of a builtin, followed: to its first byte"
FLOW = "output of one run"
TICKS = 25  # lines of a run, with a rest before each


def series(box: Boxwood, n: int) -> list[Series]:
    """The box and we have the same clock: the shell writes what it shows, and it is ours that is read at the end."""
    first, started = Series(FIRST), Series(STARTED)
    flow = Series(FLOW, "MB/s")
    with box.fork("ubuntu") as vm:
        _ages(vm)
        for _ in range(n):
            for age in _ages(vm):
                first.add(age)
            started.add(_first(vm))
        for _ in range(max(2, n // 4)):
            flow.add(_flow(vm))
    return [first, started, flow]


def _ages(vm: VM) -> list[float]:
    """Milliseconds, of each line."""
    found = []
    command = f"for n in {{1..{TICKS}}}; do sleep 0.02; echo $EPOCHREALTIME; done"
    for event in vm.run_stream(command):
        now = time.time()
        if isinstance(event, RunOutput):
            found += [(now - float(line)) * 1e3 for line in event.text.split()]
    assert len(found) == TICKS, found
    return found


def _first(vm: VM) -> float:
    began = time.perf_counter()
    events = vm.run_stream("echo x")
    for event in events:
        if isinstance(event, RunOutput):
            break
    took = (time.perf_counter() - began) * 1e3
    for _ in events:  # its end
        pass
    return took


def _flow(vm: VM) -> float:
    began, got = time.perf_counter(), 0
    for event in vm.run_stream(f"head -c {FLOOD} /dev/zero"):
        if isinstance(event, RunOutput):
            got += len(event.data)
    assert got == FLOOD, got
    return got / (time.perf_counter() - began) / 1e6
