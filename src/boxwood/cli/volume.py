"""`boxwood volume`, `mount` and `unmount`: filesystems that outlive VMs, and where VMs have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import age, say, say_json, size, table
from boxwood.client.errors import NotFound

if TYPE_CHECKING:
    from boxwood import Filesystem, Mount

app = typer.Typer(help="Filesystems that outlive VMs.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="VOLUME", help="By name or id.")]
VMName = Annotated[str, typer.Argument(metavar="VM", help="By id or name.")]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    size_mib: Annotated[
        int | None, typer.Option("--size", metavar="MIB", min=0, help="That it can hold; default: all that there is.")
    ] = None,
    json: Json = False,
) -> None:
    """Make an empty volume; prints its id."""
    with connect() as box:
        made = box.filesystems.create(name, size_mib=size_mib)
    if json:
        say_json(made)
    else:
        say(made.filesystem_id)


@app.command("ls")
def ls(
    prefix: Annotated[str | None, typer.Option(help="Only those whose names begin so.")] = None, json: Json = False
) -> None:
    """List the volumes."""
    with connect() as box:
        found = list(box.filesystems.list(prefix=prefix))
    if json:
        say_json(found)
    else:
        _table(found)


@app.command("get")
def get(name: Name, json: Json = False) -> None:
    """Show one volume, with its size as it is now."""
    with connect() as box:
        found = box.filesystems.get(name)
    if json:
        say_json(found)
    else:
        _table([found])


@app.command("rm")
def rm(name: Name, json: Json = False) -> None:
    """Delete a volume with all that it holds; it must be mounted nowhere."""
    with connect() as box:
        box.filesystems.delete(name)
    if json:
        say_json({"deleted": name})


def mount(
    vm: VMName,
    volume: Annotated[
        str | None, typer.Argument(metavar="VOLUME[:PATH]", help="Default: list what there is. PATH: /mnt/VOLUME.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="The VM cannot write to it.")] = False,
    json: Json = False,
) -> None:
    """Mount a volume in a VM, also while it runs; or list what is mounted there."""
    with connect() as box:
        mounts = box.vm(vm).mounts
        if volume is None:
            found = mounts.list()
        else:
            name, _, path = volume.partition(":")
            found = [mounts.create(name, path or None, read_only=read_only)]
    if json:
        say_json(found if volume is None else found[0])
    elif volume is None:
        _mounts(found)
    else:
        say(found[0].path)


def unmount(
    vm: VMName,
    what: Annotated[str, typer.Argument(metavar="VOLUME|PATH", help="The volume, or where it is mounted.")],
    json: Json = False,
) -> None:
    """Take a volume away from a VM, also while it is used. What it holds stays."""
    with connect() as box:
        mounts = box.vm(vm).mounts
        if what.startswith("/"):
            found = [one for one in mounts.list() if one.path == what.rstrip("/")]
        else:
            found = mounts.list(box.filesystems.get(what))
        if not found:
            raise NotFound("not_found", f"{what} is not mounted in {vm}", 404)
        mounts.delete(found[0])
    if json:
        say_json({"unmounted": found[0].path})


def _table(found: list[Filesystem]) -> None:
    rows = [
        (
            one.name, one.filesystem_id, "-" if one.size_bytes is None else size(one.size_bytes),
            "-" if one.size_mib is None else size(one.size_mib << 20), age(one.created_at),
        )
        for one in found
    ]  # fmt: skip
    table(("NAME", "ID", "USED", "SIZE", "AGE"), rows)


def _mounts(found: list[Mount]) -> None:
    rows = [
        (one.path, one.filesystem_id, "ro" if one.read_only else "rw", one.state, one.state_detail or "")
        for one in found
    ]
    table(("PATH", "VOLUME", "MODE", "STATE", "WHY"), rows)
