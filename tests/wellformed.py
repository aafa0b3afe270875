"""Requests that servers take: what each operation's body says, for tests that ask for all of them."""

from __future__ import annotations

from typing import Any

from kube import pool_spec

STEPS = {"steps": [{"name": "s", "command": ["put", "/stolen", "1"]}]}
COMMAND = {"command": ["put", "/stolen", "1"]}
# What a request says, by its operation's name: enough to get past the first looks. VM stands for the victim's.
BODIES: dict[str, Any] = {
    "setSecret": {"value": "a secret"},
    "takeSnapshot": {"name": "mine"},
    "restoreVm": {"snapshot": "theirs"},
    "commitVm": {"into": "VM"},
    "fork": {"source_vm_id": "VM"}, "patchVm": {"name": "stolen"}, "createRun": {"command": "put /stolen 1", "background": True},
    "createSession": {}, "patchSession": {"cols": 81, "rows": 25}, "mintSessionPtyTicket": {}, "sync": {"op": "read", "path": "/secret"}, "legacyFork": {"name": "stolen"},
    "legacyRun": {"command": "put /stolen 1"}, "legacyForkByName": {"from": "VM", "name": "stolen-too"},
    "createWarmPool": {"name": "mine", "source_vm_id": "VM", "replicas": 0}, "patchWarmPool": {"replicas": 0},
    "claimWarmPool": {"name": "stolen"}, "createApiKey": {"name": "mine"},
    "makeDirectory": {"path": "/stolen"}, "chmodFile": {"path": "/secret", "mode": 0}, "moveFile": {"path": "/secret", "to": "/stolen"},
    "removeFile": {"path": "/stolen", "recursive": True}, "searchFiles": {"path": "/", "pattern": "of-the-victim"},
    "createFilesystem": {"name": "mine"}, "createMount": {"filesystem_id": "NAME"}, "createSync": {"filesystem_id": "NAME"},
    "importImage": {"name": "mine", "path": "/nowhere"}, "down": {},
    "akRun": COMMAND, "akRunStream": COMMAND, "akBatchRun": {"commands": [COMMAND]}, "akCreate": {"name": "mine"},
    "akExec": COMMAND, "akDetach": COMMAND, "akWriteFiles": {"files": {"/stolen": "x"}}, "akWriteFile": {"content": "x"},
    "akExtend": {"by": "1h"},
    "arlCreate": {"poolRef": "NAME"}, "arlExecute": STEPS, "arlFile": {"path": "stolen", "content": "x"},
    "arlDownload": {"path": "secret"}, "arlRestore": {"snapshotID": "0"}, "arlReplay": {"sourceSessionID": "VM"},
    "arlFork": {"step": 0}, "arlNetwork": {"allowInternet": False}, "arlScalePool": {"replicas": 0},
    "arlCreatePool": {"name": "mine", "image": "ubuntu", "replicas": 0}, "arlPrefetch": {},
    "arlManaged": {"image": "ubuntu", "experimentId": "theirs"},
}  # fmt: skip
KUBERNETES = {
    "warmpools": {"metadata": {"name": "theirs"}, "spec": pool_spec(0)},
    "sandboxes": {"metadata": {"name": "theirs"}, "spec": {"poolRef": "theirs"}},
    "tasks": {"metadata": {"name": "theirs"}, "spec": {"sandboxRef": "theirs", "steps": []}},
}

# What more each may say.
_SIZES = {"vcpu": 1, "memory_mib": 256, "disk_mib": 1024}
_DETACHED = {"env": ["A=b"], "workdir": "/tmp", "user": "root"}
MORE: dict[str, Any] = {
    "fork": {
        "name": "another", "description": "d", "public": False, "resources": _SIZES, "network": "none", "command": "echo",
        "queueing_timeout": 1, "layers": ["disk"],
    },
    "patchVm": {"description": "d", "resources": _SIZES, "immutable": False},
    "createRun": {
        "env": {"A": "b"}, "cwd": "/tmp", "user": "root", "stdin": "x", "stdin_encoding": "utf-8", "timeout": 5, "session_idx": 0,
        "end_symbol": "auto", "queueing_timeout": 1,
    },
    "createSession": {"env": {"A": "b"}, "cwd": "/tmp", "cols": 80}, "makeDirectory": {"parents": True, "mode": 0o700},
    "moveFile": {"replace": True}, "searchFiles": {"literal": True, "include": ["*"], "engine": "builtin", "seconds": 1},
    "createWarmPool": {"namespace": "n", "resources": _SIZES, "network": "none", "labels": {"a": "b"}},
    "claimWarmPool": {"description": "d", "labels": {"a": "b"}, "ttl": 60}, "patchWarmPool": {"labels": {"a": "b"}},
    "createFilesystem": {"size_mib": 64}, "createMount": {"path": "/volume", "read_only": True}, "createSync": {"path": "/volume"},
    "legacyRun": {"session_id": 0, "timeout": 5},
    "akCreate": {
        "image": "alpine:3.20", "vcpus": 1, "memory_mb": 256, "profile": "moderate", "network": True, "labels": {"a": "b"},
        "description": "d",
    },
    "akExec": _DETACHED, "akDetach": _DETACHED, "akRun": {"image": "alpine:3.20", "profile": "moderate", "fast": True},
    "akRunStream": {"image": "alpine:3.20", "profile": "moderate"},
    "arlCreate": {
        "image": "ubuntu", "profile": "p", "namespace": "default", "mode": "devbox", "idleTimeoutSeconds": 60,
        "devbox": {"ports": [{"port": 80, "name": "a", "protocol": "tcp"}], "gitConfig": {"name": "n", "email": "e"}},
        "configEnv": {"vars": {"A": "b"}, "envVars": [{"name": "A", "value": "b"}]}, "allowInternet": False, "experimentId": "e",
    },
    "arlExecute": {
        "steps": [{"name": "s", "command": ["echo"], "env": {"A": "b"}, "workDir": "/tmp", "timeoutSeconds": 5}],
        "traceID": "t", "operationID": "another",
    },
    "arlFile": {"encoding": "base64"}, "arlRestore": {"operationID": "o"}, "arlReplay": {"upToStep": 0, "operationID": "o"},
    "arlFork": {"image": "ubuntu", "profile": "p"},
    "arlCreatePool": {"profile": "p", "namespace": "default", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}},
    "arlManaged": {"profile": "p", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "idleTimeoutSeconds": 60},
}  # fmt: skip
