"""Terminals over WebSockets (wire 2.10): the real server, on a real socket, over an engine in memory."""

from __future__ import annotations

import asyncio
import errno
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

import contract
from boxwood.core import ptys
from boxwood.engine.api import GuestError
from boxwood.engine.ptyapi import PTY_WINDOW
from boxwood.server import listeners
from serving import running


class Terminal:
    def __init__(self, socket):
        self.socket = socket
        self.shown = b""

    async def until(self, text):
        while text not in self.shown:
            self.shown += await asyncio.wait_for(self.socket.recv(), 20)
        return self.shown

    async def type(self, text):
        await self.socket.send(text if isinstance(text, bytes) else text.encode())

    async def say(self, **instruction):
        await self.socket.send(json.dumps(instruction))

    async def end(self):
        """Code and reason of the closing."""
        try:
            while True:
                self.shown += await asyncio.wait_for(self.socket.recv(), 20)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code, closed.rcvd.reason


class Client:
    """Of a server: makes sessions and looks at their terminals."""

    def __init__(self, server, vm):
        self.server, self.vm = server, vm

    async def session(self, **members):
        answer = await self.server.http.post(f"/v1/vms/{self.vm}/sessions", json=members)
        return answer.json()["session_id"]

    def path(self, session, what="/pty", prefix="/v1"):
        return f"{prefix}/vms/{self.vm}/sessions/{session}{what}"

    @asynccontextmanager
    async def look(self, session, query="", headers=None, prefix="/v1", **more):
        url = f"ws://127.0.0.1:{self.server.port}{self.path(session, prefix=prefix)}{query}"
        given = self.server.headers if headers is None else headers
        async with connect(url, additional_headers=given, proxy=None, **more) as socket:
            yield Terminal(socket)

    async def refused(self, session, query="", headers=None):
        """Status and error."""
        with pytest.raises(InvalidStatus) as refused:
            async with self.look(session, query, headers):
                pass
        body = json.loads(refused.value.response.body)
        assert contract.violations(body, "ErrorResponse") == []
        assert body["error"]["request"] == {"kind": "matched", "operation_id": "attachSessionPty"}
        return refused.value.response.status_code, body["error"]

    @property
    def ptys(self):
        return self.server.machine.boxes[self.vm].ptys


@asynccontextmanager
async def serving(ground):
    async with running(ground) as server:
        yield Client(server, await server.fork())


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
async def test_what_is_typed_and_shown(ground, prefix):
    async with serving(ground) as client:
        session = await client.session()
        async with client.look(session, "?cols=100&rows=30", prefix=prefix) as terminal:
            await terminal.until(b"$ ")
            await terminal.type("size\r")
            await terminal.until(b"100 30")
            await terminal.say(type="resize", cols=132, rows=50)
            await terminal.say(type="ping")
            await terminal.say(type="of a later client", more=[1])
            await terminal.type("size\r")
            await terminal.until(b"132 50")
            await terminal.type("exit 3\r")
            assert await terminal.end() == (1000, "exit 3")
        assert not client.ptys


async def test_the_same_session_is_the_same_terminal(ground):
    async with serving(ground) as client:
        session = await client.session()
        async with client.look(session) as terminal:
            await terminal.type("before\r")
            await terminal.until(b"before")
            status, error = await client.refused(session)
            assert (status, error["code"], error["details"]) == (409, "resource_busy", {"resource": "session"})
        async with client.look(session, "?cols=90&rows=20") as terminal:
            assert b"before" in await terminal.until(b"before\r")
            await terminal.type("size\r")
            await terminal.until(b"90 20")
            assert len(client.server.machine.called("open_pty")) == 2 and len(client.ptys) == 1
            await terminal.say(type="kill")
            assert await terminal.end() == (1000, "killed 137")
        assert not client.ptys


@pytest.mark.parametrize("said", ["false", "False", "0"])
async def test_without_persist_it_ends_with_the_connection(ground, said):
    async with serving(ground) as client:
        session = await client.session()
        async with client.look(session, f"?persist={said}") as terminal:
            await terminal.until(b"$ ")
            assert client.ptys
        while client.ptys:
            await asyncio.sleep(0.001)


async def test_what_it_is_opened_with(ground):
    async with serving(ground) as client:
        plain = await client.session(env={"TERM": "dumb"})
        for session, query, argv, persist, idle, term in (
            (await client.session(), "", None, True, 0.0, "xterm-256color"),
            (await client.session(), "?command=/bin/top&persist=true&cancel_ttl_secs=5", (b"/bin/top",), True, 5.0, "xterm-256color"),
            (await client.session(), "?argv=%5B%22vim%22,%22a%20b%22%5D&term=screen", (b"vim", b"a b"), True, 0.0, "screen"),
            (plain, "?persist=FALSE&cancel_ttl_secs=0", None, False, 0.0, None),
        ):  # fmt: skip
            async with client.look(session, query) as terminal:
                await terminal.until(b"$ ")
            spec = client.server.machine.called("open_pty")[-1]
            assert (spec.argv, spec.persist, spec.idle_seconds, spec.term) == (argv, persist, idle, term)


