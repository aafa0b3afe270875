"""SSH into VMs, with the ssh of this machine as the client, in real boxes."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import servers
from boxwood import VM

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh, of openssh-client")
Ssh = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    found = servers.Server(tmp_path_factory.mktemp("ssh") / "data", ssh="127.0.0.1:0").start()
    yield found
    found.down()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs: `mine`, `other`."""
    place = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    return place


@pytest.fixture
def vm(server: servers.Server, keys: Path) -> Iterator[VM]:
    with server.client() as client, client.fork("ubuntu") as found:
        give(server, found, {"me": {"public_key": (keys / "mine.pub").read_text().strip(), "name": "of the tests"}})
        yield found


def give(server: servers.Server, vm: VM, wanted: object) -> dict:
    status, body = server.request("PATCH", f"/v1/vms/{vm.id}", {"ssh_public_keys": wanted})
    assert status == 200, body
    return body


def command(server: servers.Server, keys: Path, user: str, *words: str, key: str = "mine") -> list[str]:
    host, _, port = json.loads((server.data / "server.json").read_text())["ssh"].rpartition(":")
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes", "LogLevel=ERROR"]
    given = [word for option in (*options, "BatchMode=yes") for word in ("-o", option)]
    return ["ssh", "-F", "none", *given, "-i", str(keys / key), "-p", port, "-l", user, *words[:-1], host, words[-1]]


def ssh(server: servers.Server, keys: Path, user: str, *words: str, key: str = "mine", stdin: bytes = b""):
    """The last of the words is the command."""
    return subprocess.run(command(server, keys, user, *words, key=key), input=stdin, capture_output=True, timeout=60)


def test_a_command(server, keys, vm):
    done = ssh(server, keys, vm.id, "echo out; echo err >&2; id -u; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n0\n", b"err\n", 3)
    assert ssh(server, keys, vm.id.lower(), "hostname").returncode == 0
    vm.update(name="ssh-box")
    assert ssh(server, keys, "ssh-box", "cat /proc/sys/kernel/hostname").stdout == b"ssh-box\n"


def test_much_input_and_output(server, keys, vm):
    data = os.urandom(3 << 20)
    assert ssh(server, keys, vm.id, "cat", stdin=data).stdout == data
    assert ssh(server, keys, vm.id, "wc -c", stdin=data).stdout.strip() == b"%d" % len(data)
    assert ssh(server, keys, vm.id, "-T", "exit 4", stdin=data).returncode == 4


