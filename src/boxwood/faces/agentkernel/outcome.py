"""What came of a run, in agentkernel's words: an output, an exception, or events."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from boxwood.client.fields import RunFields, VMFields
from boxwood.faces.agentkernel.errors import AgentKernelError, NetworkError, ServerError
from boxwood.faces.agentkernel.models import RunOutput, SandboxInfo, StreamEvent
from boxwood.faces.agentkernel.order import noted_image

TIMED_OUT = 124  # the exit code of a run that its timeout ended
ENDS = {"failed": "failed", "cancelled": "was cancelled"}


def output_of(run: RunFields, timeout: float | None = None) -> RunOutput:
    """:raises AgentKernelError: it did not exit with 0."""
    if run.ok:
        return RunOutput(joined(run))
    raise _failed(run, timeout)


def joined(run: RunFields) -> str:
    """Both streams as one text, as agentkernel has them."""
    return f"{run.stdout}\n{run.stderr}" if run.stdout and run.stderr else run.stdout or run.stderr


def _failed(run: RunFields, timeout: float | None) -> AgentKernelError:
    output = joined(run)
    if run.state == "completed":
        text = f"Command exited with code {run.exit_code}: {output}"
        return ServerError(text, exit_code=run.exit_code, output=output)
    if timeout is not None and run.exit_code == TIMED_OUT:
        text = (
            f"the command did not end within {timeout:g} s and was stopped; AgentKernel(timeout=…) sets another bound"
        )
        return NetworkError(text, output=output)
    text = f"the command {ENDS.get(run.state, run.state)}: {run.fail_reason or 'nobody knows why'}"
    return ServerError(text, exit_code=run.exit_code, output=output)


def info(vm: VMFields) -> SandboxInfo:
    sizes, made = vm.resources, vm.created_at
    return SandboxInfo(
        name=vm.name or vm.id,
        status="running",
        backend="boxwood",
        image=noted_image(vm.description) or vm.root_source_name,
        vcpus=sizes.vcpu,
        memory_mb=sizes.memory_mib,
        created_at=None if made is None else _shown(made),
    )


def started(command: Sequence[str], fast: bool) -> StreamEvent:
    return StreamEvent("started", {"command": list(command), "fast": fast, "timestamp": _shown(datetime.now(UTC))})


def progress(sandbox: str) -> Iterator[StreamEvent]:
    yield StreamEvent("progress", {"stage": "sandbox_created", "sandbox": sandbox})
    yield StreamEvent("progress", {"stage": "sandbox_started"})


def broken(error: AgentKernelError) -> StreamEvent:
    return StreamEvent("error", {"message": error.message})


def last(run: RunFields) -> StreamEvent:
    """The event that ends a stream."""
    if run.state != "completed":
        return broken(_failed(run, None))
    data = {"exit_code": run.exit_code, "success": run.exit_code == 0}
    return StreamEvent("done", data if run.ok else {**data, "output": joined(run)})


class Tail:
    """What a run has put out since the last look. Never half a character: the rest of one comes with the next look."""

    def __init__(self) -> None:
        self._at = {"stdout": 0, "stderr": 0}
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {name: decoder(errors="replace") for name in self._at}

    def fresh(self, run: RunFields) -> list[StreamEvent]:
        found = []
        for name, data in (("stdout", run.stdout_bytes), ("stderr", run.stderr_bytes)):
            text = self._decoders[name].decode(data[self._at[name] :], final=run.ended)
            self._at[name] = len(data)
            if text:
                found.append(StreamEvent("output", {"data": text, "stream": name}))
        return found


def _shown(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
