"""Boxwood, spoken to as Arker's Python SDK is: `from boxwood.faces.arker import Arker, ArkerError`.

    arker = Arker()
    vm = arker.vm("arkuntu").fork(name="hello")
    print(vm.run("uname -a").stdout.decode())
    vm.delete()

Both generations are here: `vm(id).fork()`, `vm.sync.read_file`, `list()` of the first, `fork(name)`, `vm.sync(path)`,
`list_vms()` of the later one. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Arker": "client",
    "ArkerError": "errors",
    "BackgroundRun": "results",
    "Computer": "computer",
    "Filesystem": "results",
    "FilesystemList": "results",
    "RunResult": "results",
    "SyncBinding": "results",
    "SyncBindingList": "results",
    "VmList": "results",
    "VmPage": "client",
    "VmSummary": "results",
}

if TYPE_CHECKING:
    from boxwood.faces.arker.client import Arker, VmPage
    from boxwood.faces.arker.computer import Computer
    from boxwood.faces.arker.errors import ArkerError
    from boxwood.faces.arker.results import (
        BackgroundRun,
        Filesystem,
        FilesystemList,
        RunResult,
        SyncBinding,
        SyncBindingList,
        VmList,
        VmSummary,
    )

__all__ = [
    "Arker", "ArkerError", "BackgroundRun", "Computer", "Filesystem", "FilesystemList", "RunResult", "SyncBinding",
    "SyncBindingList", "VmList", "VmPage", "VmSummary",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
