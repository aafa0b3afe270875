"""SFTP (attacks.md, items 15 and 18): what a client asks is bounded, whatever it asks, and ends with the client."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Callable
from typing import Any

import asyncssh
import pytest

import sshclients
from boxwood.engine.api import GuestError
from boxwood.engine.handleapi import PIECE
from boxwood.server.ssh import sftp
from serving import Running
from sshclients import connect, vm_with

server, key = sshclients.server, sshclients.key


@pytest.fixture
async def vm(server: Running, key: Any) -> str:
    return await vm_with(server, key)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.01)


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def packet(kind: int, *fields: bytes) -> bytes:
    return text(bytes([kind]) + b"".join(fields))


INIT = packet(1, struct.pack(">I", 3))


def opening(number: int, path: bytes, flags: int) -> bytes:
    return packet(3, struct.pack(">I", number), text(path), struct.pack(">II", flags, 0))


async def test_a_box_that_goes_takes_its_files_with_it(server, key, vm):
    async with connect(server, vm, key) as there, there.start_sftp_client() as files:
        file = await files.open("/file", "w")
        await file.write("one")
        assert server.machine.core._boxes.running(vm)
        server.machine.boxes[vm].die("killed")
        await until(lambda: not server.machine.core._boxes.live(vm))
        with pytest.raises(asyncssh.SFTPFailure, match="not open any more: the box was lost: killed"):
            await file.write("two")
        assert not server.machine.core._boxes.live(vm), "nothing is booted for a file that is gone"
        with pytest.raises(asyncssh.SFTPFailure, match="not open any more"):
            await file.close()
        async with files.open("/other", "w") as other:
            await other.write("there is a new one")
    assert not server.machine.core.handles._open


@pytest.mark.parametrize("whole", [False, True], ids=["channel", "connection"])
async def test_what_a_client_leaves_open_is_closed(server, key, vm, whole):
    async with connect(server, vm, key) as there:
        files = await there.start_sftp_client()
        for name in ("a", "b"):
            await files.open(f"/{name}", "w")
        assert server.machine.core.handles._open[vm] == 2
        if whole:
            there.abort()
        else:
            files.exit()
        await until(lambda: not server.machine.core.handles._open)
        assert not server.machine.core._boxes.running(vm)
        assert sorted(server.machine.called("handle.close")) == [b"/a", b"/b"]


async def test_how_much_may_be_open_is_bounded(server, key, vm, monkeypatch):
    monkeypatch.setattr(sftp, "FILES", 2)
    monkeypatch.setattr(sftp, "DIRECTORIES", 2)
    async with connect(server, vm, key) as there, there.start_sftp_client() as files:
        first, _ = [await files.open("/file", "w") for _ in range(2)]
        with pytest.raises(asyncssh.SFTPFailure, match="2 files are open"):
            await files.open("/file")
        await first.close()
        await files.open("/file")
        handler = files._handler
        listing, _ = [await handler.opendir(b"/") for _ in range(2)]
        with pytest.raises(asyncssh.SFTPFailure, match="2 directories are open"):
            await handler.opendir(b"/")
        await handler.close(listing)
        await handler.opendir(b"/")


async def test_files_of_a_vm_that_are_open_are_bounded_over_all(server, key, vm, monkeypatch):
    monkeypatch.setattr("boxwood.core.handles.HANDLES", 2)
    async with connect(server, vm, key) as one, connect(server, vm, key) as other:
        files, others = await one.start_sftp_client(), await other.start_sftp_client()
        opened = await files.open("/file", "w")
        await others.open("/file", "w")
        for client in (files, others):
            with pytest.raises(asyncssh.SFTPFailure, match="2 files of the VM are open"):
                await client.open("/file")
        await opened.close()
        await others.open("/file")


async def raw(there: Any) -> tuple[Any, Any]:
    """A channel that speaks no SFTP by itself, with a small window for what comes back."""
    writer, reader, _ = await there.open_session(subsystem="sftp", encoding=None, window=1 << 16)
    return reader, writer


@pytest.mark.parametrize("name", [b"\0\0\0\0", b"none"], ids=["there", "not there"])
async def test_a_client_that_takes_no_answers_is_given_no_more(server, key, vm, name, monkeypatch):
    """Though it asks for 500 times more than it takes, and whether or not there is what it asks for."""
    buffered: list[int] = []
    received = sftp.sftp.SFTPServerHandler._process_packet

    async def noted(handler: Any, *fields: Any) -> None:
        await received(handler, *fields)
        buffered.append(handler._writer.channel.get_write_buffer_size())

    monkeypatch.setattr(sftp.sftp.SFTPServerHandler, "_process_packet", noted)
    asked = packet(5, struct.pack(">I", 9), text(name), struct.pack(">QI", 0, PIECE))
    async with connect(server, vm, key) as there:
        async with there.start_sftp_client() as files, files.open("/file", "w"):
            pass
        _, writer = await raw(there)
        server.machine.boxes[vm].write("/file", b"x" * PIECE)
        writer.write(INIT + opening(1, b"/file", 1) + asked * (120 if name != b"none" else 20_000))
        await until(lambda: len(buffered) > 2)
        for _ in range(5):  # in which it could go on
            async with there.start_sftp_client() as files:
                await files.stat("/file")
        assert max(buffered) < 3 * PIECE
        writer.close()
    await until(lambda: not server.machine.core.handles._open)


@pytest.mark.parametrize("whole", [False, True], ids=["channel", "connection"])
async def test_a_copy_without_end_ends_with_its_client(server, key, vm, whole, monkeypatch):
    """`copy-data` of a file behind itself: there is always more of it to be copied."""
    copied: list[int] = []

    async def read(handle: Any, at: int, size: int) -> bytes:
        await asyncio.sleep(0)  # as of a box
        return bytes(size)

    async def write(handle: Any, at: int, data: bytes) -> None:
        copied.append(at)

    monkeypatch.setattr(server.machine.core.handles, "read", read)
    monkeypatch.setattr(server.machine.core.handles, "write", write)
    file = text(b"\0\0\0\0")
    copy = packet(200, struct.pack(">I", 2), text(b"copy-data"), file, bytes(16), file, struct.pack(">Q", 1))
    async with connect(server, vm, key) as there:
        _, writer = await raw(there)
        writer.write(INIT + opening(1, b"/file", 0b11011) + copy)
        await until(lambda: len(copied) > 10)
        (there.abort if whole else writer.close)()
        await until(lambda: not server.machine.core.handles._open)


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff" * 64,
        b"\0" * 64,
        packet(2) + INIT,
        INIT + INIT,
        INIT + packet(3),
        INIT + packet(3, b"\0\0\0\1", b"\xff\xff\xff\xff/file"),
        INIT + packet(5, b"\0\0\0\1", text(b"\0\0\0\0"), b"\xff" * 12),
        INIT + packet(200, b"\0\0\0\1", text(b"copy-data"), b"\xff" * 40),
        INIT + packet(200, b"\0\0\0\1", text(b"ranges@asyncssh.com"), text(b"x"), b"\xff" * 16),
        INIT + packet(77, b"\0\0\0\1"),
        packet(1, b"\xff\xff\xff\xff"),
        INIT[:-1],
    ],
)
async def test_what_is_no_sftp_harms_nobody(server, key, vm, sent):
    async with connect(server, vm, key) as there:
        reader, writer = await raw(there)
        writer.write(sent + packet(4, b"\0\0\0\1", text(b"no handle")))
        writer.write_eof()
        assert len(await reader.read()) < 4096
        async with there.start_sftp_client() as files:
            assert await files.realpath("/") == "/"
    await until(lambda: not server.machine.core.handles._open)


async def test_what_lies_out_of_all_files_is_refused(server, key, vm):
    async with connect(server, vm, key) as there, there.start_sftp_client() as files:
        async with files.open("/file", "w+") as file:
            for at in ((1 << 63) - 1, 1 << 63, (1 << 64) - 1):
                with pytest.raises(asyncssh.SFTPFailure, match="no file is as long"):
                    await file.write("x", at)
                with pytest.raises(asyncssh.SFTPFailure, match="no file is as long"):
                    await file.read(1, at)
        for change in ({"size": 1 << 63}, {"uid": (1 << 32) - 1, "gid": 0}):
            with pytest.raises(asyncssh.SFTPFailure):
                await files.setstat("/file", asyncssh.SFTPAttrs(**change))
        for path in ("/nul\0", "/" + "x" * 5000):
            with pytest.raises(asyncssh.SFTPFailure, match="path"):
                await files.stat(path)


async def test_a_full_disk_is_told(server, key, vm):
    async with connect(server, vm, key) as there, there.start_sftp_client() as files:
        server.machine.fail["handle.write"] = [GuestError(errno.ENOSPC, "No space left on device: /file")]
        async with files.open("/file", "w") as file:
            with pytest.raises(asyncssh.SFTPFailure, match="no space is left in the VM"):
                await file.write("x")
            await file.write("there is again")


@pytest.mark.parametrize("durable", [True, False])
async def test_what_was_written_in_a_durable_vm_is_on_the_disk_once_it_is_closed(server, key, durable):
    vm = await vm_with(server, key, durable=durable)
    async with connect(server, vm, key) as there, there.start_sftp_client() as files:
        for name in ("/new", "/looked at"):
            async with files.open(name, "w"):
                pass
        for name, how in (("/new", "r+"), ("/looked at", "r")):
            async with files.open(name, how) as file:
                await (file.write("x") if how == "r+" else file.read())
    assert server.machine.called("handle.flush") == ([b"/new", b"/looked at", b"/new"] if durable else [])


async def test_names_of_the_servers_own_users_are_not_told(server, key, vm):
    async with connect(server, vm, key) as there, there.start_sftp_client() as files:
        async with files.open("/file", "w"):
            pass
        (longname,) = [one.longname for one in await files.readdir("/") if one.filename == "file"]
        assert longname.split()[2:4] == ["0", "0"]
