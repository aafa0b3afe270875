"""Which limits this host can hold. One that it cannot is refused, never forgotten; the default is then none."""

from __future__ import annotations

import logging
from dataclasses import fields, replace

from boxwood.core.config import Config
from boxwood.core.errors import Unsupported
from boxwood.core.model import Resources
from boxwood.engine.api import Engine, EngineUnavailable, Limits
from boxwood.store.vms import VMRow

_FEATURES = {"cgroup memory": "memory_mib", "cgroup cpu": "vcpu"}  # an engine's names, and a VM's
log = logging.getLogger(__name__)


class Held:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._why: dict[str, str] = {}  # limits that cannot be held

    async def learn(self, engine: Engine) -> None:
        """Ask an engine that has started. EngineUnavailable: the operator wants what it cannot hold."""
        self._why = {
            _FEATURES[feature.name]: feature.why
            async for feature in engine.features()
            if feature.name in _FEATURES and not feature.active
        }
        for name, why in self._why.items():
            for setting in (name, f"{name}_most"):
                configured = getattr(self._config, setting)
                if configured not in (0, _default(setting)):
                    raise EngineUnavailable(f"{setting} is {configured} by configuration, but {why}; or set it to 0")
            log.warning("VMs have no bound of %s: %s", name, why)

    def of(self, row: VMRow, limits: Limits) -> Limits:
        """Without the defaults that cannot be held. What the VM itself was given stays: a box is refused, not let
        loose."""
        unheld = {name: 0 for name in self._why if getattr(row, name) is None}
        return replace(limits, **unheld)

    def check(self, wanted: Resources) -> None:
        """Unsupported."""
        for name, why in self._why.items():
            if getattr(wanted, name):
                raise Unsupported(f"{name} cannot be held to here: {why}")


def _default(name: str) -> object:
    return next(one.default for one in fields(Config) if one.name == name)
