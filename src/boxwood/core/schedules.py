"""When the rules of a VM's policy delete it or suspend it: the next time of each stands in the VM's row.

All of this happens in transactions of others: a rule and its clock are written at once, and so are a box and the clocks
that run from then on. A VM that is nobody's yet (it waits in a pool) or that holds a snapshot has rules, and no clocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from boxwood.core import clock
from boxwood.core.errors import BadRequest
from boxwood.engine.policies import Policies, TimedRule
from boxwood.store import policies as rows
from boxwood.store import vms as vm_rows
from boxwood.store.vms import VMRow


def due(rule: TimedRule, created_at: int, running_since: int | None) -> int | None:
    """When it is its time, in microseconds since 1970; None: nobody knows yet, for the VM has never run."""
    if rule.at is not None:
        return clock.stored(rule.at)
    since = created_at if rule.clock == "after_created" else running_since
    return None if since is None else since + rule.seconds * 1_000_000


def ends(rules: Iterable[TimedRule], created_at: int) -> list[int]:
    """When those delete a VM that was made then, whatever it does."""
    fixed = (rule for rule in rules if rule.deed == "delete" and rule.clock != "after_last_running_start")
    return [at for rule in fixed if (at := due(rule, created_at, None)) is not None]


def begin(connection: sqlite3.Connection, row: VMRow, policies: Policies, now: int) -> None:
    """Of a VM that becomes somebody's now, with rules that it has from another: those whose moment is over have had
    their effect there, and go."""
    kept = [rule for rule in policies.rules.values() if not (isinstance(rule, TimedRule) and _is_over(rule, now))]
    if len(kept) < len(policies.rules):
        policies = Policies(kept)
        if policies:
            rows.put(connection, row.id, policies.text())
        else:
            rows.delete(connection, row.id)
    _set(connection, row, policies, now)


def went_on(connection: sqlite3.Connection, vm_id: str, policies: Policies, now: int) -> None:
    """The VM has begun to run, or what was due has been done: what comes next is later than now."""
    row = vm_rows.by_id(connection, vm_id) if policies.timed else None
    if row is not None and not row.hidden:
        _set(connection, row, policies, now)


def change(connection: sqlite3.Connection, row: VMRow, before: Policies, after: Policies, now: int) -> None:
    """Its rules were these, and are those now. A suspension that is over by now is done at once if its rule is new; a
    rule that would delete the VM at once is refused. BadRequest."""
    if before.timed == after.timed or row.hidden:
        return
    written = [rule for rule in after.timed if before.rules.get(rule.ident) != rule]
    late = [rule for rule in written if (at := due(rule, row.created_at, row.running_since)) is not None and at <= now]
    for rule in late:
        if rule.deed == "delete":
            told = "would delete the VM at once, for that time is over already: to delete it now, delete it"
            raise BadRequest(f"policies.rules.{rule.ident}: {told}", [(f"policies.rules.{rule.ident}", told)])
    at_once = now if late else None
    if row.suspend_at is not None and row.suspend_at <= now and _of(after, "suspend"):
        at_once = row.suspend_at  # somebody is about to
    _set(connection, row, after, now, at_once)


def _set(
    connection: sqlite3.Connection, row: VMRow, policies: Policies, now: int, suspend_at: int | None = None
) -> None:
    def soonest(deed: str, later_than: int) -> int | None:
        found = (due(rule, row.created_at, row.running_since) for rule in _of(policies, deed))
        return min((at for at in found if at is not None and at > later_than), default=None)

    vm_rows.set_clocks(connection, row.id, soonest("delete", 0), suspend_at or soonest("suspend", now))


def _of(policies: Policies, deed: str) -> list[TimedRule]:
    return [rule for rule in policies.timed if rule.deed == deed]


def _is_over(rule: TimedRule, now: int) -> bool:
    return rule.at is not None and clock.stored(rule.at) <= now
