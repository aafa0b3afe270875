"""The server as a whole, on a real socket: its start, its end, and clients that do not behave."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
from dataclasses import replace

import httpx2
import pytest

from boxwood.client.discovery import is_alive
from boxwood.core.config import Config
from boxwood.core.core import DataInUse
from boxwood.engine.api import EngineUnavailable
from boxwood.images import host
from boxwood.images.shelf import ImageError
from boxwood.server import main, protocol
from fakes import fake_engine, release
from serving import Running, running


async def test_start_and_end(ground):
    config, machine = ground
    async with running(ground) as server:
        assert server.said["pid"] == os.getpid()
        assert is_alive(os.getpid(), os.getuid(), ticks=server.said["started"])
        assert not is_alive(os.getpid(), os.getuid(), ticks=server.said["started"] + 1)
        assert (config.data / "server.json").stat().st_mode & 0o777 == 0o600
        assert (config.data / "root.key").stat().st_mode & 0o777 == 0o600
        assert config.data.stat().st_mode & 0o777 == 0o700
        vm = await server.fork()
        await server.http.post(f"/v1/vms/{vm}/runs", json={"command": "put /f kept"})
    assert not (config.data / "server.json").exists()
    assert vm in machine.boxes, "boxes live on"
    async with running(ground) as server:
        answer = await server.http.post(f"/v1/vms/{vm}/runs", json={"command": "cat /f"})
        assert answer.json()["stdout"] == "kept"
        assert len(machine.called("boot")) == 1, "the box was taken over"


async def test_the_end_answers_those_who_wait(ground):
    async with running(ground) as server:
        vm = await server.fork()
        waiting = asyncio.create_task(server.http.post(f"/v1/vms/{vm}/runs", json={"command": "hang"}))
        while not server.machine.called("start_run"):
            await asyncio.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        answer = await waiting
        assert answer.status_code == 202
        await server.task
    async with running(ground) as server:
        release(server.machine, vm)
        answer = await server.http.get(f"/v1/vms/{vm}/runs/{answer.json()['run_id']}")
        assert answer.json()["state"] in ("running", "completed")


async def test_down(ground):
    async with running(ground) as server:
        vm = await server.fork()
        await server.http.post(f"/v1/vms/{vm}/runs", json={"command": "put /f kept"})
        assert (await server.http.post("/boxwood/down")).json() == {"down": True}
        await server.task
        assert not server.machine.boxes
    async with running(ground) as server:
        answer = await server.http.post(f"/v1/vms/{vm}/runs", json={"command": "cat /f"})
        assert answer.json()["stdout"] == "kept"


async def test_a_second_server_on_the_same_data_is_refused(ground):
    async with running(ground) as server:
        with pytest.raises(DataInUse, match="in use by another server"):
            await main._serve(ground[0])
        assert (server.config.data / "server.json").exists()


async def test_a_port_in_use_and_an_address_of_others(ground, tmp_path):
    config, _ = ground
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken_port = taken.getsockname()[1]
        with pytest.raises(main.CannotStart, match="another server"):
            await main._serve(Config(config.data, config.images, port=taken_port))
    with pytest.raises(main.CannotStart, match="cannot listen"):
        await main._serve(Config(config.data, config.images, host="203.0.113.1"))
    assert not config.data.exists()


async def test_a_wrong_exception_is_told_before_anything_is_started(ground):
    config, machine = ground
    with pytest.raises(main.CannotStart, match=r"network_allow.*mirror/"):
        await main._serve(replace(config, network_allow=("10.0.0.1", "mirror/")))
    assert not machine.called("start") and not config.data.exists()


async def test_exceptions_reach_the_engine(ground, monkeypatch):
    config, machine = ground
    given = []

    def engine(*places, **settings):
        given.append((places, settings))
        return fake_engine.FakeEngine(machine)

    monkeypatch.setattr(main, "HostEngine", engine)
    config = replace(config, network_allow=("10.0.0.1:443", "mirror.example"), require="limits", io_weight=70)
    async with running((config, machine)):
        pass
    settings = {
        "network": True, "network_allow": ("10.0.0.1:443", "mirror.example"), "require": "limits", "io_weight": 70,
    }  # fmt: skip
    assert given == [((config.data, config.images, config.ready_boxes), settings)]


async def test_a_host_that_cannot_run_boxes(ground):
    config, machine = ground
    machine.fail["start"] = [EngineUnavailable("run it as root")]
    with pytest.raises(EngineUnavailable, match="root"):
        await main._serve(config)
    assert not (config.data / "server.json").exists()


async def test_a_host_image_that_cannot_be_made(ground, monkeypatch):
    config, _ = ground

    def fails(directory, progress, **settings):
        progress("files", 1, 2)
        raise ImageError("the disk is full")

    monkeypatch.setattr(host, "ensure", fails)
    task = asyncio.create_task(main._serve(config))
    while not (config.data / "server.json").exists():
        await asyncio.sleep(0.001)
    server = Running(config, task, None)
    async with server.http:
        while "problem" not in (health := (await server.http.get("/v1/health")).json()):
            await asyncio.sleep(0.001)
        assert health["status"] == "unavailable"
        assert "the disk is full" in health["problem"]
        answer = await server.http.post("/v1/fork", json={"source_vm_name": "ubuntu"})
        assert answer.status_code == 503
    os.kill(os.getpid(), signal.SIGTERM)
    await task


HEAD = b"GET /v1/health HTTP/1.1\r\nhost: localhost\r\n"


async def test_heads_are_bounded(ground):
    async with running(ground) as server:
        assert b" 200 " in await server.raw(HEAD + b"connection: close\r\n\r\n")
        for many in (b"a: " + b"x" * 70_000 + b"\r\n", b"a: b\r\n" * 20_000):
            assert b" 200 " not in await server.raw(HEAD, many, b"connection: close\r\n\r\n")
        assert b" 200 " not in await server.raw(b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await server.http.get("/v1/health")).status_code == 200


async def test_whoever_dawdles_is_disconnected(ground, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    async with running(ground) as server:
        assert await server.raw() == b""
        assert await server.raw(HEAD) == b""


async def test_a_body_that_does_not_come(ground, monkeypatch):
    monkeypatch.setattr("boxwood.server.decode.BODY_SECONDS", 0.05)
    async with running(ground) as server:
        key = server.headers["authorization"].encode()
        head = b"POST /v1/fork HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: " + key
        answer = await server.raw(head + b"\r\ncontent-length: 10\r\n\r\n", b"{")
        assert b" 400 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize("before", [b"", HEAD + b"\r\n"], ids=["alone", "behind another"])
@pytest.mark.parametrize("more", [b"content-length: 10", b"content-length: 10\r\nexpect: 100-continue"])
async def test_a_body_that_does_not_begin_to_come(ground, monkeypatch, more, before):
    """Nobody waits for it, and it counts no longer as a request of its key."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "CONTINUE_SECONDS", 0.1)
    config, machine = ground
    async with running((replace(config, requests_at_once=1), machine)) as server:
        key = server.headers["authorization"].encode()
        asked = b"POST /v1/fork HTTP/1.1\r\nhost: localhost\r\nauthorization: " + key + b"\r\n" + more + b"\r\n\r\n"
        answer = await asyncio.wait_for(server.raw(before + asked), 20)
        assert answer.endswith(b"HTTP/1.1 100 Continue\r\n\r\n") == (b"expect" in more)
        assert answer.count(b"HTTP/1.1 200 ") == (1 if before else 0) and (before or b"expect" in more or not answer)
        while (answer := await server.http.get("/v1/whoami")).status_code == 429:
            await asyncio.sleep(0)
        assert answer.status_code == 200


