"""The request layer of a real server: a secret of a rule is nowhere that a VM, a caller or a file shows it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boxwood import BoxwoodError
from boxwood.core.archives import zstd
from boxwood.core.trust import BUNDLES, OWN, RUN_VARIABLES, VARIABLES
from servers import Server

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

SECRET = "s3cret-value-of-the-attack-test"
RULES: dict[str, Any] = {
    "key": {
        "type": "outbound", "priority": 2, "match": {"hosts": ["api.test"]},
        "action": {"rewrite": {"headers": {"authorization": "Bearer ${secret:KEY}"}}},
    },
    "rest": {"type": "outbound", "priority": 1, "action": "deny"},
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("requests") / "data").start()
    yield made
    made.down()


def test_a_read_only_vm_trusts_the_authority_too(server: Server) -> None:
    """In memory, where its variables say; it is put there again with each box, and nobody else puts anything there."""
    authorities = "import ssl; print([one['subject'] for one in ssl.create_default_context().get_ca_certs()])"
    with server.client() as box:
        assert server.request("POST", "/sandboxes", {"name": "ro", "profile": "restrictive"})[0] in (200, 201)
        vm = box.fork("ro", network="internet")  # which has no network itself
        assert vm.run("test -e /run/boxwood-policies").exit_code == 1
        vm.policies.update(rules=RULES, secrets={"KEY": SECRET})
        for one in (vm, vm.fork()):
            shown = one.session().run("env; cat /run/boxwood-policies/own.crt", check=True).stdout
            assert all(f"{name}={value}" in shown for name, value in RUN_VARIABLES.items())
            assert "BEGIN CERTIFICATE" in shown
            assert "Boxwood network policies" in one.session().run(f'python3 -c "{authorities}"', check=True).stdout
            assert one.run(f"test -e {OWN}").exit_code == 1
            with pytest.raises(BoxwoodError, match="/run hold no files"):
                one.write_file("/run/boxwood-policies/other", b"x")


def test_a_secret_is_nowhere(server: Server, tmp_path: Path) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        assert vm.run(f"test -e {OWN}").exit_code == 1  # no policy, no authority
        vm.policies.update(rules=RULES, secrets={"KEY": SECRET})
        assert vm.run(f"cat {OWN}", check=True).stdout.strip() in vm.run(f"cat {BUNDLES[0]}").stdout
        shell = vm.session()
        shown = shell.run("env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; ls /run /tmp").stdout
        assert all(f"{name}={value}" in shown for name, value in VARIABLES.items())
        fork = vm.fork()
        told = [shown, repr(vm.policies.get()), repr(vm.network()), fork.run("env").stdout, repr(fork.policies.get())]
        refused = fork.run("curl -sS -m 5 https://api.test/ 2>&1; curl -sS -m 5 http://93.184.215.14/ 2>&1").stdout
        packed = tmp_path / "vm.boxwood"
        with packed.open("wb") as file:
            vm.export(file)
        told += [refused, repr(list(box.list()))]
        assert all(SECRET not in text for text in told)
    plain = zstd.decompress(packed.read_bytes())
    assert plain and SECRET.encode() not in plain
    done = subprocess.run(["grep", "-ral", SECRET, str(server.data)], capture_output=True, text=True)
    assert done.stdout == ""
