"""agentkernel's protocol, at the root: what its published clients 0.4 to 0.21 ask for, translated to the core.

Sandboxes are VMs of the caller's organisation, known by name. What this protocol has and the core has not is refused
with a text that says so.
"""

from __future__ import annotations

from functools import partial

from boxwood.dialects.agentkernel import execs, files, runs, sandboxes, service, stream
from boxwood.dialects.agentkernel.envelope import BODY_LIMIT, refusal
from boxwood.server.dialect import Dialect
from boxwood.server.exchange import Operation

_operation = partial(Operation, prefixes=("",), ours=True, body_limit=BODY_LIMIT)
_ONE = "/sandboxes/{name}"
_DETACHED = f"{_ONE}/exec/detached"

OPERATIONS = (
    _operation("akHealth", "GET", "/health", service.health, "Is the server ready?", access="public"),
    _operation("akBackends", "GET", "/backends", service.backends, "What sandboxes are made with."),
    _operation("akRun", "POST", "/run", runs.run, "Run a command in a sandbox of its own."),
    _operation("akRunStream", "POST", "/run/stream", stream.run_stream, "… and hear of its output while it comes."),
    _operation("akBatchRun", "POST", "/batch/run", runs.batch, "Run several commands, each in a sandbox of its own."),
    _operation("akList", "GET", "/sandboxes", sandboxes.list_all, "List sandboxes."),
    _operation("akCreate", "POST", "/sandboxes", sandboxes.create, "Make a sandbox and boot it."),
    _operation("akGetByUuid", "GET", "/sandboxes/by-uuid/{uuid}", sandboxes.get_by_uuid, "One sandbox."),
    _operation("akGet", "GET", _ONE, sandboxes.get, "One sandbox."),
    _operation("akDelete", "DELETE", _ONE, sandboxes.delete, "Remove a sandbox."),
    _operation("akStart", "POST", f"{_ONE}/start", sandboxes.start, "Start a sandbox."),
    _operation("akStop", "POST", f"{_ONE}/stop", sandboxes.stop, "End what runs in a sandbox; its files stay."),
    _operation("akExtend", "POST", f"{_ONE}/extend", sandboxes.extend, "Let a sandbox live longer."),
    _operation("akLogs", "GET", f"{_ONE}/logs", execs.logs, "What is on record of a sandbox."),
    _operation("akExec", "POST", f"{_ONE}/exec", execs.execute, "Run a command in a sandbox."),
    _operation("akDetach", "POST", f"{_ONE}/exec/detach", execs.detach, "Start a command in a sandbox."),
    _operation("akDetachedList", "GET", _DETACHED, execs.list_detached, "The commands that were started so."),
    _operation("akDetachedStatus", "GET", f"{_DETACHED}/{{id}}", execs.detached_status, "One of them."),
    _operation("akDetachedLogs", "GET", f"{_DETACHED}/{{id}}/logs", execs.detached_logs, "Its output so far."),
    _operation("akDetachedKill", "DELETE", f"{_DETACHED}/{{id}}", execs.detached_kill, "End it."),
    _operation("akWriteFiles", "POST", f"{_ONE}/files", files.write_many, "Write several files."),
    _operation("akReadFile", "GET", f"{_ONE}/files/{{path}}", files.read, "Read a file.", tail=True),
    _operation("akWriteFile", "PUT", f"{_ONE}/files/{{path}}", files.write, "Write a file.", tail=True),
    _operation("akDeleteFile", "DELETE", f"{_ONE}/files/{{path}}", files.delete, "Remove a file.", tail=True),
)

# What this protocol has at paths of its own and this server has not: whoever asks is told what it is.
_LATER = {
    "snapshots": "snapshots",
    "orchestrations": "orchestrations",
    "objects": "durable objects",
    "schedules": "schedules",
    "stores": "durable stores",
}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_NOT_SUPPORTED = (
    *(
        _operation(f"ak{method}{head}", method, f"/{head}/{{rest}}", service.not_supported, what,
                   refused=True, tail=True)
        for head, what in _LATER.items()
        for method in _METHODS
    ),
    _operation("akResize", "POST", f"{_ONE}/resize", service.not_supported, "other sizes", refused=True),
    _operation("akRecover", "POST", f"{_ONE}/recover", service.not_supported, "recoveries", refused=True),
    _operation("akPatch", "PATCH", _ONE, service.not_supported, "changes of a sandbox", refused=True),
    *(
        _operation(f"ak{method}Browser", method, f"{_ONE}/browser/{{rest}}", service.not_supported, "browsers",
                   refused=True, tail=True)
        for method in _METHODS
    ),
)  # fmt: skip

HEADS = frozenset({"health", "backends", "run", "batch", "sandboxes", *_LATER})
DIALECT = Dialect("agentkernel", HEADS, (*OPERATIONS, *_NOT_SUPPORTED), refusal)
