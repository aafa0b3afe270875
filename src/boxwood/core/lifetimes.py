"""How long VMs live that are made or changed with a key: the key's default, and its ceiling, which nothing passes."""

from __future__ import annotations

from boxwood.core import words
from boxwood.core.model import Caller


def of_new(caller: Caller, wanted: float | None) -> float | None:
    """Seconds that a VM lives which is made now; None: for ever. `wanted` None: whatever the key says. BadRequest."""
    words.seconds("ttl", wanted)
    if wanted is None:
        return caller.ttl_default if caller.ttl_default is not None else caller.ttl_most
    if caller.ttl_most is not None and wanted > caller.ttl_most:
        raise words.refuse("ttl", f"VMs made with this key live {caller.ttl_most:g} seconds at most (ttl_most)")
    return wanted


def check_end(caller: Caller, created_at: int, end: int | None) -> None:
    """May the caller give a VM this end (None: none)? Both in microseconds since 1970. BadRequest."""
    most = caller.ttl_most
    if most is not None and (end is None or end > created_at + int(most * 1e6)):
        told = f"with this key a VM lives {most:g} seconds at most from when it was made (ttl_most)"
        raise words.refuse("ttl", told)
