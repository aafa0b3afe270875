"""Boxwood, spoken to as ARL's first Python SDK is: `from boxwood.faces.arl import SandboxSession, WarmPoolManager`.

    with SandboxSession(pool_ref="python-pool") as session:
        result = session.execute([{"name": "hello", "type": "Command", "command": ["echo", "hi"]}], timeout="5m")
        print(result["status"]["stdout"])

It speaks to a Boxwood server, or to a Kubernetes cluster where ARL's operator runs: see `place`. Names are loaded when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "ApiException": "errors",
    "ArlError": "errors",
    "SandboxResource": "resources",
    "SandboxSession": "session",
    "TaskResource": "resources",
    "TaskStatus": "resources",
    "TaskStep": "resources",
    "TaskStepResult": "resources",
    "TaskTimeout": "errors",
    "WarmPoolManager": "manager",
    "WarmPoolNotFound": "errors",
}

if TYPE_CHECKING:
    from boxwood.faces.arl.errors import ApiException, ArlError, TaskTimeout, WarmPoolNotFound
    from boxwood.faces.arl.manager import WarmPoolManager
    from boxwood.faces.arl.resources import SandboxResource, TaskResource, TaskStatus, TaskStep, TaskStepResult
    from boxwood.faces.arl.session import SandboxSession

__all__ = [
    "ApiException", "ArlError", "SandboxResource", "SandboxSession", "TaskResource", "TaskStatus", "TaskStep",
    "TaskStepResult", "TaskTimeout", "WarmPoolManager", "WarmPoolNotFound",
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
