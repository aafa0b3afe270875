"""A shell in a session, over a WebSocket with JSON in text messages: every connection has one of its own.

    client    {"type": "input", "data": TEXT} · {"type": "signal", "signal": NAME} · {"type": "resize", "cols", "rows"}
    server    {"type": "output", "data": TEXT} · {"type": "exit", "exit_code": N}

What it does is no step of the session: the snapshot after the next step has it.
"""

from __future__ import annotations

import codecs
import signal
from contextlib import AsyncExitStack, suppress

import msgspec
from starlette.responses import Response
from starlette.types import Message

from boxwood.core.errors import BadRequest, CoreError
from boxwood.core.ptys import Pty
from boxwood.dialects.arl_gateway.gateway import gateway
from boxwood.dialects.arl_gateway.session import Session
from boxwood.server.exchange import Exchange, encode
from boxwood.server.terminal import Look

SIGNALS = {
    name: int(getattr(signal, name)) for name in ("SIGTERM", "SIGKILL", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
}
_SHELL = ("sh", "-c", "command -v bash > /dev/null && exec bash -i; exec sh -i")


class _Said(msgspec.Struct, frozen=True):
    """Types and members that are not known are left alone."""

    type: str = ""
    data: str = ""
    signal: str = ""
    cols: int = 0
    rows: int = 0


async def shell(exchange: Exchange) -> Response:
    gate = await gateway(exchange)
    session = await gate.active(exchange)
    if not exchange.upgrades:
        raise BadRequest("this is a WebSocket: ask for it with Upgrade: websocket")
    caller, vm, core = session.caller, session.facts.vm, exchange.core
    made = await core.sessions.create(caller, vm, session.facts.env, "/")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(gate.used(session))
        try:
            pty = await core.ptys.attach(caller, vm, made.session_id, argv=_SHELL, persist=False)
        except CoreError:
            with suppress(CoreError):
                await core.sessions.delete(caller, vm, made.session_id)
            raise
        return _Shell(exchange, pty, session, stack.pop_all())


class _Shell(Look):
    def __init__(self, exchange: Exchange, pty: Pty, session: Session, held: AsyncExitStack) -> None:
        super().__init__(exchange, pty)
        self._session = session
        self._held = held
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def shown(self, data: bytes) -> Message:
        return _text({"type": "output", "data": self._decoder.decode(data)})

    async def heard(self, message: Message) -> None:
        text = message.get("text")
        said = msgspec.json.decode(message["bytes"] if text is None else text, type=_Said)
        if said.type == "input":
            await self._pty.write(said.data.encode("utf-8", "replace"))
        elif said.type == "resize":
            await self._pty.resize(said.cols, said.rows)
        elif said.type == "signal" and said.signal in SIGNALS:
            await self._pty.signal(SIGNALS[said.signal])

    def farewell(self) -> Message | None:
        end = self._pty.end
        return None if end is None else _text({"type": "exit", "exit_code": end.exit_code})

    async def abandon(self) -> None:
        await super().abandon()
        async with self._held:
            with suppress(CoreError):  # it has gone with its VM
                await self._app.core.sessions.delete(self._session.caller, self._pty.vm_id, self._pty.session_id)


def _text(said: dict[str, object]) -> Message:
    return {"type": "websocket.send", "text": encode(said).decode()}
