"""`boxwood net`: what a VM moved over the network, and what it was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import age, say_json, size, table

if TYPE_CHECKING:
    from boxwood import Denial


def net(vm: Annotated[str, typer.Argument(metavar="VM", help="By id or name.")], json: Json = False) -> None:
    """Show what a VM moved over the network, and the latest attempts that were refused, the newest last."""
    with connect() as box:
        seen = box.vm(vm).network()
    if json:
        say_json(seen)
        return
    moved = (size(seen.sent_bytes), size(seen.received_bytes), seen.connections, seen.denied)
    table(("MODE", "ADDRESS", "SENT", "RECEIVED", "CONNECTIONS", "DENIED"), [(seen.mode, seen.address, *moved)])
    if seen.denials:
        table(("AGE", "PROTOCOL", "TO", "NAME", "REASON"), [_line(denial) for denial in seen.denials])


def _line(denial: Denial) -> tuple[str, ...]:
    return (age(denial.at), denial.protocol, _place(denial) or "-", denial.name or "-", denial.reason)


def _place(denial: Denial) -> str:
    address = f"[{denial.address}]" if ":" in denial.address and denial.port else denial.address
    return f"{address}:{denial.port}" if denial.port else address
