"""An agent's first command: the package managers of a VM, over this machine's own mirrors.

What the VM may reach beside the internet is read from the machine's own settings: where pip, npm and apt go here.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from amounts import amount
from boxwood import VM
from boxwood.engine.network.addresses import is_public
from boxwood.engine.network.exceptions import Exceptions
from servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_PIP = """
import json
from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI
configuration = Configuration(isolated=False); configuration.load()
named = [value for key, value in configuration.items() if "index-url" in key]
print(json.dumps([PyPI.simple_url, "https://" + PyPI.file_storage_domain, *named]))
"""


def mirrors() -> list[str]:
    """The hosts that pip, npm and apt ask on this machine."""
    urls = json.loads(subprocess.run([sys.executable, "-c", _PIP], capture_output=True, text=True, check=True).stdout)
    if shutil.which("npm"):
        urls.append(subprocess.run(["npm", "config", "get", "registry"], capture_output=True, text=True).stdout.strip())
    if shutil.which("apt-get"):
        targets = ["apt-get", "indextargets", "--format", "$(SITE)"]
        urls += subprocess.run(targets, capture_output=True, text=True).stdout.split()
    return sorted({host for url in urls if (host := urlsplit(url).hostname)})


def exceptions() -> list[str]:
    """Those addresses of theirs that the operator has to allow."""
    found = set()
    for host in mirrors():
        try:
            addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, 443, socket.AF_INET)}
        except OSError:
            continue
        found |= {address for address in addresses if not is_public(ipaddress.ip_address(address))}
    try:
        Exceptions.parse(sorted(found))
    except ValueError as error:
        pytest.skip(f"this machine's mirrors are where no VM may go: {error}")
    return sorted(found)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"network_allow": ",".join(exceptions()), "share_client_config": "true"}
    server = Server(tmp_path_factory.mktemp("installs") / "data", **settings).start()
    yield server
    server.down()


@pytest.fixture
def vm(server: Server) -> Iterator[VM]:
    with server.client() as box, box.fork("ubuntu") as vm:
        yield vm


def test_pip_installs(vm: VM) -> None:
    venv = "python3 -m venv /tmp/v && /tmp/v/bin/pip install -q six && /tmp/v/bin/python -c 'import six; print(6)'"
    bare = "python3 -m pip install -q --target /tmp/p six && PYTHONPATH=/tmp/p python3 -c 'import six; print(6)'"
    has_pip = vm.run("python3 -m pip --version").exit_code == 0  # to put it into a venv takes longer than all else
    run = vm.run(amount(bare if has_pip else venv, venv))
    assert (run.exit_code, run.stdout) == (0, "6\n"), run.stderr
    usage = vm.network()
    assert usage.mode == "internet" and usage.received_bytes > 5000 and usage.connections >= 1


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_npm_installs(vm: VM) -> None:
    run = vm.run("mkdir /tmp/n && cd /tmp/n && npm install --silent is-number && ls node_modules")
    assert (run.exit_code, run.stdout.split()[-1]) == (0, "is-number"), run.stderr


@pytest.mark.full  # all lists of packages are fetched for it; pip and npm go the same ways
@pytest.mark.skipif(not shutil.which("apt-get"), reason="this is no Debian")
def test_apt_installs_as_root(vm: VM) -> None:
    run = vm.run("apt-get -qq update && apt-get -qq install -y hello >/dev/null && hello && id -u")
    assert (run.exit_code, run.stdout) == (0, "Hello, world!\n0\n"), run.stderr


def test_what_is_forbidden_fails_fast_meanwhile(vm: VM, server: Server) -> None:
    """Boxwood's own interface, metadata and private addresses; told as events, over the interface."""
    own = next(iter(_own_addresses()), "10.0.0.1")
    targets = [(own, server.port), ("127.0.0.1", server.port), ("169.254.169.254", 80), ("10.0.0.1", 80)]
    for address, port in targets:
        run = vm.run(f"timeout 20 bash -c 'exec 3<>/dev/tcp/{address}/{port}'")
        assert run.exit_code == 1 and ("refused" in run.stderr or "unreachable" in run.stderr), (address, run)
    told = {(denial.address, denial.port) for denial in vm.network().denials}
    assert told == {target for target in targets if target[0] != "127.0.0.1"}  # which is the VM's own


def _own_addresses() -> Iterator[str]:
    for entry in socket.getaddrinfo(socket.gethostname(), 0, socket.AF_INET):
        if not str(entry[4][0]).startswith("127."):
            yield str(entry[4][0])
    said = subprocess.run(["ip", "-j", "-4", "address"], capture_output=True, text=True, check=True).stdout
    for link in json.loads(said):
        yield from (info["local"] for info in link["addr_info"] if not info["local"].startswith("127."))
