"""`boxwood image`: the goldens that VMs are forked from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import age, note, say, say_json, table

app = typer.Typer(help="The goldens that VMs are forked from.", no_args_is_help=True, rich_markup_mode=None)


@app.command("ls")
def ls(json: Json = False) -> None:
    """List the goldens."""
    with connect() as box:
        found = box.images()
    if json:
        say_json([image.record for image in found])
    else:
        table(("NAME", "ID", "AGE", "DESCRIPTION"), [(i.name, i.id, age(i.created_at), i.description) for i in found])


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="What to fork it by.")],
    rootfs: Annotated[
        Path, typer.Argument(exists=True, metavar="ROOTFS", help="A root filesystem: a directory, .tar or .tar.gz.")
    ],
    replace: Annotated[bool, typer.Option("--replace", help="In place of the golden of this name.")] = False,
    json: Json = False,
) -> None:
    """Make a golden from a root filesystem on the server's machine."""
    with connect() as box:
        if not json:
            note(f"importing {rootfs}; this takes seconds to minutes")
        made = box.import_image(name, str(rootfs.absolute()), replace=replace)
    if json:
        say_json(made)
    else:
        say(made.name or name)
