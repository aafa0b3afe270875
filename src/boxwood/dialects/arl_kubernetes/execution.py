"""The steps of a Task, one after the other in the VM of its Sandbox, up to the first that fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from boxwood.core.core import Core
from boxwood.core.errors import CoreError, Internal, NotFound, Unavailable
from boxwood.core.model import Caller
from boxwood.dialects.arl import durations, steps
from boxwood.dialects.arl.steps import Command, Outcome
from boxwood.dialects.arl_kubernetes.objects import Object
from boxwood.server.exchange import encode

TIMEOUT_SECONDS = 30.0  # of a command, unless the Task says something else
OUTPUT_BYTES = 2 << 20  # of each stream of a Task, as it is told
TIMED_OUT = -1  # the exit code
TAG = "arl.task"


class SandboxGone(Exception):
    """Its VM is not there any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Task's steps are done. `gone`: whether the VM is not there any more, or goes in this moment."""

    vm_id: str
    workdir: str
    env: Mapping[str, str]
    gone: Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


async def run(core: Core, caller: Caller, place: Place, spec: Object) -> Result:
    """SandboxGone, Unavailable (the server is stopping: what runs goes on)."""
    out, err = _Text(), _Text()
    code = 0
    for step in spec["steps"]:
        if step["type"] == "Command":
            code = await _command(core, caller, place, step, timeout_of(spec), out, err)
        elif step["type"] == "FilePatch":
            code = await _patch(core, caller, place, step, out, err)
        else:  # as ARL's operator does
            continue
        if code:
            break
    return Result(code, out.text, err.text)


def timeout_of(spec: Object) -> float:
    """In seconds, of one command. ValueError."""
    return durations.seconds(spec.get("timeout", "0")) or TIMEOUT_SECONDS


async def _command(
    core: Core, caller: Caller, place: Place, step: Object, timeout: float, out: _Text, err: _Text
) -> int:
    argv = step.get("command", [])
    if not argv:
        err.add(b"no command specified")
        return 1
    command = Command(
        tuple(argv),
        env={**place.env, **step.get("env", {})},
        cwd=steps.absolute(step.get("workDir") or place.workdir, place.workdir),
        timeout=timeout,
    )
    try:
        outcome = await steps.run(core, caller, place.vm_id, command, tag=TAG)
    except CoreError as error:
        await _refused(place, error)
        err.add(f"failed to start command: {error.message}".encode())
        return 1
    return await _told(place, outcome, out, err)


async def _told(place: Place, outcome: Outcome, out: _Text, err: _Text) -> int:
    """The exit code, once the output is with the rest."""
    if outcome.end == "not-started":
        err.add(f"failed to start command: {outcome.reason}\n".encode())
        return 1
    out.add(outcome.stdout)
    err.add(outcome.stderr)
    if outcome.truncated:
        err.add(f"[{outcome.truncated} bytes of output were not kept]\n".encode())
    if outcome.end in ("cancelled", "lost"):
        if await place.gone():
            raise SandboxGone
        err.add(f"Failed to execute command: {outcome.reason}\n".encode())
        return 1
    return TIMED_OUT if outcome.exit_code is None else outcome.exit_code


async def _patch(core: Core, caller: Caller, place: Place, step: Object, out: _Text, err: _Text) -> int:
    path = step.get("path", "")
    if not path:
        err.add(b"FilePatch step requires 'path' field\n")
        return 1
    data = step.get("content", "").encode(errors="replace")
    try:
        await steps.write(core, caller, place.vm_id, steps.absolute(path, place.workdir), data)
    except CoreError as error:
        await _refused(place, error)
        err.add(f"File update failed: {error.message}\n".encode())
        return 1
    out.add(f"File created: {path}\n".encode(errors="replace"))
    return 0


async def _refused(place: Place, error: CoreError) -> None:
    """SandboxGone; the error itself, if it tells nothing of the step: the server is stopping."""
    if isinstance(error, Unavailable):
        raise error
    may_be = isinstance(error, Internal) or (isinstance(error, NotFound) and error.resource == "vm")
    if may_be and await place.gone():
        raise SandboxGone


class _Text:
    """What was put out so far, and no more of it than is kept."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._room = OUTPUT_BYTES
        self._lost = 0

    def add(self, data: bytes) -> None:
        text = data.decode(errors="replace")
        size = _size(text)
        if size > self._room:
            kept = _fitting(text, self._room)
            self._lost += len(text) - len(kept)
            text, size = kept, self._room
        self._room -= size
        self._pieces.append(text)

    @property
    def text(self) -> str:
        note = f"\n[{self._lost} more characters were not kept]\n" if self._lost else ""
        return "".join(self._pieces) + note


def _size(text: str) -> int:
    """In JSON: a control character takes six bytes."""
    return len(encode(text)) - 2


def _fitting(text: str, room: int) -> str:
    """As much of its beginning as has room."""
    low, high = 0, min(len(text), room)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _size(text[:middle]) <= room else (low, middle - 1)
    return text[:low]


def stored(result: Result, started: str, ended: str, duration: int) -> dict[str, Any]:
    """The status of a Task that has come to its end."""
    return {
        "state": "Succeeded" if result.exit_code == 0 else "Failed",
        "exitCode": result.exit_code,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "duration": durations.text(duration // durations.MILLISECOND * durations.MILLISECOND),
        "startTime": started,
        "completionTime": ended,
    }
