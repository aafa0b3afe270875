"""What many commands share: options, places in VMs, and the client that they talk through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from boxwood import Boxwood

Json = Annotated[bool, typer.Option("--json", help="Print JSON, errors too.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data directory; default $BOXWOOD_DATA or /var/lib/boxwood."),
]


class Place(NamedTuple):
    """A path in a VM."""

    vm: str
    path: str


def place(text: str) -> Place | None:
    """VM:PATH. None: a path of this machine.

    :raises typer.BadParameter: the path in the VM is not absolute.
    """
    vm, colon, path = text.partition(":")
    if not colon or not vm or "/" in vm:
        return None
    if not path.startswith("/") or "\0" in path:
        raise typer.BadParameter(f"a path in a VM is absolute: {vm}:/…, not {text!r}")
    return Place(vm, path)


def connect(data: Path | None = None) -> Boxwood:
    """The client for the server that the environment names, or for the one of `data`."""
    from boxwood import Boxwood

    if data is not None:
        for name in ("BOXWOOD_URL", "BOXWOOD_API_KEY"):
            os.environ.pop(name, None)
        os.environ["BOXWOOD_DATA"] = str(data)
    return Boxwood()
