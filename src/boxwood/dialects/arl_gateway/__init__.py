"""The protocol of ARL's gateway, below /arl: what its published clients 0.2 to 0.27 ask for, translated to the core.

A session is a VM and a record; its steps are kept with it, and a snapshot of the VM after each. What this protocol has
and the core has not is refused with a text that says so.
"""

from __future__ import annotations

from functools import partial

from boxwood.dialects.arl_gateway import execute, files, managed, pools, rewind, service, sessions, shell, telling
from boxwood.dialects.arl_gateway.envelope import BODY_LIMIT, refusal
from boxwood.dialects.arl_gateway.gateway import start
from boxwood.server.dialect import Dialect
from boxwood.server.exchange import Operation

HEAD = "arl"
_operation = partial(Operation, prefixes=(f"/{HEAD}",), ours=True, body_limit=BODY_LIMIT)
_SESSIONS = "/v1/sessions"
_ONE = f"{_SESSIONS}/{{id}}"
_POOL = "/v1/pools/{name}"
_EXPERIMENT = "/v1/managed/experiments/{experiment}"

OPERATIONS = (
    _operation("arlHealth", "GET", "/healthz", service.health, "Is the server ready?", access="public"),
    _operation("arlCreate", "POST", _SESSIONS, sessions.create, "Make a session."),
    _operation("arlList", "GET", _SESSIONS, sessions.list_all, "List sessions."),
    _operation("arlGet", "GET", _ONE, sessions.get, "One session."),
    _operation("arlDelete", "DELETE", _ONE, sessions.delete, "End a session."),
    _operation("arlExecute", "POST", f"{_ONE}/execute", execute.execute, "Do steps in a session."),
    _operation("arlOperation", "GET", f"{_ONE}/operations/{{operation}}", execute.operation, "What became of it."),
    _operation("arlUpload", "POST", f"{_ONE}/upload-file", files.upload, "Write a file."),
    _operation("arlDownload", "POST", f"{_ONE}/download-file", files.download, "Read a file."),
    _operation("arlFile", "POST", f"{_ONE}/files", files.write, "Write a file, as older clients do."),
    _operation("arlPutFile", "PUT", f"{_ONE}/files/{{path}}", files.put, "Write a file, as older ones do.", tail=True),
    _operation("arlGetFile", "GET", f"{_ONE}/files/{{path}}", files.get, "Read a file, as older ones do.", tail=True),
    _operation("arlRestore", "POST", f"{_ONE}/restore", rewind.restore, "Go back to a step."),
    _operation("arlReplay", "POST", f"{_ONE}/replay", rewind.replay, "Do another session's steps."),
    _operation("arlFork", "POST", f"{_ONE}/fork", rewind.fork_session, "Another session, from a step of this one."),
    _operation("arlHistory", "GET", f"{_ONE}/history", telling.history, "All steps."),
    _operation("arlTrajectory", "GET", f"{_ONE}/trajectory", telling.trajectory, "All steps, a line for each."),
    _operation("arlLogs", "GET", f"{_ONE}/logs", telling.logs, "What has happened."),
    _operation("arlShell", "GET", f"{_ONE}/shell", shell.shell, "A shell in a session: a WebSocket.", websocket=True),
    _operation("arlSuspend", "POST", f"{_ONE}/suspend", sessions.suspend, "End what runs; the files stay."),
    _operation("arlResume", "POST", f"{_ONE}/resume", sessions.resume, "Let it run again."),
    _operation("arlNetwork", "PATCH", f"{_ONE}/network-policy", sessions.network_policy, "The internet, or nothing."),
    _operation("arlIroh", "GET", f"{_ONE}/iroh-addr", service.iroh_address, "No address."),
    _operation("arlSummary", "GET", "/v1/summary", managed.summary, "How many there are of each."),
    _operation("arlPools", "GET", "/v1/pools", pools.list_all, "List pools."),
    _operation("arlCreatePool", "POST", "/v1/pools", pools.create, "Make a pool."),
    _operation("arlPool", "GET", _POOL, pools.get, "One pool."),
    _operation("arlScalePool", "PATCH", _POOL, pools.scale, "Let it have more or fewer."),
    _operation("arlDrainPool", "DELETE", _POOL, pools.drain, "End its sessions and stop it."),
    _operation("arlDestroyPool", "POST", f"{_POOL}/destroy", pools.destroy, "… and remove it."),
    _operation("arlPrefetch", "POST", f"{_POOL}/prefetch", pools.prefetch, "Have its image here."),
    _operation("arlPoolLogs", "GET", f"{_POOL}/logs", pools.logs, "How it is."),
    _operation("arlManaged", "POST", "/v1/managed/sessions", managed.create, "A session of an experiment."),
    _operation("arlExperiments", "GET", "/v1/managed/experiments", managed.experiments, "List experiments."),
    _operation("arlExperiment", "GET", f"{_EXPERIMENT}/sessions", managed.sessions, "The sessions of one."),
    _operation("arlEndExperiment", "DELETE", _EXPERIMENT, managed.delete, "End all of them."),
)

_refused = partial(_operation, handler=service.not_supported, refused=True)
_NOT_SUPPORTED = (
    _refused("arlTunnel", "GET", f"{_ONE}/tunnel/{{port}}", summary="tunnels are"),
    _refused("arlStdin", "POST", f"{_ONE}/stdin", summary="input for running steps is"),
    _refused("arlContainer", "POST", f"{_ONE}/containers/{{name}}/execute", summary="private containers are"),
    _refused("arlBuild", "POST", "/v1/build", summary="building images is"),
)

DIALECT = Dialect("arl-gateway", frozenset({HEAD}), (*OPERATIONS, *_NOT_SUPPORTED), refusal, start)
