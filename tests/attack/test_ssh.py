"""SSH into VMs (attacks.md, item 28): who is not meant to log in, and what a login must not lead to."""

from __future__ import annotations

import asyncio

import asyncssh
import pytest

import sshclients
from boxwood.server.ssh import login
from guestports import listening
from sshclients import connect, vm_with
from together import together

server, key = sshclients.server, sshclients.key


@together("user", ["{other}", "nobody", "ubuntu", "", "root", "../{vm}", "{vm}\0", "{vm} ", "x" * 10_000])
async def test_a_key_is_good_for_its_own_vm_alone(server, key, user):
    vm, other = await vm_with(server, key), await vm_with(server, asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises((asyncssh.Error, OSError, ValueError)):
        await connect(server, user.format(vm=vm, other=other), key)
    async with connect(server, vm, key) as there:
        assert (await there.run("echo in")).stdout == "in\n"


async def test_a_connection_may_not_try_keys_without_end(server, key):
    vm = await vm_with(server, key)
    wrong = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(login.ATTEMPTS)]
    with pytest.raises((asyncssh.Error, OSError)):
        await connect(server, vm, [*wrong, key])


async def test_logins_that_fail_shut_out_whoever_comes_from_there(server, key, monkeypatch):
    monkeypatch.setattr(login, "FAILED", 3)
    vm, wrong = await vm_with(server, key), asyncssh.generate_private_key("ssh-ed25519")
    for _ in range(3):
        with pytest.raises((asyncssh.Error, OSError)):
            await connect(server, vm, wrong)
    with pytest.raises((asyncssh.Error, OSError)):
        await connect(server, vm, key)


async def test_strangers_are_bounded(server, key, monkeypatch):
    """Connections that never log in: of one address half of those that there may be."""
    monkeypatch.setattr(login, "MOST_STRANGERS", 8)
    vm = await vm_with(server, key)
    host, _, port = server.said["ssh"].rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
    for reader, _ in silent:
        assert (await reader.readline()).startswith(b"SSH-2.0-")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await reader.read() == b""
    writer.close()
    for _, writer in silent:
        writer.close()
    async with asyncio.timeout(20):
        while True:  # as soon as one of them has gone
            try:
                async with connect(server, vm, key) as there:
                    assert (await there.run("echo in")).stdout == "in\n"
                break
            except (asyncssh.Error, OSError):
                await asyncio.sleep(0.01)


@together("host", ["127.0.0.2", "10.0.0.1", "example.com", "169.254.169.254", "{vm}", "host", "::ffff:127.0.0.1"])
async def test_a_forwarded_port_leads_nowhere_else(server, key, host):
    vm = await vm_with(server, key)
    async with connect(server, vm, key) as there:
        with pytest.raises(asyncssh.ChannelOpenError, match="only ports of the VM itself"):
            await there.open_connection(host.format(vm=vm), server.port)


async def test_the_servers_own_ports_are_not_the_vms(server, key):
    vm = await vm_with(server, key)
    async with connect(server, vm, key) as there:
        reader, writer = await there.open_connection("localhost", server.port, encoding=None)
        writer.write(b"GET /v1/health HTTP/1.0\r\n\r\n")
        assert await reader.read() == b""


async def test_what_is_asked_back_of_the_client_or_of_the_host_is_refused(server, key):
    vm = await vm_with(server, key)
    async with connect(server, vm, key) as there:
        with pytest.raises(asyncssh.ChannelListenError):
            await there.forward_remote_port("", 0, "localhost", 80)
        with pytest.raises((asyncssh.ChannelListenError, asyncssh.ChannelOpenError)):
            await there.open_unix_connection("/run/boxwood/socket")
        _, reader, errors = await there.open_session(subsystem="netconf")
        assert (await reader.read(), await errors.read()) == ("", "boxwood: there is no netconf here, only sftp\r\n")


async def test_channels_of_one_connection_are_bounded(server, key):
    vm = await vm_with(server, key)
    async with connect(server, vm, key) as there:
        held = [await there.create_process("hang") for _ in range(login.CHANNELS)]
        more = await there.run("echo in")
        assert more.exit_status == 255 and "too many channels" in more.stderr
        for process in held:
            process.close()
            await process.wait_closed()
        async with asyncio.timeout(20):
            while (await there.run("echo in")).exit_status:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("whole", [False, True], ids=["channel", "connection"])
async def test_a_port_is_let_go_of_with_its_channel(server, key, whole):
    """What listens there says nothing, and does not mind that nothing comes any more."""
    vm = await vm_with(server, key)
    came, go = asyncio.Event(), asyncio.Event()

    async def silent(reader, writer):
        assert await reader.readexactly(5) == b"hello"
        came.set()
        await go.wait()

    ports = server.machine.core.ports
    async with listening(server, vm, silent, 8080), connect(server, vm, key) as there:
        _, writer = await there.open_connection("localhost", 8080, encoding=None)
        writer.write(b"hello")
        await came.wait()
        assert ports._open[vm] == 1
        if whole:
            there.abort()
        else:
            writer.close()
        async with asyncio.timeout(20):
            while ports._open[vm]:
                await asyncio.sleep(0.01)
        go.set()
