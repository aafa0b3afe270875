"""`boxwood snapshot`, `snapshots`, `restore`, `diff`, `commit`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import age, clean, note, report, say, say_json, table, write_bytes
from boxwood.client.errors import Conflict

Vm = Annotated[str, typer.Argument(metavar="VM", help="By id or name.")]
_SIGNS = {"added": "A", "changed": "M", "deleted": "D"}


def snapshot(
    vm: Vm,
    name: Annotated[str, typer.Argument(help="The snapshot's name, unique among the VM's.")],
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the snapshot of this name instead.")] = False,
    json: Json = False,
) -> None:
    """Keep what a VM shows now under a name; prints its id, of which forks can be made."""
    with connect() as box:
        if delete:
            box.vm(vm).delete_snapshot(name)
            if json:
                say_json({"deleted": name})
            return
        made = box.vm(vm).snapshot(name, description=description)
    if json:
        say_json(made)
    else:
        say(made.snapshot_id)


def snapshots(vm: Vm, json: Json = False) -> None:
    """List the snapshots of a VM, the oldest first."""
    with connect() as box:
        found = box.vm(vm).snapshots()
    if json:
        say_json(found)
    else:
        rows = [(one.name, one.snapshot_id, age(one.created_at), one.description) for one in found]
        table(("NAME", "ID", "AGE", "DESCRIPTION"), rows)


def restore(
    vm: Vm,
    name: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="One of the VM's snapshots, by name or id.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="End what runs in the VM.")] = False,
    json: Json = False,
) -> None:
    """Take a VM back to a snapshot, in place: what it has written since is gone."""
    with connect() as box:
        found = box.get(vm)
        found.restore(name, force=force)
        if json:
            say_json(found.record)


def diff(
    vm: Vm,
    since: Annotated[
        str | None,
        typer.Argument(help="A snapshot of the VM, another VM, or image; without it: when the VM was forked."),
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="SNAPSHOT", help="Up to this snapshot; default: now.")] = None,
    path: Annotated[str, typer.Option(metavar="DIR", help="Only what is below this directory of the VM.")] = "/",
    patch: Annotated[bool, typer.Option("--patch", "-p", help="Show the changed lines of text files.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Changes at most.")] = 10_000,
    json: Json = False,
) -> None:
    """List what has changed in a VM: A added, M changed, D deleted (a directory stands for all that was in it)."""
    with connect() as box:
        found = box.get(vm).diff(since, to, path=path, text=patch, limit=limit)
    if json:
        say_json(found)
        return
    for one in found.changes:
        if patch and one.diff is not None:
            write_bytes(_shown(one.diff))
        else:
            what = f" ({', '.join(one.what)})" if one.what and one.what != ["content"] else ""
            slash = "/" if one.kind == "directory" and one.path != "/" else ""
            say(f"{_SIGNS.get(one.change, '?')} {one.path}{slash}{what}")
    if found.truncated:
        note(f"boxwood: there is more than {limit} changes: look into one directory with --path")


def commit(
    vm: Vm,
    into: Annotated[str | None, typer.Option(metavar="VM", help="Default: what the VM was forked from.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="End what runs in that VM.")] = False,
    json: Json = False,
) -> int:
    """Fold what a VM has changed since it was forked into what it was forked from; prints that one's id."""
    with connect() as box:
        try:
            done = box.get(vm).commit(into, force=force)
        except Conflict as error:
            collisions = (error.details or {}).get("collisions")
            if json or not isinstance(collisions, list):
                raise
            for path in collisions:
                say(f"C {path}")
            report(error.message, False)
            return 1
    if json:
        say_json({"vm_id": done})
    else:
        say(done)
    return 0


def _shown(text: str) -> bytes:
    """To a terminal nothing that it would obey; anywhere else as it is, for `patch`."""
    if not sys.stdout.isatty():
        return text.encode(errors="surrogatepass")
    return "".join(clean(line).replace("\\t", "\t") + "\n" for line in text.splitlines()).encode()
