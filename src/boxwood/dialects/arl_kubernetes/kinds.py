"""The three kinds, as kubectl and the CRDs know them."""

from __future__ import annotations

from boxwood.core.changes import POOL
from boxwood.dialects.arl_kubernetes import schemas, tables
from boxwood.dialects.arl_kubernetes.objects import Column, Kind, Object, is_label, is_subdomain

SANDBOX_RECORD, TASK_RECORD = "arl.sandbox", "arl.task"


def _status(member: str, name: str, type_: str, description: str) -> Column:
    def value(item: Object) -> object:
        return item.get("status", {}).get(member)

    return Column(name, type_, description, f".status.{member}", value)


WARM_POOL = Kind(
    "WarmPool", "warmpools", "warmpool", schemas.WARM_POOL, "VMs that are booted ahead of demand.", POOL, is_label,
    (tables.AGE,),
)  # fmt: skip
SANDBOX = Kind(
    "Sandbox", "sandboxes", "sandbox", schemas.SANDBOX, "A VM that was taken from a WarmPool.", SANDBOX_RECORD,
    is_subdomain,
    (_status("phase", "Phase", "string", "How far it is."), _status("podName", "Pod", "string", "Its VM's name."),
     tables.AGE),
)  # fmt: skip
TASK = Kind(
    "Task", "tasks", "task", schemas.TASK, "Steps that are done in a Sandbox, one after the other.", TASK_RECORD,
    is_subdomain,
    (_status("state", "State", "string", "How far it is."), _status("exitCode", "ExitCode", "integer", "Of the last."),
     tables.AGE),
)  # fmt: skip
KINDS = (WARM_POOL, SANDBOX, TASK)
