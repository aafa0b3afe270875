"""Boxwood, spoken to as agentkernel's Python SDK is: `from boxwood.faces.agentkernel import AgentKernel`.

    with AgentKernel() as client:
        print(client.run(["echo", "hello"]).output)
        with client.sandbox("test", image="python:3.12-alpine") as sb:
            print(sb.run(["python3", "-V"]).output)

`AsyncAgentKernel` is the same, awaited. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "AgentKernel": "_sync.client",
    "AgentKernelError": "errors",
    "AsyncAgentKernel": "_async.client",
    "AsyncSandboxSession": "_async.session",
    "AuthError": "errors",
    "BatchResult": "models",
    "BatchRunResponse": "models",
    "FileReadResponse": "models",
    "NetworkError": "errors",
    "NotFoundError": "errors",
    "RunOutput": "models",
    "SandboxInfo": "models",
    "SandboxSession": "_sync.session",
    "ServerError": "errors",
    "StreamEvent": "models",
    "ValidationError": "errors",
}

if TYPE_CHECKING:
    from boxwood.faces.agentkernel._async.client import AsyncAgentKernel
    from boxwood.faces.agentkernel._async.session import AsyncSandboxSession
    from boxwood.faces.agentkernel._sync.client import AgentKernel
    from boxwood.faces.agentkernel._sync.session import SandboxSession
    from boxwood.faces.agentkernel.errors import (
        AgentKernelError,
        AuthError,
        NetworkError,
        NotFoundError,
        ServerError,
        ValidationError,
    )
    from boxwood.faces.agentkernel.models import (
        BatchResult,
        BatchRunResponse,
        FileReadResponse,
        RunOutput,
        SandboxInfo,
        StreamEvent,
    )

__all__ = [
    "AgentKernel", "AgentKernelError", "AsyncAgentKernel", "AsyncSandboxSession", "AuthError", "BatchResult",
    "BatchRunResponse", "FileReadResponse", "NetworkError", "NotFoundError", "RunOutput", "SandboxInfo",
    "SandboxSession", "ServerError", "StreamEvent", "ValidationError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
