"""The core as a whole: opens the data directory, the store and the engine, hands out the nouns, closes all.

One `Core` per data directory: a second one is refused as long as the first holds DATA/lock.
"""

from __future__ import annotations

from boxwood.core.config import Config
from boxwood.core.files import Files
from boxwood.core.goldens import Goldens
from boxwood.core.keys import Keys
from boxwood.core.runs import Runs
from boxwood.core.sessions import Sessions
from boxwood.core.vms import VMs
from boxwood.engine.api import Engine


class Core:
    """`keys`, `vms`, `runs`, `sessions`, `files`, `goldens`: see the class of each."""

    config: Config
    engine: Engine
    keys: Keys
    vms: VMs
    runs: Runs
    sessions: Sessions
    files: Files
    goldens: Goldens

    @classmethod
    async def open(cls, config: Config, engine: Engine) -> Core:
        """Open the data directory (made if need be), start the engine, take over the boxes that live and their runs.

        Raises `DataInUse` (another server), `store.SchemaTooNew`, `engine.api.EngineUnavailable`.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of everything; boxes and their runs live on and are taken over by the next `open`."""
        raise NotImplementedError

    async def shutdown(self) -> None:
        """Park every VM (runs end as failed), end the engine, then as `close`."""
        raise NotImplementedError
