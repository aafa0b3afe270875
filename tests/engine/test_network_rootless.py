"""The network of boxes without root, through pasta: the same tests as root's, and what pasta alone would open."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import guard
import rootless
from amounts import amount
from internet import Internet, handed_over

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta is not installed: apt install passt"),
]
SAME = {
    "engine/test_network.py": (
        "test_the_internet_is_there", "test_names_are_resolved",
        "test_what_the_operator_allows_is_reached_at_its_port_alone", "test_much_at_once",
        "test_private_addresses_are_refused_at_once", "test_in_every_spelling", "test_the_host_is_refused", "test_other_boxes_are_refused",
        "test_packets_with_options_go_nowhere",
        "test_names_of_private_addresses_are_not_told",
        "test_whatever_server_is_asked_ours_answers", "test_denied_attempts_are_told",
        "test_a_box_without_network_has_its_loopback",
        *amount((), (
            "test_a_box_has_an_address_and_a_name_of_its_own", "test_the_account_is_closed_when_the_box_ends",
            "test_a_parked_vm_comes_back_with_a_network",
        )),
    ),
    "engine/test_network_router.py": amount((), (
        "test_a_router_that_dies_is_replaced", "test_a_box_made_meanwhile_has_a_network_too",
        "test_while_no_router_lives_the_rules_hold",
    )),
    "engine/test_policies.py": (
        amount("test_what_goes_out[0]", "test_what_goes_out"), "test_hosts_are_addresses_that_the_box_was_given_for_them",
        "test_no_policy_opens_what_the_operator_closed", "test_refused_attempts_are_told",
    ),
    "engine/test_policy_router.py": amount((), ("test_a_router_that_dies_takes_no_policy_with_it",)),
    "attack/test_policies.py": amount((), (
        "test_the_list_alone", "test_names_that_are_not_on_the_list", "test_a_rule_cannot_open_what_is_closed",
    )),
    "engine/pasta_network.py": ("",),  # all of it
}  # fmt: skip


OWN_PUBLIC = "151.101.77.7"


@pytest.fixture(scope="module")
def own_public() -> Iterator[str]:
    """A public address of this host's."""
    subprocess.run(["ip", "address", "replace", f"{OWN_PUBLIC}/32", "dev", "lo"], check=True)
    yield OWN_PUBLIC
    subprocess.run(["ip", "address", "delete", f"{OWN_PUBLIC}/32", "dev", "lo"], check=True)


def test_the_same_without_root(rootless_home: Path, world: Internet, own_public: str) -> None:
    place = rootless_home / f"tun-{os.urandom(4).hex()}"
    world.resolv_conf.parent.chmod(0o755)
    resolv_conf = rootless_home / "resolv.conf"
    resolv_conf.write_text(world.resolv_conf.read_text())
    world.resolv_conf = resolv_conf
    environ, fd = handed_over(world)
    nodes = [f"tests/{file}::{name}" if name else f"tests/{file}" for file, names in SAME.items() for name in names]
    environ |= {
        "BOXWOOD_TEST_OWN_ADDRESS": own_public,
        rootless.ENVIRONMENT: "1",
        guard.ENVIRONMENT: "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "120", *nodes]
    done = subprocess.run(
        rootless.with_tun(place)(command), env={**rootless.environment(rootless_home), **environ},
        cwd=rootless.REPOSITORY, pass_fds=(fd,), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
        check=False,
    )  # fmt: skip
    out = done.stdout.decode()
    assert done.returncode == 0, out[-6000:]
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None and int(passed[1]) >= len(nodes) and "skipped" not in out, out[-500:]