async def test_nonsense_is_answered_or_hung_up_on(ground):
    async with running(ground) as server:
        for sent in (
            b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n", b"GET http://evil/ HTTP/1.1\r\nhost: evil\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
            b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ):  # fmt: skip
            assert b" 200 " not in await server.raw(sent, b"GET /nothing HTTP/1.1\r\nconnection: close\r\n\r\n"), sent
        assert (await server.http.get("/v1/health")).status_code == 200


async def test_an_upgrade_is_answered_as_what_it_asks_for(ground):
    """A handshake that is none, and one where there is no WebSocket."""
    async with running(ground) as server:
        upgrade = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-key": "x",
            "sec-websocket-version": "13",
        }
        answer = await server.http.get("/v1/vms/x/sessions/y/pty?cols=80", headers=upgrade)
        assert answer.status_code == 400 and "Sec-WebSocket-Key" in answer.text
        upgrade["sec-websocket-key"] = base64.b64encode(bytes(16)).decode()
        answer = await server.http.get("/v1/vms/x/sessions/y/pty?cols=80", headers=upgrade)
        assert (answer.status_code, answer.json()["error"]["details"]) == (404, {"resource": "vm"})
        assert (await server.http.get("/v1/vms", headers=upgrade)).json()["vms"] == []


async def test_a_client_that_sends_too_much_gets_to_hear_it(ground):
    async with running(ground) as server:
        for key in (server.headers, {"authorization": "Bearer nope"}):
            answer = await server.http.post("/v1/fork", content=b"x" * (9 << 20), headers=key)
            assert answer.status_code == (413 if key is server.headers else 401)
        assert (await server.http.get("/v1/whoami")).status_code == 200


async def test_what_nobody_reads_is_bounded(ground, monkeypatch):
    monkeypatch.setattr(protocol, "UNREAD_BYTES", 1 << 20)
    head = b"POST /v1/fork HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    async with running(ground) as server:
        await server.raw(head, *[b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 64)
        monkeypatch.setattr(protocol, "UNREAD_SECONDS", 0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head)
        assert b" 401 " in await reader.readline()
        writer.write(b"1\r\nx\r\n")
        await reader.read()
        writer.close()


async def test_large_files_over_a_socket(ground):
    async with running(ground) as server:
        vm = await server.fork()
        data = os.urandom((3 << 20) + 1)
        entry = {"path": "/f", "size": len(data), "upload_id": "u", "start": 0, "end": len(data)}
        body = {"op": "write", "writes": [{**entry, "content": base64.b64encode(data).decode()}]}
        assert (await server.http.post(f"/v1/vms/{vm}/sync", json=body)).json()["results"][0]["written"]
        answer = await server.http.post(f"/v1/vms/{vm}/sync", json={"op": "read", "path": "/f"})
        assert base64.b64decode(answer.json()["content"]) == data


async def test_a_file_that_shrinks_meanwhile_breaks_the_connection(ground, monkeypatch):
    async with running(ground) as server:
        vm = await server.fork()
        data = bytes(200_000)
        entry = {"path": "/f", "size": len(data), "upload_id": "u", "start": 0, "end": len(data)}
        body = {"op": "write", "writes": [{**entry, "content": base64.b64encode(data).decode()}]}
        await server.http.post(f"/v1/vms/{vm}/sync", json=body)
        monkeypatch.setattr("boxwood.server.stream.os.pread", lambda fd, size, at: b"")
        with pytest.raises(httpx2.RemoteProtocolError):
            await server.http.post(f"/v1/vms/{vm}/sync", json={"op": "read", "path": "/f"})
