"""docs/compatibility.md: its tables, made from what the clients' methods did in a test session (`seen.py`).

Each block between a line `<!-- tables of NAME -->` and `<!-- end -->` is made here, the rest is written by hand.
Rows are a client and its version, with the class where several have the same methods; columns are public methods.
A cell: *works*; *refused*, this server says that it does not have it; *broken*, the client fails whatever a server
says; *not tried*, with the reason below; — is not there in that release.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scenarios.seen import Surface

DOCUMENT = Path(__file__).parents[2] / "docs/compatibility.md"
ABSENT, NOT_TRIED = "—", "not tried"
SAME = {"aclose": "close"}  # methods whose awaitable form has another name
Row = dict[str, str]  # method → cell
Rows = dict[tuple[str, str], Row]  # (client, class) → row


@dataclass(frozen=True)
class Table:
    """`methods`: separated by spaces, in order; without them, those that are in no other table of these classes."""

    title: str
    clients: tuple[str, ...]
    classes: tuple[str, ...]
    methods: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Methods, by their names in the table, that no test calls, and why."""

    clients: tuple[str, ...]
    methods: str
    reason: str
    classes: tuple[str, ...] = ()  # none: all of them


AGENTKERNEL = tuple(f"agentkernel-sdk {version}" for version in ("0.4.0", "0.18.1", "0.21.0"))
NPM = ("npm agentkernel 0.18.1",)
BOTH = ("AgentKernel", "AsyncAgentKernel")
FIRST, LATER = ("arker 0.1.0", "arker 0.2.1"), ("arker 1.3.0",)
CRD, GATEWAY = ("arl-env 0.1.4", "arl-env 0.1.5"), ("arl-env 0.27.0",)
SHELL = ("InteractiveShellClient",)
SESSIONS = (
    "SandboxSession", "AsyncSandboxSession", "ManagedSession", "AsyncManagedSession", "DevboxSession",
    "AsyncDevboxSession",
)  # fmt: skip
ROUTES = ("GatewayClient", "AsyncGatewayClient")
BROWSER = "it installs a browser from the internet within the client's 30 seconds, and starts in one command a process that is to outlive it, which a command here does not"

