"""SSH into VMs, with the ssh of this machine as the client, in real boxes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import select
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

import servers
from boxwood import VM, ResourceBusy

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
    other = subprocess.run(command(server, keys, vm.id, "-s", "netconf"), capture_output=True, timeout=60, input=b"")
    assert other.returncode != 0
    assert ssh(server, keys, vm.id, "-A", "echo ${SSH_AUTH_SOCK:-none}").stdout == b"none\n"
    for more in (["-o", "PreferredAuthentications=password"], ["-o", "PreferredAuthentications=keyboard-interactive"]):
        assert ssh(server, keys, vm.id, *more, "true").returncode == 255


def test_files_are_copied_as_scp_has_always_done_it(server, keys, vm, tmp_path):
    """`scp -O` runs the VM's own scp, and speaks with that over the command's input and output."""
    (tmp_path / "file").write_bytes(data := os.urandom(100_000))
    options, target = copying(server, keys, vm)
    words = ["scp", "-O", *options, tmp_path / "file", f"{target}:/root/there"]
    subprocess.run(words, check=True, timeout=60, capture_output=True)
    assert vm.read_file("/root/there") == data


# SFTP


def copying(server: servers.Server, keys: Path, vm: VM) -> tuple[list[str], str]:
    """Options of scp and sftp, and where they go."""
    words = command(server, keys, vm.id, "")
    options = [word for word in words[1:-2] if word not in ("-l", vm.id)]
    options[options.index("-p")] = "-P"
    return options, f"{vm.id}@{words[-2]}"


def sftp(server: servers.Server, keys: Path, vm: VM, *lines: str, fails: bool = False) -> str:
    """What it says; it ends at the first line that fails."""
    options, target = copying(server, keys, vm)
    done = subprocess.run(
        ["sftp", *options, "-b", "-", target], input="\n".join(lines).encode(), capture_output=True, timeout=100
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert (done.returncode != 0) is fails, said
    return said


def client(server: servers.Server, keys: Path, vm: VM, works: Callable[[asyncssh.SFTPClient], Any]) -> Any:
    """With asyncssh, which can say what `sftp` does not."""

    async def go() -> Any:
        host, _, port = json.loads((server.data / "server.json").read_text())["ssh"].rpartition(":")
        async with asyncssh.connect(
            host, int(port), username=vm.id, client_keys=[str(keys / "mine")], known_hosts=None, agent_path=None,
            config=None,
        ) as there, there.start_sftp_client(path_encoding=None) as found:  # fmt: skip
            return await works(found)

    return asyncio.run(go())


def test_files_go_over_sftp_and_back(server, keys, vm, tmp_path):
    """With sftp's and scp's own means, broken off and taken up again."""
    (tmp_path / "up").write_bytes(data := os.urandom(20 << 20))
    (tmp_path / "part").write_bytes(data[: 7 << 20])
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "in it").write_text("tree")
    vm.write_file("/root/begun", data[: 3 << 20])
    said = sftp(
        server, keys, vm, "pwd", "mkdir dir", f"put -p {tmp_path}/up dir/file", f"put -a {tmp_path}/up begun",
        f"get dir/file {tmp_path}/down", f"get -a begun {tmp_path}/part", "ln -s file dir/link", "ls -l dir",
        "rename dir/file dir/renamed", "rm dir/link", "df", f"put -r {tmp_path}/tree dir", "chmod 600 dir/renamed",
    )  # fmt: skip
    assert "/root\n" in said and "link" in said
    assert (tmp_path / "down").read_bytes() == data and (tmp_path / "part").read_bytes() == data
    assert vm.run(
        "sha256sum < dir/renamed; sha256sum < begun; stat -c %a dir/renamed; cat 'dir/tree/in it'"
    ).stdout == (f"{(sum_ := hashlib.sha256(data).hexdigest())}  -\n{sum_}  -\n600\ntree")
    assert vm.run("stat -c %Y dir/renamed").stdout.strip() == str(int((tmp_path / "up").stat().st_mtime))
    options, target = copying(server, keys, vm)
    for words in ([f"{target}:dir/renamed", tmp_path / "by-scp"], ["-r", tmp_path / "tree", f"{target}:/root/by-scp"]):
        subprocess.run(["scp", *options, *words], check=True, timeout=60, capture_output=True)
    assert (tmp_path / "by-scp").read_bytes() == data
    assert vm.run("cat '/root/by-scp/in it'").stdout == "tree"


def test_sftp_says_what_is_in_the_way(server, keys, vm, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    vm.run("mkfifo /root/fifo; mkdir -p /root/full/er; ln -s loop /root/loop")
    for line, word in {
        "get nothing": "not found", "rmdir full": "Failure", "rm full": "Failure",
        f"put {tmp_path}/file /proc/file": "Permission denied", f"put {tmp_path}/file fifo": "Failure",
        "get loop": "", f"put {tmp_path}/file no/such": "No such file",
    }.items():  # fmt: skip
        assert word in sftp(server, keys, vm, f"lcd {tmp_path}", line, fails=True), line


def test_a_full_disk_is_told(server, keys):
    async def works(there: asyncssh.SFTPClient) -> None:
        with pytest.raises(asyncssh.SFTPFailure, match="no space is left in the VM"):
            async with there.open(b"/root/file", "wb") as file:
                await file.write(bytes(40 << 20))
        assert {b"etc", b"usr"} <= {*await there.listdir(b"/")}

    with server.client() as made, made.fork("ubuntu", disk_mib=32) as found:
        give(server, found, [(keys / "mine.pub").read_text().strip()])
        client(server, keys, found, works)


def test_what_only_other_clients_of_sftp_say(server, keys, vm):
    async def works(there: asyncssh.SFTPClient) -> None:
        odd = b"/root/new\nline \xff\xfe"
        async with there.open(odd, "xb") as file:
            await file.write(b"odd")
            await file.write(b"end", 1 << 20)
            assert (await file.stat()).size == (1 << 20) + 3
            await file.truncate(2)
            await file.fsync()
        with pytest.raises(asyncssh.SFTPFailure, match="File exists"):
            await there.open(odd, "xb")
        async with there.open(odd, "ab") as file:
            await file.write(b"-more")
        await there.link(odd, b"second")
        await there.symlink(b"/../../etc/hostname", b"link")
        assert await there.realpath(b"link") == b"/etc/hostname"
        assert await there.realpath(b"./nothing") == b"/root/nothing"
        assert await there.readlink(b"link") == b"/../../etc/hostname"
        assert [name.attrs.size async for name in there.scandir(b"/root") if name.filename == odd[6:]] == [7]
        assert await (await there.open(b"link", "rb")).read() == vm.read_file("/etc/hostname")
        for mode in ("rb", "wb", "r+b", "ab"):  # neither waits for the other end
            with pytest.raises(asyncssh.SFTPFailure, match="not a regular file"):
                await there.open(b"fifo", mode)
        await there.setstat(b"second", asyncssh.SFTPAttrs(size=3, permissions=0o640, uid=5, gid=6, atime=7, mtime=8))
        found = await there.stat(odd)
        assert (found.size, found.permissions & 0o7777, found.uid, found.gid, found.mtime) == (3, 0o640, 5, 6, 8)
        await there.rename(b"second", b"third")
        with pytest.raises(asyncssh.SFTPFailure, match="File exists"):
            await there.rename(b"third", odd)
        await there.posix_rename(b"link", b"third")
        with pytest.raises(asyncssh.SFTPFailure, match="directory"):
            await there.remove(b"/root")
        with pytest.raises(asyncssh.SFTPFailure, match="no file is as long"):
            await (await there.open(odd, "r+b")).write(b"x", (1 << 64) - 1)
        await there.remove(odd)
        for place in (b"/dev", b"/proc", b"/sys"):
            with pytest.raises(asyncssh.SFTPPermissionDenied, match="not on the VM's disk"):
                await there.listdir(place)

    vm.run("mkfifo /root/fifo")
    client(server, keys, vm, works)
    assert vm.run("cat /root/third").stdout == vm.run("cat /etc/hostname").stdout


def test_a_directory_of_very_many(server, keys, vm):
    vm.run("mkdir /root/many; cd /root/many; seq 10000 | xargs touch")

    async def works(there: asyncssh.SFTPClient) -> None:
        assert {int(name) for name in await there.listdir(b"many")} == {*range(1, 10_001)}

    client(server, keys, vm, works)


def test_a_file_that_is_open_keeps_the_vm_and_does_not_hold_it_up(server, keys, vm):
    """It is in use, can be forked meanwhile, and what comes later is its own."""

    async def works(there: asyncssh.SFTPClient) -> None:
        file = await there.open(b"/root/open", "wb")
        await file.write(b"before")
        assert vm.refresh().state == "running"
        fork = await asyncio.to_thread(vm.fork)
        await file.write(b" and after")
        assert await asyncio.to_thread(fork.read_file, "/root/open") == b"before"
        assert await asyncio.to_thread(vm.read_file, "/root/open") == b"before and after"
        await asyncio.to_thread(fork.delete)
        with pytest.raises(ResourceBusy):
            await asyncio.to_thread(vm.update, immutable=True)
        await file.close()
        assert vm.refresh().state == "idle"
        await asyncio.to_thread(vm.update, immutable=True)
        with pytest.raises(asyncssh.SFTPPermissionDenied, match="immutable"):
            await there.open(b"/root/open", "rb")
        await asyncio.to_thread(vm.delete)
        with pytest.raises(asyncssh.SFTPNoSuchFile, match="there is no VM"):
            await there.stat(b"/root")

    client(server, keys, vm, works)
