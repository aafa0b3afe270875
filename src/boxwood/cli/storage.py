"""`boxwood storage`: what layers lie on, a pool with quotas for them, and the care of what lies there."""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from boxwood.cli.options import Data, Json, connect
from boxwood.cli.output import note, say, say_json, size, table
from boxwood.client.discovery import default_data
from boxwood.client.errors import BoxwoodError

app = typer.Typer(help="What layers lie on, who takes how much, whether all is whole.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def show(context: typer.Context, data: Data = None, json: Json = False) -> None:
    """Say what limits the disks of VMs here, and what of it is used."""
    if context.invoked_subcommand is None:
        _tell(_asked("show", _place(data)), json)
    else:
        context.obj = data, json


@app.command("init")
def init(
    context: typer.Context,
    gib: Annotated[
        int | None, typer.Option("--size", min=1, metavar="GIB", help="Of the pool; default: half of what is free.")
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Make a pool for layers: an XFS image below the data directory, mounted with quotas. Needs root, no VMs yet."""
    before, json = _both(context, data, json)
    where = _place(before)
    had = _asked("show", where)
    found = had if had["quotas"] != "none" and had["pool"] is None else _asked("init", where, gib)
    if not json and found["pool"] is None:
        note(f"nothing to make: {where} lies on {found['quotas']} with project quotas")
    elif not json and had["pool"] is not None:
        note(f"nothing to make: {found['pool']} is there already")
    _tell(found, json)


@app.command("usage")
def usage(context: typer.Context, data: Data = None, json: Json = False) -> None:
    """Say how much of the disk each VM of the running server takes: of its own, and together with others."""
    where, as_json = _both(context, data, json)
    with connect(where) as box:
        found = box.storage()
    if as_json:
        say_json(found)
        return
    rows = [
        (vm.vm_id, vm.name, vm.layers, size(vm.own_bytes), size(vm.shared_bytes), "" if vm.measured else "in part")
        for vm in found.vms
    ]
    table(("ID", "NAME", "LAYERS", "OWN", "SHARED", "MEASURED"), rows)
    note(f"{size(found.free_bytes)} free")


@app.command("verify")
def verify(context: typer.Context, data: Data = None, json: Json = False) -> int:
    """Look through all layers of the running server; exits with 1 if something is wrong."""
    where, as_json = _both(context, data, json)
    with connect(where) as box:
        found = box.verify_storage()
    if as_json:
        say_json(found)
    else:
        if found.problems:
            table(("LAYER", "VMS", "PROBLEM"), [(p.layer_id, len(p.vm_ids), p.problem) for p in found.problems])
        note(f"{found.layers} layers looked through, {len(found.problems)} with problems")
    return 1 if found.problems else 0


@app.command("gc")
def gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Remove layers of the running server that nothing refers to, such as a crash may leave."""
    where, as_json = _both(context, data, json)
    with connect(where) as box:
        found = box.collect_storage(dry_run=dry_run)
    if as_json:
        say_json(found)
        return
    for layer_id in found.layer_ids:
        say(layer_id)
    note(f"{len(found.layer_ids)} layers, {size(found.bytes)}: {'would go' if found.dry_run else 'gone'}")


def _both(context: typer.Context, data: Path | None, json: bool) -> tuple[Path | None, bool]:
    """Options may stand before the command or behind it."""
    before, as_json = context.obj
    return data or before, json or as_json


def _place(data: Path | None) -> Path:
    return (data or default_data()).absolute()


def _asked(what: str, data: Path, gib: int | None = None) -> dict[str, Any]:
    """What the engine answers, in a process of its own. BoxwoodError."""
    command = [sys.executable, "-m", "boxwood.engine.storage", what, "--data", str(data)]
    command += ["--size", str(gib)] if gib is not None else []
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    try:
        said: dict[str, Any] = jsonlib.loads(done.stdout)
    except ValueError:
        raise BoxwoodError("storage", f"the storage could not be looked at: status {done.returncode}") from None
    if "error" in said:
        raise BoxwoodError("storage", said["error"])
    return said


def _tell(found: dict[str, Any], json: bool) -> None:
    if json:
        say_json(found)
        return
    place = f"{found['pool']} (a pool)" if found["pool"] else found["data"]
    say(f"layers:   {place}")
    if found["quotas"] == "none":
        say(f"quotas:   none: {found['why']}")
        say(f"          → {found['fix']}")
    else:
        say(f"quotas:   {found['quotas']}" + (f"; {found['why']}: {found['fix']}" if found["why"] else ""))
    if found["pool"] is None or found["mounted"]:
        say(f"size:     {size(found['size'])}, used {size(found['used'])}, free {size(found['free'])}")
    else:
        say(f"size:     {size(found['size'])}")
