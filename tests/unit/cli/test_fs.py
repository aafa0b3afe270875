"""`boxwood fs`: what it tells as JSON; that every command can; places in VMs."""

from __future__ import annotations

import json

import pytest
import typer

from boxwood.cli.main import app
from unit.client.stub import StubServer, error

FILES = "/v1/vms/n/files"


@pytest.mark.parametrize(
    ("args", "answer", "told"),
    [
        (("mkdir", "n:/d"), {"created": True}, {"created": True}),
        (("mv", "n:/d", "/e"), {}, {"path": "/e"}),
        (("rm", "-r", "n:/e"), {"removed": 3}, {"removed": 3}),
        (("chmod", "750", "n:/e"), {}, {"mode": 0o750}),
    ],
)
def test_changes_are_told_as_json(
    server: StubServer, boxwood, args: tuple[str, ...], answer: dict[str, object], told: dict[str, object]
) -> None:
    route = "move" if args[0] == "mv" else "remove" if args[0] == "rm" else args[0]
    server.script(f"POST {FILES}/{route}", (200, answer), (404, error("not_found", "nothing there")))
    assert json.loads(boxwood("fs", *args, "--json").stdout) == told
    done = boxwood("fs", *args, "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["message"]) == (1, "nothing there")


def test_every_command_tells_json_but_those_that_hand_on_bytes() -> None:
    def lacking(command: object, name: str) -> list[str]:
        below = getattr(command, "commands", {})
        if below:
            return [found for word, one in below.items() for found in lacking(one, f"{name} {word}".strip())]
        options = [option for parameter in getattr(command, "params", ()) for option in parameter.opts]
        return [] if "--json" in options else [name]

    assert lacking(typer.main.get_command(app), "") == ["shell", "export"]


@pytest.mark.parametrize("place", ["/d", "n", "n:d", ":/d", "a/b:/d", ""])
def test_a_place_in_a_vm_has_both_parts(server: StubServer, boxwood, place: str) -> None:
    assert boxwood("fs", "ls", place).returncode == 2
    assert server.requests == []
