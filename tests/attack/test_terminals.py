"""Terminals over WebSockets: whose they are, and what may be sent (attacks.md, items 30, 32 and 34)."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import struct

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from boxwood.core import ptys, signing
from boxwood.core.model import Caller
from boxwood.server import websocket
from boxwood.store import keys as key_rows
from serving import running

TEXT, BINARY, CLOSE, PING, CONTINUE = 1, 2, 8, 9, 0


class Estate:
    """A server with a VM, a session whose terminal somebody looks at, and a ticket for another one."""

    def __init__(self, server, vm, session):
        self.server, self.vm, self.session = server, vm, session

    @classmethod
    async def of(cls, server):
        vm = await server.fork()
        made = await server.http.post(f"/v1/vms/{vm}/sessions", json={})
        return cls(server, vm, made.json()["session_id"])

    def path(self, session=None, vm=None):
        return f"/v1/vms/{vm or self.vm}/sessions/{session or self.session}"

    async def ticket(self, **headers):
        answer = await self.server.http.post(f"{self.path()}/pty-ticket", json={}, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["ticket"]

    def look(self, query="", headers=None, **where):
        url = f"ws://127.0.0.1:{self.server.port}{self.path(**where)}/pty{query}"
        return connect(url, additional_headers=self.server.headers if headers is None else headers, proxy=None)

    async def status(self, query="", headers=None, **where):
        """101: it is opened."""
        try:
            async with self.look(query, headers, **where) as socket:
                await socket.recv()
                return 101
        except InvalidStatus as refused:
            assert json.loads(refused.response.body)["error"]["message"]
            return refused.response.status_code

    async def key(self, org="OTHER"):
        """Of another organisation, or another one of this one's."""
        core = self.server.machine.core
        if org == "OTHER":
            await core._database.write(lambda connection: key_rows.insert_org(connection, "OTHER", "other", 0))
            caller = Caller("OTHER", "other", "", "admin")
        else:
            caller = await core.keys.authenticate(self.server.headers["authorization"].split()[1])
        return await core.keys.create(caller, "x")


def frame(opcode, data=b"", *, final=True, length=None):
    mask = os.urandom(4)
    size = len(data) if length is None else length
    head = bytes([opcode | (0x80 if final else 0)])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += bytes([0x80 | 126]) + struct.pack(">H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack(">Q", size)
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))


async def raw(estate, query=""):
    """A connection that is a WebSocket by now."""
    reader, writer = await asyncio.open_connection("127.0.0.1", estate.server.port)
    key = base64.b64encode(bytes(16)).decode()
    lines = [
        f"GET {estate.path()}/pty{query} HTTP/1.1", f"host: 127.0.0.1:{estate.server.port}", "connection: upgrade",
        "upgrade: websocket", f"sec-websocket-key: {key}", "sec-websocket-version: 13",
        f"authorization: {estate.server.headers['authorization']}",
    ]  # fmt: skip
    writer.write("\r\n".join([*lines, "", ""]).encode())
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_another_organisations_terminal(ground):
    async with running(ground) as server:
        estate = await Estate.of(server)
        stranger = {"authorization": f"Bearer {(await estate.key()).key}"}
        assert await estate.status(headers=stranger) == 404
        assert (await server.http.post(f"{estate.path()}/pty-ticket", json={}, headers=stranger)).status_code == 404
        assert (
            await server.http.patch(estate.path(), json={"cols": 1, "rows": 1}, headers=stranger)
        ).status_code == 404
        own = await server.http.post("/v1/fork", json={"source_vm_name": "ubuntu"}, headers=stranger)
        assert await estate.status(headers=stranger, vm=own.json()["vm_id"]) == 404, "a session of another VM"
        assert await estate.status(headers={}) == 401
        assert await estate.status(headers={"authorization": "Bearer nonsense"}) == 401
        assert not server.machine.called("open_pty")
        assert await estate.status() == 101