FAMILIES: dict[str, tuple[Table, ...]] = {
    "agentkernel": (
        Table(
            "Commands",
            AGENTKERNEL,
            BOTH,
            "health run run_stream batch_run exec_in_sandbox get_sandbox_logs get_backends",
        ),
        Table(
            "Sandboxes",
            AGENTKERNEL,
            BOTH,
            "create_sandbox sandbox list_sandboxes get_sandbox get_sandbox_by_uuid remove_sandbox extend_ttl browser close",
        ),
        Table("Files", AGENTKERNEL, BOTH, "read_file write_file delete_file write_files"),
        Table(
            "Detached commands",
            AGENTKERNEL,
            BOTH,
            "exec_detached detached_status detached_logs detached_kill detached_list",
        ),
        Table("Sessions", AGENTKERNEL, ("SandboxSession", "AsyncSandboxSession")),
        Table(
            "Snapshots", AGENTKERNEL, BOTH, "list_snapshots take_snapshot get_snapshot delete_snapshot restore_snapshot"
        ),
        Table(
            "Orchestrations",
            AGENTKERNEL,
            BOTH,
            "list_orchestrations create_orchestration get_orchestration signal_orchestration terminate_orchestration "
            "list_orchestration_definitions upsert_orchestration_definition get_orchestration_definition "
            "delete_orchestration_definition",
        ),
        Table(
            "Durable objects and schedules",
            AGENTKERNEL,
            BOTH,
            "list_objects create_object get_object call_object delete_object patch_object list_schedules create_schedule "
            "get_schedule delete_schedule",
        ),
        Table("Durable stores", AGENTKERNEL, BOTH),
        Table(
            "Node.js: commands and sandboxes",
            NPM,
            ("AgentKernel",),
            "health run runStream batchRun createSandbox sandbox listSandboxes getSandbox getSandboxByUuid removeSandbox execInSandbox "
            "getSandboxLogs extendTtl browser",
        ),
        Table(
            "Node.js: files and detached commands",
            NPM,
            ("AgentKernel",),
            "readFile writeFile deleteFile writeFiles execDetached detachedStatus detachedLogs detachedKill detachedList",
        ),
        Table("Node.js: sessions", NPM, ("SandboxSession",)),
        Table(
            "Node.js: snapshots and orchestrations",
            NPM,
            ("AgentKernel",),
            "listSnapshots takeSnapshot getSnapshot deleteSnapshot restoreSnapshot listOrchestrations createOrchestration "
            "getOrchestration signalOrchestration terminateOrchestration listOrchestrationDefinitions "
            "upsertOrchestrationDefinition getOrchestrationDefinition deleteOrchestrationDefinition",
        ),
        Table("Node.js: durable objects, stores and schedules", NPM, ("AgentKernel",)),
    ),
    "arker": (
        Table("First generation: `Arker`, `Computer`, `Sync`", FIRST, ("Arker",)),
        Table("", FIRST, ("Computer",)),
        Table("", FIRST, ("Sync",)),
        Table(
            "Present generation: `Arker`",
            LATER,
            ("Arker",),
            "fork vm get_vm list_vms whoami list_regions list_runs list_api_keys create_api_key revoke_api_key",
        ),
        Table("", LATER, ("Arker",)),
        Table(
            "Present generation: `VM`",
            LATER,
            ("VM",),
            "run fork sync sync_dir get_run list_runs cancel_run refresh update delete",
        ),
        Table("", LATER, ("VM",)),
    ),
    "arl": (
        Table("Kubernetes: `SandboxSession`", CRD, ("SandboxSession",)),
        Table("Kubernetes: `WarmPoolManager`", CRD, ("WarmPoolManager",)),
        Table("Kubernetes: `InteractiveShellClient`", CRD, SHELL),
        Table(
            "Gateway: sessions",
            GATEWAY,
            SESSIONS,
            "create_sandbox attach delete_sandbox suspend resume execute get_execute_operation execute_container close",
        ),
        Table(
            "Gateway: files, history and time of sessions",
            GATEWAY,
            SESSIONS,
            "upload_file upload_path download_file download_path iter_download get_history export_trajectory get_logs "
            "iter_logs restore replay_from",
        ),
        Table("Gateway: tunnels of sessions", GATEWAY, SESSIONS),
        Table("Gateway: pools", GATEWAY, ("WarmPoolManager",)),
        Table("Gateway: shells", GATEWAY, SHELL),
        Table(
            "Gateway: sessions, by their routes",
            GATEWAY,
            ROUTES,
            "create_session get_session list_sessions delete_session suspend_session resume_session execute "
            "get_execute_operation execute_container send_stdin update_network_policy",
        ),
        Table(
            "Gateway: files, history and time of sessions, by their routes",
            GATEWAY,
            ROUTES,
            "upload_file upload_path download_file download_path iter_download_file get_history get_trajectory "
            "list_session_logs iter_session_logs restore replay_from fork_session",
        ),
        Table("Gateway: pools, experiments and the rest, by their routes", GATEWAY, ROUTES),
    ),
}
LEFT_OUT = (
    LeftOut((*AGENTKERNEL, *NPM), "browser", BROWSER),
    LeftOut(
        CRD,
        "close close_sync is_open read_output read_output_sync send_input send_input_sync",
        "there is nothing to read from or write to where no shell can be had",
        SHELL,
    ),
    LeftOut(
        GATEWAY,
        "tunnel_forward tunnel_list tunnel_stop",
        "they never ask the server, but an iroh peer in the sandbox, which there is none of here",
    ),
)


def found(family: str, client: str, surface: Surface) -> Rows:
    """What a session saw of a client, by class; a method that nothing came of has the cell `?`."""
    classes = {name for table in FAMILIES[family] if client in table.clients for name in table.classes}
    return {
        (client, kind): {SAME.get(method, method): cell(outcomes) for method, outcomes in surface[kind].items()}
        for kind in sorted(classes & surface.keys())
    }


def cell(outcomes: Iterable[str]) -> str:
    for verdict in ("works", "refused", "broken"):
        if verdict in outcomes:
            return verdict
    return "?"


