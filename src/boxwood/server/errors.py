"""The error body of the contract (wire 2.3), made of the core's refusals and of the few that only HTTP knows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from boxwood.core.errors import NOT_STARTED, Collisions, CoreError

STATUS = {
    "bad_request": 400,
    "insufficient_resources": 400,
    "unauthorized": 401,
    "payment_required": 402,
    "forbidden": 403,
    "action_required": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "resource_busy": 409,
    "already_exists": 409,
    "invalid_state": 409,
    "idempotency_conflict": 409,
    "expired": 410,
    "payload_too_large": 413,
    "unsupported_operation": 422,
    "unrecoverable": 422,
    "operation_failed": 422,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "internal": 500,
    "capacity_unavailable": 503,
    "unavailable": 503,
    "gateway_timeout": 504,
}
WITHOUT_DETAILS = frozenset(
    {"unauthorized", "payment_required", "forbidden", "idempotency_conflict", "internal", "unavailable"}
)
PER_FILE = frozenset({"bad_request", "not_found", "conflict", "payload_too_large", "unsupported_operation", "expired"})
FILE_RESOURCES = {"not_found": ("file", "upload"), "conflict": ("file", "upload"), "expired": ("upload",)}


class MethodNotAllowed(CoreError):
    code = "method_not_allowed"

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{method} is not allowed here", details={"allowed_methods": list(allowed)})
        self.allowed = allowed


class NoSuchRoute(CoreError):
    code = "not_found"

    def __init__(self) -> None:
        super().__init__("there is no such route; /openapi.json lists all", details={"resource": "route"})


class OperationFailed(CoreError):
    """Work was started and did not come to its end."""

    code = "operation_failed"

    def __init__(self, message: str, reason: str, recovery: dict[str, Any]) -> None:
        super().__init__(message, details={"reason": reason}, recovery=recovery)


class RateLimited(CoreError):
    """A key asks for more than it may. Nothing was started."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after: int) -> None:
        recovery = dict(NOT_STARTED)
        super().__init__(message, details={"limiter": "arker"}, recovery=recovery, retry_after=retry_after)


class Disconnected(Exception):
    """The client has gone: there is nobody to answer."""


def status_of(error: CoreError) -> int:
    return STATUS[error.code]


def body_of(error: CoreError, request_id: str, operation_id: str | None, method: str) -> dict[str, Any]:
    """`{"error": …}` as the contract wants it. `operation_id`: of the contract, None on every other route."""
    matched = {"kind": "matched", "operation_id": operation_id}
    body: dict[str, Any] = {
        "code": error.code,
        "message": error.message or error.code,
        "timestamp": datetime.now(UTC),
        "request_id": request_id,
        "request": matched if operation_id is not None else {"kind": "unmatched", "method": method},
    }
    if error.details is not None and error.code not in WITHOUT_DETAILS:
        body["details"] = error.details
    if error.retry_after is not None:
        body["retry_after_seconds"] = error.retry_after
    if error.recovery is not None:
        body["recovery"] = error.recovery
    if isinstance(error, Collisions):  # beside the error: the contract has closed its details
        return {"error": body, "collisions": error.paths}
    return {"error": body}


def headers_of(error: CoreError) -> dict[str, str]:
    headers = {}
    if error.code == "unauthorized":
        headers["www-authenticate"] = 'Bearer realm="boxwood"'
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    return headers


def per_file(error: CoreError) -> dict[str, Any] | None:
    """Code, message and details of a write that failed on its own; None: it is the whole request that failed."""
    details = error.details or {}
    if error.code in ("capacity_unavailable", "resource_busy"):
        return {"code": "unavailable", "message": error.message}
    if error.code not in PER_FILE:
        return None
    if error.code in FILE_RESOURCES and details.get("resource") not in FILE_RESOURCES[error.code]:
        return None
    shown = {"code": error.code, "message": error.message or error.code}
    return shown | ({"details": details} if details else {})
