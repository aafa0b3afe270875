"""What the core says no with, as SFTP says it. Version 3 knows few codes: many clients show nothing else."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import asyncssh

from boxwood.core.errors import CoreError, Forbidden, InvalidState, NotFound, Unauthorized, Unsupported

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_UNKNOWN = frozenset({errno.ENOSYS, errno.EOPNOTSUPP})


@contextmanager
def told() -> Iterator[None]:
    try:
        yield
    except CoreError as error:
        raise failure(error) from None


def failure(error: CoreError) -> asyncssh.SFTPError:
    """The kernel's word is the better one, where it has said something: `errno`."""
    if error.errno in _MISSING or (error.errno is None and isinstance(error, NotFound)):
        return asyncssh.SFTPNoSuchFile(error.message)
    if error.errno in _FORBIDDEN or isinstance(error, Forbidden | Unauthorized | InvalidState):
        return asyncssh.SFTPPermissionDenied(error.message)
    if error.errno in _UNKNOWN or isinstance(error, Unsupported):
        return asyncssh.SFTPOpUnsupported(error.message)
    return asyncssh.SFTPFailure(error.message)
