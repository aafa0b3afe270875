"""What is run over SSH: a command as a run of its own, or a terminal in a session of its own. Both end with it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import asyncssh

from boxwood.core.core import Core
from boxwood.core.errors import CoreError, Unavailable
from boxwood.core.model import Caller, RunRequest
from boxwood.core.ptys import CELLS, Pty
from boxwood.server.ssh.login import PIECE, Login

AGAIN_SECONDS = 0.2  # until input is given again that a VM could not be given
_FAILED = 255  # as ssh itself says that something was in the way
_SIGNALS = {one.name.removeprefix("SIG"): one.value for one in signal.Signals}
Process = asyncssh.SSHServerProcess[bytes]


async def handle(core: Core, process: Process) -> None:
    """One channel, to its end."""
    login: Login = process.get_extra_info("connection").get_extra_info("login")
    caller = login.caller
    if caller is None or not login.enter():
        _fail(process, "too many channels on this connection")
        return
    try:
        if process.subsystem is not None:
            _fail(process, f"there is no {process.subsystem} here, only sftp")
        elif process.term_type is not None:
            await _terminal(core, caller, login.vm, process)
        else:
            await _command(core, caller, login.vm, process)
    except CoreError as error:
        _fail(process, error.message)
    except (OSError, asyncssh.Error):  # the client has gone
        process.close()
    finally:
        login.leave()


def _fail(process: Process, text: str) -> None:
    with suppress(OSError, asyncssh.Error):
        process.stderr.write(f"boxwood: {text}\r\n".encode())
        process.exit(_FAILED)


# A command


async def _command(core: Core, caller: Caller, vm: str, process: Process) -> None:
    """Without one: whatever comes on the standard input is for a shell."""
    command = process.command if process.command is not None else "exec ${SHELL:-/bin/sh} -s"
    request = RunRequest(command, beside=True, wait=0, stdin=b"", stdin_open=True, attached=True, prompt="none")
    run = await core.runs.start(caller, vm, request)
    try:
        await _first(_give(core, caller, vm, run.run_id, process), _tell(core, caller, vm, run.run_id, process))
    finally:
        with suppress(CoreError):
            await core.runs.cancel(caller, vm, run.run_id)


async def _tell(core: Core, caller: Caller, vm: str, run_id: str, process: Process) -> None:
    async for piece in core.runs.follow(caller, vm, run_id):
        if piece.stdout:
            process.stdout.write(piece.stdout)
            await process.stdout.drain()
        if piece.stderr:
            process.stderr.write(piece.stderr)
            await process.stderr.drain()
    ended = await core.runs.about(caller, vm, run_id)
    if ended.exit_code is None:
        _fail(process, ended.fail_reason or f"the command was {ended.state}")
    else:
        process.exit(ended.exit_code)


async def _give(core: Core, caller: Caller, vm: str, run_id: str, process: Process) -> None:
    """Returns when the client has gone; what it gives when nobody reads any more is thrown away."""
    at, wanted = 0, True
    while True:
        try:
            data = await process.stdin.read(PIECE)
        except asyncssh.SignalReceived:
            await core.runs.cancel(caller, vm, run_id)
            continue
        except (asyncssh.BreakReceived, asyncssh.TerminalSizeChanged):
            continue
        given = 0
        while wanted:
            try:
                answer = await core.runs.write_stdin(caller, vm, run_id, data[given:], at, eof=not data)
            except Unavailable:  # the VM was suspended in the midst of it
                await asyncio.sleep(AGAIN_SECONDS)
            except CoreError as error:
                wanted = error.code == "resource_busy"  # it is pending
            else:
                at, given = answer.offset, given + answer.taken
                if given >= len(data) and (data or answer.closed):
                    break
        if not data:
            await process.wait_closed()
            return


# A terminal


async def _terminal(core: Core, caller: Caller, vm: str, process: Process) -> None:
    columns, rows = _size(*process.term_size[:2])
    term = process.term_type or None
    session = await core.sessions.create(caller, vm)
    argv = None if process.command is None else ("/bin/sh", "-c", process.command)
    pty: Pty | None = None
    try:
        pty = await core.ptys.attach(
            caller, vm, session.session_id, columns=columns, rows=rows, argv=argv, persist=False, term=term
        )  # fmt: skip
        await _first(_type(pty, process), _show(pty, process))
    finally:
        if pty is not None:
            await core.ptys.detach(pty)
        with suppress(CoreError):
            await core.sessions.delete(caller, vm, session.session_id)


async def _show(pty: Pty, process: Process) -> None:
    while data := await pty.read():
        process.stdout.write(data)
        await process.stdout.drain()
    if pty.end is not None:
        process.exit(pty.end.exit_code)
    else:
        why = "the VM was suspended" if pty.sent_away else "the terminal was lost"
        _fail(process, pty.reason or why)


async def _type(pty: Pty, process: Process) -> None:
    while True:
        try:
            data = await process.stdin.read(PIECE)
        except asyncssh.TerminalSizeChanged as change:
            await pty.resize(*_size(change.width, change.height))
            continue
        except asyncssh.SignalReceived as received:
            if (number := _SIGNALS.get(received.signal)) is not None:
                await pty.signal(number)
            continue
        except asyncssh.BreakReceived:
            continue
        if not data:
            if process.stdin.at_eof() and not process.channel.is_closing():
                await pty.write(b"\x04")  # an end of input, as of a terminal
            await process.wait_closed()
            return
        await pty.write(data)


def _size(columns: int, rows: int) -> tuple[int, int]:
    """What a client says of its terminal may be nothing at all."""
    return min(max(columns or 80, 1), CELLS), min(max(rows or 24, 1), CELLS)


async def _first(*works: Awaitable[None]) -> None:
    """Until one of them is done; its failure is raised."""
    tasks: list[Any] = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