async def test_a_ticket_is_good_for_one_session(ground, monkeypatch):
    async with running(ground) as server:
        estate = await Estate.of(server)
        other = await Estate.of(server)
        ticket = await estate.ticket()
        made = await server.http.post(f"/v1/vms/{estate.vm}/sessions", json={})
        expires, key_id, signature = ticket.split(".")
        theirs = await estate.key()
        for wrong in (
            {"session": made.json()["session_id"]}, {"vm": other.vm}, {"session": other.session, "vm": other.vm},
        ):  # fmt: skip
            assert await estate.status(f"?ticket={ticket}", {}, **wrong) == 401, wrong
        for changed in (
            f"{int(expires) + 1}.{key_id}.{signature}", f"{expires}.{theirs.key_id}.{signature}",
            f"{expires}.{key_id}.{signature[::-1]}", f"{expires}.{key_id}.", "x", "0.0.0", f"{ticket}.x", "A" * 256,
            f"{expires}.{key_id}.{signature}%0A",
        ):  # fmt: skip
            assert await estate.status(f"?ticket={changed}", {}) == 401, changed
        assert await estate.status(f"?ticket={ticket}", {"authorization": "Bearer nonsense"}) == 401
        assert await estate.status("?ticket=", {}) == 401
        assert not server.machine.called("open_pty")
        for path in (estate.path(), "/v1/vms"):
            answer = await server.http.get(f"{path}?ticket={ticket}", headers={"authorization": ""})
            assert answer.status_code == 401, "it is no key"
        assert await estate.status(f"?ticket={ticket}", {}) == 101
        now = signing.clock.now()
        monkeypatch.setattr(signing.clock, "now", lambda: now + (ptys.TICKET_SECONDS + 1) * 1_000_000)
        assert await estate.status(f"?ticket={ticket}", {}) == 401, "it is too late"


async def test_a_page_of_another_site(ground):
    """It cannot send a header of its own; with a ticket that it has come by it is refused all the same."""
    async with running(ground) as server:
        estate = await Estate.of(server)
        ticket = await estate.ticket()
        for origin in (
            "https://evil.example", "null", "http://localhost:3000", f"http://127.0.0.1.evil.example:{server.port}", "file://",
            f"http://127.0.0.1:{server.port + 1}", "http://127.0.0.1", "", f"http://127.0.0.1@evil:{server.port}",
        ):  # fmt: skip
            assert await estate.status("", {"origin": origin}) == 401, "no cookie, no key"
            assert await estate.status(f"?ticket={ticket}", {"origin": origin}) == 403, origin
        for host in ("evil.example", f"127.0.0.1.evil.example:{server.port}"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                f"GET {estate.path()}/pty?ticket={ticket} HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
                f"sec-websocket-key: {base64.b64encode(bytes(16)).decode()}\r\nsec-websocket-version: 13\r\norigin: http://{host}\r\n\r\n".encode()
            )
            assert b" 403 " in await reader.readline(), host
            writer.close()
        assert not server.machine.called("open_pty")
        assert await estate.status(f"?ticket={ticket}", {"origin": f"http://127.0.0.1:{server.port}"}) == 101
        assert await estate.status("", {**server.headers, "origin": "http://behind.a.proxy"}) == 101, "no browser"


@pytest.mark.parametrize("by_ticket", [False, True])
async def test_a_key_that_is_revoked_ends_it(ground, by_ticket):
    async with running(ground) as server:
        estate = await Estate.of(server)
        made = await estate.key("own")
        headers = {"authorization": f"Bearer {made.key}"}
        ticket = await estate.ticket(**headers)
        async with estate.look(f"?ticket={ticket}" if by_ticket else "", {} if by_ticket else headers) as socket:
            await socket.recv()
            assert (await server.http.delete(f"/v1/api-keys/{made.key_id}")).status_code == 204
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(socket.recv(), 20)
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "the API key has been revoked")
        assert await estate.status(f"?ticket={ticket}", {}) == 401
        assert await estate.status() == 101, "it goes on, for whoever may look"


async def test_no_ticket_is_logged(ground, caplog):
    caplog.set_level(logging.DEBUG)
    async with running(ground) as server:
        estate = await Estate.of(server)
        ticket = await estate.ticket()
        assert await estate.status(f"?ticket={ticket}", {}) == 101
        assert await estate.status(f"?ticket={ticket}x", {}) == 401
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith(("boxwood", "uvicorn")))
    assert ticket[:30] not in ours and ticket.split(".")[2] not in ours


