"""A core over an engine in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from boxwood.core.config import Config
from boxwood.core.core import Core
from boxwood.core.model import VM, Caller, ForkRequest, Run, RunRequest
from fakes import fake_engine, images_in


@dataclass
class World:
    """A data directory, a machine, and the server of the moment."""

    config: Config
    machine: fake_engine.Machine
    core: Core
    caller: Caller

    async def restart(self, **settings: object) -> None:
        """The server ends (its boxes go on) and another one starts."""
        await self.core.close()
        await self.start(**settings)

    async def start(self, **settings: object) -> None:
        self.config = replace(self.config, **settings)  # type: ignore[arg-type]
        self.core = await Core.open(self.config, fake_engine.FakeEngine(self.machine))
        self.caller = await caller_of(self.core)

    async def fork(self, source: str = "ubuntu", **members: object) -> VM:
        where = {"source_id": source} if len(source) == 26 else {"source_name": source}
        return await self.core.vms.fork(self.caller, ForkRequest(**where, **members))  # type: ignore[arg-type]

    async def run(self, vm: VM | str, command: str, **members: object) -> Run:
        ident = vm if isinstance(vm, str) else vm.vm_id
        return await self.core.runs.start(self.caller, ident, RunRequest(command, **members))  # type: ignore[arg-type]

    async def hang(self, vm: VM, command: str = "hang", **members: object) -> Run:
        """A run that has come to where it hangs."""
        run = await self.run(vm, command, wait=0, **members)
        while (box := self.machine.boxes.get(vm.vm_id)) is None or run.run_id not in box.runs:
            await asyncio.sleep(0)
        while not box.runs[run.run_id].hangs:
            await asyncio.sleep(0)
        return await self.core.runs.get(self.caller, vm.vm_id, run.run_id)

    async def out(self, vm: VM | str, command: str, **members: object) -> str:
        run = await self.run(vm, command, **members)
        assert run.state == "completed", run
        return run.stdout.decode()

    async def release(self, vm: VM) -> None:
        """Let the command that hangs in this VM, or soon will, go on."""
        while (box := self.machine.boxes.get(vm.vm_id)) is None or all(p.end for p in box.runs.values()):
            await asyncio.sleep(0)
        for process in box.runs.values():
            process.released.set()


async def caller_of(core: Core) -> Caller:
    return await core.keys.authenticate((core.config.data / "root.key").read_text().strip())


@pytest.fixture
def machine() -> fake_engine.Machine:
    return fake_engine.Machine()


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the image of the host, which is the fake machine's."""
    return images_in(tmp_path, monkeypatch)


@pytest.fixture
async def make_world(
    tmp_path: Path, images: Path, machine: fake_engine.Machine
) -> AsyncIterator[Callable[..., Awaitable[World]]]:
    made: list[World] = []

    async def make(**settings: object) -> World:
        config = Config(tmp_path / "data", images, **settings)  # type: ignore[arg-type]
        core = await Core.open(config, fake_engine.FakeEngine(machine))
        await core.goldens.ensure_host()
        made.append(World(config, machine, core, await caller_of(core)))
        return made[-1]

    yield make
    for world in made:
        await world.core.close()


@pytest.fixture
async def world(make_world: Callable[..., Awaitable[World]]) -> World:
    return await make_world()
