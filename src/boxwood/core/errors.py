"""Every way in which the core says no. The server turns them into the error body of the contract (wire 2.3).

CoreError                      code, message, details, recovery, retry_after
├── BadRequest                 the request is wrong; `violations` names the fields
├── Unauthorized / Forbidden   no key, or a key that may not
├── NotFound                   no such thing, or not yours: the text does not tell which
├── AlreadyExists              the name is taken
├── Conflict / ResourceBusy    the thing is in a state that does not allow it / wait for the running work
├── Collisions                 a Conflict that names the paths which two VMs have both changed
├── InvalidState               needs to be running, mutable, …
├── IdempotencyConflict        the key was used for another request
├── PayloadTooLarge            `maximum_bytes`
├── QuotaExceeded              there may be no more of these at once
├── InsufficientResources      too little was asked for: `resource` and, where known, the minimum
├── Unsupported                a member or feature that this server does not have: `feature` or the member's name
├── Unrecoverable              proven loss of what was stored
├── CapacityUnavailable        not now; nothing was started
├── NotListening               the VM is there, but nothing answers on its port
├── Unavailable                the server is starting or stopping; nothing was started
└── Internal                   our fault
"""

from __future__ import annotations

from typing import Any, Literal

Resource = Literal[
    "vm",
    "source",
    "run",
    "session",
    "filesystem",
    "mount",
    "file",
    "sync",
    "upload",
    "api_key",
    "ssh_key",
    "ssh_setup",
    "organization",
    "route",
    "billing",
    "correction_review",
    "webhook",
    "resource",
    "pool",
    "pool_name",
    "worker",
]
NOT_STARTED = {"work": "not_started"}


class CoreError(Exception):
    """`message` is safe to show to the caller and says how to put things right. `errno`: of the VM's kernel."""

    code = "internal"
    errno: int | None = None

    def __init__(
        self,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        recovery: dict[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.recovery = recovery
        self.retry_after = retry_after


class BadRequest(CoreError):
    code = "bad_request"

    def __init__(self, message: str, violations: list[tuple[str, str]] | None = None) -> None:
        shown = [{"field": name, "message": text} for name, text in violations or []]
        super().__init__(message, details={"violations": shown} if shown else None)


class Unauthorized(CoreError):
    code = "unauthorized"


class Forbidden(CoreError):
    code = "forbidden"


class _AboutResource(CoreError):
    def __init__(self, resource: Resource, message: str, **more: Any) -> None:
        super().__init__(message, details={"resource": resource}, **more)
        self.resource = resource


class NotFound(_AboutResource):
    code = "not_found"


class AlreadyExists(_AboutResource):
    code = "already_exists"


class Conflict(_AboutResource):
    code = "conflict"


class Collisions(CoreError):
    """Two VMs have changed the same paths, and not to the same. `paths`: some of them, if there are many."""

    code = "conflict"

    def __init__(self, message: str, paths: list[str]) -> None:
        super().__init__(message, details={"resource": "vm"})
        self.paths = paths


class ResourceBusy(_AboutResource):
    code = "resource_busy"


class Expired(_AboutResource):
    code = "expired"


class InvalidState(CoreError):
    code = "invalid_state"

    def __init__(self, resource: Resource, requirement: str, message: str, ident: str | None = None) -> None:
        about = {"kind": resource} if ident is None else {"kind": resource, "id": ident}
        super().__init__(message, details={"resource": about, "requirement": requirement})


class IdempotencyConflict(CoreError):
    code = "idempotency_conflict"


class PayloadTooLarge(CoreError):
    code = "payload_too_large"

    def __init__(self, message: str, maximum: int, size: int | None = None) -> None:
        details = {"maximum_bytes": maximum} | ({} if size is None else {"request_bytes": size})
        super().__init__(message, details=details)


class QuotaExceeded(CoreError):
    """Of `vm_id`, or without it of the organisation. `metric` and `unit` as the contract pairs them."""

    code = "quota_exceeded"

    def __init__(self, metric: str, unit: str, message: str, now: int, cap: int, vm_id: str | None = None) -> None:
        scope = {"kind": "organization"} if vm_id is None else {"kind": "vm", "vm_id": vm_id}
        details = {
            "limit": {"metric": metric, "unit": unit},
            "scope": scope,
            "enforcement": "worker_local",
            "measurements": {"kind": "measured", "current_usage": now, "cap": cap},
        }
        super().__init__(message, details=details, recovery=dict(NOT_STARTED))


class InsufficientResources(CoreError):
    """`resource`: cpu, memory or disk; `minimum` in vcpus or bytes."""

    code = "insufficient_resources"

    def __init__(self, message: str, resource: Literal["cpu", "memory", "disk"], minimum: int | None = None) -> None:
        details: dict[str, Any] = {"resource": resource}
        if minimum is not None:
            details["minimum"] = {"unit": "vcpus" if resource == "cpu" else "bytes", "value": minimum}
        super().__init__(message, details=details)


class Unsupported(CoreError):
    """`feature`: one of the contract's names (wire 2.3), or None for a member that has none."""

    code = "unsupported_operation"

    def __init__(self, message: str, feature: str | None = None) -> None:
        details: dict[str, Any] = {"reason": "feature_not_supported"}
        if feature is not None:
            details["feature"] = feature
        super().__init__(message, details=details)


class Unrecoverable(CoreError):
    code = "unrecoverable"

    def __init__(self, resource: Resource, ident: str, message: str) -> None:
        super().__init__(message, details={"resource": {"kind": resource, "id": ident}})


class CapacityUnavailable(CoreError):
    code = "capacity_unavailable"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message, details={"scope": "worker"}, recovery=dict(NOT_STARTED), retry_after=retry_after)


class Unavailable(CoreError):
    code = "unavailable"

    def __init__(self, message: str, *, not_started: bool = True, retry_after: int = 1) -> None:
        super().__init__(message, recovery=dict(NOT_STARTED) if not_started else None, retry_after=retry_after)


class NotListening(CoreError):
    """Nothing in the VM listens on the port, or what does takes no connections."""

    code = "unavailable"

    def __init__(self, port: int, message: str) -> None:
        super().__init__(message, retry_after=1)
        self.port = port


class Internal(CoreError):
    code = "internal"
