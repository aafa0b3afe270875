"""What the clients' methods did in this process: gathered here, told in docs/compatibility.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Surface = dict[str, dict[str, set[str]]]  # class → method → outcomes, as recorder.py has them

SEEN: dict[str, Surface] = {}  # by client and version, such as "arker 0.2.1"


def note(client: str, seen: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Adds what one script did. A method that was not called has no outcomes, and is there."""
    surface = SEEN.setdefault(client, {})
    for kind, methods in seen.items():
        for method, outcomes in methods.items():
            surface.setdefault(kind, {}).setdefault(method, set()).update(outcomes)
