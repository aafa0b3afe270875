"""`Status` objects: how a kube-apiserver says no, and that something is gone. The reasons are Kubernetes' own words;
the Python client shows its users the phrase of the HTTP status, kubectl shows `message`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from boxwood.core.errors import CoreError
from boxwood.server.errors import MethodNotAllowed, NoSuchRoute, headers_of
from boxwood.server.exchange import JSON, Exchange, encode

GROUP = "arl.infra.io"
# How the core's refusals are told: status and reason.
_REASONS = {
    "bad_request": (400, "BadRequest"),
    "unauthorized": (401, "Unauthorized"),
    "forbidden": (403, "Forbidden"),
    "not_found": (404, "NotFound"),
    "method_not_allowed": (405, "MethodNotAllowed"),
    "conflict": (409, "Conflict"),
    "resource_busy": (409, "Conflict"),
    "invalid_state": (409, "Conflict"),
    "already_exists": (409, "AlreadyExists"),
    "expired": (410, "Expired"),
    "payload_too_large": (413, "RequestEntityTooLarge"),
    "insufficient_resources": (422, "Invalid"),
    "unsupported_operation": (501, "NotImplemented"),
    "rate_limited": (429, "TooManyRequests"),
    "capacity_unavailable": (503, "ServiceUnavailable"),
    "unavailable": (503, "ServiceUnavailable"),
}


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that is wrong with an object. `reason`: FieldValueRequired, FieldValueInvalid, …"""

    reason: str
    field: str
    message: str

    @classmethod
    def required(cls, field: str, more: str = "") -> Cause:
        return cls("FieldValueRequired", field, "Required value" + (f": {more}" if more else ""))

    @classmethod
    def invalid(cls, field: str, value: Any, why: str) -> Cause:
        return cls("FieldValueInvalid", field, f"Invalid value: {brief(value)}: {why}")

    @classmethod
    def forbidden(cls, field: str, why: str) -> Cause:
        return cls("FieldValueForbidden", field, f"Forbidden: {why}")


class Refused(CoreError):
    """A refusal of this protocol's own, with its HTTP status and its reason."""

    code = "bad_request"  # for the server's log alone

    def __init__(self, status: int, reason: str, message: str, about: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.about = about


def not_found(resource: str, name: str, group: str = GROUP) -> Refused:
    about = _about(name, resource, group)
    return Refused(404, "NotFound", f'{_qualified(resource, group)} "{name}" not found', about)


def already_exists(resource: str, name: str) -> Refused:
    about = _about(name, resource, GROUP)
    return Refused(409, "AlreadyExists", f'{_qualified(resource, GROUP)} "{name}" already exists', about)


def conflict(resource: str, name: str, why: str) -> Refused:
    text = f'Operation cannot be fulfilled on {_qualified(resource, GROUP)} "{name}": {why}'
    return Refused(409, "Conflict", text, _about(name, resource, GROUP))


def invalid(kind: str, name: str, causes: Sequence[Cause]) -> Refused:
    """At least one cause."""
    told = [f"{cause.field}: {cause.message}" for cause in causes]
    text = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    shown = [{"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes]
    about = {"name": name, "group": GROUP, "kind": kind, "causes": shown}
    return Refused(422, "Invalid", f'{kind}.{GROUP} "{name}" is invalid: {text}', about)


def bad_request(message: str) -> Refused:
    return Refused(400, "BadRequest", message)


def unsupported_media(message: str) -> Refused:
    return Refused(415, "UnsupportedMediaType", message)


def failure(error: CoreError) -> dict[str, Any]:
    """The Status that tells of it."""
    code, reason = status_of(error)
    body: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": _message(error),
        "reason": reason,
    }
    about = error.about if isinstance(error, Refused) else {}
    if error.retry_after is not None:
        about = {**(about or {}), "retryAfterSeconds": error.retry_after}
    if about:
        body["details"] = about
    return body | {"code": code}


def status_of(error: CoreError) -> tuple[int, str]:
    if isinstance(error, Refused):
        return error.status, error.reason
    return _REASONS.get(error.code, (500, "InternalError"))


def refusal(exchange: Exchange, error: CoreError) -> Response:
    """What a request is answered that is refused."""
    return Response(encode(failure(error)), status_of(error)[0], headers_of(error), media_type=JSON)


def success(resource: str, name: str, uid: str) -> dict[str, Any]:
    """What is told of an object that was deleted."""
    about = {"name": name, "group": GROUP, "kind": resource, "uid": uid}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": about}


def brief(value: Any) -> str:
    """A value of the caller's, as JSON that is not too long."""
    try:
        text = encode(value).decode()
    except (TypeError, ValueError):
        text = "?"
    return text if len(text) <= 200 else text[:200] + "…"


def _message(error: CoreError) -> str:
    if isinstance(error, NoSuchRoute):
        return "the server could not find the requested resource"
    if isinstance(error, MethodNotAllowed):
        return "the server does not allow this method on the requested resource"
    if error.code == "unauthorized":
        return f"Unauthorized: {error.message}"
    return error.message or error.code


def _about(name: str, resource: str, group: str) -> dict[str, Any]:
    return {"name": name, "group": group, "kind": resource} if group else {"name": name, "kind": resource}


def _qualified(resource: str, group: str) -> str:
    return f"{resource}.{group}" if group else resource