async def test_a_ticket_opens_it(ground):
    """More than once, and without the key."""
    async with serving(ground) as client:
        session = await client.session()
        answer = await client.server.http.post(client.path(session, "/pty-ticket"), json={})
        contract.check(answer.json(), "PtyTicketResponse")
        assert answer.json()["expires_in"] == ptys.TICKET_SECONDS
        for headers in ({}, {"origin": f"http://127.0.0.1:{client.server.port}"}):
            async with client.look(session, f"?ticket={answer.json()['ticket']}", headers) as terminal:
                await terminal.until(b"$ ")
        await client.server.http.delete(client.path(session, ""))
        assert (await client.refused(session, f"?ticket={answer.json()['ticket']}", {}))[0] == 404


async def test_a_session_that_is_deleted_or_a_vm(ground):
    async with serving(ground) as client:
        one, other, third = [await client.session() for _ in range(3)]
        async with client.look(one) as terminal, client.look(other) as second:
            await terminal.until(b"$ ")
            await second.until(b"$ ")
            await client.server.http.delete(client.path(one, ""))
            assert await terminal.end() == (1000, "killed 137")
            assert (await client.refused(one))[0] == 404
            async with client.look(third) as detached:
                await detached.until(b"$ ")
            await client.server.http.delete(f"/v1/vms/{client.vm}")
            code, reason = await second.end()
            assert code == 1011 and "box" not in client.server.machine.boxes, reason


async def test_a_box_that_dies(ground):
    async with serving(ground) as client:
        session = await client.session()
        async with client.look(session) as terminal:
            await terminal.until(b"$ ")
            client.server.machine.boxes[client.vm].die("killed by the kernel")
            assert await terminal.end() == (1011, "the box was lost: killed by the kernel")
        async with client.look(session) as terminal:
            await terminal.until(b"$ ")


async def test_it_keeps_the_box_looked_at_or_not(ground):
    config, machine = ground
    async with serving((replace(config, idle_seconds=0.05), machine)) as client:
        session = await client.session()
        async with client.look(session) as terminal:
            await terminal.until(b"$ ")
        vm = (await client.server.http.get(f"/v1/vms/{client.vm}")).json()
        assert vm["state"] == "running" and len(client.ptys) == 1
        child = await client.server.http.post("/v1/fork", json={"source_vm_id": client.vm})
        assert child.status_code == 200
        async with client.look(session) as terminal:
            await terminal.until(b"$ ")
            await terminal.type("exit 0\r")
            await terminal.end()
        while client.vm in machine.boxes:
            await asyncio.sleep(0.001)


async def test_a_server_that_ends_and_the_next(ground):
    async with serving(ground) as client:
        sessions = [await client.session() for _ in range(2)]
        async with client.look(sessions[0]) as terminal, client.look(sessions[1]) as other:
            await terminal.type("kept\r")
            await terminal.until(b"kept")
            await other.until(b"$ ")
            client.server.stop()
            assert (await terminal.end())[0] == 1012
    async with running(ground) as server:
        client = Client(server, client.vm)
        assert server.machine.boxes[client.vm].ptys.keys() == {one.spec.pty_id for one in client.ptys.values()}
        client.server.machine.boxes[client.vm].handle.ptys.end(  # while nobody looks
            next(one for one in client.ptys.values() if one.spec.session_id == sessions[1]), 0
        )
        async with client.look(sessions[0]) as terminal:
            assert b"kept" in await terminal.until(b"kept")
            await terminal.type("exit 1\r")
            assert await terminal.end() == (1000, "exit 1")
        async with client.look(sessions[1]) as terminal:
            assert await terminal.until(b"$ ") == b"$ ", "a new one"
        assert len(server.machine.called("boot")) == 1


async def test_who_reads_slowly_stops_the_writer(ground):
    """And the server holds no more than the window and what its sockets hold; then nothing is missing."""
    async with serving(ground) as client:
        session = await client.session()
        async with client.look(session, max_queue=1) as terminal:
            await terminal.until(b"$ ")
            await terminal.type("flood 30000000\r")
            pty = next(iter(client.ptys.values()))
            seen = -1
            while seen != pty.sent:  # until it gets no further
                seen = pty.sent
                await asyncio.sleep(0.3)
            assert pty.sent - pty.acked <= PTY_WINDOW and pty.sent < 30_000_000
            while len(terminal.shown) < 30_000_000:
                terminal.shown += await terminal.socket.recv()
            assert terminal.shown.count(b"x") == 30_000_000


async def test_a_program_that_does_not_read_stops_whoever_types(ground, monkeypatch):
    """And should he vanish meanwhile, that is noticed: he does not answer pings."""
    monkeypatch.setattr(listeners, "PING_SECONDS", 0.5)
    async with serving(ground) as client:
        session = await client.session()
        async with client.look(session, "?command=deaf") as terminal:
            await terminal.until(b"$ ")
            for _ in range(8):
                await terminal.type(b"y" * 65536)
            while len(client.server.machine.called("type")) < PTY_WINDOW // ptys._INPUT:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert len(client.server.machine.called("type")) == PTY_WINDOW // ptys._INPUT
            terminal.socket.transport.abort()
        while client.server.machine.called("detach_pty") == []:
            await asyncio.sleep(0.001)
        async with client.look(session):
            pass


