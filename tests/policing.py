"""Words of the tests of boxes' policies. Their networks and engines are netfixtures.py's."""

from __future__ import annotations

from typing import Any

from boxfixtures import Runner
from boxwood.engine import policies
from internet import OTHER_PUBLIC, PUBLIC, Internet

YES = "192.0.2.129 said hello"
TCP, UDP = ("tcp", "4", PUBLIC, 80), ("udp", "4", PUBLIC, 4433)
OTHER, OTHER_TLS = ("tcp", "4", OTHER_PUBLIC, 80), ("tcp", "4", OTHER_PUBLIC, 443)


def ruled(*rules: Any) -> policies.Policies:
    """Each (action, match), the first one first."""
    return policies.parse(
        {
            f"r{index}": {"type": "outbound", "priority": 1000 - index, "action": action, "match": match}
            for index, (action, match) in enumerate(rules)
        }
    )


async def police(runner: Runner, *rules: Any) -> None:
    await runner.engine.police(runner.box, ruled(*rules))


def names_asked(world: Internet) -> tuple[set[str], list[tuple[str, str, int]]]:
    """What the world was asked, and who else has come."""
    seen = world.seen()
    asked = {one["text"].rstrip(".") for one in seen if one["kind"] == "dns"}
    return asked, [(one["kind"], one["to"], one["port"]) for one in seen if one["kind"] != "dns"]


async def resolves(runner: Runner, name: str) -> bool:
    return not (await runner.run(f"getent ahostsv4 {name}")).code
