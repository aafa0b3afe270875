"""Boxwood gives programs computers: fork one in milliseconds, run commands in it, fork it again, throw it away.

    from boxwood import Boxwood

    with Boxwood() as box, box.fork("ubuntu") as vm:
        print(vm.run("echo hello").stdout)

Names are loaded when they are first used: the zygote imports boxwood.engine and must not load the SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "boxwood.client._async.client": ["AsyncBoxwood"],
    "boxwood.client._async.pool": ["AsyncPool"],
    "boxwood.client._async.pty": ["AsyncPty"],
    "boxwood.client._async.run": ["AsyncRun"],
    "boxwood.client._async.session": ["AsyncSession"],
    "boxwood.client._async.vm": ["AsyncVM"],
    "boxwood.client.errors": [
        "AlreadyExists", "BadRequest", "BoxwoodError", "CommandFailed", "Conflict", "ConnectionFailed", "Expired",
        "FileMissing", "Forbidden", "IdempotencyConflict", "InvalidState", "NotFound", "OperationFailed",
        "PayloadTooLarge", "RateLimited", "ResourceBusy", "ServerError", "Timeout", "Unauthorized", "Unavailable",
        "Unrecoverable", "Unsupported",
    ],
    "boxwood.client.events": ["RunExited", "RunOutput", "RunStarted"],
    "boxwood.client.models": [
        "ApiKey", "CopyReport", "Denial", "Health", "Identity", "Image", "Manifest", "ManifestEntry", "NetworkUsage",
        "PoolRecord", "Preparing", "Resources", "RunRecord", "SessionRecord", "VMNetwork", "VMRecord",
    ],
    "boxwood.client._sync.client": ["Boxwood"],
    "boxwood.client._sync.pool": ["Pool"],
    "boxwood.client._sync.pty": ["Pty"],
    "boxwood.client._sync.run": ["Run"],
    "boxwood.client._sync.session": ["Session"],
    "boxwood.client._sync.vm": ["VM"],
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from boxwood.client._async.client import AsyncBoxwood
    from boxwood.client._async.pool import AsyncPool
    from boxwood.client._async.pty import AsyncPty
    from boxwood.client._async.run import AsyncRun
    from boxwood.client._async.session import AsyncSession
    from boxwood.client._async.vm import AsyncVM
    from boxwood.client._sync.client import Boxwood
    from boxwood.client._sync.pool import Pool
    from boxwood.client._sync.pty import Pty
    from boxwood.client._sync.run import Run
    from boxwood.client._sync.session import Session
    from boxwood.client._sync.vm import VM
    from boxwood.client.errors import (
        AlreadyExists,
        BadRequest,
        BoxwoodError,
        CommandFailed,
        Conflict,
        ConnectionFailed,
        Expired,
        FileMissing,
        Forbidden,
        IdempotencyConflict,
        InvalidState,
        NotFound,
        OperationFailed,
        PayloadTooLarge,
        RateLimited,
        ResourceBusy,
        ServerError,
        Timeout,
        Unauthorized,
        Unavailable,
        Unrecoverable,
        Unsupported,
    )
    from boxwood.client.events import RunExited, RunOutput, RunStarted
    from boxwood.client.models import (
        ApiKey,
        CopyReport,
        Denial,
        Health,
        Identity,
        Image,
        Manifest,
        ManifestEntry,
        NetworkUsage,
        PoolRecord,
        Preparing,
        Resources,
        RunRecord,
        SessionRecord,
        VMNetwork,
        VMRecord,
    )

__all__ = [
    "VM", "AlreadyExists", "ApiKey", "AsyncBoxwood", "AsyncPool", "AsyncPty", "AsyncRun", "AsyncSession", "AsyncVM",
    "BadRequest", "Boxwood", "BoxwoodError", "CommandFailed", "Conflict", "ConnectionFailed", "CopyReport", "Denial",
    "Expired", "FileMissing", "Forbidden", "Health", "IdempotencyConflict", "Identity", "Image", "InvalidState",
    "Manifest", "ManifestEntry", "NetworkUsage", "NotFound", "OperationFailed", "PayloadTooLarge", "Pool", "PoolRecord",
    "Preparing", "Pty", "RateLimited", "ResourceBusy", "Resources", "Run", "RunExited", "RunOutput", "RunRecord",
    "RunStarted", "ServerError", "Session", "SessionRecord", "Timeout", "Unauthorized", "Unavailable", "Unrecoverable",
    "Unsupported", "VMNetwork", "VMRecord", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
