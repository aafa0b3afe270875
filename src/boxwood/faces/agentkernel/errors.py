"""Every way in which this face says no, and how the client's exceptions become its own.

AgentKernelError        status, message; of a command that failed exit_code and output too
├── ValidationError     400: the request is wrong
├── AuthError           401: no key, or an unknown one
├── NotFoundError       404: no such sandbox or file
├── ServerError         any other status: 500, a command that did not exit with 0; 409, a name that is taken; 422, what
│                       this server does not have; …
└── NetworkError        no answer; `status` is 0
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boxwood.client.errors import BadRequest, BoxwoodError, ConnectionFailed, NotFound, Timeout, Unauthorized


class AgentKernelError(Exception):
    """Something went wrong. `status`: that of HTTP. `message`: for people.

    `exit_code` and `output` are those of the command, if it is one that failed, else None.
    """

    def __init__(
        self, message: str, status: int = 0, *, exit_code: int | None = None, output: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.exit_code = exit_code
        self.output = output

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.status), self.__dict__


class ValidationError(AgentKernelError):
    """The request is wrong; the message says what."""

    def __init__(self, message: str, status: int = 400, **more: Any) -> None:
        super().__init__(message, status, **more)


class AuthError(AgentKernelError):
    """No API key, or one that the server does not know."""

    def __init__(self, message: str, status: int = 401, **more: Any) -> None:
        super().__init__(message, status, **more)


class NotFoundError(AgentKernelError):
    """No such sandbox or file."""

    def __init__(self, message: str, status: int = 404, **more: Any) -> None:
        super().__init__(message, status, **more)


class ServerError(AgentKernelError):
    """The command failed, or the server could not do it."""

    def __init__(self, message: str, status: int = 500, **more: Any) -> None:
        super().__init__(message, status, **more)


class NetworkError(AgentKernelError):
    """No server there, or no answer in time."""


KINDS: dict[type[BoxwoodError], type[AgentKernelError]] = {
    BadRequest: ValidationError,
    Unauthorized: AuthError,
    NotFound: NotFoundError,
    ConnectionFailed: NetworkError,
    Timeout: NetworkError,
}


@contextmanager
def translated() -> Iterator[None]:
    """Around every use of the client. :raises AgentKernelError: instead of its exceptions."""
    try:
        yield
    except BoxwoodError as error:
        raise failure(error) from error


def failure(error: BoxwoodError) -> AgentKernelError:
    """This face's exception for one of the client's."""
    for kind, ours in KINDS.items():
        if isinstance(error, kind):
            return ours(error.message)
    return ServerError(error.message, error.status or 500)


def coming(what: str, instead: str) -> ServerError:
    """For what cannot be enforced yet: refused, never ignored."""
    return ServerError(f"{what}: this server does not have that yet, it is coming; {instead}", 422)
