"""The same without HTTP, for the floor: the core in this process, and the engine below it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from boxwood.core.config import Config
from boxwood.core.core import Core
from boxwood.core.ids import new_id
from boxwood.core.model import ForkRequest, RunRequest
from boxwood.engine.api import Box, BoxSpec, RunEnd, RunSpec, SessionSpec, Stack
from boxwood.engine.host import HostEngine
from boxwood.images import host as host_image
from measure import PAUSE, Series

Step = Callable[[], Awaitable[float]]


def measure(data: Path, n: int) -> list[Series]:
    return asyncio.run(_core(data / "core", n)) + asyncio.run(_engine(data / "engine", n))


async def _rounds(n: int, steps: dict[str, Step], burst: int = 5) -> list[Series]:
    """As measure.rounds."""
    found = {name: Series(name) for name in steps}
    for _ in range(n):
        for name, step in steps.items():
            await asyncio.sleep(PAUSE)
            await step()
            for _ in range(burst):
                found[name].add(await step())
    return list(found.values())


async def _core(data: Path, n: int) -> list[Series]:
    config = Config.load(data, idle_seconds=3600)
    core = await Core.open(config, HostEngine(config.data, config.images, config.ready_boxes))
    try:
        await core.goldens.ensure_host()
        caller = await core.keys.authenticate((data / "root.key").read_text().strip())
        vm = await core.vms.fork(caller, ForkRequest(source_name="ubuntu"))

        async def run(vm_id: str, command: str) -> float:
            began = time.perf_counter()
            done = await core.runs.start(caller, vm_id, RunRequest(command))
            assert done.exit_code == 0, done
            return (time.perf_counter() - began) * 1e3

        async def fork_and_run() -> float:
            began = time.perf_counter()
            made = await core.vms.fork(caller, ForkRequest(source_name="ubuntu"))
            await run(made.vm_id, ":")
            took = (time.perf_counter() - began) * 1e3
            await core.vms.delete(caller, made.vm_id)
            return took

        async def fork() -> float:
            began = time.perf_counter()
            made = await core.vms.fork(caller, ForkRequest(source_name="ubuntu"))
            took = (time.perf_counter() - began) * 1e3
            await core.vms.delete(caller, made.vm_id)
            return took

        return await _rounds(
            n,
            {
                "core: fork": fork,
                "core: fork + first command": fork_and_run,
                "core: run of a builtin": lambda: run(vm.vm_id, ":"),
                "core: run of /bin/true": lambda: run(vm.vm_id, "/bin/true"),
            },
        )
    finally:
        await core.shutdown()


class _Heard:
    """The end of a run, and the sessions' states, which nobody keeps here."""

    def __init__(self) -> None:
        self.end: asyncio.Future[RunEnd] = asyncio.get_running_loop().create_future()

    def output(self, stream: int, offset: int, data: bytes) -> None: ...

    def finished(self, end: RunEnd) -> None:
        self.end.set_result(end)

    def state(self, session_id: str, cwd: str, env: dict[str, str], state: bytes) -> None: ...


async def _engine(data: Path, n: int) -> list[Series]:
    config = Config.load(data)
    image = await asyncio.to_thread(host_image.ensure, config.images, None)
    engine = HostEngine(config.data, config.images)
    await engine.start()

    async def boot() -> Box:
        stack = Stack((image.layer_id,), new_id(), frozenset({image.layer_id}))
        box = await engine.boot(BoxSpec(new_id(), stack))
        box.listen(_Heard())
        return box

    async def run(box: Box, session: str, command: bytes) -> float:
        began = time.perf_counter()
        heard, run_id = _Heard(), new_id()
        await box.start_run(RunSpec(run_id, session, command), heard)
        end = await heard.end
        assert end.exit_code == 0, end
        took = (time.perf_counter() - began) * 1e3
        box.forget(run_id)
        return took

    async def boot_and_run() -> float:
        began = time.perf_counter()
        box = await boot()
        session = new_id()
        await box.open_session(SessionSpec(session))
        await run(box, session, b":")
        took = (time.perf_counter() - began) * 1e3
        await box.kill()
        return took

    async def only_boot() -> float:
        began = time.perf_counter()
        box = await boot()
        took = (time.perf_counter() - began) * 1e3
        await box.kill()
        return took

    try:
        kept, session = await boot(), new_id()
        await kept.open_session(SessionSpec(session))
        return await _rounds(
            n,
            {
                "engine: boot of a box": only_boot,
                "engine: boot + first command": boot_and_run,
                "engine: run of a builtin": lambda: run(kept, session, b":"),
                "engine: run of /bin/true": lambda: run(kept, session, b"/bin/true"),
            },
        )
    finally:
        await engine.shutdown()
