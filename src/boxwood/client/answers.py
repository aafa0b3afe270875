"""Answers of the contract, decoded and judged: what is an error, and what may be tried again; no I/O."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from boxwood.client.calls import Call
from boxwood.client.errors import (
    BoxwoodError,
    ConnectionFailed,
    Forbidden,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    ServerError,
    Unauthorized,
    Unavailable,
    error_from,
)
from boxwood.client.models import Anything

T = TypeVar("T")

NOT_CONNECTED = "not_connected"  # the code of a ConnectionFailed of which the server has seen nothing
LOST = "connection_lost"  # … and of one whose outcome is not known
RETRYABLE = frozenset({"unavailable", "capacity_unavailable", "rate_limited", "gateway_timeout", LOST})
RETRYABLE_STATUS = frozenset({429, 502, 503, 504})
BY_STATUS: dict[int, type[BoxwoodError]] = {
    401: Unauthorized, 403: Forbidden, 404: NotFound, 413: PayloadTooLarge, 429: RateLimited,
    502: Unavailable, 503: Unavailable, 504: Unavailable,
}  # fmt: skip


def decode(call: Call, status: int, body: bytes, answer: type[T]) -> T:
    """The answer's value. An error body is one whatever its status.

    :raises BoxwoodError: the answer is an error, or not one of the contract.
    """
    if status not in call.answers or body.startswith(b'{"error":'):
        raise refusal(status, body)
    if answer is Anything:
        return answer()
    try:
        return msgspec.json.decode(body, type=answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServerError("bad_answer", f"not an answer of a Boxwood server: {error}", status) from None


def refusal(status: int, body: bytes) -> BoxwoodError:
    """What an answer says that is an error, or none to the request."""
    found = _error_object(body)
    if found is not None:
        return error_from(found, status)
    said = " ".join(body[:300].decode("utf-8", "replace").split())
    if status < 300:
        return ServerError("bad_answer", f"HTTP {status} is no answer to this request", status)
    if status < 400:
        return ServerError("bad_answer", f"HTTP {status}: a redirect; use the url that it leads to", status)
    kind = BY_STATUS.get(status, ServerError if status >= 500 else BoxwoodError)
    return kind("internal" if status >= 500 else f"http_{status}", f"HTTP {status}: {said or 'no text'}", status)


def _error_object(body: bytes) -> Mapping[str, Any] | None:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        return None
    if isinstance(collisions := found.get("collisions"), list):  # of a commit
        details = error.get("details")
        error["details"] = {**(details if isinstance(details, dict) else {}), "collisions": collisions}
    return error


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a request is tried again, and after how many seconds: 0.2, 0.4, 0.8, … up to 2, or what the server
    asks for, up to 10."""

    retries: int = 3
    base: float = 0.2
    longest: float = 2.0
    longest_hint: float = 10.0

    def delay(self, call: Call, error: BoxwoodError, tried: int) -> float | None:
        """Seconds to wait before the next attempt; None: `error` is final. `tried`: attempts made after the first."""
        if tried >= self.retries or not may_repeat(call, error):
            return None
        if error.retry_after is not None:
            return min(error.retry_after, self.longest_hint) + random.uniform(0, 0.05)
        return min(self.base * (1 << tried), self.longest) + random.uniform(0, 0.05)


def may_repeat(call: Call, error: BoxwoodError) -> bool:
    """Only with proof that nothing was started, or where starting it twice does no harm."""
    if error.code == "quota_exceeded":
        return False
    if isinstance(error, ConnectionFailed) and error.code == NOT_CONNECTED:
        return True
    if error.recovery:
        return error.recovery.get("work") == "not_started"
    return call.replay_safe and (error.code in RETRYABLE or error.status in RETRYABLE_STATUS)
