"""ARL's shells over WebSocket (its wire document, 3.8): the real server, on a real socket, over an engine in memory."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serving import running


class Shell:
    def __init__(self, socket):
        self.socket = socket
        self.output = ""
        self.exit = None

    async def say(self, **message):
        await self.socket.send(json.dumps(message))

    async def more(self):
        said = json.loads(await asyncio.wait_for(self.socket.recv(), 20))
        if said["type"] == "output":
            self.output += said["data"]
        else:
            self.exit = said

    async def until(self, text):
        while text not in self.output:
            await self.more()

    async def end(self):
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await self.more()
        return closed.value.rcvd.code


@asynccontextmanager
async def opened(ground):
    """A server, a session of ARL's, and what opens a shell in it."""
    async with running(ground) as server:
        made = (await server.http.post("/arl/v1/sessions", json={"image": "ubuntu", "profile": "default"})).json()

        @asynccontextmanager
        async def look(headers=None, session=made["id"]):
            url = f"ws://127.0.0.1:{server.port}/arl/v1/sessions/{session}/shell"
            given = server.headers if headers is None else headers
            async with connect(url, additional_headers=given, proxy=None) as socket:
                yield Shell(socket)

        yield server, made["id"], look


def ptys(server):
    return [pty for living in server.machine.boxes.values() for pty in living.ptys.values()]


async def test_a_shell(ground):
    async with opened(ground) as (server, _, look):
        async with look() as shell, look() as other:
            await shell.until("$ ")
            await other.until("$ ")
            assert len(ptys(server)) == 2, "each has its own"
            await shell.say(type="resize", cols=132, rows=50)
            await shell.say(type="signal", signal="SIGINT")
            await shell.say(type="signal", signal="SIGSTOP")
            await shell.say(type="of a later client", more=[1])
            await shell.until("signal 2")
            await shell.say(type="input", data="grüße\r")
            await shell.until("grüße")
            await shell.socket.send(json.dumps({"type": "input", "data": "size\r"}).encode())
            await shell.until("132 50")
            assert server.machine.called("signal_pty") == [2]
            await shell.say(type="input", data="exit 3\r")
            assert await shell.end() == 1000
            assert shell.exit == {"type": "exit", "exit_code": 3}
        while len(server.machine.called("close_session")) < 2:
            await asyncio.sleep(0.001)
        assert not ptys(server)


async def test_who_is_refused(ground):
    async with opened(ground) as (server, session, look):
        for headers, name, wanted in (
            ({}, session, 401), ({"authorization": "Bearer nonsense"}, session, 401), (None, "nobodys", 404),
        ):  # fmt: skip
            with pytest.raises(InvalidStatus) as refused:
                async with look(headers, name):
                    pass
            assert refused.value.response.status_code == wanted
        plain = await server.http.get(f"/arl/v1/sessions/{session}/shell")
        assert plain.status_code == 400 and "WebSocket" in plain.json()["error"]
        assert not ptys(server)
        await server.http.post(f"/arl/v1/sessions/{session}/suspend")
        with pytest.raises(InvalidStatus):
            async with look():
                pass


@pytest.mark.parametrize("sent", ["x", "[]", '{"type":1}', '{"type":"resize","cols":0,"rows":1}', b"\xff", "[" * 5000])
async def test_what_makes_no_sense_ends_it(ground, sent):
    async with opened(ground) as (server, _, look):
        async with look() as shell:
            await shell.until("$ ")
            await shell.socket.send(sent)
            assert await shell.end() == 1008
        while ptys(server):
            await asyncio.sleep(0.001)


async def test_a_session_that_ends(ground):
    async with opened(ground) as (server, session, look):
        async with look() as shell:
            await shell.until("$ ")
            await server.http.delete(f"/arl/v1/sessions/{session}")
            assert await shell.end() == 1011
