"""The one exception of this face, and how the client's become it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boxwood.client.errors import BoxwoodError

# What the first generation documents as stable, for the codes of the contract that say it more finely.
CODES = {
    "action_required": "forbidden",
    "already_exists": "conflict",
    "bad_answer": "internal",
    "connection_lost": "unavailable",
    "idempotency_conflict": "conflict",
    "insufficient_resources": "bad_request",
    "invalid_state": "conflict",
    "method_not_allowed": "not_implemented",
    "no_server": "unavailable",
    "not_connected": "unavailable",
    "operation_failed": "internal",
    "resource_busy": "vm_busy",
    "unrecoverable": "internal",
}
UNSENT = {"bad_request": 400, "unauthorized": 401}  # what the client refuses has the status that the server would give


class ArkerError(Exception):
    """Everything that goes wrong. `code` is stable and for programs, `message` for people, `status` is that of HTTP,
    0 where there was no answer. `__cause__` is the client's own exception, which tells more.

    Codes: bad_request, unauthorized, payment_required, forbidden, not_found, conflict, payload_too_large, internal,
    not_implemented, vm_busy, unsupported_operation; and rate_limited, quota_exceeded, unavailable,
    capacity_unavailable, gateway_timeout, timeout, expired for what may be tried again or differently.
    """

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status

    def __repr__(self) -> str:
        return f"ArkerError({self.code!r}, {self.message!r}, {self.status})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message, self.status)


@contextmanager
def translated() -> Iterator[None]:
    """Around every use of the client. :raises ArkerError: instead of its exceptions."""
    try:
        yield
    except BoxwoodError as error:
        status = error.status or UNSENT.get(error.code, 0)
        raise ArkerError(CODES.get(error.code, error.code), error.message, status) from error


def bad_request(message: str) -> ArkerError:
    """What the server would have refused is refused here."""
    return ArkerError("bad_request", message, 400)
