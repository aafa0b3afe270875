"""Pages of the first generation: by number, filtered and sorted. The contract has cursors only: all is fetched."""

from __future__ import annotations

from collections.abc import Iterable

from boxwood.client._sync.vm import VM
from boxwood.faces.arker.errors import bad_request
from boxwood.faces.arker.results import VmList, VmSummary, iso

SORTS = ("created_at", "-created_at", "region", "-region")


def listed(vms: Iterable[VM], *, limit: int, offset: int, q: str | None, sort: str | None) -> VmList:
    """`vms`: all of them, the newest first. :raises ArkerError: bad_request."""
    order = sort or "-created_at"
    if not 1 <= limit <= 100 or offset < 0:
        raise bad_request(f"list: limit is 1 to 100 and offset at least 0, not {limit} and {offset}")
    if order not in SORTS:
        raise bad_request(f"list: sort is one of {', '.join(SORTS)}, not {order!r}")
    found = [vm for vm in vms if not q or q in (vm.name or "")]
    if order == "created_at":
        found.reverse()
    elif order != "-created_at":
        found.sort(key=lambda vm: vm.region or "", reverse=order.startswith("-"))
    return VmList([_summary(vm) for vm in found[offset : offset + limit]], len(found))


def _summary(vm: VM) -> VmSummary:
    return VmSummary(vm.id, vm.name, vm.root_source_name or "", vm.region or "", iso(vm.created_at))
