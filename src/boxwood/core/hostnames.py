"""Names of hosts that stand for a port of a VM: `<vm>-<port>.<domain>`, or `<vm>.<domain>` for DEFAULT_PORT.

`<vm>` is an id, in small letters as everything in a name of a host, or a name that is all small letters, digits and
hyphens. What follows the last hyphen is the port if it is one, so a VM called `web-8080` is reached at `web-8080-80`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from boxwood.core.ids import has_id_shape

DEFAULT_PORT = 8080
LABEL_CHARACTERS = 63
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_PORT = re.compile(r"(.+)-([1-9][0-9]{0,4})")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


class Place(NamedTuple):
    """`vm`: an id, or a name."""

    vm: str
    port: int


def place(label: str) -> Place | None:
    """What a label, in small letters, stands for. None: nothing."""
    if len(label) > LABEL_CHARACTERS or not _LABEL.fullmatch(label):
        return None
    found = _PORT.fullmatch(label)
    if found is not None and int(found[2]) <= 65535:
        vm, port = found[1], int(found[2])
    else:
        vm, port = label, DEFAULT_PORT
    return Place(vm.upper() if has_id_shape(vm) else vm, port) if not vm.endswith("-") else None


def label(vm_id: str, port: int = DEFAULT_PORT) -> str:
    """Of a VM's port."""
    return vm_id.lower() if port == DEFAULT_PORT else f"{vm_id.lower()}-{port}"


def is_domain(text: str) -> bool:
    return len(text) <= 253 - LABEL_CHARACTERS - 1 and _DOMAIN.fullmatch(text) is not None
