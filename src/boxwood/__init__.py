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
    "boxwood.client._async.filework": ["AsyncFiles"],
    "boxwood.client._async.forward": ["AsyncForward"],
    "boxwood.client._async.policies": ["AsyncPolicies", "AsyncSecrets"],
    "boxwood.client._async.pool": ["AsyncPool"],
    "boxwood.client._async.pty": ["AsyncPty"],
    "boxwood.client._async.run": ["AsyncRun"],
    "boxwood.client._async.session": ["AsyncSession"],
    "boxwood.client._async.vm": ["AsyncVM"],
    "boxwood.client._async.volumes": ["AsyncFilesystems", "AsyncMounts"],
    "boxwood.client.errors": [
        "AlreadyExists", "BadRequest", "BoxwoodError", "CommandFailed", "Conflict", "ConnectionFailed", "Expired",
        "FileMissing", "Forbidden", "IdempotencyConflict", "InvalidState", "NotFound", "OperationFailed",
        "PayloadTooLarge", "RateLimited", "ResourceBusy", "ServerError", "Timeout", "Unauthorized", "Unavailable",
        "Unrecoverable", "Unsupported",
    ],
    "boxwood.client.events": ["RunExited", "RunOutput", "RunStarted"],
    "boxwood.client.filerecords": ["FileChange", "FileInfo", "FilesFound", "TextFound", "TextMatch", "Transfer"],
    "boxwood.client.models": [
        "ApiKey", "CopyReport", "Denial", "Health", "Identity", "Image", "Manifest", "ManifestEntry", "NetworkUsage",
        "PoolRecord", "Preparing", "Resources", "RunRecord", "SessionRecord", "VMNetwork", "VMRecord",
    ],
    "boxwood.client.policies": ["Policy", "Secret"],
    "boxwood.client.python": ["PythonContext", "PythonError", "PythonFrame", "PythonResult"],
    "boxwood.client.snapshots": ["Change", "Diff", "Snapshot"],
    "boxwood.client.mirror": ["Progress", "SyncReport"],
    "boxwood.client._sync.client": ["Boxwood"],
    "boxwood.client._sync.filework": ["Files"],
    "boxwood.client._sync.forward": ["Forward"],
    "boxwood.client._sync.policies": ["Policies", "Secrets"],
    "boxwood.client._sync.pool": ["Pool"],
    "boxwood.client._sync.pty": ["Pty"],
    "boxwood.client._sync.run": ["Run"],
    "boxwood.client._sync.session": ["Session"],
    "boxwood.client._sync.vm": ["VM"],
    "boxwood.client._sync.volumes": ["Filesystems", "Mounts"],
    "boxwood.client.volumes": ["Filesystem", "Mount"],
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from boxwood.client._async.client import AsyncBoxwood
    from boxwood.client._async.filework import AsyncFiles
    from boxwood.client._async.forward import AsyncForward
    from boxwood.client._async.policies import AsyncPolicies, AsyncSecrets
    from boxwood.client._async.pool import AsyncPool
    from boxwood.client._async.pty import AsyncPty
    from boxwood.client._async.run import AsyncRun
    from boxwood.client._async.session import AsyncSession
    from boxwood.client._async.vm import AsyncVM
    from boxwood.client._async.volumes import AsyncFilesystems, AsyncMounts
    from boxwood.client._sync.client import Boxwood
    from boxwood.client._sync.filework import Files
    from boxwood.client._sync.forward import Forward
    from boxwood.client._sync.policies import Policies, Secrets
    from boxwood.client._sync.pool import Pool
    from boxwood.client._sync.pty import Pty
    from boxwood.client._sync.run import Run
    from boxwood.client._sync.session import Session
    from boxwood.client._sync.vm import VM
    from boxwood.client._sync.volumes import Filesystems, Mounts
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
    from boxwood.client.filerecords import FileChange, FileInfo, FilesFound, TextFound, TextMatch, Transfer
    from boxwood.client.mirror import Progress, SyncReport
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
    from boxwood.client.policies import Policy, Secret
    from boxwood.client.python import PythonContext, PythonError, PythonFrame, PythonResult
    from boxwood.client.snapshots import Change, Diff, Snapshot
    from boxwood.client.volumes import Filesystem, Mount

__all__ = [
    "VM", "AlreadyExists", "ApiKey", "AsyncBoxwood", "AsyncFiles", "AsyncFilesystems", "AsyncForward", "AsyncMounts",
    "AsyncPolicies", "AsyncPool", "AsyncPty", "AsyncRun", "AsyncSecrets", "AsyncSession", "AsyncVM", "BadRequest",
    "Boxwood", "BoxwoodError", "Change", "CommandFailed", "Conflict", "ConnectionFailed", "CopyReport", "Denial",
    "Diff", "Expired", "FileChange", "FileInfo", "FileMissing", "Files", "FilesFound", "Filesystem", "Filesystems",
    "Forbidden", "Forward", "Health", "IdempotencyConflict", "Identity", "Image", "InvalidState", "Manifest",
    "ManifestEntry", "Mount", "Mounts", "NetworkUsage", "NotFound", "OperationFailed", "PayloadTooLarge", "Policies",
    "Policy", "Pool", "PoolRecord", "Preparing", "Progress", "Pty", "PythonContext", "PythonError", "PythonFrame",
    "PythonResult", "RateLimited", "ResourceBusy", "Resources", "Run", "RunExited", "RunOutput", "RunRecord",
    "RunStarted", "Secret", "Secrets", "ServerError", "Session", "SessionRecord", "Snapshot", "SyncReport",
    "TextFound", "TextMatch", "Timeout", "Transfer", "Unauthorized", "Unavailable", "Unrecoverable", "Unsupported",
    "VMNetwork", "VMRecord", "__version__",
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
