"""Commands in a sandbox: those whose end is waited for, and detached ones, which are asked about later."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from operator import itemgetter
from typing import Any

from msgspec import Struct
from starlette.responses import Response

from boxwood.core.errors import Forbidden, NotFound
from boxwood.core.model import VM, Run, RunFilter, RunRequest
from boxwood.dialects.agentkernel import commands
from boxwood.dialects.agentkernel.commands import DETACHED, EXEC
from boxwood.dialects.agentkernel.envelope import Lenient, body, done
from boxwood.dialects.agentkernel.sandboxes import BACKEND, found, info, running
from boxwood.server.exchange import Exchange

NO_PID = 0  # the number of a process in the sandbox is not known outside
KILLED = 137
_PAGE = 1000


class ExecBody(Lenient, frozen=True, kw_only=True):
    """`user`: beyond the published clients."""

    command: list[str]
    env: list[str] | None = None
    workdir: str | None = None
    user: str | None = None
    sudo: bool | None = None

    def request(self, tag: str) -> RunRequest:
        """BadRequest, Forbidden."""
        if self.sudo:
            raise Forbidden("sudo is not allowed on this server; name a user")
        return commands.request(self.command, tag=tag, env=self.env, workdir=self.workdir, user=self.user)


class DetachedCommand(Struct, frozen=True, kw_only=True):
    id: str
    sandbox: str
    command: list[str]
    pid: int
    status: str
    exit_code: int | None
    started_at: str


async def execute(exchange: Exchange) -> Response:
    """The command goes on if the client does not wait for its end."""
    wanted = (await body(exchange, ExecBody)).request(EXEC)
    vm = await running(exchange)
    work = commands.run_to_end(exchange, vm.vm_id, wanted)
    return done({"output": await commands.attended(exchange, work)})


async def detach(exchange: Exchange) -> Response:
    wanted = (await body(exchange, ExecBody)).request(DETACHED)
    vm = await running(exchange)
    run = await exchange.core.runs.start(exchange.caller, vm.vm_id, wanted)
    return done(_shown(vm, run))


async def list_detached(exchange: Exchange) -> Response:
    """Oldest first."""
    vm = await found(exchange)
    return done([_shown(vm, run) for run in await runs_of(exchange, vm, RunFilter(tag=DETACHED))])


async def runs_of(exchange: Exchange, vm: VM, where: RunFilter) -> list[Run]:
    """The newest of them, as many as the core shows at once, oldest first."""
    page = await exchange.core.runs.list(exchange.caller, vm.vm_id, where, None, _PAGE)
    return list(reversed(page.items))


async def detached_status(exchange: Exchange) -> Response:
    vm, run = await _detached(exchange)
    return done(_shown(vm, run))


async def detached_logs(exchange: Exchange) -> Response:
    """What it has put out so far."""
    _, run = await _detached(exchange)
    if b"stream=stderr" in exchange.scope["query_string"].split(b"&"):
        return done({"stderr": run.stderr.decode(errors="replace")})
    return done({"stdout": run.stdout.decode(errors="replace")})


async def detached_kill(exchange: Exchange) -> Response:
    """Also of one that has ended."""
    vm, run = await _detached(exchange)
    await exchange.core.runs.cancel(exchange.caller, vm.vm_id, run.run_id)
    return done("Command killed")


async def _detached(exchange: Exchange) -> tuple[VM, Run]:
    vm = await found(exchange)
    try:
        run = await exchange.core.runs.get(exchange.caller, vm.vm_id, exchange.params["id"])
    except NotFound as error:
        raise _no_command() if error.resource == "run" else error from None
    if run.tag != DETACHED:
        raise _no_command()
    return vm, run


def _no_command() -> NotFound:
    return NotFound("run", "Detached command not found")


def _shown(vm: VM, run: Run) -> DetachedCommand:
    code = KILLED if run.exit_code is None and run.ended else run.exit_code
    return DetachedCommand(
        id=run.run_id,
        sandbox=vm.name or "",
        command=commands.argv_of(run),
        pid=NO_PID,
        status=("completed" if run.state == "completed" and code == 0 else "failed") if run.ended else "running",
        exit_code=code,
        started_at=commands.shown(run.started_at),
    )


async def logs(exchange: Exchange) -> Response:
    """What is on record of a sandbox: that it was made, and the commands that have ended in it. Oldest first."""
    vm = await found(exchange)
    created = _entry(vm.created_at, "sandbox_created", name=vm.name, image=info(vm).image, backend=BACKEND)
    entries = [(vm.created_at, created)]
    for run in await runs_of(exchange, vm, RunFilter()):
        if run.tag != commands.FILE and run.completed_at is not None:
            argv = commands.argv_of(run)
            said = {"sandbox": vm.name, "command": argv, "exit_code": run.exit_code}
            entries.append((run.completed_at, _entry(run.completed_at, "command_executed", **said)))
    return done([entry for _, entry in sorted(entries, key=itemgetter(0))])


def _entry(at: datetime, kind: str, **more: Any) -> Mapping[str, Any]:
    return {"timestamp": commands.shown(at), "pid": NO_PID, "user": None, "type": kind, **more}