BOMBS = {
    "a message too long": [frame(BINARY, b"x" * 1000, length=websocket.MESSAGE_BYTES + 1)],
    "a frame that says it is huge": [frame(BINARY, length=1 << 40)],
    "pieces of one message, together too long": [
        frame(BINARY, b"x" * 65536, final=False), *[frame(CONTINUE, b"x" * 65536, final=False)] * 5,
    ],
    "pieces without end": [frame(BINARY, final=False), *[frame(CONTINUE, final=False)] * 1000],
    "a text that is no text": [frame(TEXT, b"\xff\xfe")],
    "a text too long": [frame(TEXT, b" " * 5000)],
    "JSON as deep as it gets": [frame(TEXT, b'{"type":' + b"[" * 4000)],
    "no instruction": [frame(TEXT, b"[]")],
    "no size": [frame(TEXT, b'{"type":"resize","cols":0,"rows":1e9}')],
    "a size too large": [frame(TEXT, b'{"type":"resize","cols":1001,"rows":1}')],
    "an unmasked frame": [b"\x82\x01x"],
    "an opcode that there is none": [frame(3, b"x")],
    "compressed, which was not agreed": [bytes([0xC2]) + frame(BINARY, b"x")[1:]],
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
async def test_what_makes_no_sense_ends_it(ground, bomb):
    """And nothing else: the terminal waits for whoever comes back."""
    async with running(ground) as server:
        estate = await Estate.of(server)
        reader, writer = await raw(estate)
        try:
            for part in BOMBS[bomb]:
                writer.write(part)
                await writer.drain()
            while (said := await asyncio.wait_for(reader.read(65536), 20)) and b"\x88" not in said:
                pass  # a close frame is not answered: to hang up is enough
        except ConnectionError:
            pass
        writer.close()
        while not server.machine.called("detach_pty"):
            await asyncio.sleep(0.001)
        assert await estate.status() == 101
        assert len(server.machine.boxes[estate.vm].ptys) == 1


async def test_pings_that_nobody_reads_the_answers_of(ground, monkeypatch):
    """Their answers are not piled up."""
    monkeypatch.setattr(websocket, "UNSENT_BYTES", 65536)
    async with running(ground) as server:
        estate = await Estate.of(server)
        _, writer = await raw(estate)
        writer.transport.pause_reading()
        flood = frame(PING, b"x" * 125) * 1000
        with pytest.raises(ConnectionError):
            for _ in range(2000):
                writer.write(flood)
                await asyncio.wait_for(writer.drain(), 30)
        writer.close()
        while not server.machine.called("detach_pty"):
            await asyncio.sleep(0.001)


async def test_many_at_once_who_want_the_same_one(ground):
    """One of them gets it."""
    async with running(ground) as server:
        estate = await Estate.of(server)

        async def one():
            try:
                socket = await estate.look()
                await socket.recv()
                return socket
            except InvalidStatus as refused:
                assert refused.response.status_code == 409
                return None

        got = [socket for socket in await asyncio.gather(*[one() for _ in range(20)]) if socket is not None]
        assert len(got) == 1 and len(server.machine.boxes[estate.vm].ptys) == 1
        await got[0].close()


async def test_where_there_is_none_nothing_is_upgraded(ground):
    async with running(ground) as server:
        estate = await Estate.of(server)
        for method, path in (
            ("GET", "/v1/vms"), ("GET", "/v1/nothing/pty"), ("POST", f"{estate.path()}/pty"), ("GET", "/pty"),
            ("GET", f"{estate.path()}/pty/"), ("GET", "/v1/pools/x/workers/y/tunnel"),
        ):  # fmt: skip
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            key = base64.b64encode(bytes(16)).decode()
            writer.write(
                f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: {key}\r\n"
                f"sec-websocket-version: 13\r\nauthorization: {server.headers['authorization']}\r\n\r\n".encode()
            )
            said = await reader.readline()
            assert b" 101 " not in said and b" 500 " not in said and said, (path, said)
            writer.close()
