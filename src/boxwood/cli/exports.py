"""`boxwood export`, `import`: a VM as one file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import note, say, say_json, size


def export(
    vm: Annotated[str, typer.Argument(metavar="VM", help="By id or name.")],
    file: Annotated[str, typer.Argument(help="To be written; - is standard output.")] = "-",
    full: Annotated[bool, typer.Option("--full", help="With the image that the VM stands on.")] = False,
) -> None:
    """Write a VM as one file (tar, zstd): boxwood export VM > vm.tar.zst. It is whole if this exits with 0."""
    if file == "-" and sys.stdout.isatty():
        raise typer.BadParameter("the file would go to the terminal: redirect standard output, or name a file")
    with connect() as box:
        found = box.get(vm)
        if file == "-":
            written = found.export(sys.stdout.buffer, full=full)
            sys.stdout.buffer.flush()
        else:
            written = found.export(file, full=full)
    note(f"{size(written)} written")


def import_vm(
    file: Annotated[str, typer.Argument(help="What `boxwood export` has written; - is standard input.")] = "-",
    name: Annotated[str | None, typer.Option(help="The new VM's name.")] = None,
    ttl: Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="Delete it by itself after so long.")] = (
        None
    ),
    json: Json = False,
) -> None:
    """Make a VM of a file: boxwood import < vm.tar.zst; prints its id."""
    with connect() as box:
        made = box.import_vm(sys.stdin.buffer if file == "-" else file, name, ttl=ttl)
    if json:
        say_json(made.record)
    else:
        say(made.id)
