"""`boxwood key`: API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import age, note, report, say, say_json, table
from boxwood.client.errors import BoxwoodError

app = typer.Typer(help="API keys.", no_args_is_help=True, rich_markup_mode=None)


@app.command("create")
def create(
    name: Annotated[str | None, typer.Argument(help="What it is for.")] = None,
    ttl_default: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="VMs made with it live so long, unless told otherwise."),
    ] = None,
    ttl_most: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="VMs made with it live so long at most.")
    ] = None,
    expires_in: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="The key itself is nobody's after so long.")
    ] = None,
    json: Json = False,
) -> None:
    """Make an API key; prints the secret, which is shown this once."""
    with connect() as box:
        made = box.create_api_key(name, ttl_default=ttl_default, ttl_most=ttl_most, expires_in=expires_in)
    if json:
        say_json(made)
    else:
        say(made.key)
        note(f"{made.api_key_id}: keep it now, it is not shown again")


@app.command("ls")
def ls(json: Json = False) -> None:
    """List the API keys, without their secrets."""
    with connect() as box:
        found = box.api_keys()
    if json:
        say_json(found)
    else:
        table(("ID", "NAME", "ROLE", "AGE"), [(k.api_key_id, k.name, k.role, age(k.created_at)) for k in found])


@app.command("rm")
def rm(keys: Annotated[list[str], typer.Argument(metavar="ID...", help="The ids of keys.")], json: Json = False) -> int:
    """Revoke API keys: from now on they open nothing."""
    revoked: list[str] = []
    failed: dict[str, str] = {}
    with connect() as box:
        for key in keys:
            try:
                box.revoke_api_key(key)
                revoked.append(key)
            except BoxwoodError as error:
                failed[key] = error.message
                if not json:
                    report(f"{key}: {error.message}", False)
    if json:
        say_json({"revoked": revoked, "failed": failed})
    return 1 if failed else 0
