"""What the doctor finds on this host, looked for once: its trials take longer than an engine does to start.

`remember` puts this module in the doctor's place where an engine asks at its start. What was found is kept, by search path
and user, in a directory of the test session's, which the servers that it starts look into as well. Not kept is what
speaks against an engine. Of another file system than the session's it is kept by what kind it is of, where that lies in
a file: tests make some that are all the same. Of any other it is not.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from boxwood.engine import doctor, host
from boxwood.engine.doctor import missing, told, unmet
from boxwood.engine.trials.common import Check, near

__all__ = ["checks", "missing", "remember", "told", "unmet"]
_kept: list[Path] = []  # where, once it is known


@functools.cache
def place() -> Path:
    """A directory of this process's, gone with it."""
    made = Path(tempfile.mkdtemp(prefix="checks-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def remember(kept: Path) -> None:
    _kept[:] = [kept]
    setattr(host, "doctor", sys.modules[__name__])  # noqa: B010


def _kind(number: int) -> tuple[str, ...]:
    """How a file system on a loop device is mounted, and who shares out the device's time. Nothing: it is on no such."""
    device = f"{os.major(number)}:{os.minor(number)}"
    block = Path("/sys/dev/block", device)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        here, _, there = line.partition(" - ")
        if here.split()[2] == device and (block / "loop").is_dir():
            kind, _, options = there.split()
            return kind, here.split()[5], options, (block / "queue/scheduler").read_text()
    return ()


def checks(data: Path, images: Path) -> Sequence[Check]:
    """As the doctor's."""
    kind: tuple[str, ...] = ()
    if near(data).stat().st_dev != _kept[0].stat().st_dev:
        kind = _kind(near(data).stat().st_dev)
        if not kind:
            return doctor.checks(data, images)
    told_apart = [os.geteuid(), os.environ.get("PATH"), str(near(images)), *kind]
    file = _kept[0] / hashlib.sha256(repr(told_apart).encode()).hexdigest()
    if file.exists():
        return [Check(**found) for found in json.loads(file.read_text())]
    found = doctor.checks(data, images)
    if not missing(found):
        written = file.with_name(f"{file.name}.{os.getpid()}")
        written.write_text(json.dumps([asdict(one) for one in found]))
        written.rename(file)
    return found
