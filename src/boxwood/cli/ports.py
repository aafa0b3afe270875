"""`boxwood forward` and `boxwood url`: what listens in a VM, here or in a browser."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from typing import Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import note, say, say_json
from boxwood.client.errors import BadRequest

VM = Annotated[str, typer.Argument(metavar="VM", help="By id or name.")]


def forward(
    vm: VM,
    ports: Annotated[
        list[str], typer.Argument(metavar="PORT[:VM_PORT]...", help="Here and in the VM; 0: any that is free here.")
    ],
    address: Annotated[str, typer.Option(help="Of this machine, to listen on.")] = "127.0.0.1",
    json: Json = False,
) -> None:
    """Bring ports of a VM to this machine: TCP, until it is interrupted."""
    pairs = [_pair(text) for text in ports]
    with ExitStack() as held:
        machine = held.enter_context(connect()).vm(vm)
        made = [
            held.enter_context(
                machine.forward(there, here, address=address, on_error=lambda error: note(f"boxwood: {error.message}"))
            )
            for here, there in pairs
        ]
        if json:
            say_json([{"address": one.address, "port": one.port, "vm_port": one.vm_port} for one in made])
        else:
            for one in made:
                say(f"{one.address}:{one.port} -> {vm}:{one.vm_port}")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def url(
    vm: VM,
    port: Annotated[int, typer.Argument(metavar="PORT", help="Where something listens in the VM.")] = 8080,
    ticket: Annotated[bool, typer.Option("--ticket", help="For a browser: one that lets it in, for a minute.")] = False,
    json: Json = False,
) -> None:
    """Print where a port of a VM is reached over HTTP."""
    with connect() as box:
        found = box.vm(vm).url(port, ticket=ticket)
    if json:
        say_json({"url": found})
    else:
        say(found)


def _pair(text: str) -> tuple[int, int]:
    here, colon, there = text.partition(":")
    words = (here, there if colon else here)
    if not all(word.isascii() and word.isdigit() and len(word) < 6 and int(word) <= 65535 for word in words):
        raise BadRequest("bad_request", f"{text}: give PORT, or PORT:VM_PORT")
    return int(words[0]), int(words[1])
