"""What the User-Agent tells of a client: the only mark that published releases leave (wire 1.4).

| User-Agent        | releases    | what is done for them                                                            |
|-------------------|-------------|----------------------------------------------------------------------------------|
| `Python-urllib/…` | 0.1 – 0.6   | `"ok": false` beside errors, flat sizes in VMs, integer exit codes, 100 s windows |
| `python-httpx/…`  | 0.7 – 1.2.5 | only members that 0.8.4–0.8.7 know (they refuse any other), 100 s windows         |
| anything else     | 1.2.6 on    | everything, windows of up to 290 s                                               |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from boxwood.server.schema import file, filesystem, network, run, session, vm
from boxwood.server.schema.common import Answer

SHORT_WINDOW = 100.0  # seconds: sockets of ≤ 0.8.9 give up after 120
WINDOW = 290.0  # … and later ones after 300


@dataclass(frozen=True, slots=True)
class Agent:
    urllib: bool = False
    strict: bool = False
    window: float = WINDOW

    @property
    def old(self) -> bool:
        """It may be of a release before 1.2.6."""
        return self.urllib or self.strict


_PLAIN = Agent()
_URLLIB = Agent(urllib=True, window=SHORT_WINDOW)
_STRICT = Agent(strict=True, window=SHORT_WINDOW)


def agent(user_agent: bytes) -> Agent:
    if user_agent.startswith(b"Python-urllib/"):
        return _URLLIB
    if user_agent.startswith(b"python-httpx/"):
        return _STRICT
    return _PLAIN


_OUTPUT = {"stdout", "stdout_encoding", "stderr", "stderr_encoding"}
_SUMMARY = {
    "run_id", "state", "started_at", "exit_code", "session_id", "command", "completed_at", "fail_reason", "vm_id",
    "vm_name",
}  # fmt: skip
KNOWN: dict[type[Answer], frozenset[str]] = {
    vm.VM: frozenset({
        "vm_id", "owner_org_id", "created_at", "description", "public", "state", "network", "sessions", "resources",
        "name", "root_source_vm_id", "root_source_vm_name", "region", "provider",
    }),
    vm.Resources: frozenset({"vcpu", "memory_mib", "disk_mib"}),
    network.Network: frozenset(),
    session.Session: frozenset({"session_id", "state", "cwd", "session_idx", "env", "started_at", "vm_id"}),
    run.CompletedRunAnswer: frozenset({*_OUTPUT, "exit_code", "run_id", "state"}),
    run.BackgroundRunAnswer: frozenset({"run_id", "state"}),
    run.RunSummary: frozenset(_SUMMARY),
    run.Run: frozenset({*_SUMMARY, *_OUTPUT, "retry_count"}),
    filesystem.Filesystem: frozenset({
        "filesystem_id", "name", "owner_org_id", "created_at", "size_bytes", "region", "provider",
    }),
    filesystem.Sync: frozenset({"sync_id", "vm_id", "filesystem_id", "path", "region"}),
    file.ReadInlineAnswer: frozenset({"ok", "op", "path", "size", "content", "encoding"}),
}  # fmt: skip


def strictly(value: Any) -> Any:
    """An answer without the members that the strict releases do not know."""
    if isinstance(value, Answer):
        known = KNOWN.get(type(value))
        names = value.__struct_fields__ if known is None else [n for n in value.__struct_fields__ if n in known]
        found = ((name, getattr(value, name)) for name in names)
        return {name: strictly(member) for name, member in found if member is not msgspec.UNSET}
    if isinstance(value, list):
        return [strictly(member) for member in value]
    return value
