"""How long VMs live that are made or changed with a key: the key's default, and its ceiling, which nothing passes.

Who asks for more in so many words is refused. Protocols that give VMs times of their own (leases, rests, what is kept
for a while) get what the ceiling leaves of them.
"""

from __future__ import annotations

from dataclasses import replace

from boxwood.core import clock, schedules, words
from boxwood.core.model import Caller, ForkRequest
from boxwood.engine.policies import Update
from boxwood.store.vms import VMRow


def of_new(caller: Caller, wanted: float | None, rules: Update | None = None) -> float | None:
    """Seconds that a VM lives which is made now; None: for ever. `wanted` None: whatever the key says, unless `rules`
    say when it is deleted. BadRequest."""
    words.seconds("ttl", wanted)
    if wanted is None and not (rules is not None and schedules.ends(rules.timed, 0)):
        wanted = caller.ttl_default
    if caller.ttl_most is None:
        return wanted
    return caller.ttl_most if wanted is None else min(wanted, caller.ttl_most)


def check_new(caller: Caller, wanted: float | None) -> None:
    """May the caller ask for so many seconds? BadRequest."""
    if wanted is not None and of_new(caller, wanted) != wanted:
        raise words.refuse("ttl", f"VMs made with this key live {caller.ttl_most:g} seconds at most (ttl_most)")


def check_rules(caller: Caller, created_at: int, update: Update) -> None:
    """May the caller write rules that delete a VM which was made then so late? BadRequest."""
    if caller.ttl_most is None:
        return
    if max(schedules.ends(update.timed, created_at), default=0) > created_at + int(caller.ttl_most * 1e6):
        told = f"with this key a VM lives {caller.ttl_most:g} seconds at most from when it was made (ttl_most)"
        raise words.refuse("policies", told)


def of_copy(caller: Caller, ends_by: int | None, request: ForkRequest) -> ForkRequest:
    """What a protocol makes of a VM on behalf of its owner, without his key, ends with it at the latest (`ends_by`)."""
    if caller.key_id or ends_by is None:
        return request
    left = max(0.0, (ends_by - clock.now()) / 1e6)
    return replace(request, ttl=left if request.ttl is None else min(request.ttl, left), ttl_most=left)


def latest_end(caller: Caller, row: VMRow, end: int | None) -> int | None:
    """When a VM ends that the caller wants to end then, in microseconds since 1970; None: never. Without a key, on
    behalf of its owner, nobody lets it live longer than the key did that made it."""
    bounds = [end]
    if caller.ttl_most is not None:
        bounds.append(row.created_at + int(caller.ttl_most * 1e6))
    if not caller.key_id:
        bounds.append(row.ends_by)
    return min((bound for bound in bounds if bound is not None), default=None)


def check_end(caller: Caller, row: VMRow, end: int | None) -> None:
    """May the caller ask for this end? BadRequest."""
    if latest_end(caller, row, end) != end:
        told = f"with this key a VM lives {caller.ttl_most:g} seconds at most from when it was made (ttl_most)"
        raise words.refuse("ttl", told)
