"""What this face hands out: plain data, named as agentkernel names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunOutput:
    """A command that exited with 0. `output`: what it wrote to standard output; or to standard error, if that is all
    there is; both, a newline between them, if there are both. What is not UTF-8 becomes U+FFFD."""

    output: str


@dataclass(frozen=True)
class SandboxInfo:
    """A sandbox. `status`: running; one that nobody uses is parked and comes back with its next use, so none is ever
    stopped. `image`: as it was asked for. `created_at`: RFC 3339."""

    name: str
    status: str
    backend: str
    image: str | None = None
    vcpus: int | None = None
    memory_mb: int | None = None
    created_at: str | None = None


@dataclass(frozen=True)
class StreamEvent:
    """Something that happened to a command. `type`, and what `data` holds:

    started: command, fast, timestamp (RFC 3339). progress (where `fast` is False): stage, sandbox. output: data (text),
    stream (stdout or stderr). done, the last one: exit_code, success, and where it failed output, all of it. error, the
    last one too: message.
    """

    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class FileReadResponse:
    """A file. `encoding`: utf8, or base64 for what is not text. `size`: bytes of the file itself."""

    content: str
    encoding: str
    size: int


@dataclass(frozen=True)
class BatchResult:
    """One command of a batch: its output, or why there is none."""

    output: str | None
    error: str | None


@dataclass(frozen=True)
class BatchRunResponse:
    """In the order of the commands."""

    results: list[BatchResult]