async def test_a_new_size_without_looking(ground):
    async with serving(ground) as client:
        session = await client.session()
        http, path = client.server.http, client.path(session, "")
        answer = await http.patch(path, json={"cols": 111, "rows": 33, "timeout_secs": 7})
        contract.check(answer.json(), "PatchSessionResponse")
        assert answer.json() == {"ok": True, "session_id": session}
        async with client.look(session) as terminal:
            await terminal.until(b"$ ")
            spec = client.server.machine.called("open_pty")[-1]
            assert (spec.columns, spec.rows, spec.idle_seconds) == (111, 33, 7.0)
            await http.patch(path, json={"cols": 50, "rows": 10})
            await terminal.type("size\r")
            await terminal.until(b"50 10")
        await http.patch(path, json={"cols": 51, "rows": 11})
        assert next(iter(client.ptys.values())).size == (51, 11)
        async with client.look(session) as terminal:
            await terminal.type("size\r")
            await terminal.until(b"51 11")
        for wrong in ({"cols": 5}, {"cols": 0, "rows": 1}, {"rows": 1001, "cols": 1}, {"timeout_secs": -1}, {"x": 1}):
            assert (await http.patch(path, json=wrong)).status_code == 400, wrong
        assert (await http.patch(client.path("01ARZ3NDEKTSV4RRFFQ69G5FAX", ""), json={})).status_code == 404


async def test_what_is_refused(ground):
    async with serving(ground) as client:
        session = await client.session()
        for query in (
            "?cols=0", "?rows=1001", "?cols=x", "?cols=1&cols=2", "?persist=maybe", "?cancel_ttl_secs=-1", "?nothing=1",
            "?argv=x", "?argv=%5B1%5D", "?argv=%5B%22%22%5D", "?argv=%5B%22a%22%5D&command=b", "?term=a%0Ab", "?command=a%00b",
            "?argv=" + "%5B" * 2000,
        ):  # fmt: skip
            status, error = await client.refused(session, query)
            assert (status, error["code"]) == (400, "bad_request"), query
        status, error = await client.refused(session, "?command=missing")
        assert (status, error["details"]) == (404, {"resource": "session"}) and "missing" in error["message"]
        for number, wanted in (errno.ENOSYS, (422, "unsupported_operation")), (errno.EAGAIN, (409, "resource_busy")):
            client.server.machine.fail["open_pty"] = [GuestError(number, "no")]
            status, error = await client.refused(session)
            assert (status, error["code"]) == wanted
        answer = await client.server.http.get(client.path(session))
        assert answer.status_code == 400 and "WebSocket" in answer.json()["error"]["message"]
        assert not client.ptys


async def test_how_many_there_may_be(ground, monkeypatch):
    monkeypatch.setattr(ptys, "OF_VM", 2)
    monkeypatch.setattr(ptys, "OF_ORG", 3)
    async with serving(ground) as client:
        sessions = [await client.session() for _ in range(3)]
        for session in sessions[:2]:
            async with client.look(session) as terminal:
                await terminal.until(b"$ ")
        status, error = await client.refused(sessions[2])
        assert (status, error["code"], error["details"]["scope"]) == (
            429,
            "quota_exceeded",
            {"kind": "vm", "vm_id": client.vm},
        )
        async with client.look(sessions[0]) as terminal:  # it is there already
            await terminal.until(b"$ ")
        other = Client(client.server, await client.server.fork())
        async with other.look(await other.session()) as terminal:
            await terminal.until(b"$ ")
            status, error = await other.refused(await other.session())
            assert (status, error["details"]["scope"]) == (429, {"kind": "organization"})
            await terminal.say(type="kill")
            await terminal.end()
        async with other.look(await other.session()) as terminal:
            await terminal.until(b"$ ")


async def test_a_request_that_is_too_long_is_hung_up_on(ground):
    async with serving(ground) as client:
        with pytest.raises(InvalidMessage):
            async with client.look(await client.session(), "?argv=" + "x" * 10_000):
                pass


async def test_a_key_that_is_revoked_while_the_terminal_is_made_ends_it(ground, monkeypatch):
    async with serving(ground) as client:
        made = (await client.server.http.post("/v1/api-keys", json={"name": "x"})).json()
        session, terminals = await client.session(), client.server.machine.core.ptys
        attach = terminals.attach

        async def revoked(*given, **more):
            pty = await attach(*given, **more)
            await client.server.http.delete(f"/v1/api-keys/{made['api_key_id']}")
            return pty

        monkeypatch.setattr(terminals, "attach", revoked)
        async with client.look(session, headers={"authorization": f"Bearer {made['key']}"}) as terminal:
            assert await terminal.end() == (1008, "the API key has been revoked")
