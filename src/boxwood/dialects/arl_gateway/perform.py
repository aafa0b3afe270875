"""One step in a session: run, numbered, put down in its history. And a recorded one done again.

A step that cannot be run at all is a result too, with exit code 1 or 127 and a text in stderr, as the gateway's own
executor tells it.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import field

from boxwood.core.errors import BadRequest, CoreError, InvalidState, NotFound, PayloadTooLarge, Unavailable
from boxwood.core.model import Caller
from boxwood.dialects.arl import steps as arl_steps
from boxwood.dialects.arl_gateway import snapshots, words
from boxwood.dialects.arl_gateway.envelope import Lenient, NoSession, Suspended, shown
from boxwood.dialects.arl_gateway.gateway import Gateway
from boxwood.dialects.arl_gateway.history import Step
from boxwood.dialects.arl_gateway.session import Session

TAG = "arl.step"
UPLOAD = "upload_file"
TIMED_OUT, CANNOT_RUN, NOT_FOUND = 124, 1, 127
OUTPUT_BYTES = 8 << 20  # of each stream of a step that are told
NAME_CHARACTERS = 1024
AGAIN_SECONDS = 600.0  # a step that is done again has so long at least

Hear = Callable[[str, str], Awaitable[None]]


class StepRequest(Lenient, frozen=True, kw_only=True):
    name: str | None = None
    command: list[str] | None = None
    env: dict[str, str] | None = None
    work_dir: str | None = field(name="workDir", default=None)
    timeout_seconds: int | None = field(name="timeoutSeconds", default=None)
    timeout: int | None = None

    def input(self) -> dict[str, Any]:
        """As it is told again: without what was not given."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return {"name": self.name or ""} | {name: value for name, value in made.items() if value}

    def check(self) -> None:
        """BadRequest."""
        if len(self.name or "") > NAME_CHARACTERS:
            raise BadRequest(f"steps: a name has at most {NAME_CHARACTERS} characters")

    @property
    def seconds(self) -> float | None:
        given = (self.timeout_seconds, self.timeout)
        return next((float(one) for one in given if one is not None and one > 0), None)


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a command."""

    stdout: str
    stderr: str
    exit_code: int
    milliseconds: int = 0
    bytes: int = 0  # of all that it put out, if that is more than this


async def step(gateway: Gateway, session: Session, wanted: StepRequest, hear: Hear | None = None) -> Step:
    """To its end. NoSession, Suspended, Unavailable (the server is stopping)."""
    async with session.lock:
        await snapshots.mark(gateway, session)
        vm_id, generation = session.facts.vm, session.generation
    at = datetime.now(UTC)
    done = await _in_session(gateway, session, vm_id, wanted, hear)
    return await record(
        gateway,
        session,
        generation,
        name=wanted.name or "",
        input=wanted.input(),
        timestamp=shown(at),
        duration_ms=done.milliseconds,
        stdout=done.stdout,
        stderr=done.stderr,
        exit_code=done.exit_code,
        bytes=done.bytes,
        truncated=done.bytes > 0,
    )


async def _in_session(gateway: Gateway, session: Session, vm_id: str, wanted: StepRequest, hear: Hear | None) -> Done:
    try:
        return await _run(gateway, session.caller, vm_id, session.facts.env, wanted, wanted.seconds, hear)
    except NotFound:
        if session.facts.vm == vm_id and await gateway.vm_of(session) is None:
            raise NoSession(session.id) from None
        return _not_run("the session was brought back to an earlier step meanwhile")
    except InvalidState:
        raise Suspended(session.id) from None


async def record(gateway: Gateway, session: Session, generation: int, **values: Any) -> Step:
    """The next step of a session, unless that has gone back to an earlier one meanwhile: then it is only told."""
    async with session.writing:
        await session.history.load()
        same_as = await _same_as(gateway, session)
        made = Step(index=session.history.next_index, same_as=same_as, **values)
        if session.generation == generation and not session.ended:
            session.unmarked = made.index if same_as is None else None
            await session.history.append(made)
    session.tell()
    return made


async def _same_as(gateway: Gateway, session: Session) -> int | None:
    """The step whose snapshot shows the session's VM as it is now."""
    sealed, vm_id = session.sealed, session.facts.vm
    try:
        unchanged = sealed is not None and await gateway.core.vms.is_unchanged(session.caller, vm_id)
    except CoreError:
        return None
    return sealed if unchanged and (session.sealed, session.facts.vm) == (sealed, vm_id) else None


