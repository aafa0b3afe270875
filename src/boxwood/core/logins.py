"""Who may log in to a VM over SSH: whoever has a key that is one of the VM's, unless its policies say no."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime

from boxwood.core import sshkeys
from boxwood.core.boxes import Boxes
from boxwood.core.ids import has_id_shape
from boxwood.core.model import Caller
from boxwood.core.policies import Policies
from boxwood.engine.policies import Policies as Rules
from boxwood.store import keys as key_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

USER_CHARACTERS = 64


class Logins:
    def __init__(self, database: Database, boxes: Boxes, policies: Policies) -> None:
        self._database = database
        self._boxes = boxes
        self._policies = policies

    def find(self, user: str, fingerprint: str, address: str) -> tuple[str, Caller] | None:
        """The id of the VM that a user's name stands for (an id, or a name that is unique among the VMs with this key),
        and whoever logs in as the core's caller. None: nobody may."""
        found = [row for row in self._named(user) if self.may(row, fingerprint, address)]
        if len(found) != 1:
            return None
        row = found[0]
        return row.id, Caller(row.org_id, key_rows.orgs(self._database.near)[row.org_id], "ssh", "member")

    def still(self, vm_id: str, fingerprint: str, address: str) -> bool:
        """… and may still?"""
        row = vm_rows.by_id(self._database.near, vm_id)
        return row is not None and self.may(row, fingerprint, address, is_open=True)

    def may(self, row: VMRow, fingerprint: str, address: str, *, is_open: bool = False) -> bool:
        """`is_open`: he is there already. Then rules about open connections are asked as well; those about new ones
        are not left out, so that nobody stays who could not come."""
        keys = [key for key in sshkeys.stored(row.ssh_keys).values() if key.fingerprint == fingerprint and not key.over]
        state = "running" if self._boxes.running(row.id) else "idle"
        return any(
            _rules_allow(self._policies.of(row.id), key.public_key, address, state, is_open=is_open) for key in keys
        )

    def _named(self, user: str) -> Sequence[VMRow]:
        near = self._database.near
        if len(user) > USER_CHARACTERS or not user.isascii():
            return ()
        if has_id_shape(user):
            row = vm_rows.by_id(near, user.upper())
            return () if row is None or row.hidden else (row,)
        return [row for row in vm_rows.all_by_name(near, user) if not row.hidden]


def _rules_allow(rules: Rules, public_key: str, address: str, state: str, *, is_open: bool = False) -> bool:
    """The first rule about SSH that applies decides; if there are some and none does, nobody comes in."""
    try:
        where = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(where, ipaddress.IPv6Address) and where.ipv4_mapped is not None:
        where = where.ipv4_mapped
    now = datetime.now(UTC)
    about = [rule for rule in rules.inbound if "ssh" in rule.match.via]
    for rule in about:
        match = rule.match
        if rule.expires_at is not None and rule.expires_at <= now:
            continue
        if match.connection_state and "new" not in match.connection_state and not is_open:
            continue
        if not match.holds_for_address(where) or match.vm_state not in ("", state):
            continue
        if match.ssh_keys and public_key not in {" ".join(key.split()[:2]) for key in match.ssh_keys}:
            continue
        return not rule.action.deny
    return not about
