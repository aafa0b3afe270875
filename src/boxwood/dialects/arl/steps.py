"""One step in a VM: a command (argv, no shell) or a file written whole. Policy is the dialect's: what a failure ends,
what an exit code becomes, what is told of it.

    outcome = await steps.run(core, caller, vm_id, Command(("make", "all"), env={"K": "V"}, cwd="/src", timeout=30.0))
    outcome.end       "exited"       the program came to its end: `exit_code` (128+n if signal n ended it)
                      "timeout"      `timeout` seconds were over; it and all it had started has been killed
                      "not-started"  there is no such program, or it cannot be executed, or there is no such directory:
                                     `reason` says which (`PROGRAM: REASON`, which stderr has too, or `CWD: REASON`)
                      "cancelled"    the VM was deleted or stopped, or the run was cancelled by somebody
                      "lost"         the VM's box was lost in the midst of it, or something failed: `reason`
    outcome.stdout, outcome.stderr   bytes as the program wrote them, the first MOST_OUTPUT of each; `truncated`: how
                                     many more there were
    outcome.duration                 nanoseconds

    await steps.run(…, on_output=hear)       `hear(stdout: bytes, stderr: bytes)` is awaited with each piece as it comes
    await steps.write(core, caller, vm_id, "/workspace/a", b"…")      a whole file, with its parents, mode 0644
    await steps.make_directory(core, caller, vm_id, "/workspace")     as `mkdir -p`
    steps.absolute("a/b", "/workspace") -> "/workspace/a/b"           relative paths below a directory

All raise what the core refuses (CoreError): NotFound (the VM has gone), BadRequest (NUL in an argument, a bad path or
name of a variable), PayloadTooLarge, Forbidden, InvalidState (stopped), CapacityUnavailable, Unavailable (the server is
stopping). Nothing here is a task of its own: whoever is cancelled leaves the command running in the VM.
"""

from __future__ import annotations

import posixpath
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from boxwood.core.core import Core
from boxwood.core.errors import BadRequest, InvalidState
from boxwood.core.model import Caller, Chunk, Run, RunRequest

MOST_OUTPUT = 2 << 20  # bytes of each stream of one step
MOST_ARGUMENTS = 10_000

End = Literal["exited", "timeout", "not-started", "cancelled", "lost"]
OnOutput = Callable[[bytes, bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Command:
    """`argv`: the program and its arguments, at least one. `env` is laid over the VM's. `cwd`: absolute; None: the
    home directory. `timeout` in seconds; None: none."""

    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    timeout: float | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """See the module. `exit_code` is None unless the program came to its end."""

    end: End
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    reason: str
    duration: int
    truncated: int = 0


async def run(
    core: Core,
    caller: Caller,
    vm_id: str,
    command: Command,
    *,
    tag: str,
    on_output: OnOutput | None = None,
    most: int = MOST_OUTPUT,
) -> Outcome:
    """To its end. `tag`: told with the run in the contract's list of runs. `most`: bytes of each stream that are told.
    CoreError: nothing was started."""
    if not command.argv or len(command.argv) > MOST_ARGUMENTS:
        raise BadRequest(f"command: 1 to {MOST_ARGUMENTS} arguments")
    begun = time.monotonic_ns()
    started = await core.runs.start(caller, vm_id, _request(command, tag, 0 if on_output is not None else None))
    if on_output is not None:
        await _hear(core, caller, vm_id, started, on_output, most)
    ended = started if started.ended else await core.runs.ended(caller, vm_id, started.run_id)
    return _outcome(command, ended, time.monotonic_ns() - begun, most)


def _request(command: Command, tag: str, wait: float | None) -> RunRequest:
    return RunRequest(
        "",
        argv=command.argv,
        timeout=command.timeout,
        wait=wait,
        prompt="none",
        env=dict(command.env or {}),
        cwd=command.cwd,
        user=command.user,
        beside=True,
        tag=tag,
        leaves=True,
    )


async def _hear(core: Core, caller: Caller, vm_id: str, started: Run, on_output: OnOutput, most: int) -> None:
    """The first `most` bytes of each stream, as they come."""
    out_left = err_left = most
    async for piece in core.runs.follow(caller, vm_id, started.run_id):
        out, err = piece.stdout[:out_left], piece.stderr[:err_left]
        out_left, err_left = out_left - len(out), err_left - len(err)
        if out or err:
            await on_output(out, err)
        if not out_left and not err_left:
            return


def _outcome(command: Command, ended: Run, duration: int, most: int) -> Outcome:
    end, reason = _end(command, ended)
    out, err = ended.stdout[:most], ended.stderr[:most]
    more = ended.truncated + len(ended.stdout) - len(out) + len(ended.stderr) - len(err)
    return Outcome(end, ended.exit_code if end == "exited" else None, out, err, reason, duration, more)


def _end(command: Command, ended: Run) -> tuple[End, str]:
    reason = ended.fail_reason or ""
    if ended.not_started:
        return "not-started", ended.stderr.decode(errors="replace").strip()
    if ended.state == "completed":
        return "exited", ""
    if ended.state == "cancelled":
        return "cancelled", "it was cancelled"
    if ended.exit_code is not None and reason.startswith("timed out"):
        return "timeout", reason
    if ended.exit_code is None and command.cwd is not None and reason.startswith(f"{command.cwd}:"):
        return "not-started", reason  # the box could not enter its directory
    return "lost", reason


async def write(core: Core, caller: Caller, vm_id: str, path: str, data: bytes, sha256: str | None = None) -> None:
    """A whole file, in place at once: with its directories (0755); a new one has mode 0644, an old one keeps its own.
    `path`: absolute. `sha256`: BadRequest if the bytes have another one."""
    chunk = Chunk(path, len(data), secrets.token_hex(16), 0, data, sha256)
    await core.files.write(caller, vm_id, chunk)


async def make_directory(core: Core, caller: Caller, vm_id: str, *paths: str) -> None:
    """Each with its parents; one that is there stays as it is. InvalidState: it cannot be made."""
    outcome = await run(core, caller, vm_id, Command(("mkdir", "-p", "--", *paths), cwd="/"), tag="arl.directory")
    if outcome.exit_code != 0:
        said = outcome.stderr.decode(errors="replace").strip() or outcome.reason or outcome.end
        raise InvalidState("vm", "running", f"{' '.join(paths)} cannot be made in the VM: {said[:500]}")


def absolute(path: str, below: str) -> str:
    """`path`, which may be relative to `below`. `..` stays: only the VM knows what it leads to."""
    return path if path.startswith("/") else posixpath.join(below, path)
