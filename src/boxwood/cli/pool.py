"""`boxwood pool`: VMs that are booted ahead of demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import age, say, say_json, table

if TYPE_CHECKING:
    from boxwood import Pool

app = typer.Typer(help="VMs that are booted ahead of demand.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="POOL", help="The pool's name.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="In which the name is unique.")]
Replicas = Annotated[int, typer.Option(min=0, help="VMs that wait.")]


@app.command("create")
def create(
    name: Name,
    source: Annotated[str, typer.Argument(help="A VM or golden, by id or name.")] = "ubuntu",
    replicas: Replicas = 1,
    namespace: Namespace = "default",
    vcpu: Annotated[int | None, typer.Option(min=1, help="Cores.")] = None,
    memory: Annotated[int | None, typer.Option(metavar="MIB", help="Memory in MiB.")] = None,
    disk: Annotated[int | None, typer.Option(metavar="MIB", help="Disk in MiB.")] = None,
    network: Annotated[
        str | None, typer.Option(metavar="MODE", help="internet or none; default: as the source, or the server.")
    ] = None,
    json: Json = False,
) -> None:
    """Have VMs of what SOURCE shows now wait to be claimed."""
    with connect() as box:
        _tell(
            box.create_pool(
                name, source, replicas=replicas, namespace=namespace, vcpu=vcpu, memory_mib=memory, disk_mib=disk,
                network=network,
            ),
            json,
        )  # fmt: skip


@app.command("ls")
def ls(
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Only those in it.")] = None,
    json: Json = False,
) -> None:
    """List the pools."""
    with connect() as box:
        pools = box.pools(namespace)
    if json:
        say_json([pool.record for pool in pools])
    else:
        _table(pools)


@app.command("get")
def get(name: Name, namespace: Namespace = "default", json: Json = False) -> None:
    """Show one pool, and why it is not full."""
    with connect() as box:
        _tell(box.pool(name, namespace), json)


@app.command("scale")
def scale(
    name: Name,
    replicas: Annotated[int, typer.Argument(min=0, help="VMs that wait.")],
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Let more or fewer VMs wait."""
    with connect() as box:
        _tell(box.pool(name, namespace).scale(replicas), json)


@app.command("claim")
def claim(
    name: Name,
    vm_name: Annotated[str | None, typer.Option("--name", help="The VM's name.")] = None,
    ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Delete it by itself after so long.")
    ] = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Take a VM out of the pool; prints its id."""
    with connect() as box:
        vm = box.pool(name, namespace).claim(vm_name, ttl=ttl)
    if json:
        say_json(vm.record)
    else:
        say(vm.id)


@app.command("rm")
def rm(
    name: Name,
    vms: Annotated[bool, typer.Option("--vms", help="Delete the VMs that were claimed from it too.")] = False,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Remove a pool and what waits in it."""
    with connect() as box:
        pool = box.pool(name, namespace)
        pool.delete(vms=vms)
    if json:
        say_json(pool.record)


def _tell(pool: Pool, json: bool) -> None:
    if json:
        say_json(pool.record)
        return
    _table([pool])
    if pool.record.problem:
        say(f"no VM can be made ahead: {pool.record.problem}")


def _table(pools: list[Pool]) -> None:
    records = [pool.record for pool in pools]
    rows = [
        (one.name, one.namespace, one.replicas, one.ready, one.starting, one.allocated, one.source_vm_name,
         age(one.created_at))
        for one in records
    ]  # fmt: skip
    table(("NAME", "NAMESPACE", "REPLICAS", "READY", "STARTING", "ALLOCATED", "FROM", "AGE"), rows)
