"""Runs on the wire."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from boxwood.core import model
from boxwood.server.schema.common import UNSET, Answer, Page, Query, Request, Seconds, UnsetType
from boxwood.server.schema.policy import PolicyUpdate
from boxwood.server.schema.python import PythonContext, PythonException, PythonResult, reports
from boxwood.server.schema.vm import GPU, RETIRED_SIZES

RunState = Literal["pending", "running", "completed", "failed", "cancelled"]
Encoding = Literal["utf-8", "base64"]
SignalName = Literal["SIGINT", "SIGTERM", "SIGKILL", "SIGHUP"]
LONGEST_WINDOW = 300


class RunBody(Request, frozen=True, kw_only=True):
    """A command; or a signal to what runs; or nothing at all, which waits for the run that has been pending longest."""

    command: str | None = None
    argv: (
        Annotated[
            list[str],
            Meta(
                min_length=1,
                description="Instead of a command: a program and its arguments, without a shell and in no session.",
            ),
        ]
        | None
    ) = None
    session_id: str | None = None
    session_idx: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] | None = None
    timeout: Annotated[Seconds, Meta(description="Seconds until all that it started is killed; 0: never.")] | None = (
        None
    )
    time_to_background: Annotated[float, Meta(ge=0, le=LONGEST_WINDOW)] | None = None
    background: bool | None = None
    queueing_timeout: Seconds | None = None
    end_symbol: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=256,
                description="auto or none: does a prompt that waits for input end it? Else: the text that ends it.",
            ),
        ]
        | None
    ) = None
    signal: SignalName | None = None
    env: Annotated[dict[str, str], Meta(description="For this run alone.")] | None = None
    cwd: Annotated[str, Meta(description="For this run alone.")] | None = None
    user: Annotated[str, Meta(description="For this run alone: user, or user:group.")] | None = None
    stdin: Annotated[str, Meta(description="What the command reads, then end of file.")] | None = None
    stdin_encoding: Literal["utf-8", "base64"] | None = None
    stdin_open: (
        Annotated[bool, Meta(description="stdin is only the beginning of what it reads: see writeRunStdin.")] | None
    ) = None
    policies: PolicyUpdate = None
    vcpu_count: Any = None
    memory_mib: Any = None
    disk_mib: Any = None
    network: Any = None
    acquire: Any = None
    release: Any = None
    max_memory_mib: Any = None
    memory_backend: Any = None
    gpu_sms: Any = None
    gpu_vram_mib: Any = None
    gpu_count: Any = None

    later: ClassVar = GPU
    retired: ClassVar = RETIRED_SIZES | {"vcpu_count", "memory_mib", "disk_mib", "network", "acquire", "release"}


class ListRunsQuery(Page, frozen=True, kw_only=True):
    state: RunState | None = None
    started_after: Annotated[datetime, Meta(tz=True)] | None = None
    started_before: Annotated[datetime, Meta(tz=True)] | None = None
    completed_after: Annotated[datetime, Meta(tz=True)] | None = None


class GetRunQuery(Query, frozen=True, kw_only=True):
    wait: Annotated[
        float, Meta(ge=0, le=LONGEST_WINDOW, description="Seconds that the answer may wait for the end of the run.")
    ] = 0.0


class StreamQuery(Query, frozen=True, kw_only=True):
    """How a run is told as it happens."""

    encoding: Annotated[
        Encoding,
        Meta(description="utf-8: text as it is, never in the midst of a character; base64: all of it, at once."),
    ] = "utf-8"
    on_disconnect: Annotated[
        Literal["continue", "cancel"], Meta(description="What becomes of the run if this connection ends before it.")
    ] = "continue"


class RunEventsQuery(StreamQuery, frozen=True, kw_only=True):
    offset: Annotated[
        str, Meta(description="The id of the last event: what is behind it is told. Last-Event-ID goes before it.")
    ] = "0"


class StdinQuery(Query, frozen=True, kw_only=True):
    offset: (
        Annotated[
            int,
            Meta(ge=0, le=1 << 50, description="Of the first byte, in all that was given; it may be given again then."),
        ]
        | None
    ) = None
    eof: Annotated[str, Meta(pattern="(?i)^(true|false|1|0)$", description="true: nothing comes behind it.")] = "false"


class StdinAnswer(Answer, frozen=True, kw_only=True):
    """What of the body was not taken for want of room is to be sent again."""

    offset: Annotated[int, Meta(description="Bytes that it has been given in all.")]
    taken: Annotated[int, Meta(description="Bytes of this body that it has.")]
    closed: Annotated[bool, Meta(description="There will be no more.")]


class BegunEvent(Answer, frozen=True, kw_only=True):
    run_id: str
    session_id: str
    vm_id: str
    started_at: datetime
    retry_count: (
        Annotated[int, Meta(description="It was begun again: output that was told before is no output of it any more.")]
        | UnsetType
    ) = UNSET


class OutputEvent(Answer, frozen=True, kw_only=True):
    data: str
    encoding: Encoding
    offset: Annotated[int, Meta(description="Of its first byte, in all that the run has put out on this stream.")]


class ExitEvent(Answer, frozen=True, kw_only=True):
    run_id: str
    state: RunState
    exit_code: int | None
    fail_reason: str | None
    completed_at: datetime | None
    duration_ms: float | UnsetType = UNSET
    stdout_bytes: Annotated[int, Meta(description="That were told, with those before.")]
    stderr_bytes: int
    truncated: Annotated[int, Meta(description="Bytes of output that were not kept.")] | UnsetType = UNSET


# Of runs in Python contexts alone: strict clients of old reject what they do not know.
Results = Annotated[list[PythonResult], Meta(description="In a Python context.")] | UnsetType
Exception_ = Annotated[PythonException | None, Meta(description="In a Python context.")] | UnsetType
Context = Annotated[PythonContext | None, Meta(description="In a Python context.")] | UnsetType
ResultsLost = Annotated[int, Meta(description="Results that were too many or too large, or no sense.")] | UnsetType


class CompletedRunAnswer(Answer, frozen=True, kw_only=True):
    stdout: str
    stdout_encoding: Encoding
    stderr: str
    stderr_encoding: Encoding
    exit_code: int | None
    state: RunState
    run_id: str | UnsetType = UNSET
    session_id: str | UnsetType = UNSET
    fail_reason: str | UnsetType = UNSET
    duration_ms: float | UnsetType = UNSET
    truncated: Annotated[int, Meta(description="Bytes of output that were not kept.")] | UnsetType = UNSET
    results: Results = UNSET
    exception: Exception_ = UNSET
    context: Context = UNSET
    results_lost: ResultsLost = UNSET


class BackgroundRunAnswer(Answer, frozen=True, kw_only=True):
    run_id: str
    session_id: str
    state: Literal["running"] = "running"


class RunSummary(Answer, frozen=True, kw_only=True):
    run_id: str
    session_id: str | None
    command: str | None
    state: RunState
    started_at: datetime
    completed_at: datetime | None
    exit_code: int | None
    fail_reason: str | None
    vm_id: str | None
    vm_name: str | None
    duration_ms: float | UnsetType = UNSET


class Run(RunSummary, frozen=True, kw_only=True):
    stdout: str
    stdout_encoding: Encoding
    stderr: str
    stderr_encoding: Encoding
    retry_count: int = 0
    truncated: Annotated[int, Meta(description="Bytes of output that were not kept.")] | UnsetType = UNSET
    results: Results = UNSET
    exception: Exception_ = UNSET
    context: Context = UNSET
    results_lost: ResultsLost = UNSET


class ListRunsAnswer(Answer, frozen=True, kw_only=True):
    runs: list[RunSummary]
    next_cursor: str | None


class CancelRunAnswer(Answer, frozen=True, kw_only=True):
    cancelled: bool


SIGNALLED = CompletedRunAnswer(
    stdout="", stdout_encoding="utf-8", stderr="", stderr_encoding="utf-8", exit_code=0, state="completed"
)


def text(output: bytes) -> tuple[str, Encoding]:
    """Valid UTF-8 as it is, anything else in base64."""
    try:
        return output.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(output).decode(), "base64"


def completed(of: model.Run, *, integer_exit: bool = False) -> CompletedRunAnswer:
    """`integer_exit`: for clients that crash on null (wire 5.3): -1 where a process was lost, 0 behind a prompt."""
    stdout, stdout_encoding = text(of.stdout)
    stderr, stderr_encoding = text(of.stderr)
    exit_code = of.exit_code
    if exit_code is None and integer_exit:
        exit_code = 0 if of.state == "completed" else -1
    return CompletedRunAnswer(
        stdout=stdout,
        stdout_encoding=stdout_encoding,
        stderr=stderr,
        stderr_encoding=stderr_encoding,
        exit_code=exit_code,
        state=of.state,  # type: ignore[arg-type]  # the core's states are the contract's
        run_id=of.run_id,
        session_id=of.session_id,
        fail_reason=of.fail_reason if of.fail_reason is not None else UNSET,
        duration_ms=of.duration_ms if of.duration_ms is not None else UNSET,
        truncated=of.truncated or UNSET,
        **_of_python(of),
    )


def begun(of: model.Run) -> BegunEvent:
    return BegunEvent(
        run_id=of.run_id,
        session_id=of.session_id,
        vm_id=of.vm_id,
        started_at=of.started_at,
        retry_count=of.retries or UNSET,
    )


def exited(of: model.Run, out: int, err: int) -> ExitEvent:
    return ExitEvent(
        run_id=of.run_id,
        state=of.state,  # type: ignore[arg-type]  # the core's states are the contract's
        exit_code=of.exit_code,
        fail_reason=of.fail_reason,
        completed_at=of.completed_at,
        duration_ms=of.duration_ms if of.duration_ms is not None else UNSET,
        stdout_bytes=out,
        stderr_bytes=err,
        truncated=of.truncated or UNSET,
    )


def summary(of: model.Run) -> RunSummary:
    return RunSummary(**_common(of))


def run(of: model.Run) -> Run:
    stdout, stdout_encoding = text(of.stdout)
    stderr, stderr_encoding = text(of.stderr)
    return Run(
        **_common(of),
        stdout=stdout,
        stdout_encoding=stdout_encoding,
        stderr=stderr,
        stderr_encoding=stderr_encoding,
        retry_count=of.retries,
        truncated=of.truncated or UNSET,
        **_of_python(of),
    )


def _of_python(of: model.Run) -> dict[str, Any]:
    if of.reports is None:
        return {}
    found = reports(of.reports)
    return {
        "results": found.results,
        "exception": found.exception,
        "context": found.context,
        "results_lost": found.lost or UNSET,
    }


def _common(of: model.Run) -> dict[str, Any]:
    return {
        "run_id": of.run_id,
        "session_id": of.session_id,
        "command": of.command,
        "state": of.state,
        "started_at": of.started_at,
        "completed_at": of.completed_at,
        "exit_code": of.exit_code,
        "fail_reason": of.fail_reason,
        "vm_id": of.vm_id,
        "vm_name": of.vm_name,
        "duration_ms": of.duration_ms if of.duration_ms is not None else UNSET,
    }
