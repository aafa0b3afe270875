"""`boxwood policy` and `boxwood secret`: what VMs may reach, and the values that rules name."""

from __future__ import annotations

import json as encoding
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import age, note, say, say_json, table
from boxwood.client.errors import BadRequest

if TYPE_CHECKING:
    from boxwood import Policy

app = typer.Typer(help="What a VM may reach, and who may reach it.", no_args_is_help=True, rich_markup_mode=None)
secrets = typer.Typer(help="Values that rules of policies name.", no_args_is_help=True, rich_markup_mode=None)

VMName = Annotated[str, typer.Argument(metavar="VM", help="By id or name.")]
File = Annotated[str, typer.Argument(metavar="FILE", help="JSON; - for the standard input.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and '_'.")]


@app.command("get")
def get(vm: VMName, json: Json = False) -> None:
    """Print a VM's policy as JSON."""
    with connect() as box:
        _show(box.vm(vm).policies.get(), json)


@app.command("set")
def set_(vm: VMName, file: File, json: Json = False) -> None:
    """Replace all rules of a VM: by an object of rules by their names, or a list, the first first."""
    said = _read(file)
    rules = said.get("rules", said) if isinstance(said, dict) else said
    if not isinstance(rules, dict | list):
        raise BadRequest("bad_request", f"{file}: an object of rules by their names, or a list of them")
    with connect() as box:
        _show(box.vm(vm).policies.set(rules), json)


@app.command("patch")
def patch(vm: VMName, file: File, json: Json = False) -> None:
    """Change some rules and secrets of a VM: {"rules": {NAME: RULE or null}, "secrets": {NAME: VALUE or null}}."""
    said = _read(file)
    if not isinstance(said, dict) or said.keys() - {"rules", "secrets"}:
        raise BadRequest("bad_request", f"{file}: an object with rules, secrets or both")
    with connect() as box:
        _show(box.vm(vm).policies.update(said.get("rules"), secrets=said.get("secrets")), json)


@secrets.command("set")
def set_secret(name: Name, json: Json = False) -> None:
    """Make a secret, or give it another value: the first line of the standard input, asked for on a terminal."""
    value = typer.prompt(f"{name}", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    with connect() as box:
        made = box.secrets.set(name, value.rstrip("\r\n"))
    if json:
        say_json(made)
    else:
        say(made.name)


@secrets.command("ls")
def ls(json: Json = False) -> None:
    """List the secrets; their values are never shown."""
    with connect() as box:
        found = box.secrets.list()
    if json:
        say_json(found)
    else:
        table(("NAME", "AGE", "CHANGED"), [(one.name, age(one.created_at), age(one.updated_at)) for one in found])


@secrets.command("rm")
def rm(name: Name, json: Json = False) -> None:
    """Remove a secret: requests that need it are refused from now on."""
    with connect() as box:
        box.secrets.delete(name)
    if json:
        say_json({"deleted": name})


def _show(policy: Policy, json: bool) -> None:
    """What `set` and `patch` take; as `--json` on one line, and all that the server said."""
    if json:
        say_json(policy)
        return
    for line in encoding.dumps({"rules": policy.rules, "secrets": policy.secrets}, indent=2).splitlines():
        say(line)
    for warning in policy.warnings:
        note(warning)


def _read(file: str) -> Any:
    text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    try:
        return encoding.loads(text)
    except ValueError as error:
        raise BadRequest("bad_request", f"{file}: not JSON: {error}") from None