async def again(gateway: Gateway, caller: Caller, vm_id: str, env: dict[str, str], recorded: Step) -> bool:
    """Do a recorded step in some VM. False: it could not be done; what it comes to is its own matter."""
    if not recorded.repeatable:
        return False
    try:
        if recorded.name == UPLOAD and recorded.content is not None:
            data = base64.b64decode(recorded.content)
            await arl_steps.write(gateway.core, caller, vm_id, recorded.input["path"], data)
            return True
        wanted = msgspec.convert(recorded.input, StepRequest)
        seconds = None if wanted.seconds is None else max(AGAIN_SECONDS, wanted.seconds)
        await _run(gateway, caller, vm_id, env, wanted, seconds, None)
    except (CoreError, msgspec.ValidationError, KeyError):
        return False
    return True


async def _run(
    gateway: Gateway,
    caller: Caller,
    vm_id: str,
    env: dict[str, str],
    wanted: StepRequest,
    seconds: float | None,
    hear: Hear | None,
) -> Done:
    if not wanted.command or not wanted.command[0]:
        return _not_run("[2] empty command")
    cwd = arl_steps.absolute(wanted.work_dir or words.WORKSPACE, words.WORKSPACE)
    command = arl_steps.Command(tuple(wanted.command), {**env, **(wanted.env or {})}, cwd, seconds)
    pieces = None if hear is None else _Pieces(hear)
    try:
        outcome = await arl_steps.run(
            gateway.core, caller, vm_id, command, tag=TAG, on_output=pieces, most=OUTPUT_BYTES
        )
        if pieces is not None:
            await pieces.end()
    except (BadRequest, PayloadTooLarge) as error:
        return _not_run(error.message)
    if outcome.end == "cancelled" and gateway.stopping.is_set():
        raise Unavailable("the server is stopping", not_started=False)
    return _done(outcome, seconds)


class _Pieces:
    """From bytes to whole characters, for each stream."""

    def __init__(self, hear: Hear) -> None:
        self._hear = hear
        self._out, self._err = (codecs.getincrementaldecoder("utf-8")("replace") for _ in range(2))

    async def __call__(self, out: bytes, err: bytes) -> None:
        await self._hear(self._out.decode(out), self._err.decode(err))

    async def end(self) -> None:
        await self._hear(self._out.decode(b"", final=True), self._err.decode(b"", final=True))


def _not_run(why: str) -> Done:
    return Done("", f"executor error: {why}\n", CANNOT_RUN)


def _done(outcome: arl_steps.Outcome, seconds: float | None) -> Done:
    out, err = outcome.stdout.decode(errors="replace"), outcome.stderr.decode(errors="replace")
    code, why = outcome.exit_code, outcome.reason
    if outcome.end == "not-started":
        code, err = NOT_FOUND, ""  # it says why in our words below
    elif outcome.end == "timeout":
        code, why = TIMED_OUT, f"timed out after {seconds or 0:g} seconds"
    elif outcome.end == "cancelled":
        why = "the command was cancelled"
    if outcome.end != "exited":
        gap = "\n" if err and not err.endswith("\n") else ""
        err = f"{err}{gap}executor error: {why or outcome.end}\n"
    total = outcome.truncated and outcome.truncated + len(outcome.stdout) + len(outcome.stderr)
    return Done(out, err, CANNOT_RUN if code is None else code, outcome.duration // 1_000_000, total)
