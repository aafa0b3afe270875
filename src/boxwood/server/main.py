"""The server's life: bind, open the core, serve, make the host image beside it, end in good order.

SIGTERM, SIGINT and SIGHUP end the server and leave the boxes alive, for the next one to take over; a second signal does
not wait for requests that are being answered. `POST /boxwood/down` parks every VM and ends the zygote too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import uvloop

import boxwood
from boxwood.core.config import Config
from boxwood.core.core import Core
from boxwood.core.errors import CoreError
from boxwood.engine.api import EngineError
from boxwood.engine.host import HostEngine
from boxwood.engine.kernel import prefer_short_turns
from boxwood.engine.network.exceptions import Exceptions
from boxwood.images.shelf import ImageError
from boxwood.server import private, privileges
from boxwood.server.app import App
from boxwood.server.awake import Awake
from boxwood.server.listeners import CannotStart, Servers, bound
from boxwood.server.schema.service import Preparing

log = logging.getLogger("boxwood.server")

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(config: Config) -> None:
    """Serve until told to end. CannotStart, and what `Core.open` raises."""
    prefer_short_turns(inherited=True)
    privileges.drop()
    uvloop.run(_serve(config))


async def _serve(config: Config) -> None:
    with bound(config) as sockets, contextlib.closing(Awake(config.awake_ms / 1000)) as awake:
        _allow_descriptors()
        engine = HostEngine(
            config.data,
            config.images,
            config.ready_boxes,
            network=config.network != "none",
            network_allow=_exceptions(config),
            require=config.require,
            io_weight=config.io_weight,
        )
        core = await Core.open(config, engine)
        down = False

        def on_down() -> None:
            nonlocal down
            down = True
            servers.end()

        app = App(core, host=config.host, on_down=on_down, awake=awake)
        try:
            servers = Servers(app, config, sockets)
            await app.start()
            _collect_seldom()
            async with _ssh(config, core) as ssh:
                with _announced(config, servers, ssh), _signals(app, servers):
                    image = asyncio.create_task(_make_host_image(app))
                    try:
                        await servers.serve()
                    finally:
                        app.stopping.set()
                        await image
        finally:
            if not down:
                await core.close()
        log.info("down" if down else "ended; the boxes live on")


def _exceptions(config: Config) -> tuple[str, ...]:
    """The operator's exceptions, read once here so that a wrong one is told before anything is started."""
    try:
        Exceptions.parse(config.network_allow)
    except ValueError as error:
        raise CannotStart(f"network_allow: {error}") from None
    return config.network_allow


def _collect_seldom() -> None:
    """What has been made so far stays: the collector need not look at it again and again, nor every 700 objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _allow_descriptors() -> None:
    """Each box has a link, each client a connection: as many as the host lets this process have. The zygote sees
    to its own limit, so it does not matter when it is started."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _signals(app: App, servers: Servers) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def end() -> None:
        app.stopping.set()
        servers.end(at_once=servers.ending)

    for signum in ENDING:
        loop.add_signal_handler(signum, end)
    try:
        yield
    finally:
        for signum in ENDING:
            loop.remove_signal_handler(signum)


@contextlib.asynccontextmanager
async def _ssh(config: Config, core: Core) -> AsyncIterator[str]:
    """Where VMs take SSH; empty: nowhere. CannotStart."""
    if not config.ssh:
        yield ""
        return
    host, _, port = config.ssh.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise CannotStart(f"ssh is {config.ssh!r}: it must be ADDRESS:PORT, such as 127.0.0.1:2222")
    try:
        from boxwood.server.ssh.listener import listening
    except ImportError:
        raise CannotStart("ssh needs asyncssh, which is not installed: pip install 'boxwood[ssh]'") from None
    async with contextlib.AsyncExitStack() as held:
        try:
            at = await held.enter_async_context(listening(core, host, int(port)))
        except OSError as error:
            raise CannotStart(f"cannot listen for SSH on {config.ssh}: {error.strerror or error}") from None
        yield f"[{host}]:{at}" if ":" in host else f"{host}:{at}"


@contextlib.contextmanager
def _announced(config: Config, servers: Servers, ssh: str) -> Iterator[None]:
    """DATA/server.json, for as long as connections are taken: from here on they wait to be answered."""
    urls = servers.listen()
    path = config.data / "server.json"
    said = {
        **urls,
        **({"ssh": ssh} if ssh else {}),
        "pid": os.getpid(),
        "version": boxwood.__version__,
        "started_at": datetime.now(UTC).isoformat(),
        "started": _started(),
    }
    private.write(path, json.dumps(said).encode())
    told = ", ".join(url for name, url in urls.items() if name.endswith("url"))
    log.info("boxwood %s serves %s", boxwood.__version__, told)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _started() -> int:
    """When this process was started, in clock ticks since the machine was: no other of its number has the same."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


async def _make_host_image(app: App) -> None:
    """Until it is there, forks of the public names are refused and health says how far it is."""
    try:
        await app.core.goldens.ensure_host(_progress(app))
    except _Stopping:
        log.info("the host image is not finished; the next start makes it")
    except (CoreError, EngineError, ImageError, OSError) as error:
        app.problem = f"the host image could not be made: {error}"
        log.error("%s", app.problem)
    except Exception as error:
        app.problem = "the host image could not be made: the server's log says why"
        log.error("the host image could not be made", exc_info=error)
    finally:
        app.preparing = None


class _Stopping(Exception):
    """The server ends: what is being made is given up, for the next one to make."""


def _progress(app: App) -> Callable[[str, int, int], None]:
    """Called in the thread that makes the image. Every tenth is logged."""
    logged: tuple[str, int] | None = None

    def progress(step: str, done: int, total: int) -> None:
        nonlocal logged
        if app.stopping.is_set():
            raise _Stopping
        fraction = min(1.0, max(0.0, done / total)) if total else 0.0
        app.preparing = Preparing(step=step, fraction=fraction)
        if logged != (step, int(fraction * 10)):
            logged = (step, int(fraction * 10))
            log.info("host image: %s, %d %%", step, fraction * 100)

    return progress