def test_what_was_started_ends_with_the_connection(server, keys, vm):
    with subprocess.Popen(
        command(server, keys, vm.id, "echo $$; exec sleep 1000"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        assert vm.run(f"kill -0 {pid}").exit_code == 0
        client.kill()
    servers.until(lambda: vm.run(f"kill -0 {pid}").exit_code != 0)


def test_a_terminal(server, keys, vm):
    master, slave = os.openpty()
    with subprocess.Popen(
        command(server, keys, vm.id, "-tt", "stty size; tty; read line; echo got:$line"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    ) as client:
        os.close(slave)
        shown = _until(master, b"/dev/pts/")
        os.write(master, b"typed\r")
        shown += _until(master, b"got:typed")
        assert client.wait(30) == 0
    os.close(master)


def _until(fd: int, wanted: bytes) -> bytes:
    shown = b""
    while wanted not in shown:
        assert select.select([fd], [], [], 30)[0], shown
        shown += os.read(fd, 4096)
    return shown


def test_ports_of_the_vm_and_of_nothing_else(server, keys, vm):
    vm.write_file("/srv.py", "import socket\ns=socket.create_server(('127.0.0.1',7000))\nprint('ready',flush=True)\n"
                  "while True:\n c,_=s.accept()\n c.sendall(b'of the vm')\n c.close()\n")  # fmt: skip
    run = vm.run("python3 /srv.py", background=True)
    servers.until(lambda: "ready" in run.refresh().stdout)
    inner, outer = servers.free_port(), servers.free_port()
    forwards = ("-L", f"{inner}:localhost:7000", "-L", f"{outer}:example.com:80")
    with subprocess.Popen(
        command(server, keys, vm.id, *forwards, "echo up; exec sleep 1000"),
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    ) as client:
        assert client.stdout is not None and client.stdout.readline() == b"up\n"
        with socket.create_connection(("127.0.0.1", inner)) as sock:
            assert sock.recv(100) == b"of the vm"
        with socket.create_connection(("127.0.0.1", outer)) as sock:
            assert sock.recv(100) == b""
        client.kill()
    own = subprocess.run(
        command(server, keys, vm.id, "-W", f"127.0.0.1:{server.port}", "-N", "x")[:-1], capture_output=True, timeout=60,
        input=b"GET /v1/health HTTP/1.0\r\n\r\n",
    )  # fmt: skip
    assert b"HTTP" not in own.stdout


def test_only_with_a_key_of_the_vm(server, keys, vm):
    assert ssh(server, keys, vm.id, "true", key="other").returncode == 255
    assert ssh(server, keys, "nobody", "true").returncode == 255
    with server.client() as client, client.fork(vm.id) as fork:
        assert ssh(server, keys, fork.id, "true").returncode == 255, "a fork inherits no keys"
    shown = give(server, vm, {"two": {"public_key": (keys / "other.pub").read_text().strip()}})["network"]
    assert [key["id"] for key in shown["ssh_public_keys"]] == ["me", "two"]
    assert shown["ssh_public_keys"][0]["fingerprint"].startswith("SHA256:")
    assert ssh(server, keys, vm.id, "true", key="other").returncode == 0
    give(server, vm, {"two": None})
    assert ssh(server, keys, vm.id, "true", key="other").returncode == 255
    give(server, vm, [])
    assert ssh(server, keys, vm.id, "true").returncode == 255


def test_a_key_that_is_taken_away_ends_what_is_open(server, keys, vm):
    with subprocess.Popen(
        command(server, keys, vm.id, "echo up; exec sleep 1000"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None and client.stdout.readline() == b"up\n"
        give(server, vm, {"me": None})
        assert client.wait(30) == 255


def test_rules_decide_who_may_log_in(server, keys, vm):
    def ruled(**rule: object) -> int:
        wanted = {"type": "inbound", "priority": 1, **rule}
        status, body = server.request("PATCH", f"/v1/vms/{vm.id}", {"policies": {"rules": {"door": wanted}}})
        assert status == 200, body
        return ssh(server, keys, vm.id, "true").returncode

    mine, other = ((keys / f"{name}.pub").read_text().strip() for name in ("mine", "other"))
    assert ruled(action="deny", match={"via": ["ssh"]}) == 255
    assert ruled(action="allow", match={"via": ["ssh"], "ips": ["192.0.2.1"]}) == 255
    assert ruled(action="allow", match={"via": ["ssh"], "ssh_keys": [other]}) == 255
    assert ruled(action="allow", match={"via": ["ssh"], "ips": ["127.0.0.1"], "ssh_keys": [mine]}) == 0
    assert ruled(action="deny", match={"ports": [22]}) == 0, "it is not about ssh"


@pytest.mark.parametrize("state", ["new", "open"])
def test_rules_that_let_somebody_in_no_longer_end_what_he_has_open(server, keys, vm, state):
    with subprocess.Popen(
        command(server, keys, vm.id, "echo up; exec sleep 1000"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None and client.stdout.readline() == b"up\n"
        shut = {
            "type": "inbound",
            "priority": 1,
            "action": "deny",
            "match": {"via": ["ssh"], "connection_state": [state]},
        }
        assert server.request("PATCH", f"/v1/vms/{vm.id}", {"policies": {"rules": {"shut": shut}}})[0] == 200
        assert client.wait(30) == 255


def test_what_is_not_offered(server, keys, vm):
    sftp = subprocess.run(command(server, keys, vm.id, "-s", "sftp"), capture_output=True, timeout=60, input=b"")
    assert sftp.returncode != 0
    assert ssh(server, keys, vm.id, "-A", "echo ${SSH_AUTH_SOCK:-none}").stdout == b"none\n"
    for more in (["-o", "PreferredAuthentications=password"], ["-o", "PreferredAuthentications=keyboard-interactive"]):
        assert ssh(server, keys, vm.id, *more, "true").returncode == 255


def test_files_are_copied_as_scp_has_always_done_it(server, keys, vm, tmp_path):
    """`scp -O` runs the VM's own scp, and speaks with that over the command's input and output."""
    (tmp_path / "file").write_bytes(data := os.urandom(100_000))
    words = command(server, keys, vm.id, "")
    options = [word for word in words[1:-2] if word not in ("-l", vm.id)]
    options[options.index("-p")] = "-P"
    target = f"{vm.id}@{words[-2]}:/root/there"
    subprocess.run(["scp", "-O", *options, tmp_path / "file", target], check=True, timeout=60, capture_output=True)
    assert vm.read_file("/root/there") == data


def test_the_host_key_stays_the_same_and_is_the_servers_own(server, keys, vm):
    key = server.data / "ssh_host_key"
    assert key.stat().st_mode & 0o777 == 0o600 and b"PRIVATE KEY" in key.read_bytes()


@pytest.mark.parametrize(
    "wanted",
    [
        {"k": {"public_key": "ssh-ed25519 AAAA"}},
        {"k": {"public_key": "ssh-dss AAAAB3NzaC1kc3MAAACB"}},
        {"k": {"public_key": 'command="x" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI'}},
        {"K": None},
        {"k": {}},
        ["x"],
        "text",
        5,
    ],
)
def test_keys_that_are_none(server, vm, wanted):
    status, body = server.request("PATCH", f"/v1/vms/{vm.id}", {"ssh_public_keys": wanted})
    assert (status, body["error"]["code"]) == (400, "bad_request"), body
    assert "ssh_public_keys" in body["error"]["details"]["violations"][0]["field"]
