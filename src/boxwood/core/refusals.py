"""What a box, or the store, says no with, as the core says it."""

from __future__ import annotations

import errno

from boxwood.core.errors import (
    BadRequest,
    CapacityUnavailable,
    Conflict,
    CoreError,
    Internal,
    NotFound,
    Resource,
    ResourceBusy,
    Unavailable,
    Unsupported,
)
from boxwood.engine import policies
from boxwood.engine.api import Asleep, BoxGone, EngineError, EngineUnavailable, GuestError, NotHere
from boxwood.engine.policies import Malformed
from boxwood.store.database import StoreError

_MISSING = {errno.ENOENT, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLEAN_CHARACTERS = 500


def of_malformed(error: Malformed) -> CoreError:
    """Of a policy that somebody wrote."""
    field, problem = clean(error.field), clean(error.problem)
    if isinstance(error, policies.Unavailable):
        return Unsupported(f"{field}: {problem}", "network_policy")
    return BadRequest(f"{field}: {problem}", [(field, problem)])


def of_engine(error: EngineError, resource: Resource = "file") -> CoreError:
    """`resource`: what was asked for."""
    if isinstance(error, GuestError):
        found = _of_guest(error, resource)
        found.errno = error.errno
        return found
    if isinstance(error, BoxGone):
        return Internal(f"the VM's box died: {error}", recovery={"work": "unknown"})
    if isinstance(error, NotHere):
        return Unsupported(str(error))
    if isinstance(error, Asleep):
        return Unavailable("the VM was suspended in the middle of this: try again")
    if isinstance(error, EngineUnavailable):
        return Unavailable(str(error))
    return Internal(str(error), recovery={"work": "unknown"})


def _of_guest(error: GuestError, resource: Resource) -> CoreError:
    text = clean(error.message)
    if error.errno in _MISSING:
        return NotFound(resource, text)
    if error.errno in _FULL:
        return Conflict(resource, f"no space is left in the VM: {text}")
    if error.errno == errno.EIO:
        return Internal(text)
    if error.errno == errno.EAGAIN:
        return ResourceBusy(resource, text, retry_after=1)
    return BadRequest(text)


def of_store(error: StoreError) -> CoreError:
    if error.full:
        return CapacityUnavailable("the server's disk is full: nothing was stored")
    return Internal(f"the server's database failed: {error}")


def clean(text: str) -> str:
    """One short line of what a box said, fit for an error message or a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:_CLEAN_CHARACTERS])
