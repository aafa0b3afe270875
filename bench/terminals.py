"""A terminal's answer to a key: from the SDK through server and box to whoever shows it, and back."""

from __future__ import annotations

import time

from boxwood import VM, Boxwood
from measure import Series

KEYS = 200  # in a row, each typed when the one before has been shown
ECHO = "a key typed, until the terminal shows it"
EDITED = "… until bash's line editor shows it"


def series(box: Boxwood, n: int) -> list[Series]:
    """The first is the terminal's own echo, while nobody reads; of the other one bash is the writer."""
    echo, edited = Series(ECHO), Series(EDITED)
    with box.fork("ubuntu") as vm:
        for _ in range(n):
            for found, command in ((echo, ["sh", "-c", "echo ready; sleep 1000"]), (edited, ["bash", "--norc", "-i"])):
                for took in _keys(vm, command):
                    found.add(took)
    return [echo, edited]


def _keys(vm: VM, command: list[str]) -> list[float]:
    """Milliseconds, of each."""
    found = []
    with vm.shell(command) as term:
        if command[0] == "bash":
            term.write("PS1=; echo rea''dy\r")
        term.read_until("ready\r\n", timeout=30)
        for at in range(KEYS):
            if at % 50 == 49:
                term.write("\x15")  # kills the line: in a longer one the editor would draw anew
                term.read(timeout=30)
            began = time.perf_counter()
            term.write("x")
            term.read_until("x", timeout=30)
            found.append((time.perf_counter() - began) * 1e3)
    return found
