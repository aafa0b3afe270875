"""`boxwood fork`, `ls`, `rm`, `prune`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import age, report, say, say_json, table
from boxwood.client.errors import BoxwoodError, NotFound

if TYPE_CHECKING:
    from boxwood import VM, Boxwood


def fork(
    source: Annotated[str, typer.Argument(help="A VM or golden, by id or name.")] = "ubuntu",
    name: Annotated[str | None, typer.Option(help="The new VM's name; with --count NAME-1, NAME-2, …")] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 1,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Others may fork it.")] = False,
    vcpu: Annotated[int | None, typer.Option(min=1, help="Cores.")] = None,
    memory: Annotated[int | None, typer.Option(metavar="MIB", help="Memory in MiB.")] = None,
    disk: Annotated[int | None, typer.Option(metavar="MIB", help="Disk in MiB.")] = None,
    pids: Annotated[int | None, typer.Option(min=1, help="Processes and threads at once.")] = None,
    nofile: Annotated[int | None, typer.Option(min=1, help="Open files of each process.")] = None,
    ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Delete it by itself after so long.")
    ] = None,
    durable: Annotated[bool, typer.Option("--durable", help="What it acknowledges survives a loss of power.")] = False,
    network: Annotated[
        str | None, typer.Option(metavar="MODE", help="internet or none; default: as the source, or the server.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a new VM from another; prints its id."""
    with connect() as box:
        made = []
        for number in range(1, count + 1):
            called = f"{name}-{number}" if name and count > 1 else name
            vm = box.fork(
                source, called, description=description, public=public, vcpu=vcpu, memory_mib=memory, disk_mib=disk,
                pids=pids, nofile=nofile, network=network, ttl=ttl, durable=durable,
            )  # fmt: skip
            made.append(vm.record)
            if not json:
                say(vm.id)
        if json:
            say_json(made if count > 1 else made[0])


def ls(
    state: Annotated[str | None, typer.Option(metavar="STATE", help="Only idle or only running ones.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Ids only.")] = False,
    json: Json = False,
) -> None:
    """List your VMs, newest first."""
    with connect() as box:
        found = list(box.list(state=state))
    if json:
        say_json([vm.record for vm in found])
    elif quiet:
        for vm in found:
            say(vm.id)
    else:
        rows = [(vm.name, vm.id, vm.state, age(vm.created_at), vm.root_source_name, vm.description) for vm in found]
        table(("NAME", "ID", "STATE", "AGE", "FROM", "DESCRIPTION"), rows)


def rm(vms: Annotated[list[str], typer.Argument(metavar="VM...", help="By id or name.")], json: Json = False) -> int:
    """Delete VMs. Their forks keep all that they have."""
    deleted: list[str] = []
    failed: dict[str, str] = {}
    with connect() as box:
        for vm in vms:
            try:
                box.delete(vm)
                deleted.append(vm)
            except BoxwoodError as error:
                failed[vm] = error.message
                if not json:
                    report(f"{vm}: {error.message}", False)
    if json:
        say_json({"deleted": deleted, "failed": failed})
    return 1 if failed else 0


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(text: str) -> float:
    """Of `90s`, `15m`, `12h`, `7d`."""
    number, unit = text[:-1], text[-1:]
    if not number.isascii() or not number.isdigit() or unit not in _UNITS:
        raise typer.BadParameter(f"{text!r}: a whole number and s, m, h or d, such as 7d")
    return float(int(number) * _UNITS[unit])


def prune(
    idle_for: Annotated[
        str, typer.Option(metavar="TIME", help="That nothing has used for so long: 90s, 15m, 12h, 7d.")
    ] = "7d",
    named: Annotated[bool, typer.Option("--named", help="Those with names too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> int:
    """Delete VMs that nobody has used for long: those without names, unless --named."""
    before = datetime.now(UTC) - timedelta(seconds=_seconds(idle_for))
    with connect() as box:
        found = [vm for vm in box.list(state="idle", created_before=before) if named or vm.name is None]
        old = [vm for vm in found if not vm.immutable and _used(vm) < before]
        if not dry_run and not yes and old and not typer.confirm(f"Delete {len(old)} VMs?", err=True):
            raise typer.Abort
        gone = [vm for vm in old if dry_run or _deleted(box, vm)]
    if json:
        say_json([vm.record for vm in gone])
    else:
        for vm in gone:
            say(f"{vm.id} {vm.name}" if vm.name else vm.id)
    return 0


def _used(vm: VM) -> datetime:
    """When it was used last; made, if never."""
    at = vm.record.last_active_at or vm.created_at
    return at if at is not None else datetime.now(UTC)


def _deleted(box: Boxwood, vm: VM) -> bool:
    """False: somebody else was quicker."""
    try:
        box.delete(vm)
    except NotFound:
        return False
    return True
