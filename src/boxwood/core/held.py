"""Which limits this host can hold. One that it cannot is refused, never forgotten; the default is then none."""

from __future__ import annotations

import logging
from dataclasses import fields

from boxwood.core.config import Config
from boxwood.core.errors import Unsupported
from boxwood.core.model import Resources
from boxwood.engine.api import Engine, EngineUnavailable

_FEATURES = {"cgroup memory": "memory_mib", "cgroup cpu": "vcpu"}  # an engine's names, and a VM's
log = logging.getLogger(__name__)


class Held:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._why: dict[str, str] = {}  # limits that cannot be held

    async def learn(self, engine: Engine) -> None:
        """Ask an engine that has started. EngineUnavailable: the operator wants what it cannot hold."""
        self._why = {
            _FEATURES[name]: why async for name, active, why in engine.features() if name in _FEATURES and not active
        }
        for name, why in self._why.items():
            configured, default = getattr(self._config, name), _default(name)
            if configured not in (0, default):
                raise EngineUnavailable(f"{name} is {configured} by configuration, but {why}; or set it to 0")
            log.warning("VMs have no bound of %s: %s", name, why)

    def memory_mib(self) -> int:
        """Of a VM that was told nothing else."""
        return 0 if "memory_mib" in self._why else self._config.memory_mib

    def check(self, wanted: Resources) -> None:
        """Unsupported."""
        for name, why in self._why.items():
            if getattr(wanted, name):
                raise Unsupported(f"{name} cannot be held to here: {why}")


def _default(name: str) -> object:
    return next(one.default for one in fields(Config) if one.name == name)
