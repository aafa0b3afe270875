"""Commands in a sandbox of their own, which nobody has used before and which is gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from starlette.responses import Response

from boxwood.core.errors import BadRequest, CoreError, NotFound
from boxwood.core.model import VM
from boxwood.dialects.agentkernel import commands, images, profiles, words
from boxwood.dialects.agentkernel.envelope import Lenient, body, done
from boxwood.dialects.agentkernel.sandboxes import IMAGE, PROFILE
from boxwood.server.exchange import Exchange

LEASE_SECONDS = 120.0  # a sandbox whose server dies is deleted after so long
RENEWED_AFTER = 60.0
AT_ONCE = 10  # commands of one batch
MOST_COMMANDS = 1000


class RunBody(Lenient, frozen=True, kw_only=True):
    command: list[str]
    image: str | None = None
    profile: str | None = None
    fast: bool | None = None


class BatchCommand(Lenient, frozen=True, kw_only=True):
    command: list[str]


class BatchBody(Lenient, frozen=True, kw_only=True):
    commands: list[BatchCommand]


async def run(exchange: Exchange) -> Response:
    """If the client goes away, so does the sandbox."""
    wanted = await body(exchange, RunBody)
    words.command(wanted.command)
    return done({"output": await commands.attended(exchange, _output(exchange, wanted))})


async def batch(exchange: Exchange) -> Response:
    """Each in its own sandbox, some at once; what fails is told in its place."""
    wanted = await body(exchange, BatchBody)
    if not 1 <= len(wanted.commands) <= MOST_COMMANDS:
        raise BadRequest(f"commands: 1 to {MOST_COMMANDS} of them")
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(command: BatchCommand) -> dict[str, str | None]:
        async with turns:
            try:
                words.command(command.command)
                return {"output": await _output(exchange, RunBody(command=command.command)), "error": None}
            except CoreError as error:
                return {"output": None, "error": error.message}

    async def all_of_them() -> list[dict[str, str | None]]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(command)) for command in wanted.commands]
        return [task.result() for task in tasks]

    return done({"results": await commands.attended(exchange, all_of_them())})


async def _output(exchange: Exchange, wanted: RunBody) -> str:
    async with fresh(exchange, wanted) as vm:
        return await commands.run_to_end(exchange, vm.vm_id, commands.request(wanted.command))


@contextlib.asynccontextmanager
async def fresh(exchange: Exchange, wanted: RunBody) -> AsyncIterator[VM]:
    """A sandbox for one command, without a name. BadRequest (image, profile)."""
    core, caller = exchange.core, exchange.caller
    image = wanted.image or images.guess(exchange, wanted.command)
    request = images.source(exchange, image)
    profile = profiles.profile(wanted.profile or "moderate")
    vm = await core.vms.fork(
        caller,
        replace(
            profile.applied(request),
            labels={IMAGE: image, PROFILE: profile.name},
            ttl=LEASE_SECONDS,
        ),
    )
    renewal = asyncio.ensure_future(_renew(exchange, vm))
    try:
        yield vm
    finally:
        renewal.cancel()
        with contextlib.suppress(NotFound):
            core.vms.discard(caller, vm.vm_id)


async def _renew(exchange: Exchange, vm: VM) -> None:
    while True:
        await asyncio.sleep(RENEWED_AFTER)
        with contextlib.suppress(CoreError):
            await exchange.core.vms.extend(exchange.caller, vm.vm_id, RENEWED_AFTER)
