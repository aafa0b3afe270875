"""What the core says no with, in the few codes of version 3 of SFTP."""

from __future__ import annotations

import errno

import asyncssh
import pytest

from boxwood.core.errors import BadRequest, Conflict, Forbidden, Internal, InvalidState, NotFound, Unsupported
from boxwood.core.filework import refusal
from boxwood.engine.api import BoxGone, GuestError
from boxwood.server.ssh.failures import failure


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, asyncssh.SFTPNoSuchFile),
        (errno.ENOTDIR, asyncssh.SFTPNoSuchFile),
        (errno.EACCES, asyncssh.SFTPPermissionDenied),
        (errno.EPERM, asyncssh.SFTPPermissionDenied),
        (errno.EROFS, asyncssh.SFTPPermissionDenied),
        (errno.ENOSYS, asyncssh.SFTPOpUnsupported),
        (errno.EOPNOTSUPP, asyncssh.SFTPOpUnsupported),
        (errno.EEXIST, asyncssh.SFTPFailure),
        (errno.ENOTEMPTY, asyncssh.SFTPFailure),
        (errno.ENOSPC, asyncssh.SFTPFailure),
        (errno.EIO, asyncssh.SFTPFailure),
        (errno.EAGAIN, asyncssh.SFTPFailure),
        (10_000, asyncssh.SFTPFailure),
    ],
)
def test_what_a_vms_kernel_says(number: int, kind: type[Exception]) -> None:
    found = failure(refusal(GuestError(number, "in the\nway: /x")))
    assert type(found) is kind and "in the?way: /x" in found.reason


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFound("vm", "x"), asyncssh.SFTPNoSuchFile),
        (Forbidden("x"), asyncssh.SFTPPermissionDenied),
        (InvalidState("vm", "mutable", "x"), asyncssh.SFTPPermissionDenied),
        (Unsupported("x"), asyncssh.SFTPOpUnsupported),
        (BadRequest("x"), asyncssh.SFTPFailure),
        (Conflict("file", "x"), asyncssh.SFTPFailure),
        (Internal("x"), asyncssh.SFTPFailure),
        (refusal(BoxGone("x")), asyncssh.SFTPFailure),
    ],
)
def test_what_the_core_says(error: Exception, kind: type[Exception]) -> None:
    assert type(failure(error)) is kind  # type: ignore[arg-type]
