"""`boxwood fork`, `ls`, `rm`."""

from __future__ import annotations

from typing import Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import age, report, say, say_json, table
from boxwood.client.errors import BoxwoodError


def fork(
    source: Annotated[str, typer.Argument(help="A VM or golden, by id or name.")] = "ubuntu",
    name: Annotated[str | None, typer.Option(help="The new VM's name; with --count NAME-1, NAME-2, …")] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 1,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Others may fork it.")] = False,
    vcpu: Annotated[int | None, typer.Option(min=1, help="Cores.")] = None,
    memory: Annotated[int | None, typer.Option(metavar="MIB", help="Memory in MiB.")] = None,
    disk: Annotated[int | None, typer.Option(metavar="MIB", help="Disk in MiB.")] = None,
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
                network=network,
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
