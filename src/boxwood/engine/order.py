"""The order of a box: what a server asks a zygote to boot, read, and told to the process that is to become it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boxwood.engine.api import Limits
from boxwood.engine.disk import image
from boxwood.engine.network.wire import Wire
from boxwood.engine.overlay import MOST_LAYERS
from boxwood.engine.peer import Refused
from boxwood.engine.spares import Live
from boxwood.engine.ulid import checked

_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}\Z")


@dataclass(frozen=True, slots=True)
class Order:
    """`vm`: empty if it is booted ahead of its VM; `layers`: place and id, topmost first; `in_files`: which of
    them, and perhaps the top, may have a file system of their own."""

    box: str
    vm: str
    top: str
    layers: tuple[tuple[str, str], ...]
    hostname: str
    read_only: bool
    durable: bool
    limits: Limits
    in_files: tuple[str, ...]

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Order:
        """Refused; KeyError, TypeError, ValueError: a server of another version has sent it."""
        layers = tuple((str(place), checked(ident)) for place, ident in request["layers"])
        if len(layers) > MOST_LAYERS:
            raise Refused(f"{len(layers)} layers: at most {MOST_LAYERS} can be mounted")
        return cls(
            checked(request["box"]), request["vm"] and checked(request["vm"]), checked(request["top"]), layers,
            hostname(request), bool(request["read_only"]), bool(request.get("durable")), Limits(**request["limits"]),
            tuple(map(checked, request["in_files"])),
        )  # fmt: skip

    def plan(self, wire: Wire | None, disks: Sequence[image.Attached], project: int) -> bytes:
        """What the process goes by. `project`: of its top's quota."""
        plan = {
            "layers": self.layers, "top": self.top, "hostname": self.hostname, "wire": wire and wire.fields(),
            "read_only": self.read_only, "disk_limit": self.limits.disk, "project": project, "durable": self.durable,
            "disks": [[d.layer, d.number, d.read_only, d.sealed, d.ours] for d in disks],
        }  # fmt: skip
        return json.dumps(plan).encode()

    def fill(self, live: Live) -> None:
        """It is this box from now on."""
        live.box, live.vm, live.top, live.hostname = self.box, self.vm, self.top, self.hostname
        live.read_only, live.durable = self.read_only, self.durable


def hostname(request: Mapping[str, Any]) -> str:
    """That a request names. Refused."""
    found: str = request["hostname"]
    if not _HOSTNAME.match(found):
        raise Refused("a hostname has 1 to 63 letters, digits, dots and hyphens")
    return found
