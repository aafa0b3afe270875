"""Every method of this face against a server, in words: `python -m boxwood.faces.arker.demo`.

The server is the one that `Arker()` finds: ARKER_BASE_URL and ARKER_API_KEY, else that of this machine. Beside each
call stands what it asks for on the wire. Exit code 1: something is not as it should be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from secrets import token_hex
from typing import TypeVar

from boxwood.faces.arker.client import Arker
from boxwood.faces.arker.computer import Computer
from boxwood.faces.arker.errors import ArkerError

T = TypeVar("T")


class Wrong(Exception):
    """The server did something else than it should."""


def say(call: str, wire: str, outcome: object) -> None:
    sys.stdout.write(f"{call:<44} {wire:<42} {outcome}\n")


def expect(call: str, wire: str, found: T, wanted: T) -> None:
    say(call, wire, found)
    if found != wanted:
        raise Wrong(f"{call}: {found!r}, not {wanted!r}")


def refused(act: Callable[[], object]) -> str:
    try:
        act()
    except ArkerError as error:
        return f"{error.code} {error.status}"
    return "no error"


def demo(arker: Arker) -> None:
    name = f"demo-{token_hex(4)}"
    with ExitStack() as made:
        vm = kept(made, arker.vm("arkuntu").fork(name=name))
        say(f'vm("arkuntu").fork(name="{name}")', "POST /v1/fork", vm.id)
        expect("run", "POST /v1/vms/ID/runs", vm.run("printf 'a\\nb\\n' | wc -l").stdout, b"2\n")
        expect("run(...).cwd", "GET /v1/vms/ID/sessions/ID", vm.run("cd /tmp").cwd, "/tmp")  # noqa: S108
        vm.sync.write_file("/home/user/demo.txt", "hello\n")
        expect("sync.read_file", "POST /v1/vms/ID/sync", vm.sync.read_file("/home/user/demo.txt"), b"hello\n")
        missing = refused(lambda: vm.sync.read_file("/home/user/missing"))
        expect("sync.read_file of nothing", "POST /v1/vms/ID/sync", missing, "not_found 404")
        outside = refused(lambda: vm.sync.read_file("/etc/passwd"))
        expect("sync.read_file elsewhere", "refused before it is sent", outside, "bad_request 400")
        child = kept(made, vm.fork(name=f"{name}-child"))
        say("fork of it", "POST /v1/fork", child.id)
        expect("the child's file", "POST /v1/vms/ID/sync", child.sync("/home/user/demo.txt"), b"hello\n")
        found = [summary.vm_id for summary in arker.list(q=name, sort="created_at")]
        expect("list(q=…)", "GET /v1/vms", found, [vm.id, child.id])
        child.delete()
        vm.delete()
        expect("delete, twice", "DELETE /v1/vms/ID", refused(vm.delete), "not_found 404")


def kept(made: ExitStack, vm: Computer) -> Computer:
    """Deleted at the end, whatever happens."""
    made.callback(forget, vm)
    return vm


def forget(vm: Computer) -> None:
    with suppress(ArkerError):
        vm.delete()


def main() -> int:
    try:
        with Arker() as arker:
            demo(arker)
    except (ArkerError, Wrong) as error:
        sys.stdout.write(f"failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
