"""What WarmPools, Sandboxes and Tasks may hold, as the OpenAPI schemas of their CRDs: objects are held against these,
and kubectl is shown them."""

from __future__ import annotations

from typing import Any

VERSION = "v1alpha1"
Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
ANYTHING: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
TIME: Schema = {"type": "string", "format": "date-time"}
TEXTS: Schema = {"type": "object", "additionalProperties": STRING}
INT32: Schema = {"type": "integer", "format": "int32"}
COUNT: Schema = {**INT32, "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}


def _object(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    made: Schema = {"type": "object", "properties": properties}
    return made | ({"required": list(required)} if required else {})


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _told(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


CONDITION = _object(
    ("lastTransitionTime", "message", "reason", "status", "type"),
    type={"type": "string", "maxLength": 316},
    status={"type": "string", "enum": ["True", "False", "Unknown"]},
    reason={"type": "string", "minLength": 1, "maxLength": 1024},
    message={"type": "string", "maxLength": 32768},
    lastTransitionTime=TIME,
    observedGeneration={"type": "integer", "format": "int64", "minimum": 0},
)
CONDITIONS = _array(CONDITION)

_NAMED = {"x-kubernetes-preserve-unknown-fields": True}
CONTAINER = {
    **_object(
        ("name",),
        name=STRING,
        image=STRING,
        command=_array(STRING),
        args=_array(STRING),
        workingDir=STRING,
        env=_array(_object(("name",), name=STRING, value=STRING) | _NAMED),
        volumeMounts=_array(_object(("mountPath", "name"), name=STRING, mountPath=STRING) | _NAMED),
        resources=_object(limits=ANYTHING, requests=ANYTHING) | _NAMED,
    ),
    **_NAMED,
}
POD_TEMPLATE = _object(
    metadata=ANYTHING,
    spec=_object(
        ("containers",),
        containers=_array(CONTAINER),
        volumes=_array(_object(("name",), name=STRING) | _NAMED),
    )
    | _NAMED,
)
WARM_POOL = _object(
    spec=_object(
        ("replicas", "template"),
        replicas=_told(INT32, "How many VMs are kept booted ahead of demand, beside those that sandboxes have."),
        template=_told(POD_TEMPLATE, "Of the VMs: image, env, limits and mounts of the container `executor`."),
    ),
    status=_object(
        ("allocatedReplicas", "readyReplicas"),
        readyReplicas=_told(INT32, "VMs that wait, booted."),
        allocatedReplicas=_told(INT32, "VMs that sandboxes have."),
        conditions=CONDITIONS,
    ),
)
SANDBOX = _object(
    spec=_object(
        ("poolRef",),
        poolRef=_told(STRING, "The WarmPool that its VM is taken from."),
        keepAlive=_told(BOOLEAN, "Without it the sandbox goes some time after its last Task has ended."),
        resources=_told(ANYTHING, "Ignored: the pool says what its VMs have."),
        idleTimeoutSeconds=_told(COUNT, "Seconds without a Task after which it goes; 600 unless given, 0: never."),
        maxLifetimeSeconds=_told(COUNT, "Seconds after which it goes in any case; 3600 unless given, 0: never."),
    ),
    status=_object(
        phase=_told(STRING, "Pending, Bound, Ready or Failed."),
        podName=STRING,
        podIP=STRING,
        workDir=STRING,
        lastTaskTime=TIME,
        conditions=CONDITIONS,
    ),
)
STEP = _object(
    ("name", "type"),
    name=STRING,
    type=_told(STRING, "Command or FilePatch."),
    command=_told(_array(STRING), "Program and arguments; no shell."),
    workDir=STRING,
    env=TEXTS,
    container=_told(STRING, "Every command runs in the one VM that there is."),
    path=STRING,
    content=_told(STRING, "All that the file is to hold."),
)
TASK = _object(
    spec=_object(
        ("sandboxRef", "steps"),
        sandboxRef=STRING,
        steps=_told(_array(STEP), "In this order, up to the first that fails."),
        timeout=_told(STRING, "Of each command: 30s, 5m, 1h30m; 30s unless given."),
        retries={**INT32, "minimum": 0, "maximum": 10, "description": "Not used."},
        ttlSecondsAfterFinished=_told(COUNT, "Seconds after its end after which it goes; 3600 unless given."),
        traceID=STRING,
    ),
    status=_object(
        state=_told(STRING, "Pending, Running, Succeeded or Failed."),
        exitCode=_told(INT32, "Of the last command; -1: it was killed after its timeout."),
        stdout=STRING,
        stderr=STRING,
        duration=STRING,
        startTime=TIME,
        completionTime=TIME,
        conditions=CONDITIONS,
    ),
)


def whole(schema: Schema, description: str) -> Schema:
    """With what every object has."""
    properties = {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": {"type": "object"},
        **schema["properties"],
    }
    return {"type": "object", "description": description, "properties": properties}
