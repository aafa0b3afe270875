"""`boxwood storage`: what layers lie on, and a pool with quotas for them."""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from boxwood.cli.options import Data, Json
from boxwood.cli.output import note, say, say_json, size
from boxwood.client.discovery import default_data
from boxwood.client.errors import BoxwoodError

app = typer.Typer(help="What layers lie on, and a pool with quotas for them.", rich_markup_mode=None)


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
    before, as_json = context.obj
    json = json or as_json
    where = _place(data or before)
    had = _asked("show", where)
    found = had if had["quotas"] != "none" and had["pool"] is None else _asked("init", where, gib)
    if not json and found["pool"] is None:
        note(f"nothing to make: {where} lies on {found['quotas']} with project quotas")
    elif not json and had["pool"] is not None:
        note(f"nothing to make: {found['pool']} is there already")
    _tell(found, json)


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