def settled(rows: Rows) -> Rows:
    """With a reason for each method that was not tried. :raises AssertionError: without one, or a needless one."""
    for left in LEFT_OUT:
        for (client, kind), row in rows.items():
            if client not in left.clients or (left.classes and kind not in left.classes):
                continue
            for method in left.methods.split():
                assert row.get(method, "?") == "?", f"{client}: {kind}.{method} is tried"
                if method in row:
                    row[method] = NOT_TRIED
    missing = [f"{client}: {kind}.{m}" for (client, kind), row in rows.items() for m, c in row.items() if c == "?"]
    assert not missing, f"nothing came of these, and table.LEFT_OUT has no reason: {missing}"
    return rows


def denied(told: Rows, seen: Rows) -> list[str]:
    """Methods that work, and of which something else is told. No part of the tests can see more than that."""
    return [
        f"{client}: {kind}.{method} works, and is told to be {told[client, kind].get(method, ABSENT)}"
        for (client, kind), row in seen.items()
        if (client, kind) in told
        for method, now in row.items()
        if now == "works" != told[client, kind].get(method, ABSENT)
    ]


# --- text


def render(family: str, rows: Rows) -> str:
    """The tables of a family, as Markdown."""
    blocks = []
    for table in FAMILIES[family]:
        columns = _columns(table, family, rows)
        keys = [(client, kind) for client in table.clients for kind in table.classes if (client, kind) in rows]
        if not columns or not keys:
            continue
        heading = [f"**{table.title}**"] if table.title else []
        lines = [f"| client | {' | '.join(f'`{name}`' for name in columns)} |", "|---" * (len(columns) + 1) + "|"]
        for client, kind in keys:
            cells = [rows[client, kind].get(name, ABSENT) for name in columns]
            lines.append(f"| {client}, `{kind}` | {' | '.join(cells)} |")
        blocks += [*heading, "\n".join(lines)]
    known = {client for client, _ in rows}
    reasons = [
        f"Not tried: {', '.join(f'`{name}`' for name in left.methods.split())}"
        + (f" of {', '.join(f'`{kind}`' for kind in left.classes)}" if left.classes else "")
        + f": {left.reason}."
        for left in LEFT_OUT
        if known & set(left.clients)
    ]
    return "\n\n".join([*blocks, *reasons])


def _columns(table: Table, family: str, rows: Rows) -> list[str]:
    there = {method for client in table.clients for kind in table.classes for method in rows.get((client, kind), {})}
    if table.methods:
        return [name for name in table.methods.split() if name in there]
    rivals = [other for other in FAMILIES[family] if (other.clients, other.classes) == (table.clients, table.classes)]
    elsewhere = {name for other in rivals for name in other.methods.split()}
    return sorted(there - elsewhere)


def parse(text: str) -> Rows:
    """The rows of a block."""
    rows: Rows = {}
    methods: list[str] = []
    for line in text.splitlines():
        cells = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("| client"):
            methods = [name.strip("`") for name in cells[1:]]
        elif line.startswith("| "):
            client, kind = cells[0].split(", ")
            row = rows.setdefault((client, kind.strip("`")), {})
            row.update({name: told for name, told in zip(methods, cells[1:], strict=True) if told != ABSENT})
    return rows


def block(family: str) -> str:
    """What the document tells."""
    found = _block(family).search(DOCUMENT.read_text())
    assert found is not None, f"{DOCUMENT} has no place for the tables of {family}"
    return found[2]


def write(family: str, text: str) -> None:
    DOCUMENT.write_text(_block(family).sub(lambda match: f"{match[1]}{text}{match[3]}", DOCUMENT.read_text()))


def _block(family: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- tables of {family} -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)


def clients(family: str) -> list[str]:
    return list(dict.fromkeys(client for table in FAMILIES[family] for client in table.clients))


def every(family: str, seen: Mapping[str, Surface]) -> Rows:
    """What a session saw of all the clients of a family."""
    rows: Rows = {}
    for client in clients(family):
        if client in seen:
            rows |= found(family, client, seen[client])
    return rows
