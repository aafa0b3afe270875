"""Every way in which this face says no.

ArlError (RuntimeError)  no sandbox yet, a sandbox that failed, no server to talk to, …
├── ApiException         the server said no, or gave no answer (status 0): status, reason, body, headers, message. Where
│   │                    the `kubernetes` package is installed it is that package's ApiException too
│   └── WarmPoolNotFound   404: no pool of that name (also ValueError)
└── TaskTimeout          not over in the time given (also TimeoutError); `task` is the task, if it came to an end
"""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from importlib import import_module
from typing import Any, TypeVar, cast

import msgspec

from boxwood.client.errors import BoxwoodError, Timeout

UNSENT = {"bad_request": 400, "unauthorized": 401}  # what the client refuses has the status that a server would give


class ArlError(RuntimeError):
    """Something went wrong; the message says what."""


class ApiException(ArlError):
    """The server said no. `status`: that of HTTP, 0 where there was no answer. `reason`: its phrase (`Not Found`).
    `body`: the answer's text, as a rule a JSON object of kind Status, whose message is `message`."""

    def __init__(self, status: int, message: str, body: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = _phrase(status) or message
        self.message = message
        self.body = body
        self.headers: dict[str, str] | None = None

    def __str__(self) -> str:
        return f"({self.status}) {self.message}" if self.status else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        kind = next(kind for kind in type(self).__mro__ if kind in (WarmPoolNotFound, ApiException))
        return api_error, (self.status, self.message, self.body, kind)


class WarmPoolNotFound(ApiException, ValueError):
    """There is no pool of that name in the namespace."""


class TaskTimeout(ArlError, TimeoutError):
    """It did not end in the time given. `task` is the task as the server ended it, with its output so far; None where
    it was given up here, and deleted."""

    def __init__(self, message: str, task: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.task = task

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.task)


E = TypeVar("E", bound=ApiException)


def api_error(status: int, message: str, body: str | None = None, kind: type[E] = ApiException) -> E:  # type: ignore[assignment]
    """An exception that `except kubernetes.client.ApiException` catches where there is such a package."""
    made: E = _for_kubernetes(cast(Any, kind))(status, message, body)
    return made


@cache
def _for_kubernetes(kind: Any) -> Any:
    """Found out when something first goes wrong: the package takes half a second to load, and most never need it."""
    try:
        theirs = import_module("kubernetes.client.exceptions").ApiException
    except Exception:  # not there, or broken: then nobody can catch its exception
        return kind
    return type(kind.__name__, (kind, theirs), {"__doc__": kind.__doc__, "__module__": kind.__module__})


def refusal(status: int, body: bytes | str) -> ApiException | None:
    """The exception for an answer that is a Status object of Kubernetes; None if it is not one."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError):
        return None
    if not isinstance(found, dict) or found.get("kind") != "Status":
        return None
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    message = found.get("message")
    return api_error(status, message if isinstance(message, str) and message else _phrase(status) or "refused", text)


def failure(error: BoxwoodError) -> ArlError:
    """This face's exception for one of the client's."""
    if isinstance(error, Timeout):
        return TaskTimeout(error.message)
    return api_error(error.status or UNSENT.get(error.code, 0), error.message)


def _phrase(status: int) -> str | None:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return None
