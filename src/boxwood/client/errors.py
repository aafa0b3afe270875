"""Every way in which the SDK says no.

BoxwoodError                     code, message, status, request_id, details, recovery, retry_after
├── BadRequest                   the request is wrong; the message says what and `violations` where
├── Unauthorized                 no API key, or one that the server does not know
├── Forbidden                    the key may not do this
├── NotFound                     no such thing, or not yours
│   └── FileMissing              no such file in the VM (also FileNotFoundError)
├── Expired                      an upload that was not finished in time
├── Conflict                     the thing is in a state that does not allow it
│   ├── AlreadyExists            the name is taken
│   ├── ResourceBusy             wait for the running work
│   ├── InvalidState             it would have to be running, mutable, …
│   └── IdempotencyConflict      the idempotency key was used for another request
├── PayloadTooLarge              more than the server takes at once
├── Unsupported                  a feature that this server or host does not have; the message names it
├── OperationFailed              it was started and failed
├── Unrecoverable                proven loss of what was stored
├── RateLimited                  slower, or less at once
├── Unavailable                  not now: no capacity, starting, stopping
├── ServerError                  the server's own fault, or an answer that is not in the contract
├── Timeout                      it did not end in the time given (also TimeoutError)
├── ConnectionFailed             no server there, or the connection broke (also ConnectionError)
└── CommandFailed                `run(check=True)` and the command did not exit with 0; `run` has its output
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

__all__ = [
    "AlreadyExists",
    "BadRequest",
    "BoxwoodError",
    "CommandFailed",
    "Conflict",
    "ConnectionFailed",
    "Expired",
    "FileMissing",
    "Forbidden",
    "IdempotencyConflict",
    "InvalidState",
    "NotFound",
    "OperationFailed",
    "PayloadTooLarge",
    "RateLimited",
    "ResourceBusy",
    "ServerError",
    "Timeout",
    "Unauthorized",
    "Unavailable",
    "Unrecoverable",
    "Unsupported",
]


class BoxwoodError(Exception):
    """Something went wrong. `code` is stable and made for programs, `message` is made for people.

    `status` is the HTTP status, 0 if there was no answer. `request_id` finds the request in the server's log.
    `recovery["work"]`, where the server knows it, tells what became of the work: "not_started", "stopped",
    "continuing" or "unknown". `retry_after` is in seconds.
    """

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 0,
        request_id: str | None = None,
        details: Mapping[str, Any] | None = None,
        *,
        recovery: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.request_id = request_id
        self.details: dict[str, Any] = dict(details or {})
        self.recovery: dict[str, Any] = dict(recovery or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code!r}, {self.message!r}, status={self.status})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message, self.status, self.request_id, self.details), self.__dict__


class BadRequest(BoxwoodError):
    """The request is wrong; the message says what."""

    @property
    def violations(self) -> list[tuple[str, str]]:
        """(field, what is wrong with it) for every field that the server complained about."""
        found = self.details.get("violations")
        shown = found if isinstance(found, list) else []
        return [(str(item.get("field")), str(item.get("message"))) for item in shown if isinstance(item, dict)]


class Unauthorized(BoxwoodError):
    """No API key, or one that the server does not know."""


class Forbidden(BoxwoodError):
    """The key may not do this."""


class NotFound(BoxwoodError):
    """No such thing, or not yours: the server does not tell which. `resource` names the kind."""

    @property
    def resource(self) -> str | None:
        return _kind(self.details)


class FileMissing(NotFound, FileNotFoundError):
    """No such file in the VM."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.errno = errno.ENOENT


class Expired(BoxwoodError):
    """An upload that was not finished in time."""


class Conflict(BoxwoodError):
    """The thing is in a state that does not allow it. `resource` names the kind."""

    @property
    def resource(self) -> str | None:
        return _kind(self.details)


class AlreadyExists(Conflict):
    """The name is taken."""


class ResourceBusy(Conflict):
    """Wait for the running work."""


class InvalidState(Conflict):
    """It would have to be running, mutable, …: `details["requirement"]`."""


class IdempotencyConflict(Conflict):
    """The idempotency key was used for another request."""


class PayloadTooLarge(BoxwoodError):
    """More than the server takes at once."""


class Unsupported(BoxwoodError):
    """A feature that this server or its host does not have; the message names it."""


class OperationFailed(BoxwoodError):
    """It was started and failed."""


class Unrecoverable(BoxwoodError):
    """Proven loss of what was stored."""


class RateLimited(BoxwoodError):
    """Slower, or less at once."""


class Unavailable(BoxwoodError):
    """Not now: no capacity, or the server is starting or stopping."""


class ServerError(BoxwoodError):
    """The server's own fault, or an answer that is not in the contract."""


class Timeout(BoxwoodError, TimeoutError):
    """It did not end in the time given. What became of it is not known, save where the message says so."""


class ConnectionFailed(BoxwoodError, ConnectionError):
    """No server there, or the connection broke before the answer."""


class CommandFailed(BoxwoodError):
    """A command did not exit with 0 and `check` was set. `run` is the run, with its output."""

    def __init__(self, run: Any) -> None:
        code = "none" if run.exit_code is None else run.exit_code
        why = f" ({run.fail_reason})" if run.fail_reason else ""
        tail = run.stderr.strip()[-400:]
        super().__init__("command_failed", f"command failed with exit code {code}{why}" + (f": {tail}" if tail else ""))
        self.run = run

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run,)


def _kind(details: Mapping[str, Any]) -> str | None:
    about = details.get("resource")
    kind = about.get("kind") if isinstance(about, dict) else about
    return kind if isinstance(kind, str) else None


BY_CODE: dict[str, type[BoxwoodError]] = {
    "bad_request": BadRequest,
    "insufficient_resources": BadRequest,
    "unauthorized": Unauthorized,
    "payment_required": Forbidden,
    "forbidden": Forbidden,
    "action_required": Forbidden,
    "not_found": NotFound,
    "method_not_allowed": Unsupported,
    "conflict": Conflict,
    "resource_busy": ResourceBusy,
    "already_exists": AlreadyExists,
    "invalid_state": InvalidState,
    "idempotency_conflict": IdempotencyConflict,
    "expired": Expired,
    "payload_too_large": PayloadTooLarge,
    "unsupported_operation": Unsupported,
    "unrecoverable": Unrecoverable,
    "operation_failed": OperationFailed,
    "rate_limited": RateLimited,
    "quota_exceeded": RateLimited,
    "internal": ServerError,
    "capacity_unavailable": Unavailable,
    "unavailable": Unavailable,
    "gateway_timeout": Unavailable,
}


def error_from(body: Mapping[str, Any], status: int) -> BoxwoodError:
    """The exception for an error object of the contract (a whole error body's `error`, or a file's own)."""
    code = str(body.get("code") or "internal")
    details = body.get("details")
    recovery = body.get("recovery")
    hint = body.get("retry_after_seconds")
    found = details if isinstance(details, dict) else {}
    kind = BY_CODE.get(code, ServerError if status >= 500 else BoxwoodError)
    if kind is NotFound and _kind(found) == "file":
        kind = FileMissing
    return kind(
        code,
        str(body.get("message") or code),
        status,
        str(body["request_id"]) if body.get("request_id") else None,
        found,
        recovery=recovery if isinstance(recovery, dict) else None,
        retry_after=hint if isinstance(hint, int | float) and not isinstance(hint, bool) and hint >= 0 else None,
    )
