"""Options that many commands share, and the client that they talk through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from boxwood import Boxwood

Json = Annotated[bool, typer.Option("--json", help="Print JSON, errors too.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data directory; default $BOXWOOD_DATA or /var/lib/boxwood."),
]


def connect(data: Path | None = None) -> Boxwood:
    """The client for the server that the environment names, or for the one of `data`."""
    from boxwood import Boxwood

    if data is not None:
        for name in ("BOXWOOD_URL", "BOXWOOD_API_KEY"):
            os.environ.pop(name, None)
        os.environ["BOXWOOD_DATA"] = str(data)
    return Boxwood()
